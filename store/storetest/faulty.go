package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Fault is what happens to one call of an engine.
type Fault int

// Faults.
const (
	None           Fault = iota
	FailBefore           // nothing is done, and an error that leaves the outcome open is returned
	FailAfter            // the call is done, and the same error returned
	ReportConflict       // a commit is done, and ErrConflict returned, as when a repeated attempt meets its own success; FailAfter for other calls
	Duplicate            // what Receive returns is delivered once more by the next Receive of the queue; None for other calls
)

func (f Fault) String() string {
	switch f {
	case None:
		return "none"
	case FailBefore:
		return "fail-before"
	case FailAfter:
		return "fail-after-persisting"
	case ReportConflict:
		return "persisted-but-reported-as-conflict"
	case Duplicate:
		return "duplicate-delivery"
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}

// ErrInjected is what calls that fail return.
var ErrInjected = errors.New("injected fault")

// Again does something until it meets no injected fault, as whoever calls a service that is out of order for a moment; five times at most. It
// returns what it met the last time.
func Again(do func() error) error {
	err := do()
	for range 4 {
		if !errors.Is(err, ErrInjected) {
			break
		}
		err = do()
	}
	return err
}

// Call is one call of an engine about to be made.
type Call struct {
	Method string       // of [store.Driver]
	Change store.Change // Commit's
	Queue  string       // of Receive, Ack, Extend and Retry
}

// Chooser chooses the fault of a call. Choosers of this package are safe for concurrent use.
type Chooser func(Call) Fault

// Nth lets the n-th call fail (1 is the first), once.
func Nth(n int, f Fault) Chooser {
	return When(func(Call) bool { return true }, n, f)
}

// When lets the n-th of the calls that match fail, once.
func When(match func(Call) bool, n int, f Fault) Chooser {
	var mu sync.Mutex
	calls := 0
	return func(c Call) Fault {
		mu.Lock()
		defer mu.Unlock()
		if !match(c) {
			return None
		}
		if calls++; calls == n {
			return f
		}
		return None
	}
}

// Commits matches commits.
func Commits(c Call) bool { return c.Method == "Commit" }

// Random lets calls fail with probability p, by one of the faults at random. Equal sequences of calls with equal seeds fail equally.
func Random(r *rand.Rand, p float64, faults ...Fault) Chooser {
	var mu sync.Mutex
	return func(Call) Fault {
		mu.Lock()
		defer mu.Unlock()
		if r.Float64() >= p {
			return None
		}
		return faults[r.IntN(len(faults))]
	}
}

// Sweep runs a scenario with a fault at its first call, then with one at its second, and so on until it makes fewer calls than that; and
// all this for each of the faults; in short mode with one at every seventh call only. The scenario builds everything it needs anew and wraps its engines by
// [NewFaulty] with the chooser.
func Sweep(t *testing.T, faults []Fault, scenario func(t *testing.T, choose Chooser)) {
	t.Helper()
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for i, f := range faults {
		for n, hit := 1+i%stride, true; hit && !t.Failed(); n += stride {
			hit = false
			t.Run(fmt.Sprintf("%v at call %d", f, n), func(t *testing.T) {
				nth := Nth(n, f)
				var mu sync.Mutex
				scenario(t, func(c Call) Fault {
					got := nth(c)
					if got != None {
						mu.Lock()
						hit = true
						mu.Unlock()
						t.Logf("%v: %s %s%s", got, c.Method, c.Queue, c.Change.Row.Key)
					}
					return got
				})
			})
		}
	}
}

// Faulty is an engine whose calls fail as a chooser says.
type Faulty struct {
	d      store.Driver
	choose Chooser

	mu    sync.Mutex
	again map[string][]store.Delivery // duplicates, by queue
}

var _ store.Driver = (*Faulty)(nil)

// NewFaulty wraps an engine.
func NewFaulty(d store.Driver, choose Chooser) *Faulty {
	return &Faulty{d: d, choose: choose, again: make(map[string][]store.Delivery)}
}

// faulty makes a call, or not, as f says.
func faulty[T any](f Fault, call func() (T, error)) (T, error) {
	var none T
	switch f {
	case FailBefore:
		return none, ErrInjected
	case FailAfter, ReportConflict:
		if _, err := call(); err != nil {
			return none, err
		}
		return none, ErrInjected
	default:
		return call()
	}
}

func faultyErr(f Fault, call func() error) error {
	_, err := faulty(f, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// Get implements [store.Rows].
func (f *Faulty) Get(ctx context.Context, key store.Key) (store.Row, error) {
	return faulty(f.choose(Call{Method: "Get"}), func() (store.Row, error) { return f.d.Get(ctx, key) })
}

// Query implements [store.Rows].
func (f *Faulty) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	return faulty(f.choose(Call{Method: "Query"}), func() (store.Page, error) { return f.d.Query(ctx, partition, prefix, cursor, limit) })
}

// Scan implements [store.Rows].
func (f *Faulty) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	return faulty(f.choose(Call{Method: "Scan"}), func() (store.Page, error) { return f.d.Scan(ctx, index, from, cursor, limit) })
}

// Walk implements [store.Rows].
func (f *Faulty) Walk(ctx context.Context, cursor string, limit int) (store.Page, error) {
	return faulty(f.choose(Call{Method: "Walk"}), func() (store.Page, error) { return f.d.Walk(ctx, cursor, limit) })
}

// Commit implements [store.Rows].
func (f *Faulty) Commit(ctx context.Context, c store.Change) (uint64, error) {
	fault := f.choose(Call{Method: "Commit", Change: c})
	version, err := faulty(fault, func() (uint64, error) { return f.d.Commit(ctx, c) })
	if fault == ReportConflict && errors.Is(err, ErrInjected) {
		err = store.ErrConflict
	}
	return version, err
}

// Receive implements [store.Messages].
func (f *Faulty) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	fault := f.choose(Call{Method: "Receive", Queue: queue})
	f.mu.Lock()
	if again := f.again[queue]; len(again) > 0 && fault == None {
		n := min(limit, len(again))
		f.again[queue] = again[n:]
		f.mu.Unlock()
		return again[:n:n], nil
	}
	f.mu.Unlock()
	ds, err := faulty(fault, func() ([]store.Delivery, error) { return f.d.Receive(ctx, queue, limit, lease) })
	if fault == Duplicate {
		f.mu.Lock()
		f.again[queue] = append(f.again[queue], ds...)
		f.mu.Unlock()
	}
	return ds, err
}

// Ack implements [store.Messages].
func (f *Faulty) Ack(ctx context.Context, d store.Delivery) error {
	return faultyErr(f.choose(Call{Method: "Ack", Queue: d.Queue}), func() error { return f.d.Ack(ctx, d) })
}

// Extend implements [store.Messages].
func (f *Faulty) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	return faultyErr(f.choose(Call{Method: "Extend", Queue: d.Queue}), func() error { return f.d.Extend(ctx, d, lease) })
}

// Retry implements [store.Messages].
func (f *Faulty) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	return faultyErr(f.choose(Call{Method: "Retry", Queue: d.Queue}), func() error { return f.d.Retry(ctx, d, after) })
}

// Put implements [store.Blobs].
func (f *Faulty) Put(ctx context.Context, c cid.Cid, r io.Reader) error {
	return faultyErr(f.choose(Call{Method: "Put"}), func() error { return f.d.Put(ctx, c, r) })
}

// Open implements [store.Blobs].
func (f *Faulty) Open(ctx context.Context, c cid.Cid) (store.BlobReader, error) {
	fault := f.choose(Call{Method: "Open"})
	if fault != None && fault != Duplicate {
		return nil, ErrInjected // without a reader that nobody would close
	}
	return f.d.Open(ctx, c)
}

// Has implements [store.Blobs].
func (f *Faulty) Has(ctx context.Context, c cid.Cid) (int64, error) {
	return faulty(f.choose(Call{Method: "Has"}), func() (int64, error) { return f.d.Has(ctx, c) })
}

// Delete implements [store.Blobs].
func (f *Faulty) Delete(ctx context.Context, c cid.Cid) error {
	return faultyErr(f.choose(Call{Method: "Delete"}), func() error { return f.d.Delete(ctx, c) })
}

// List implements [store.Blobs].
func (f *Faulty) List(ctx context.Context, cursor string, limit int) (cids []cid.Cid, next string, err error) {
	fault := f.choose(Call{Method: "List"})
	if fault != None && fault != Duplicate {
		return nil, "", ErrInjected
	}
	return f.d.List(ctx, cursor, limit)
}

// Close closes the engine; it never fails by injection.
func (f *Faulty) Close() error { return f.d.Close() }

// LateIndex is an engine whose index does not show the rows of the latest commits, nor that they changed. The memory engine is late
// by itself, and more thoroughly.
type LateIndex struct {
	store.Driver
	commits int

	mu     sync.Mutex
	latest []store.Key
}

// NewLateIndex wraps an engine; its scans leave out the rows of the given number of latest commits.
func NewLateIndex(d store.Driver, commits int) *LateIndex {
	return &LateIndex{Driver: d, commits: commits}
}

// Commit implements [store.Rows].
func (l *LateIndex) Commit(ctx context.Context, c store.Change) (uint64, error) {
	version, err := l.Driver.Commit(ctx, c)
	if err == nil {
		l.mu.Lock()
		l.latest = append(l.latest, c.Row.Key)
		l.latest = l.latest[max(0, len(l.latest)-l.commits):]
		l.mu.Unlock()
	}
	return version, err
}

// Scan implements [store.Rows].
func (l *LateIndex) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	page, err := l.Driver.Scan(ctx, index, from, cursor, limit)
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := page.Rows[:0]
	for _, r := range page.Rows {
		hidden := false
		for _, k := range l.latest {
			hidden = hidden || k == r.Key
		}
		if !hidden {
			seen = append(seen, r)
		}
	}
	page.Rows = seen
	return page, err
}
