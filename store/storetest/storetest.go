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
	"errors"
	"slices"
	"testing"
	"time"

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
