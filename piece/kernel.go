package piece

import (
	"crypto/sha256"
	"math/bits"
	"sync"
	"unsafe"
)

// A kernel is a way to hash nodes. All kernels compute the same; which are there depends on the processor.
type kernel uint8

const (
	// sumKernel is crypto/sha256, a node at a time: the one that is always there.
	sumKernel kernel = iota
	// shaKernel uses the SHA instructions of amd64 for two nodes at a time. crypto/sha256 uses them for one, and waits
	// for the result of each instruction before it starts the next.
	shaKernel
	// laneKernel hashes 16 nodes, or 16 sub-trees from the payload up, in the 16 lanes of AVX-512 registers.
	laneKernel
	// laneKernelVBMI2 is laneKernel with the double shifts of VBMI2.
	laneKernelVBMI2
	// laneKernelGo is what the assembly of laneKernel does in plain Go. It is slow and never chosen: by it the tests
	// check what is built on 16 lanes on machines that have none.
	laneKernelGo
)

func (k kernel) String() string {
	return [...]string{"crypto/sha256", "SHA-NI x2", "AVX-512 x16", "AVX-512 x16, VBMI2", "Go x16"}[k]
}

// hasLanes tells the kernels that hash 16 nodes at a time from those that hash nodes one after the other.
func (k kernel) hasLanes() bool { return k >= laneKernel }

// kernels are the two that are in use: one for much, and one for what does not fill the lanes of the first.
type kernels struct {
	wide   kernel
	narrow kernel // has no lanes
}

// fastest returns the kernels to use on this machine. They are measured, once, when the first node is hashed: that an
// instruction exists says little about its speed, and a processor that has both AVX-512 and the SHA instructions may be
// twice as fast with either.
var fastest = sync.OnceValue(measure)

const (
	lanes = 16
	// bitsOfLane is the height above its quads of the sub-tree that a chunk has in each lane.
	bitsOfLane = chunkLog - 4
)

// fill reports whether n nodes, which do not fill the 16 lanes of the wide kernel, still take it less time than the
// narrow kernel.
func (k kernels) fill(n int) bool {
	switch {
	case !k.wide.hasLanes():
		return false
	case k.narrow == shaKernel:
		return n >= 8
	default:
		return n >= 4
	}
}

// root returns the root of the tree over the quads in p, which are a power of two in number, at most a chunk. It is where
// nearly all the time of hashing a piece goes.
func (k kernels) root(p []byte) Node {
	quads := len(p) / quad
	if quads < lanes || !k.wide.hasLanes() {
		return k.narrow.root(p)
	}
	var roots [lanes]Node
	k.wide.laneTrees(&roots, p, quads/lanes)
	for n := lanes / 2; n > 0; n /= 2 {
		k.pairs(roots[:n], roots[:2*n])
	}
	return roots[0]
}

// quadNodes computes the nodes above up to 16 quads, one for each quad of p.
func (k kernels) quadNodes(dst []Node, p []byte) {
	if !k.fill(len(dst)) {
		k.narrow.quadNodes(dst, p)
		return
	}
	var (
		all   [lanes * quad]byte
		roots [lanes]Node
	)
	copy(all[:], p)
	k.wide.laneTrees(&roots, all[:], 1)
	copy(dst, roots[:])
}

// pairs is [HashPairs].
func (k kernels) pairs(dst, src []Node) {
	if k.wide.hasLanes() {
		for len(dst) >= lanes {
			k.wide.lanePairs((*[lanes]Node)(dst), (*[2 * lanes]Node)(src))
			dst, src = dst[lanes:], src[2*lanes:]
		}
	}
	if k.fill(len(dst)) {
		var (
			in  [2 * lanes]Node
			out [lanes]Node
		)
		copy(in[:], src[:2*len(dst)])
		k.wide.lanePairs(&out, &in)
		copy(dst, out[:])
		return
	}
	k.narrow.pairs(dst, src)
}

// pair returns the parent of two nodes.
func (k kernel) pair(left, right *Node) Node {
	pair := [2]Node{*left, *right}
	k.pairs(pair[:1], pair[:])
	return pair[0]
}

// rowQuads is how many quads are reduced at a time where there are no lanes: 8 KiB of leaves stay in the cache that is
// next to the core.
const rowQuads = 64

// root is kernels.root for a kernel without lanes: it reduces the tree layer by layer.
func (k kernel) root(p []byte) Node {
	quads := len(p) / quad
	if quads <= 4 {
		return k.layers(new([4 * paddedQuad]byte)[:], p)
	}
	var leaves [rowQuads * paddedQuad]byte
	if quads <= rowQuads {
		return k.layers(leaves[:], p)
	}
	var roots [chunkQuads / rowQuads]Node
	for i := range quads / rowQuads {
		roots[i] = k.layers(leaves[:], p[i*rowQuads*quad:(i+1)*rowQuads*quad])
	}
	for n := quads / rowQuads / 2; n > 0; n /= 2 {
		k.pairs(roots[:n], roots[:2*n])
	}
	return roots[0]
}

// layers computes a root in the memory that leaves is, which must hold the leaves of p.
func (k kernel) layers(leaves, p []byte) Node {
	quads := len(p) / quad
	Pad(leaves[:quads*paddedQuad], p)
	nodes := asNodes(leaves)
	for n := quads * paddedQuad / NodeSize / 2; n > 0; n /= 2 {
		k.pairs(nodes[:n], nodes[:2*n])
	}
	return nodes[0]
}

// quadNodes is kernels.quadNodes for a kernel without lanes.
func (k kernel) quadNodes(dst []Node, p []byte) {
	var leaves [lanes * paddedQuad]byte
	Pad(leaves[:len(dst)*paddedQuad], p)
	nodes := asNodes(leaves[:])
	k.pairs(nodes[:2*len(dst)], nodes[:4*len(dst)])
	k.pairs(dst, nodes[:2*len(dst)])
}

// asNodes returns the nodes that b consists of, as the same memory.
func asNodes(b []byte) []Node { return unsafe.Slice((*Node)(b), len(b)/NodeSize) }

// sumPairs is HashPairs by crypto/sha256.
func sumPairs(dst, src []Node) {
	src = src[:2*len(dst)]
	for i := range dst {
		var pair [2 * NodeSize]byte
		copy(pair[:NodeSize], src[2*i][:])
		copy(pair[NodeSize:], src[2*i+1][:])
		dst[i] = sha256.Sum256(pair[:])
		dst[i][NodeSize-1] &= truncate
	}
}

// laneTreesGo is what the assembly of the lane kernels does, a lane after the other: dst[l] is the root of the tree over
// the quads of p from l*quads on, found in post-order with one waiting node for each level.
func laneTreesGo(dst *[lanes]Node, p []byte, quads int) {
	for l := range dst {
		var (
			wait   [bitsOfLane + 1]Node
			leaves [paddedQuad]byte
			halves [2]Node
		)
		for i := range quads {
			padQuad(&leaves, (*[quad]byte)(p[(l*quads+i)*quad:]))
			sumPairs(halves[:], asNodes(leaves[:]))
			node := sumKernel.pair(&halves[0], &halves[1])
			// Quad i completes a sub-tree for each trailing one bit of i.
			level := 0
			for ; i>>level&1 == 1; level++ {
				node = sumKernel.pair(&wait[level], &node)
			}
			wait[level] = node
		}
		dst[l] = wait[bits.TrailingZeros(uint(quads))]
	}
}
