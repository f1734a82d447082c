package roles

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
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

// TestWaiting: a call that waits is made again when a row of its task has changed, and when some time has passed; not when other rows change. It is made a
// last time when patience is over, and then no longer waits.
func TestWaiting(t *testing.T) {
	const patience = 20 * time.Second
	type called struct{ waits bool }
	for _, tt := range []struct {
		name   string
		ends   int  // the call that has the answer; 0: none
		over   bool // patience ends after the second call
		pauses bool // rather than rows of the task changing, time passes
		want   []called
	}{
		{"a row changes", 2, false, false, []called{{true}, {true}}},
		{"time passes", 3, false, true, []called{{true}, {true}, {true}}},
		{"too late", 0, true, false, []called{{true}, {true}, {false}}},
		{"just in time", 3, true, false, []called{{true}, {true}, {false}}},
		{"the process ends", 0, false, false, []called{{true}, {true}, {false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			changes := new(Changes)
			rows := changes.Watch(memory.New(memory.Options{Now: time.Now}))
			commit := func(partition string) {
				if _, err := rows.Commit(t.Context(), store.Change{Row: store.Row{Key: store.Key{Partition: partition, Sort: rand.Text()}}}); err != nil {
					t.Error(err)
				}
			}
			over, ending := make(chan time.Time, 1), make(chan struct{})
			var calls []called
			s := NewServer(Server{
				Name: "test", Signer: w.service, Authority: w.Authority, Changes: changes, Patience: patience, Log: slog.New(slog.DiscardHandler), Ending: ending,
				After: func(d time.Duration) <-chan time.Time {
					if d == patience {
						return over
					}
					if !tt.pauses {
						return nil
					}
					passed := make(chan time.Time, 1)
					passed <- time.Time{}
					return passed
				},
				Service: methodOnly{ability: "test/wait", method: func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
					calls = append(calls, called{inv.Waits})
					if len(calls) == tt.ends {
						return capabilities.Issue(w.service, inv.Link(), &ucan.ConcludeOK{}, capabilities.Effects{})
					}
					commit("task/another")
					if len(calls) == 2 && tt.over {
						over <- time.Time{}
					} else if len(calls) == 2 && tt.ends == 0 {
						close(ending)
					} else if !tt.pauses {
						commit("job/" + inv.Link().String())
					}
					return nil, &capabilities.Unavailable{Accepted: true, Reason: "soon"}
				}},
			})
			m, _ := send(t, spec{issuer: w.service, audience: w.service.DID(), caps: can("test/wait", w.service.DID())}.sign(t))
			r, err := s.run(t.Context(), m, m.Invocations()[0])
			if (r != nil) != (tt.ends > 0) || (err == nil) != (tt.ends > 0) {
				t.Errorf("answered %v, %v", r, err)
			}
			if !slices.Equal(calls, tt.want) {
				t.Errorf("calls %+v, want %+v", calls, tt.want)
			}
			if len(changes.of) != 0 {
				t.Errorf("still waited for: %v", changes.of)
			}
		})
	}
}
