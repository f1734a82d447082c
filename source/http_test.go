package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/compute"
)

// loopback is the network that tests allow; 127.0.0.1 stands for the internet and the rest of 127.0.0.0/8 for an
// internal network.
var loopback = netip.MustParsePrefix("127.0.0.1/32")

// secret is in the path and query of every URL that tests fetch, and must be in no error.
const secret = "s3cr3t-signature"

func newFetcher(t testing.TB, cfg HTTPConfig) *HTTP {
	t.Helper()
	if cfg.AllowPrefixes == nil {
		cfg.AllowPrefixes = []netip.Prefix{loopback}
	}
	h, err := NewHTTP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.transport.CloseIdleConnections)
	return h
}

// fetch fetches and reads a URL, closes the body, and checks what holds for every error.
func fetch(t testing.TB, h *HTTP, url string) (b []byte, length int64, err error) {
	t.Helper()
	body, length, err := h.Fetch(t.Context(), url)
	if err == nil {
		b, err = io.ReadAll(body)
		if _, again := body.Read(make([]byte, 1)); err != nil && !errors.Is(again, err) {
			t.Errorf("the body failed with %v, then with %v", err, again)
		}
		body.Close()
		body.Close()
	}
	if err != nil {
		for _, word := range []string{secret, "SSH-2.0", "dial tcp", "lookup"} {
			if strings.Contains(err.Error(), word) {
				t.Errorf("error text says %q: %v", word, err)
			}
		}
	}
	if n := len(h.slots); n != 0 {
		t.Errorf("%d slots are in use after the fetch", n)
	}
	return b, length, err
}

func serve(t testing.TB, f http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server
}

// serveInternal serves on an address that is not allowed, and fails the test if anybody connects.
func serveInternal(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("no second loopback address here: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Listener.Close()
	server.Listener = l
	server.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			t.Errorf("the internal server was connected to from %s", c.RemoteAddr())
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return l.Addr().String()
}

// hijack serves by taking the connection over.
func hijack(t testing.TB, f func(net.Conn)) *httptest.Server {
	return serve(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		f(conn)
	})
}

func TestFetch(t *testing.T) {
	want := pattern(100_000, 1)
	var header http.Header
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		header = r.Header.Clone()
		if r.URL.Path == "/chunked" {
			http.NewResponseController(w).Flush()
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		}
		w.Write(want)
	})
	h := newFetcher(t, HTTPConfig{MaxBytes: int64(len(want))})
	for path, length := range map[string]int64{"/?q=" + secret: int64(len(want)), "/chunked": -1, "/#fragment": int64(len(want))} {
		b, got, err := fetch(t, h, server.URL+path)
		if err != nil || got != length || !bytes.Equal(b, want) {
			t.Errorf("%s: %d bytes, length %d, %v; want %d bytes, length %d", path, len(b), got, err, len(want), length)
		}
	}
	for k := range header {
		switch k {
		case "User-Agent", "Accept", "Accept-Encoding":
		default:
			t.Errorf("the request carries %s: %q", k, header[k])
		}
	}
	if header.Get("Accept-Encoding") != "identity" {
		t.Errorf("Accept-Encoding %q", header.Get("Accept-Encoding"))
	}
}

func TestFetchStatus(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var status int
		fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
	})
	h := newFetcher(t, HTTPConfig{})
	for _, status := range []int{201, 203, 204, 206, 300, 304, 400, 401, 403, 404, 410, 416, 429, 500, 503} {
		_, _, err := fetch(t, h, fmt.Sprintf("%s/%d?%s", server.URL, status, secret))
		if err == nil || errors.Is(err, compute.ErrNoContent) != (status == 404 || status == 410) {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

// TestFetchFrom: a fetch may begin in the middle, behind redirects too. What the source sends instead is refused.
func TestFetchFrom(t *testing.T) {
	want := pattern(100_000, 1)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/elsewhere":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/whole": // knows no ranges
			w.Write(want)
		case "/other": // says that it sends other bytes
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(want)-1, len(want)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[7:])
		case "/part": // leaves out the end
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-9/%d", len(want)))
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[5:10])
		case "/breaks": // once, in the middle
			w.Header().Set("ETag", `"1"`)
			if r.Header.Get("If-Range") == "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(want)-1, len(want)))
				w.Header().Set("Content-Length", fmt.Sprint(len(want)-5))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(want[5:50_000])
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(want))
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(want))
		}
	})
	h := newFetcher(t, HTTPConfig{MaxBytes: int64(len(want))})
	for path, offsets := range map[string][]int64{"/": {0, 1, 50_000, 99_999}, "/elsewhere": {0, 5}, "/breaks": {5}} {
		for _, off := range offsets {
			body, length, err := h.FetchFrom(t.Context(), server.URL+path, off)
			if err != nil {
				t.Errorf("%s from %d: %v", path, off, err)
				continue
			}
			b, err := io.ReadAll(body)
			body.Close()
			if err != nil || length != int64(len(want)) || !bytes.Equal(b, want[off:]) {
				t.Errorf("%s from %d: %d bytes of %d, %v", path, off, len(b), length, err)
			}
		}
	}
	for path, off := range map[string]int64{"/whole": 5, "/other": 5, "/part": 5, "/": 100_000, "/elsewhere": 200_000} {
		if body, _, err := h.FetchFrom(t.Context(), server.URL+path, off); err == nil {
			body.Close()
			t.Errorf("%s from %d was taken", path, off)
		}
	}
	small := newFetcher(t, HTTPConfig{MaxBytes: int64(len(want)) - 1})
	if _, _, err := small.FetchFrom(t.Context(), server.URL, 99_999); !errors.Is(err, ErrTooLarge) {
		t.Errorf("the end of what is too large: %v", err)
	}
	if n := len(h.slots) + len(small.slots); n != 0 {
		t.Errorf("%d slots are in use after the fetches", n)
	}
}

// TestFetchForbidden: none of these is connected to, however the address is written.
func TestFetchForbidden(t *testing.T) {
	addr := serveInternal(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	h := newFetcher(t, HTTPConfig{Resolver: resolver(func(string) []string { return []string{"127.0.0.2"} })})
	for _, u := range []string{
		"http://" + addr,
		"http://127.0.0.2:" + port,
		"http://[::ffff:127.0.0.2]:" + port,
		"http://[::ffff:7f00:2]:" + port,
		"http://%31%32%37.0.0.2:" + port,
		"http://internal.test:" + port,
		"https://internal.test:" + port,
		"http://0x7f.0.0.2:" + port, // a name like any other, to this resolver
		"http://0.0.0.0:" + port,
		"http://[::]:" + port,
		"http://[::1]:" + port,
		"http://10.0.0.1:" + port,
		"http://169.254.169.254/latest/meta-data/",
		"http://[fe80::1%25lo]:" + port,
		"http://[fd00::1]:" + port,
		"http://224.0.0.1:" + port,
		"ftp://example.test/",
		"file:///etc/passwd",
		"gopher://" + addr,
		"http://user:" + secret + "@example.test/",
		"http://user@" + addr,
		"http:" + addr,
		"http:///path",
		"http://:80/",
		"//" + addr,
		addr,
		"",
		"http://x\x7f/",
		"http://x:port/",
		"http://" + strings.Repeat("x", maxURL),
		"http://" + strings.Repeat("x.", 200),
	} {
		_, _, err := fetch(t, h, u)
		if !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v, want ErrForbidden", u[:min(len(u), 60)], err)
		}
		if err != nil && !strings.Contains(u, "127.0.0.2") && strings.Contains(err.Error(), "127.0.0.2") {
			t.Errorf("%s: the error tells what the name resolves to: %v", u, err)
		}
	}
}

func TestFetchAllowed(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "content") })
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	local := resolver(func(string) []string { return []string{"127.0.0.1"} })
	none := []netip.Prefix{}
	for _, tt := range []struct {
		name string
		url  string
		cfg  HTTPConfig
		want bool
	}{
		{"nothing configured", server.URL, HTTPConfig{AllowPrefixes: none}, false},
		{"address", server.URL, HTTPConfig{AllowPrefixes: none, AllowHosts: []string{"127.0.0.1"}}, true},
		{"address and port", server.URL, HTTPConfig{AllowPrefixes: none, AllowHosts: []string{u.Host}}, true},
		{"other port", server.URL, HTTPConfig{AllowPrefixes: none, AllowHosts: []string{"127.0.0.1:1"}}, false},
		{"prefix", server.URL, HTTPConfig{AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, true},
		{"name", "http://custody.test:" + u.Port(), HTTPConfig{AllowPrefixes: none, AllowHosts: []string{"custody.test"}}, true},
		{"name in capitals", "http://CUSTODY.test:" + u.Port(), HTTPConfig{AllowPrefixes: none, AllowHosts: []string{"Custody.Test"}}, true},
		{"other name, same address", "http://evil.test:" + u.Port(), HTTPConfig{AllowPrefixes: none, AllowHosts: []string{"custody.test"}}, false},
		{"any name in an allowed network", "http://any.test:" + u.Port(), HTTPConfig{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Resolver = local
			b, _, err := fetch(t, newFetcher(t, tt.cfg), tt.url)
			if tt.want != (err == nil && string(b) == "content") || !tt.want && !errors.Is(err, ErrForbidden) {
				t.Errorf("%q, %v; want allowed %t", b, err, tt.want)
			}
		})
	}
	if _, err := NewHTTP(HTTPConfig{AllowHosts: []string{"http://x"}}); err == nil {
		t.Error("a URL was accepted as an allowed host")
	}
	if _, err := NewHTTP(HTTPConfig{MaxBytes: -1}); err == nil {
		t.Error("a negative limit was accepted")
	}
}

// TestFetchRebinding: a name that resolves to an allowed address at first and to an internal one later, or to both.
func TestFetchRebinding(t *testing.T) {
	_, port, err := net.SplitHostPort(serveInternal(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Skipf("port %s is taken on 127.0.0.1: %v", port, err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "/other?"+secret, http.StatusFound)
		}
	}))
	server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()

	t.Run("between fetches", func(t *testing.T) {
		var lookups atomic.Int32
		h := newFetcher(t, HTTPConfig{Resolver: resolver(func(string) []string {
			if lookups.Add(1) == 1 {
				return []string{"127.0.0.1"}
			}
			return []string{"127.0.0.2"}
		})})
		if _, _, err := fetch(t, h, "http://rebind.test:"+port); err != nil {
			t.Fatalf("first fetch: %v", err)
		}
		if _, _, err := fetch(t, h, "http://rebind.test:"+port); !errors.Is(err, ErrForbidden) {
			t.Errorf("second fetch: %v, want ErrForbidden", err)
		}
	})
	t.Run("between a request and its redirect", func(t *testing.T) {
		var lookups atomic.Int32
		h := newFetcher(t, HTTPConfig{Resolver: resolver(func(string) []string {
			if lookups.Add(1) == 1 {
				return []string{"127.0.0.1"}
			}
			return []string{"127.0.0.2"}
		})})
		if _, _, err := fetch(t, h, "http://rebind.test:"+port+"/redirect"); !errors.Is(err, ErrForbidden) {
			t.Errorf("got %v, want ErrForbidden", err)
		}
	})
	t.Run("both at once", func(t *testing.T) {
		for _, addrs := range [][]string{{"127.0.0.1", "127.0.0.2"}, {"127.0.0.2", "127.0.0.1"}} {
			h := newFetcher(t, HTTPConfig{Resolver: resolver(func(string) []string { return addrs })})
			if _, _, err := fetch(t, h, "http://rebind.test:"+port); err != nil && !errors.Is(err, ErrForbidden) {
				t.Errorf("%v: %v", addrs, err)
			}
		}
	})
}

func TestFetchRedirects(t *testing.T) {
	internal := serveInternal(t)
	var seen []http.Header
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Clone())
		io.WriteString(w, "content")
	})
	var location string
	var status int
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var left int
		if _, err := fmt.Sscanf(r.URL.Path, "/hops/%d", &left); err == nil {
			if left == 0 {
				io.WriteString(w, "content")
				return
			}
			w.Header().Set("Location", fmt.Sprintf("/hops/%d?%s", left-1, secret))
			w.WriteHeader(http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Set-Cookie", "session="+secret)
		if location != "-" {
			w.Header().Set("Location", location)
		}
		w.WriteHeader(status)
	})
	h := newFetcher(t, HTTPConfig{})

	for _, status = range []int{301, 302, 303, 307, 308} {
		location = target.URL + "/x"
		if b, _, err := fetch(t, h, server.URL+"/"+secret+"?"+secret); err != nil || string(b) != "content" {
			t.Errorf("status %d: %q, %v", status, b, err)
		}
	}
	for _, header := range seen {
		if header.Get("Referer") != "" || header.Get("Cookie") != "" || header.Get("Authorization") != "" {
			t.Errorf("the redirected request carries %v", header)
		}
	}

	for _, hops := range []int{1, 5, 6, 100} {
		b, _, err := fetch(t, h, fmt.Sprintf("%s/hops/%d", server.URL, hops))
		if ok := err == nil && string(b) == "content"; ok != (hops <= maxRedirects) {
			t.Errorf("%d redirects: %q, %v", hops, b, err)
		}
	}

	status = http.StatusFound
	for _, location = range []string{
		"http://" + internal + "/" + secret,
		"//" + internal + "/",
		"http://[::ffff:127.0.0.2]/",
		"http://169.254.169.254/latest/meta-data/",
		"https://" + internal,
		"file:///etc/passwd",
		"ftp://127.0.0.1/",
		"http://user:" + secret + "@127.0.0.1/",
		"javascript:alert(1)",
		"http:///",
	} {
		if _, _, err := fetch(t, h, server.URL); !errors.Is(err, ErrForbidden) {
			t.Errorf("redirect to %s: %v, want ErrForbidden", location, err)
		}
	}
	for _, location = range []string{"-", "", "http://x:port/" + secret, "%zz"} {
		if _, _, err := fetch(t, h, server.URL); err == nil || !strings.Contains(err.Error(), "Location") {
			t.Errorf("redirect to %q: %v", location, err)
		}
	}
}

// TestFetchIgnoresProxies looks at the setting: what the environment says is read once per process, so no test can
// change it.
func TestFetchIgnoresProxies(t *testing.T) {
	if newFetcher(t, HTTPConfig{}).transport.Proxy != nil {
		t.Error("a proxy would be used, and would resolve names itself")
	}
}

func TestFetchTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "content") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	if b, _, err := fetch(t, newFetcher(t, HTTPConfig{RootCAs: roots}), server.URL); err != nil || string(b) != "content" {
		t.Errorf("known authority: %q, %v", b, err)
	}
	if _, _, err := fetch(t, newFetcher(t, HTTPConfig{RootCAs: x509.NewCertPool()}), server.URL); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
	// A name that the certificate is not for.
	h := newFetcher(t, HTTPConfig{RootCAs: roots, Resolver: resolver(func(string) []string { return []string{"127.0.0.1"} })})
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := fetch(t, h, "https://other.test:"+port); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("other name: %v", err)
	}
}

// TestFetchBadResponses: what a server may do wrong within one response.
func TestFetchBadResponses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name, response string
		want           error  // or, if nil,
		says           string // in the text of the error
		read           int    // bytes before the error
	}{
		{name: "truncated body", response: ok + "Content-Length: 100\r\n\r\nhalf", want: io.ErrUnexpectedEOF, read: 4},
		{name: "truncated chunks", response: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", want: io.ErrUnexpectedEOF, read: 4},
		{name: "truncated chunk", response: ok + "Transfer-Encoding: chunked\r\n\r\n8\r\nhalf", want: io.ErrUnexpectedEOF, read: 4},
		{name: "bad chunk", response: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n" + secret + "\r\n", says: "no valid HTTP", read: 4},
		{name: "truncated header", response: ok + "Content-Le", says: "no valid HTTP"},
		{name: "no response", response: "", want: io.ErrUnexpectedEOF},
		{name: "not HTTP", response: "SSH-2.0-OpenSSH_9.6\r\n\r\n", says: "no valid HTTP"},
		{name: "huge header", response: ok + strings.Repeat("X-Padding: "+strings.Repeat("x", 1000)+"\r\n", 1000) + "\r\n", says: "no valid HTTP"},
		{name: "two lengths", response: ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", says: "no valid HTTP"},
		{name: "negative length", response: ok + "Content-Length: -1\r\n\r\n", says: "no valid HTTP"},
		{name: "gzip", response: ok + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhalf", says: "encoded"},
		{name: "second coding", response: ok + "Content-Encoding: identity\r\nContent-Encoding: br\r\nContent-Length: 4\r\n\r\nhalf", says: "encoded"},
		{name: "stated length over the limit", response: ok + "Content-Length: 1001\r\n\r\n", want: ErrTooLarge},
		{name: "body over the limit", response: ok + "\r\n" + strings.Repeat("x", 1001), want: ErrTooLarge, read: 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := hijack(t, func(conn net.Conn) { io.WriteString(conn, tt.response) })
			b, _, err := fetch(t, newFetcher(t, HTTPConfig{MaxBytes: 1000}), server.URL+"/?"+secret)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v; want %v %s", err, tt.want, tt.says)
			}
			if len(b) != tt.read {
				t.Errorf("%d bytes were read, want %d", len(b), tt.read)
			}
		})
	}
	t.Run("identity is no coding", func(t *testing.T) {
		server := hijack(t, func(conn net.Conn) {
			io.WriteString(conn, ok+"Content-Encoding: Identity\r\nContent-Length: 4\r\n\r\nhalf")
		})
		if b, _, err := fetch(t, newFetcher(t, HTTPConfig{}), server.URL); err != nil || string(b) != "half" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("refused connection", func(t *testing.T) {
		server := serve(t, nil)
		server.Close()
		if _, _, err := fetch(t, newFetcher(t, HTTPConfig{}), server.URL); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		h := newFetcher(t, HTTPConfig{Resolver: resolver(func(string) []string { return nil })})
		if _, _, err := fetch(t, h, "http://unknown.test/"); err == nil || !strings.HasSuffix(err.Error(), "no such host") {
			t.Errorf("got %v", err)
		}
	})
}

// TestFetchResumes: a body that breaks off goes on where it was, if the source still has the same bytes and says so.
func TestFetchResumes(t *testing.T) {
	want := pattern(200_000, 3)
	const tag = `"v1"`
	for _, tt := range []struct {
		name     string
		etag     string                                            // of the first response
		cuts     []int                                             // bytes that the responses send before they break off
		answer   func(w http.ResponseWriter, from int) (done bool) // in place of a response to a range
		err      error
		requests int
	}{
		{name: "unbroken", etag: tag, requests: 1},
		{name: "once", etag: tag, cuts: []int{100_000}, requests: 2},
		{name: "thrice", etag: tag, cuts: []int{1, 5, 100_000}, requests: 4},
		{name: "for ever", etag: tag, cuts: []int{1, 1, 1, 1, 1, 1}, requests: 4, err: io.ErrUnexpectedEOF},
		{name: "no entity tag", cuts: []int{1}, requests: 1, err: io.ErrUnexpectedEOF},
		{name: "a weak one", etag: "W/" + tag, cuts: []int{1}, requests: 1, err: io.ErrUnexpectedEOF},
		{name: "other bytes by now", etag: tag, cuts: []int{1}, requests: 2, err: io.ErrUnexpectedEOF, answer: func(w http.ResponseWriter, _ int) bool {
			w.Write(pattern(200_000, 4)) // 200: If-Range did not hold
			return true
		}},
		{name: "another part", etag: tag, cuts: []int{1000}, requests: 2, err: io.ErrUnexpectedEOF, answer: func(w http.ResponseWriter, from int) bool {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from-1, len(want)-1, len(want)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[from-1:])
			return true
		}},
		{name: "longer by now", etag: tag, cuts: []int{1000}, requests: 2, err: io.ErrUnexpectedEOF, answer: func(w http.ResponseWriter, from int) bool {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(want), len(want)+1))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(append(want[from:len(want):len(want)], 'x'))
			return true
		}},
		{name: "a redirect", etag: tag, cuts: []int{1000}, requests: 2, err: io.ErrUnexpectedEOF, answer: func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Location", "http://127.0.0.2/")
			w.WriteHeader(http.StatusFound)
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var requests atomic.Int32
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				i, from := int(requests.Add(1))-1, 0
				if text := r.Header.Get("Range"); text != "" {
					fmt.Sscanf(text, "bytes=%d-", &from)
					if r.Header.Get("If-Range") != tag || i == 0 {
						t.Errorf("request %d: %v", i, r.Header)
					}
					if tt.answer != nil && tt.answer(w, from) {
						return
					}
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(want)-1, len(want)))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(want)-from))
				w.Header().Set("ETag", tt.etag)
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				if i >= len(tt.cuts) {
					w.Write(want[from:])
					return
				}
				w.Write(want[from : from+tt.cuts[i]])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			b, length, err := fetch(t, newFetcher(t, HTTPConfig{}), server.URL+"/?"+secret)
			if !errors.Is(err, tt.err) || length != int64(len(want)) || err == nil && len(b) != len(want) || !bytes.HasPrefix(want, b) {
				t.Errorf("%d bytes of %d, %v; want %v", len(b), length, err, tt.err)
			}
			if n := int(requests.Load()); n != tt.requests {
				t.Errorf("%d requests, want %d", n, tt.requests)
			}
		})
	}
}

func TestFetchEndless(t *testing.T) {
	done := make(chan struct{})
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		for {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	b, length, err := fetch(t, newFetcher(t, HTTPConfig{MaxBytes: 1 << 20}), server.URL)
	if !errors.Is(err, ErrTooLarge) || len(b) != 1<<20 || length != -1 {
		t.Errorf("%d bytes, length %d, %v; want %d bytes and ErrTooLarge", len(b), length, err, 1<<20)
	}
	<-done // the connection was closed
}

// waitForClient blocks until the client has gone.
func waitForClient(conn net.Conn) { io.Copy(io.Discard, conn) }

func TestFetchSlow(t *testing.T) {
	const stall = 50 * time.Millisecond
	t.Run("no header", func(t *testing.T) {
		server := hijack(t, waitForClient)
		if _, _, err := fetch(t, newFetcher(t, HTTPConfig{Stall: stall}), server.URL); !errors.Is(err, ErrSlow) {
			t.Errorf("got %v, want ErrSlow", err)
		}
	})
	t.Run("half a header", func(t *testing.T) {
		server := hijack(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Le")
			waitForClient(conn)
		})
		if _, _, err := fetch(t, newFetcher(t, HTTPConfig{Stall: stall}), server.URL); !errors.Is(err, ErrSlow) {
			t.Errorf("got %v, want ErrSlow", err)
		}
	})
	t.Run("half a body", func(t *testing.T) {
		server := hijack(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
			waitForClient(conn)
		})
		b, _, err := fetch(t, newFetcher(t, HTTPConfig{Stall: stall}), server.URL)
		if !errors.Is(err, ErrSlow) || string(b) != "half" {
			t.Errorf("%q, %v; want ErrSlow", b, err)
		}
	})
	t.Run("no end", func(t *testing.T) {
		server := serve(t, func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		})
		if _, _, err := fetch(t, newFetcher(t, HTTPConfig{Timeout: stall}), server.URL); !errors.Is(err, ErrSlow) {
			t.Errorf("got %v, want ErrSlow", err)
		}
	})
	t.Run("trickle", func(t *testing.T) {
		// Each byte is sent when the one before was read, and takes a second by the clock of the fetcher.
		next := make(chan struct{})
		server := hijack(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
			for range next {
				if _, err := io.WriteString(conn, "x"); err != nil {
					return
				}
			}
		})
		h := newFetcher(t, HTTPConfig{MinRate: 2})
		var clock time.Time
		h.now = func() time.Time {
			clock = clock.Add(time.Second)
			return clock
		}
		body, _, err := h.Fetch(t.Context(), server.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		n := 0
		for err == nil {
			next <- struct{}{}
			var k int
			k, err = body.Read(make([]byte, 10))
			n += k
		}
		close(next)
		// After 10 s of grace 2 bytes are due each second: 20 are due, and there, at 20 s.
		if !errors.Is(err, ErrSlow) || n != 21 {
			t.Errorf("%d bytes, %v; want 21 and ErrSlow", n, err)
		}
	})
}

func TestFetchCancelled(t *testing.T) {
	cause := errors.New("not needed any more")
	server := hijack(t, func(conn net.Conn) {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
		waitForClient(conn)
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	h := newFetcher(t, HTTPConfig{})
	body, _, err := h.Fetch(ctx, server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if _, err := body.Read(make([]byte, 4)); !errors.Is(err, cause) {
		t.Errorf("reading: %v, want the cause", err)
	}
	if _, _, err := h.Fetch(ctx, server.URL); !errors.Is(err, cause) {
		t.Errorf("fetching: %v, want the cause", err)
	}
}

func TestFetchBounds(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "content") })
	h := newFetcher(t, HTTPConfig{MaxFetches: 1})
	first, _, err := h.Fetch(t.Context(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	waiting, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, _, err := h.Fetch(waiting, server.URL); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("fetching beside another: %v, want to wait", err)
	}
	second := make(chan error, 1)
	go func() {
		body, _, err := h.Fetch(t.Context(), server.URL)
		if err == nil {
			body.Close()
		}
		second <- err
	}()
	first.Close()
	if err := <-second; err != nil {
		t.Errorf("fetching after another: %v", err)
	}
}

func TestFetchConcurrently(t *testing.T) {
	want := pattern(50_000, 2)
	var now, most atomic.Int32
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer now.Add(-1)
		w.Write(want)
	})
	h := newFetcher(t, HTTPConfig{MaxFetches: 16, MaxPerHost: 3})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			body, _, err := h.Fetch(t.Context(), server.URL)
			if err != nil {
				t.Error(err)
				return
			}
			defer body.Close()
			if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, want) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 {
		t.Errorf("%d requests at a time to one host, at most 3 are wanted", most.Load())
	}
	if n := len(h.slots); n != 0 {
		t.Errorf("%d slots are in use after the fetches", n)
	}
}

// TestFetchCustody: what custody serves is what a fetch reads.
func TestFetchCustody(t *testing.T) {
	d := newDir(t)
	want := pattern(300_000, 7)
	content := put(t, d, want)
	var h http.Handler
	server := serve(t, func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) })
	custody := newCustody(t, server.URL, d)
	h = NewContentHandler(custody, ContentConfig{})
	found, err := custody.Stat(t.Context(), content)
	if err != nil {
		t.Fatal(err)
	}
	b, length, err := fetch(t, newFetcher(t, HTTPConfig{}), found.URL)
	if err != nil || length != found.Length || !bytes.Equal(b, want) {
		t.Errorf("%d bytes, length %d, %v; want %d", len(b), length, err, len(want))
	}
	_, _, err = fetch(t, newFetcher(t, HTTPConfig{}), custody.URL(contentOf(t, Raw, []byte("absent"))))
	if !errors.Is(err, compute.ErrNoContent) {
		t.Errorf("absent content: %v", err)
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"http://example.test/a?b#c", "https://[::1]:80/", "http://user:pw@x/", "file:///etc/passwd", "http://x\\@y/",
		"HTTP://X/", "http:x", "//x", "http://x:99999/", "http://[fe80::1%25eth0]/", "http://%31/", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURL(s)
		if err != nil {
			if !errors.Is(err, ErrForbidden) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Fragment != "" {
			t.Fatalf("%q became %#v", s, u)
		}
		// What is requested is what was checked.
		again, err := url.Parse(u.String())
		if err != nil || again.Host != u.Host || again.User != nil {
			t.Fatalf("%q: host %q is read back from %s as %v, %v", s, u.Host, u, again, err)
		}
	})
}

// resolver answers all questions for IPv4 addresses by lookup, and has no IPv6 addresses. Lookup gets the name with a
// dot at the end; without an address the name does not exist.
func resolver(lookup func(name string) []string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			for r := bufio.NewReader(server); answer(r, server, lookup) == nil; {
			}
		}()
		return client, nil
	}}
}

// answer answers one question, in the form that DNS has over streams (RFC 1035, section 4).
func answer(r io.Reader, w io.Writer, lookup func(string) []string) error {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, query); err != nil {
		return err
	}
	const header = 12
	end, name := header, ""
	for query[end] != 0 {
		n := int(query[end])
		name += string(query[end+1:end+1+n]) + "."
		end += 1 + n
	}
	question := query[header : end+5]
	var addrs []string
	if kind := binary.BigEndian.Uint16(query[end+1:]); kind == 1 { // A
		addrs = lookup(name)
	}
	flags := uint16(0x8580) // an authoritative response
	if len(addrs) == 0 {
		flags |= 3 // no such name, or no such record of it
	}
	msg := append([]byte{}, query[:2]...)
	for _, v := range []uint16{flags, 1, uint16(len(addrs)), 0, 0} {
		msg = binary.BigEndian.AppendUint16(msg, v)
	}
	msg = append(msg, question...)
	for _, a := range addrs {
		ip := netip.MustParseAddr(a).As4()
		msg = append(msg, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4) // the name above, A, IN, no time to live, 4 bytes
		msg = append(msg, ip[:]...)
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}
