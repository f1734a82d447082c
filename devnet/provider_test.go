package devnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// goldenAggregate is an aggregate of the pieces of goldenPayloads, made by the JavaScript implementation in a deal of 1 MiB.
const goldenAggregate = "bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq"

var goldenPieces = []string{
	"bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq",
	"bafkzcibccacs6xworhegwgr73wsnj2ngsic3lt4he72bnmekon35wvmn6ducmpy",
	"bafkzcibdsqcammzcfucufyigeep4mxfoyjcau4da5of4gaihctejz55g5kz27fqh",
	"bafkzcibceaddc2lvqyf4sg7ysvfettlrfm7bblbxhrcy6fmihjlzcq5kkaznkby",
	"bafkzcibdtqgaorcvtcfyzyakvmrh5ajg22e2e3fh77h2vzqeyul3o5rbvbz73azn",
}

// goldenPayload returns the bytes of goldenPieces[i].
func goldenPayload(i int) []byte {
	b := make([]byte, 500*(i+1))
	for k := range b {
		b[k] = byte(k*7 + i*13)
	}
	return b
}

// dealer serves offers and pieces, and may do both badly.
type dealer struct {
	t   testing.TB
	url string

	mu     sync.Mutex
	docs   map[string]string // by key
	pieces map[string][]byte // by piece CID
	broken map[string]func(w http.ResponseWriter, r *http.Request) bool
	list   func(w http.ResponseWriter, after string) bool // if it returns true, it has answered
	lists  []string                                       // cursors asked for
	opened map[string]int                                 // documents and pieces asked for
}

func newDealer(t testing.TB) *dealer {
	d := &dealer{
		t: t, docs: map[string]string{}, pieces: map[string][]byte{}, opened: map[string]int{},
		broken: map[string]func(http.ResponseWriter, *http.Request) bool{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dealer/offers", d.serveList)
	mux.HandleFunc("GET /dealer/offers/{key}", func(w http.ResponseWriter, r *http.Request) {
		d.serve(w, r, r.PathValue("key"), func() ([]byte, bool) {
			doc, ok := d.docs[r.PathValue("key")]
			return []byte(doc), ok
		})
	})
	mux.HandleFunc("GET /piece/{piece}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/bytes/"+r.PathValue("piece"), http.StatusFound)
	})
	mux.HandleFunc("GET /bytes/{piece}", func(w http.ResponseWriter, r *http.Request) {
		d.serve(w, r, r.PathValue("piece"), func() ([]byte, bool) {
			b, ok := d.pieces[r.PathValue("piece")]
			return b, ok
		})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *dealer) serve(w http.ResponseWriter, r *http.Request, name string, find func() ([]byte, bool)) {
	d.mu.Lock()
	d.opened[name]++
	broken := d.broken[name]
	body, ok := find()
	d.mu.Unlock()
	if broken != nil && broken(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

func (d *dealer) serveList(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := r.URL.Query().Get("after")
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit < 1 || limit > 1000 {
		d.t.Errorf("asked for %q offers", r.URL.Query().Get("limit"))
	}
	d.lists = append(d.lists, after)
	if d.list != nil && d.list(w, after) {
		return
	}
	type entry struct {
		Key string `json:"key"`
		URL string `json:"url"`
	}
	found := struct {
		Offers []entry `json:"offers"`
		Next   string  `json:"next,omitempty"`
	}{Offers: []entry{}}
	var keys []string
	for key := range d.docs {
		if key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for i, key := range keys {
		if i == limit {
			found.Next = keys[i-1]
			break
		}
		found.Offers = append(found.Offers, entry{key, "offers/" + key})
	}
	json.NewEncoder(w).Encode(found)
}

// offer makes an aggregate of generated pieces and offers it, and returns it with its pieces and key.
func (d *dealer) offer(at time.Time, seed byte, sizes ...int) (piece.Link, []piece.Link, string) {
	d.t.Helper()
	var links []piece.Link
	for i, size := range sizes {
		b := make([]byte, size)
		for k := range b {
			b[k] = byte(k+1)*seed + byte(i)
		}
		l, err := piece.Sum(b)
		if err != nil {
			d.t.Fatal(err)
		}
		links = append(links, l)
		d.mu.Lock()
		d.pieces[l.String()] = b
		d.mu.Unlock()
	}
	segment.SortDescending(links)
	a, err := segment.Build(1<<20, links)
	if err != nil {
		d.t.Fatal(err)
	}
	return a.Link(), links, d.publish(at, a.Link(), links)
}

func (d *dealer) publish(at time.Time, aggregate piece.Link, links []piece.Link) string {
	d.t.Helper()
	doc := Document{Aggregate: aggregate.String(), Collection: "did:key:z6Mk", OrderID: at.UnixMilli()}
	for _, l := range links {
		doc.Pieces = append(doc.Pieces, l.String())
	}
	b, err := json.Marshal(doc)
	if err != nil {
		d.t.Fatal(err)
	}
	key := at.UTC().Format("2006-01-02T15:04:05.000Z") + "_" + aggregate.String() + ".json"
	d.mu.Lock()
	defer d.mu.Unlock()
	d.docs[key] = string(b)
	return key
}

func (d *dealer) breaks(name string, how func(w http.ResponseWriter, r *http.Request) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken[name] = how
}

// rig is a provider with the world around it.
type rig struct {
	*world
	dealer   *dealer
	provider *Provider
	cfg      ProviderConfig
}

func newRig(t *testing.T, change func(*ProviderConfig)) *rig {
	t.Helper()
	r := &rig{world: newWorld(t, nil), dealer: newDealer(t)}
	r.cfg = ProviderConfig{
		Address: "f01000", Client: "f01001", Offers: r.dealer.url + "/dealer", Pieces: []string{r.dealer.url + "/piece/{piece}"},
		Market: r.chain, Now: r.clock.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), PieceTimeout: 10 * time.Second,
	}
	if change != nil {
		change(&r.cfg)
	}
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	p, err := OpenProvider(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.provider = p
}

// steps makes a step and checks how many offers ended.
func (r *rig) steps(want int) {
	r.t.Helper()
	if got, err := r.provider.Step(r.t.Context()); got != want || err != nil {
		r.t.Fatalf("step ended %d offers, %v, want %d; waiting %+v, refused %+v", got, err, want, r.provider.Waiting(), r.provider.Refusals())
	}
}

func (r *rig) dealt(want ...piece.Link) {
	r.t.Helper()
	var got []string
	for _, d := range r.chain.Deals() {
		got = append(got, d.Piece.String())
	}
	var expected []string
	for _, l := range want {
		expected = append(expected, l.String())
	}
	slices.Sort(got)
	slices.Sort(expected)
	if diff := cmp.Diff(expected, got); diff != "" {
		r.t.Errorf("deals: %s", diff)
	}
}

func TestGoldenAggregate(t *testing.T) {
	r := newRig(t, nil)
	var links []piece.Link
	for i, text := range goldenPieces {
		l, err := piece.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, l)
		r.dealer.pieces[text] = goldenPayload(i)
	}
	aggregate, err := piece.Parse(goldenAggregate)
	if err != nil {
		t.Fatal(err)
	}
	r.dealer.publish(r.clock.Now(), aggregate, links)
	r.steps(1)
	r.dealt(aggregate)
	r.steps(0)
	for name, n := range r.dealer.opened {
		if n != 1 {
			t.Errorf("%s was fetched %d times", name, n)
		}
	}
	d, ok, err := r.chain.Find(t.Context(), "f01000", aggregate)
	if err != nil || !ok || d.Client != "f01001" || d.Activated == never {
		t.Errorf("deal is %+v", d)
	}
}

// TestRefusals: a bad offer is refused with the culprit, and holds up no other.
func TestRefusals(t *testing.T) {
	const bytes = 300
	for _, test := range []struct {
		name    string
		harm    func(r *rig, aggregate piece.Link, pieces []piece.Link, key string)
		culprit bool // pieces[1]
		reason  string
	}{
		{"flipped byte", func(r *rig, _ piece.Link, pieces []piece.Link, _ string) {
			r.dealer.pieces[pieces[1].String()][7] ^= 1
		}, true, "bytes of the piece make bafk"},
		{"flipped byte by fault", func(r *rig, _ piece.Link, pieces []piece.Link, _ string) {
			r.provider.cfg.Faults.FlipByte = func(_, p piece.Link) bool { return p == pieces[1] }
		}, true, "bytes of the piece make bafk"},
		{"cut short", func(r *rig, _ piece.Link, pieces []piece.Link, _ string) {
			r.dealer.pieces[pieces[1].String()] = r.dealer.pieces[pieces[1].String()][:100]
		}, true, "bytes of the piece make bafk"},
		{"too long, announced", func(r *rig, _ piece.Link, pieces []piece.Link, _ string) {
			r.dealer.pieces[pieces[1].String()] = append(r.dealer.pieces[pieces[1].String()], 0)
		}, true, "longer than its 300 bytes"},
		{"too long, in chunks", func(r *rig, _ piece.Link, pieces []piece.Link, _ string) {
			r.dealer.breaks(pieces[1].String(), func(w http.ResponseWriter, _ *http.Request) bool {
				w.Write(r.dealer.pieces[pieces[1].String()])
				w.(http.Flusher).Flush()
				io.Copy(w, io.LimitReader(zeros{}, 64<<20))
				return true
			})
		}, true, "longer than its 300 bytes"},
		{"piece exchanged", func(r *rig, aggregate piece.Link, pieces []piece.Link, key string) {
			_, others, otherKey := r.dealer.offer(r.clock.Now(), 99, 400)
			delete(r.dealer.docs, otherKey)
			r.dealer.docs[key] = strings.Replace(r.dealer.docs[key], pieces[1].String(), others[0].String(), 1)
		}, false, "the pieces named are not those of the aggregate"},
		{"order exchanged", func(r *rig, aggregate piece.Link, pieces []piece.Link, key string) {
			swapped := slices.Clone(pieces)
			slices.Reverse(swapped)
			r.dealer.publish(r.clock.Now().Add(-time.Minute), aggregate, swapped)
			delete(r.dealer.docs, key)
		}, false, "the pieces named are not those of the aggregate"},
		{"piece named twice", func(r *rig, aggregate piece.Link, pieces []piece.Link, key string) {
			delete(r.dealer.docs, key)
			r.dealer.publish(r.clock.Now().Add(-time.Minute), aggregate, append(slices.Clone(pieces), pieces[0]))
		}, false, "the pieces named are not those of the aggregate"},
		{"piece without a size", func(r *rig, _ piece.Link, pieces []piece.Link, key string) {
			r.dealer.docs[key] = strings.Replace(r.dealer.docs[key], pieces[1].String(), pieces[1].V1().String(), 1)
		}, false, "piece 1 of the document"},
		{"no pieces", func(r *rig, aggregate piece.Link, _ []piece.Link, key string) {
			r.dealer.docs[key] = `{"aggregate":"` + aggregate.String() + `","pieces":[]}`
		}, false, "names no pieces"},
		{"no aggregate", func(r *rig, _ piece.Link, _ []piece.Link, key string) { r.dealer.docs[key] = `{}` }, false, "aggregate of the document"},
		{"no document", func(r *rig, _ piece.Link, _ []piece.Link, key string) { r.dealer.docs[key] = `<html>` }, false, "cannot be read"},
		{"endless document", func(r *rig, _ piece.Link, _ []piece.Link, key string) {
			r.dealer.breaks(key, func(w http.ResponseWriter, _ *http.Request) bool {
				io.Copy(w, io.LimitReader(zeros{}, maxDocument+1))
				return true
			})
		}, false, "is over 33554432 bytes"},
		{"refused by fault", func(r *rig, aggregate piece.Link, _ []piece.Link, _ string) {
			r.provider.cfg.Faults.Refuse = func(a piece.Link) string {
				if a == aggregate {
					return "no room"
				}
				return ""
			}
		}, false, "no room"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, func(c *ProviderConfig) { c.Parallel = 2 })
			before, _, _ := r.dealer.offer(r.clock.Now().Add(-2*time.Hour), 5, 1000, 200)
			bad, pieces, key := r.dealer.offer(r.clock.Now().Add(-time.Hour), 7, 600, bytes, 200)
			after, _, _ := r.dealer.offer(r.clock.Now(), 11, 1000, 200)
			test.harm(r, bad, pieces, key)
			r.steps(3)
			r.dealt(before, after)
			got := r.provider.Refusals()
			if len(got) != 1 || !strings.Contains(got[0].Reason, test.reason) || got[0].At != r.clock.Now() {
				t.Fatalf("refusals are %+v, want one with %q", got, test.reason)
			}
			want := ""
			if test.culprit {
				want = pieces[1].String()
			}
			if got[0].Piece != want || test.culprit && got[0].Aggregate != bad.String() {
				t.Errorf("refusal is %+v, want culprit %q", got[0], want)
			}
			r.steps(0) // nobody tries it again

			server := httptest.NewServer(r.provider.Handler())
			defer server.Close()
			resp, err := http.Get(server.URL + "/refusals")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var shown struct {
				Refusals []Refusal `json:"refusals"`
				Waiting  []Waiting `json:"waiting"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&shown); err != nil || cmp.Diff(got, shown.Refusals) != "" || shown.Waiting == nil {
				t.Errorf("shown are %+v, %v", shown, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestTransientFailures: what may get better is tried again, later and later, while the other offers go on.
func TestTransientFailures(t *testing.T) {
	for name, how := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"server error": func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "", http.StatusBadGateway)
			return true
		},
		"busy": func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "", http.StatusTooManyRequests)
			return true
		},
		"broken off": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "300")
			io.WriteString(w, "beginning")
			panic(http.ErrAbortHandler)
		},
		"broken off in chunks": func(w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, "beginning")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"broken off at the end": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write(make([]byte, 300))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *ProviderConfig) {
				c.Backoff, c.MaxBackoff = time.Second, 5*time.Second
				c.Parallel = 1 // so that the first piece is in before the second one fails
			})
			held, pieces, key := r.dealer.offer(r.clock.Now().Add(-time.Hour), 7, 600, 300, 200)
			good, _, _ := r.dealer.offer(r.clock.Now(), 11, 1000)
			r.dealer.breaks(pieces[1].String(), how)
			r.steps(1)
			r.dealt(good)
			for i, wait := range []time.Duration{1, 2, 4, 5, 5, 5, 5} {
				waiting := r.provider.Waiting()
				if len(waiting) != 1 || waiting[0].Key != key || waiting[0].Attempts != i+1 || waiting[0].Reason == "" ||
					!waiting[0].Next.Equal(r.clock.Now().Add(wait*time.Second)) {
					t.Fatalf("after attempt %d waiting are %+v at %s, want one for %d s", i+1, waiting, r.clock.Now(), wait)
				}
				r.clock.Advance(wait*time.Second - 1)
				r.steps(0)
				if n := r.dealer.opened[key]; n != i+1 {
					t.Fatalf("document was fetched %d times before its time", n)
				}
				r.clock.Advance(1)
				r.steps(0)
			}
			r.dealer.breaks(pieces[1].String(), nil)
			r.clock.Advance(5 * time.Second)
			r.steps(1)
			r.dealt(good, held)
			if n := r.dealer.opened[pieces[0].String()]; n != 1 {
				t.Errorf("a piece that was good the first time was fetched %d times", n)
			}
			if len(r.provider.Refusals()) != 0 || len(r.provider.Waiting()) != 0 {
				t.Errorf("refused %v, waiting %v", r.provider.Refusals(), r.provider.Waiting())
			}
		})
	}
}

// TestMissing: a source that says that it has not got a piece is believed in the end.
func TestMissing(t *testing.T) {
	for _, document := range []bool{false, true} {
		t.Run(fmt.Sprintf("document=%t", document), func(t *testing.T) {
			r := newRig(t, func(c *ProviderConfig) { c.Attempts = 3; c.Backoff = time.Second })
			aggregate, pieces, key := r.dealer.offer(r.clock.Now(), 7, 600, 300)
			culprit := pieces[0].String()
			missing := culprit
			if document {
				missing, culprit = key, ""
			}
			r.dealer.breaks(missing, func(w http.ResponseWriter, q *http.Request) bool { http.NotFound(w, q); return true })
			r.steps(0)
			r.clock.Advance(time.Minute)
			r.steps(0)
			r.clock.Advance(time.Minute)
			r.steps(1)
			got := r.provider.Refusals()
			if len(got) != 1 || got[0].Piece != culprit || !strings.Contains(got[0].Reason, "is not there: HTTP 404") {
				t.Errorf("refusals are %+v", got)
			}
			if !document && got[0].Aggregate != aggregate.String() {
				t.Errorf("aggregate is %q", got[0].Aggregate)
			}
			r.dealt()
		})
	}
}

// TestSeveralSources: a piece comes from whichever source has it, and is missing once all of them say so.
func TestSeveralSources(t *testing.T) {
	other := newDealer(t)
	r := newRig(t, func(c *ProviderConfig) {
		c.Pieces = append(c.Pieces, other.url+"/piece/{piece}")
		c.Attempts, c.Backoff, c.MaxBackoff = 2, time.Second, time.Second
	})
	gone := func(w http.ResponseWriter, q *http.Request) bool { http.NotFound(w, q); return true }
	away := func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "", http.StatusBadGateway)
		return true
	}
	shared, pieces, _ := r.dealer.offer(r.clock.Now(), 7, 600, 300)
	other.pieces[pieces[0].String()] = r.dealer.pieces[pieces[0].String()]
	r.dealer.breaks(pieces[0].String(), gone)
	r.steps(1)
	r.dealt(shared)

	lost, pieces, _ := r.dealer.offer(r.clock.Now(), 9, 600)
	r.dealer.breaks(pieces[0].String(), gone)
	other.breaks(pieces[0].String(), away)
	for range 4 { // more than Attempts: the one that does not answer may have it
		r.steps(0)
		r.clock.Advance(time.Second)
	}
	r.dealer.breaks(pieces[0].String(), away)
	other.breaks(pieces[0].String(), gone)
	for range 4 {
		r.steps(0)
		r.clock.Advance(time.Second)
	}
	r.dealer.breaks(pieces[0].String(), gone)
	r.steps(0)
	r.clock.Advance(time.Second)
	r.steps(1)
	if got := r.provider.Refusals(); len(got) != 1 || got[0].Aggregate != lost.String() || got[0].Piece != pieces[0].String() {
		t.Errorf("refusals are %+v", got)
	}
	r.dealt(shared)
}

// TestShortBody: what a piece's padded size says beyond its bytes is zeros, and those are not sent.
func TestShortBody(t *testing.T) {
	r := newRig(t, nil)
	body := make([]byte, 300)
	for i := range body[:100] {
		body[i] = byte(i + 1)
	}
	whole, err := piece.Sum(body)
	if err != nil {
		t.Fatal(err)
	}
	// The same as a piece that was converted from v1, whose payload nobody knows, and a much larger one with the same bytes.
	converted, err := piece.FromV1(whole.V1(), whole.PaddedSize())
	if err != nil {
		t.Fatal(err)
	}
	root := whole.Root()
	for h := whole.Height(); h < 30; h++ {
		zeros := piece.ZeroRoot(h)
		root = piece.HashPair(&root, &zeros)
	}
	large, err := piece.FromRootAndHeight(root, 30, 0) // 32 GiB
	if err != nil {
		t.Fatal(err)
	}
	empty, err := piece.FromRootAndHeight(piece.ZeroRoot(20), 20, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		want piece.Link
		body []byte
	}{
		{whole, body}, {whole, body[:100]}, {converted, body}, {converted, body[:100]}, {large, body}, {large, body[:100]}, {empty, nil},
		{empty, body[200:]},
	} {
		r.dealer.pieces[test.want.String()] = test.body
		if got, err := r.provider.fetch(t.Context(), goldenLink(t), test.want); got != test.want || err != nil {
			t.Errorf("%d bytes of %s make %s, %v", len(test.body), test.want, got, err)
		}
	}
}

func goldenLink(t testing.TB) piece.Link {
	l, err := piece.Parse(goldenAggregate)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLargeDeal: a deal of 32 GiB with a few bytes in it is checked in no time, for its zeros are not hashed.
func TestLargeDeal(t *testing.T) {
	r := newRig(t, nil)
	var links []piece.Link
	for i := range 20 {
		b := make([]byte, 1000+i)
		b[0] = byte(i)
		l, err := piece.Sum(b)
		if err != nil {
			t.Fatal(err)
		}
		r.dealer.pieces[l.String()] = b
		links = append(links, l)
	}
	a, err := segment.Build(32<<30, links)
	if err != nil {
		t.Fatal(err)
	}
	r.dealer.publish(r.clock.Now(), a.Link(), links)
	start := time.Now()
	r.steps(1)
	r.dealt(a.Link())
	// Hashing 32 GiB takes minutes on any machine.
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
}

// TestRestarts: whatever was written when the provider stopped, there is one deal per aggregate.
func TestRestarts(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprintf("state kept=%t", kept), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "provider.json")
			r := newRig(t, func(c *ProviderConfig) {
				if kept {
					c.Path = path
				}
			})
			first, pieces, key := r.dealer.offer(r.clock.Now(), 7, 600, 300)
			bad, _, badKey := r.dealer.offer(r.clock.Now().Add(time.Second), 9, 600)
			r.dealer.docs[badKey] = `{"aggregate":"` + bad.String() + `"}`
			r.steps(2)
			r.open()
			if kept {
				r.steps(0)
				if n := r.dealer.opened[key]; n != 1 {
					t.Errorf("document was fetched %d times", n)
				}
			} else {
				r.steps(2)
			}
			r.dealt(first)
			if n := r.dealer.opened[pieces[0].String()]; n != 1 {
				t.Errorf("piece was fetched %d times", n)
			}
			if got := r.provider.Refusals(); len(got) != 1 || got[0].Key != badKey {
				t.Errorf("refusals are %+v", got)
			}
			// The same aggregate under another key is the same deal.
			delete(r.dealer.docs, key)
			r.dealer.publish(r.clock.Now().Add(2*time.Second), first, pieces)
			r.steps(1)
			r.dealt(first)
		})
	}

	t.Run("stopped after publishing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "provider.json")
		r := newRig(t, func(c *ProviderConfig) { c.Path = path })
		aggregate, _, _ := r.dealer.offer(r.clock.Now(), 7, 600)
		if err := r.provider.list(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.provider.work(t.Context(), r.provider.due()[0]); err != nil {
			t.Fatal(err)
		}
		r.open()
		r.steps(1)
		r.dealt(aggregate)
	})

	t.Run("unreadable state", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "provider.json")
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, nil)
		r.cfg.Path = path
		if _, err := OpenProvider(r.cfg); err == nil {
			t.Error("opened")
		}
	})
}

// TestLateOffers: an offer may be published long after its date, and the list is read again far enough back to see it. What is
// older than that is not read at each look.
func TestLateOffers(t *testing.T) {
	r := newRig(t, nil)
	at := r.clock.Now()
	first, _, _ := r.dealer.offer(at.Add(-200*time.Hour), 3, 600)
	second, _, _ := r.dealer.offer(at, 5, 600)
	r.steps(2)
	late, _, _ := r.dealer.offer(at.Add(-40*time.Hour), 7, 600)
	r.steps(1)
	r.dealt(first, second, late)
	want := []string{"", "2026-07-30"}
	if diff := cmp.Diff(want, r.dealer.lists); diff != "" {
		t.Error(diff)
	}
	if n := len(r.provider.state.Seen); n != 2 {
		t.Errorf("remembers %d keys, want the 2 that can be listed again", n)
	}
	// A key from the future does not hide what comes now.
	future, _, _ := r.dealer.offer(at.AddDate(5, 0, 0), 9, 600)
	r.steps(1)
	now, _, _ := r.dealer.offer(at.Add(time.Hour), 11, 600)
	r.steps(1)
	r.dealt(first, second, late, future, now)
}

func TestManyOffers(t *testing.T) {
	r := newRig(t, nil)
	var want []piece.Link
	for i := range 2*pageSize + 1 {
		b := []byte(fmt.Sprintf("payload %d", i))
		l, err := piece.Sum(b)
		if err != nil {
			t.Fatal(err)
		}
		r.dealer.pieces[l.String()] = b
		a, err := segment.Build(4096, []piece.Link{l})
		if err != nil {
			t.Fatal(err)
		}
		r.dealer.publish(r.clock.Now().Add(time.Duration(i)*time.Millisecond), a.Link(), []piece.Link{l})
		want = append(want, a.Link())
	}
	r.steps(len(want))
	r.dealt(want...)
}

// TestBadLists: a list that cannot be read is an error of the step, and offers that wait are worked on all the same.
func TestBadLists(t *testing.T) {
	offer := func(key, url string) string { return fmt.Sprintf(`{"offers":[{"key":%q,"url":%q}]}`, key, url) }
	for name, test := range map[string]struct {
		body    string
		wantErr string
	}{
		"page":           {`<html>`, "decoding page"},
		"endless":        {strings.Repeat(" ", maxPage+1), "over 1048576 bytes"},
		"leads back":     {`{"offers":[],"next":"0"}`, "leads back"},
		"no date":        {offer("offer.json", "offers/x"), ""},
		"no key":         {offer("", "offers/x"), ""},
		"long key":       {offer("2026-08-01"+strings.Repeat("x", 300), "offers/x"), ""},
		"file":           {offer("2026-08-01_x.json", "file:///etc/passwd"), ""},
		"no url":         {offer("2026-08-01_x.json", "http://"), ""},
		"malformed url":  {offer("2026-08-01_x.json", "http://%zz"), ""},
		"nothing at all": {`{}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			aggregate, pieces, _ := r.dealer.offer(r.clock.Now(), 7, 600)
			r.dealer.breaks(pieces[0].String(), func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
			r.steps(0)
			r.dealer.breaks(pieces[0].String(), nil)
			r.dealer.list = func(w http.ResponseWriter, _ string) bool { io.WriteString(w, test.body); return true }
			r.clock.Advance(time.Hour)
			ended, err := r.provider.Step(t.Context())
			if (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("error is %v, want %q", err, test.wantErr)
			}
			if ended != 1 {
				t.Errorf("%d offers ended, want the one that waited", ended)
			}
			r.dealt(aggregate)
			if len(r.provider.Waiting()) != 0 {
				t.Errorf("waiting are %+v", r.provider.Waiting())
			}
		})
	}
	t.Run("for ever", func(t *testing.T) {
		r := newRig(t, nil)
		n := 0
		r.dealer.list = func(w http.ResponseWriter, _ string) bool {
			n++
			fmt.Fprintf(w, `{"offers":[],"next":"2026-08-01-%05d"}`, n)
			return true
		}
		r.steps(0)
		if n != maxPages {
			t.Errorf("read %d pages in one step", n)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		r := newRig(t, func(c *ProviderConfig) { c.Offers = "http://127.0.0.1:1" })
		if _, err := r.provider.Step(t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

// TestParallel: pieces are fetched side by side, and no more of them than allowed.
func TestParallel(t *testing.T) {
	const limit, count = 3, 8
	r := newRig(t, func(c *ProviderConfig) { c.Parallel = limit })
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = 200 + i
	}
	aggregate, pieces, _ := r.dealer.offer(r.clock.Now(), 7, sizes...)
	var now, most atomic.Int32
	arrived, release := make(chan struct{}, count), make(chan struct{})
	for _, l := range pieces {
		r.dealer.breaks(l.String(), func(http.ResponseWriter, *http.Request) bool {
			n := now.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			arrived <- struct{}{}
			<-release
			now.Add(-1)
			return false
		})
	}
	done := make(chan error)
	go func() {
		_, err := r.provider.Step(t.Context())
		done <- err
	}()
	for range limit {
		<-arrived
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.dealt(aggregate)
	if most.Load() != limit {
		t.Errorf("%d pieces were fetched at the same time, want %d", most.Load(), limit)
	}
}

// TestHangingSource: a source that says nothing costs one timeout.
func TestHangingSource(t *testing.T) {
	r := newRig(t, func(c *ProviderConfig) { c.PieceTimeout = 20 * time.Millisecond })
	_, pieces, _ := r.dealer.offer(r.clock.Now(), 7, 600)
	release := make(chan struct{})
	r.dealer.breaks(pieces[0].String(), func(http.ResponseWriter, *http.Request) bool { <-release; return true })
	defer close(release)
	r.steps(0)
	if w := r.provider.Waiting(); len(w) != 1 || !strings.Contains(w[0].Reason, "deadline exceeded") {
		t.Errorf("waiting are %+v", w)
	}
}

func TestRun(t *testing.T) {
	ticks := make(chan time.Time)
	asked := make(chan time.Duration)
	r := newRig(t, func(c *ProviderConfig) {
		c.Poll = 7 * time.Second
		c.After = func(d time.Duration) <-chan time.Time { asked <- d; return ticks }
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.provider.Run(ctx) }()
	if d := <-asked; d != 7*time.Second {
		t.Errorf("waits for %s", d)
	}
	aggregate, _, _ := r.dealer.offer(r.clock.Now(), 7, 600)
	ticks <- time.Time{}
	<-asked
	r.dealt(aggregate)

	// An attempt that is interrupted by the end is none.
	_, pieces, key := r.dealer.offer(r.clock.Now(), 9, 600)
	r.dealer.breaks(pieces[0].String(), func(_ http.ResponseWriter, q *http.Request) bool {
		cancel()
		<-q.Context().Done()
		return true
	})
	ticks <- time.Time{}
	<-asked
	if err := <-done; err != nil {
		t.Errorf("run ends with %v", err)
	}
	if w := r.provider.Waiting(); len(w) != 1 || w[0].Key != key || w[0].Attempts != 0 {
		t.Errorf("waiting are %+v", w)
	}
	if _, err := r.provider.Step(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("step ends with %v", err)
	}
}

func TestNeverActivate(t *testing.T) {
	r := newRig(t, func(c *ProviderConfig) { c.Faults.NeverActivate = func(piece.Link) bool { return true } })
	aggregate, _, _ := r.dealer.offer(r.clock.Now(), 7, 600)
	r.steps(1)
	if d, ok, err := r.chain.Find(t.Context(), "f01000", aggregate); !ok || err != nil || d.Activated != never {
		t.Errorf("deal is %+v, %v", d, err)
	}
}

func TestProviderConfig(t *testing.T) {
	r := newRig(t, nil)
	for name, change := range map[string]func(*ProviderConfig){
		"no address":        func(c *ProviderConfig) { c.Address = "" },
		"key as client":     func(c *ProviderConfig) { c.Client = "f1abc" },
		"no market":         func(c *ProviderConfig) { c.Market = nil },
		"no offers":         func(c *ProviderConfig) { c.Offers = "" },
		"offers in a file":  func(c *ProviderConfig) { c.Offers = "file:///offers" },
		"no template":       func(c *ProviderConfig) { c.Pieces = []string{"http://host/piece/"} },
		"pieces in a file":  func(c *ProviderConfig) { c.Pieces = append(c.Pieces, "/piece/{piece}") },
		"no pieces":         func(c *ProviderConfig) { c.Pieces = nil },
		"negative parallel": func(c *ProviderConfig) { c.Parallel = -1 },
		"backoff over max":  func(c *ProviderConfig) { c.Backoff = 2; c.MaxBackoff = 1 },
	} {
		cfg := r.cfg
		change(&cfg)
		if _, err := OpenProvider(cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"aggregate":"` + goldenAggregate + `","pieces":["` + strings.Join(goldenPieces, `","`) + `"],"orderID":1}`))
	f.Add([]byte(`{"aggregate":null,"pieces":[null]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decodeDocument(b)
		if err != nil {
			return
		}
		aggregate, pieces, err := d.check()
		if err != nil {
			return
		}
		if !aggregate.Defined() || len(pieces) != len(d.Pieces) {
			t.Errorf("%q is %s of %v", b, aggregate, pieces)
		}
		if len(pieces) < 100 {
			rebuild(aggregate, pieces)
		}
	})
}
