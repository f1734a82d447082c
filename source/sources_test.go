package source

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestImport: content is copied from the first source that has it, and from the next if one has other bytes, another
// length or none.
func TestImport(t *testing.T) {
	want := pattern(300_000, 3)
	content := contentOf(t, Raw, want)
	anything := func(int64) error { return nil }
	refuse := errors.New("another length")
	notFound := http.NotFound
	whole := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		w.Write(want)
	}
	flipped := func(w http.ResponseWriter, r *http.Request) {
		b := bytes.Clone(want)
		b[7] ^= 1
		w.Write(b)
	}
	short := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		w.Write(want[:1000])
		panic(http.ErrAbortHandler)
	}
	for _, tt := range []struct {
		name    string
		sources []http.HandlerFunc
		fits    func(int64) error
		max     int64
		asked   int // sources
		err     error
		says    string
	}{
		{name: "the first", sources: []http.HandlerFunc{whole, whole}, asked: 1},
		{name: "the second", sources: []http.HandlerFunc{notFound, whole}, asked: 2},
		{name: "after other bytes", sources: []http.HandlerFunc{flipped, whole}, asked: 2},
		{name: "after one that breaks off", sources: []http.HandlerFunc{short, whole}, asked: 2},
		{name: "nowhere", sources: []http.HandlerFunc{notFound, notFound}, asked: 2, err: ErrNoContent},
		{name: "other bytes only", sources: []http.HandlerFunc{flipped}, asked: 1, says: "other bytes"},
		{name: "other length", sources: []http.HandlerFunc{whole}, asked: 1, fits: func(n int64) error {
			if n == int64(len(want)) {
				return refuse
			}
			return nil
		}, err: refuse},
		{name: "too large", sources: []http.HandlerFunc{whole}, asked: 1, max: 1000, err: ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			custody := newCustody(t, testBase, d)
			h := newFetcher(t, HTTPConfig{})
			var asked atomic.Int32
			var origins []Origin
			for _, f := range tt.sources {
				server := serve(t, func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					if r.URL.Path != "/ipfs/"+content.String() {
						t.Errorf("asked for %s", r.URL.Path)
					}
					f(w, r)
				})
				o, err := URLOrigin(server.URL+"/ipfs/{raw}", h)
				if err != nil {
					t.Fatal(err)
				}
				origins = append(origins, o)
			}
			if tt.max == 0 {
				tt.max = noLimit
			}
			if tt.fits == nil {
				tt.fits = anything
			}
			s, err := NewSources(custody, tt.max, time.Now, slog.New(slog.DiscardHandler), origins...)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Import(t.Context(), content, tt.fits)
			if n := int(asked.Load()); n != tt.asked {
				t.Errorf("%d sources were asked, want %d", n, tt.asked)
			}
			if tt.err == nil && tt.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantContent(t, d, content, want)
				return
			}
			if err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v; want %v %s", err, tt.err, tt.says)
			}
			if errors.Is(err, ErrNoContent) != errors.Is(tt.err, ErrNoContent) {
				t.Errorf("%v says that nobody has it", err)
			}
			wantNothing(t, d, content)
		})
	}
}

// TestImportRests: a source that keeps lying is not asked by everybody any more, and the others still are.
func TestImportRests(t *testing.T) {
	custody := newCustody(t, testBase, newDir(t), operatorDir(t, "x", nil))
	var asked atomic.Int32
	liar := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, "something else")
	})
	h := newFetcher(t, HTTPConfig{})
	lies, err := URLOrigin(liar.URL+"/{base58}", h)
	if err != nil {
		t.Fatal(err)
	}
	other := newDir(t)
	s, err := NewSources(custody, noLimit, time.Now, slog.New(slog.DiscardHandler), lies, PlaceOrigin("other", other))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		c := put(t, other, pattern(1000, i))
		if err := s.Import(t.Context(), c, func(int64) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n < restAfter || n > restAfter+1 {
		t.Errorf("the liar was asked %d times", n)
	}
}

func TestSourcesRefuse(t *testing.T) {
	for _, template := range []string{"", "https://x.example/", "https://x.example/{cid}", "ftp://x.example/{raw}", "https://u:p@x.example/{raw}", "/{raw}"} {
		if _, err := URLOrigin(template, nil); err == nil {
			t.Errorf("%q is a source", template)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if _, err := NewSources(newCustody(t, testBase, operatorDir(t, "x", nil)), 1, time.Now, log); err == nil {
		t.Error("there is nothing to copy into")
	}
	if _, err := NewSources(newCustody(t, testBase, newDir(t)), 0, time.Now, log); err == nil {
		t.Error("no limit was accepted")
	}
}
