package piece

import "crypto/sha256"

// A Node is one node of a piece's tree: a leaf with 254 bits of payload, or the hash of the two nodes below.
// Bits 254 and 255, the two top bits of the last byte, are zero.
type Node = [NodeSize]byte

// truncate clears the two bits that a node does not have. In little-endian order they are the top of the last byte.
const truncate = 0x3f

// HashPair returns the parent of two nodes: the SHA-256 of their concatenation, cut to 254 bits.
func HashPair(left, right *Node) Node {
	var pair [2 * NodeSize]byte
	copy(pair[:NodeSize], left[:])
	copy(pair[NodeSize:], right[:])
	node := sha256.Sum256(pair[:])
	node[NodeSize-1] &= truncate
	return node
}

// HashPairs computes the parents of len(dst) pairs of siblings, dst[i] from src[2i] and src[2i+1]. Hashing one layer
// of a tree by one call lets an implementation hash many pairs at once. dst may start where src starts, so that a
// layer can be reduced in place. It panics if src holds fewer than 2·len(dst) nodes.
func HashPairs(dst, src []Node) {
	src = src[:2*len(dst)]
	for i := range dst {
		dst[i] = HashPair(&src[2*i], &src[2*i+1])
	}
}

// zeroRoots[h] is the root of a tree of height h with all leaves zero.
var zeroRoots = func() (roots [MaxHeight + 1]Node) {
	for h := range MaxHeight {
		roots[h+1] = HashPair(&roots[h], &roots[h])
	}
	return roots
}()

// ZeroRoot returns the root of the tree of the given height whose leaves are all zero; height 0 is a zero leaf.
// It panics if height exceeds [MaxHeight].
func ZeroRoot(height uint8) Node { return zeroRoots[height] }
