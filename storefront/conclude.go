package storefront

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// aggregateConcluded follows the receipts of aggregate/offer and aggregate/accept.
func (s *Service) aggregateConcluded(ctx context.Context, msg tasks.Arrival) error {
	task, err := s.ledger.Read(ctx, msg.Task)
	if err != nil {
		return err
	}
	r := task.Receipt
	if r == nil {
		return fmt.Errorf("the record of task %s lacks its receipt", msg.Task)
	}
	var accepted aggregatecap.AcceptOK
	provider := ""
	if task.Can() == aggregatecap.AcceptAbility && capabilities.ReadResult(r.Out, &accepted) == nil {
		provider = s.providerOf(ctx, accepted)
	}
	_, err = s.aggregates.Update(ctx, msg.Owner, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if !a.Exists() || a.Value.Dealt {
			return store.ErrUnchanged
		}
		if task.Can() == aggregatecap.OfferAbility && r.Out.Error == nil {
			if a.Value.Accept.Defined() || !r.Join.Defined() {
				return store.ErrUnchanged
			}
			a.Value.Accept = r.Join
			return nil
		}
		err := capabilities.ReadResult(r.Out, &accepted)
		switch {
		case err != nil:
			a.Value.Failure = err.Error()
		case accepted.Aggregate != a.Value.Aggregate:
			a.Value.Failure = fmt.Sprintf("the dealer reports a deal for another aggregate, %s", accepted.Aggregate)
		default:
			a.Value.Accept, a.Value.Deal, a.Value.Provider, a.Value.Dealt, a.Value.Failure = msg.Task, accepted.DealMetadata, provider, true, ""
		}
		dealtQueue.Send(fx, walkMessage{Key: a.Key})
		return nil
	})
	return err
}

// providerOf asks the deal tracker who the provider of a deal is: no receipt of the chain names it, but filecoin/info does. Nothing depends on the
// answer, so a tracker that has none is not asked again.
func (s *Service) providerOf(ctx context.Context, accepted aggregatecap.AcceptOK) string {
	if s.Tracker.Conn == nil {
		return ""
	}
	ask, err := capabilities.Invoke(s.Signer, s.Tracker.DID, s.Signer.DID().String(), &deal.Info{Piece: accepted.Aggregate},
		capabilities.Terms{Expiration: s.Now().Add(time.Minute)})
	if err != nil {
		return ""
	}
	r, _, err := s.ledger.Execute(ctx, s.Tracker.Conn, ask)
	if err != nil {
		s.Log.Warn("asking the deal tracker for a provider", "aggregate", accepted.Aggregate, "err", err)
		return ""
	}
	var ok deal.InfoOK
	if capabilities.ReadResult(r.Out, &ok) != nil {
		return ""
	}
	return ok.Deals[accepted.DealID].Provider
}

// walkPage is how many pieces of an aggregate one message of a walk concludes; their receipts share a pack.
const walkPage = 500

// dealt walks the members of an aggregate and concludes their offers.
func (s *Service) dealt(ctx context.Context, msg walkMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	members, next, err := s.references.Query(ctx, memberPartition(agg.Value.Offer), "", msg.Cursor, walkPage)
	if err != nil {
		return err
	}
	keys := make([]store.Key, len(members))
	for i, m := range members {
		keys[i] = m.Value.Key
	}
	if agg.Value.Dealt {
		err = s.finish(ctx, agg.Value, keys)
	} else {
		err = store.Each(ctx, s.Parallel, keys, func(k store.Key) error {
			return s.note(ctx, k, Aggregated, "its aggregate failed: "+agg.Value.Failure)
		})
	}
	if err != nil || next == "" {
		return err
	}
	// The row is rewritten as it is: only to send the message for the next page.
	_, err = s.aggregates.Update(ctx, msg.Key, func(_ *store.Record[Aggregate], fx *store.Effects) error {
		dealtQueue.Send(fx, walkMessage{Key: msg.Key, Cursor: next})
		return nil
	})
	return err
}

// finish issues filecoin/accept for pieces of an aggregate that is in a deal. The receipts follow from what is stored, so making them
// again makes the same ones.
func (s *Service) finish(ctx context.Context, agg Aggregate, keys []store.Key) error {
	type concluded struct {
		piece store.Record[Piece]
		entry store.Entry
	}
	var (
		pack store.PackWriter
		list []concluded
	)
	for _, key := range keys {
		p, err := s.pieces.Get(ctx, key)
		if err != nil {
			return err
		}
		if p.Value.State != Aggregated {
			continue
		}
		conclusion, err := s.accepted(ctx, &p.Value, agg)
		if err != nil {
			return fmt.Errorf("concluding piece %s: %w", p.Value.Piece, err)
		}
		entry, err := tasks.Pack(&pack, conclusion)
		if err != nil {
			return err
		}
		list = append(list, concluded{p, entry})
	}
	if len(list) == 0 {
		return nil
	}
	c, err := pack.Put(ctx, s.Store)
	if err != nil {
		return err
	}
	return store.Each(ctx, s.Parallel, list, func(item concluded) error {
		_, err := s.pieces.UpdateFrom(ctx, item.piece, func(p *store.Record[Piece], _ *store.Effects) error {
			if p.Value.State != Aggregated {
				return store.ErrUnchanged
			}
			p.Value.enter(Dealt, s.Now())
			p.Value.AcceptPacked = tasks.Packed{Pack: c, Entry: item.entry}
			return nil
		})
		return err
	})
}

// accepted is the conclusion of filecoin/accept for a piece in a deal.
func (s *Service) accepted(ctx context.Context, p *Piece, agg Aggregate) (*capabilities.Message, error) {
	accept, err := s.ledger.Effect(ctx, p.Offer, p.Accept)
	if err != nil {
		return nil, err
	}
	kept, err := s.ledger.Read(ctx, p.PieceAccept)
	if err != nil {
		return nil, err
	}
	var included piececap.AcceptOK
	if err := capabilities.ReadResult(kept.Receipt.Out, &included); err != nil {
		return nil, err
	}
	r, err := capabilities.Issue(s.Signer, accept.Link(), &filecoin.AcceptOK{
		Piece: p.Piece, Aggregate: included.Aggregate, Inclusion: included.Inclusion, Aux: agg.Deal,
	}, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return capabilities.Conclusion(r, accept, capabilities.Effects{}), nil
}

// pullAggregate asks for the receipts of an aggregate that were not pushed: the safety net, one timer per aggregate.
func (s *Service) pullAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.Dealt || agg.Value.Failure != "" || agg.Value.Tries > msg.Try {
		return nil
	}
	link := agg.Value.Offer
	if agg.Value.Accept.Defined() {
		link = agg.Value.Accept
	}
	outcome, err := s.ledger.Pull(ctx, s.Aggregator.Conn, link)
	if err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
		s.Log.Warn("pulling the receipt of an aggregate", "aggregate", agg.Value.Aggregate, "task", link, "err", err)
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.Tries > msg.Try {
			return store.ErrUnchanged
		}
		a.Value.Tries++
		pause := tasks.Backoff(a.Value.Tries, s.Timing.Pull, 6*time.Hour)
		if outcome == tasks.Kept {
			pause = s.Timing.PeerRetry // the next link of the chain may be there as well
		}
		pullQueue.SendAt(fx, s.Now().Add(pause), aggregateMessage{Key: a.Key, Try: a.Value.Tries})
		return nil
	})
	return err
}
