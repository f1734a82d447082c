package segment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// A Builder gathers the pieces of an aggregate as they are chosen, and says at once of each whether there is room.
// Adding a piece hashes nothing; [Builder.Build] does all of it.
//
// A Builder places pieces in descending order of size, in whatever order they came, so all of them fit whose padded
// sizes add up to no more than the capacity. It must not be used by two goroutines at once.
type Builder struct {
	dealSize uint64
	pieces   []piece.Link
	entries  table
	content  uint64
}

// NewBuilder returns a Builder of an aggregate of dealSize padded bytes. It fails on a size that no piece has, and on
// one that leaves no room beside the index.
func NewBuilder(dealSize uint64) (*Builder, error) {
	if _, err := piece.HeightOf(dealSize); err != nil {
		return nil, fmt.Errorf("deal size: %w", err)
	}
	if ContentCapacity(dealSize) == 0 {
		return nil, fmt.Errorf("deal size: %d bytes leave no room beside the index", dealSize)
	}
	return &Builder{dealSize: dealSize, entries: newTable(0)}, nil
}

// Add adds a piece. It refuses, and changes nothing, with [ErrDuplicate] if the piece is there already, with
// [ErrTooManyPieces] if the index has no entry left, and with [ErrDoesNotFit] if the piece is larger than what is left;
// a smaller one may still fit then.
func (b *Builder) Add(p piece.Link) error {
	if !p.Defined() {
		return errors.New("undefined piece")
	}
	if b.Has(p) {
		return fmt.Errorf("%s: %w", p, ErrDuplicate)
	}
	if limit := MaxEntries(b.dealSize); len(b.pieces) == limit {
		return fmt.Errorf("%s, after %d: %w", p, limit, ErrTooManyPieces)
	}
	if p.PaddedSize() > b.Free() {
		return fmt.Errorf("%s of %d bytes, %d are left: %w", p, p.PaddedSize(), b.Free(), ErrDoesNotFit)
	}
	b.pieces = append(b.pieces, p)
	b.entries.add(b.pieces)
	b.content += p.PaddedSize()
	return nil
}

// Has reports whether a piece was added.
func (b *Builder) Has(p piece.Link) bool {
	_, ok := b.entries.lookUp(b.pieces, p)
	return ok
}

// DealSize returns the size of the aggregate in padded bytes.
func (b *Builder) DealSize() uint64 { return b.dealSize }

// Len returns the number of pieces.
func (b *Builder) Len() int { return len(b.pieces) }

// Content returns the sum of the sizes of the pieces, in padded bytes.
func (b *Builder) Content() uint64 { return b.content }

// Free returns how many padded bytes are left for pieces.
func (b *Builder) Free() uint64 { return ContentCapacity(b.dealSize) - b.content }

// Build builds the aggregate of the pieces so far, which are placed as [SortDescending] orders them. It fails with
// [ErrNoPieces] if there are none. It changes nothing: more pieces may be added afterwards.
func (b *Builder) Build() (*Aggregate, error) {
	pieces := slices.Clone(b.pieces)
	SortDescending(pieces)
	return build(b.dealSize, pieces, piece.HashPairs)
}
