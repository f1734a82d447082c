package storefront

import (
	"context"
	"errors"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
)

// ErrNoContent: the content is not in custody (yet).
var ErrNoContent = errors.New("content not in custody")

// Content is a byte string in the service's custody.
type Content struct {
	CID    cid.Cid
	Length int64 // bytes
	// URL is where the compute provider can read it.
	URL string
	// Places are where it lies, as far as that is known: "bucket:NAME", "region:NAME". The host of the URL is one more by itself.
	Places []string
}

// Custody holds the content that pieces are validated for: bytes that nobody but the operator can change. A piece is only ever
// validated for bytes in custody, and storage providers are only ever sent there.
type Custody interface {
	// Stat returns what is known of the content without reading it, or ErrNoContent.
	Stat(ctx context.Context, content cid.Cid) (Content, error)
}

// Claims keeps claims about content.
type Claims interface {
	// Keep keeps a claim of the storefront's own. Repeating it does nothing.
	Keep(ctx context.Context, claim capabilities.Task) error
	// Locations returns addresses at which content is claimed to be, by anybody: hints, never facts.
	Locations(ctx context.Context, content cid.Cid) ([]string, error)
}

// Importer brings content into custody from where the operator lets the service look for it.
type Importer interface {
	// Import copies the content into custody if bytes that hash to it are found. fits says whether content of a length in bytes can be
	// what is looked for, before it is read. The error is what is shown to whoever waits; it wraps ErrNoContent if the content is nowhere.
	Import(ctx context.Context, content cid.Cid, fits func(length int64) error) error
}
