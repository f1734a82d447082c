package segment

import (
	"fmt"
	"iter"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// An Aggregate is the tree over pieces placed in a deal and over the index of them. It does not change once built, so
// any number of goroutines may use it at once.
//
// It takes about 230 bytes of memory per piece, whatever the sizes of the pieces.
type Aggregate struct {
	dealSize uint64
	link     piece.Link
	pieces   []piece.Link
	offsets  []uint64
	entries  table
	tree     tree
	at       []uint32 // position of each piece in the level of its height
}

// Build aggregates pieces, in the order given, in a deal of dealSize padded bytes. It hashes each node of the tree
// once: about four hashes per piece.
//
// It fails as [Place] does, and with [ErrDuplicate] if two pieces have the same link.
func Build(dealSize uint64, pieces []piece.Link) (*Aggregate, error) {
	return build(dealSize, slices.Clone(pieces), piece.HashPairs)
}

// build keeps pieces.
func build(dealSize uint64, pieces []piece.Link, hash hashPairs) (*Aggregate, error) {
	offsets, err := Place(pieces, dealSize)
	if err != nil {
		return nil, fmt.Errorf("placing pieces: %w", err)
	}
	a := &Aggregate{
		dealSize: dealSize,
		pieces:   pieces,
		offsets:  offsets,
		entries:  newTable(len(pieces)),
		at:       make([]uint32, len(pieces)),
	}
	if i, k, duplicate := a.entries.fill(pieces); duplicate {
		return nil, fmt.Errorf("pieces %d and %d are both %s: %w", i, k, pieces[i], ErrDuplicate)
	}
	a.grow(hash)
	a.link, err = piece.FromRootAndHeight(a.tree.root, uint8(a.tree.height), 0)
	if err != nil {
		return nil, fmt.Errorf("naming the aggregate: %w", err)
	}
	return a, nil
}

// grow computes the tree, level by level.
func (a *Aggregate) grow(hash hashPairs) {
	height, _ := piece.HeightOf(a.dealSize) // Place has checked the size
	a.tree = tree{height: int(height), levels: make([]level, height)}

	// Pieces by their height, in their order.
	var counts [piece.MaxHeight + 1]int
	for i := range a.pieces {
		counts[a.pieces[i].Height()]++
	}
	var numbers [piece.MaxHeight + 1][]uint32
	for h, n := range counts {
		numbers[h] = make([]uint32, 0, n)
	}
	for i := range a.pieces {
		h := a.pieces[i].Height()
		numbers[h] = append(numbers[h], uint32(i))
	}

	// The entries lie side by side from the start of the index, which is at a pair.
	n := len(a.pieces)
	entries := level{nodes: make([]piece.Node, n+n%2), up: make([]uint32, (n+1)/2)}
	if n%2 == 1 {
		entries.nodes[n] = piece.ZeroRoot(1)
	}
	b := newEntryBatch(hash)
	for i := 0; i < n; i += batchSize {
		m := min(batchSize, n-i)
		for k := range m {
			b.set(k, a.entry(i+k))
		}
		b.nodes(entries.nodes[i : i+m])
	}
	g := &grower{hash: hash, pieces: a.pieces, offsets: a.offsets, at: a.at, above: make([]uint32, len(entries.up))}
	for k := range g.above {
		g.above[k] = uint32(a.entryIndex(0))/2 + uint32(k)
	}
	a.tree.levels[1] = entries
	for h := 2; h < a.tree.height; h++ {
		a.tree.levels[h] = g.grow(&a.tree.levels[h-1], h, numbers[h])
	}
	a.tree.root = g.top(&a.tree.levels[a.tree.height-1])
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
	return a.entries.lookUp(a.pieces, p)
}

// IndexStart returns where the index starts, in padded bytes.
func (a *Aggregate) IndexStart() uint64 { return ContentCapacity(a.dealSize) }

// Pieces yields the pieces with their numbers, in the order in which the aggregate was built.
func (a *Aggregate) Pieces() iter.Seq2[int, piece.Link] { return slices.All(a.pieces) }

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

// Proofs yields each piece with its proof, in the order in which the aggregate was built. It hashes nothing, and copies
// what a proof does not share with the one before, which is about four nodes each.
//
// The paths of a proof are overwritten by the next one and must not be changed: encode what is to be kept, or use
// [InclusionProof.Clone].
func (a *Aggregate) Proofs() iter.Seq2[piece.Link, InclusionProof] {
	return func(yield func(piece.Link, InclusionProof) bool) {
		subtree, index := &walk{t: &a.tree}, &walk{t: &a.tree}
		for i, p := range a.pieces {
			proof := InclusionProof{
				Subtree: ProofData{Offset: a.offsets[i] / p.PaddedSize(), Path: subtree.to(int(p.Height()), a.at[i])},
				Index:   ProofData{Offset: a.entryIndex(i), Path: index.to(1, uint32(i))},
			}
			if !yield(p, proof) {
				return
			}
		}
	}
}
