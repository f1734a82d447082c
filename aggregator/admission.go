package aggregator

import (
	"context"
	"errors"
	"strings"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
)

// StorefrontSubject is what a storefront is called among the standings of an aggregator.
func StorefrontSubject(did string) string { return "storefront/" + did }

// admit says whether a piece may be acknowledged: not beyond the limit of its storefront, nor from one with too bad a standing. An offer that has been
// acknowledged before has its receipt, whatever happened since.
func (s *Service) admit(ctx context.Context, inv capabilities.Invocation, p piece.Link, front Storefront) (earlier *capabilities.Receipt, err error) {
	subject := StorefrontSubject(inv.Issuer.String())
	known, err := s.standings.Of(ctx, subject)
	if err != nil {
		return nil, err
	}
	if known.Level != standing.Refused && front.Limit.None() {
		return nil, nil
	}
	if earlier, err = s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {
		return earlier, err
	}
	if known.Level == standing.Refused {
		return nil, capabilities.NewOfferRefused(inv.Issuer.String(), known.Score, known.Cause, known.RetryAfter)
	}
	err = s.standings.Reserve(ctx, subject, inv.Link(), p.PaddedSize(), front.Limit)
	if over := (*standing.Exceeded)(nil); errors.As(err, &over) {
		return nil, capabilities.NewQuotaExceeded(subject, capabilities.Quota{Count: over.Used.Count, MaxCount: over.Limit.Count,
			Bytes: over.Used.Bytes, MaxBytes: over.Limit.Bytes}, over.RetryAfter)
	}
	return nil, err
}

// quarantineLanes begins the names of lanes that are kept apart, one for each storefront.
const quarantineLanes = "quarantine/"

// laneOf says in which lane a piece waits that was just acknowledged. Pieces that their storefront keeps apart, and those of a storefront with a bad
// standing, share no aggregate with others.
func (s *Service) laneOf(ctx context.Context, storefront, group string) (string, error) {
	known, err := s.standings.Of(ctx, StorefrontSubject(storefront))
	if err != nil {
		return "", err
	}
	front, ok := s.Storefronts(storefront)
	switch {
	case known.Level != standing.Good || strings.HasSuffix(group, piececap.QuarantineSuffix):
		return quarantineLanes + storefront, nil
	case ok && front.Lane != "":
		return front.Lane, nil
	}
	return "common", nil
}

// maxBlamed is how many pieces of one aggregate are held against its storefronts; more would change nothing for any of them.
const maxBlamed = 100

// blame notes with storefronts that pieces of theirs spoiled an aggregate, if that is how it failed. Other failures are nobody's fault here.
func (s *Service) blame(ctx context.Context, agg Aggregate, failure error) error {
	f := (*capabilities.Failure)(nil)
	if !errors.As(failure, &f) || f.Name != capabilities.InvalidPiece {
		return nil
	}
	var details capabilities.InvalidPieceDetails
	if err := f.ReadDetails(&details); err != nil {
		s.Log.Error("the dealer names no bad pieces that can be read", "aggregate", agg.Aggregate, "err", err)
		return nil
	}
	if details.Aggregate != agg.Aggregate {
		s.Log.Error("the dealer names bad pieces of another aggregate", "aggregate", agg.Aggregate, "other", details.Aggregate)
		return nil
	}
	bad := map[piece.Link]bool{}
	for _, b := range details.Cause {
		if len(bad) < maxBlamed {
			bad[b.Piece] = true
		}
	}
	var list members
	if err := readBlob(ctx, s.Store, agg.Order, &list); err != nil {
		return err
	}
	blamed := 0
	for _, m := range list.Members {
		link := list.Pieces[m.Entry]
		if !bad[link] || blamed == maxBlamed {
			continue
		}
		blamed++
		p, err := s.pieces.Get(ctx, m.Key)
		if err != nil {
			return err
		}
		was, err := s.standings.Wrong(ctx, StorefrontSubject(p.Value.Storefront), p.Value.Offer, "piece "+link.String()+" spoiled aggregate "+agg.Aggregate.String())
		if err != nil {
			return err
		}
		s.Log.Warn("a piece spoiled an aggregate", "piece", link, "aggregate", agg.Aggregate, "storefront", p.Value.Storefront, "offer", p.Value.Offer,
			"standing", was.Level.String(), "wrong", was.Wrong)
	}
	return nil
}
