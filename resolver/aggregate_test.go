package resolver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
)

// shelf is a custody with the pieces of one aggregate in it.
type shelf struct {
	*source.Custody
	dir       string
	aggregate *segment.Aggregate
	file      []byte // the aggregate as one file
	contents  map[piece.Link][]cid.Cid
	asked     int
}

func (s *shelf) ContentOf(_ context.Context, p piece.Link) ([]cid.Cid, error) {
	return s.contents[p], nil
}

func (s *shelf) PiecesOf(_ context.Context, link piece.Link) ([]piece.Link, error) {
	s.asked++
	if link != s.aggregate.Link() {
		return nil, nil
	}
	var list []piece.Link
	for _, p := range s.aggregate.Pieces() {
		list = append(list, p)
	}
	return list, nil
}

func rawContent(t testing.TB, b []byte) cid.Cid {
	t.Helper()
	digest := sha256.Sum256(b)
	mh, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.Raw, mh)
}

// newShelf makes an aggregate of 64 KiB of contents of the given sizes. The last piece is named as one that was made
// from a piece CID v1: its link states no padding.
func newShelf(t testing.TB, sizes ...int) *shelf {
	t.Helper()
	s := &shelf{dir: t.TempDir(), contents: map[piece.Link][]cid.Cid{}}
	dir, err := source.OpenDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Custody, err = source.NewCustody("https://custody.example", dir); err != nil {
		t.Fatal(err)
	}
	var links []piece.Link
	payload := map[piece.Link][]byte{}
	for i, n := range sizes {
		b := pattern(n, 20+i)
		link, err := piece.Sum(b)
		if err != nil {
			t.Fatal(err)
		}
		if i == len(sizes)-1 {
			if link, err = piece.FromV1(link.V1(), link.PaddedSize()); err != nil {
				t.Fatal(err)
			}
		}
		content := rawContent(t, b)
		if _, err := s.Put(t.Context(), content, bytes.NewReader(b), 1<<20); err != nil {
			t.Fatal(err)
		}
		s.contents[link] = []cid.Cid{content}
		payload[link] = append(b, make([]byte, int(link.PayloadSize())-n)...)
		links = append(links, link)
	}
	if s.aggregate, err = segment.Build(64<<10, links); err != nil {
		t.Fatal(err)
	}
	file := segment.NewReader(s.aggregate, func(i int, off int64, p []byte) (int, error) {
		return copy(p, payload[s.aggregate.Piece(i)][off:]), nil
	})
	s.file = make([]byte, file.Size())
	if _, err := file.ReadAt(s.file, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return s
}

func newAggregates(t testing.TB, cfg AggregatesConfig) http.Handler {
	t.Helper()
	h, err := NewAggregates(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestAggregateFile: the file that is served hashes to the aggregate, whole and in ranges, over HTTP.
func TestAggregateFile(t *testing.T) {
	s := newShelf(t, 5000, 900, 127, 300)
	if sum, err := piece.Sum(s.file); err != nil || sum != s.aggregate.Link() {
		t.Fatalf("the file is %s, %v", sum, err)
	}
	server := httptest.NewServer(newAggregates(t, AggregatesConfig{Aggregates: s, Payloads: Custody{s, s}}))
	defer server.Close()
	url := server.URL + "/aggregate/" + s.aggregate.Link().String()
	get := func(method, byteRange string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if byteRange != "" {
			req.Header.Set("Range", byteRange)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	resp, b := get("GET", "")
	if resp.StatusCode != 200 || !bytes.Equal(b, s.file) || resp.Header.Get("ETag") != `"`+s.aggregate.Link().String()+`"` {
		t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(b), resp.Header)
	}
	if resp, b := get("HEAD", ""); resp.ContentLength != int64(len(s.file)) || len(b) != 0 {
		t.Errorf("HEAD: length %d", resp.ContentLength)
	}
	for _, r := range [][2]int{{0, 0}, {0, len(s.file) - 1}, {4990, 5010}, {127, 8000}, {len(s.file) - 300, len(s.file) - 1}} {
		resp, b := get("GET", fmt.Sprintf("bytes=%d-%d", r[0], r[1]))
		if resp.StatusCode != 206 || !bytes.Equal(b, s.file[r[0]:r[1]+1]) {
			t.Errorf("bytes %v: status %d, %d bytes", r, resp.StatusCode, len(b))
		}
	}
	if resp, _ := get("GET", fmt.Sprintf("bytes=%d-", len(s.file))); resp.StatusCode != 416 {
		t.Errorf("behind the end: status %d", resp.StatusCode)
	}
	if s.asked != 1 {
		t.Errorf("the aggregate was looked up %d times", s.asked)
	}
}

func TestAggregateRefuses(t *testing.T) {
	s := newShelf(t, 5000, 900)
	var log bytes.Buffer
	cfg := AggregatesConfig{Aggregates: s, Payloads: Custody{s, s}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, tt := range []struct {
		what, path string
		status     int
	}{
		{"another piece", piece500, 404}, {"again", piece500, 404}, {"content", content500, 400}, {"nothing", "", 400},
		{"a piece CID v1", mustPiece(t, piece500).V1().String(), 415},
	} {
		rec := httptest.NewRecorder()
		newAggregates(t, cfg).ServeHTTP(rec, httptest.NewRequest("GET", "/aggregate/"+tt.path, nil))
		if rec.Code != tt.status {
			t.Errorf("%s: status %d, want %d", tt.what, rec.Code, tt.status)
		}
	}
	rec := httptest.NewRecorder()
	newAggregates(t, cfg).ServeHTTP(rec, httptest.NewRequest("POST", "/aggregate/"+s.aggregate.Link().String(), nil))
	if rec.Code != 405 {
		t.Errorf("POST: status %d", rec.Code)
	}
	if _, err := NewAggregates(AggregatesConfig{Aggregates: s}); err == nil {
		t.Error("aggregates without payloads were accepted")
	}

	// Pieces that make another aggregate.
	other := *s
	other.aggregate = newShelf(t, 901).aggregate
	rec = httptest.NewRecorder()
	cfg.Aggregates = wrongPieces{s}
	newAggregates(t, cfg).ServeHTTP(rec, httptest.NewRequest("GET", "/aggregate/"+other.aggregate.Link().String(), nil))
	if rec.Code != 503 || !strings.Contains(log.String(), "make ") {
		t.Errorf("pieces of another aggregate: status %d, log %s", rec.Code, log.String())
	}
}

// wrongPieces answers for any aggregate with the same pieces.
type wrongPieces struct{ *shelf }

func (w wrongPieces) PiecesOf(ctx context.Context, _ piece.Link) ([]piece.Link, error) {
	return w.shelf.PiecesOf(ctx, w.aggregate.Link())
}

// TestAggregateWithoutAPiece: what is missing or has changed ends the download. It is never zeros, and the length that
// was stated is not reached.
func TestAggregateWithoutAPiece(t *testing.T) {
	for what, spoil := range map[string]func(file string) error{
		"gone":   os.Remove,
		"longer": func(file string) error { return replace(file, pattern(70_000, 1)) },
		"empty":  func(file string) error { return replace(file, nil) },
	} {
		t.Run(what, func(t *testing.T) {
			s := newShelf(t, 5000, 900, 901)
			content := s.contents[s.aggregate.Piece(1)][0]
			name := source.MultihashName(content)
			if err := spoil(filepath.Join(s.dir, name[len(name)-3:len(name)-1], name)); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			server := httptest.NewServer(newAggregates(t, AggregatesConfig{Aggregates: s, Payloads: Custody{s, s}, Log: slog.New(slog.NewTextHandler(&log, nil))}))
			defer server.Close()
			resp, err := http.Get(server.URL + "/aggregate/" + s.aggregate.Link().String())
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(s.file, b) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			server.Close()
			if !strings.Contains(log.String(), s.aggregate.Piece(1).String()) {
				t.Errorf("the log does not say which piece: %s", log.String())
			}
		})
	}
}

// TestAggregateOfStorefronts: an aggregate is put together from what the resolvers of storefronts have, whole and in ranges. One that does not know a piece, or
// is not there, is followed by the next.
func TestAggregateOfStorefronts(t *testing.T) {
	s := newShelf(t, 5000, 900, 127, 300)
	gone := httptest.NewServer(http.NotFoundHandler())
	closed := httptest.NewServer(nil)
	closed.Close()
	mux := http.NewServeMux()
	front := httptest.NewServer(mux)
	defer front.Close()
	defer gone.Close()
	dir, err := source.OpenReadOnlyDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	custody, err := source.NewCustody(front.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/content/", source.NewContentHandler(custody, source.ContentConfig{}))
	mux.Handle("/piece/{cid}", newResolver(t, Config{Contents: s, Locator: custody}))
	var hosts []string
	for _, server := range []*httptest.Server{gone, closed, front} {
		hosts = append(hosts, server.Listener.Addr().String())
	}
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	urls := []string{gone.URL, closed.URL, front.URL}
	var log bytes.Buffer
	server := httptest.NewServer(newAggregates(t, AggregatesConfig{Aggregates: s, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Payloads: Storefronts{HTTP: fetcher, Of: func(context.Context, piece.Link) ([]string, error) { return urls, nil }}}))
	get := func(byteRange string) ([]byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/aggregate/"+s.aggregate.Link().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", byteRange)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
	for _, r := range [][2]int{{0, len(s.file) - 1}, {1, len(s.file) - 1}, {4990, 9000}, {127, 8000}, {len(s.file) - 300, len(s.file) - 1}} {
		if b, err := get(fmt.Sprintf("bytes=%d-%d", r[0], r[1])); err != nil || !bytes.Equal(b, s.file[r[0]:r[1]+1]) {
			t.Errorf("bytes %v: %d bytes, %v", r, len(b), err)
		}
	}
	for _, urls = range [][]string{nil, {gone.URL}, {closed.URL}} {
		if b, err := get("bytes=0-"); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(s.file, b) {
			t.Errorf("from %q: %d bytes, %v", urls, len(b), err)
		}
	}
	server.Close()
	if n := strings.Count(log.String(), "cannot be read"); n != 3 {
		t.Errorf("%d failures are told: %s", n, log.String())
	}
}

func replace(file string, b []byte) error {
	return errors.Join(os.Remove(file), os.WriteFile(file, b, 0o600))
}

// bucketKeys opens one bucket for look-ups by key.
type bucketKeys struct{ *s3.Bucket }

func (b bucketKeys) LocateKey(ctx context.Context, bucket, key string) (source.Location, error) {
	if bucket != "" && bucket != b.Name() {
		return source.Location{}, source.ErrNoContent
	}
	return b.Bucket.LocateKey(ctx, key)
}

// newBucket returns a fake bucket that has the contents, and their world.
func newBucket(t testing.TB) (*s3.Bucket, *s3test.Store, *world) {
	t.Helper()
	store := s3test.NewFake(t)
	b, err := s3.Open(s3.Config{Bucket: store.CreateBucket(t), Endpoint: store.Endpoint, PathStyle: true,
		Credentials: s3.Credentials{AccessKey: store.AccessKey, SecretKey: store.SecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	store.Put(t, b.Name(), b.Key(mustCID(t, content500)), pattern(500, 0))
	return b, store, newWorld(t)
}

// TestSigned: whoever asks for content in a bucket gets an address that works for as long as was asked for, a new one
// each time; the bucket is asked once.
func TestSigned(t *testing.T) {
	b, store, w := newBucket(t)
	server := httptest.NewServer(newResolver(t, Config{Contents: w, Locator: b, Keys: bucketKeys{b}}))
	defer server.Close()
	key := b.Key(mustCID(t, content500))
	for _, target := range []string{"/piece/" + piece500, "/" + content500, "/key/" + key, "/key/" + key + "?bucket=" + b.Name()} {
		before := store.Fake.Requests("HEAD")
		for expires, want := range map[string]string{"": "259200", "600": "600", "1": "1", "259200": "259200"} {
			query := ""
			if expires != "" {
				query = map[bool]string{true: "&", false: "?"}[strings.Contains(target, "?")] + "expires=" + expires
			}
			got := ask(t, server, "GET", target+query)
			if got.status != 302 || !strings.Contains(got.location, "X-Amz-Expires="+want+"&") || !strings.HasPrefix(got.location, store.Endpoint) {
				t.Fatalf("%s: %+v", target+query, got)
			}
			cache := map[string]string{"600": "300", "1": "0"}[want]
			if cache == "" {
				cache = "300"
			}
			if got.cache != "public, max-age="+cache {
				t.Errorf("%s: %s", target+query, got.cache)
			}
			resp, err := http.Get(got.location)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !bytes.Equal(body, pattern(500, 0)) {
				t.Errorf("%s: %d other bytes", target, len(body))
			}
		}
		if n := store.Fake.Requests("HEAD") - before; n != 1 {
			t.Errorf("%s: the bucket was asked %d times", target, n)
		}
	}
	for _, target := range []string{"/key/", "/key/other", "/key/" + key + "?bucket=other", "/key/" + strings.Repeat("x", 3000)} {
		if got := ask(t, server, "GET", target); got.status != 404 {
			t.Errorf("%s: status %d", target, got.status)
		}
	}
	if got := ask(t, server, "GET", "/key/"+key+"?expires=0"); got.status != 400 {
		t.Errorf("expires=0: status %d", got.status)
	}
}

// BenchmarkLoad is the resolver under load over HTTP, warm, with addresses that are signed anew each time: eight clients
// at once. It reports quantiles of the time to an answer.
func BenchmarkLoad(b *testing.B) {
	bucket, _, w := newBucket(b)
	server := httptest.NewServer(newResolver(b, Config{Contents: w, Locator: bucket}))
	defer server.Close()
	const clients = 8
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	var mu sync.Mutex
	var took []time.Duration
	var group sync.WaitGroup
	b.ResetTimer()
	for c := range clients {
		group.Go(func() {
			var mine []time.Duration
			for range (b.N + clients - 1 - c) / clients {
				began := time.Now()
				req, err := http.NewRequest("GET", server.URL+"/piece/"+piece500, nil)
				if err != nil {
					b.Error(err)
					return
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					b.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusFound {
					b.Errorf("status %d", resp.StatusCode)
					return
				}
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	group.Wait()
	b.StopTimer()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	for name, q := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99, "max-ms": 1} {
		i := min(len(took)-1, int(q*float64(len(took))))
		b.ReportMetric(float64(took[i].Microseconds())/1000, name)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}
