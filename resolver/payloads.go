package resolver

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

// Opener reads content that the service answers for. *source.Custody implements it.
type Opener interface {
	// Open opens content, to be read within ctx, and returns its length in bytes. The error wraps source.ErrNoContent if
	// there is none.
	Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error)
}

// Custody reads pieces of a storefront from its custody. It implements [Payloads].
type Custody struct {
	Contents Contents
	Bytes    Opener
}

// OpenPiece implements [Payloads].
func (c Custody) OpenPiece(ctx context.Context, p piece.Link, off int64) (io.ReadCloser, int64, error) {
	contents, err := c.Contents.ContentOf(ctx, p)
	if err != nil {
		return nil, 0, err
	}
	failed := fmt.Errorf("its content: %w", source.ErrNoContent)
	for _, content := range contents {
		body, length, err := c.Bytes.Open(ctx, content)
		switch {
		case err == nil && !fits(p, length):
			body.Close()
			failed = fmt.Errorf("content %s has %d bytes, which is not the piece's size", content, length)
		case err == nil:
			if off > 0 && off < length {
				if _, err := body.Seek(off, io.SeekStart); err != nil {
					body.Close()
					return nil, 0, fmt.Errorf("content %s: %w", content, err)
				}
			}
			return body, length, nil
		case !errors.Is(err, source.ErrNoContent):
			failed = err
		}
	}
	return nil, 0, failed
}

// Storefronts reads pieces from the resolvers of the storefronts that offered them. It implements [Payloads].
type Storefronts struct {
	// Of returns the base URLs of the storefronts that a piece is of, none if there is none or they are not known.
	Of func(ctx context.Context, p piece.Link) ([]string, error)
	// HTTP fetches. It has to be allowed to reach where the storefronts, and what they redirect to, are.
	HTTP *source.HTTP
}

// OpenPiece implements [Payloads].
func (s Storefronts) OpenPiece(ctx context.Context, p piece.Link, off int64) (io.ReadCloser, int64, error) {
	urls, err := s.Of(ctx, p)
	if err != nil {
		return nil, 0, err
	}
	failed := fmt.Errorf("no storefront that offered it is known: %w", source.ErrNoContent)
	for _, base := range urls {
		body, length, err := s.HTTP.FetchFrom(ctx, base+piecePath+p.String(), off)
		if err == nil {
			return body, length, nil
		}
		failed = err
	}
	return nil, 0, failed
}
