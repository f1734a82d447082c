package segment

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// ErrMismatch means that pieces, or an index, are not those of an aggregate.
var ErrMismatch = errors.New("not what the aggregate is made of")

// Rebuild aggregates pieces in the order given and checks that they make the aggregate that is named. The error wraps
// [ErrMismatch] if they make another one; otherwise it is one of [Build]'s.
func Rebuild(aggregate piece.Link, pieces []piece.Link) (*Aggregate, error) {
	if !aggregate.Defined() {
		return nil, errors.New("undefined aggregate")
	}
	a, err := Build(aggregate.PaddedSize(), pieces)
	if err != nil {
		return nil, err
	}
	if a.link != aggregate {
		return nil, fmt.Errorf("%d pieces make the aggregate %s, not %s: %w", len(pieces), a.link, aggregate, ErrMismatch)
	}
	return a, nil
}

// VerifyIndex checks that r holds the index of the aggregate and nothing else, in the unpadded form in which it is
// stored, its unused entries included. The error wraps [ErrMismatch] if it holds anything else.
func (a *Aggregate) VerifyIndex(r io.Reader) error {
	size := int64(piece.UnpaddedSize(a.dealSize - a.IndexStart()))
	var got, want [64 * quadSize]byte
	for off := int64(0); ; {
		n, err := io.ReadFull(r, got[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("reading index: %w", err)
		}
		if off+int64(n) > size {
			return fmt.Errorf("index is longer than its %d bytes: %w", size, ErrMismatch)
		}
		a.readIndex(want[:n], off)
		for k := range n {
			if got[k] != want[k] {
				// 127 bytes hold two entries; the second begins within the 64th.
				entry := (off + int64(k)) * 2 / quadSize
				return fmt.Errorf("index differs at byte %d, in entry %d: %w", off+int64(k), entry, ErrMismatch)
			}
		}
		off += int64(n)
		if err != nil {
			if off < size {
				return fmt.Errorf("index ends after %d of %d bytes: %w", off, size, ErrMismatch)
			}
			return nil
		}
	}
}

// VerifyProof checks that proof is the one of p, comparing it with the nodes of the aggregate: it hashes nothing. The
// error wraps [ErrProof] if it is not, as that of [Verify] does.
func (a *Aggregate) VerifyProof(p piece.Link, proof InclusionProof) error {
	// A link may be there once only. A proof of a piece of the same root and size holds as well, whatever its padding.
	i, ok := a.EntryOf(p)
	if !ok || proof.Index.Offset != a.entryIndex(i) || proof.Subtree.Offset != a.offsets[i]/p.PaddedSize() ||
		!a.tree.isPath(int(p.Height()), a.at[i], proof.Subtree.Path) || !a.tree.isPath(1, uint32(i), proof.Index.Path) {
		return Verify(proof, p, a.link)
	}
	return nil
}

// isPath tells whether path is the one from the node at position at of height h to the root.
func (t *tree) isPath(h int, at uint32, path []piece.Node) bool {
	if len(path) != t.height-h {
		return false
	}
	for k := range path {
		l := &t.levels[h+k]
		if path[k] != l.nodes[at^1] {
			return false
		}
		at = l.up[at/2]
	}
	return true
}

// VerifyAggregate checks a whole aggregate: that the pieces, in the order given, make it; that index, unless nil, is its
// index (see [Aggregate.VerifyIndex]); and that proofs, unless nil, hold one by one and leave no piece without a proof.
// It hashes each node of the aggregate once. The error wraps [ErrMismatch] or [ErrProof] if one of these is not so.
func VerifyAggregate(
	aggregate piece.Link, pieces []piece.Link, index io.Reader, proofs iter.Seq2[piece.Link, InclusionProof],
) (*Aggregate, error) {
	a, err := Rebuild(aggregate, pieces)
	if err != nil {
		return nil, err
	}
	if index != nil {
		if err := a.VerifyIndex(index); err != nil {
			return nil, err
		}
	}
	if proofs == nil {
		return a, nil
	}
	proven := make([]bool, len(pieces))
	missing := len(pieces)
	for p, proof := range proofs {
		if err := a.VerifyProof(p, proof); err != nil {
			return nil, fmt.Errorf("proof of %s: %w", p, err)
		}
		if i, ok := a.EntryOf(p); ok && !proven[i] {
			proven[i] = true
			missing--
		}
	}
	if missing > 0 {
		i := slices.Index(proven, false)
		return nil, fmt.Errorf("no proof of piece %d, %s, and %d others: %w", i, a.pieces[i], missing-1, ErrProof)
	}
	return a, nil
}

// VerifyAll checks that each proof shows its piece to be a segment of aggregate and to be in its index: it succeeds if
// and only if [Verify] does for all of them, of which the first that fails is named. The error wraps [ErrProof].
//
// Proofs of one aggregate lead to the same nodes. What a few hundred of them that follow each other share is hashed
// once: all proofs of an aggregate, in the order of its pieces, take little more than four hashes each instead of about
// sixty. Nothing is kept of them, so there may be any number.
func VerifyAll(aggregate piece.Link, proofs iter.Seq2[piece.Link, InclusionProof]) error {
	return verifyAll(aggregate, proofs, piece.HashPairs)
}

func verifyAll(aggregate piece.Link, proofs iter.Seq2[piece.Link, InclusionProof], hash hashPairs) error {
	v := &verifier{aggregate: aggregate, entries: newEntryBatch(hash)}
	for p, proof := range proofs {
		if err := v.add(p, proof); err != nil {
			return err
		}
	}
	return v.flush()
}

// A verifier checks proofs in batches.
type verifier struct {
	aggregate piece.Link
	n         int // proofs in the batch
	links     [batchSize]piece.Link
	proofs    [batchSize]InclusionProof // whose paths are copies that are used again
	entries   *entryBatch
	nodes     [batchSize]piece.Node
	climbers  [2][]climber
	pairs     [2 * batchSize]piece.Node
}

func (v *verifier) add(p piece.Link, proof InclusionProof) error {
	height, err := checkProof(&proof, p)
	if err != nil || height != v.aggregate.Height() {
		// Those before come first.
		if err := v.flush(); err != nil {
			return err
		}
		return v.one(p, proof)
	}
	kept := &v.proofs[v.n]
	kept.Subtree.Offset, kept.Index.Offset = proof.Subtree.Offset, proof.Index.Offset
	kept.Subtree.Path = append(kept.Subtree.Path[:0], proof.Subtree.Path...)
	kept.Index.Path = append(kept.Index.Path[:0], proof.Index.Path...)
	v.links[v.n] = p
	v.n++
	if v.n == batchSize {
		return v.flush()
	}
	return nil
}

func (v *verifier) one(p piece.Link, proof InclusionProof) error {
	if err := Verify(proof, p, v.aggregate); err != nil {
		return fmt.Errorf("proof of %s: %w", p, err)
	}
	return nil
}

// flush checks the proofs of the batch. If not all hold, it looks for the first that does not.
func (v *verifier) flush() error {
	n := v.n
	v.n = 0
	if n == 0 || v.aggregate.Padding() == 0 && v.hold(n) {
		return nil
	}
	for k := range n {
		if err := v.one(v.links[k], v.proofs[k]); err != nil {
			return err
		}
	}
	return nil
}

// A climber is a node that is on its way to the root, with the rest of the way.
type climber struct {
	node  piece.Node
	index uint64
	path  []piece.Node
}

// hold tells whether all n proofs of the batch hold.
func (v *verifier) hold(n int) bool {
	for k := range n {
		v.entries.set(k, provenEntry(&v.proofs[k], v.links[k]))
	}
	v.entries.nodes(v.nodes[:n])
	entries := v.climbers[0][:0]
	for k := range n {
		d := &v.proofs[k].Index
		entries = append(entries, climber{v.nodes[k], d.Offset, d.Path})
	}
	v.climbers[0] = entries
	if !v.reach(entries) {
		return false
	}
	pieces := v.climbers[0][:0]
	for k := range n {
		d := &v.proofs[k].Subtree
		pieces = append(pieces, climber{v.links[k].Root(), d.Offset, d.Path})
	}
	return v.reach(pieces)
}

// reach tells whether all nodes lead to the root of the aggregate. Where two ways meet, they have to agree on the rest,
// which one of them goes on.
func (v *verifier) reach(waiting []climber) bool {
	// The lowest first: those that have the longest way to go.
	slices.SortFunc(waiting, func(a, b climber) int {
		return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(a.index, b.index))
	})
	cur := v.climbers[1][:0]
	defer func() { v.climbers[1] = cur }()
	for rest := len(waiting[0].path); ; rest-- {
		// Those who start here join those who come from below.
		joined := len(cur)
		for len(waiting) > 0 && len(waiting[0].path) == rest {
			cur = append(cur, waiting[0])
			waiting = waiting[1:]
		}
		if joined > 0 && joined < len(cur) {
			slices.SortFunc(cur, func(a, b climber) int { return cmp.Compare(a.index, b.index) })
		}
		if rest == 0 {
			for k := range cur {
				if cur[k].node != v.aggregate.Root() {
					return false
				}
			}
			return true
		}
		n := 0
		for k := 0; k < len(cur); n++ {
			c := cur[k]
			left, right := &v.pairs[2*n], &v.pairs[2*n+1]
			if c.index%2 == 0 {
				*left, *right = c.node, c.path[0]
			} else {
				*left, *right = c.path[0], c.node
			}
			for k++; k < len(cur) && cur[k].index/2 == c.index/2; k++ {
				o := &cur[k]
				node, sibling := left, right
				if o.index%2 == 1 {
					node, sibling = right, left
				}
				if o.node != *node || o.path[0] != *sibling || !equal(o.path[1:], c.path[1:]) {
					return false
				}
			}
			cur[n] = climber{index: c.index / 2, path: c.path[1:]}
		}
		cur = cur[:n]
		v.entries.hash(v.nodes[:n], v.pairs[:2*n])
		for k := range cur {
			cur[k].node = v.nodes[k]
		}
	}
}

// equal is slices.Equal for nodes, several at a time.
func equal(a, b []piece.Node) bool {
	const step = 8
	if len(a) != len(b) {
		return false
	}
	for ; len(a) >= step; a, b = a[step:], b[step:] {
		if *(*[step]piece.Node)(a) != *(*[step]piece.Node)(b) {
			return false
		}
	}
	return slices.Equal(a, b)
}
