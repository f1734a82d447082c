package aggregator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Timing says how long things may take. The zero value of a field means its default.
type Timing struct {
	// Budget is how long a piece may wait for its aggregate to fill; then the aggregate closes as it is; 24 h.
	Budget time.Duration
	// Tick is how often a lane looks at itself; a twentieth of the budget, a minute at most.
	Tick time.Duration
	// PeerRetry is the first pause before an unreachable dealer is asked again, doubling up to 10 minutes; 1 s.
	PeerRetry time.Duration
	// Pull is how long after an aggregate was offered its receipt is pulled, if it was not pushed; 30 minutes.
	Pull time.Duration
	// Quarantine is how long a piece may wait in a lane of its storefront's own for the volume of an aggregate; then it ends; 14 days.
	Quarantine time.Duration
}

func (t Timing) withDefaults() Timing {
	t.Budget = cmp.Or(t.Budget, 24*time.Hour)
	t.Tick = cmp.Or(t.Tick, min(max(t.Budget/20, 50*time.Millisecond), time.Minute))
	t.PeerRetry = cmp.Or(t.PeerRetry, time.Second)
	t.Pull = cmp.Or(t.Pull, 30*time.Minute)
	t.Quarantine = cmp.Or(t.Quarantine, 14*24*time.Hour)
	return t
}

// settle is how long a row takes to show in an index, at most, on any engine and with clocks that differ a little: counting stays
// this far behind.
func (t Timing) settle() time.Duration { return min(10*time.Second, t.Budget/10) }

// Storefront is a storefront that may offer pieces.
type Storefront struct {
	// Limit bounds what it may offer per UTC day; the zero Limit nothing.
	Limit standing.Limit
	// Lane is the queue that its pieces share with others of the same lane; empty for the common one.
	Lane string
}

// Deps is what an aggregator is made of. Every field is required but Timing.
type Deps struct {
	Signer capabilities.Signer
	Store  store.Driver
	Keys   capabilities.Keys
	Dealer capabilities.Peer
	// Storefronts tells who may offer pieces.
	Storefronts func(did string) (Storefront, bool)
	// Conn returns the connection by which receipts are pushed to a storefront, false if they are not.
	Conn   func(did string) (capabilities.Conn, bool)
	Ladder Ladder
	// Reputation says what follows for storefronts whose pieces were proven bad: a lane of their own, then refusal.
	Reputation standing.Policy
	Timing     Timing
	// Parallel is how many rows are written at a time where many are; 1 where the order of things must not vary.
	Parallel int
	Now      func() time.Time
	Log      *slog.Logger
	// Observe is told of every step, if it is there; it must not block.
	Observe func(tasks.Step)
}

// Service is the aggregator role.
type Service struct {
	Deps
	ledger     *tasks.Ledger
	courier    *tasks.Courier
	pieces     store.Table[Piece]
	lanes      store.Table[Lane]
	plans      store.Table[Plan]
	aggregates store.Table[Aggregate]
	standings  *standing.Register
	entered    store.Seen // lanes, with a height of pieces that they look at

	mu    sync.Mutex
	built builtAggregate // the last one, for the next page of its walk
}

type builtAggregate struct {
	order   cid.Cid
	members members
	tree    *segment.Aggregate
}

// step tells of an aggregate in another state.
func (d *Deps) step(was, is Aggregate) {
	if d.Observe != nil && is.State != was.State {
		d.Observe(tasks.Step{Of: "aggregate", Link: is.Aggregate, To: string(is.State), Task: is.Offer, Reason: is.Reason, Age: tasks.Age(is.Times, d.Now())})
	}
}

// New returns an aggregator.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("aggregator: no signer")
	case d.Store == nil, d.Keys == nil, d.Now == nil, d.Log == nil, d.Storefronts == nil, d.Conn == nil:
		return nil, errors.New("aggregator: store, keys, storefronts, connections, clock and log are required")
	case d.Dealer.Conn == nil:
		return nil, errors.New("aggregator: a dealer is required")
	}
	if err := d.Ladder.Validate(); err != nil {
		return nil, fmt.Errorf("aggregator: %w", err)
	}
	d.Timing = d.Timing.withDefaults()
	d.Parallel = max(d.Parallel, 1)
	s := &Service{
		Deps:       d,
		ledger:     tasks.New(d.Store, d.Keys, d.Now, d.Log),
		pieces:     store.NewTable[Piece](d.Store),
		lanes:      store.NewTable[Lane](d.Store),
		plans:      store.NewTable[Plan](d.Store),
		aggregates: store.NewTable[Aggregate](d.Store).Watch(d.step),
		standings:  standing.New(d.Store, d.Reputation, d.Now),
	}
	s.courier = &tasks.Courier{
		Ledger: s.ledger, Signer: d.Signer, Deliveries: store.NewTable[tasks.Delivery](d.Store), Blobs: d.Store,
		Queue: deliverQueue, Conn: d.Conn, Now: d.Now,
	}
	return s, nil
}

// Methods returns the capabilities that the aggregator executes.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{
		piececap.OfferAbility:  s.offer,
		piececap.AcceptAbility: tasks.Own(s.Signer.DID(), s.Receipt, "the piece is not in an aggregate yet"),
		ucan.ConcludeAbility:   s.ledger.Conclude(s.Signer),
	}
}

// maxGroup bounds the name of a group, in bytes: rows are named by it.
const maxGroup = 300

// offer executes piece/offer: it acknowledges the task and leaves the rest to its message.
func (s *Service) offer(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb piececap.Offer
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	invoker, self := inv.Issuer.String(), s.Signer.DID()
	front, ok := s.Storefronts(invoker)
	if !ok {
		return nil, capabilities.Fail(capabilities.Unauthorized,
			"%s is not a storefront of this aggregator: ask its operator to add it", invoker)
	}
	if with := inv.Resource(); with != self.String() && with != invoker {
		return nil, capabilities.Fail(capabilities.UnsupportedCapability, "%s does not have a %q capability provider", with, inv.Can())
	}
	if nb.Group != invoker && !strings.HasPrefix(nb.Group, invoker+"/") {
		return nil, capabilities.Fail(capabilities.Unauthorized, "group %q does not belong to %s", nb.Group, invoker)
	}
	if len(nb.Group) > maxGroup {
		return nil, capabilities.Malformed(inv.Can(), inv.Resource(), fmt.Errorf("the group has %d bytes, more than %d", len(nb.Group), maxGroup))
	}
	if limit := s.Ladder.MaxPiece(); nb.Piece.PaddedSize() > limit {
		return nil, capabilities.NewPieceTooLarge(nb.Piece, limit)
	}
	if earlier, err := s.admit(ctx, inv, nb.Piece, front); err != nil || earlier != nil {
		return earlier, err
	}
	accept, err := capabilities.Invoke(s.Signer, self, self.String(),
		&piececap.Accept{Piece: nb.Piece, Group: nb.Group}, capabilities.Terms{Nonce: inv.EffectNonce()})
	if err != nil {
		return nil, err
	}
	fx := capabilities.Effects{Join: &accept}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &piececap.OfferOK{Piece: nb.Piece}, fx)
	if err != nil {
		return nil, err
	}
	var effects store.Effects
	pieceQueue.Send(&effects, pieceMessage{inv.Link()})
	return s.ledger.Accept(ctx, inv.Task, r, fx, store.Listing{}, effects)
}

// Receipt returns the conclusion of a task: one that the aggregator executed, or of the dealer behind it. store.ErrNotFound if the task
// is unknown or not concluded.
func (s *Service) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	m, owner, err := s.ledger.Concluded(ctx, task)
	if m != nil || err != nil {
		return m, err
	}
	p, err := s.pieces.Get(ctx, owner)
	if err != nil {
		return nil, err
	}
	if !p.Value.AcceptPacked.Pack.Defined() || !p.Value.Accept.Equals(task) {
		if p.Value.Plan != "" { // claimed: the walk is on its way
			return nil, fmt.Errorf("%w: %w", capabilities.ErrSoon, store.ErrNotFound)
		}
		return nil, store.ErrNotFound
	}
	return tasks.ReadPacked(ctx, s.Store, p.Value.AcceptPacked)
}
