package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/storefront"
)

// maxSources is how many addresses of one content are tried.
const maxSources = 16

// Copier brings content into a custody from addresses that outsiders may have chosen. It implements storefront.Fetcher. Safe for concurrent use.
type Copier struct {
	custody *Custody
	from    *HTTP
}

var _ storefront.Fetcher = (*Copier)(nil)

// NewCopier returns a copier; an error if the custody has no place that can be written to.
func NewCopier(to *Custody, from *HTTP) (*Copier, error) {
	if _, ok := to.writable(); !ok {
		return nil, errors.New("copying content: the custody has no place to store it in")
	}
	return &Copier{to, from}, nil
}

// Fetch puts the content into custody from the first of the addresses that gives it, in at most maxBytes bytes. The bytes are hashed while they are
// copied, and nothing is left of those that are something else. The error names hosts and causes, but no path, query or address.
func (c *Copier) Fetch(ctx context.Context, content cid.Cid, urls []string, maxBytes int64) error {
	failed := fmt.Errorf("nobody says where it is: %w", ErrNoContent)
	for i, u := range urls[:min(len(urls), maxSources)] {
		err := c.copy(ctx, content, u, maxBytes)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed = fmt.Errorf("tried at %d places where it is claimed to be, the last: %w", i+1, err)
	}
	return failed
}

func (c *Copier) copy(ctx context.Context, content cid.Cid, url string, maxBytes int64) error {
	body, length, err := c.from.Fetch(ctx, url)
	if err != nil {
		return err
	}
	defer body.Close()
	if length > maxBytes {
		return fmt.Errorf("%d bytes where at most %d are expected: %w", length, maxBytes, ErrTooLarge)
	}
	_, err = c.custody.Put(ctx, content, body, maxBytes)
	return err
}
