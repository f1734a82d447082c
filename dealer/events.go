package dealer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Messages. Each names a row; what to do follows from the row.
type (
	offerMessage struct {
		Offer cid.Cid `cbor:"o"`
	}
	// publishMessage is one try to publish an aggregate to one broker. A message of an earlier try than the row's does nothing.
	publishMessage struct {
		Key    store.Key `cbor:"k"`
		Broker string    `cbor:"b"`
		Try    int       `cbor:"t,omitzero"`
	}
	pollMessage struct {
		Key store.Key `cbor:"k"`
		Try int       `cbor:"t,omitzero"`
	}
	dealtMessage struct {
		Key store.Key `cbor:"k"`
	}
)

var (
	offerQueue   = store.NewQueue[offerMessage]("offer")
	publishQueue = store.NewQueue[publishMessage]("publish")
	pollQueue    = store.NewQueue[pollMessage]("poll")
	dealtQueue   = store.NewQueue[dealtMessage]("dealt")
	deliverQueue = store.NewQueue[tasks.Send]("deliver")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		offerQueue.Name:   offerQueue.Handler(s.offered),
		publishQueue.Name: publishQueue.Handler(s.publish),
		pollQueue.Name:    pollQueue.Handler(s.poll),
		dealtQueue.Name:   dealtQueue.Handler(s.dealt),
		deliverQueue.Name: deliverQueue.Handler(s.courier.Deliver),
	}
}

// Start arms what no message arms: nothing. The timers of an aggregate begin with its row.
func (s *Service) Start(context.Context) error { return nil }

// offered follows an acknowledged offer: the aggregate's row is created, or shared if somebody offered the same before.
func (s *Service) offered(ctx context.Context, msg offerMessage) error {
	rec, err := s.ledger.Get(ctx, msg.Offer)
	if err != nil {
		return err
	}
	m, err := rec.Decode()
	if err != nil {
		return err
	}
	offer, ok := capabilities.FindTask(m, msg.Offer)
	r := m.Receipt(msg.Offer)
	if !ok || r == nil {
		return fmt.Errorf("the record of offer %s is incomplete", msg.Offer)
	}
	accept, ok := capabilities.FindTask(m, r.Join)
	if !ok {
		return fmt.Errorf("the record of offer %s lacks its effect", msg.Offer)
	}
	var nb aggregatecap.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	pieces, err := s.pieces(ctx, nb.Pieces)
	if err != nil {
		return err
	}
	nonce := offer.EffectNonce()
	key := aggregateKey(nb.Aggregate, nb.Pieces, nonce)
	if err := s.ledger.Own(ctx, accept.Link(), key); err != nil {
		return err
	}
	by := store.Record[By]{Key: store.Key{Partition: byPartition(key), Sort: msg.Offer.String()}, Value: By{offer.Issuer.String(), rec.At}}
	if _, err := s.by.Create(ctx, &by, store.Effects{}); err != nil {
		return err
	}
	a := store.Record[Aggregate]{Key: key, Value: Aggregate{
		Aggregate: nb.Aggregate, Pieces: nb.Pieces, Nonce: nonce, Count: len(pieces), Content: contentOf(pieces),
		Offer: msg.Offer, Aggregator: offer.Issuer.String(), Accept: r.Join,
	}}
	a.Value.enter(Offered, time.UnixMilli(rec.At))
	var fx store.Effects
	for _, b := range s.Brokers {
		publishQueue.Send(&fx, publishMessage{Key: key, Broker: b.Name()})
	}
	pollQueue.SendAt(&fx, s.Now().Add(s.Timing.Poll), pollMessage{Key: key})
	created, err := s.aggregates.Create(ctx, &a, fx)
	if err != nil || created {
		return err
	}
	// Somebody else's offer may have been concluded before this one's by-row was there.
	return s.dealt(ctx, dealtMessage{key})
}

func (s *Service) broker(name string) (Broker, bool) {
	for _, b := range s.Brokers {
		if b.Name() == name {
			return b, true
		}
	}
	return nil, false
}

// publish makes an aggregate known to one broker, and notes what it is called there.
func (s *Service) publish(ctx context.Context, msg publishMessage) error {
	a, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if a.Value.State == Dealt {
		return nil
	}
	// The row is there before the broker is asked: whatever happens then, it is known that this broker may have the aggregate.
	o := store.Record[Offering]{Key: offeringKey(msg.Key, msg.Broker), Value: Offering{Since: s.Now().UnixMilli()}}
	if _, err := s.offerings.Create(ctx, &o, store.Effects{}); err != nil {
		return err
	}
	if o.Value.Tries > msg.Try {
		return nil
	}
	if o.Value.Name == "" {
		name, failure := s.askBroker(ctx, &a.Value, msg.Broker)
		if ctx.Err() != nil {
			return ctx.Err() // asked to stop: not a failure of the broker
		}
		if failure != nil {
			return s.publishLater(ctx, msg, failure)
		}
		if _, err := s.offerings.Update(ctx, o.Key, func(o *store.Record[Offering], _ *store.Effects) error {
			if o.Value.Name != "" {
				return store.ErrUnchanged
			}
			o.Value.Name, o.Value.At, o.Value.Reason, o.Value.Next = name, s.Now().UnixMilli(), "", 0
			return nil
		}); err != nil {
			return err
		}
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State != Offered {
			return store.ErrUnchanged
		}
		a.Value.enter(Published, s.Now())
		a.Value.Reason = "no provider has published a deal yet"
		return nil
	})
	return err
}

func (s *Service) askBroker(ctx context.Context, a *Aggregate, name string) (string, error) {
	broker, ok := s.broker(name)
	if !ok {
		return "", fmt.Errorf("broker %s is not configured any more", name)
	}
	pieces, err := s.pieces(ctx, a.Pieces)
	if err != nil {
		return "", err
	}
	outside, err := broker.Publish(ctx, Offer{
		Aggregate: a.Aggregate, Pieces: pieces, Collection: a.Aggregator, OfferedAt: time.UnixMilli(a.Times[Offered]).UTC(),
	})
	if err == nil && outside == "" {
		err = fmt.Errorf("broker %s gave the aggregate no name", name)
	}
	return outside, err
}

// publishLater notes why a broker does not have an aggregate yet, and tries again after a pause.
func (s *Service) publishLater(ctx context.Context, msg publishMessage, failure error) error {
	s.Log.Warn("publishing an aggregate failed and will be tried again", "aggregate", msg.Key, "broker", msg.Broker, "tries", msg.Try+1, "err", failure)
	var next time.Time
	o, err := s.offerings.Update(ctx, offeringKey(msg.Key, msg.Broker), func(o *store.Record[Offering], fx *store.Effects) error {
		if o.Value.Name != "" || o.Value.Tries > msg.Try {
			return store.ErrUnchanged
		}
		o.Value.Tries = msg.Try + 1
		next = s.Now().Add(tasks.Backoff(o.Value.Tries, s.Timing.BrokerRetry, max(10*time.Minute, s.Timing.BrokerRetry)))
		o.Value.Reason, o.Value.Next = failure.Error(), next.UnixMilli()
		publishQueue.SendAt(fx, next, publishMessage{Key: msg.Key, Broker: msg.Broker, Try: o.Value.Tries})
		return nil
	})
	if err != nil {
		return err
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State != Offered || o.Value.Reason == "" {
			return store.ErrUnchanged
		}
		a.Value.Reason, a.Value.Next = fmt.Sprintf("broker %s: %s", msg.Broker, o.Value.Reason), o.Value.Next
		return nil
	})
	return err
}

// questionLife is how long a question to the deal tracker is valid.
const questionLife = time.Minute

// poll asks the deal tracker for the deals of an aggregate, and concludes it if they make a success.
func (s *Service) poll(ctx context.Context, msg pollMessage) error {
	a, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if a.Value.State == Dealt || a.Value.Polls > msg.Try {
		return nil
	}
	deals, failure := s.askTracker(ctx, &a.Value)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v := verdict{attempts: a.Value.Attempts, lost: a.Value.Lost}
	if failure == nil {
		v = judge(deals, s.Replicas)
	} else {
		s.Log.Warn("asking for deals failed and will be tried again", "aggregate", a.Value.Aggregate, "err", failure)
		v.reason = "the deal tracker gives no answer: " + failure.Error()
	}
	if v.success {
		return s.conclude(ctx, a, v)
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State == Dealt || a.Value.Polls > msg.Try {
			return store.ErrUnchanged
		}
		a.Value.Polls = msg.Try + 1
		a.Value.Attempts, a.Value.Lost = v.attempts, v.lost
		next := s.Now().Add(tasks.Backoff(a.Value.Polls+1, s.Timing.Poll, s.Timing.pollLimit()))
		if a.Value.State == Published { // before that it waits for a broker, and says so
			a.Value.Reason, a.Value.Next = v.reason, next.UnixMilli()
		}
		pollQueue.SendAt(fx, next, pollMessage{Key: msg.Key, Try: a.Value.Polls})
		return nil
	})
	return err
}

// askTracker returns the deals of an aggregate. The question is a task of a minute, signed anew each time and not kept: its answer changes.
func (s *Service) askTracker(ctx context.Context, a *Aggregate) (deal.Deals, error) {
	task, err := capabilities.Invoke(s.Signer, s.Tracker.DID, s.Signer.DID().String(), &deal.Info{Piece: a.Aggregate},
		capabilities.Terms{Expiration: s.Now().Add(questionLife)})
	if err != nil {
		return nil, err
	}
	r, _, err := s.ledger.Execute(ctx, s.Tracker.Conn, task)
	if err != nil {
		return nil, err
	}
	var ok deal.InfoOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		return nil, err
	}
	return ok.Deals, nil
}

// conclude issues the receipt of aggregate/accept with the commit that enters Dealt: the first success is the one.
func (s *Service) conclude(ctx context.Context, a store.Record[Aggregate], v verdict) error {
	accept, err := s.ledger.Effect(ctx, a.Value.Offer, a.Value.Accept)
	if err != nil {
		return err
	}
	r, err := capabilities.Issue(s.Signer, accept.Link(), &aggregatecap.AcceptOK{
		Aggregate: a.Value.Aggregate, DealMetadata: capabilities.DealMetadata{DealID: v.deal},
	}, capabilities.Effects{})
	if err != nil {
		return err
	}
	conclusion := capabilities.Conclusion(r, accept, capabilities.Effects{}).Encode()
	_, err = s.aggregates.Update(ctx, a.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State == Dealt {
			return store.ErrUnchanged
		}
		a.Value.enter(Dealt, s.Now())
		a.Value.Attempts, a.Value.Lost = v.attempts, v.lost
		a.Value.Deal, a.Value.AcceptReceipt = v.deal, conclusion
		dealtQueue.Send(fx, dealtMessage{a.Key})
		return nil
	})
	return err
}

// dealt sends the receipt of a concluded aggregate to everybody who offered it.
func (s *Service) dealt(ctx context.Context, msg dealtMessage) error {
	a, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if a.Value.State != Dealt {
		return nil
	}
	conclusion, err := (&tasks.Record{Message: a.Value.AcceptReceipt}).Decode()
	if err != nil {
		return err
	}
	if err := s.ledger.Keep(ctx, a.Value.Accept, conclusion); err != nil {
		return err
	}
	var failed error
	for by, err := range s.by.All(ctx, byPartition(msg.Key), "") {
		if err != nil {
			return errors.Join(failed, err)
		}
		delivery := tasks.Delivery{Tasks: []cid.Cid{a.Value.Accept}}
		failed = errors.Join(failed, s.courier.Enqueue(ctx, by.Value.Aggregator, "accepted/"+a.Value.Accept.String(), delivery))
	}
	return failed
}
