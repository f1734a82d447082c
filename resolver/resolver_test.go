package resolver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

// Vectors: byte k of the content is k*7 + seed*13.
const (
	piece500    = "bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq" // seed 0
	content500  = "bafkreifyvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m"
	piece1000   = "bafkzcibccacs6xworhegwgr73wsnj2ngsic3lt4he72bnmekon35wvmn6ducmpy" // seed 1
	content1000 = "bafkreigilyu3bs4k6elm35zvsyo74kq7clsexs5zo2jzcfjj4h6q5dizty"
	piece1500   = "bafkzcibdsqcammzcfucufyigeep4mxfoyjcau4da5of4gaihctejz55g5kz27fqh"
	content1500 = "bafkreie75mw6sjaoxp4s2cmbjfy7zfdjyrc4ogywsicca62jdsyoapwvle"
)

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(k*7 + seed*13)
	}
	return b
}

func mustPiece(t testing.TB, s string) piece.Link {
	t.Helper()
	p, err := piece.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustCID(t testing.TB, s string) cid.Cid {
	t.Helper()
	c, err := cid.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// world is the storefront and the custody that a resolver asks. It counts the questions.
type world struct {
	mu       sync.Mutex
	contents map[piece.Link][]cid.Cid
	located  map[string]int64 // length by content
	err      error            // of every question
	asked    int
}

func (w *world) ContentOf(_ context.Context, p piece.Link) ([]cid.Cid, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	return w.contents[p], w.err
}

func (w *world) Locate(_ context.Context, c cid.Cid) (source.Location, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	length, ok := w.located[c.String()]
	if w.err == nil && !ok {
		return source.Location{}, fmt.Errorf("%s: %w", c, source.ErrNoContent)
	}
	return source.At("https://custody.example/content/"+c.String(), length), w.err
}

func (w *world) set(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) questions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{
		contents: map[piece.Link][]cid.Cid{
			mustPiece(t, piece500):  {mustCID(t, content500)},
			mustPiece(t, piece1000): {mustCID(t, content500), mustCID(t, content1500), mustCID(t, content1000)},
			mustPiece(t, piece1500): {mustCID(t, content1500)},
		},
		located: map[string]int64{content500: 500, content1000: 1000},
	}
}

func newResolver(t testing.TB, cfg Config) http.Handler {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newServer(t testing.TB, w *world, cfg Config) *httptest.Server {
	t.Helper()
	cfg.Contents, cfg.Locator = w, w
	server := httptest.NewServer(newResolver(t, cfg))
	t.Cleanup(server.Close)
	return server
}

type answer struct {
	status          int
	location, cache string
	name, message   string // of a refusal
	header          http.Header
}

// ask sends a request whose path and query are exactly as given, and follows no redirect.
func ask(t testing.TB, server *httptest.Server, method, target string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = target
	resp, err := server.Client().Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var refused struct{ Name, Message string }
	switch {
	case resp.StatusCode == http.StatusFound || method == http.MethodHead:
		if len(body) != 0 {
			t.Errorf("%s %s: body %q", method, target, body)
		}
	case resp.Header.Get("Content-Type") != "application/json":
		t.Errorf("%s %s: body is %q", method, target, resp.Header.Get("Content-Type"))
	default:
		if err := json.Unmarshal(body, &refused); err != nil || refused.Name == "" || refused.Message == "" {
			t.Errorf("%s %s: body %q, %v", method, target, body, err)
		}
	}
	return answer{resp.StatusCode, resp.Header.Get("Location"), resp.Header.Get("Cache-Control"), refused.Name, refused.Message, resp.Header}
}

func TestResolve(t *testing.T) {
	server := newServer(t, newWorld(t), Config{})
	base58, err := mustPiece(t, piece500).CID().StringOfBase(multibase.Base58BTC)
	if err != nil {
		t.Fatal(err)
	}
	v1 := mustPiece(t, piece500).V1().String()
	const custody = "https://custody.example/content/"
	for _, tt := range []struct {
		name, target string
		status       int
		location     string // of a redirect
		failure      string // or the name of a refusal
		cache        string
	}{
		{name: "piece", target: "/piece/" + piece500, status: 302, location: custody + content500, cache: "public, max-age=300"},
		{name: "piece at the root", target: "/" + piece500, status: 302, location: custody + content500, cache: "public, max-age=300"},
		{name: "piece in another base", target: "/piece/" + base58, status: 302, location: custody + content500, cache: "public, max-age=300"},
		{name: "the one of three contents that is here and fits", target: "/piece/" + piece1000, status: 302, location: custody + content1000, cache: "public, max-age=300"},
		{name: "content", target: "/" + content500, status: 302, location: custody + content500, cache: "public, max-age=300"},
		{name: "expires sooner", target: "/piece/" + piece500 + "?expires=1", status: 302, location: custody + content500, cache: "public, max-age=1"},
		{name: "expires at the latest", target: "/piece/" + piece500 + "?expires=259200", status: 302, location: custody + content500, cache: "public, max-age=300"},
		{name: "other query", target: "/piece/" + piece500 + "?x=y", status: 302, location: custody + content500, cache: "public, max-age=300"},

		{name: "expires too late", target: "/piece/" + piece500 + "?expires=259201", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expires at once", target: "/piece/" + piece500 + "?expires=0", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expired", target: "/" + content500 + "?expires=-1", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expires never", target: "/" + content500 + "?expires=never", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expires, empty", target: "/" + content500 + "?expires=", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expires twice", target: "/" + content500 + "?expires=5&expires=6", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "expires overflows", target: "/" + content500 + "?expires=18446744073709551617", status: 400, failure: "InvalidQuery", cache: "no-store"},
		{name: "malformed query", target: "/" + content500 + "?expires=%zz", status: 400, failure: "InvalidQuery", cache: "no-store"},

		{name: "piece CID v1", target: "/piece/" + v1, status: 415, failure: "InvalidPiece", cache: "no-store"},
		{name: "piece CID v1 at the root", target: "/" + v1, status: 415, failure: "InvalidPiece", cache: "no-store"},
		{name: "content where a piece is due", target: "/piece/" + content500, status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "no CID", target: "/piece/", status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "not a CID", target: "/piece/hello", status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "too long", target: "/piece/b" + strings.Repeat("a", 5000), status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "traversal", target: "/piece/../" + piece500, status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "encoded traversal", target: "/piece/..%2f..%2fetc", status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "more path", target: "/piece/" + piece500 + "/x", status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "a NUL", target: "/piece/" + piece500 + "%00", status: 400, failure: "InvalidPiece", cache: "no-store"},
		{name: "unsupported content", target: "/" + cid.NewCidV1(cid.DagProtobuf, mustCID(t, content500).Hash()).String(), status: 400, failure: "InvalidContent", cache: "no-store"},
		{name: "not a CID at the root", target: "/favicon.ico", status: 400, failure: "InvalidContent", cache: "no-store"},

		{name: "piece whose content is not here", target: "/piece/" + piece1500, status: 404, failure: "NotFound", cache: "public, max-age=2"},
		{name: "unknown piece", target: "/piece/bafkzcibceaddc2lvqyf4sg7ysvfettlrfm7bblbxhrcy6fmihjlzcq5kkaznkby", status: 404, failure: "NotFound", cache: "public, max-age=2"},
		{name: "content that is not here", target: "/" + content1500, status: 404, failure: "NotFound", cache: "public, max-age=2"},
		{name: "root", target: "/", status: 404, failure: "NotFound", cache: "public, max-age=2"},
		{name: "elsewhere", target: "/key/x", status: 404, failure: "NotFound", cache: "public, max-age=2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // cold and warm
				for _, method := range []string{"GET", "HEAD"} {
					got := ask(t, server, method, tt.target)
					if got.status != tt.status || got.location != tt.location || got.cache != tt.cache {
						t.Errorf("%s: status %d, Location %q, Cache-Control %q; want %d, %q, %q",
							method, got.status, got.location, got.cache, tt.status, tt.location, tt.cache)
					}
					if method == "GET" && got.name != tt.failure {
						t.Errorf("refused as %s %q, want %s", got.name, got.message, tt.failure)
					}
				}
			}
		})
	}
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		got := ask(t, server, method, "/piece/"+piece500)
		if got.status != 405 || got.header.Get("Allow") != "GET, HEAD" || got.name != "MethodNotAllowed" {
			t.Errorf("%s: %+v", method, got)
		}
	}
}

// TestPieceFromV1: a link that was made from a piece CID v1 states no padding; the content's length still has to give
// its padded size.
func TestPieceFromV1(t *testing.T) {
	p := mustPiece(t, piece500)
	old, err := piece.FromV1(p.V1(), p.PaddedSize())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.contents[old] = []cid.Cid{mustCID(t, content1000), mustCID(t, content500)}
	server := newServer(t, w, Config{})
	if got := ask(t, server, "GET", "/piece/"+old.String()); got.status != 302 || !strings.HasSuffix(got.location, content500) {
		t.Errorf("%+v", got)
	}
}

// TestChangedContent: custody that has other bytes under the name than were validated is not redirected to, and somebody
// is told.
func TestChangedContent(t *testing.T) {
	for _, length := range []int64{0, -1, 508 + 1, 1 << 40} { // 508 bytes are the most that a piece of this size holds
		w := newWorld(t)
		w.located[content500] = length
		var log bytes.Buffer
		server := newServer(t, w, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		got := ask(t, server, "GET", "/piece/"+piece500)
		server.Close()
		if got.status != 404 || !strings.Contains(log.String(), content500) {
			t.Errorf("%d bytes: %+v; log %q", length, got, log.String())
		}
	}
}

func TestLookUpFails(t *testing.T) {
	w := newWorld(t)
	w.err = errors.New("dial tcp 10.0.0.5:5432: refused")
	var log bytes.Buffer
	cfg := Config{Contents: w, Locator: w, Log: slog.New(slog.NewTextHandler(&log, nil))}
	h := newResolver(t, cfg)
	for _, target := range []string{"/piece/" + piece500, "/" + content500} {
		log.Reset()
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", target, nil))
		if rec.Code != 503 || rec.Header().Get("Retry-After") == "" || rec.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: status %d, header %v", target, rec.Code, rec.Header())
		}
		if strings.Contains(rec.Body.String(), "10.0.0.5") || !strings.Contains(log.String(), "10.0.0.5") {
			t.Errorf("%s: body %q, log %q: the cause belongs into the log only", target, rec.Body, log.String())
		}
	}

	w.err = nil // the failure was not remembered
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/piece/"+piece500, nil))
	if rec.Code != 302 {
		t.Errorf("after the failure: status %d", rec.Code)
	}

	t.Run("one content cannot be looked up, another is here", func(t *testing.T) {
		w := newWorld(t)
		h := newResolver(t, Config{Contents: w, Locator: brokenFor{w, content500}})
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "/piece/"+piece1000, nil))
		if rec.Code != 302 {
			t.Errorf("status %d", rec.Code)
		}
	})
	t.Run("one content cannot be looked up, another is not here", func(t *testing.T) {
		w := newWorld(t)
		delete(w.located, content1000)
		h := newResolver(t, Config{Contents: w, Locator: brokenFor{w, content500}})
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "/piece/"+piece1000, nil))
		if rec.Code != 503 {
			t.Errorf("status %d, want 503: nobody knows that it is not here", rec.Code)
		}
	})
	t.Run("the client has gone", func(t *testing.T) {
		log.Reset()
		w.set(func(w *world) { w.err = context.Canceled })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		newResolver(t, cfg).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/piece/"+piece500, nil).WithContext(ctx))
		if log.Len() != 0 {
			t.Errorf("logged as a failure: %s", log.String())
		}
	})
}

// brokenFor fails to locate one content.
type brokenFor struct {
	*world
	content string
}

func (b brokenFor) Locate(ctx context.Context, c cid.Cid) (source.Location, error) {
	if c.String() == b.content {
		return source.Location{}, errors.New("disk failure")
	}
	return b.world.Locate(ctx, c)
}

func TestRemembering(t *testing.T) {
	w := newWorld(t)
	now := time.Unix(1_700_000_000, 0)
	server := newServer(t, w, Config{TTL: time.Minute, MissTTL: 3 * time.Second, Now: func() time.Time { return now }})
	step := func(what, target string, status, questions int) {
		t.Helper()
		before := w.questions()
		if got := ask(t, server, "GET", target); got.status != status {
			t.Errorf("%s: status %d, want %d", what, got.status, status)
		}
		if got := w.questions() - before; got != questions {
			t.Errorf("%s: %d questions, want %d", what, got, questions)
		}
	}
	hit, miss := "/piece/"+piece500, "/piece/"+piece1500
	step("first", hit, 302, 2)
	step("again", hit, 302, 0)
	step("by another path", "/"+piece500, 302, 0)
	w.set(func(w *world) { delete(w.located, content500) })
	now = now.Add(time.Minute - 1)
	step("just before it is forgotten", hit, 302, 0)
	now = now.Add(1)
	step("content has left", hit, 404, 2)

	step("first miss", miss, 404, 2)
	now = now.Add(3*time.Second - 1)
	step("again", miss, 404, 0)
	w.set(func(w *world) { w.located[content1500] = 1500 })
	step("content has come, unnoticed", miss, 404, 0)
	now = now.Add(1)
	step("noticed", miss, 302, 2)
}

// TestMissesPushNothingOut: somebody who asks for pieces that do not exist costs nobody a remembered redirect.
func TestMissesPushNothingOut(t *testing.T) {
	w := newWorld(t)
	h := newResolver(t, Config{Contents: w, Locator: w, CacheSize: 32}).(*resolver)
	get := func(target string) int {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", target, nil))
		return rec.Code
	}
	if got := get("/piece/" + piece500); got != 302 {
		t.Fatalf("status %d", got)
	}
	p := mustPiece(t, piece500)
	for i := range 1000 {
		root := p.Root()
		root[0], root[1] = byte(i), byte(i>>8)
		other, err := piece.FromRootAndHeight(root, p.Height(), p.Padding())
		if err != nil {
			t.Fatal(err)
		}
		if got := get("/piece/" + other.String()); got != 404 && other != p {
			t.Fatalf("status %d", got)
		}
	}
	before := w.questions()
	if got := get("/piece/" + piece500); got != 302 || w.questions() != before {
		t.Errorf("status %d, %d questions; want 302 from memory", got, w.questions()-before)
	}
	if n := len(h.misses.entries); n != 32/missShare {
		t.Errorf("%d misses are remembered, want %d", n, 32/missShare)
	}
}

func TestCache(t *testing.T) {
	now := time.Unix(0, 0)
	c := newCache[string](2, time.Second)
	c.put("a", "1", now)
	c.put("b", "2", now)
	if v, ok := c.get("a", now); v != "1" || !ok { // a is now the more recent
		t.Errorf("a: %q, %t", v, ok)
	}
	c.put("c", "3", now)
	if _, ok := c.get("b", now); ok {
		t.Error("b is still there")
	}
	c.put("a", "4", now.Add(time.Second))
	for key, want := range map[string]string{"a": "4", "c": ""} {
		if v, ok := c.get(key, now.Add(time.Second)); v != want || ok != (want != "") {
			t.Errorf("%s after a second: %q, %t; want %q", key, v, ok, want)
		}
	}
	if len(c.entries) != 1 || c.order.Len() != 1 {
		t.Errorf("%d entries, %d in order; want 1", len(c.entries), c.order.Len())
	}
}

func TestConcurrently(t *testing.T) {
	w := newWorld(t)
	h := newResolver(t, Config{Contents: w, Locator: w, CacheSize: 1})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			target, status := "/piece/"+piece500, 302
			switch i % 3 {
			case 1:
				target = "/piece/" + piece1000
			case 2:
				target, status = "/piece/"+piece1500, 404
			}
			for range 200 {
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, httptest.NewRequest("GET", target, nil))
				if rec.Code != status {
					t.Errorf("%s: status %d", target, rec.Code)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t)
	for _, cfg := range []Config{
		{Locator: w}, {Contents: w},
		{Contents: w, Locator: w, TTL: -1}, {Contents: w, Locator: w, MissTTL: -1}, {Contents: w, Locator: w, CacheSize: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

// TestDownload goes the way of a storage provider, over HTTP: from the piece CID to bytes that give the piece.
func TestDownload(t *testing.T) {
	dir, err := source.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	custody, err := source.NewCustody(server.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/content/", source.NewContentHandler(custody, source.ContentConfig{}))
	mux.Handle("/", newResolver(t, Config{Contents: newWorld(t), Locator: custody}))
	want := pattern(500, 0)
	if _, err := custody.Put(t.Context(), mustCID(t, content500), bytes.NewReader(want), 500); err != nil {
		t.Fatal(err)
	}

	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/piece/" + piece500 + "?expires=604", "/" + content500} {
		body, length, err := fetcher.Fetch(t.Context(), server.URL+target)
		if err != nil {
			t.Fatal(err)
		}
		h := piece.NewHasher()
		n, err := io.Copy(h, body)
		body.Close()
		if err != nil || n != 500 || length != 500 {
			t.Fatalf("%s: %d bytes, length %d, %v", target, n, length, err)
		}
		got, err := h.Sum()
		if err != nil || got != mustPiece(t, piece500) {
			t.Errorf("%s: the bytes are the piece %s, %v", target, got, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"/piece/" + piece500, "/" + piece500, "/" + content500, "/piece/" + content500, "/piece/../x", "/", "", "//",
		"/piece/baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq", "piece/" + piece500, "/piece/z", "/x/y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parsePath(s)
		if err != nil {
			var e *refusal
			if !errors.As(err, &e) || e.status < 400 || e.status > 499 || len(e.message) > 4096 {
				t.Fatalf("%q: %#v", s, err)
			}
			return
		}
		if n.piece.Defined() == n.content.Defined() {
			t.Fatalf("%q names both or neither: %v", s, n)
		}
		text := "/" + n.content.String()
		if n.piece.Defined() {
			text = "/piece/" + n.piece.String()
		}
		if again, err := parsePath(text); err != nil || again != n {
			t.Fatalf("%q: %s names %v, %v", s, text, again, err)
		}
	})
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func BenchmarkWarm(b *testing.B) {
	for _, bb := range []struct{ name, target string }{
		{"piece", "/piece/" + piece500}, {"content", "/" + content500}, {"miss", "/piece/" + piece1500},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w := newWorld(b)
			h := newResolver(b, Config{Contents: w, Locator: w, MissTTL: time.Hour})
			r := httptest.NewRequest("GET", bb.target, nil)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(&discard{header: http.Header{}}, r)
			}
		})
	}
}

func BenchmarkWarmOverHTTP(b *testing.B) {
	server := newServer(b, newWorld(b), Config{})
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequest("GET", server.URL+"/piece/"+piece500, nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil || resp.StatusCode != 302 {
			b.Fatal(resp, err)
		}
		resp.Body.Close()
	}
}
