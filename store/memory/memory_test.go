package memory_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

func harness(o memory.Options, wrap func(store.Driver) store.Driver) storetest.Harness {
	clock := storetest.NewClock()
	o.Now = clock.Now
	engine := memory.New(o)
	return storetest.Harness{Clock: clock, Open: func(testing.TB) store.Driver {
		engine = engine.Reopen()
		return wrap(engine)
	}}
}

func same(d store.Driver) store.Driver { return d }

func TestEngine(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Harness { return harness(memory.Options{}, same) })
}

func TestEngineShuffled(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Harness {
		return harness(memory.Options{Rand: rand.New(rand.NewPCG(1, 2)), IndexLagCommits: -1}, same)
	})
}

// A faulty wrapper without faults is an engine.
func TestFaultyWithoutFaults(t *testing.T) {
	none := func(storetest.Call) storetest.Fault { return storetest.None }
	storetest.Run(t, func(*testing.T) storetest.Harness {
		return harness(memory.Options{}, func(d store.Driver) store.Driver { return storetest.NewFaulty(d, none) })
	})
}

const mutantVar = "STORETEST_MUTANT"

// TestMutants runs the suite on engines that are wrong, each in a process of its own that has to fail.
func TestMutants(t *testing.T) {
	for _, m := range storetest.Mutants() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOneMutant$", "-test.v", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), mutantVar+"="+m.Name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(string(out), "--- FAIL: TestOneMutant/") {
				t.Fatalf("the suite did not notice (%v)", err)
			}
			var failed []string
			for line := range strings.Lines(string(out)) {
				if name, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: TestOneMutant/"); ok {
					failed = append(failed, strings.Fields(name)[0])
				}
			}
			t.Logf("caught by %s", strings.Join(failed, ", "))
		})
	}
}

func TestOneMutant(t *testing.T) {
	name := os.Getenv(mutantVar)
	if name == "" {
		t.Skip("run by TestMutants")
	}
	for _, m := range storetest.Mutants() {
		if m.Name == name {
			storetest.Run(t, func(*testing.T) storetest.Harness { return harness(memory.Options{}, m.Wrap) })
			return
		}
	}
}

func commit(t *testing.T, d store.Driver, sort string, version uint64, l store.Listing, ms ...store.Message) {
	t.Helper()
	row := store.Row{Key: store.Key{Partition: "p", Sort: sort}, Version: version, Listing: l}
	if _, err := d.Commit(t.Context(), store.Change{Row: row, Messages: ms}); err != nil {
		t.Fatal(err)
	}
}

func listed(t *testing.T, d store.Driver) string {
	t.Helper()
	page, err := d.Scan(t.Context(), "x", "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, r := range page.Rows {
		s = append(s, fmt.Sprint(r.Sort, r.Version))
	}
	return strings.Join(s, " ")
}

func TestIndexIsLate(t *testing.T) {
	x := store.Listing{Index: "x"}
	clock := storetest.NewClock()
	e := memory.New(memory.Options{Now: clock.Now, IndexLag: time.Second, IndexLagCommits: 2})
	want := func(when, want string) {
		t.Helper()
		if got := listed(t, e); got != want {
			t.Errorf("%s: listed %q, want %q", when, got, want)
		}
	}
	commit(t, e, "a", 0, x)
	want("at once", "")
	clock.Advance(time.Second)
	want("after the lag", "a1")
	commit(t, e, "a", 1, x)
	commit(t, e, "b", 0, x)
	want("still as it was", "a1")
	commit(t, e, "c", 0, store.Listing{})
	want("the commit before the last two shows", "a2")
	commit(t, e, "b", 1, store.Listing{})
	want("and the next: unlisted already, but who knows", "a2 b1")
	clock.Advance(time.Second)
	want("in the end", "a2")

	now := memory.New(memory.Options{Now: clock.Now, IndexLag: -1})
	commit(t, now, "a", 0, x)
	if got := listed(t, now); got != "a1" {
		t.Errorf("without a lag: listed %q", got)
	}
}

func TestReopenFencesTheOldOpening(t *testing.T) {
	clock := storetest.NewClock()
	old := memory.New(memory.Options{Now: clock.Now})
	commit(t, old, "a", 0, store.Listing{})
	e := old.Reopen()
	row := store.Row{Key: store.Key{Partition: "p", Sort: "b"}}
	if _, err := old.Commit(t.Context(), store.Change{Row: row}); err == nil {
		t.Error("a process that was killed committed")
	}
	if _, err := e.Get(t.Context(), store.Key{Partition: "p", Sort: "a"}); err != nil {
		t.Errorf("what was committed: %v", err)
	}
}

func TestNextEvent(t *testing.T) {
	clock := storetest.NewClock()
	begin := clock.Now()
	e := memory.New(memory.Options{Now: clock.Now, IndexLag: 10 * time.Second})
	next := func(want time.Duration) {
		t.Helper()
		at, ok := e.NextEvent()
		if got := at.Sub(begin); !ok || got != want {
			t.Errorf("next event after %v (%v), want %v", got, ok, want)
		}
		clock.Advance(at.Sub(clock.Now()))
	}
	if at, ok := e.NextEvent(); ok {
		t.Errorf("event in an empty engine at %v", at)
	}
	commit(t, e, "a", 0, store.Listing{Index: "x"}, store.Message{Queue: "q"}, store.Message{Queue: "r", Due: begin.Add(20 * time.Second)})
	if got := e.Receivable(); !slices.Equal(got, []string{"q"}) {
		t.Errorf("receivable: %v", got)
	}
	if ds, err := e.Receive(t.Context(), "q", 1, 5*time.Second); err != nil || len(ds) != 1 {
		t.Fatalf("received %v, %v", ds, err)
	}
	next(5 * time.Second)
	next(10 * time.Second)
	next(20 * time.Second)
	if got := e.Receivable(); !slices.Equal(got, []string{"q", "r"}) {
		t.Errorf("receivable: %v", got)
	}
	if at, ok := e.NextEvent(); ok {
		t.Errorf("event at %v", at)
	}
}

func TestShuffleFollowsTheSeed(t *testing.T) {
	order := func(seed uint64) string {
		clock := storetest.NewClock()
		e := memory.New(memory.Options{Now: clock.Now, Rand: rand.New(rand.NewPCG(seed, 0))})
		for i := range 20 {
			commit(t, e, fmt.Sprint(i), 0, store.Listing{}, store.Message{Queue: "q", Body: fmt.Append(nil, i)})
		}
		var s []string
		for range 20 {
			ds, err := e.Receive(t.Context(), "q", 1, time.Hour)
			if err != nil || len(ds) != 1 {
				t.Fatalf("received %v, %v", ds, err)
			}
			s = append(s, string(ds[0].Body))
		}
		return strings.Join(s, " ")
	}
	if a, b := order(1), order(1); a != b {
		t.Errorf("the same seed gives\n%s\n%s", a, b)
	}
	if a, b := order(1), order(2); a == b {
		t.Errorf("two seeds give %s", a)
	}
}

// The ordered map under everything, over many chunks: rows arrive and go in shuffled order.
func TestManyRows(t *testing.T) {
	clock := storetest.NewClock()
	e := memory.New(memory.Options{Now: clock.Now, IndexLag: -1})
	r := rand.New(rand.NewPCG(7, 7))
	const n = 3000
	for _, i := range r.Perm(n) {
		commit(t, e, fmt.Sprintf("%05d", i), 0, store.Listing{Index: "x", Sort: fmt.Sprintf("%05d", n-i)})
	}
	count := func() (rows, entries int) {
		t.Helper()
		for rec, err := range all(t, e) {
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%05d", rows); rows < n && rec.Sort < want {
				t.Fatalf("row %s at place %d", rec.Sort, rows)
			}
			rows++
		}
		last := ""
		for cursor := ""; ; {
			page, err := e.Scan(t.Context(), "x", "", cursor, 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				if row.Listing.Sort <= last {
					t.Fatalf("%s is listed after %s", row.Listing.Sort, last)
				}
				last = row.Listing.Sort
			}
			entries += len(page.Rows)
			if cursor = page.Next; cursor == "" {
				return rows, entries
			}
		}
	}
	if rows, entries := count(); rows != n || entries != n {
		t.Errorf("%d rows, %d entries", rows, entries)
	}
	for _, i := range r.Perm(n)[:n-10] {
		row := store.Row{Key: store.Key{Partition: "p", Sort: fmt.Sprintf("%05d", i)}, Version: 1}
		if _, err := e.Commit(t.Context(), store.Change{Row: row, Delete: true}); err != nil {
			t.Fatal(err)
		}
	}
	if rows, entries := count(); rows != 10 || entries != 10 {
		t.Errorf("%d rows, %d entries after deletions", rows, entries)
	}
}

func all(t *testing.T, e *memory.Engine) func(yield func(store.Row, error) bool) {
	return func(yield func(store.Row, error) bool) {
		for cursor := ""; ; {
			page, err := e.Query(t.Context(), "p", "", cursor, 100)
			if err != nil {
				yield(store.Row{}, err)
				return
			}
			for _, row := range page.Rows {
				if !yield(row, nil) {
					return
				}
			}
			if cursor = page.Next; cursor == "" {
				return
			}
		}
	}
}
