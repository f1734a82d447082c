package aggregator

import (
	"context"
	"errors"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// statusPage bounds how many rows a status lists.
const statusPage = 100

// Status tells where a piece or an aggregate stands. store.ErrNotFound if nothing is known of it.
func (s *Service) Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error) {
	link, err := piece.FromCID(c)
	if err != nil {
		return nil, store.ErrNotFound
	}
	status := &capabilities.Status{Role: "aggregator", CID: c.String()}
	pieces, _, err := s.pieces.Query(ctx, piecePartition(link), "", "", statusPage)
	if err != nil {
		return nil, err
	}
	for _, p := range pieces {
		ps, err := s.pieceStatus(ctx, &p.Value)
		if err != nil {
			return nil, err
		}
		status.Pieces = append(status.Pieces, ps)
	}
	aggs, _, err := s.aggregates.Query(ctx, aggregatePartition(link), "", "", statusPage)
	if err != nil {
		return nil, err
	}
	for _, a := range aggs {
		status.Aggregates = append(status.Aggregates, aggregateStatus(&a.Value))
	}
	if len(status.Pieces)+len(status.Aggregates) == 0 {
		return nil, store.ErrNotFound
	}
	return status, nil
}

func (s *Service) pieceStatus(ctx context.Context, p *Piece) (capabilities.PieceStatus, error) {
	times := map[State]int64{Pending: p.Since}
	if p.Aggregated != 0 {
		times[Aggregated] = p.Aggregated
	}
	if p.Ended != 0 {
		times[Ended] = p.Ended
	}
	status := capabilities.PieceStatus{
		Piece: p.Piece.String(), Group: p.Group, Attempts: p.Attempt,
		Waiting: capabilities.NewWaiting(p.State(), times, "", 0),
		Tasks:   map[string]string{piececap.OfferAbility: p.Offer.String(), piececap.AcceptAbility: p.Accept.String()},
	}
	if p.State() == Ended {
		status.Reason = p.ending().Message
	}
	if p.State() == Pending {
		lane, err := s.lanes.Get(ctx, laneKey(p.Lane))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return status, err
		}
		switch {
		case p.Plan != "":
			status.Reason = "its aggregate is being built"
		case lane.Value.Waiting != "":
			status.Reason = lane.Value.Waiting
		default:
			status.Reason = "waiting for the aggregate to fill"
			status.Next = time.UnixMilli(p.Since).Add(s.Timing.Budget).UTC()
		}
	}
	if p.Aggregate != (store.Key{}) {
		a, err := s.aggregates.Get(ctx, p.Aggregate)
		if err != nil {
			return status, err
		}
		status.Aggregate, status.Deal = a.Value.Aggregate.String(), a.Value.Deal
		status.Tasks[aggregatecap.OfferAbility] = a.Value.Offer.String()
		if a.Value.Accept.Defined() {
			status.Tasks[aggregatecap.AcceptAbility] = a.Value.Accept.String()
		}
	}
	return status, nil
}

func aggregateStatus(a *Aggregate) capabilities.AggregateStatus {
	status := capabilities.AggregateStatus{
		Aggregate: a.Aggregate.String(), DealSize: a.DealSize, Content: a.Content, Count: a.Count, Deal: a.Deal,
		Waiting: capabilities.NewWaiting(a.State, a.Times, a.Reason, a.Next),
		Tasks:   map[string]string{aggregatecap.OfferAbility: a.Offer.String()},
	}
	if a.Accept.Defined() {
		status.Tasks[aggregatecap.AcceptAbility] = a.Accept.String()
	}
	return status
}
