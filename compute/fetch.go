package compute

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/piece"
)

// ErrNoContent: there is nothing at that address (any more). Every other error of a fetch is worth another try.
var ErrNoContent = errors.New("no content at this address")

// Fetcher reads bytes from addresses that outsiders may have chosen. It bounds time and size, and reaches private networks only
// where it is configured to.
type Fetcher interface {
	// Fetch opens the bytes at url and states their length in bytes, -1 if it is not known before they are read.
	Fetch(ctx context.Context, url string) (body io.ReadCloser, length int64, err error)
}

// Read reads one address, once, and computes hash and piece of the same bytes. It fails unless the bytes hash to the
// content. Lengths that do not go together are found before a byte is read; memory does not depend on any of them.
func Read(ctx context.Context, f Fetcher, l Location, content cid.Cid) (found piece.Content, err error) {
	body, length, err := f.Fetch(ctx, l.URL)
	if err != nil {
		return found, err
	}
	defer body.Close()
	want := int64(-1) // bytes of content, if known
	if length >= 0 {
		if uint64(length) < l.Offset || uint64(length)-l.Offset < l.Length {
			return found, fmt.Errorf("there are %d bytes, the claim is of %d from %d on", length, l.Length, l.Offset)
		}
		want = length - int64(l.Offset)
	}
	var part io.Reader = body
	if l.Offset > 0 {
		if l.Offset > piece.MaxPayloadSize {
			return found, fmt.Errorf("the claim begins at byte %d", l.Offset)
		}
		if _, err := io.CopyN(io.Discard, body, int64(l.Offset)); err != nil {
			return found, fmt.Errorf("reading up to byte %d: %w", l.Offset, err)
		}
	}
	if l.Length > 0 {
		if l.Length > piece.MaxPayloadSize {
			return found, piece.ErrTooLarge
		}
		want = int64(l.Length)
		part = io.LimitReader(body, want)
	}
	found, err = piece.HashReader(ctx, part)
	if err != nil {
		return found, err
	}
	if want >= 0 && found.Size != want {
		return found, fmt.Errorf("%d bytes came, not %d", found.Size, want)
	}
	digest, err := multihash.Decode(content.Hash())
	if err != nil {
		return found, err
	}
	if string(digest.Digest) != string(found.SHA256[:]) {
		return found, errors.New("the bytes there are not this content")
	}
	return found, nil
}
