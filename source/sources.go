package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/storefront"
)

// An Origin is where content may lie outside the service's custody, where others may change it.
type Origin struct {
	// Name of the origin, in reasons and in the log.
	Name string
	// Fetch opens the content there and states its length in bytes, -1 if it is not known. The error wraps [ErrNoContent]
	// if it is not there.
	Fetch func(ctx context.Context, content cid.Cid) (body io.ReadCloser, length int64, err error)
}

// PlaceOrigin is a place as an origin: a bucket that others write to, for instance.
func PlaceOrigin(name string, p Place) Origin {
	return Origin{Name: name, Fetch: func(ctx context.Context, content cid.Cid) (io.ReadCloser, int64, error) {
		return p.Open(ctx, content)
	}}
}

// URLOrigin is a site that has content at an address made of the content's hash, see [CheckTemplate].
func URLOrigin(template string, h *HTTP) (Origin, error) {
	if err := CheckTemplate(template); err != nil {
		return Origin{}, err
	}
	u, err := parseURL(Fill(template, sample))
	if err != nil {
		return Origin{}, err
	}
	return Origin{Name: u.Host, Fetch: func(ctx context.Context, content cid.Cid) (io.ReadCloser, int64, error) {
		if err := Check(content); err != nil {
			return nil, 0, err
		}
		body, length, err := h.Fetch(ctx, Fill(template, content))
		if errors.Is(err, compute.ErrNoContent) {
			err = fmt.Errorf("%w: %w", ErrNoContent, err)
		}
		return body, length, err
	}}, nil
}

// Sources brings content into custody from origins, ranked: each is asked in turn until the bytes of one hash to the
// content. It implements storefront.Importer. Safe for concurrent use.
type Sources struct {
	custody  *Custody
	maxBytes int64
	origins  []Origin
	health   []*Health
}

var _ storefront.Importer = (*Sources)(nil)

// NewSources returns the origins in the order of their rank. Content over maxBytes is not taken.
func NewSources(c *Custody, maxBytes int64, now func() time.Time, log *slog.Logger, origins ...Origin) (*Sources, error) {
	if _, ok := c.writable(); !ok {
		return nil, errors.New("sources: the custody has no place to copy content into")
	}
	if maxBytes <= 0 {
		return nil, errors.New("sources: no maximum length is set")
	}
	s := &Sources{custody: c, maxBytes: maxBytes, origins: origins}
	for _, o := range origins {
		s.health = append(s.health, &Health{Name: o.Name, Now: now, Log: log})
	}
	return s, nil
}

// Import copies the content into custody in one stream, which is hashed on its way; what is not the content leaves
// nothing behind. fits is told each origin's length before a byte of it is read. The error says what each origin said; it
// wraps [ErrNoContent] if none has the content.
func (s *Sources) Import(ctx context.Context, content cid.Cid, fits func(length int64) error) error {
	if err := Check(content); err != nil {
		return fmt.Errorf("%w: %w", ErrNoContent, err)
	}
	var reasons []error
	for i, o := range s.origins {
		err := s.copyFrom(ctx, o, s.health[i], content, fits)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !errors.Is(err, ErrNoContent):
			reasons = append(reasons, fmt.Errorf("%s: %w", o.Name, err))
		}
	}
	if len(reasons) == 0 {
		return fmt.Errorf("%s is at none of %d sources: %w", content, len(s.origins), ErrNoContent)
	}
	return errors.Join(reasons...)
}

// copyFrom copies the content from one origin. What the origin did wrong counts against it, what the custody did does not.
func (s *Sources) copyFrom(ctx context.Context, o Origin, health *Health, content cid.Cid, fits func(int64) error) (err error) {
	var other error // that says nothing of the origin
	err = health.Do(ctx, func() error {
		body, length, err := o.Fetch(ctx, content)
		if err != nil {
			return err
		}
		defer body.Close()
		limit := s.maxBytes
		if length >= 0 {
			if other = fits(length); other != nil {
				return nil
			}
			if length > limit {
				return fmt.Errorf("%d bytes, at most %d are taken: %w", length, limit, ErrTooLarge)
			}
			limit = length
		}
		watched := &watchedBody{Reader: body}
		_, err = s.custody.Put(ctx, content, watched, limit)
		switch {
		case watched.err != nil:
			return watched.err
		case errors.Is(err, ErrMismatch):
			return errors.New("it has other bytes under this name")
		}
		other = err
		return nil
	})
	return cmp.Or(err, other)
}

// watchedBody remembers the error that ended it.
type watchedBody struct {
	io.Reader
	err error
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// placeholders of a template; each stands for text that the content's hash can be read from.
func placeholders(content cid.Cid) *strings.Replacer {
	return strings.NewReplacer(
		"{multihash}", MultihashName(content),
		"{base58}", "z"+content.Hash().B58String(),
		"{raw}", cid.NewCidV1(Raw, content.Hash()).String(),
		"{car}", cid.NewCidV1(CAR, content.Hash()).String(),
	)
}

// sample stands for any content.
var sample = cid.MustParse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")

// Fill returns the template with the content's names in place of {multihash} (base32, "bciq…"), {base58} (the
// multihash, "zQm…"), {raw} and {car} (the CID in base32 with that codec).
func Fill(template string, content cid.Cid) string { return placeholders(content).Replace(template) }

// CheckTemplate returns an error unless what [Fill] makes of the template names the content, and nothing is left in it
// to be filled in.
func CheckTemplate(template string) error {
	filled := Fill(template, sample)
	if filled == template || strings.ContainsAny(filled, "{}") {
		return fmt.Errorf("%q has to have {multihash}, {base58}, {raw} or {car} in it, and nothing else in braces", template)
	}
	return nil
}
