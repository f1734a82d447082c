package source

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/compute"
)

// TestCopy: content comes into custody from the first address that gives it, and nothing else does.
func TestCopy(t *testing.T) {
	b := pattern(5000, 1)
	content := contentOf(t, Raw, b)
	asked := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path]++
		switch r.URL.Path {
		case "/good":
			_, _ = w.Write(b)
		case "/streamed": // states no length
			w.(http.Flusher).Flush()
			_, _ = w.Write(b)
		case "/other":
			_, _ = w.Write(pattern(5000, 2))
		case "/longer":
			_, _ = w.Write(append(b, 0))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	private := newFetcher(t, HTTPConfig{AllowPrefixes: []netip.Prefix{}, AllowHosts: []string{strings.TrimPrefix(server.URL, "http://")}})
	for _, tt := range []struct {
		name string
		urls []string
		max  int64
		want error // nil: it is there
		says string
	}{
		{name: "at once", urls: []string{"/good"}, max: 5000},
		{name: "without a length", urls: []string{"/streamed"}, max: 5000},
		{name: "at the third", urls: []string{"/absent", "/other", "/good", "/never"}, max: 5000},
		{name: "nowhere", urls: nil, max: 5000, want: ErrNoContent},
		{name: "absent", urls: []string{"/absent"}, max: 5000, want: compute.ErrNoContent, says: "1 places"},
		{name: "other bytes", urls: []string{"/other", "/other"}, max: 5000, want: ErrMismatch, says: "2 places"},
		{name: "more bytes", urls: []string{"/longer"}, max: 6000, want: ErrMismatch},
		{name: "too long, as stated", urls: []string{"/good"}, max: 4999, want: ErrTooLarge},
		{name: "too long", urls: []string{"/streamed"}, max: 4999, want: ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			c, err := NewCopier(newCustody(t, testBase, d), private)
			if err != nil {
				t.Fatal(err)
			}
			var urls []string
			for _, path := range tt.urls {
				urls = append(urls, server.URL+path)
			}
			err = c.Fetch(t.Context(), content, urls, tt.max)
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				wantContent(t, d, content, b)
				return
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %v, %q", err, tt.want, tt.says)
			}
			for _, path := range tt.urls {
				if strings.Contains(err.Error(), path) {
					t.Errorf("the error shows a path: %v", err)
				}
			}
			if got := files(t, d.path); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
	if asked["/never"] != 0 {
		t.Error("it was looked for after it had been found")
	}

	// Addresses of private networks are not called, whoever claims them.
	before := asked["/good"]
	c, err := NewCopier(newCustody(t, testBase, newDir(t)), newFetcher(t, HTTPConfig{AllowPrefixes: []netip.Prefix{}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Fetch(t.Context(), content, []string{server.URL + "/good"}, 5000); err == nil || asked["/good"] != before {
		t.Errorf("a private address: %v", err)
	}
	if _, err := NewCopier(newCustody(t, testBase, operatorDir(t, "x", nil)), private); err == nil {
		t.Error("a custody that cannot be written to: accepted")
	}
}
