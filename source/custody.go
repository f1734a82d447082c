package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/storefront"
)

// contentPath is the path below which a custody's content is served.
const contentPath = "/content/"

// ErrNoContent means that content is not in custody. It is storefront.ErrNoContent.
var ErrNoContent = storefront.ErrNoContent

// A Custody is the content that the service answers for: its uploads, and the operator's directories and buckets. It
// implements storefront.Custody. Safe for concurrent use.
type Custody struct {
	base   string // without a slash at the end
	places []Place
}

var _ storefront.Custody = (*Custody)(nil)

// NewCustody returns the custody of the given places. Content that several hold is read from the first, so uploads
// come first; new content goes to the first that is not read-only.
//
// base is the public address under which [NewContentHandler] is reached, such as https://storefront.example: content
// lies at base/content/{cid}. Compute providers and storage providers are sent there.
func NewCustody(base string, places ...Place) (*Custody, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("public address of the custody: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("public address of the custody: %q is not http(s)://host[:port][/path]", u.Redacted())
	}
	if len(places) == 0 {
		return nil, errors.New("a custody needs at least one directory")
	}
	return &Custody{base: strings.TrimRight(u.String(), "/"), places: places}, nil
}

// Stat returns the length of the content and where it is served. The error wraps [ErrNoContent] if it is in no
// place, and for a CID that is no content CID also [ErrUnsupported].
func (c *Custody) Stat(ctx context.Context, content cid.Cid) (storefront.Content, error) {
	found := storefront.Content{CID: content, URL: c.URL(content)}
	_, err := c.first(content, func(p Place) (err error) {
		if found.Length, err = p.Stat(ctx, content); err != nil {
			return err
		}
		if near, ok := p.(Near); ok {
			found.Places = near.Near()
		}
		return nil
	})
	if err != nil {
		return storefront.Content{}, err
	}
	return found, nil
}

// Locate returns where others can read the content: at its place if that can be, else through the service. It fails as
// Stat does.
func (c *Custody) Locate(ctx context.Context, content cid.Cid) (Location, error) {
	_, at, err := c.locate(ctx, content)
	if err == nil && at.Sign == nil {
		at = At(c.URL(content), at.Length)
	}
	return at, err
}

// locate returns the place that has the content, and how to reach it there without the service.
func (c *Custody) locate(ctx context.Context, content cid.Cid) (p Place, at Location, err error) {
	p, err = c.first(content, func(p Place) (err error) {
		if l, ok := p.(Locator); ok {
			at, err = l.Locate(ctx, content)
			return err
		}
		at = Location{}
		at.Length, err = p.Stat(ctx, content)
		return err
	})
	return p, at, err
}

// URL returns the address of the content, whether or not it is there.
func (c *Custody) URL(content cid.Cid) string { return c.base + contentPath + content.String() }

// Open opens the content and returns its length. It fails as Stat does. See [Place] for what is known of the bytes.
func (c *Custody) Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error) {
	_, err = c.first(content, func(p Place) (err error) {
		body, length, err = p.Open(ctx, content)
		return err
	})
	return body, length, err
}

// first returns the first place for which do succeeds. A place that cannot be read hides nothing that another one has,
// but without it nobody can say that there is no content.
func (c *Custody) first(content cid.Cid, do func(Place) error) (Place, error) {
	var failed error
	for _, p := range c.places {
		err := do(p)
		switch {
		case err == nil:
			return p, nil
		case errors.Is(err, ErrUnsupported):
			return nil, fmt.Errorf("%w: %w", ErrNoContent, err)
		case !errors.Is(err, ErrNoContent):
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, fmt.Errorf("%s: %w", content, ErrNoContent)
}

// Put stores content in the first place that is not read-only, as [Place] has it. Content that lies in an operator's
// directory is stored all the same: only what was put is known to match.
func (c *Custody) Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (created bool, err error) {
	p, ok := c.writable()
	if !ok {
		return false, fmt.Errorf("storing content %s: no place for uploads: %w", content, ErrReadOnly)
	}
	return p.Put(ctx, content, r, maxBytes)
}

func (c *Custody) writable() (Place, bool) {
	for _, p := range c.places {
		if !p.ReadOnly() {
			return p, true
		}
	}
	return nil, false
}
