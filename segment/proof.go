package segment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// ErrProof means that an inclusion proof does not show what it is meant to show.
var ErrProof = errors.New("inclusion proof does not hold")

// An InclusionProof shows that a piece is a segment of an aggregate, and that the index of the aggregate says so, so a
// storage provider that has nothing but the aggregate can find it.
type InclusionProof struct {
	Subtree ProofData // from the root of the piece to the root of the aggregate
	Index   ProofData // from the entry of the piece in the index to the root of the aggregate
}

// ProofData is the way from a node of a tree to its root.
type ProofData struct {
	// Offset is the place of the node among all nodes of its height, counted from the left.
	Offset uint64
	// Path holds the sibling of the node and those of its ancestors, from the bottom up.
	Path []piece.Node
}

// Clone returns a copy that shares nothing with p.
func (p InclusionProof) Clone() InclusionProof {
	p.Subtree.Path, p.Index.Path = slices.Clone(p.Subtree.Path), slices.Clone(p.Index.Path)
	return p
}

// root returns the root that the path leads to from node. Each bit of the offset tells on which side a sibling stands.
func (d ProofData) root(node piece.Node) piece.Node {
	for k := range d.Path {
		if d.Offset>>k&1 == 0 {
			node = piece.HashPair(&node, &d.Path[k])
		} else {
			node = piece.HashPair(&d.Path[k], &node)
		}
	}
	return node
}

// check tells whether the path leads from height h to a tree that exists, and whether the offset lies within it.
func (d ProofData) check(h int) error {
	if top := h + len(d.Path); top < piece.MinHeight || top > piece.MaxHeight {
		return fmt.Errorf("path of %d nodes leads to height %d: %w", len(d.Path), top, ErrProof)
	}
	if d.Offset>>len(d.Path) != 0 {
		return fmt.Errorf("offset %d exceeds a path of %d nodes: %w", d.Offset, len(d.Path), ErrProof)
	}
	return nil
}

// AggregateOf returns the aggregate that proof shows p to be in: the one link for which [Verify] succeeds. The proof
// holds by itself; whether that aggregate is the one in question, or in any deal, is for the caller to see. The error
// wraps [ErrProof] if there is none.
func AggregateOf(proof InclusionProof, p piece.Link) (piece.Link, error) {
	height, err := checkProof(&proof, p)
	if err != nil {
		return piece.Link{}, err
	}
	entry := provenEntry(&proof, p)
	encoded := entry.encode()
	root := proof.Subtree.root(entry.Root)
	left, right := piece.Node(encoded[:piece.NodeSize]), piece.Node(encoded[piece.NodeSize:])
	if indexed := proof.Index.root(piece.HashPair(&left, &right)); indexed != root {
		return piece.Link{}, fmt.Errorf("subtree leads to root %x, index to root %x: %w", root, indexed, ErrProof)
	}
	aggregate, err := piece.FromRootAndHeight(root, height, 0)
	if err != nil {
		return piece.Link{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	return aggregate, nil
}

// checkProof tells the height of the aggregate that a proof of p leads to, if its paths have the lengths and offsets that
// they need to have for one.
func checkProof(proof *InclusionProof, p piece.Link) (height uint8, err error) {
	if !p.Defined() {
		return 0, fmt.Errorf("undefined piece: %w", ErrProof)
	}
	top := int(p.Height()) + len(proof.Subtree.Path)
	if err := proof.Subtree.check(int(p.Height())); err != nil {
		return 0, fmt.Errorf("subtree: %w", err)
	}
	if err := proof.Index.check(1); err != nil {
		return 0, fmt.Errorf("index: %w", err)
	}
	if got := 1 + len(proof.Index.Path); got != top {
		return 0, fmt.Errorf("subtree leads to height %d, index to height %d: %w", top, got, ErrProof)
	}
	dealSize := uint64(piece.NodeSize) << top
	if at := proof.Index.Offset * EntrySize; at < ContentCapacity(dealSize) || ContentCapacity(dealSize) == 0 {
		return 0, fmt.Errorf("entry at %d lies before the index at %d: %w", at, ContentCapacity(dealSize), ErrProof)
	}
	return uint8(top), nil
}

// provenEntry returns the entry of the index that a proof of p is about.
func provenEntry(proof *InclusionProof, p piece.Link) Entry {
	return Entry{Root: p.Root(), Offset: proof.Subtree.Offset * p.PaddedSize(), Size: p.PaddedSize()}
}

// Verify checks that proof shows p to be a segment of aggregate and to be in its index. The error wraps [ErrProof] if
// it does not. It says nothing about the content of p, nor about deals.
func Verify(proof InclusionProof, p, aggregate piece.Link) error {
	got, err := AggregateOf(proof, p)
	if err != nil {
		return err
	}
	if got != aggregate {
		return fmt.Errorf("proof is for aggregate %s, not %s: %w", got, aggregate, ErrProof)
	}
	return nil
}
