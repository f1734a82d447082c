package segment

import "github.com/storacha/w3filecoin/piece"

// A tree holds the nodes of an aggregate that are not all zero, from the entries of the index and the roots of the
// pieces up to its root. What lies inside a piece is not in it.
//
// levels[l] holds the nodes at height l in ascending order of their index, so the sibling of a node is its neighbour,
// or else a tree of zeros. levels[0] is empty: an entry is a node at height 1.
type tree struct {
	height int
	levels []level
}

type level struct {
	nodes []piece.Node
	index []uint32 // place of nodes[k] among all nodes of this height
	up    []uint32 // position of the parent of nodes[k] in the level above
}

func makeLevel(n int) level {
	return level{nodes: make([]piece.Node, n), index: make([]uint32, n), up: make([]uint32, n)}
}

// hashPairs computes the parents of pairs of siblings, as piece.HashPairs does.
type hashPairs func(dst, src []piece.Node)

// A batch collects pairs of siblings, so that they are hashed many at a time.
type batch struct {
	hash  hashPairs
	n     int
	pairs [2 * batchSize]piece.Node
	roots [batchSize]piece.Node
	to    [batchSize]*piece.Node
}

const batchSize = 256

// parent returns the next pair to fill in, whose parent is stored to dst by the next flush.
func (b *batch) parent(dst *piece.Node) (left, right *piece.Node) {
	if b.n == batchSize {
		b.flush()
	}
	k := b.n
	b.to[k] = dst
	b.n++
	return &b.pairs[2*k], &b.pairs[2*k+1]
}

func (b *batch) flush() {
	b.hash(b.roots[:b.n], b.pairs[:2*b.n])
	for k, dst := range b.to[:b.n] {
		*dst = b.roots[k]
	}
	b.n = 0
}

// A leaf is a node whose value is given: the root of a piece.
type leaf struct {
	root  piece.Node
	index uint32 // place among the nodes of its height
	at    *uint32
}

// grow computes the level above cur, at height h, into which the given pieces of that height go as well. It sets the
// parents of cur, and tells each piece its position.
func (b *batch) grow(cur *level, h int, pieces []leaf) level {
	next := makeLevel(parents(cur.index) + len(pieces))
	at := 0
	place := func(p leaf) {
		next.nodes[at], next.index[at] = p.root, p.index
		*p.at = uint32(at)
		at++
	}
	zero := piece.ZeroRoot(uint8(h - 1))
	for k := 0; k < len(cur.nodes); {
		index := cur.index[k] / 2
		for len(pieces) > 0 && pieces[0].index < index {
			place(pieces[0])
			pieces = pieces[1:]
		}
		left, right := b.parent(&next.nodes[at])
		*left, *right = zero, zero
		for ; k < len(cur.nodes) && cur.index[k]/2 == index; k++ {
			if cur.index[k]%2 == 0 {
				*left = cur.nodes[k]
			} else {
				*right = cur.nodes[k]
			}
			cur.up[k] = uint32(at)
		}
		next.index[at] = index
		at++
	}
	for _, p := range pieces {
		place(p)
	}
	b.flush()
	return next
}

// parents counts the different parents of nodes at the given places, which ascend.
func parents(index []uint32) int {
	n := 0
	for k, i := range index {
		if k == 0 || i/2 != index[k-1]/2 {
			n++
		}
	}
	return n
}

// appendPath appends the siblings on the way from the node at position at of height h to the root.
func (t *tree) appendPath(path []piece.Node, h int, at uint32) []piece.Node {
	for ; h < t.height; h++ {
		l := &t.levels[h]
		k, index := int(at), l.index[at]
		sibling := k + 1 - 2*int(index&1)
		if sibling >= 0 && sibling < len(l.index) && l.index[sibling] == index^1 {
			path = append(path, l.nodes[sibling])
		} else {
			path = append(path, piece.ZeroRoot(uint8(h)))
		}
		at = l.up[at]
	}
	return path
}

func (t *tree) root() piece.Node { return t.levels[t.height].nodes[0] }
