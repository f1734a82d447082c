package aggregator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Messages. Each names a row; what to do follows from the row.
type (
	pieceMessage struct {
		Offer cid.Cid `cbor:"o"`
	}
	tickMessage struct {
		Lane  string `cbor:"l"`
		Round uint64 `cbor:"r"`
	}
	planMessage struct {
		Lane string `cbor:"l"`
		Plan string `cbor:"p"`
	}
	aggregateMessage struct {
		Key store.Key `cbor:"k"`
		Try int       `cbor:"t,omitzero"`
	}
)

var (
	pieceQueue   = store.NewQueue[pieceMessage]("piece")
	tickQueue    = store.NewQueue[tickMessage]("lane")
	planQueue    = store.NewQueue[planMessage]("plan")
	walkQueue    = store.NewQueue[aggregateMessage]("walk")
	offerQueue   = store.NewQueue[aggregateMessage]("aggregate-offer")
	pullQueue    = store.NewQueue[aggregateMessage]("pull-aggregate")
	acceptQueue  = store.NewQueue[tasks.Arrival]("aggregate-accepted")
	deliverQueue = store.NewQueue[tasks.Send]("deliver")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		pieceQueue.Name:   pieceQueue.Handler(s.offered),
		tickQueue.Name:    tickQueue.Handler(s.tick),
		planQueue.Name:    planQueue.Handler(s.plan),
		walkQueue.Name:    walkQueue.Handler(s.walk),
		offerQueue.Name:   offerQueue.Handler(s.offerAggregate),
		pullQueue.Name:    pullQueue.Handler(s.pullAggregate),
		acceptQueue.Name:  acceptQueue.Handler(s.aggregateAccepted),
		deliverQueue.Name: deliverQueue.Handler(s.courier.Deliver),
	}
}

// Start arms what no message arms. The aggregator's timers begin with the first piece of a lane and never end.
func (s *Service) Start(context.Context) error { return nil }

// offered follows an acknowledged piece: its row is created, pending in its lane.
func (s *Service) offered(ctx context.Context, msg pieceMessage) error {
	offer, err := s.ledger.Read(ctx, msg.Offer)
	if err != nil {
		return err
	}
	r := offer.Receipt
	if r == nil {
		return fmt.Errorf("the record of offer %s lacks its receipt", msg.Offer)
	}
	var nb piececap.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	storefront, _, _ := strings.Cut(nb.Group, "/")
	lane, err := s.laneOf(ctx, storefront, nb.Group)
	if err != nil {
		return err
	}
	nonce := offer.EffectNonce()
	key := pieceKey(nb.Piece, nb.Group, nonce)
	if err := s.ledger.Own(ctx, r.Join, key); err != nil {
		return err
	}
	p := Piece{Piece: nb.Piece, Group: nb.Group, Storefront: storefront, Nonce: nonce, Lane: lane,
		Offer: msg.Offer, Accept: r.Join, Since: offer.At}
	row := store.Record[Piece]{Key: key, Value: p, Listing: p.listing()}
	if _, err := s.pieces.Create(ctx, &row, store.Effects{}); err != nil {
		return err
	}
	return s.enterLane(ctx, row.Value.Lane, nb.Piece.Height())
}

// offerAggregate hands an aggregate to the dealer, by the task that was signed when it was built.
func (s *Service) offerAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.State == Published {
		// A repetition: what came before may have ended between the commit and the look for the receipt.
		_, err := s.arrived(ctx, &agg)
		return err
	}
	if agg.Value.State != Offered || agg.Value.Tries > msg.Try {
		return nil
	}
	task, err := agg.Value.offerTask()
	if err != nil {
		return err
	}
	list, err := store.ReadBlob(ctx, s.Store, agg.Value.Pieces, 32<<20)
	if err != nil {
		return err
	}
	r, conclusion, err := s.ledger.Execute(ctx, s.Dealer.Conn, task, capabilities.Block{CID: agg.Value.Pieces, Bytes: list})
	if err != nil {
		return s.waitForDealer(ctx, agg, "dealing: "+s.reason(err))
	}
	var result aggregatecap.OfferOK
	if err := capabilities.ReadResult(r.Out, &result); err != nil {
		s.Log.Error("the dealer refuses an aggregate", "aggregate", agg.Value.Aggregate, "task", task.Link(), "err", err)
		if f := (*capabilities.Failure)(nil); errors.As(err, &f) && f.Name == capabilities.AggregateMismatch {
			if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
				return err
			}
			return s.fail(ctx, msg.Key, f.Error())
		}
		return s.waitForDealer(ctx, agg, "dealing refused: "+err.Error())
	}
	if !r.Join.Defined() || result.Aggregate != agg.Value.Aggregate {
		s.Log.Error("the dealer acknowledged something else", "aggregate", agg.Value.Aggregate, "task", task.Link(), "receipt", r.Link())
		return s.waitForDealer(ctx, agg, "dealing: the dealer acknowledged something else")
	}
	if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
		return err
	}
	if _, err := s.ledger.Await(ctx, r.Join, nil, msg.Key, acceptQueue.Name, false); err != nil {
		return err
	}
	agg, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Offered {
			return store.ErrUnchanged
		}
		a.Value.enter(Published, s.Now())
		a.Value.Accept = r.Join
		pullQueue.SendAt(fx, s.Now().Add(s.Timing.Pull), aggregateMessage{Key: msg.Key})
		return nil
	})
	if err != nil {
		return err
	}
	_, err = s.arrived(ctx, &agg)
	return err
}

// arrived follows the receipt of aggregate/accept if it is here already, and reports whether it is. Its message may have come before the aggregate
// waited for it, when there was nothing to do, or have failed for the last time.
func (s *Service) arrived(ctx context.Context, agg *store.Record[Aggregate]) (bool, error) {
	if !agg.Value.Accept.Defined() {
		return false, nil
	}
	rec, err := s.ledger.Get(ctx, agg.Value.Accept)
	if err != nil || !rec.Concluded {
		return false, err
	}
	return true, s.aggregateAccepted(ctx, tasks.Arrival{Task: agg.Value.Accept, Owner: agg.Key})
}

func (s *Service) reason(err error) string {
	if u, ok := tasks.IsUnavailable(err); ok {
		return fmt.Sprintf("%s is not available: %s", s.Dealer.DID, u.Reason)
	}
	s.Log.Warn("the dealer could not be reached", "peer", s.Dealer.DID, "err", err)
	return fmt.Sprintf("%s cannot be reached", s.Dealer.DID)
}

func (s *Service) waitForDealer(ctx context.Context, agg store.Record[Aggregate], reason string) error {
	try := agg.Value.Tries
	_, err := s.aggregates.Update(ctx, agg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Offered || a.Value.Tries != try {
			return store.ErrUnchanged
		}
		a.Value.Tries++
		next := s.Now().Add(tasks.Backoff(a.Value.Tries, s.Timing.PeerRetry, 10*time.Minute))
		a.Value.Reason, a.Value.Next = reason, next.UnixMilli()
		offerQueue.SendAt(fx, next, aggregateMessage{Key: a.Key, Try: a.Value.Tries})
		return nil
	})
	return err
}

func (s *Service) fail(ctx context.Context, key store.Key, reason string) error {
	_, err := s.aggregates.Update(ctx, key, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State == Dealt || a.Value.State == Failed {
			return store.ErrUnchanged
		}
		a.Value.enter(Failed, s.Now())
		a.Value.Reason = reason
		return nil
	})
	return err
}

// aggregateAccepted follows the receipt of aggregate/accept: it goes to every storefront with a piece in the aggregate.
func (s *Service) aggregateAccepted(ctx context.Context, msg tasks.Arrival) error {
	agg, err := s.aggregates.Get(ctx, msg.Owner)
	if err != nil {
		return err
	}
	if agg.Value.State != Published || !agg.Value.Accept.Equals(msg.Task) {
		return nil
	}
	kept, err := s.ledger.Read(ctx, msg.Task)
	if err != nil {
		return err
	}
	var accepted aggregatecap.AcceptOK
	result := capabilities.ReadResult(kept.Receipt.Out, &accepted)
	if result == nil && accepted.Aggregate != agg.Value.Aggregate {
		s.Log.Error("the dealer reports a deal for another aggregate", "aggregate", agg.Value.Aggregate, "other", accepted.Aggregate, "task", msg.Task)
		result = fmt.Errorf("the dealer reports a deal for another aggregate, %s", accepted.Aggregate)
	}
	for _, front := range agg.Value.Storefronts {
		id := fmt.Sprintf("concluded/%s/%s", agg.Value.Aggregate, agg.Value.Plan)
		if err := s.courier.Enqueue(ctx, front, id, tasks.Delivery{Tasks: []cid.Cid{agg.Value.Offer, msg.Task}}); err != nil {
			return err
		}
	}
	if result != nil {
		if err := s.blame(ctx, agg.Value, result); err != nil {
			return err
		}
		return s.fail(ctx, msg.Owner, result.Error())
	}
	_, err = s.aggregates.Update(ctx, msg.Owner, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State != Published {
			return store.ErrUnchanged
		}
		a.Value.enter(Dealt, s.Now())
		a.Value.Deal = accepted.DealID
		return nil
	})
	return err
}

// pullAggregate asks the dealer for the receipt of an aggregate that was not pushed: the safety net, one timer per aggregate.
func (s *Service) pullAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.State != Published || agg.Value.Pulls > msg.Try {
		return nil
	}
	if here, err := s.arrived(ctx, &agg); err != nil {
		return err
	} else if !here {
		if _, err := s.ledger.Pull(ctx, s.Dealer.Conn, agg.Value.Accept); err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
			s.Log.Warn("pulling the receipt of an aggregate", "aggregate", agg.Value.Aggregate, "task", agg.Value.Accept, "err", err)
		}
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Published || a.Value.Pulls > msg.Try {
			return store.ErrUnchanged
		}
		a.Value.Pulls++
		next := s.Now().Add(tasks.Backoff(a.Value.Pulls, s.Timing.Pull, 6*time.Hour))
		a.Value.Next = next.UnixMilli()
		pullQueue.SendAt(fx, next, aggregateMessage{Key: a.Key, Try: a.Value.Pulls})
		return nil
	})
	return err
}
