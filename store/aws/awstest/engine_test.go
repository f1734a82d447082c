package awstest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// TestEngine: an engine for simulations is an engine.
func TestEngine(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		clock := storetest.NewClock()
		e := awstest.Open(t, awstest.Simulation{Options: awstest.Options{Now: clock.Now}, Seed: 1})
		return storetest.Harness{Clock: clock, Open: func(testing.TB) store.Driver {
			e = e.Reopen()
			return e
		}}
	})
}

func change(i int, ms ...store.Message) store.Change {
	return store.Change{Row: store.Row{Key: store.Key{Partition: "p", Sort: fmt.Sprint(i)}}, Messages: ms}
}

// play commits messages while requests fail, with a crash in the middle of each third commit, and receives and acknowledges them. It returns what was
// received, and when.
func play(t *testing.T, seed uint64) (story []string) {
	t.Helper()
	clock := storetest.NewClock()
	begin := clock.Now()
	e := awstest.Open(t, awstest.Simulation{Options: awstest.Options{Now: clock.Now}, Seed: seed, Faults: 0.3, Late: true})
	promised := map[string]bool{}
	for i := range 12 {
		now, late := fmt.Sprint("now", i), fmt.Sprint("late", i)
		if i%3 == 2 {
			e.Interrupt(i % 5)
		}
		_, err := e.Commit(t.Context(), change(i, store.Message{Queue: "q", Body: []byte(now)},
			store.Message{Queue: "r", Body: []byte(late), Due: begin.Add(time.Duration(i) * time.Hour)}))
		if err == nil {
			promised[now], promised[late] = true, true
		} else if i%3 != 2 {
			t.Errorf("commit %d: %v", i, err)
		}
		if i%3 == 2 {
			dead := e
			e = e.Reopen()
			if _, err := dead.Get(context.Background(), change(i).Row.Key); err == nil {
				t.Error("a process that was killed reads on")
			}
		}
	}
	for {
		for _, queue := range e.Receivable() {
			ds, err := e.Receive(t.Context(), queue, 10, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				if clock.Now().Before(d.Due) {
					t.Errorf("%s came at %s, due at %s", d.Body, clock.Now(), d.Due)
				}
				delete(promised, string(d.Body))
				story = append(story, fmt.Sprint(clock.Now().Sub(begin), queue, string(d.Body), d.ID))
				if err := e.Ack(t.Context(), d); err != nil && !errors.Is(err, store.ErrLeaseLost) {
					t.Logf("not acknowledged: %v", err)
				}
			}
		}
		at, ok := e.NextEvent()
		if !ok {
			break
		}
		clock.Advance(at.Sub(clock.Now()))
	}
	if len(promised) != 0 {
		t.Errorf("never came: %v", slices.Sorted(maps.Keys(promised)))
	}
	if left := e.Waiting(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	return story
}

// TestSimulation: what was promised comes, whatever fails in between, and the same seed tells the same story.
func TestSimulation(t *testing.T) {
	stories := map[string]bool{}
	for seed := range uint64(20) {
		first, again := play(t, seed), play(t, seed)
		if !slices.Equal(first, again) {
			t.Errorf("seed %d tells two stories:\n%q\n%q", seed, first, again)
		}
		stories[fmt.Sprint(first)] = true
	}
	if len(stories) != 20 {
		t.Errorf("20 seeds tell %d stories", len(stories))
	}
}

// TestIndexLag: an index shows a row when the lag is over, or enough was written after it, and the simulation knows when.
func TestIndexLag(t *testing.T) {
	clock := storetest.NewClock()
	e := awstest.Open(t, awstest.Simulation{Options: awstest.Options{Now: clock.Now, IndexLag: time.Second, IndexLagCommits: 3}})
	commit := func(i int) {
		c := change(i)
		c.Row.Listing = store.Listing{Index: "x"}
		if _, err := e.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	want := func(n int) {
		t.Helper()
		page, err := e.Scan(t.Context(), "x", "", "", 0)
		if err != nil || len(page.Rows) != n {
			t.Errorf("%d rows, %v, want %d", len(page.Rows), err, n)
		}
	}
	commit(0)
	want(0)
	at, ok := e.NextEvent()
	if !ok || at.Sub(clock.Now()) != time.Second {
		t.Errorf("next event at %s, %v", at, ok)
	}
	clock.Advance(time.Second)
	want(1)
	for i := range 4 {
		commit(i + 1)
	}
	want(2)
}
