package segment

import (
	"fmt"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// An Aggregate is the tree over pieces placed in a deal and over the index of them. It does not change once built, so
// any number of goroutines may use it at once.
//
// It takes about 350 bytes of memory per piece, whatever the sizes of the pieces.
type Aggregate struct {
	dealSize uint64
	link     piece.Link
	pieces   []piece.Link
	offsets  []uint64
	entries  map[piece.Link]int
	tree     tree
	at       []uint32 // position of each piece in the level of its height
}

// Build aggregates pieces, in the order given, in a deal of dealSize padded bytes. It hashes each node of the tree
// once: about four hashes per piece.
//
// It fails as [Place] does, and with [ErrDuplicate] if two pieces have the same link.
func Build(dealSize uint64, pieces []piece.Link) (*Aggregate, error) {
	return build(dealSize, pieces, piece.HashPairs)
}

func build(dealSize uint64, pieces []piece.Link, hash hashPairs) (*Aggregate, error) {
	offsets, err := Place(pieces, dealSize)
	if err != nil {
		return nil, fmt.Errorf("placing pieces: %w", err)
	}
	a := &Aggregate{
		dealSize: dealSize,
		pieces:   slices.Clone(pieces),
		offsets:  offsets,
		entries:  make(map[piece.Link]int, len(pieces)),
		at:       make([]uint32, len(pieces)),
	}
	for i, p := range a.pieces {
		a.entries[p] = i
		if len(a.entries) != i+1 {
			return nil, fmt.Errorf("pieces %d and %d are both %s: %w", slices.Index(a.pieces, p), i, p, ErrDuplicate)
		}
	}
	a.grow(hash)
	a.link, err = piece.FromRootAndHeight(a.tree.root(), uint8(a.tree.height), 0)
	if err != nil {
		return nil, fmt.Errorf("naming the aggregate: %w", err)
	}
	return a, nil
}

// grow computes the tree, level by level.
func (a *Aggregate) grow(hash hashPairs) {
	height, _ := piece.HeightOf(a.dealSize) // Place has checked the size
	a.tree = tree{height: int(height), levels: make([]level, height+1)}

	var counts [piece.MaxHeight + 1]int
	for _, p := range a.pieces {
		counts[p.Height()]++
	}
	var leaves [piece.MaxHeight + 1][]leaf
	for h, n := range counts {
		leaves[h] = make([]leaf, 0, n)
	}
	for i, p := range a.pieces {
		h := p.Height()
		leaves[h] = append(leaves[h], leaf{p.Root(), uint32(a.offsets[i] / p.PaddedSize()), &a.at[i]})
	}

	b := &batch{hash: hash}
	entries := makeLevel(len(a.pieces))
	for i := range a.pieces {
		entry := a.entry(i)
		encoded := entry.encode()
		left, right := b.parent(&entries.nodes[i])
		*left, *right = piece.Node(encoded[:piece.NodeSize]), piece.Node(encoded[piece.NodeSize:])
		entries.index[i] = uint32(a.entryIndex(i))
	}
	b.flush()
	a.tree.levels[1] = entries
	for h := 2; h <= a.tree.height; h++ {
		a.tree.levels[h] = b.grow(&a.tree.levels[h-1], h, leaves[h])
	}
}

// entry returns the entry of piece i in the index.
func (a *Aggregate) entry(i int) Entry {
	return Entry{Root: a.pieces[i].Root(), Offset: a.offsets[i], Size: a.pieces[i].PaddedSize()}
}

// entryIndex returns the place of entry i among all nodes of height 1.
func (a *Aggregate) entryIndex(i int) uint64 { return a.IndexStart()/EntrySize + uint64(i) }

// Link returns the link of the aggregate: its root, and a padding of 0.
func (a *Aggregate) Link() piece.Link { return a.link }

// DealSize returns the size of the aggregate in padded bytes.
func (a *Aggregate) DealSize() uint64 { return a.dealSize }

// Len returns the number of pieces.
func (a *Aggregate) Len() int { return len(a.pieces) }

// Piece returns piece i, in the order in which the aggregate was built.
func (a *Aggregate) Piece(i int) piece.Link { return a.pieces[i] }

// Offset returns where piece i starts, in padded bytes.
func (a *Aggregate) Offset(i int) uint64 { return a.offsets[i] }

// EntryOf returns the number of a piece in the aggregate, and whether it is there.
func (a *Aggregate) EntryOf(p piece.Link) (int, bool) {
	i, ok := a.entries[p]
	return i, ok
}

// IndexStart returns where the index starts, in padded bytes.
func (a *Aggregate) IndexStart() uint64 { return ContentCapacity(a.dealSize) }

// Proof returns the proof that piece i and its entry are part of the aggregate. It copies nodes and hashes nothing.
func (a *Aggregate) Proof(i int) (InclusionProof, error) {
	if i < 0 || i >= len(a.pieces) {
		return InclusionProof{}, fmt.Errorf("aggregate of %d pieces has no piece %d", len(a.pieces), i)
	}
	p := a.pieces[i]
	h := int(p.Height())
	path := make([]piece.Node, 0, a.tree.height-h+a.tree.height-1)
	path = a.tree.appendPath(path, h, a.at[i])
	subtree := len(path)
	path = a.tree.appendPath(path, 1, uint32(i))
	return InclusionProof{
		Subtree: ProofData{Offset: a.offsets[i] / p.PaddedSize(), Path: path[:subtree:subtree]},
		Index:   ProofData{Offset: a.entryIndex(i), Path: path[subtree:]},
	}, nil
}
