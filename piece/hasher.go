package piece

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// chunkQuads is the number of quads in a chunk, the unit of work of one goroutine: a sub-tree of 512 KiB. It is
	// large enough to make handing over cheap and small enough to stay in a core's cache, and to be hashed in half a
	// millisecond: the scheduler cannot interrupt assembly.
	chunkQuads = 1 << chunkLog
	chunkLog   = 12
	chunkSize  = chunkQuads * quad

	// batchChunks is how many chunks of one Write are in flight before their roots are added to the tree.
	batchChunks = 64
)

// An Option adjusts a [Hasher] or [HashReader].
type Option func(*options)

type options struct {
	workers int
	forced  *kernels
}

// WithWorkers sets how many goroutines may hash at once. The default is 1 for a [Hasher] and the number of cores,
// at most 8, for [HashReader]. Values below 1 mean 1.
func WithWorkers(n int) Option {
	return func(o *options) { o.workers = max(n, 1) }
}

// A Hasher is an io.Writer that computes the piece of the bytes written to it. The zero Hasher is ready for use and
// hashes in the calling goroutine.
//
// It keeps one node per level of the tree and at most 126 bytes of payload, about 1 KiB whatever the size of the
// piece, and hashes every node once. With one worker no call allocates. With more, a Write of at least two chunks
// (about 1 MB) is shared among goroutines, which end before Write returns.
//
// Large sub-trees are hashed faster than small ones, and a Write can only complete those that end in it: a Write of
// 1 MiB costs hardly more than all at once, Writes of 32 KiB a fifth more, of 4 KiB twice as much. io.Copy calls
// [Hasher.ReadFrom], which reads whole chunks.
//
// A Hasher must not be used by two goroutines at once.
type Hasher struct {
	tree    tree
	partial [quad]byte
	pending int // bytes of partial in use, less than a quad between calls
	workers int
	forced  *kernels // instead of the fastest, by tests and benchmarks
}

func (h *Hasher) kernels() kernels {
	if h.forced != nil {
		return *h.forced
	}
	return fastest()
}

// NewHasher returns a Hasher with the given options.
func NewHasher(opts ...Option) *Hasher {
	o := options{workers: 1}
	for _, opt := range opts {
		opt(&o)
	}
	return &Hasher{workers: o.workers, forced: o.forced}
}

// Sum returns the piece of payload, hashed in the calling goroutine. It fails with [ErrEmpty] or [ErrTooLarge].
func Sum(payload []byte) (Link, error) {
	var h Hasher
	if _, err := h.Write(payload); err != nil {
		return Link{}, err
	}
	return h.Sum()
}

// Reset forgets everything written.
func (h *Hasher) Reset() {
	h.tree.quads = 0
	h.pending = 0
}

// Size returns the number of bytes written since the start or the last Reset.
func (h *Hasher) Size() uint64 { return h.tree.quads*quad + uint64(h.pending) }

// Write adds p to the payload. It fails with [ErrTooLarge], taking nothing of p, if the payload would exceed
// [MaxPayloadSize]; other errors do not occur.
func (h *Hasher) Write(p []byte) (int, error) {
	if uint64(len(p)) > MaxPayloadSize-h.Size() {
		return 0, fmt.Errorf("writing %d bytes after %d: %w", len(p), h.Size(), ErrTooLarge)
	}
	k := h.kernels()
	written := len(p)
	if h.pending > 0 {
		n := copy(h.partial[h.pending:], p)
		h.pending += n
		p = p[n:]
		if h.pending < quad {
			return written, nil
		}
		root := k.narrow.root(h.partial[:])
		h.tree.push(k.narrow, &root, 0)
		h.pending = 0
	}
	whole := len(p) / quad * quad
	h.writeQuads(k, p[:whole])
	h.pending = copy(h.partial[:], p[whole:])
	return written, nil
}

// ReadFrom adds what r holds to the payload, up to its end, and returns how many bytes that were. It reads straight into
// the memory that is hashed, a chunk of 508 KiB at a time. With more than one worker, reading and hashing go on side by
// side; all goroutines have ended when ReadFrom returns. An error of r is returned wrapped, after what came before it was
// added. It fails with [ErrTooLarge] like Write.
func (h *Hasher) ReadFrom(r io.Reader) (int64, error) {
	before := h.Size()
	err := h.readFrom(context.Background(), r, nil)
	return int64(h.Size() - before), err
}

// Sum returns the piece of everything written so far, and ErrEmpty if that is nothing. It does not change the state:
// more may be written afterwards.
func (h *Hasher) Sum() (Link, error) {
	size := h.Size()
	if size == 0 {
		return Link{}, ErrEmpty
	}
	k := h.kernels().narrow
	tree := h.tree
	if h.pending > 0 {
		last := h.partial
		clear(last[h.pending:])
		root := k.root(last[:])
		tree.push(k, &root, 0)
	}
	return FromRoot(tree.root(k), size)
}

// writeQuads adds whole quads, as few and as large sub-trees as the position in the tree allows.
func (h *Hasher) writeQuads(k kernels, p []byte) {
	for len(p) > 0 {
		quads := uint64(len(p) / quad)
		if at := h.tree.quads % lanes; at != 0 || quads < lanes {
			// What does not fill the lanes: the quads up to the next multiple of 16, or the last ones.
			var nodes [lanes]Node
			n := min(quads, lanes-at)
			k.quadNodes(nodes[:n], p[:n*quad])
			for i := range n {
				h.tree.push(k.narrow, &nodes[i], 0)
			}
			p = p[n*quad:]
			continue
		}
		// The next sub-tree is bounded by what is there, by a chunk, and by its alignment: a sub-tree of 2^k quads
		// starts at a multiple of 2^k.
		log := min(bits.Len64(quads)-1, chunkLog, bits.TrailingZeros64(h.tree.quads))
		if log == chunkLog && h.workers > 1 && quads >= 2*chunkQuads {
			p = p[h.writeChunks(k, p):]
			continue
		}
		size := quad << log
		root := k.root(p[:size])
		h.tree.push(k.narrow, &root, log)
		p = p[size:]
	}
}

// writeChunks hashes as many whole chunks of p as one batch takes, by several goroutines, and returns their size.
func (h *Hasher) writeChunks(k kernels, p []byte) int {
	var (
		roots [batchChunks]Node
		next  atomic.Int64
		group sync.WaitGroup
	)
	chunks := min(len(p)/chunkSize, batchChunks)
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= chunks {
				return
			}
			roots[i] = k.root(p[i*chunkSize : (i+1)*chunkSize])
		}
	}
	for range min(h.workers, chunks) - 1 {
		group.Go(work)
	}
	work()
	group.Wait()
	for i := range chunks {
		h.tree.push(k.narrow, &roots[i], chunkLog)
	}
	return chunks * chunkSize
}

// A tree is the frontier of a growing tree, as a binary counter: for each bit k of quads that is set, nodes[k] is the
// root of a complete sub-tree of 2^k quads, the largest first in the payload.
type tree struct {
	quads uint64
	nodes [MaxHeight - MinHeight + 1]Node
}

// push adds the root of a sub-tree of 2^log quads. The quads before it must be a multiple of that number.
func (t *tree) push(by kernel, root *Node, log int) {
	node := *root
	k := log
	for ; t.quads>>k&1 == 1; k++ {
		node = by.pair(&t.nodes[k], &node)
	}
	t.nodes[k] = node
	t.quads += 1 << log
}

// root returns the root of the smallest complete tree over the quads so far, at least one, filled up with zeros.
func (t *tree) root(by kernel) Node {
	k := bits.TrailingZeros64(t.quads)
	node := t.nodes[k]
	for top := bits.Len64(t.quads - 1); k < top; k++ {
		if t.quads>>k&1 == 1 && k > bits.TrailingZeros64(t.quads) {
			node = by.pair(&t.nodes[k], &node)
		} else {
			node = by.pair(&node, &zeroRoots[k+MinHeight])
		}
	}
	return node
}
