package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/storacha/w3filecoin/store"
)

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
