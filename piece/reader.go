package piece

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
)

// Content describes a byte string: what one pass of [HashReader] found.
type Content struct {
	Piece  Link     // its piece
	SHA256 [32]byte // its SHA-256, the digest of its content CID
	Size   int64    // its length in bytes
}

const (
	// maxDefaultWorkers bounds the default number of workers: beyond it the SHA-256 of the content, which one
	// goroutine computes, is the limit.
	maxDefaultWorkers = 8
	// maxStalled is how many reads in a row may return nothing.
	maxStalled = 100
)

// HashReader reads r to its end and returns what it read: the piece, the SHA-256 and the size of the content.
//
// The work is shared among cores; memory is bounded by two chunks of 508 KiB more than there are workers, whatever the
// size of the content, and every goroutine has ended when HashReader returns. r is read straight into the memory that is
// hashed, so a buffer before it only costs time. ctx is looked at between reads, so to interrupt a read that hangs, close
// r. An error of r is returned wrapped; an r without a byte fails with [ErrEmpty], and one with more than
// [MaxPayloadSize] bytes with [ErrTooLarge].
func HashReader(ctx context.Context, r io.Reader, opts ...Option) (Content, error) {
	o := options{workers: min(runtime.GOMAXPROCS(0), maxDefaultWorkers)}
	for _, opt := range opts {
		opt(&o)
	}
	h := Hasher{workers: o.workers, forced: o.forced}
	return h.content(ctx, r)
}

// content is HashReader by an empty Hasher.
func (h *Hasher) content(ctx context.Context, r io.Reader) (Content, error) {
	content := sha256.New()
	if err := h.readFrom(ctx, r, content); err != nil {
		return Content{}, err
	}
	link, err := h.Sum()
	if err != nil {
		return Content{}, err
	}
	c := Content{Piece: link, Size: int64(h.Size())}
	content.Sum(c.SHA256[:0])
	return c, nil
}

// chunkBuffers keeps memory for chunks: to get half a megabyte anew costs more than to hash a small piece.
var chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A chunk is a part of the payload on its way from the reader to the sums.
type chunk struct {
	data *[chunkSize]byte
	root chan Node
}

// readFrom adds what r holds, to content too if that is not nil.
func (h *Hasher) readFrom(ctx context.Context, r io.Reader, content hash.Hash) error {
	buffer := chunkBuffers.Get().(*[chunkSize]byte)
	defer chunkBuffers.Put(buffer)
	for {
		// Up to the next chunk of the tree.
		data := buffer[:chunkSize-int(h.Size()%chunkSize)]
		n, ended, err := readFull(ctx, r, data)
		if content != nil {
			content.Write(data[:n])
		}
		if _, tooLarge := h.Write(data[:n]); tooLarge != nil {
			return fmt.Errorf("reading content: %w", ErrTooLarge)
		}
		switch {
		case err != nil || ended:
			return err
		case h.workers > 1 || content != nil:
			return h.readChunks(ctx, r, buffer, content)
		}
	}
}

// readChunks is readFrom for what may be large, from the start of a chunk. The calling goroutine reads, workers compute
// the root of each chunk, and one goroutine takes the chunks in their order, adds them to both sums and hands their
// buffers back. spare is memory for a chunk that is free.
func (h *Hasher) readChunks(ctx context.Context, r io.Reader, spare *[chunkSize]byte, content hash.Hash) error {
	workers := max(h.workers, 1)
	buffers := workers + 2
	free := make(chan *chunk, buffers)
	work := make(chan *chunk, buffers)
	ordered := make(chan *chunk, buffers)
	chunks := make([]chunk, buffers)
	chunks[0].data = spare
	for i := range chunks {
		chunks[i].root = make(chan Node, 1)
		free <- &chunks[i] // data comes at first use: short content needs few
	}
	defer func() {
		for _, c := range chunks[1:] {
			if c.data != nil {
				chunkBuffers.Put(c.data)
			}
		}
	}()

	k := h.kernels()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for c := range work {
				c.root <- k.root(c.data[:])
			}
		})
	}
	group.Go(func() {
		for c := range ordered {
			if content != nil {
				content.Write(c.data[:])
			}
			root := <-c.root
			h.tree.push(k.narrow, &root, chunkLog)
			free <- c
		}
	})

	// Deferred too, so that a reader that panics leaves no goroutine behind.
	drain := sync.OnceFunc(func() {
		close(work)
		close(ordered)
		group.Wait()
	})
	defer drain()
	tail, err := readEach(ctx, r, MaxPayloadSize-h.Size(), free, func(c *chunk) {
		work <- c
		ordered <- c
	})
	drain()
	if content != nil {
		content.Write(tail)
	}
	if _, tooLarge := h.Write(tail); tooLarge != nil {
		return fmt.Errorf("reading content: %w", ErrTooLarge)
	}
	return err
}

// readEach passes each whole chunk of r to emit, in a buffer taken from free, and returns the rest: what came before the
// end, or before an error. It emits no more than limit bytes.
func readEach(ctx context.Context, r io.Reader, limit uint64, free <-chan *chunk, emit func(*chunk)) ([]byte, error) {
	for {
		c := <-free
		if c.data == nil {
			c.data = chunkBuffers.Get().(*[chunkSize]byte)
		}
		n, ended, err := readFull(ctx, r, c.data[:])
		if err != nil || ended || limit < chunkSize {
			return c.data[:n], err
		}
		limit -= chunkSize
		emit(c)
	}
}

// readFull fills p, or reads all there is and reports that r has ended. Errors are wrapped. Only io.EOF itself ends the
// content: an error that wraps it is a transfer that broke off.
func readFull(ctx context.Context, r io.Reader, p []byte) (n int, ended bool, err error) {
	stalled := 0
	for n < len(p) {
		if err := ctx.Err(); err != nil {
			return n, false, fmt.Errorf("reading content: %w", err)
		}
		m, err := r.Read(p[n:])
		n += m
		switch {
		case err == io.EOF:
			return n, true, nil
		case err != nil:
			return n, false, fmt.Errorf("reading content: %w", err)
		case m > 0:
			stalled = 0
		default:
			if stalled++; stalled == maxStalled {
				return n, false, fmt.Errorf("reading content: %w", io.ErrNoProgress)
			}
		}
	}
	return n, false, nil
}
