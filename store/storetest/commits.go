package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/store"
)

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
