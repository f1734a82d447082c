package storefront

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Policy says who may offer what.
type Policy struct {
	// MayOffer reports whether content may be offered on a resource (the `with` of filecoin/offer); nil allows all.
	MayOffer func(with string) bool
	// MaxPiece is the largest piece in padded bytes; half the largest aggregate is what an aggregator can place.
	MaxPiece uint64
	// Validation says whose word is taken for the piece of some content.
	Validation Validation
	// Limits bound what is offered per day.
	Limits standing.Limits
	// Newcomers says that others bound newcomers as well, as uploads do: who has had a piece validated is noted for them.
	Newcomers bool
	// Reputation says what follows for agents whose offers were proven wrong.
	Reputation standing.Policy
	// InfoToOfferersOnly restricts filecoin/info to agents and spaces that offered the piece.
	InfoToOfferersOnly bool
}

// Timing says how long things may take. The zero value of a field means its default.
type Timing struct {
	// ContentRetry is the first pause before content that is not there is looked for again, doubling up to an hour; 2 s.
	ContentRetry time.Duration
	// ContentWindow is how long content may take to come before the offer expires; 7 days.
	ContentWindow time.Duration
	// PeerRetry is the first pause before an unreachable role is asked again, doubling up to 10 minutes; 1 s.
	PeerRetry time.Duration
	// Patience is how long a compute provider may work on a piece before another one is asked as well; 30 minutes.
	Patience time.Duration
	// Pull is how long after a task was handed on its receipt is pulled, if it was not pushed; 30 minutes.
	Pull time.Duration
}

func (t Timing) withDefaults() Timing {
	t.ContentRetry = cmp.Or(t.ContentRetry, 2*time.Second)
	t.ContentWindow = cmp.Or(t.ContentWindow, 7*24*time.Hour)
	t.PeerRetry = cmp.Or(t.PeerRetry, time.Second)
	t.Patience = cmp.Or(t.Patience, 30*time.Minute)
	t.Pull = cmp.Or(t.Pull, 30*time.Minute)
	return t
}

// Deps is what a storefront is made of. Every field is required but Tracker, Timing, Policy and Parallel (1).
type Deps struct {
	Signer capabilities.Signer
	Store  store.Driver
	Keys   capabilities.Keys
	// Group is the group that pieces are offered in; the storefront's DID, or that + "/" + a suffix.
	Group      string
	Aggregator capabilities.Peer
	// Compute are the providers that may be asked for the piece of content: the nearest one is, and another one if that cannot be reached or refuses.
	Compute []Provider
	// Arbiter computes, under [Quorum], what the providers do not settle. It is trusted to have read the bytes.
	Arbiter Provider
	// Nodes are the storage nodes whose word is taken under [Possession].
	Nodes []capabilities.Peer
	// Tracker is asked who the provider of a deal is, for filecoin/info. Without one (no connection) it stays unnamed.
	Tracker capabilities.Peer
	Custody Custody
	// Claims keeps what the storefront claims, and knows what others claim; nil: nothing is claimed.
	Claims Claims
	// Importer looks elsewhere for content that is not in custody; nil: nobody does.
	Importer Importer
	// Fetcher brings content into custody from where it is claimed to be; nil: nobody looks there.
	Fetcher Fetcher
	Policy  Policy
	Timing  Timing
	// Parallel is how many rows are written at a time where many are; 1 where the order of things must not vary.
	Parallel int
	Now      func() time.Time
	Log      *slog.Logger
	// Observe is told of every step, if it is there; it must not block.
	Observe func(tasks.Step)
}

// Service is the storefront role.
type Service struct {
	Deps
	ledger     *tasks.Ledger
	pieces     store.Table[Piece]
	by         store.Table[By]
	references store.Table[Reference]
	verdicts   store.Table[Verdict]
	aggregates store.Table[Aggregate]
	timers     store.Table[timer]
	awaited    store.Seen // rows of aggregates whose receipts are waited for
	standings  *standing.Register
	providers  []*provider
	arbiter    *provider // under [Quorum]
	nodes      map[string]capabilities.Peer
	distrusted *standing.Register // providers and nodes
}

// step tells of a piece in another state.
func (d *Deps) step(was, is Piece) {
	if d.Observe != nil && is.State != was.State {
		d.Observe(tasks.Step{Of: "piece", Link: is.Piece, To: string(is.State), Task: is.Offer, Reason: is.Reason, Age: tasks.Age(is.Times, d.Now())})
	}
}

// New returns a storefront.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("storefront: no signer")
	case d.Store == nil, d.Keys == nil, d.Custody == nil, d.Now == nil, d.Log == nil:
		return nil, errors.New("storefront: store, keys, custody, clock and log are required")
	case d.Aggregator.Conn == nil, len(d.Compute) == 0:
		return nil, errors.New("storefront: an aggregator and a compute provider are required")
	}
	if d.Group == "" {
		d.Group = d.Signer.DID().String()
	}
	d.Timing = d.Timing.withDefaults()
	d.Parallel = max(d.Parallel, 1)
	providers, err := newProviders(d.Compute)
	if err != nil {
		return nil, err
	}
	if d.Policy.Validation, err = d.Policy.Validation.withDefaults(); err != nil {
		return nil, err
	}
	nodes := map[string]capabilities.Peer{}
	var arbiter []*provider
	switch d.Policy.Validation.Mode {
	case Quorum:
		if arbiter, err = newProviders([]Provider{d.Arbiter}); err != nil {
			return nil, fmt.Errorf("storefront: providers that are not trusted need an arbiter: %w", err)
		}
		if slices.ContainsFunc(providers, func(p *provider) bool { return p.DID == d.Arbiter.DID }) {
			return nil, errors.New("storefront: the arbiter cannot be one of the providers that are not trusted")
		}
	case Possession:
		for _, node := range d.Nodes {
			if node.Conn == nil || !node.DID.Defined() {
				return nil, errors.New("storefront: a storage node lacks its DID or its connection")
			}
			nodes[node.DID.String()] = node
		}
	}
	ledger := tasks.New(d.Store, d.Keys, d.Now, d.Log)
	ledger.Parallel = d.Parallel
	s := &Service{
		Deps:       d,
		ledger:     ledger,
		pieces:     store.NewTable[Piece](d.Store).Watch(d.step),
		by:         store.NewTable[By](d.Store),
		references: store.NewTable[Reference](d.Store),
		verdicts:   store.NewTable[Verdict](d.Store),
		aggregates: store.NewTable[Aggregate](d.Store),
		timers:     store.NewTable[timer](d.Store),
		standings:  standing.New(d.Store, d.Policy.Reputation, d.Now),
		providers:  providers,
		nodes:      nodes,
		distrusted: standing.New(d.Store, d.Policy.Validation.distrust(), d.Now),
	}
	if len(arbiter) > 0 {
		s.arbiter = arbiter[0]
	}
	return s, nil
}

// Methods returns the capabilities that the storefront executes.
func (s *Service) Methods() map[string]capabilities.Method {
	own := tasks.Own(s.Signer.DID(), s.Receipt, "it is not concluded yet")
	return map[string]capabilities.Method{
		filecoin.OfferAbility:  s.offer,
		filecoin.SubmitAbility: own,
		filecoin.AcceptAbility: own,
		filecoin.InfoAbility:   s.info,
		ucan.ConcludeAbility:   s.ledger.Conclude(s.Signer),
	}
}

// offer executes filecoin/offer: it acknowledges the task and leaves the rest to its message.
func (s *Service) offer(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb filecoin.Offer
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if s.Policy.MayOffer != nil && !s.Policy.MayOffer(inv.Resource()) {
		return nil, capabilities.Fail(capabilities.Unauthorized,
			"%s may not offer content here: ask the operator to add it to the storefront's allow-list", inv.Resource())
	}
	if !supported(nb.Content) {
		return nil, capabilities.NewUnsupportedContent(nb.Content)
	}
	if limit := s.Policy.MaxPiece; limit != 0 && nb.Piece.PaddedSize() > limit {
		return nil, capabilities.NewPieceTooLarge(nb.Piece, limit)
	}
	nonce := inv.EffectNonce()
	if earlier, err := s.admit(ctx, inv, nb.Piece); err != nil {
		return nil, err
	} else if earlier != nil {
		return earlier, s.revive(ctx, pieceKey(nb.Piece, nb.Content, nonce), s.Now())
	}
	self := s.Signer.DID()
	submit, err := capabilities.Invoke(s.Signer, self, self.String(),
		&filecoin.Submit{Content: nb.Content, Piece: nb.Piece}, capabilities.Terms{Nonce: nonce})
	if err != nil {
		return nil, err
	}
	accept, err := capabilities.Invoke(s.Signer, self, self.String(),
		&filecoin.Accept{Content: nb.Content, Piece: nb.Piece}, capabilities.Terms{Nonce: nonce})
	if err != nil {
		return nil, err
	}
	fx := capabilities.Effects{Fork: []capabilities.Task{submit}, Join: &accept, Attached: s.attached(ctx, inv, nb.Content)}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &filecoin.PieceOK{Piece: nb.Piece}, fx)
	if err != nil {
		return nil, err
	}
	var effects store.Effects
	submitQueue.Send(&effects, submitMessage{inv.Link(), s.node(inv, nb)})
	kept, err := s.ledger.Accept(ctx, inv.Task, r, fx, store.Listing{Index: offersIndex(nb.Piece), Sort: inv.Link().String()}, effects)
	if err == nil && kept != r { // acknowledged before
		err = s.revive(ctx, pieceKey(nb.Piece, nb.Content, nonce), s.Now())
	}
	return kept, err
}

// offersIndex lists the offers of a piece. It is asked where the piece has no row yet; taking an offer out of it later would write its row once more.
func offersIndex(p piece.Link) string { return "offers/" + p.String() }

// supported reports whether a content CID names a whole byte string: raw or CAR codec, sha2-256.
func supported(c cid.Cid) bool {
	const car = 0x0202
	prefix := c.Prefix()
	return prefix.Version == 1 && (prefix.Codec == cid.Raw || prefix.Codec == car) &&
		prefix.MhType == multihash.SHA2_256 && prefix.MhLength == 32
}

// Receipt returns the conclusion of a task: one that the storefront executed, or of the roles behind it. store.ErrNotFound if the
// task is unknown or not concluded.
func (s *Service) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	m, owner, err := s.ledger.Concluded(ctx, task)
	if m != nil || err != nil {
		return m, err
	}
	p, err := s.pieces.Get(ctx, owner)
	if err != nil {
		return nil, err
	}
	return s.receiptOf(ctx, &p.Value, task)
}

func (s *Service) receiptOf(ctx context.Context, p *Piece, task cid.Cid) (*capabilities.Message, error) {
	switch {
	case !task.Equals(p.Accept):
		return nil, store.ErrNotFound
	case p.AcceptPacked.Pack.Defined():
		return tasks.ReadPacked(ctx, s.Store, p.AcceptPacked)
	case p.AcceptReceipt != nil:
		return (&tasks.Record{Message: p.AcceptReceipt}).Decode()
	}
	return nil, store.ErrNotFound
}

// info executes filecoin/info: the union over all contents that were offered as this piece. It tells nothing of content, space or agent.
func (s *Service) info(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb filecoin.Info
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	rows, err := s.piecesOf(ctx, nb.Piece)
	if err != nil {
		return nil, err
	}
	if s.Policy.InfoToOfferersOnly {
		if err := s.checkOfferer(ctx, rows, inv); err != nil {
			return nil, err
		}
	}
	if len(rows) == 0 {
		acknowledged, err := s.ledger.Listed(ctx, offersIndex(nb.Piece), 1)
		if err != nil {
			return nil, err
		}
		if len(acknowledged) == 0 {
			return nil, capabilities.Fail(capabilities.RecordNotFound, "piece %s was never offered here", nb.Piece)
		}
	}
	ok := filecoin.InfoOK{Piece: nb.Piece}
	var failed *capabilities.Failure
	live := len(rows) == 0
	for _, rec := range rows {
		p := &rec.Value
		m, err := s.receiptOf(ctx, p, p.Accept)
		if errors.Is(err, store.ErrNotFound) {
			live = true
			continue
		}
		if err != nil {
			return nil, err
		}
		var accepted filecoin.AcceptOK
		err = capabilities.ReadResult(m.Receipt(p.Accept).Out, &accepted)
		if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
			failed = f
			continue
		}
		if err != nil {
			return nil, err
		}
		live = true
		agg, err := s.aggregates.Get(ctx, p.Aggregate)
		if err != nil {
			return nil, err
		}
		ok.Aggregates = append(ok.Aggregates, filecoin.InfoAggregate{Aggregate: accepted.Aggregate, Inclusion: accepted.Inclusion})
		ok.Deals = append(ok.Deals,
			filecoin.InfoDeal{Aggregate: accepted.Aggregate, Provider: agg.Value.Provider, Aux: accepted.Aux})
	}
	if !live {
		return nil, failed
	}
	return capabilities.Issue(s.Signer, inv.Link(), &ok, capabilities.Effects{})
}

func (s *Service) piecesOf(ctx context.Context, p piece.Link) ([]store.Record[Piece], error) {
	var rows []store.Record[Piece]
	for rec, err := range s.pieces.All(ctx, piecePartition(p), "") {
		if err != nil {
			return nil, fmt.Errorf("looking up piece %s: %w", p, err)
		}
		rows = append(rows, rec)
	}
	return rows, nil
}

// checkOfferer fails with RecordNotFound unless the invoker, or the resource it invokes on, offered the piece.
func (s *Service) checkOfferer(ctx context.Context, rows []store.Record[Piece], inv capabilities.Invocation) error {
	who := map[string]bool{inv.Issuer.String(): true, inv.Resource(): true}
	for _, rec := range rows {
		first, err := s.ledger.Get(ctx, rec.Value.Offer)
		if err != nil {
			return err
		}
		m, err := first.Decode()
		if err != nil {
			return err
		}
		if t, ok := capabilities.FindTask(m, rec.Value.Offer); ok && (who[t.Issuer.String()] || who[t.Resource()]) {
			return nil
		}
		for by, err := range s.by.All(ctx, byPartition(rec.Key), "") {
			if err != nil {
				return err
			}
			if who[by.Value.Agent] || who[by.Value.Space] {
				return nil
			}
		}
	}
	return capabilities.Fail(capabilities.RecordNotFound, "this piece was never offered here by you")
}

// ContentOf returns the contents that were found to be this piece.
func (s *Service) ContentOf(ctx context.Context, p piece.Link) ([]cid.Cid, error) {
	rows, err := s.piecesOf(ctx, p)
	if err != nil {
		return nil, err
	}
	var contents []cid.Cid
	for _, rec := range rows {
		switch rec.Value.State {
		case Validated, Offered, Aggregated, Dealt, Failed:
			contents = append(contents, rec.Value.Content)
		}
	}
	return contents, nil
}
