package segment_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// TestRangesOverHTTP downloads an aggregate as a storage provider does, by ranges, from a server that has no copy of it:
// payloads come from a second server, by ranges as well. No byte of a payload is asked for that is not in the range.
func TestRangesOverHTTP(t *testing.T) {
	rng := rand.New(rand.NewPCG(40, 40))
	data, links := payloads(t, rng, []int{100_000, 60_000, 130_000, 127, 5_000, 1})
	a := mustBuild(t, 1<<20, links)

	custody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var i int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d", &i); err != nil || i < 0 || i >= len(data) {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data[i]))
	}))
	defer custody.Close()
	var mu sync.Mutex
	asked := make([]int64, len(data)) // bytes of each payload
	file := segment.NewReader(a, func(i int, off int64, p []byte) (int, error) {
		mu.Lock()
		asked[i] += int64(len(p))
		mu.Unlock()
		return httpRange(fmt.Sprintf("%s/%d", custody.URL, i), off, p)
	})
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream") // or ServeContent reads the start to guess it
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(file, 0, file.Size()))
	}))
	defer gateway.Close()

	var whole bytes.Buffer
	for off := int64(0); off < file.Size(); {
		p := make([]byte, min(1+rng.Int64N(200_000), file.Size()-off))
		clear(asked)
		if _, err := httpRange(gateway.URL, off, p); err != nil {
			t.Fatal(err)
		}
		whole.Write(p)
		for i, payload := range data {
			start := int64(piece.UnpaddedSize(a.Offset(i)))
			within := min(off+int64(len(p)), start+int64(len(payload))) - max(off, start)
			if asked[i] != max(within, 0) {
				t.Errorf("%d bytes at %d: asked for %d bytes of payload %d, want %d", len(p), off, asked[i], i, max(within, 0))
			}
		}
		off += int64(len(p))
	}
	sum, err := piece.Sum(whole.Bytes())
	if err != nil || sum != a.Link() {
		t.Errorf("downloaded %s, %v, want %s", sum, err, a.Link())
	}
}

// httpRange fills p with the bytes at off of what a URL serves.
func httpRange(url string, off int64, p []byte) (int, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("%s: HTTP %d", url, resp.StatusCode)
	}
	return io.ReadFull(resp.Body, p)
}

// TestLargestDeal reads at the edges of an aggregate of 64 GiB, whose offsets need more than 32 bits.
func TestLargestDeal(t *testing.T) {
	const dealSize = 64 << 30
	rng := rand.New(rand.NewPCG(41, 41))
	pieces := []piece.Link{randomLink(t, rng, 30), randomLink(t, rng, 29), randomLink(t, rng, 10), randomLink(t, rng, 2)}
	a := mustBuild(t, dealSize, pieces)
	if _, err := segment.VerifyAggregate(a.Link(), pieces, a.IndexReader(), a.Proofs()); err != nil {
		t.Fatal(err)
	}
	if err := segment.VerifyAll(a.Link(), a.Proofs()); err != nil {
		t.Fatal(err)
	}
	// Each payload is its own number, over and over.
	file := segment.NewReader(a, func(i int, off int64, p []byte) (int, error) {
		for k := range p {
			p[k] = byte(i + 1)
		}
		return len(p), nil
	})
	if want := int64(dealSize / 128 * 127); file.Size() != want {
		t.Errorf("size %d, want %d", file.Size(), want)
	}
	for i, p := range pieces {
		start := int64(piece.UnpaddedSize(a.Offset(i)))
		end := start + int64(p.PayloadSize())
		for off, want := range map[int64]byte{start: byte(i + 1), end - 1: byte(i + 1), end: 0} {
			if p.Padding() == 0 && off == end {
				continue // another one may begin there
			}
			b := []byte{0xff}
			if _, err := file.ReadAt(b, off); err != nil || b[0] != want {
				t.Errorf("byte %d, of piece %d: %d, %v, want %d", off, i, b[0], err, want)
			}
		}
	}
	entries, err := segment.ReadIndex(io.NewSectionReader(file, int64(piece.UnpaddedSize(a.IndexStart())), 1<<40))
	if err != nil || len(entries) != len(pieces) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if err := segment.CheckEntries(entries, dealSize); err != nil {
		t.Error(err)
	}
}
