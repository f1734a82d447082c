package segment

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

const (
	// EntrySize is the size in padded bytes of an entry of the index: two leaves.
	EntrySize = 2 * piece.NodeSize

	// The index takes about 1/2048 of a deal, and room for minEntries at least.
	indexShare = 2048
	minEntries = 4
)

var (
	// ErrNoPieces means that there is nothing to aggregate.
	ErrNoPieces = errors.New("an aggregate needs at least one piece")
	// ErrDuplicate means that a piece was given more than once; an aggregate holds it once.
	ErrDuplicate = errors.New("piece given more than once")
	// ErrTooManyPieces means that there are more pieces than the index of the deal has entries.
	ErrTooManyPieces = errors.New("too many pieces for the index")
	// ErrDoesNotFit means that the pieces, in the order given, do not fit in front of the index.
	ErrDoesNotFit = errors.New("pieces do not fit the deal")
)

// MaxEntries returns how many entries the index of a deal of dealSize padded bytes has room for: 262,144 for 32 GiB.
func MaxEntries(dealSize uint64) int {
	share := dealSize / indexShare / EntrySize
	if share <= minEntries {
		return minEntries
	}
	return 1 << bits.Len64(share-1)
}

// ContentCapacity returns how many padded bytes of a deal are there for pieces: all but the index at its end, which
// takes the room of [MaxEntries] entries however many are used. It is also the offset of the index. A deal too small
// to hold an index has no capacity.
func ContentCapacity(dealSize uint64) uint64 {
	index := uint64(MaxEntries(dealSize)) * EntrySize
	return dealSize - min(index, dealSize)
}

// SortDescending sorts pieces by padded size, largest first, and those of one size by their link. Pieces in this order
// leave no gaps, so they fit if the sum of their sizes does.
func SortDescending(pieces []piece.Link) {
	slices.SortStableFunc(pieces, func(a, b piece.Link) int {
		return cmp.Or(cmp.Compare(b.Height(), a.Height()), a.Compare(b))
	})
}

// Place returns the offset in padded bytes of each piece in an aggregate of dealSize padded bytes. Placement follows
// the order given: each piece starts at the first multiple of its own padded size behind the piece before it.
//
// It fails with [ErrNoPieces], [ErrTooManyPieces] or [ErrDoesNotFit], and on a deal size that no piece has.
func Place(pieces []piece.Link, dealSize uint64) ([]uint64, error) {
	if _, err := piece.HeightOf(dealSize); err != nil {
		return nil, fmt.Errorf("deal size: %w", err)
	}
	if len(pieces) == 0 {
		return nil, ErrNoPieces
	}
	if limit := MaxEntries(dealSize); len(pieces) > limit {
		return nil, fmt.Errorf("%d pieces, %d entries: %w", len(pieces), limit, ErrTooManyPieces)
	}
	capacity := ContentCapacity(dealSize)
	offsets := make([]uint64, len(pieces))
	var end uint64
	for i, p := range pieces {
		if !p.Defined() {
			return nil, fmt.Errorf("piece %d is undefined", i)
		}
		size := p.PaddedSize()
		offset := (end + size - 1) &^ (size - 1)
		end = offset + size
		if end > capacity {
			return nil, fmt.Errorf("piece %d of %d, %s, ends at %d of %d bytes: %w",
				i, len(pieces), p, end, capacity, ErrDoesNotFit)
		}
		offsets[i] = offset
	}
	return offsets, nil
}
