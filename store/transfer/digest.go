package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Sum says what a set of things is, in whatever order an engine lists them.
type Sum struct {
	Count int64 `json:"count" cbor:"1,keyasint"`
	// Bytes of values, bodies or blobs.
	Bytes int64 `json:"bytes" cbor:"2,keyasint"`
	// Hash is the sum, modulo 2^256, of the sha2-256 of each, in hexadecimal. It finds what got lost, doubled or changed by accident; an adversary
	// who chooses the contents could make two sets of equal sums.
	Hash string `json:"hash" cbor:"3,keyasint"`
}

// Digest adds up a Sum. The zero value is the sum of nothing. It is safe for concurrent use.
type Digest struct {
	mu           sync.Mutex
	count, bytes int64
	words        [4]uint64 // the least significant first
}

// Add takes in one thing that has these parts; size is what it adds to the sum of bytes.
func (d *Digest) Add(size int64, parts ...[]byte) {
	h := sha256.New()
	for _, p := range parts {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(p)))
		h.Write(length[:])
		h.Write(p)
	}
	sum := h.Sum(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count++
	d.bytes += size
	var carry uint64
	for i := range d.words {
		d.words[i], carry = bits.Add64(d.words[i], binary.BigEndian.Uint64(sum[24-8*i:]), carry)
	}
}

func (d *Digest) row(r store.Row) {
	d.Add(int64(len(r.Value)), []byte(r.Partition), []byte(r.Sort), []byte(r.Listing.Index), []byte(r.Listing.Sort), r.Value)
}

func (d *Digest) message(m marker) {
	d.Add(int64(len(m.Body)), []byte(m.Queue), m.Body, binary.BigEndian.AppendUint64(nil, uint64(m.Due)))
}

// Sum is that of all that was added.
func (d *Digest) Sum() Sum {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b []byte
	for i := range d.words {
		b = binary.BigEndian.AppendUint64(b, d.words[len(d.words)-1-i])
	}
	return Sum{d.count, d.bytes, hex.EncodeToString(b)}
}

// eachRow calls do with each page of the role's own rows.
func eachRow(ctx context.Context, rows store.Rows, do func([]store.Row) error) error {
	for cursor := ""; ; {
		page, err := rows.Walk(ctx, cursor, store.MaxPage)
		if err != nil {
			return fmt.Errorf("reading rows: %w", err)
		}
		own := page.Rows[:0]
		for _, r := range page.Rows {
			if r.Partition != partition {
				own = append(own, r)
			}
		}
		if err := do(own); err != nil {
			return err
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

// eachBlob calls do for each blob, several at a time.
func eachBlob(ctx context.Context, blobs store.Blobs, do func(cid.Cid) error) error {
	for cursor := ""; ; {
		page, next, err := blobs.List(ctx, cursor, 0)
		if err != nil {
			return fmt.Errorf("listing blobs: %w", err)
		}
		if err := store.Each(ctx, blobsAtATime, page, do); err != nil {
			return err
		}
		if cursor = next; cursor == "" {
			return nil
		}
	}
}

// content is the sums of a side's rows and blobs, each blob read in full.
func content(ctx context.Context, d store.Driver, read io.Writer) (rows, blobs Sum, err error) {
	var r, b Digest
	err = eachRow(ctx, d, func(page []store.Row) error {
		for _, row := range page {
			r.row(row)
			_, _ = read.Write(row.Value)
		}
		return nil
	})
	if err != nil {
		return rows, blobs, err
	}
	err = eachBlob(ctx, d, func(c cid.Cid) error {
		in, err := d.Open(ctx, c)
		if err != nil {
			return fmt.Errorf("reading blob %s: %w", c, err)
		}
		defer in.Close()
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(h, read), in)
		if err != nil {
			return fmt.Errorf("reading blob %s: %w", c, err)
		}
		b.Add(n, c.Bytes(), h.Sum(nil))
		return nil
	})
	return r.Sum(), b.Sum(), err
}
