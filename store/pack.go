package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
)

// A pack is many small content-addressed things of one origin in one blob: the receipts and proofs of an aggregate, say. Rows name an entry by
// the pack's CID and an [Entry], and read it without reading the rest.
//
// The blob is a CARv1 file (https://ipld.io/specs/transport/car/carv1/) whose one root is its first entry, so any CAR tool
// reads it. An entry's offset and length are those of its bytes, without the section's header.

// Limits of a pack.
const (
	MaxPack        = 64 << 20 // bytes of the blob
	MaxPackEntries = 1 << 16
)

const (
	codecCAR    = 0x0202 // the multicodec of a CAR file
	maxEntryCID = 96     // bytes of an entry's CID: room for any hash of 512 bits, not for data in the CID itself
)

// Entry is one thing in a pack.
type Entry struct {
	CID    cid.Cid `cbor:"1,keyasint"`
	Offset int64   `cbor:"2,keyasint"` // of its bytes, from the beginning of the pack
	Length int64   `cbor:"3,keyasint"` // bytes
}

// PackWriter gathers the entries of a pack. The zero value is an empty one.
type PackWriter struct {
	buf     bytes.Buffer
	entries map[cid.Cid]Entry
}

// Add appends an entry and returns where it is. What the pack has already is not added again. ErrTooLarge, and nothing is
// added, if the pack would be over its limits: finish it and begin another.
func (w *PackWriter) Add(b Blob) (Entry, error) {
	if e, ok := w.entries[b.CID]; ok {
		return e, nil
	}
	name := b.CID.Bytes()
	if len(name) == 0 || len(name) > maxEntryCID {
		return Entry{}, fmt.Errorf("pack entry with a CID of %d bytes", len(name))
	}
	var head []byte
	if w.buf.Len() == 0 {
		h := carHeader(name)
		head = append(binary.AppendUvarint(head, uint64(len(h))), h...)
	}
	head = binary.AppendUvarint(head, uint64(len(name)+len(b.Bytes)))
	head = append(head, name...)
	if w.buf.Len()+len(head)+len(b.Bytes) > MaxPack || len(w.entries) == MaxPackEntries {
		return Entry{}, fmt.Errorf("pack of %d entries and %d bytes: %w", len(w.entries), w.buf.Len(), ErrTooLarge)
	}
	w.buf.Write(head)
	e := Entry{CID: b.CID, Offset: int64(w.buf.Len()), Length: int64(len(b.Bytes))}
	w.buf.Write(b.Bytes)
	if w.entries == nil {
		w.entries = make(map[cid.Cid]Entry)
	}
	w.entries[b.CID] = e
	return e, nil
}

// Len returns the number of entries so far.
func (w *PackWriter) Len() int { return len(w.entries) }

// Size returns the bytes of the pack so far.
func (w *PackWriter) Size() int64 { return int64(w.buf.Len()) }

// Put stores the pack and returns its CID once it is durable. A pack needs an entry.
func (w *PackWriter) Put(ctx context.Context, blobs Blobs) (cid.Cid, error) {
	if w.Len() == 0 {
		return cid.Undef, errors.New("putting a pack without entries")
	}
	b := newBlob(codecCAR, w.buf.Bytes())
	return b.CID, PutBlob(ctx, blobs, b)
}

// ReadEntry returns an entry's bytes, checked against its CID. ErrNotFound if there is no such pack, ErrCorrupt if the entry
// is not there.
func ReadEntry(ctx context.Context, blobs Blobs, pack cid.Cid, e Entry) ([]byte, error) {
	b, err := readEntry(ctx, blobs, pack, e)
	if err != nil {
		return nil, fmt.Errorf("reading entry %s of pack %s: %w", e.CID, pack, err)
	}
	return b, nil
}

func readEntry(ctx context.Context, blobs Blobs, pack cid.Cid, e Entry) (b []byte, err error) {
	r, err := blobs.Open(ctx, pack)
	if err != nil {
		return nil, err
	}
	defer closing(r, &err)
	if e.Offset < 0 || e.Length < 0 || e.Offset > r.Size() || e.Length > r.Size()-e.Offset || e.Length > MaxPack {
		return nil, ErrCorrupt
	}
	b = make([]byte, e.Length)
	if _, err := io.ReadFull(io.NewSectionReader(r, e.Offset, e.Length), b); err != nil {
		return nil, err
	}
	return b, verify(e.CID, b)
}

// ReadPack calls visit with each entry of a pack, in the order they were added, its bytes checked against its CID. The
// bytes are visit's to keep. visit's error ends the reading and is returned as it is.
func ReadPack(ctx context.Context, blobs Blobs, pack cid.Cid, visit func(e Entry, b []byte) error) (err error) {
	r, err := blobs.Open(ctx, pack)
	if err != nil {
		return fmt.Errorf("reading pack %s: %w", pack, err)
	}
	defer closing(r, &err)
	var stopped error
	err = decodePack(r, func(e Entry, b []byte) error {
		stopped = visit(e, b)
		return stopped
	})
	if err != nil && stopped == nil {
		return fmt.Errorf("reading pack %s: %w", pack, err)
	}
	return err
}

// decodePack reads what PackWriter writes, strictly. Faults of the bytes are ErrCorrupt.
func decodePack(from io.Reader, visit func(Entry, []byte) error) error {
	r := &countingReader{r: bufio.NewReader(io.LimitReader(from, MaxPack+1))}
	header, err := readSection(r)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		section, err := readSection(r)
		if errors.Is(err, io.EOF) && n > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) || n == MaxPackEntries || r.n > MaxPack {
			return ErrCorrupt
		}
		if err != nil {
			return err
		}
		size, c, err := cid.CidFromBytes(section)
		if err != nil || size > maxEntryCID || n == 0 && !bytes.Equal(header, carHeader(c.Bytes())) {
			return ErrCorrupt
		}
		b := section[size:]
		if err := verify(c, b); err != nil {
			return err
		}
		if err := visit(Entry{CID: c, Offset: r.n - int64(len(b)), Length: int64(len(b))}, b); err != nil {
			return err
		}
	}
}

// readSection reads what a varint says the length of; io.EOF if there is nothing at all.
func readSection(r *countingReader) ([]byte, error) {
	before := r.n
	size, err := binary.ReadUvarint(r)
	switch {
	case errors.Is(err, io.EOF) && r.n == before:
		return nil, io.EOF
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, ErrCorrupt
	case err != nil && r.n-before < binary.MaxVarintLen64:
		return nil, err // of the reader
	case err != nil || size > MaxPack || r.n-before != int64(uvarintLen(size)):
		return nil, ErrCorrupt
	}
	// The buffer grows with what is there, not with what is promised.
	var b bytes.Buffer
	if n, err := io.CopyN(&b, r, int64(size)); errors.Is(err, io.EOF) || err == nil && n != int64(size) {
		return nil, ErrCorrupt
	} else if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func uvarintLen(v uint64) int {
	return len(binary.AppendUvarint(nil, v))
}

type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// carHeader is the DAG-CBOR of {roots: [root], version: 1}.
func carHeader(root []byte) []byte {
	link := append([]byte{0}, root...) // links in DAG-CBOR begin with a zero byte
	h := []byte{0xa2, 0x65, 'r', 'o', 'o', 't', 's', 0x81, 0xd8, 0x2a}
	if len(link) < 24 {
		h = append(h, 0x40|byte(len(link)))
	} else {
		h = append(h, 0x58, byte(len(link)))
	}
	h = append(h, link...)
	return append(h, 0x67, 'v', 'e', 'r', 's', 'i', 'o', 'n', 0x01)
}
