package storetest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// Mutant is an engine made wrong in one way. A suite or a harness that does not notice it is worth nothing.
type Mutant struct {
	Name string
	Wrap func(store.Driver) store.Driver
}

// Mutants returns engines that [Run] must fail.
func Mutants() []Mutant {
	return []Mutant{
		{"drops a message", func(d store.Driver) store.Driver { return dropsMessage{d} }},
		{"overwrites what changed", func(d store.Driver) store.Driver { return overwrites{d} }},
		{"sends before it commits", func(d store.Driver) store.Driver { return sendsFirst{d} }},
		{"keeps blobs of refused commits", func(d store.Driver) store.Driver { return keepsBlobs{d} }},
		{"delivers to two", func(d store.Driver) store.Driver { return noLease{d} }},
		{"forgets attempts", func(d store.Driver) store.Driver { return forgetsAttempts{d} }},
		{"does not remove acknowledged messages", func(d store.Driver) store.Driver { return neverAcks{d} }},
		{"ignores due times", func(d store.Driver) store.Driver { return ignoresDue{d} }},
		{"loses the end of a page", func(d store.Driver) store.Driver { return losesPages{d} }},
		{"reads what was there before", func(d store.Driver) store.Driver { return stale{d} }},
		{"keeps deleted rows listed", func(d store.Driver) store.Driver { return keepsListing{d} }},
	}
}

type dropsMessage struct{ store.Driver }

func (m dropsMessage) Commit(ctx context.Context, c store.Change) (uint64, error) {
	if len(c.Messages) > 1 {
		c.Messages = c.Messages[1:]
	}
	return m.Driver.Commit(ctx, c)
}

type overwrites struct{ store.Driver }

func (m overwrites) Commit(ctx context.Context, c store.Change) (uint64, error) {
	row, err := m.Driver.Get(ctx, c.Row.Key)
	if err == nil {
		c.Row.Version = row.Version
	}
	return m.Driver.Commit(ctx, c)
}

type sendsFirst struct{ store.Driver }

func (m sendsFirst) Commit(ctx context.Context, c store.Change) (uint64, error) {
	for i := range c.Messages {
		_, err := m.Driver.Commit(ctx, store.Change{
			Row:      store.Row{Key: store.Key{Partition: "outbox of " + c.Row.Key.String(), Sort: time.Duration(i).String()}},
			Messages: c.Messages[i : i+1],
		})
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
	}
	c.Messages = nil
	return m.Driver.Commit(ctx, c)
}

type keepsBlobs struct{ store.Driver }

func (m keepsBlobs) Commit(ctx context.Context, c store.Change) (uint64, error) {
	for _, b := range c.Blobs {
		if err := store.PutBlob(ctx, m.Driver, b); err != nil {
			return 0, err
		}
	}
	c.Blobs = nil
	return m.Driver.Commit(ctx, c)
}

type noLease struct{ store.Driver }

func (m noLease) Receive(ctx context.Context, queue string, limit int, _ time.Duration) ([]store.Delivery, error) {
	return m.Driver.Receive(ctx, queue, limit, 0)
}

type forgetsAttempts struct{ store.Driver }

func (m forgetsAttempts) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	ds, err := m.Driver.Receive(ctx, queue, limit, lease)
	for i := range ds {
		ds[i].Attempt = 1
	}
	return ds, err
}

type neverAcks struct{ store.Driver }

func (neverAcks) Ack(context.Context, store.Delivery) error { return nil }

type ignoresDue struct{ store.Driver }

func (m ignoresDue) Commit(ctx context.Context, c store.Change) (uint64, error) {
	c.Messages = slices.Clone(c.Messages)
	for i := range c.Messages {
		c.Messages[i].Due = time.Time{}
	}
	return m.Driver.Commit(ctx, c)
}

type losesPages struct{ store.Driver }

func (m losesPages) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	page, err := m.Driver.Query(ctx, partition, prefix, cursor, limit)
	if len(page.Rows) > 3 {
		page.Next = ""
	}
	return page, err
}

// stale does not know the latest commit when it reads.
type stale struct{ store.Driver }

func (m stale) Get(ctx context.Context, key store.Key) (store.Row, error) {
	row, err := m.Driver.Get(ctx, key)
	if err == nil && row.Version > 1 {
		row.Version--
	}
	return row, err
}

type keepsListing struct{ store.Driver }

func (m keepsListing) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	page, err := m.Driver.Scan(ctx, index, from, cursor, limit)
	if err == nil && len(page.Rows) == 0 && index == "x" {
		page.Rows = []store.Row{{Key: store.Key{Partition: "deleted"}, Version: 1, Listing: store.Listing{Index: index}}}
	}
	return page, err
}
