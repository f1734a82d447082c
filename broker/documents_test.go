package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

// golden is an offer of an aggregate of 1 MiB that the JavaScript implementation made of five pieces.
func golden(t testing.TB) dealer.Offer {
	o := dealer.Offer{
		Aggregate:  parse(t, "bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq"),
		Collection: "did:key:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH",
		OfferedAt:  time.Date(2026, 8, 1, 14, 30, 5, 67_999_999, time.FixedZone("CEST", 7200)),
	}
	for _, p := range []string{
		"bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq",
		"bafkzcibccacs6xworhegwgr73wsnj2ngsic3lt4he72bnmekon35wvmn6ducmpy",
		"bafkzcibdsqcammzcfucufyigeep4mxfoyjcau4da5of4gaihctejz55g5kz27fqh",
		"bafkzcibceaddc2lvqyf4sg7ysvfettlrfm7bblbxhrcy6fmihjlzcq5kkaznkby",
		"bafkzcibdtqgaorcvtcfyzyakvmrh5ajg22e2e3fh77h2vzqeyul3o5rbvbz73azn",
	} {
		o.Pieces = append(o.Pieces, parse(t, p))
	}
	return o
}

func parse(t testing.TB, s string) piece.Link {
	t.Helper()
	l, err := piece.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// numbered returns an offer of a small aggregate, a different one for each number.
func numbered(t testing.TB, n int, at time.Time) dealer.Offer {
	t.Helper()
	p, err := piece.Sum(fmt.Appendf(nil, "payload %d", n))
	if err != nil {
		t.Fatal(err)
	}
	a, err := segment.Build(4096, []piece.Link{p})
	if err != nil {
		t.Fatal(err)
	}
	return dealer.Offer{Aggregate: a.Link(), Pieces: []piece.Link{p}, Collection: "did:key:z6Mk", OfferedAt: at}
}

// fixture is a replica of a dealer with a directory and a server. Its engine's clock moves when a list is asked for, so that indexes show what was committed.
type fixture struct {
	*Documents
	t      *testing.T
	engine *memory.Engine
	clock  *storetest.FakeClock
	dir    string
	url    string
}

func open(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: storetest.NewClockAt(time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)), dir: filepath.Join(t.TempDir(), "[offers]")}
	f.engine = memory.New(memory.Options{Now: f.clock.Now})
	f.reopen()
	return f
}

// reopen is what a process does that starts with the store and the directory.
func (f *fixture) reopen() {
	f.t.Helper()
	d, err := OpenDocuments(DocumentsConfig{Store: f.engine, Dir: f.dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.t.Fatal(err)
	}
	f.Documents = d
	server := httptest.NewServer(d.Handler())
	f.t.Cleanup(server.Close)
	f.url = server.URL
}

// replica is another process on the same store, with a directory of its own.
func (f *fixture) replica() *fixture {
	other := &fixture{t: f.t, engine: f.engine, clock: f.clock, dir: filepath.Join(f.t.TempDir(), "offers")}
	other.reopen()
	return other
}

func (f *fixture) publish(o dealer.Offer) string {
	f.t.Helper()
	key, err := f.Publish(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return key
}

func (f *fixture) get(path string) (*http.Response, []byte) {
	f.t.Helper()
	resp, err := http.Get(f.url + path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, body
}

func (f *fixture) list(query string) List {
	f.t.Helper()
	f.clock.Advance(time.Hour)
	resp, body := f.get("/offers" + query)
	var list List
	if err := json.Unmarshal(body, &list); err != nil || resp.StatusCode != http.StatusOK || list.Offers == nil {
		f.t.Fatalf("%s: HTTP %d %s: %v", query, resp.StatusCode, body, err)
	}
	return list
}

func (l List) keys() []string {
	keys := []string{}
	for _, o := range l.Offers {
		keys = append(keys, o.Key)
	}
	return keys
}

const (
	goldenKey      = "2026-08-01T12:30:05.067Z_bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq.json"
	goldenDocument = `{"aggregate":"bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq","pieces":[` +
		`"bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq",` +
		`"bafkzcibccacs6xworhegwgr73wsnj2ngsic3lt4he72bnmekon35wvmn6ducmpy",` +
		`"bafkzcibdsqcammzcfucufyigeep4mxfoyjcau4da5of4gaihctejz55g5kz27fqh",` +
		`"bafkzcibceaddc2lvqyf4sg7ysvfettlrfm7bblbxhrcy6fmihjlzcq5kkaznkby",` +
		`"bafkzcibdtqgaorcvtcfyzyakvmrh5ajg22e2e3fh77h2vzqeyul3o5rbvbz73azn"],` +
		`"collection":"did:key:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH","orderID":1785587405067}`
)

func TestGolden(t *testing.T) {
	f := open(t)
	if key := f.publish(golden(t)); key != goldenKey {
		t.Errorf("key is %s, want %s", key, goldenKey)
	}
	if f.Name() != "spade" {
		t.Errorf("name is %q", f.Name())
	}
	got, err := os.ReadFile(filepath.Join(f.dir, goldenKey))
	if err != nil || string(got) != goldenDocument {
		t.Errorf("document is %s, %v\nwant %s", got, err, goldenDocument)
	}

	want := List{Offers: []Listed{{Key: goldenKey, URL: "offers/" + goldenKey}}}
	if diff := cmp.Diff(want, f.list("")); diff != "" {
		t.Error(diff)
	}
	resp, body := f.get("/" + want.Offers[0].URL)
	if string(body) != goldenDocument || resp.Header.Get("Content-Type") != "application/json" || resp.ContentLength != int64(len(body)) {
		t.Errorf("HTTP %d %v %s", resp.StatusCode, resp.Header, body)
	}
	req, err := http.NewRequest(http.MethodGet, f.url+"/"+want.Offers[0].URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("If-None-Match", resp.Header.Get("ETag"))
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotModified {
		t.Errorf("a document that is known is sent again: HTTP %d", resp.StatusCode)
	}
}

// spade restates the rules by which Spade's poller reads a bucket: it lists the keys that begin with the date of today or of one of
// the two days before, reads each object, and computes the aggregate anew. The first object that is not right ends the round with
// an error. It returns the aggregates found.
func spade(bucket string, today time.Time) ([]string, error) {
	entries, err := os.ReadDir(bucket)
	if err != nil {
		return nil, err
	}
	var found []string
	for age := range 3 {
		prefix := today.UTC().AddDate(0, 0, -age).Format("2006-01-02")
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), prefix) {
				continue
			}
			b, err := os.ReadFile(filepath.Join(bucket, e.Name()))
			if err != nil {
				return nil, err
			}
			var object struct {
				Aggregate  string
				Pieces     []string
				Collection string
			}
			if err := json.Unmarshal(b, &object); err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			aggregate, err := piece.Parse(object.Aggregate)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			var pieces []piece.Link
			for _, text := range object.Pieces {
				p, err := piece.Parse(text)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Name(), err)
				}
				pieces = append(pieces, p)
			}
			built, err := segment.Build(aggregate.PaddedSize(), pieces)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			if built.Link() != aggregate || object.Collection == "" {
				return nil, fmt.Errorf("%s: pieces of %q make %s, not %s", e.Name(), object.Collection, built.Link(), aggregate)
			}
			found = append(found, object.Aggregate)
		}
	}
	slices.Sort(found)
	return found, nil
}

func TestSpadeReadsIt(t *testing.T) {
	f := open(t)
	today := time.Date(2026, 8, 3, 0, 30, 0, 0, time.UTC)
	var want []string
	for days := range 5 {
		o := numbered(t, days, today.AddDate(0, 0, -days))
		f.publish(o)
		if days < 3 {
			want = append(want, o.Aggregate.String())
		}
	}
	last := golden(t)
	f.publish(last)
	want = append(want, last.Aggregate.String())
	bad := golden(t)
	bad.Pieces[0], bad.Pieces[1] = bad.Pieces[1], bad.Pieces[0]
	bad.Aggregate = numbered(t, 99, today).Aggregate
	if key, err := f.Publish(t.Context(), bad); err == nil {
		t.Errorf("published %s, at which Spade would stop", key)
	}
	// What a crash leaves is no object of the bucket.
	if err := os.WriteFile(filepath.Join(f.dir, ".offer-1.tmp"), []byte(`{"agg`), 0o600); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	got, err := spade(f.dir, today)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	f.reopen()
	if _, err := os.Stat(filepath.Join(f.dir, ".offer-1.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
}

func TestPublishTwice(t *testing.T) {
	f := open(t)
	first := f.publish(golden(t))
	later := golden(t)
	later.OfferedAt = later.OfferedAt.Add(72 * time.Hour)
	later.Collection = "did:key:another"
	for _, o := range []dealer.Offer{golden(t), later} {
		if key := f.publish(o); key != first {
			t.Errorf("published again as %s", key)
		}
	}
	f.reopen()
	if key := f.publish(later); key != first {
		t.Errorf("published after a restart as %s", key)
	}
	if n := len(f.list("").Offers); n != 1 {
		t.Errorf("%d documents", n)
	}
	if b, err := os.ReadFile(filepath.Join(f.dir, first)); err != nil || string(b) != goldenDocument {
		t.Errorf("document is %s, %v", b, err)
	}
}

func TestPublishTogether(t *testing.T) {
	f := open(t)
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	var offers []dealer.Offer
	for n := range 20 {
		offers = append(offers, numbered(t, n, at.Add(time.Duration(n)*time.Second)))
	}
	var group sync.WaitGroup
	for range 4 {
		for _, o := range offers {
			group.Go(func() {
				if _, err := f.Publish(t.Context(), o); err != nil {
					t.Error(err)
				}
			})
		}
	}
	group.Wait()
	if n := len(f.list("").Offers); n != len(offers) {
		t.Errorf("%d documents of %d aggregates", n, len(offers))
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) != len(offers) {
		t.Errorf("directory holds %d files, %v", len(entries), err)
	}
}

// TestReplicas: however many publish an aggregate at once, offered at different times, it has one document, which each of them lists and serves.
func TestReplicas(t *testing.T) {
	one := open(t)
	two := one.replica()
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	const aggregates = 10
	var mu sync.Mutex
	keys := map[string]map[string]bool{} // by aggregate
	var group sync.WaitGroup
	for n := range aggregates {
		for i, f := range []*fixture{one, two, one, two} {
			group.Go(func() {
				o := numbered(t, n, at.Add(time.Duration(i)*time.Minute))
				key, err := f.Publish(t.Context(), o)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if keys[o.Aggregate.String()] == nil {
					keys[o.Aggregate.String()] = map[string]bool{}
				}
				keys[o.Aggregate.String()][key] = true
			})
		}
	}
	group.Wait()
	var want []string
	for aggregate, names := range keys {
		if len(names) != 1 {
			t.Errorf("%s has %d documents", aggregate, len(names))
		}
		want = slices.AppendSeq(want, maps.Keys(names))
	}
	slices.Sort(want)
	for _, f := range []*fixture{one, two} {
		if diff := cmp.Diff(want, f.list("").keys()); diff != "" {
			t.Error(diff)
		}
		for _, key := range want {
			resp, body := f.get("/offers/" + key)
			if b, err := os.ReadFile(filepath.Join(f.dir, key)); resp.StatusCode != http.StatusOK || err != nil || !bytes.Equal(b, body) {
				t.Errorf("HTTP %d %s; the file has %s, %v", resp.StatusCode, body, b, err)
			}
		}
	}
	// Before any index has it, a document is found by its key.
	key := one.publish(golden(t))
	if resp, body := two.get("/offers/" + key); string(body) != goldenDocument {
		t.Errorf("HTTP %d %s", resp.StatusCode, body)
	}
}

// TestLarge: a document that does not fit a commit is served whole, by ranges, and from any place on.
func TestLarge(t *testing.T) {
	f := open(t)
	var pieces []piece.Link
	for n := range 1000 {
		p, err := piece.Sum(fmt.Appendf(nil, "payload %d", n))
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, p)
	}
	built, err := segment.Build(256<<20, pieces)
	if err != nil {
		t.Fatal(err)
	}
	o := dealer.Offer{Aggregate: built.Link(), Pieces: pieces, Collection: "did:key:z6Mk", OfferedAt: time.Unix(1e9, 0)}
	key := f.publish(o)
	_, want, err := encode(o)
	if err != nil || len(want) <= store.MaxInlineBlob {
		t.Fatalf("a document of %d bytes, %v", len(want), err)
	}
	if _, body := f.get("/offers/" + key); !bytes.Equal(body, want) {
		t.Errorf("%d bytes of %d", len(body), len(want))
	}
	for ranges, want := range map[string][]byte{"bytes=70-99": want[70:100], "bytes=40000-": want[40000:], "bytes=-5": want[len(want)-5:]} {
		req, err := http.NewRequest(http.MethodGet, f.url+"/offers/"+key, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", ranges)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, want) {
			t.Errorf("%s: HTTP %d, %d bytes, %v", ranges, resp.StatusCode, len(body), err)
		}
	}
	content, err := f.engine.Open(t.Context(), store.RawBlob(want).CID)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(&seeker{BlobReader: content}, want); err != nil {
		t.Error(err)
	}
}

// TestAdopt: what an earlier version kept as files is in the store afterwards, the first of each aggregate, byte by byte, and what is no document is said.
func TestAdopt(t *testing.T) {
	f := open(t)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	adopt := func(want int) {
		t.Helper()
		f.clock.Advance(time.Hour)
		if got, err := f.Adopt(t.Context(), dir); got != want || err != nil {
			t.Errorf("adopted %d, %v; want %d", got, err, want)
		}
	}
	if n, err := f.Adopt(t.Context(), filepath.Join(dir, "none")); n != 0 || err != nil {
		t.Errorf("adopted %d of no directory, %v", n, err)
	}
	// The second one of an aggregate, as two processes on one directory could have left it; one that is in the store; and things that are no offers.
	again := golden(t)
	again.OfferedAt = again.OfferedAt.Add(time.Hour)
	later, content, err := encode(again)
	if err != nil {
		t.Fatal(err)
	}
	there := numbered(t, 1, time.Unix(1e9, 0))
	known := f.publish(there)
	write(goldenKey, goldenDocument)
	write(later, string(content))
	write(strings.Replace(known, "2001", "2002", 1), "{}")
	write("README", "{}")
	write(".offer-1.tmp", `{"agg`)
	adopt(1)
	adopt(0)
	f.reopen()
	if diff := cmp.Diff([]string{known, goldenKey}, f.list("").keys()); diff != "" {
		t.Error(diff)
	}
	if _, body := f.get("/offers/" + goldenKey); string(body) != goldenDocument {
		t.Errorf("it is %s now", body)
	}
	if key := f.publish(again); key != goldenKey {
		t.Errorf("published again as %s", key)
	}

	other, content, err := encode(numbered(t, 2, time.Unix(1e9, 0)))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"no JSON": "offer", "another document": goldenDocument, "another time": strings.Replace(string(content), "1000000000000", "1", 1)} {
		write(other, text)
		if n, err := f.Adopt(t.Context(), dir); err == nil || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s: adopted %d, %v", what, n, err)
		}
	}
	write(other, string(content))
	adopt(1)
}

func TestRefused(t *testing.T) {
	f := open(t)
	for name, change := range map[string]func(*dealer.Offer){
		"no aggregate":    func(o *dealer.Offer) { o.Aggregate = piece.Link{} },
		"no pieces":       func(o *dealer.Offer) { o.Pieces = nil },
		"piece missing":   func(o *dealer.Offer) { o.Pieces = o.Pieces[1:] },
		"piece twice":     func(o *dealer.Offer) { o.Pieces = append(o.Pieces, o.Pieces[0]) },
		"other order":     func(o *dealer.Offer) { slices.Reverse(o.Pieces) },
		"other aggregate": func(o *dealer.Offer) { o.Aggregate = o.Pieces[0] },
		"no collection":   func(o *dealer.Offer) { o.Collection = "" },
		"no time":         func(o *dealer.Offer) { o.OfferedAt = time.Time{} },
		"no such year":    func(o *dealer.Offer) { o.OfferedAt = o.OfferedAt.AddDate(9000, 0, 0) },
	} {
		o := golden(t)
		change(&o)
		if key, err := f.Publish(t.Context(), o); err == nil {
			t.Errorf("%s: published %s", name, key)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if key, err := f.Publish(ctx, golden(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("published %s, %v", key, err)
	}
	// The file counts as well: until it is there, the offer is to be published again.
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	if key, err := f.Publish(t.Context(), golden(t)); err == nil {
		t.Errorf("published %s to nowhere", key)
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if key := f.publish(golden(t)); key != goldenKey {
		t.Errorf("published as %s", key)
	}
	if b, err := os.ReadFile(filepath.Join(f.dir, goldenKey)); err != nil || string(b) != goldenDocument {
		t.Errorf("the file has %s, %v", b, err)
	}
}

// TestStoreAway: what cannot be read now is neither missing nor empty.
func TestStoreAway(t *testing.T) {
	f := open(t)
	f.publish(golden(t))
	if err := f.engine.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/offers", "/offers/" + goldenKey} {
		if resp, body := f.get(path); resp.StatusCode != http.StatusInternalServerError {
			t.Errorf("%s: HTTP %d %s", path, resp.StatusCode, body)
		}
	}
	if key, err := f.Publish(t.Context(), golden(t)); err == nil {
		t.Errorf("published %s", key)
	}
	if n, err := f.Adopt(t.Context(), f.dir); err == nil {
		t.Errorf("adopted %d", n)
	}
}

func TestList(t *testing.T) {
	f := open(t)
	at := time.Date(2026, 7, 31, 23, 59, 0, 0, time.UTC)
	var want []string
	for n := range 250 {
		want = append(want, f.publish(numbered(t, n, at.Add(time.Duration(n)*time.Second))))
	}
	slices.Sort(want)
	for _, limit := range []int{1, 7, 100, 249, 250, 1000, 1_000_000} {
		var got []string
		pages, after := 0, ""
		for {
			list := f.list(fmt.Sprintf("?after=%s&limit=%d", after, limit))
			if len(list.Offers) > min(limit, MaxPage) {
				t.Fatalf("%d offers on a page of %d", len(list.Offers), limit)
			}
			got = append(got, list.keys()...)
			pages++
			if list.Next == "" {
				break
			}
			after = list.Next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("by %d: %s", limit, diff)
		}
		if most := (len(want)+limit-1)/min(limit, MaxPage) + 1; pages > most {
			t.Errorf("by %d: %d pages", limit, pages)
		}
	}
	if got := len(f.list("").Offers); got != DefaultPage {
		t.Errorf("a page without a limit has %d offers", got)
	}
	if got := f.list("?after=2026-08-01&limit=1000").keys(); cmp.Diff(want[60:], got) != "" {
		t.Errorf("after a date: %s", cmp.Diff(want[60:], got))
	}
	if got := f.list("?after=9"); len(got.Offers) != 0 || got.Next != "" {
		t.Errorf("after the end: %v", got)
	}
	if got := f.list("?after=" + want[len(want)-1]); len(got.Offers) != 0 {
		t.Errorf("after the last: %v", got)
	}
}

func TestBadRequests(t *testing.T) {
	f := open(t)
	f.publish(golden(t))
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.dir), "secret.json"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := numbered(t, 1, time.Unix(1e9, 0))
	for path, want := range map[string]int{
		"/offers?limit=0":                                   400,
		"/offers?limit=-1":                                  400,
		"/offers?limit=x":                                   400,
		"/offers?after=%00":                                 400,
		"/offers?after=a/b":                                 400,
		"/offers?after=%2e%2e":                              200, // a beginning of no key, and nothing else
		"/offers?after=" + strings.Repeat("9", 256):         400,
		"/offers/":                                          404,
		"/offers/secret.json":                               404,
		"/offers/%2e%2e%2fsecret.json":                      404,
		"/offers/..%2fsecret.json":                          404,
		"/offers/" + goldenKey + "%00":                      404,
		"/offers/" + strings.ToUpper(goldenKey):             404,
		"/offers/" + goldenKey + ".bak":                     404,
		"/offers/2026-08-01T12:30:05.067Z_.json":            404,
		"/offers/2026-13-01T12:30:05.067Z" + goldenKey[24:]: 404,
		"/offers/2026-08-01T12:30:05,067Z" + goldenKey[24:]: 404,
		"/offers/2026-08-01T12:30:05.068Z" + goldenKey[24:]: 404, // well formed, not there
		"/offers/2001-09-09T01:46:40.000Z_" + other.Aggregate.String() + ".json": 404, // of an aggregate that was never offered
		"/offers/" + goldenKey: 200,
		"/":                    404,
	} {
		resp, body := f.get(path)
		if resp.StatusCode != want || bytes.Contains(body, []byte("secret")) {
			t.Errorf("%s: HTTP %d %s, want %d", path, resp.StatusCode, body, want)
		}
	}
	resp, err := http.Post(f.url+"/offers", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: HTTP %d", resp.StatusCode)
	}
}

func TestOpen(t *testing.T) {
	engine := open(t).engine
	if _, err := OpenDocuments(DocumentsConfig{Dir: t.TempDir()}); err == nil {
		t.Error("opened without a store")
	}
	if _, err := OpenDocuments(DocumentsConfig{Store: engine, Dir: filepath.Join(t.TempDir(), "no", "parent")}); err == nil {
		t.Error("opened a directory without a parent")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDocuments(DocumentsConfig{Store: engine, Dir: file}); err == nil {
		t.Error("opened a file")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(goldenKey)
	f.Add("2026-08-01_x.json")
	f.Add("../" + goldenKey)
	f.Fuzz(func(t *testing.T, key string) {
		at, aggregate, ok := parseKey(key)
		if !ok {
			return
		}
		if !isCursor(key) || filepath.Base(key) != key || key[24:] != "_"+aggregate+".json" || at.Format(timeOfKey) != key[:24] {
			t.Errorf("%q is a key", key)
		}
	})
}
