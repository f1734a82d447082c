package segment

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/storacha/w3filecoin/piece"
)

// quadSize is the number of unpadded bytes that two entries take.
const quadSize = 127

// ReadSegment reads len(p) bytes of the payload of piece i from offset off. It is called for bytes within the payload
// only, and either fills p or returns an error; io.EOF along with a filled p is no error. A call may come from any
// goroutine that reads.
type ReadSegment func(i int, off int64, p []byte) (int, error)

// A Reader presents an aggregate as one file, the one that a storage provider downloads and whose piece is the
// aggregate: the payloads of the pieces at their unpadded offsets, zeros between them, and the index at the end.
//
// It is an io.ReaderAt of Size bytes that keeps nothing of what it reads; several goroutines may use it at once if
// its source allows that. io.NewSectionReader makes it an io.ReadSeeker.
type Reader struct {
	a    *Aggregate
	read ReadSegment
}

// NewReader returns a Reader of a whose payloads come from read. A payload that cannot be had makes reading fail: it is
// never taken for zeros.
func NewReader(a *Aggregate, read ReadSegment) *Reader { return &Reader{a, read} }

// Size returns the size of the file in bytes: the unpadded size of the deal.
func (r *Reader) Size() int64 { return int64(piece.UnpaddedSize(r.a.dealSize)) }

// ReadAt reads len(p) bytes from offset off, as io.ReaderAt has it.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading aggregate at negative offset %d", off)
	}
	if off >= r.Size() {
		return 0, io.EOF
	}
	atEnd := false
	if rest := r.Size() - off; int64(len(p)) > rest {
		p, atEnd = p[:rest], true
	}
	for n := 0; n < len(p); {
		m, err := r.readPart(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	if atEnd {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readPart reads as much of p as one part of the file gives: index, payload, or zeros up to the next of these.
func (r *Reader) readPart(p []byte, off int64) (int, error) {
	index := int64(piece.UnpaddedSize(r.a.IndexStart()))
	if off >= index {
		r.a.readIndex(p, off-index)
		return len(p), nil
	}
	// i is the first segment that starts behind off, so the one before it is the one that off may lie in.
	i := sort.Search(len(r.a.offsets), func(i int) bool { return r.start(i) > off })
	next := index
	if i < len(r.a.offsets) {
		next = r.start(i)
	}
	if i > 0 {
		within := off - r.start(i-1)
		if payload := int64(r.a.pieces[i-1].PayloadSize()); within < payload {
			return r.readPayload(p[:min(int64(len(p)), payload-within)], i-1, within)
		}
	}
	n := int(min(int64(len(p)), next-off))
	clear(p[:n])
	return n, nil
}

// start returns where segment i starts in the file.
func (r *Reader) start(i int) int64 { return int64(piece.UnpaddedSize(r.a.offsets[i])) }

func (r *Reader) readPayload(p []byte, i int, off int64) (int, error) {
	n, err := r.read(i, off, p)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return min(max(n, 0), len(p)), fmt.Errorf("reading %d bytes at %d of piece %s: %w", len(p), off, r.a.pieces[i], err)
}

// readIndex fills p with the unpadded bytes of the index from offset off.
func (a *Aggregate) readIndex(p []byte, off int64) {
	for len(p) > 0 {
		pair, within := int(off/quadSize), int(off%quadSize)
		n := min(len(p), quadSize-within)
		if 2*pair >= len(a.pieces) {
			clear(p)
			return
		}
		var (
			padded   [2 * EntrySize]byte
			unpadded [quadSize]byte
		)
		for i := range min(2, len(a.pieces)-2*pair) {
			entry := a.entry(2*pair + i)
			encoded := entry.encode()
			copy(padded[i*EntrySize:], encoded[:])
		}
		piece.Unpad(unpadded[:], padded[:])
		copy(p[:n], unpadded[within:])
		p, off = p[n:], off+int64(n)
	}
}

// IndexReader returns the index in the unpadded form in which it is stored, its unused entries included: the end of
// the file that a [Reader] presents. [ReadIndex] is its inverse.
func (a *Aggregate) IndexReader() *io.SectionReader {
	size := piece.UnpaddedSize(a.dealSize - a.IndexStart())
	return io.NewSectionReader(indexReader{a}, 0, int64(size))
}

// indexReader reads the index without an end; its section reader sets the bounds.
type indexReader struct{ a *Aggregate }

func (r indexReader) ReadAt(p []byte, off int64) (int, error) {
	r.a.readIndex(p, off)
	return len(p), nil
}
