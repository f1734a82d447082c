package source

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestHealth: a source that fails three times in a row is left alone, asked by one caller when its rest is over, and
// for longer if it fails again. Answers are no failures.
func TestHealth(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var log bytes.Buffer
	h := &Health{Name: "bucket b", Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil))}
	down := errors.New("connection refused")
	asked := 0
	do := func(err error) error {
		return h.Do(t.Context(), func() error { asked++; return err })
	}
	want := func(what string, err, wantErr error, n int) {
		t.Helper()
		if !errors.Is(err, wantErr) || asked != n {
			t.Errorf("%s: %v after %d questions; want %v after %d", what, err, asked, wantErr, n)
		}
	}
	want("first failure", do(down), down, 1)
	want("second", do(down), down, 2)
	want("an answer", do(ErrNoContent), ErrNoContent, 3)
	for range 3 {
		_ = do(down)
	}
	want("resting", do(nil), ErrResting, 6)
	now = now.Add(restFirst - 1)
	want("still resting", do(nil), ErrResting, 6)
	now = now.Add(1)
	// While one caller looks, the others go on resting.
	err := h.Do(t.Context(), func() error {
		asked++
		want("beside the one who looks", do(nil), ErrResting, 7)
		return down
	})
	want("the one who looks", err, down, 7)
	now = now.Add(2*restFirst - 1)
	want("resting twice as long", do(nil), ErrResting, 7)
	now = now.Add(1)
	want("recovered", do(nil), nil, 8)
	want("as ever", do(down), down, 9)
	if s := log.String(); strings.Count(s, "left alone") != 2 || strings.Count(s, "answers again") != 1 {
		t.Errorf("log:\n%s", s)
	}
	for range 20 {
		now = now.Add(restMost)
		_ = do(down)
	}
	now = now.Add(restMost)
	want("it never rests longer", do(nil), nil, asked)

	// Somebody who goes away says nothing of the source.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		_ = h.Do(ctx, func() error { return ctx.Err() })
	}
	want("after callers have gone", do(nil), nil, asked)
}
