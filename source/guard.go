package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

const (
	// restAfter failures in a row a source is left alone for a while: restFirst, doubling to restMost.
	restAfter = 3
	restFirst = 5 * time.Second
	restMost  = 5 * time.Minute
)

// ErrResting means that a source has failed several times in a row and is left alone for a while.
var ErrResting = errors.New("it has failed repeatedly and is left alone for a while")

// Health watches over one source: what fails again and again is not asked by everybody, who would all wait for it, but by
// one caller from time to time. Safe for concurrent use.
type Health struct {
	// Name of the source, in the log.
	Name string
	Now  func() time.Time
	Log  *slog.Logger

	mu    sync.Mutex
	fails int // in a row
	until time.Time
}

// Do calls do unless the source rests; then the error wraps [ErrResting]. An answer is a success, whatever it says:
// that there is no such content, for instance.
func (h *Health) Do(ctx context.Context, do func() error) error {
	if !h.begin() {
		return fmt.Errorf("%s: %w", h.Name, ErrResting)
	}
	err := do()
	h.end(ctx, err)
	return err
}

func (h *Health) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails < restAfter {
		return true
	}
	now := h.Now()
	if now.Before(h.until) {
		return false
	}
	h.until = now.Add(restFirst) // the others wait for what this one finds
	return true
}

func (h *Health) end(ctx context.Context, err error) {
	failed := err != nil && ctx.Err() == nil
	for _, answer := range []error{ErrNoContent, ErrUnsupported, ErrMismatch, ErrTooLarge, ErrReadOnly} {
		failed = failed && !errors.Is(err, answer)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !failed && ctx.Err() == nil:
		if h.fails >= restAfter {
			h.Log.InfoContext(ctx, "a source answers again", "source", h.Name)
		}
		h.fails = 0
	case failed:
		h.fails++
		if h.fails < restAfter {
			return
		}
		rest := restMost
		if n := h.fails - restAfter; n < 6 { // 5 s * 2^6 is more than five minutes
			rest = restFirst << n
		}
		h.until = h.Now().Add(rest)
		h.Log.WarnContext(ctx, "a source fails and is left alone for a while", "source", h.Name, "failures", h.fails, "for", rest, "err", err)
	}
}

// Remote is a place on another machine, such as a bucket: others read from it, and put into it, without the service in
// between.
type Remote interface {
	Place
	Locator
	Voucher
	PutSigner
}

// Guard returns the place under watch: looking there fails at once while it rests.
func Guard(p Remote, h *Health) Remote { return &guarded{p, h} }

type guarded struct {
	Remote
	health *Health
}

func (g *guarded) Stat(ctx context.Context, content cid.Cid) (length int64, err error) {
	err = g.health.Do(ctx, func() error {
		length, err = g.Remote.Stat(ctx, content)
		return err
	})
	return length, err
}

func (g *guarded) Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error) {
	err = g.health.Do(ctx, func() error {
		body, length, err = g.Remote.Open(ctx, content)
		return err
	})
	return body, length, err
}

func (g *guarded) Locate(ctx context.Context, content cid.Cid) (at Location, err error) {
	err = g.health.Do(ctx, func() error {
		at, err = g.Remote.Locate(ctx, content)
		return err
	})
	return at, err
}

func (g *guarded) Verified(ctx context.Context, content cid.Cid) (length int64, err error) {
	err = g.health.Do(ctx, func() error {
		length, err = g.Remote.Verified(ctx, content)
		return err
	})
	return length, err
}
