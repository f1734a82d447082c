package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/store"
)

// What an engine keeps in memory must not show: reads are as if each went to the database.

func TestReadsShowWhatWasCommitted(t *testing.T) {
	const keys, workers, steps = 8, 6, 40
	ctx := t.Context()
	dir := t.TempDir()
	e := openTest(t, dir, Options{})
	key := func(i int) store.Key { return store.Key{Partition: "p", Sort: fmt.Sprint(i)} }
	spoil := errors.New("spoilt")
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range steps {
				k := key(r.IntN(keys))
				row, err := e.Get(ctx, k)
				if errors.Is(err, store.ErrNotFound) {
					row, err = store.Row{Key: k}, nil
				}
				if err != nil {
					t.Error(err)
					return
				}
				if r.IntN(8) == 0 { // the batch that this is in is rolled back, and done again change by change
					if err := e.write(ctx, changeFunc(func(*writer) error { return spoil })); !errors.Is(err, spoil) {
						t.Errorf("a change that fails: %v", err)
					}
				}
				change := store.Change{Row: row, Delete: row.Version > 0 && r.IntN(4) == 0}
				// Large enough for what is kept to be replaced.
				change.Row.Value = bytes.Repeat([]byte{byte(r.Int())}, r.IntN(128<<10))
				change.Row.Listing = store.Listing{Index: []string{"", "i"}[r.IntN(2)]}
				version, err := e.Commit(ctx, change)
				if errors.Is(err, store.ErrConflict) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				clear(change.Row.Value) // ours again
				after, err := e.Get(ctx, k)
				switch {
				case err == nil && after.Version == 0:
					t.Error("a row that is not there is read")
				case err == nil && after.Version < version && !change.Delete && after.Version != 1: // 1: deleted and created again
					t.Errorf("version %d is read after %d was committed", after.Version, version)
				case err == nil && after.Version == version && !change.Delete && len(after.Value) > 0:
					after.Value[0]++ // ours as well
				case err != nil && !errors.Is(err, store.ErrNotFound):
					t.Error(err)
				}
			}
		})
	}
	group.Wait()

	read := func(e *Engine) (rows []store.Row) {
		for i := range keys {
			row, err := e.Get(ctx, key(i))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
		return rows
	}
	before := read(e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(read(openTest(t, dir, Options{})), before); diff != "" {
		t.Errorf("what was read is not what is in the database (-database +read):\n%s", diff)
	}
}

func TestReceiveMissesNothing(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1_700_000_000, 0)
	e := openTest(t, t.TempDir(), Options{Now: func() time.Time { return now }})
	next := 0
	send := func(due time.Time) {
		t.Helper()
		next++
		c := row(fmt.Sprint(next), 0)
		c.Messages = []store.Message{{Queue: "q", Body: fmt.Append(nil, next), Due: due}}
		if _, err := e.Commit(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) store.Delivery {
		t.Helper()
		got, err := e.Receive(ctx, "q", 1, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			got = []store.Delivery{{}}
		}
		if string(got[0].Body) != want {
			t.Fatalf("received %q, want %q", got[0].Body, want)
		}
		return got[0]
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	expect("")
	send(now.Add(time.Hour))
	expect("")
	send(now.Add(30 * time.Second)) // earlier than what the queue has
	expect("")
	now = now.Add(30 * time.Second)
	d := expect("2")
	expect("")
	must(e.Extend(ctx, d, 2*time.Minute))
	now = now.Add(time.Minute + time.Second)
	expect("")
	now = now.Add(time.Minute)
	d = expect("2") // the lease has ended
	expect("")
	must(e.Retry(ctx, d, 10*time.Second))
	expect("")
	now = now.Add(10 * time.Second)
	d = expect("2")
	must(e.Retry(ctx, d, 0))
	d = expect("2")
	must(e.Ack(ctx, d))
	expect("")

	// A receipt that does not come about takes nothing away.
	send(time.Time{})
	failed := errors.New("failed")
	err := e.write(ctx, changeFunc(func(w *writer) error {
		if err := (&receive{queue: "q", limit: 5, lease: time.Minute}).apply(w); err != nil {
			return err
		}
		return failed
	}))
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	must(e.Ack(context.WithoutCancel(ctx), expect("3")))
	expect("")
	now = now.Add(time.Hour)
	expect("1")
}

func TestRowsOfAllKinds(t *testing.T) {
	few := []string{"a", "a!x", "a/", "a/x", "a/x/y", "a0", "a0/x", "ab/x", "/x"}
	var many []string
	for i := range maxKinds + 10 {
		many = append(many, fmt.Sprintf("%d/x", i))
	}
	absent := []string{"", "A/x", "a\x00", "b/x", "ab", "0", "\xff/x"}
	for name, test := range map[string]struct {
		partitions []string
		spared     bool // the database is not asked for what is absent
	}{
		"none": {nil, true},
		"few":  {few, true},
		"many": {many, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			dir := t.TempDir()
			e := openTest(t, dir, Options{})
			count := func(partition string) int {
				_, err := e.Get(ctx, store.Key{Partition: partition})
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Error(err)
				}
				page, pageErr := e.Query(ctx, partition, "", "", 10)
				if pageErr != nil {
					t.Error(pageErr)
				}
				if (err == nil) != (len(page.Rows) > 0) {
					t.Errorf("partition %q: %v, but %d rows in it", partition, err, len(page.Rows))
				}
				return len(page.Rows)
			}
			var group sync.WaitGroup
			for w := range 8 { // several kinds are new in one transaction
				group.Go(func() {
					for i := w; i < len(test.partitions); i += 8 {
						partition := test.partitions[i]
						if n := count(partition); n != 0 {
							t.Errorf("partition %q has %d rows before it has any", partition, n)
						}
						if _, err := e.Commit(ctx, store.Change{Row: store.Row{Key: store.Key{Partition: partition}}}); err != nil {
							t.Error(err)
						}
						if n := count(partition); n != 1 {
							t.Errorf("partition %q has %d rows after a commit, not 1", partition, n)
						}
					}
				})
			}
			group.Wait()
			for range 2 {
				for _, partition := range test.partitions {
					e.writer.cache.drop(store.Key{Partition: partition})
					if n := count(partition); n != 1 {
						t.Errorf("partition %q has %d rows, not 1", partition, n)
					}
				}
				for _, partition := range absent {
					if n := count(partition); n != 0 {
						t.Errorf("partition %q has %d rows, but none was written", partition, n)
					}
					if test.spared == e.writer.kinds.has(partition) {
						t.Errorf("partition %q: the database is asked: %v", partition, !test.spared)
					}
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				if _, err := e.Query(ctx, "none of this kind", "", "", 1); !errors.Is(err, errClosed) {
					t.Errorf("a query of a closed engine: %v", err)
				}
				e = openTest(t, dir, Options{})
			}
		})
	}
}
