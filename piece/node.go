package piece

// A Node is one node of a piece's tree: a leaf with 254 bits of payload, or the hash of the two nodes below.
// Bits 254 and 255, the two top bits of the last byte, are zero.
type Node = [NodeSize]byte

// truncate clears the two bits that a node does not have. In little-endian order they are the top of the last byte.
const truncate = 0x3f

// HashPair returns the parent of two nodes: the SHA-256 of their concatenation, cut to 254 bits.
func HashPair(left, right *Node) Node { return fastest().narrow.pair(left, right) }

// HashPairs computes the parents of len(dst) pairs of siblings, dst[i] from src[2i] and src[2i+1]. Hashing a layer of a
// tree by one call is up to four times as fast as hashing its pairs one by one, from about eight pairs on. dst may start
// where src starts, so that a layer can be reduced in place. It panics if src holds fewer than 2·len(dst) nodes.
func HashPairs(dst, src []Node) { fastest().pairs(dst, src[:2*len(dst)]) }

// zeroRoots[h] is the root of a tree of height h with all leaves zero.
var zeroRoots = func() (roots [MaxHeight + 1]Node) {
	for h := range MaxHeight {
		roots[h+1] = sumKernel.pair(&roots[h], &roots[h])
	}
	return roots
}()

// ZeroRoot returns the root of the tree of the given height whose leaves are all zero; height 0 is a zero leaf.
// It panics if height exceeds [MaxHeight].
func ZeroRoot(height uint8) Node { return zeroRoots[height] }
