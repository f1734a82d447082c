// Package storetest is what every storage engine has to pass, and wrappers that make an engine misbehave.
//
// An engine's own test says how to open it and calls [Run]:
//
//	storetest.Run(t, func(t *testing.T) storetest.Harness {
//		clock := storetest.NewClock()
//		engine := memory.New(memory.Options{Now: clock.Now})
//		return storetest.Harness{Clock: clock, Open: func(testing.TB) store.Driver { engine = engine.Reopen(); return engine }}
//	})
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Harness is one engine under test, with state of its own that is empty at first.
type Harness struct {
	// Open opens the engine on that state, or fails the test. After a Close it is called again: what was committed must be there. The suite
	// has at most one opening at a time and closes it.
	Open func(t testing.TB) store.Driver

	// Clock is the engine's clock.
	Clock Clock
}

// Clock is time as an engine under test sees it.
type Clock interface {
	Now() time.Time
	// Advance returns when d has passed. Engines on a clock of their own wait; d is at least a millisecond and at most a few
	// seconds.
	Advance(d time.Duration)
}

// FakeClock is a clock that moves only when told to.
type FakeClock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a fake clock that shows some day in 2026.
func NewClock() *FakeClock {
	return &FakeClock{now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
}

// Now returns the clock's time.
func (c *FakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock on.
func (c *FakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Run tests an engine. The function returns a new, empty one for each test; tests run in parallel.
func Run(t *testing.T, engine func(t *testing.T) Harness) {
	for _, tc := range []struct {
		name string
		test func(*suite)
	}{
		{"commit/versions", testVersions},
		{"commit/deletion", testDeletion},
		{"commit/bytes are copied", testBytesAreCopied},
		{"commit/one winner per version", testOneWinner},
		{"commit/independent commits", testIndependentCommits},
		{"commit/conflict writes nothing", testConflictWritesNothing},
		{"commit/limits", testLimits},
		{"commit/cancelled", testCancelledCommit},
		{"query/order and prefix", testQueryOrder},
		{"query/pages", testQueryPages},
		{"query/rows change between pages", testQueryCursor},
		{"query/large rows", testLargeRows},
		{"query/waiter and arrival see each other", testWaiterAndArrival},
		{"scan/order, start and pages", testScan},
		{"scan/listing follows the row", testListing},
		{"walk", testWalk},
		{"messages/delivery", testDelivery},
		{"messages/lease", testLease},
		{"messages/extend", testExtend},
		{"messages/retry", testRetry},
		{"messages/due", testDue},
		{"messages/lost leases", testLostLease},
		{"messages/one holder", testOneHolder},
		{"blobs/put and read", testBlobs},
		{"blobs/inline", testInlineBlobs},
		{"blobs/delete", testBlobDelete},
		{"blobs/list", testBlobList},
		{"blobs/broken source", testBrokenSource},
		{"blobs/concurrent puts", testConcurrentPuts},
		{"reopen keeps everything", testReopen},
		{"malformed cursors", testCursors},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := engine(t)
			s := &suite{T: t, Harness: h, d: h.Open(t)}
			defer func() {
				if err := s.d.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			}()
			tc.test(s)
		})
	}
}

type suite struct {
	*testing.T
	Harness
	d    store.Driver
	sent int // names the rows of send
}

func (s *suite) reopen() {
	s.Helper()
	if err := s.d.Close(); err != nil {
		s.Fatalf("closing: %v", err)
	}
	s.d = s.Open(s.T)
}

func key(partition, sort string) store.Key { return store.Key{Partition: partition, Sort: sort} }

func (s *suite) commit(c store.Change) uint64 {
	s.Helper()
	v, err := s.d.Commit(s.Context(), c)
	if err != nil {
		s.Fatalf("committing %s at version %d: %v", c.Row.Key, c.Row.Version, err)
	}
	return v
}

// put commits a row whatever its version is.
func (s *suite) put(k store.Key, value string, l store.Listing) {
	s.Helper()
	row, err := s.d.Get(s.Context(), k)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		s.Fatalf("reading %s: %v", k, err)
	}
	s.commit(store.Change{Row: store.Row{Key: k, Version: row.Version, Value: []byte(value), Listing: l}})
}

func (s *suite) get(k store.Key) store.Row {
	s.Helper()
	row, err := s.d.Get(s.Context(), k)
	if err != nil {
		s.Fatalf("reading %s: %v", k, err)
	}
	return row
}

func (s *suite) wantRow(want store.Row) {
	s.Helper()
	if got := s.get(want.Key); !equalRows(got, want) {
		s.Errorf("row %s is %+v, want %+v", want.Key, got, want)
	}
}

func equalRows(a, b store.Row) bool {
	return a.Key == b.Key && a.Version == b.Version && a.Listing == b.Listing && bytes.Equal(a.Value, b.Value)
}

func (s *suite) wantNoRow(k store.Key) {
	s.Helper()
	if row, err := s.d.Get(s.Context(), k); !errors.Is(err, store.ErrNotFound) {
		s.Errorf("row %s: got %+v, %v, want ErrNotFound", k, row, err)
	}
}

func (s *suite) wantConflict(c store.Change) {
	s.Helper()
	if v, err := s.d.Commit(s.Context(), c); !errors.Is(err, store.ErrConflict) {
		s.Errorf("commit of %s at version %d: got version %d, %v, want ErrConflict", c.Row.Key, c.Row.Version, v, err)
	}
}

// pages reads all pages.
func (s *suite) pages(limit int, next func(cursor string, limit int) (store.Page, error)) []store.Row {
	s.Helper()
	var rows []store.Row
	cursor := ""
	for range 100_000 {
		p, err := next(cursor, limit)
		if err != nil {
			s.Fatalf("reading a page: %v", err)
		}
		if limit > 0 && len(p.Rows) > limit || len(p.Rows) > store.MaxPage {
			s.Fatalf("page of %d rows, limit %d", len(p.Rows), limit)
		}
		rows = append(rows, p.Rows...)
		if cursor = p.Next; cursor == "" {
			return rows
		}
	}
	s.Fatal("pages do not end")
	return nil
}

func (s *suite) query(partition, prefix string, limit int) []store.Row {
	s.Helper()
	return s.pages(limit, func(cursor string, limit int) (store.Page, error) {
		return s.d.Query(s.Context(), partition, prefix, cursor, limit)
	})
}

func (s *suite) scan(index, from string, limit int) []store.Row {
	s.Helper()
	return s.pages(limit, func(cursor string, limit int) (store.Page, error) {
		return s.d.Scan(s.Context(), index, from, cursor, limit)
	})
}

// eventually waits for an index to show what it should.
func (s *suite) eventually(what string, want []string, look func() []string) {
	s.Helper()
	var got []string
	for range 50 {
		if got = look(); slices.Equal(got, want) {
			return
		}
		s.Clock.Advance(200 * time.Millisecond)
	}
	s.Errorf("%s: got %q, want %q", what, got, want)
}

func sorts(rows []store.Row) []string {
	out := []string{}
	for _, r := range rows {
		out = append(out, r.Sort)
	}
	return out
}

func testVersions(s *suite) {
	k := key("p", "s")
	s.wantNoRow(k)
	s.wantConflict(store.Change{Row: store.Row{Key: k, Version: 1}})
	for v := range uint64(5) {
		row := store.Row{Key: k, Version: v, Value: []byte{byte(v), 0, 0xff}}
		if got := s.commit(store.Change{Row: row}); got != v+1 {
			s.Fatalf("commit at version %d gives version %d", v, got)
		}
		row.Version++
		s.wantRow(row)
		for _, stale := range []uint64{0, v, v + 2} {
			if stale != v+1 {
				s.wantConflict(store.Change{Row: store.Row{Key: k, Version: stale, Value: []byte("stale")}})
			}
		}
		s.wantRow(row)
	}
	// Keys that are near each other are different rows, and values may be empty.
	for _, k := range []store.Key{key("p", ""), key("p", "S"), key("p", "s "), key("ps", ""), key("p/s", ""), key("p", "s\x00"), key("p\x00s", "é")} {
		s.wantNoRow(k)
		s.commit(store.Change{Row: store.Row{Key: k}})
		s.wantRow(store.Row{Key: k, Version: 1})
	}
	longest := key("p", strings.Repeat("k", store.MaxKey-1))
	s.commit(store.Change{Row: store.Row{Key: longest, Value: make([]byte, store.MaxValue)}})
	s.wantRow(store.Row{Key: longest, Version: 1, Value: make([]byte, store.MaxValue)})
}

func testDeletion(s *suite) {
	k := key("p", "s")
	s.wantConflict(store.Change{Row: store.Row{Key: k, Version: 1}, Delete: true})
	s.put(k, "1", store.Listing{})
	s.put(k, "2", store.Listing{})
	s.wantConflict(store.Change{Row: store.Row{Key: k, Version: 1}, Delete: true})
	s.wantRow(store.Row{Key: k, Version: 2, Value: []byte("2")})
	if v := s.commit(store.Change{Row: store.Row{Key: k, Version: 2}, Delete: true, Messages: []store.Message{{Queue: "q"}}}); v != 0 {
		s.Errorf("deletion gives version %d", v)
	}
	s.wantNoRow(k)
	if got := s.query("p", "", 0); len(got) != 0 {
		s.Errorf("query after deletion: %v", got)
	}
	s.receive("q")
	s.wantConflict(store.Change{Row: store.Row{Key: k, Version: 2}, Delete: true})
	if v := s.commit(store.Change{Row: store.Row{Key: k}}); v != 1 {
		s.Errorf("row created again has version %d", v)
	}
}

func testBytesAreCopied(s *suite) {
	k := key("p", "")
	value, body := []byte("value"), []byte("body")
	blob := store.RawBlob([]byte("blob"))
	s.commit(store.Change{
		Row:      store.Row{Key: k, Value: value},
		Messages: []store.Message{{Queue: "q", Body: body}},
		Blobs:    []store.Blob{blob},
	})
	for _, b := range [][]byte{value, body, blob.Bytes} {
		clear(b)
	}
	row := s.get(k)
	clear(row.Value)
	s.wantRow(store.Row{Key: k, Version: 1, Value: []byte("value")})
	if d := s.receive("q"); string(d.Body) != "body" {
		s.Errorf("message's body became %q", d.Body)
	}
	s.wantBlob(blob.CID, []byte("blob"))
}

func testOneWinner(s *suite) {
	const committers = 100
	k := key("p", "contended")
	var mu sync.Mutex
	winners := make(map[uint64]int)
	var wg sync.WaitGroup
	for i := range committers {
		wg.Go(func() {
			for range 10 * committers { // one of them wins each round
				var version uint64
				row, err := s.d.Get(s.Context(), k)
				switch {
				case err == nil:
					version = row.Version
				case !errors.Is(err, store.ErrNotFound):
					s.Errorf("reading: %v", err)
					return
				}
				v, err := s.d.Commit(s.Context(), store.Change{
					Row:      store.Row{Key: k, Version: version, Value: fmt.Append(row.Value, i, ",")},
					Messages: []store.Message{{Queue: "won", Body: fmt.Append(nil, i)}},
				})
				switch {
				case err == nil:
					mu.Lock()
					winners[v]++
					mu.Unlock()
					return
				case !errors.Is(err, store.ErrConflict):
					s.Errorf("committing: %v", err)
					return
				}
			}
			s.Errorf("committer %d never won", i)
		})
	}
	wg.Wait()
	row := s.get(k)
	if row.Version != committers || len(winners) != committers {
		s.Errorf("%d commits gave version %d and %d different versions", committers, row.Version, len(winners))
	}
	for v, n := range winners {
		if n != 1 {
			s.Errorf("version %d was given to %d committers", v, n)
		}
	}
	// Each winner saw the one before it, and losing attempts left nothing: every committer is in the value and in the queue once.
	if n := len(strings.Split(strings.TrimSuffix(string(row.Value), ","), ",")); n != committers {
		s.Errorf("the value holds %d commits, want %d", n, committers)
	}
	seen := make(map[string]int)
	for range committers {
		d := s.receive("won")
		seen[string(d.Body)]++
		s.ack(d)
	}
	s.wantNone("won")
	if len(seen) != committers {
		s.Errorf("messages of %d committers, want %d", len(seen), committers)
	}
}

func testIndependentCommits(s *suite) {
	// Commits that run at the same time as losing ones are not affected by them.
	const rows = 64
	taken := key("taken", "")
	s.put(taken, "first", store.Listing{})
	var wg sync.WaitGroup
	for i := range rows {
		wg.Go(func() {
			v, err := s.d.Commit(s.Context(), store.Change{Row: store.Row{Key: key("p", fmt.Sprintf("%03d", i))}})
			if err != nil || v != 1 {
				s.Errorf("commit %d: version %d, %v", i, v, err)
			}
		})
		wg.Go(func() {
			_, err := s.d.Commit(s.Context(), store.Change{Row: store.Row{Key: taken, Value: []byte("second")}})
			if !errors.Is(err, store.ErrConflict) {
				s.Errorf("losing commit: %v", err)
			}
		})
		wg.Go(func() {
			_, err := s.d.Commit(s.Context(), store.Change{Row: store.Row{Key: taken, Value: make([]byte, store.MaxValue+1)}})
			if !errors.Is(err, store.ErrTooLarge) {
				s.Errorf("too large commit: %v", err)
			}
		})
	}
	wg.Wait()
	if got := s.query("p", "", 0); len(got) != rows {
		s.Errorf("%d rows, want %d", len(got), rows)
	}
	s.wantRow(store.Row{Key: taken, Version: 1, Value: []byte("first")})
}

// loaded is a change with everything in it.
func loaded(k store.Key, version uint64) store.Change {
	return store.Change{
		Row:      store.Row{Key: k, Version: version, Value: []byte("loaded"), Listing: store.Listing{Index: "loaded", Sort: "1"}},
		Messages: []store.Message{{Queue: "loaded", Body: []byte("m")}},
		Blobs:    []store.Blob{store.RawBlob([]byte("loaded"))},
	}
}

// wantNothing checks that nothing of a loaded change is there.
func (s *suite) wantNothing() {
	s.Helper()
	s.wantNone("loaded")
	c := store.RawBlob([]byte("loaded")).CID
	if _, err := s.d.Has(s.Context(), c); !errors.Is(err, store.ErrNotFound) {
		s.Errorf("blob of a refused commit: %v, want ErrNotFound", err)
	}
	s.Clock.Advance(2 * time.Second)
	s.put(key("other", ""), "moves the index on", store.Listing{})
	if rows := s.scan("loaded", "", 0); len(rows) != 0 {
		s.Errorf("listing of a refused commit: %v", rows)
	}
}

func testConflictWritesNothing(s *suite) {
	k := key("p", "s")
	s.put(k, "kept", store.Listing{})
	s.wantConflict(loaded(k, 0))
	s.wantConflict(loaded(k, 2))
	s.wantConflict(loaded(key("p", "missing"), 1))
	deletion := loaded(k, 2)
	deletion.Delete = true
	s.wantConflict(deletion)
	s.wantRow(store.Row{Key: k, Version: 1, Value: []byte("kept")})
	s.wantNoRow(key("p", "missing"))
	s.wantNothing()

	// And all of it when it succeeds.
	s.commit(loaded(k, 1))
	s.receive("loaded")
	s.wantBlob(store.RawBlob([]byte("loaded")).CID, []byte("loaded"))
	s.eventually("listing", []string{"s"}, func() []string { return sorts(s.scan("loaded", "", 0)) })
}

func testLimits(s *suite) {
	k := key("p", "s")
	for name, over := range map[string]func(*store.Change){
		"value":        func(c *store.Change) { c.Row.Value = make([]byte, store.MaxValue+1) },
		"message body": func(c *store.Change) { c.Messages[0].Body = make([]byte, store.MaxMessageBody+1) },
		"messages":     func(c *store.Change) { c.Messages = slices.Repeat(c.Messages, store.MaxMessages+1) },
		"blob":         func(c *store.Change) { c.Blobs = append(c.Blobs, store.RawBlob(make([]byte, store.MaxInlineBlob+1))) },
		"blobs":        func(c *store.Change) { c.Blobs = slices.Repeat(c.Blobs, store.MaxBlobs+1) },
		"key":          func(c *store.Change) { c.Row.Sort = strings.Repeat("k", store.MaxKey) },
		"listing":      func(c *store.Change) { c.Row.Listing.Sort = strings.Repeat("l", store.MaxListing) },
	} {
		c := loaded(k, 0)
		over(&c)
		if _, err := s.d.Commit(s.Context(), c); !errors.Is(err, store.ErrTooLarge) {
			s.Errorf("%s over the limit: %v, want ErrTooLarge", name, err)
		}
	}
	s.wantNoRow(k)
	s.wantNothing()

	// All limits at once are within.
	c := store.Change{Row: store.Row{Key: key("p", strings.Repeat("k", store.MaxKey-1)), Value: make([]byte, store.MaxValue)}}
	c.Row.Listing = store.Listing{Index: "i", Sort: strings.Repeat("l", store.MaxListing-1)}
	for i := range store.MaxMessages {
		c.Messages = append(c.Messages, store.Message{Queue: "q", Body: bytes.Repeat([]byte{byte(i)}, store.MaxMessageBody)})
	}
	for i := range store.MaxBlobs {
		c.Blobs = append(c.Blobs, store.RawBlob(bytes.Repeat([]byte{byte(i)}, store.MaxInlineBlob)))
	}
	s.commit(c)
	for range store.MaxMessages {
		s.receive("q")
	}
	for _, b := range c.Blobs {
		s.wantBlob(b.CID, b.Bytes)
	}
}

func testCancelledCommit(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.d.Commit(ctx, loaded(key("p", ""), 0)); !errors.Is(err, context.Canceled) {
		s.Errorf("commit with a cancelled context: %v", err)
	}
	if _, err := s.d.Get(ctx, key("p", "")); !errors.Is(err, context.Canceled) {
		s.Errorf("read with a cancelled context: %v", err)
	}
	s.wantNoRow(key("p", ""))
	s.wantNothing()
}

func testQueryOrder(s *suite) {
	all := []string{"", "\x00", " ", "%", "A", "A%", "A_b", "Aab", "B", "_", "a", "a\x00", "a/", "a/1", "a/10", "a/2", "a\U0010ffff", "b", "é", "\U0010ffff", "\U0010ffffa"}
	for i := range all { // in another order than the result's
		s.put(key("p", all[i*8%len(all)]), "v", store.Listing{})
	}
	s.put(key("o", "a/3"), "v", store.Listing{})
	s.put(key("p\x00", "a/3"), "v", store.Listing{})
	s.put(key("pp", "a/3"), "v", store.Listing{})
	for _, prefix := range []string{"", "a", "a/", "a/1", "A", "A_", "A%", "%", "_", "\x00", "a\U0010ffff", "\U0010ffff", "c", "a/10"} {
		want := []string{}
		for _, sort := range all {
			if strings.HasPrefix(sort, prefix) {
				want = append(want, sort)
			}
		}
		for _, limit := range []int{0, 1, 2, 1000} {
			if got := sorts(s.query("p", prefix, limit)); !slices.Equal(got, want) {
				s.Errorf("prefix %q, limit %d: got %q, want %q", prefix, limit, got, want)
			}
		}
	}
	if got := s.query("missing", "", 0); len(got) != 0 {
		s.Errorf("rows of a partition without rows: %v", got)
	}
}

func testQueryPages(s *suite) {
	want := []string{}
	for i := range 25 {
		want = append(want, fmt.Sprintf("r%02d", i))
		s.put(key("p", want[i]), want[i], store.Listing{Index: "x", Sort: want[i]})
	}
	for _, limit := range []int{-1, 0, 1, 5, 7, 24, 25, 26, store.MaxPage + 1} {
		rows := s.query("p", "r", limit)
		if got := sorts(rows); !slices.Equal(got, want) {
			s.Errorf("limit %d: got %q", limit, got)
		}
		for _, r := range rows {
			if w := (store.Row{Key: key("p", r.Sort), Version: 1, Value: []byte(r.Sort), Listing: store.Listing{Index: "x", Sort: r.Sort}}); !equalRows(r, w) {
				s.Errorf("limit %d: row %+v, want %+v", limit, r, w)
			}
		}
	}
}

func testQueryCursor(s *suite) {
	ctx := s.Context()
	for i := range 10 {
		s.put(key("p", fmt.Sprintf("r%02d", i*2)), "v", store.Listing{})
	}
	first, err := s.d.Query(ctx, "p", "r", "", 5)
	if err != nil || len(first.Rows) == 0 || first.Next == "" {
		s.Fatalf("first page: %+v, %v", first, err)
	}
	last := first.Rows[len(first.Rows)-1]
	// What is before the cursor stays before it, what is after it is seen, even when the row at the cursor has gone.
	s.commit(store.Change{Row: store.Row{Key: last.Key, Version: 1}, Delete: true})
	s.put(key("p", "r00a"), "before", store.Listing{})
	s.put(key("p", last.Sort+"a"), "after", store.Listing{})
	s.put(key("p", "r18a"), "after", store.Listing{})
	want := []string{last.Sort + "a"}
	for i := range 10 {
		if sort := fmt.Sprintf("r%02d", i*2); sort > last.Sort {
			want = append(want, sort)
		}
	}
	want = append(want, "r18a")
	got := s.pages(3, func(cursor string, limit int) (store.Page, error) {
		if cursor == "" {
			cursor = first.Next
		}
		return s.d.Query(ctx, "p", "r", cursor, limit)
	})
	if !slices.Equal(sorts(got), want) {
		s.Errorf("after the cursor: %q, want %q", sorts(got), want)
	}
	again, err := s.d.Query(ctx, "p", "r", first.Next, 1)
	if err != nil || !slices.Equal(sorts(again.Rows), want[:1]) {
		s.Errorf("the same cursor again: %q, %v", sorts(again.Rows), err)
	}
}

func testLargeRows(s *suite) {
	// Pages end early rather than hold any number of bytes.
	const rows = 40
	value := strings.Repeat("v", store.MaxValue)
	for i := range rows {
		s.put(key("p", fmt.Sprintf("%02d", i)), value, store.Listing{})
	}
	page, err := s.d.Query(s.Context(), "p", "", "", 0)
	if err != nil || page.Next == "" || len(page.Rows)*store.MaxValue > 2*store.MaxPageBytes {
		s.Errorf("page of %d large rows, next %q, %v", len(page.Rows), page.Next, err)
	}
	if got := s.query("p", "", 0); len(got) != rows {
		s.Errorf("%d rows, want %d", len(got), rows)
	}
}

func testWaiterAndArrival(s *suite) {
	// Whoever waits writes that it does and then looks for the result; the result is written, then those who wait are looked up. One
	// of the two sees the other, in any interleaving.
	ctx := s.Context()
	for i := range 100 {
		task := fmt.Sprintf("%03d", i)
		var waiterSees, arrivalSees bool
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("wait/"+task, "waiter")}}); err != nil {
				s.Errorf("waiter: %v", err)
			}
			_, err := s.d.Get(ctx, key("result/"+task, ""))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				s.Errorf("waiter: %v", err)
			}
			waiterSees = err == nil
		})
		wg.Go(func() {
			if _, err := s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("result/"+task, "")}}); err != nil {
				s.Errorf("arrival: %v", err)
			}
			page, err := s.d.Query(ctx, "wait/"+task, "", "", 10)
			if err != nil {
				s.Errorf("arrival: %v", err)
			}
			arrivalSees = len(page.Rows) == 1
		})
		wg.Wait()
		if !waiterSees && !arrivalSees {
			s.Fatalf("task %s: neither saw the other", task)
		}
	}
}

func testScan(s *suite) {
	type place struct{ sort, partition, key string }
	places := []place{
		{"", "p", "a"}, {"", "p", "b"}, {"", "q", "a"}, {"1", "a", "z"}, {"1", "b", "a"}, {"10", "a", ""}, {"2", "a", ""}, {"2\x00", "a", ""}, {"é", "a", ""},
	}
	id := func(p place) string { return p.sort + "|" + p.partition + "|" + p.key }
	for i := range places {
		p := places[i*4%len(places)]
		s.put(key(p.partition, id(p)), id(p), store.Listing{Index: "x", Sort: p.sort})
	}
	s.put(key("p", "elsewhere"), "", store.Listing{Index: "xx", Sort: "1"})
	s.put(key("p", "nowhere"), "", store.Listing{})
	for _, from := range []string{"", "1", "10", "11", "2", "2\x00", "z", "\U0010ffff"} {
		want := []string{}
		for _, p := range places {
			if p.sort >= from {
				want = append(want, id(p))
			}
		}
		for _, limit := range []int{0, 1, 2, 4} {
			s.eventually(fmt.Sprintf("from %q, limit %d", from, limit), want, func() []string { return sorts(s.scan("x", from, limit)) })
		}
	}
	for _, r := range s.scan("x", "", 0) {
		if string(r.Value) != r.Sort || r.Version != 1 || r.Listing.Index != "x" || !strings.HasPrefix(r.Sort, r.Listing.Sort+"|") {
			s.Errorf("row %+v", r)
		}
	}
	s.eventually("another index", []string{"elsewhere"}, func() []string { return sorts(s.scan("xx", "", 0)) })
	if rows := s.scan("", "", 0); len(rows) != 0 {
		s.Errorf("rows listed nowhere are listed: %v", rows)
	}
}

func testListing(s *suite) {
	k := key("p", "s")
	look := func(index string) func() []string {
		return func() []string {
			out := []string{}
			for _, r := range s.scan(index, "", 0) {
				out = append(out, fmt.Sprint(r.Listing.Sort, " ", r.Version, " ", string(r.Value)))
			}
			return out
		}
	}
	s.put(k, "one", store.Listing{Index: "x", Sort: "1"})
	s.eventually("listed", []string{"1 1 one"}, look("x"))
	s.put(k, "two", store.Listing{Index: "x", Sort: "1"})
	s.eventually("changed", []string{"1 2 two"}, look("x"))
	s.put(k, "two", store.Listing{Index: "x", Sort: "2"})
	s.eventually("moved within the index", []string{"2 3 two"}, look("x"))
	s.put(k, "two", store.Listing{Index: "y", Sort: "3"})
	s.eventually("left the index", nil, look("x"))
	s.eventually("moved to another", []string{"3 4 two"}, look("y"))
	s.put(k, "two", store.Listing{})
	s.eventually("unlisted", nil, look("y"))
	s.wantRow(store.Row{Key: k, Version: 5, Value: []byte("two")})
	s.put(k, "two", store.Listing{Index: "x"})
	s.eventually("listed again", []string{" 6 two"}, look("x"))
	s.commit(store.Change{Row: store.Row{Key: k, Version: 6}, Delete: true})
	s.eventually("deleted", nil, look("x"))
}

func testWalk(s *suite) {
	want := make(map[store.Key]bool)
	for i := range 30 {
		k := key(fmt.Sprintf("p%d", i%4), fmt.Sprintf("%d", i))
		if i%5 == 0 {
			k.Sort = ""
			k.Partition += fmt.Sprint("-", i)
		}
		l := store.Listing{}
		if i%2 == 0 {
			l = store.Listing{Index: "x", Sort: "1"}
		}
		s.put(k, k.String(), l)
		want[k] = true
	}
	for _, limit := range []int{0, 1, 7} {
		seen := make(map[store.Key]bool)
		for _, r := range s.pages(limit, func(cursor string, limit int) (store.Page, error) { return s.d.Walk(s.Context(), cursor, limit) }) {
			if seen[r.Key] || !want[r.Key] || string(r.Value) != r.Key.String() || r.Version != 1 {
				s.Errorf("limit %d: row %+v, seen before: %v", limit, r, seen[r.Key])
			}
			seen[r.Key] = true
		}
		if len(seen) != len(want) {
			s.Errorf("limit %d: %d rows, want %d", limit, len(seen), len(want))
		}
	}
}

const lease = 4 * time.Second

// receive returns a message of the queue, or fails. It looks several times: not every engine finds all messages at once.
func (s *suite) receive(queue string) store.Delivery {
	s.Helper()
	for range 50 {
		ds, err := s.d.Receive(s.Context(), queue, 1, lease)
		if err != nil {
			s.Fatalf("receiving from %s: %v", queue, err)
		}
		if len(ds) > 1 {
			s.Fatalf("received %d messages, asked for one", len(ds))
		}
		if len(ds) == 1 {
			return ds[0]
		}
		s.Clock.Advance(20 * time.Millisecond)
	}
	s.Fatalf("no message in queue %s", queue)
	return store.Delivery{}
}

func (s *suite) wantNone(queue string) {
	s.Helper()
	ds, err := s.d.Receive(s.Context(), queue, 10, lease)
	if err != nil || len(ds) != 0 {
		s.Errorf("queue %s: received %+v, %v, want nothing", queue, ds, err)
	}
}

func (s *suite) ack(d store.Delivery) {
	s.Helper()
	if err := s.d.Ack(s.Context(), d); err != nil {
		s.Fatalf("acknowledging %s: %v", d.ID, err)
	}
}

// send commits a row with messages.
func (s *suite) send(ms ...store.Message) {
	s.Helper()
	s.sent++
	s.commit(store.Change{Row: store.Row{Key: key("send", fmt.Sprint(s.sent))}, Messages: ms})
}

func testDelivery(s *suite) {
	s.wantNone("q")
	before := s.Clock.Now()
	s.send(store.Message{Queue: "q", Body: []byte("1")}, store.Message{Queue: "r", Body: []byte("other")}, store.Message{Queue: "q"})
	bodies := make(map[string]bool)
	ids := make(map[string]bool)
	for range 2 {
		d := s.receive("q")
		// Clocks of engines of their own may differ from ours by a little.
		if d.Attempt != 1 || d.Queue != "q" || d.ID == "" || d.Lease == "" ||
			d.Enqueued.Before(before.Add(-time.Minute)) || d.Enqueued.After(s.Clock.Now().Add(time.Minute)) {
			s.Errorf("delivery %+v", d)
		}
		bodies[string(d.Body)], ids[d.ID] = true, true
		s.ack(d)
	}
	if !bodies["1"] || !bodies[""] || len(ids) != 2 {
		s.Errorf("bodies %v, IDs %v", bodies, ids)
	}
	s.wantNone("q")
	s.Clock.Advance(lease + time.Second)
	s.wantNone("q") // acknowledged for good
	if d := s.receive("r"); string(d.Body) != "other" {
		s.Errorf("delivery %+v", d)
	}

	// Several at once, each once.
	const n = 15
	for range n {
		s.send(store.Message{Queue: "many"})
	}
	got := make(map[string]bool)
	for range 100 {
		ds, err := s.d.Receive(s.Context(), "many", 4, time.Hour)
		if err != nil || len(ds) > 4 {
			s.Fatalf("received %d messages, %v", len(ds), err)
		}
		for _, d := range ds {
			if got[d.ID] {
				s.Errorf("message %s delivered twice", d.ID)
			}
			got[d.ID] = true
		}
		if len(got) == n {
			return
		}
	}
	s.Errorf("received %d messages, want %d", len(got), n)
}

func testLease(s *suite) {
	s.send(store.Message{Queue: "q", Body: []byte("m")})
	first := s.receive("q")
	s.wantNone("q")
	s.Clock.Advance(lease / 2)
	s.wantNone("q")
	s.Clock.Advance(lease/2 + time.Second)
	second := s.receive("q")
	if second.ID != first.ID || second.Attempt != 2 || second.Lease == first.Lease || string(second.Body) != "m" || !second.Enqueued.Equal(first.Enqueued) {
		s.Errorf("redelivered as %+v after %+v", second, first)
	}
	s.ack(second)
	s.Clock.Advance(lease + time.Second)
	s.wantNone("q")

	// A lease that ended but was given to nobody else is still good enough for the acknowledgement.
	s.send(store.Message{Queue: "late"})
	d := s.receive("late")
	s.Clock.Advance(lease + time.Second)
	if err := s.d.Ack(s.Context(), d); err != nil && !errors.Is(err, store.ErrLeaseLost) {
		s.Errorf("acknowledging late: %v", err)
	}
}

func testExtend(s *suite) {
	s.send(store.Message{Queue: "q"})
	d := s.receive("q")
	for range 3 {
		s.Clock.Advance(lease - time.Second)
		if err := s.d.Extend(s.Context(), d, lease); err != nil {
			s.Fatalf("extending: %v", err)
		}
		s.wantNone("q")
	}
	s.Clock.Advance(lease + time.Second)
	if d := s.receive("q"); d.Attempt != 2 {
		s.Errorf("attempt %d after extensions, want 2", d.Attempt)
	}
}

func testRetry(s *suite) {
	s.send(store.Message{Queue: "q"})
	first := s.receive("q")
	if err := s.d.Retry(s.Context(), first, 0); err != nil {
		s.Fatal(err)
	}
	second := s.receive("q")
	if second.Attempt != 2 || second.ID != first.ID {
		s.Errorf("after an immediate retry: %+v", second)
	}
	if err := s.d.Retry(s.Context(), second, 3*time.Second); err != nil {
		s.Fatal(err)
	}
	s.wantNone("q")
	s.Clock.Advance(time.Second)
	s.wantNone("q")
	s.Clock.Advance(3 * time.Second)
	if third := s.receive("q"); third.Attempt != 3 || third.ID != first.ID {
		s.Errorf("after a delayed retry: %+v", third)
	}
}

func testDue(s *suite) {
	now := s.Clock.Now()
	s.send(store.Message{Queue: "q", Body: []byte("later"), Due: now.Add(3 * time.Second)},
		store.Message{Queue: "q", Body: []byte("overdue"), Due: now.Add(-time.Hour)},
		store.Message{Queue: "far", Due: now.AddDate(1, 0, 0)})
	d := s.receive("q")
	if string(d.Body) != "overdue" {
		s.Fatalf("received %q first", d.Body)
	}
	s.ack(d)
	s.wantNone("q")
	s.Clock.Advance(4 * time.Second)
	if d := s.receive("q"); string(d.Body) != "later" || d.Attempt != 1 {
		s.Errorf("received %+v", d)
	}
	s.wantNone("far")
}

func testLostLease(s *suite) {
	ctx := s.Context()
	end := map[string]func(d store.Delivery) error{
		"ack":    func(d store.Delivery) error { return s.d.Ack(ctx, d) },
		"extend": func(d store.Delivery) error { return s.d.Extend(ctx, d, time.Hour) },
		"retry":  func(d store.Delivery) error { return s.d.Retry(ctx, d, time.Hour) },
	}
	for name, end := range end {
		q := "q-" + name
		s.send(store.Message{Queue: q})
		stale := s.receive(q)
		s.Clock.Advance(lease + time.Second)
		s.receive(q)
		if err := end(stale); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after somebody else received it: %v, want ErrLeaseLost", name, err)
		}
		s.wantNone(q) // the stale holder did not give it back
		s.Clock.Advance(lease + time.Second)
		current := s.receive(q) // nor keep, nor remove it
		s.ack(current)
		if err := end(current); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after it was acknowledged: %v, want ErrLeaseLost", name, err)
		}

		s.send(store.Message{Queue: q})
		given := s.receive(q)
		if err := s.d.Retry(ctx, given, time.Second); err != nil {
			s.Fatal(err)
		}
		if err := end(given); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after it was given back: %v, want ErrLeaseLost", name, err)
		}
		s.Clock.Advance(2 * time.Second)
		s.ack(s.receive(q))
	}
}

func testOneHolder(s *suite) {
	const messages, receivers = 60, 8
	for range messages {
		s.send(store.Message{Queue: "q"})
	}
	var mu sync.Mutex
	held := make(map[string]int)
	var wg sync.WaitGroup
	for range receivers {
		wg.Go(func() {
			for range messages {
				ds, err := s.d.Receive(s.Context(), "q", 2, time.Hour)
				if err != nil {
					s.Errorf("receiving: %v", err)
					return
				}
				mu.Lock()
				for _, d := range ds {
					held[d.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id, n := range held {
		if n != 1 {
			s.Errorf("message %s is held by %d receivers", id, n)
		}
	}
	if len(held) != messages {
		s.Errorf("%d messages received, want %d", len(held), messages)
	}
}

// pattern is bytes that differ from page to page.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*17)
	}
	return b
}

func (s *suite) wantBlob(c cid.Cid, want []byte) {
	s.Helper()
	ctx := s.Context()
	if size, err := s.d.Has(ctx, c); err != nil || size != int64(len(want)) {
		s.Errorf("blob %s has %d bytes, %v, want %d", c, size, err, len(want))
	}
	r, err := s.d.Open(ctx, c)
	if err != nil {
		s.Errorf("opening blob %s: %v", c, err)
		return
	}
	defer func() {
		if err := r.Close(); err != nil {
			s.Errorf("closing blob %s: %v", c, err)
		}
	}()
	if r.Size() != int64(len(want)) {
		s.Errorf("blob %s: reader of %d bytes, want %d", c, r.Size(), len(want))
	}
	// Ranges, before and after the whole, and beyond the end.
	check := func(off, n int) {
		b := make([]byte, n)
		got, err := r.ReadAt(b, int64(off))
		avail := max(0, min(n, len(want)-off))
		if got != avail || !bytes.Equal(b[:got], want[min(off, len(want)):min(off, len(want))+avail]) || (got < n) != (err == io.EOF) && got < n {
			s.Errorf("blob %s: %d bytes at %d: got %d, %v", c, n, off, got, err)
		}
	}
	check(len(want)/3, min(1000, len(want)-len(want)/3))
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		s.Errorf("blob %s: read %d bytes, %v, want %d", c, len(got), err, len(want))
	}
	check(0, len(want))
	check(max(0, len(want)-5), 10)
	check(len(want)+1, 1)
}

// sizes of blobs around whatever borders engines have.
var sizes = []int{0, 1, 480, 8 << 10, 32 << 10, 32<<10 + 1, 64 << 10, 64<<10 + 1, 256<<10 + 3, 1<<20 + 7, 3 << 20}

func testBlobs(s *suite) {
	ctx := s.Context()
	for _, size := range sizes {
		b := store.RawBlob(pattern(size))
		if _, err := s.d.Has(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("%d bytes, before: %v, want ErrNotFound", size, err)
		}
		if _, err := s.d.Open(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("%d bytes, before: %v, want ErrNotFound", size, err)
		}
		for range 2 { // again is a success
			if err := s.d.Put(ctx, b.CID, bytes.NewReader(b.Bytes)); err != nil {
				s.Fatalf("putting %d bytes: %v", size, err)
			}
			s.wantBlob(b.CID, b.Bytes)
		}
	}
	for _, size := range sizes {
		b := store.RawBlob(pattern(size))
		s.wantBlob(b.CID, b.Bytes)
	}
	// The codec is part of the name.
	other := store.CBORBlob(pattern(1))
	if _, err := s.d.Has(ctx, other.CID); !errors.Is(err, store.ErrNotFound) {
		s.Errorf("same bytes under another CID: %v, want ErrNotFound", err)
	}
}

func testInlineBlobs(s *suite) {
	a, b := store.RawBlob(pattern(480)), store.CBORBlob(pattern(store.MaxInlineBlob))
	if err := store.PutBlob(s.Context(), s.d, a); err != nil {
		s.Fatal(err)
	}
	s.commit(store.Change{Row: store.Row{Key: key("p", "")}, Blobs: []store.Blob{a, b, b}})
	s.wantBlob(a.CID, a.Bytes)
	s.wantBlob(b.CID, b.Bytes)
	if err := store.PutBlob(s.Context(), s.d, b); err != nil {
		s.Errorf("putting what was committed: %v", err)
	}
	s.wantBlob(b.CID, b.Bytes)
}

func testBlobDelete(s *suite) {
	ctx := s.Context()
	for _, size := range []int{0, 480, 1 << 20} {
		b := store.RawBlob(pattern(size))
		if err := s.d.Delete(ctx, b.CID); err != nil {
			s.Errorf("deleting what is not there: %v", err)
		}
		put := func() error { return store.PutBlob(ctx, s.d, b) }
		if size == 480 {
			put = func() error {
				_, err := s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("p", fmt.Sprint(s.Clock.Now()))}, Blobs: []store.Blob{b}})
				s.Clock.Advance(time.Millisecond)
				return err
			}
		}
		for range 2 {
			if err := put(); err != nil {
				s.Fatal(err)
			}
			s.wantBlob(b.CID, b.Bytes)
			for range 2 {
				if err := s.d.Delete(ctx, b.CID); err != nil {
					s.Errorf("deleting %d bytes: %v", size, err)
				}
				if _, err := s.d.Has(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
					s.Errorf("%d bytes, deleted: %v, want ErrNotFound", size, err)
				}
			}
		}
	}
}

func testBlobList(s *suite) {
	ctx := s.Context()
	want := make(map[cid.Cid]bool)
	for i := range 24 {
		b := store.RawBlob(fmt.Append(nil, i))
		var err error
		switch i % 3 {
		case 0:
			err = store.PutBlob(ctx, s.d, b)
		case 1:
			b = store.RawBlob(bytes.Repeat([]byte{byte(i)}, 100<<10))
			err = store.PutBlob(ctx, s.d, b)
		case 2:
			_, err = s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("p", fmt.Sprint(i))}, Blobs: []store.Blob{b}})
		}
		if err != nil {
			s.Fatal(err)
		}
		want[b.CID] = true
	}
	for _, limit := range []int{0, 1, 5} {
		seen := make(map[cid.Cid]bool)
		cursor := ""
		for range 100 {
			cids, next, err := s.d.List(ctx, cursor, limit)
			if err != nil || limit > 0 && len(cids) > limit {
				s.Fatalf("limit %d: %d CIDs, %v", limit, len(cids), err)
			}
			for _, c := range cids {
				if seen[c] || !want[c] {
					s.Errorf("limit %d: %s, seen before: %v", limit, c, seen[c])
				}
				seen[c] = true
			}
			if cursor = next; cursor == "" {
				break
			}
		}
		if cursor != "" || len(seen) != len(want) {
			s.Errorf("limit %d: %d CIDs, want %d, cursor %q", limit, len(seen), len(want), cursor)
		}
	}
}

// breaking is a source that fails after n bytes.
type breaking struct{ n int }

var errBroken = errors.New("source broke")

func (b *breaking) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, errBroken
	}
	n := min(b.n, len(p))
	b.n -= n
	return n, nil
}

func testBrokenSource(s *suite) {
	ctx := s.Context()
	for _, size := range []int{0, 480, 1 << 20} {
		c := store.RawBlob(fmt.Append(nil, "broken ", size)).CID
		if err := s.d.Put(ctx, c, &breaking{size}); !errors.Is(err, errBroken) {
			s.Errorf("source that breaks after %d bytes: %v", size, err)
		}
		if _, err := s.d.Has(ctx, c); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("after a source broke at %d bytes: %v, want ErrNotFound", size, err)
		}
	}
	if cids, _, err := s.d.List(ctx, "", 0); err != nil || len(cids) != 0 {
		s.Errorf("listed %v, %v", cids, err)
	}
	if err := s.d.Put(ctx, cid.Undef, strings.NewReader("")); err == nil {
		s.Error("put a blob without a CID")
	}
}

func testConcurrentPuts(s *suite) {
	b := store.RawBlob(pattern(300 << 10))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := store.PutBlob(s.Context(), s.d, b); err != nil {
				s.Errorf("putting: %v", err)
			}
			if got, err := store.ReadBlob(s.Context(), s.d, b.CID, 1<<20); err != nil || !bytes.Equal(got, b.Bytes) {
				s.Errorf("reading: %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	s.wantBlob(b.CID, b.Bytes)
}

func testReopen(s *suite) {
	ctx := s.Context()
	k, gone := key("p", "s"), key("p", "gone")
	s.commit(loaded(k, 0))
	s.put(gone, "", store.Listing{Index: "loaded", Sort: "2"})
	s.commit(store.Change{Row: store.Row{Key: gone, Version: 1}, Delete: true})
	big := store.RawBlob(pattern(1 << 20))
	if err := store.PutBlob(ctx, s.d, big); err != nil {
		s.Fatal(err)
	}
	s.send(store.Message{Queue: "leased"}, store.Message{Queue: "due", Due: s.Clock.Now().Add(time.Hour)}, store.Message{Queue: "acked"})
	leased := s.receive("leased")
	s.ack(s.receive("acked"))

	s.reopen()
	want := loaded(k, 1).Row
	s.wantRow(want)
	s.wantNoRow(gone)
	s.wantConflict(loaded(k, 0))
	s.eventually("listing", []string{"s"}, func() []string { return sorts(s.scan("loaded", "", 0)) })
	s.wantBlob(store.RawBlob([]byte("loaded")).CID, []byte("loaded"))
	s.wantBlob(big.CID, big.Bytes)
	s.wantNone("due")
	s.wantNone("acked")
	received := s.receive("loaded")

	// The holder of a lease may be this process before it was restarted: its message comes again.
	s.Clock.Advance(lease + time.Second)
	again := s.receive("leased")
	if again.ID != leased.ID || again.Attempt < 2 {
		s.Errorf("redelivered as %+v after %+v", again, leased)
	}
	s.ack(again)

	// IDs are never used again.
	ids := map[string]bool{leased.ID: true, received.ID: true}
	for range 3 {
		s.reopen()
		s.send(store.Message{Queue: "new"})
		d := s.receive("new")
		if ids[d.ID] {
			s.Errorf("message ID %s was used again", d.ID)
		}
		ids[d.ID] = true
		s.ack(d)
	}
	if v := s.commit(store.Change{Row: want}); v != 2 {
		s.Errorf("version %d after reopening", v)
	}
}

func testCursors(s *suite) {
	ctx := s.Context()
	s.put(key("p", "s"), "", store.Listing{Index: "x"})
	for _, cursor := range []string{"?", "AA", strings.Repeat("x", 5000), "\x00"} {
		if _, err := s.d.Query(ctx, "p", "", cursor, 0); err == nil {
			s.Errorf("query took cursor %q", cursor)
		}
		if _, err := s.d.Scan(ctx, "x", "", cursor, 0); err == nil {
			s.Errorf("scan took cursor %q", cursor)
		}
		if _, err := s.d.Walk(ctx, cursor, 0); err == nil {
			s.Errorf("walk took cursor %q", cursor)
		}
		if _, _, err := s.d.List(ctx, cursor, 0); err == nil {
			s.Errorf("list took cursor %q", cursor)
		}
	}
}
