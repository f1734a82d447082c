package segment

import "github.com/storacha/w3filecoin/piece"

// A tree holds the nodes of an aggregate that are not all zero, from those above the entries of the index and the roots
// of the pieces up to its root. What lies inside a piece is not in it.
//
// levels[h] holds the nodes at height h, from height 1, the nodes above the entries, to the two below the root.
type tree struct {
	height int
	levels []level
	root   piece.Node
}

// A level holds pairs of siblings side by side, in ascending order of their place. Where one of a pair is not there, a
// tree of zeros is in its place. So the sibling of a node is its neighbour, and the level above is computed by hashing
// nodes as they lie.
type level struct {
	nodes []piece.Node
	up    []uint32 // position of the parent of pair k, nodes[2k] and nodes[2k+1], in the level above
}

// hashPairs computes the parents of pairs of siblings, as piece.HashPairs does.
type hashPairs func(dst, src []piece.Node)

// batchSize is how many pairs are hashed at a time: enough to make a wide kernel worth its start, few enough that
// pairs and parents stay in the nearest cache.
const batchSize = 256

// A grower computes a tree from the bottom up, one level after the other.
type grower struct {
	hash    hashPairs
	pieces  []piece.Link
	offsets []uint64
	at      []uint32 // set to the position of each piece in the level of its height
	// above[k] is the place of the parent of pair k of the last level, among all nodes of its height.
	above, spare []uint32
	// alone are the positions of those pairs of the level at work of which one node is not there.
	alone   []uint32
	parents [batchSize]piece.Node
}

// grow returns the level at height h: the parents of all pairs in below, and the roots of the pieces of that height,
// whose numbers are given. It sets below.up.
func (g *grower) grow(below *level, h int, numbers []uint32) level {
	// The positions come first, as nodes are hashed to where they belong.
	pairs := g.spare[:0]
	g.alone = g.alone[:0]
	var size uint32
	open := false // the last pair has one node
	place := func(index uint32) uint32 {
		if pair := index / 2; len(pairs) == 0 || pairs[len(pairs)-1] != pair {
			if open {
				g.alone = append(g.alone, size-2)
			}
			pairs = append(pairs, pair)
			size += 2
			open = true
		} else {
			open = false
		}
		return size - 2 + index%2
	}
	// Pieces ascend, and none of them is a parent of anything.
	rest := numbers
	for k, index := range g.above {
		for len(rest) > 0 && g.index(rest[0], h) < index {
			g.at[rest[0]] = place(g.index(rest[0], h))
			rest = rest[1:]
		}
		below.up[k] = place(index)
	}
	for _, i := range rest {
		g.at[i] = place(g.index(i, h))
	}
	if open {
		g.alone = append(g.alone, size-2)
	}
	g.above, g.spare = pairs, g.above

	l := level{nodes: make([]piece.Node, size), up: make([]uint32, size/2)}
	zero := piece.ZeroRoot(uint8(h))
	for _, at := range g.alone {
		l.nodes[at], l.nodes[at+1] = zero, zero // one of the two is overwritten
	}
	for _, i := range numbers {
		l.nodes[g.at[i]] = g.pieces[i].Root()
	}
	for start := 0; start < len(below.up); start += batchSize {
		to := below.up[start:min(start+batchSize, len(below.up))]
		src := below.nodes[2*start : 2*(start+len(to))]
		if first := int(to[0]); int(to[len(to)-1])-first == len(to)-1 {
			g.hash(l.nodes[first:first+len(to)], src)
			continue
		}
		parents := g.parents[:len(to)]
		g.hash(parents, src)
		for k, at := range to {
			l.nodes[at] = parents[k]
		}
	}
	return l
}

// index returns the place of piece i, of height h, among the nodes of its height.
func (g *grower) index(i uint32, h int) uint32 { return uint32(g.offsets[i] / piece.NodeSize >> h) }

// top computes the root above the only pair of the last level.
func (g *grower) top(below *level) piece.Node {
	g.hash(g.parents[:1], below.nodes)
	return g.parents[0]
}

// appendPath appends the siblings on the way from the node at position at of height h to the root.
func (t *tree) appendPath(path []piece.Node, h int, at uint32) []piece.Node {
	for ; h < t.height; h++ {
		l := &t.levels[h]
		path = append(path, l.nodes[at^1])
		at = l.up[at/2]
	}
	return path
}

// A walk yields paths of nodes in ascending order. It keeps the last one, of which the next shares all but the lowest
// part.
type walk struct {
	t *tree
	// path[h] is the sibling at height h on the way of the last node; at[h] is one more than the position of the node
	// on that way, 0 if there is none.
	path [piece.MaxHeight]piece.Node
	at   [piece.MaxHeight]uint32
}

// to returns the path from the node at position at of height h, which lies behind those asked for before, to the root.
// The next call overwrites it.
func (w *walk) to(h int, at uint32) []piece.Node {
	// As nodes come in order, the way to a node that was left is not taken again: where the ways meet, the rest is there.
	for k := h; k < w.t.height && w.at[k] != at+1; k++ {
		l := &w.t.levels[k]
		w.path[k], w.at[k] = l.nodes[at^1], at+1
		at = l.up[at/2]
	}
	return w.path[h:w.t.height:w.t.height]
}
