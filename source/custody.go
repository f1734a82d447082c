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

// A Custody is the content that the service answers for: its uploads and the operator's directories. It implements
// storefront.Custody. Safe for concurrent use.
type Custody struct {
	base string // without a slash at the end
	dirs []*Dir
}

var _ storefront.Custody = (*Custody)(nil)

// NewCustody returns the custody of the given directories. Content that several hold is read from the first, so uploads
// come first; new content goes to the first that is not read-only.
//
// base is the public address under which [NewContentHandler] is reached, such as https://storefront.example: content
// lies at base/content/{cid}. Compute providers and storage providers are sent there.
func NewCustody(base string, dirs ...*Dir) (*Custody, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("public address of the custody: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("public address of the custody: %q is not http(s)://host[:port][/path]", u.Redacted())
	}
	if len(dirs) == 0 {
		return nil, errors.New("a custody needs at least one directory")
	}
	return &Custody{base: strings.TrimRight(u.String(), "/"), dirs: dirs}, nil
}

// Stat returns the length of the content and where it is served. The error wraps [ErrNoContent] if it is in no
// directory, and for a CID that is no content CID also [ErrUnsupported].
func (c *Custody) Stat(ctx context.Context, content cid.Cid) (storefront.Content, error) {
	var length int64
	_, err := c.first(content, func(d *Dir) (err error) {
		length, err = d.Stat(ctx, content)
		return err
	})
	if err != nil {
		return storefront.Content{}, err
	}
	return storefront.Content{CID: content, Length: length, URL: c.URL(content)}, nil
}

// Locate returns what Stat returns, as the resolver asks for it.
func (c *Custody) Locate(ctx context.Context, content cid.Cid) (url string, length int64, err error) {
	found, err := c.Stat(ctx, content)
	return found.URL, found.Length, err
}

// URL returns the address of the content, whether or not it is there.
func (c *Custody) URL(content cid.Cid) string { return c.base + contentPath + content.String() }

// Open opens the content and returns its length. It fails as Stat does. See [Dir.Open] for what is known of the bytes.
func (c *Custody) Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error) {
	body, length, _, err = c.open(ctx, content)
	return body, length, err
}

// open also returns the directory that has the content.
func (c *Custody) open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, d *Dir, err error) {
	d, err = c.first(content, func(d *Dir) (err error) {
		body, length, err = d.Open(ctx, content)
		return err
	})
	return body, length, d, err
}

// first returns the first directory for which do succeeds. A directory that cannot be read hides nothing that another
// one has, but without it nobody can say that there is no content.
func (c *Custody) first(content cid.Cid, do func(*Dir) error) (*Dir, error) {
	var failed error
	for _, d := range c.dirs {
		err := do(d)
		switch {
		case err == nil:
			return d, nil
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

// Put stores content in the first directory that is not read-only, as [Dir.Put] does. Content that lies in an
// operator's directory is stored all the same: only what was put is known to match.
func (c *Custody) Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (created bool, err error) {
	d, ok := c.writable()
	if !ok {
		return false, fmt.Errorf("storing content %s: no directory for uploads: %w", content, ErrReadOnly)
	}
	return d.Put(ctx, content, r, maxBytes)
}

func (c *Custody) writable() (*Dir, bool) {
	for _, d := range c.dirs {
		if !d.readOnly {
			return d, true
		}
	}
	return nil, false
}
