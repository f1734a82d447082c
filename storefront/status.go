package storefront

import (
	"context"
	"errors"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// statusPage bounds how many pieces a status lists.
const statusPage = 100

// Status tells where a piece, the pieces of a content, or an aggregate stands. store.ErrNotFound if nothing is known of it.
func (s *Service) Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error) {
	status := &capabilities.Status{Role: "storefront", CID: c.String()}
	add := func(rec store.Record[Piece]) error {
		p, err := s.pieceStatus(ctx, &rec.Value)
		status.Pieces = append(status.Pieces, p)
		return err
	}
	if link, err := piece.FromCID(c); err == nil {
		recs, _, err := s.pieces.Query(ctx, piecePartition(link), "", "", statusPage)
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			if err := add(rec); err != nil {
				return nil, err
			}
		}
		aggs, _, err := s.aggregates.Query(ctx, aggregatePartition(link), "", "", statusPage)
		if err != nil {
			return nil, err
		}
		for _, a := range aggs {
			status.Aggregates = append(status.Aggregates, aggregateStatus(&a.Value))
		}
		if len(recs)+len(aggs) == 0 {
			offers, err := s.ledger.Listed(ctx, offersIndex(link), 1)
			if err != nil {
				return nil, err
			}
			for range offers {
				status.Pieces = append(status.Pieces, capabilities.PieceStatus{Piece: link.String(),
					Waiting: capabilities.Waiting{State: string(Submitted), Reason: "acknowledged"}})
			}
		}
	} else {
		refs, _, err := s.references.Query(ctx, "content/"+c.String(), "", "", statusPage)
		if err != nil {
			return nil, err
		}
		for _, ref := range refs {
			rec, err := s.pieces.Get(ctx, ref.Value.Key)
			if errors.Is(err, store.ErrNotFound) {
				continue // referred to a moment before it is created
			}
			if err != nil {
				return nil, err
			}
			if err := add(rec); err != nil {
				return nil, err
			}
		}
	}
	if len(status.Pieces)+len(status.Aggregates) == 0 {
		return nil, store.ErrNotFound
	}
	return status, nil
}

func (s *Service) pieceStatus(ctx context.Context, p *Piece) (capabilities.PieceStatus, error) {
	status := capabilities.PieceStatus{
		Piece: p.Piece.String(), Content: p.Content.String(), Group: p.Group, Attempts: p.Attempts,
		Waiting: capabilities.NewWaiting(p.State, p.Times, p.Reason, p.Next),
		Tasks:   map[string]string{},
	}
	name := func(can string, c cid.Cid) {
		if c.Defined() {
			status.Tasks[can] = c.String()
		}
	}
	name(filecoin.OfferAbility, p.Offer)
	name(filecoin.SubmitAbility, p.Submit)
	name(filecoin.AcceptAbility, p.Accept)
	name(validationAbility(p), p.Validation)
	name(piececap.OfferAbility, p.PieceOffer)
	name(piececap.AcceptAbility, p.PieceAccept)
	if p.Aggregate != (store.Key{}) {
		agg, err := s.aggregates.Get(ctx, p.Aggregate)
		if err != nil {
			return status, err
		}
		status.Aggregate, status.Deal = agg.Value.Aggregate.String(), agg.Value.Deal.DealID
		name(aggregatecap.OfferAbility, agg.Value.Offer)
		name(aggregatecap.AcceptAbility, agg.Value.Accept)
	}
	return status, nil
}

func aggregateStatus(a *Aggregate) capabilities.AggregateStatus {
	state := Aggregated
	if a.Dealt {
		state = Dealt
	} else if a.Failure != "" {
		state = Failed
	}
	status := capabilities.AggregateStatus{
		Aggregate: a.Aggregate.String(), DealSize: a.Aggregate.PaddedSize(), Deal: a.Deal.DealID,
		Waiting: capabilities.NewWaiting(state, map[State]int64{Aggregated: a.Since}, a.Failure, 0),
		Tasks:   map[string]string{aggregatecap.OfferAbility: a.Offer.String()},
	}
	if a.Accept.Defined() {
		status.Tasks[aggregatecap.AcceptAbility] = a.Accept.String()
	}
	return status
}
