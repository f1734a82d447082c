package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// readiness tells whether a role's engine still commits: a full disk, for one, leaves reads as they are and stops the role. It finds out by a
// commit of its own, at most one in readyEvery, whoever asks.
type readiness struct {
	rows store.Table[probe]
	now  func() time.Time
	log  *slog.Logger

	mu  sync.Mutex
	at  time.Time // of the last commit
	err error     // of it
}

// probe is the row that is written, under `ready`.
type probe struct {
	At int64 `cbor:"a"` // milliseconds since the Unix epoch
}

const (
	readyEvery    = 5 * time.Second
	readyPatience = 5 * time.Second
)

func newReadiness(rows store.Rows, now func() time.Time, log *slog.Logger) *readiness {
	return &readiness{rows: store.NewTable[probe](rows), now: now, log: log}
}

// check returns nil if the role can do its work. The error is told to whoever asks.
func (r *readiness) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if !r.at.IsZero() && now.Sub(r.at) < readyEvery {
		return r.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	_, err := r.rows.Update(ctx, store.Key{Partition: "ready"}, func(rec *store.Record[probe], _ *store.Effects) error {
		rec.Value.At = now.UnixMilli()
		return nil
	})
	r.at, r.err = now, nil
	if err != nil {
		r.log.Error("the database does not take commits", "err", err)
		r.err = errors.New("the database does not take commits")
	}
	return r.err
}

// unlessDraining is a check that says no as soon as the process was asked to end: load balancers send their requests to others.
func (n *node) unlessDraining(check func() error) func() error {
	return func() error {
		if n.draining.Load() {
			return errors.New("it was asked to end")
		}
		return check()
	}
}
