package storetest

import (
	"fmt"
	"strings"

	"github.com/storacha/w3filecoin/store"
)

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
