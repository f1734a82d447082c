package source

import (
	"context"
	"io"
	"time"

	"github.com/ipfs/go-cid"
)

// A Place is where content lies: a [Dir], or a bucket (package source/s3). It is safe for concurrent use.
type Place interface {
	// Stat returns the length of the content in bytes. The error wraps [ErrUnsupported] or [ErrNoContent].
	Stat(ctx context.Context, content cid.Cid) (length int64, err error)
	// Open opens the content and returns its length. The bytes are as they lie there: unless Put wrote them, the caller
	// verifies their hash. They are read within ctx. It fails as Stat does.
	Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error)
	// Put stores what r yields as the given content and reports whether it was new. It returns once the content is durable.
	// The content is there as a whole or not at all. If it is there already, r is not read.
	//
	// The error wraps [ErrMismatch], [ErrTooLarge] (more than maxBytes), [ErrUnsupported], [ErrReadOnly], the error of r or
	// of the place; nothing is left behind then.
	Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (created bool, err error)
	// ReadOnly reports whether Put always fails with [ErrReadOnly].
	ReadOnly() bool
}

// A Near place says where its content lies, so that somebody can be chosen who is near to it.
type Near interface {
	// Near returns names as [storefront.Content] has them: "bucket:NAME", "region:NAME".
	Near() []string
}

// A Location is where somebody outside the service can read content.
type Location struct {
	// Length of the content in bytes.
	Length int64
	// Sign returns an address at which the content can be read for as long as valid at least. Nil: nowhere but through
	// the service itself.
	Sign func(ctx context.Context, valid time.Duration) (url string, err error)
	// Expires says that an address works for about as long as was asked for, and not for ever.
	Expires bool
}

// A Locator is a [Place] that others can read from without the service in between. It fails as Stat does.
type Locator interface {
	Locate(ctx context.Context, content cid.Cid) (Location, error)
}

// At returns the location of content at an address that works for ever.
func At(url string, length int64) Location {
	return Location{Length: length, Sign: func(context.Context, time.Duration) (string, error) { return url, nil }}
}
