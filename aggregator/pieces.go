package aggregator

import (
	"context"
	"fmt"
	"slices"

	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// maxList bounds the stored list of an aggregate's pieces, in bytes: 44 for each piece.
const maxList = 32 << 20

// PiecesOf returns the pieces of an aggregate in their order, none if the aggregate is not one of ours.
func (s *Service) PiecesOf(ctx context.Context, aggregate piece.Link) ([]piece.Link, error) {
	rows, _, err := s.aggregates.Query(ctx, aggregatePartition(aggregate), "", "", 1)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	list := rows[0].Value.Pieces // the order is the same in all of them: the aggregate's name follows from it
	b, err := store.ReadBlob(ctx, s.Store, list, maxList)
	if err != nil {
		return nil, err
	}
	pieces, err := aggregatecap.ReadPieces(b)
	if err != nil {
		return nil, fmt.Errorf("stored list %s: %w", list, err)
	}
	return pieces, nil
}

// StorefrontsOf returns the DIDs of the storefronts that have offered a piece, none if nobody has.
func (s *Service) StorefrontsOf(ctx context.Context, p piece.Link) ([]string, error) {
	rows, _, err := s.pieces.Query(ctx, piecePartition(p), "", "", statusPage)
	if err != nil {
		return nil, err
	}
	var dids []string
	for _, r := range rows {
		if !slices.Contains(dids, r.Value.Storefront) {
			dids = append(dids, r.Value.Storefront)
		}
	}
	return dids, nil
}
