package sqlite_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/sqlite"
)

func openBench(b *testing.B) *sqlite.Engine {
	b.Helper()
	e, err := sqlite.Open(b.TempDir(), sqlite.Options{Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	return e
}

// concurrently runs b.N calls in n goroutines.
func concurrently(b *testing.B, n int, call func(worker int, i int64)) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for worker := range n {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				call(worker, i)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}

// A commit of a role: keys as long as with CIDs, in random order, a value of 600 bytes.
func benchRow(i int64) store.Row {
	return store.Row{
		Key:   store.Key{Partition: "task/" + store.RawBlob(fmt.Append(nil, i)).CID.String()},
		Value: make([]byte, 600),
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, what := range []string{"row", "row, message", "row, message, blob"} {
		for _, n := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("%s/committers=%d", what, n), func(b *testing.B) {
				e := openBench(b)
				concurrently(b, n, func(_ int, i int64) {
					c := store.Change{Row: benchRow(i)}
					if what != "row" {
						c.Messages = []store.Message{{Queue: "submit", Body: make([]byte, 80)}}
					}
					if what == "row, message, blob" {
						c.Blobs = []store.Blob{store.RawBlob(fmt.Appendf(nil, "%480d", i))}
					}
					if _, err := e.Commit(b.Context(), c); err != nil {
						b.Error(err)
					}
				})
				s := e.Stats()
				b.ReportMetric(float64(s.Changes)/float64(s.Batches), "changes/batch")
				b.ReportMetric(float64(s.DBBytes+s.WALBytes)/float64(b.N), "disk-B/op")
			})
		}
	}
}

// The rows of a working set, updated again and again; each has one writer, so none of them conflicts.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("committers=%d", n), func(b *testing.B) {
			e := openBench(b)
			versions := make([]uint64, n)
			concurrently(b, n, func(worker int, _ int64) {
				row := benchRow(int64(worker))
				row.Version = versions[worker]
				v, err := e.Commit(b.Context(), store.Change{Row: row})
				if err != nil {
					b.Error(err)
				}
				versions[worker] = v
			})
		})
	}
}

// A message's life: sent, received, acknowledged.
func BenchmarkMessage(b *testing.B) {
	e := openBench(b)
	concurrently(b, 64, func(_ int, i int64) {
		ctx := b.Context()
		c := store.Change{Row: benchRow(i), Messages: []store.Message{{Queue: "q", Body: make([]byte, 80)}}}
		if _, err := e.Commit(ctx, c); err != nil {
			b.Error(err)
		}
		ds, err := e.Receive(ctx, "q", 1, time.Minute)
		if err != nil {
			b.Error(err)
		}
		for _, d := range ds {
			if err := e.Ack(ctx, d); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	e := openBench(b)
	const rows = 10000
	concurrentFill(b, e, rows)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := int64(0); pb.Next(); i++ {
			if _, err := e.Get(b.Context(), benchRow(i%rows).Key); err != nil {
				b.Error(err)
			}
		}
	})
}

func concurrentFill(b *testing.B, e *sqlite.Engine, rows int64) {
	b.Helper()
	var wg sync.WaitGroup
	for g := range int64(64) {
		wg.Go(func() {
			for i := g; i < rows; i += 64 {
				if _, err := e.Commit(b.Context(), store.Change{Row: benchRow(i)}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
