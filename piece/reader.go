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
	// firstRead is how much HashReader reads before it decides that content is worth goroutines and chunks.
	firstRead = 32 << 10
	// maxStalled is how many reads in a row may return nothing.
	maxStalled = 100
)

// HashReader reads r to its end and returns what it read: the piece, the SHA-256 and the size of the content.
//
// The work is shared among cores; memory is bounded by two chunks of 508 KiB more than there are workers, whatever the
// size of the content, and every goroutine has ended when HashReader returns. ctx is looked at between reads, so to
// interrupt a read that hangs, close r. An error of r is returned wrapped; an r without a byte fails with [ErrEmpty],
// and one with more than [MaxPayloadSize] bytes with [ErrTooLarge].
func HashReader(ctx context.Context, r io.Reader, opts ...Option) (Content, error) {
	o := options{workers: min(runtime.GOMAXPROCS(0), maxDefaultWorkers)}
	for _, opt := range opts {
		opt(&o)
	}

	s := sums{content: sha256.New()}
	first := make([]byte, firstRead)
	n, ended, err := readFull(ctx, r, first)
	switch {
	case err != nil:
	case ended:
		err = s.write(first[:n])
	default:
		err = s.readChunks(ctx, r, first, o.workers)
	}
	if err != nil {
		return Content{}, err
	}
	return s.finish()
}

// sums are the two running sums of HashReader.
type sums struct {
	content hash.Hash
	piece   Hasher
}

func (s *sums) write(p []byte) error {
	s.content.Write(p)
	_, err := s.piece.Write(p)
	return err
}

func (s *sums) finish() (Content, error) {
	link, err := s.piece.Sum()
	if err != nil {
		return Content{}, err
	}
	c := Content{Piece: link, Size: int64(s.piece.Size())}
	s.content.Sum(c.SHA256[:0])
	return c, nil
}

// A chunk is one complete sub-tree of payload on its way through HashReader.
type chunk struct {
	data []byte // chunkSize bytes
	root chan Node
}

// readChunks hashes first and the rest of r. The calling goroutine reads, workers compute the root of each chunk, and
// one goroutine takes the chunks in their order, adds them to both sums and hands their buffers back.
func (s *sums) readChunks(ctx context.Context, r io.Reader, first []byte, workers int) error {
	buffers := workers + 2
	free := make(chan *chunk, buffers)
	work := make(chan *chunk, buffers)
	ordered := make(chan *chunk, buffers)
	for range buffers {
		free <- &chunk{root: make(chan Node, 1)} // data is allocated at first use: short content needs few
	}

	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for c := range work {
				c.root <- rootOfQuads(c.data)
			}
		})
	}
	group.Go(func() {
		for c := range ordered {
			s.content.Write(c.data)
			root := <-c.root
			s.piece.tree.push(&root, chunkLog)
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
	tail, err := readEach(ctx, r, first, free, func(c *chunk) {
		work <- c
		ordered <- c
	})
	drain()
	if err != nil {
		return err
	}
	return s.write(tail)
}

// readEach passes each whole chunk of first and then r to emit, in a buffer taken from free, and returns the rest.
func readEach(ctx context.Context, r io.Reader, first []byte, free <-chan *chunk, emit func(*chunk)) ([]byte, error) {
	var size uint64
	for {
		c := <-free
		if c.data == nil {
			c.data = make([]byte, chunkSize)
		}
		n := copy(c.data, first)
		first = nil
		m, ended, err := readFull(ctx, r, c.data[n:])
		n += m
		size += uint64(n)
		switch {
		case err != nil:
			return nil, err
		case size > MaxPayloadSize:
			return nil, fmt.Errorf("reading content: %w", ErrTooLarge)
		case ended:
			return c.data[:n], nil
		}
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
