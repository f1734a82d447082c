package compute

import (
	"context"
	"errors"
	"io"
)

// ErrNoContent: there is nothing at that address (any more). Every other error of a fetch is worth another try.
var ErrNoContent = errors.New("no content at this address")

// Fetcher reads bytes from addresses that outsiders may have chosen. It bounds time and size, and reaches private networks only
// where it is configured to.
type Fetcher interface {
	// Fetch opens the bytes at url and states their length in bytes, -1 if it is not known before they are read.
	Fetch(ctx context.Context, url string) (body io.ReadCloser, length int64, err error)
}
