package dealer

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
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Timing says how long things may take. The zero value of a field means its default.
type Timing struct {
	// Poll is the first pause before the deal tracker is asked for an aggregate, doubling up to 30 times as long, an hour at most; 1 minute.
	Poll time.Duration
	// BrokerRetry is the first pause before a broker that failed is tried again, doubling up to 10 minutes; 1 s.
	BrokerRetry time.Duration
}

func (t Timing) withDefaults() Timing {
	t.Poll = cmp.Or(t.Poll, time.Minute)
	t.BrokerRetry = cmp.Or(t.BrokerRetry, time.Second)
	return t
}

// pollLimit is the longest pause between two questions for an aggregate.
func (t Timing) pollLimit() time.Duration { return max(t.Poll, min(30*t.Poll, time.Hour)) }

// Deps is what a dealer is made of. Every field is required but Timing and Replicas.
type Deps struct {
	Signer  capabilities.Signer
	Store   store.Driver
	Keys    capabilities.Keys
	Tracker capabilities.Peer
	// Aggregators tells who may offer aggregates.
	Aggregators func(did string) bool
	// Conn returns the connection by which receipts are pushed to an aggregator, false if they are not.
	Conn    func(did string) (capabilities.Conn, bool)
	Brokers []Broker
	// DealSizes are the sizes in padded bytes that the brokers take.
	DealSizes []uint64
	// Replicas is how many providers have to have an active deal before the aggregate is dealt; 1.
	Replicas int
	Timing   Timing
	Now      func() time.Time
	Log      *slog.Logger
	// Observe is told of every step, if it is there; it must not block.
	Observe func(tasks.Step)
}

// Service is the dealer role.
type Service struct {
	Deps
	ledger     *tasks.Ledger
	courier    *tasks.Courier
	aggregates store.Table[Aggregate]
	offerings  store.Table[Offering]
	by         store.Table[By]
}

// maxBrokers leaves room for the poll among the messages of one commit.
const maxBrokers = store.MaxMessages - 1

// step tells of an aggregate in another state.
func (d *Deps) step(was, is Aggregate) {
	if d.Observe != nil && is.State != was.State {
		d.Observe(tasks.Step{Of: "aggregate", Link: is.Aggregate, To: string(is.State), Task: is.Offer, Reason: is.Reason, Age: tasks.Age(is.Times, d.Now())})
	}
}

// New returns a dealer.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("dealer: no signer")
	case d.Store == nil, d.Keys == nil, d.Now == nil, d.Log == nil, d.Aggregators == nil, d.Conn == nil:
		return nil, errors.New("dealer: store, keys, aggregators, connections, clock and log are required")
	case d.Tracker.Conn == nil:
		return nil, errors.New("dealer: a deal tracker is required")
	case len(d.Brokers) == 0 || len(d.Brokers) > maxBrokers:
		return nil, fmt.Errorf("dealer: %d brokers are configured, it needs 1 to %d", len(d.Brokers), maxBrokers)
	case len(d.DealSizes) == 0:
		return nil, errors.New("dealer: no deal sizes are configured")
	case d.Replicas < 0:
		return nil, fmt.Errorf("dealer: %d replicas", d.Replicas)
	}
	names := map[string]bool{}
	for _, b := range d.Brokers {
		if name := b.Name(); name == "" || len(name) > 64 || names[name] {
			return nil, fmt.Errorf("dealer: broker name %q is empty, too long, or used twice", name)
		}
		names[b.Name()] = true
	}
	for _, size := range d.DealSizes {
		if _, err := piece.HeightOf(size); err != nil {
			return nil, fmt.Errorf("dealer: deal size: %w", err)
		}
	}
	d.Timing = d.Timing.withDefaults()
	d.Replicas = max(d.Replicas, 1)
	s := &Service{
		Deps:       d,
		ledger:     tasks.New(d.Store, d.Keys, d.Now, d.Log),
		aggregates: store.NewTable[Aggregate](d.Store).Watch(d.step),
		offerings:  store.NewTable[Offering](d.Store),
		by:         store.NewTable[By](d.Store),
	}
	s.courier = &tasks.Courier{
		Ledger: s.ledger, Signer: d.Signer, Deliveries: store.NewTable[tasks.Delivery](d.Store), Blobs: d.Store,
		Queue: deliverQueue, Conn: d.Conn, Now: d.Now,
	}
	return s, nil
}

// Methods returns the capabilities that the dealer executes.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{
		aggregatecap.OfferAbility:  s.offer,
		aggregatecap.AcceptAbility: tasks.Own(s.Signer.DID(), s.Receipt, "the aggregate is not in a deal yet"),
	}
}

// offer executes aggregate/offer: it recomputes the aggregate, acknowledges the task and leaves the rest to its message.
func (s *Service) offer(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb aggregatecap.Offer
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	// What was answered before is answered again, without the work and without the list.
	if kept, err := s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {
		return kept, err
	}
	invoker, self := inv.Issuer.String(), s.Signer.DID()
	if !s.Aggregators(invoker) {
		return nil, capabilities.Fail(capabilities.Unauthorized,
			"%s is not an aggregator of this dealer: ask its operator to add it", invoker)
	}
	if with := inv.Resource(); with != self.String() && with != invoker {
		return nil, capabilities.Fail(capabilities.UnsupportedCapability, "%s does not have a %q capability provider", with, inv.Can())
	}
	if p := nb.Pieces.Prefix(); p.Version != 1 || p.Codec != cid.DagCBOR || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		// A row is named by it; a CID that holds the list itself has any length.
		return nil, &capabilities.Unavailable{Invalid: true, Reason: "the list of pieces is linked by another CID than one of DAG-CBOR with SHA2-256"}
	}
	list, ok := inv.Message.Block(nb.Pieces)
	if !ok {
		return nil, &capabilities.Unavailable{Invalid: true, Reason: fmt.Sprintf("the message lacks the list of pieces %s", nb.Pieces)}
	}
	pieces, err := aggregatecap.ReadPieces(list.Bytes)
	if err != nil {
		return nil, &capabilities.Unavailable{Invalid: true, Reason: err.Error()}
	}
	if size := nb.Aggregate.PaddedSize(); !slices.Contains(s.DealSizes, size) {
		return nil, &capabilities.Unavailable{RetryAfter: time.Hour,
			Reason: fmt.Sprintf("no broker takes deals of %d padded bytes; those that are taken have %d", size, s.DealSizes)}
	}
	if failure := recompute(nb, pieces); failure != nil {
		s.Log.Error("an aggregate is refused for good: the aggregator's list does not give it",
			"aggregate", nb.Aggregate, "aggregator", invoker, "task", inv.Link(), "err", failure)
		r, err := capabilities.IssueFailure(s.Signer, inv.Link(), failure, capabilities.Effects{})
		if err != nil {
			return nil, err
		}
		return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
	}

	accept, err := capabilities.Invoke(s.Signer, self, self.String(),
		&aggregatecap.Accept{Aggregate: nb.Aggregate, Pieces: nb.Pieces}, capabilities.Terms{Nonce: inv.EffectNonce()})
	if err != nil {
		return nil, err
	}
	fx := capabilities.Effects{Join: &accept}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &aggregatecap.OfferOK{Aggregate: nb.Aggregate}, fx)
	if err != nil {
		return nil, err
	}
	var effects store.Effects
	if blob := store.Blob(list); len(blob.Bytes) <= store.MaxInlineBlob {
		effects.Keep(blob)
	} else if err := store.PutBlob(ctx, s.Store, blob); err != nil {
		return nil, err
	}
	offerQueue.Send(&effects, offerMessage{inv.Link()})
	return s.ledger.Accept(ctx, inv.Task, r, fx, store.Listing{}, effects)
}

// Receipt returns the conclusion of a task that the dealer executed. store.ErrNotFound if the task is unknown or not concluded.
func (s *Service) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	m, owner, err := s.ledger.Concluded(ctx, task)
	if m != nil || err != nil {
		return m, err
	}
	a, err := s.aggregates.Get(ctx, owner)
	if err != nil {
		return nil, err
	}
	if a.Value.AcceptReceipt == nil || !a.Value.Accept.Equals(task) {
		return nil, store.ErrNotFound
	}
	return (&tasks.Record{Message: a.Value.AcceptReceipt}).Decode()
}
