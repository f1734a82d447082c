package roles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/store"
)

// methodOnly is a service with one method.
type methodOnly struct {
	Service
	ability string
	method  capabilities.Method
}

func (s methodOnly) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{s.ability: s.method}
}

func (s methodOnly) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, store.ErrNotFound
}

// TestInterrupted: that a client goes away while it is waited for is no fault, and what goes wrong meanwhile is.
func TestInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name    string
		err     func(ctx context.Context) error
		gone    bool
		outcome string
	}{
		{"client gone", func(ctx context.Context) error { return fmt.Errorf("reading a row: %w", ctx.Err()) }, true, "unavailable"},
		{"fault, client gone", func(context.Context) error { return errors.New("the disk burns") }, true, "fault"},
		{"fault", func(context.Context) error { return errors.New("the disk burns") }, false, "fault"},
		{"another context", func(context.Context) error { return context.Canceled }, false, "fault"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var log bytes.Buffer
			var got Execution
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := NewServer(Server{
				Name: "test", Signer: w.service, Authority: w.Authority, Changes: new(Changes), Log: slog.New(slog.NewTextHandler(&log, nil)),
				Service: methodOnly{ability: "test/wait", method: func(ctx context.Context, _ capabilities.Invocation) (*capabilities.Receipt, error) {
					if tt.gone {
						cancel()
					}
					return nil, tt.err(ctx)
				}},
				Observe: func(e Execution) { got = e },
			})
			m, _ := send(t, spec{issuer: w.service, audience: w.service.DID(), caps: can("test/wait", w.service.DID())}.sign(t))
			_, err := s.run(ctx, m, m.Invocations()[0])
			var u *capabilities.Unavailable
			if !errors.As(err, &u) || u.Accepted || u.Invalid || u.RetryAfter == 0 {
				t.Errorf("answered %v, want HTTP 503 with a time to try again", err)
			}
			if got.Outcome != tt.outcome || strings.Contains(log.String(), "level=ERROR") != (tt.outcome == "fault") {
				t.Errorf("outcome %s, want %s; logged %q", got.Outcome, tt.outcome, &log)
			}
		})
	}
}
