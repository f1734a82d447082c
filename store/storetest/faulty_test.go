package storetest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

func newEngine() *memory.Engine {
	return memory.New(memory.Options{Now: storetest.NewClock().Now, IndexLag: -1})
}

func change(sort string, version uint64) store.Change {
	return store.Change{
		Row:      store.Row{Key: store.Key{Partition: "p", Sort: sort}, Version: version, Listing: store.Listing{Index: "x", Sort: sort}},
		Messages: []store.Message{{Queue: "q"}},
	}
}

func TestFaultsOfACommit(t *testing.T) {
	for _, tc := range []struct {
		fault     storetest.Fault
		err       error
		persisted bool
	}{
		{storetest.None, nil, true},
		{storetest.FailBefore, storetest.ErrInjected, false},
		{storetest.FailAfter, storetest.ErrInjected, true},
		{storetest.ReportConflict, store.ErrConflict, true},
	} {
		t.Run(tc.fault.String(), func(t *testing.T) {
			ctx := t.Context()
			e := newEngine()
			f := storetest.NewFaulty(e, storetest.When(storetest.Commits, 2, tc.fault))
			if _, err := f.Commit(ctx, change("first", 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Commit(ctx, change("s", 0)); !errors.Is(err, tc.err) {
				t.Errorf("commit: %v, want %v", err, tc.err)
			}
			_, err := e.Get(ctx, store.Key{Partition: "p", Sort: "s"})
			if persisted := err == nil; persisted != tc.persisted || e.Waiting()["q"] == 2 != tc.persisted {
				t.Errorf("row: %v, messages: %v", err, e.Waiting())
			}
			// A commit that is refused stays refused, whatever the fault.
			f = storetest.NewFaulty(e, storetest.Nth(1, tc.fault))
			if v, err := f.Commit(ctx, change("first", 7)); err == nil {
				t.Errorf("stale commit gives version %d", v)
			}
		})
	}
}

func TestDuplicateDelivery(t *testing.T) {
	ctx := t.Context()
	e := newEngine()
	f := storetest.NewFaulty(e, storetest.Nth(2, storetest.Duplicate))
	if _, err := f.Commit(ctx, change("s", 0)); err != nil {
		t.Fatal(err)
	}
	var ends []error
	for range 2 {
		ds, err := f.Receive(ctx, "q", 1, time.Minute)
		if err != nil || len(ds) != 1 {
			t.Fatalf("received %v, %v", ds, err)
		}
		ends = append(ends, f.Ack(ctx, ds[0]))
	}
	if ends[0] != nil || !errors.Is(ends[1], store.ErrLeaseLost) {
		t.Errorf("acknowledgements: %v", ends)
	}
	if ds, err := f.Receive(ctx, "q", 1, time.Minute); err != nil || len(ds) != 0 {
		t.Errorf("received %v, %v", ds, err)
	}
}

func TestRandomFollowsTheSeed(t *testing.T) {
	run := func(seed uint64) string {
		choose := storetest.Random(rand.New(rand.NewPCG(seed, 0)), 0.3, storetest.FailBefore, storetest.FailAfter)
		var s strings.Builder
		for range 100 {
			fmt.Fprint(&s, int(choose(storetest.Call{})))
		}
		return s.String()
	}
	a := run(1)
	if a != run(1) || a == run(2) || strings.Count(a, "0") < 50 || !strings.Contains(a, "1") || !strings.Contains(a, "2") {
		t.Errorf("faults %s", a)
	}
}

func TestLateIndex(t *testing.T) {
	ctx := t.Context()
	l := storetest.NewLateIndex(newEngine(), 2)
	var got []string
	for _, sort := range []string{"a", "b", "c", "d"} {
		if _, err := l.Commit(ctx, change(sort, 0)); err != nil {
			t.Fatal(err)
		}
		page, err := l.Scan(ctx, "x", "", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(len(page.Rows)))
	}
	if s := strings.Join(got, " "); s != "0 0 1 2" {
		t.Errorf("rows seen after each commit: %s", s)
	}
}

// The consumer under a fault at each call: the message's work is done, and the queue is empty in the end.
func TestSweepConsumer(t *testing.T) {
	counters := store.NewQueue[string]("count")
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	runs := 0
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		runs++
		ctx := t.Context()
		clock := storetest.NewClock()
		engine := memory.New(memory.Options{Now: clock.Now})
		faulty := storetest.NewFaulty(engine, choose)
		rows := store.NewTable[map[string]bool](faulty)
		total := store.Key{Partition: "total"}

		consumer, err := store.NewConsumer(store.ConsumerOptions{
			Driver: faulty, Queue: counters.Name, Now: clock.Now, Rand: func() float64 { return 0 }, Lease: time.Minute,
			Handle: counters.Handler(func(ctx context.Context, id string) error {
				_, err := rows.Update(ctx, total, func(rec *store.Record[map[string]bool], fx *store.Effects) error {
					if rec.Value[id] {
						return store.ErrUnchanged
					}
					if rec.Value == nil {
						rec.Value = make(map[string]bool)
					}
					rec.Value[id] = true
					fx.Messages = append(fx.Messages, store.Message{Queue: "counted"})
					return nil
				})
				return err
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		var fx store.Effects
		counters.Send(&fx, "one")
		counters.Send(&fx, "two")
		if _, err := engine.Commit(ctx, store.Change{Row: store.Row{Key: store.Key{Partition: "p"}}, Messages: fx.Messages}); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := consumer.Step(ctx); err != nil && !errors.Is(err, storetest.ErrInjected) {
				t.Fatal(err)
			}
			clock.Advance(time.Minute)
		}
		rec, err := store.NewTable[map[string]bool](engine).Get(ctx, total)
		if err != nil || len(rec.Value) != 2 || rec.Version != 2 {
			t.Errorf("counted %+v, %v", rec, err)
		}
		if w := engine.Waiting(); w[counters.Name] != 0 || w["counted"] != 2 {
			t.Errorf("waiting %v", w)
		}
	})
	want := 4 * 8
	if testing.Short() {
		want = 4 * 2 // most calls are left out
	}
	if runs < want {
		t.Errorf("the sweep made %d runs", runs)
	}
}
