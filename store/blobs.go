package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// RawBlob names bytes by their CIDv1: raw codec, sha2-256.
func RawBlob(b []byte) Blob { return newBlob(cid.Raw, b) }

// CBORBlob names a DAG-CBOR block by its CIDv1: dag-cbor codec, sha2-256.
func CBORBlob(b []byte) Blob { return newBlob(cid.DagCBOR, b) }

func newBlob(codec uint64, b []byte) Blob {
	sum := sha256.Sum256(b)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		panic(err) // only for lengths that are not the hash's
	}
	return Blob{CID: cid.NewCidV1(codec, hash), Bytes: b}
}

// PutBlob stores a blob of any size and returns once it is durable.
func PutBlob(ctx context.Context, blobs Blobs, b Blob) error {
	if err := blobs.Put(ctx, b.CID, bytes.NewReader(b.Bytes)); err != nil {
		return fmt.Errorf("putting blob %s: %w", b.CID, err)
	}
	return nil
}

// ErrCorrupt: stored bytes do not hash to the CID that names them.
var ErrCorrupt = errors.New("stored bytes do not match their CID")

// ReadBlob returns the whole blob and checks it against its CID. ErrNotFound if it is not there, ErrTooLarge if it has more than limit
// bytes, ErrCorrupt if it is not what its CID names.
func ReadBlob(ctx context.Context, blobs Blobs, c cid.Cid, limit int64) ([]byte, error) {
	b, err := readBlob(ctx, blobs, c, limit)
	if err == nil {
		err = verify(c, b)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", c, err)
	}
	return b, nil
}

func readBlob(ctx context.Context, blobs Blobs, c cid.Cid, limit int64) (b []byte, err error) {
	r, err := blobs.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	defer closing(r, &err)
	if r.Size() > limit {
		return nil, fmt.Errorf("%d bytes: %w", r.Size(), ErrTooLarge)
	}
	b = make([]byte, r.Size())
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

func verify(c cid.Cid, b []byte) error {
	sum, err := c.Prefix().Sum(b)
	if err != nil {
		return fmt.Errorf("hashing as %s: %w", c, err)
	}
	if !sum.Equals(c) {
		return ErrCorrupt
	}
	return nil
}

// closing closes what was read. A failure of that is the caller's error unless there was one before.
func closing(c io.Closer, err *error) {
	if closeErr := c.Close(); *err == nil {
		*err = closeErr
	}
}
