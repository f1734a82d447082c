package sqlite

import (
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// TestLeasesEndWithTheProcess: what a process had in its hands when it died is received again without waiting for the leases to end, and what may have
// killed it comes back slower each time.
func TestLeasesEndWithTheProcess(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dir := t.TempDir()
	var e *Engine
	restart := func() {
		t.Helper()
		if e != nil {
			if err := e.Close(); err != nil { // gives nothing back by itself
				t.Fatal(err)
			}
		}
		var err error
		if e, err = Open(dir, Options{Now: func() time.Time { return now }}); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(queue string, want ...string) {
		t.Helper()
		ds, err := e.Receive(t.Context(), queue, 10, time.Minute)
		if err != nil || len(ds) != len(want) {
			t.Fatalf("received %+v, %v from %s, want %q", ds, err, queue, want)
		}
		for i, d := range ds {
			if string(d.Body) != want[i] {
				t.Errorf("received %q from %s, want %q", d.Body, queue, want[i])
			}
		}
	}
	restart()
	_, err := e.Commit(t.Context(), store.Change{Row: store.Row{Key: store.Key{Partition: "p"}}, Messages: []store.Message{
		{Queue: "a", Body: []byte("1")}, {Queue: "b", Body: []byte("2")}, {Queue: "c", Body: []byte("later"), Due: now.Add(time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	receive("a", "1")
	receive("b", "2")
	receive("a")

	restart()
	receive("a", "1")
	receive("b", "2")
	receive("c")

	restart() // both were out for the second time
	receive("a")
	now = now.Add(time.Second)
	receive("a", "1")
	for range 10 {
		restart()
		now = now.Add(time.Minute)
		receive("a", "1")
	}
	restart()
	now = now.Add(time.Minute - time.Millisecond)
	receive("a")
	now = now.Add(time.Millisecond)
	receive("a", "1") // no later than when the lease would have ended
	now = now.Add(time.Hour)
	receive("c", "later")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
