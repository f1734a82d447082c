package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// noDead is an engine on which no dead letter can be written, as long as full says so.
type noDead struct {
	store.Driver
	full bool
}

func (d *noDead) Commit(ctx context.Context, c store.Change) (uint64, error) {
	if d.full && c.Row.Partition == "dead" {
		return 0, errors.New("no space left on device")
	}
	return d.Driver.Commit(ctx, c)
}

// TestDeadLetterThatCannotBeWritten: the message stays until its dead letter is there, however often that fails.
func TestDeadLetterThatCannotBeWritten(t *testing.T) {
	b := newBench(func(context.Context, store.Delivery) error { return errors.New("no") })
	engine := &noDead{b.engine, true}
	b.options.Driver, b.options.Attempts = engine, 1
	b.options.OnDead = func(context.Context, store.Delivery, error) error {
		if engine.full {
			t.Error("the work was ended without a dead letter")
		}
		return nil
	}
	c := b.consumer(t)
	send(t, b.engine, 1)
	for range 3 {
		step(t, c, true)
		b.Advance(time.Hour)
	}
	if b.results() != "retried retried retried" || b.engine.Waiting()[jobs.Name] != 1 {
		t.Fatalf("results %s, waiting %v", b.results(), b.engine.Waiting())
	}
	engine.full = false
	step(t, c, true)
	letters, _, err := store.ListDead(t.Context(), b.engine, jobs.Name, "", 0)
	if err != nil || len(letters) != 1 || b.engine.Waiting()[jobs.Name] != 0 {
		t.Errorf("%d dead letters, %v, waiting %v", len(letters), err, b.engine.Waiting())
	}
}

// TestWriteDead: a dead letter is written once, and retried like any other.
func TestWriteDead(t *testing.T) {
	b := newBench(func(context.Context, store.Delivery) error { return nil })
	for round := range 2 {
		created, err := store.WriteDead(t.Context(), b.engine, "id", store.DeadLetter{Queue: jobs.Name, Body: []byte{1}, Error: "crashed"})
		if err != nil || created != (round == 0) {
			t.Fatalf("round %d: created %v, %v", round, created, err)
		}
	}
	if err := store.RetryDead(t.Context(), b.engine, jobs.Name+"/id"); err != nil || b.engine.Waiting()[jobs.Name] != 1 {
		t.Errorf("retried: %v, waiting %v", err, b.engine.Waiting())
	}
}
