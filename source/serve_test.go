package source

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// request sends a request whose path is exactly as given and returns the response with its body read.
func request(t testing.TB, server *httptest.Server, method, path string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = path
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := server.Client().Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// wantRefusal fails the test unless the body names the failure and says something, and nothing of our files.
func wantRefusal(t testing.TB, resp *http.Response, body string, status int, name string) {
	t.Helper()
	var f failure
	if err := json.Unmarshal([]byte(body), &f); err != nil && resp.Request.Method != http.MethodHead {
		t.Errorf("body %q: %v", body, err)
	} else if err == nil && (f.Name != name || f.Message == "" || strings.Contains(f.Message, os.TempDir())) {
		t.Errorf("refusal %+v, want %s", f, name)
	}
	if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("status %d, header %v; want %d, JSON, no-store", resp.StatusCode, resp.Header, status)
	}
}

func TestContentHandler(t *testing.T) {
	b := make([]byte, 3*stallChunk+1234)
	rand.Read(b)
	uploads := newDir(t)
	content := put(t, uploads, b)
	placed := contentOf(t, CAR, []byte("placed by the operator"))
	operator := operatorDir(t, placed.String()+".car", []byte("placed by the operator"))
	server := httptest.NewServer(NewContentHandler(newCustody(t, testBase, uploads, operator), ContentConfig{}))
	defer server.Close()

	etag := `"` + content.String() + `"`
	for _, tt := range []struct {
		name, method string
		header       []string
		status       int
		want         []byte
		contentRange string
	}{
		{name: "all", status: 200, want: b},
		{name: "HEAD", method: "HEAD", status: 200},
		{name: "range", header: []string{"Range", "bytes=100-199"}, status: 206, want: b[100:200], contentRange: fmt.Sprintf("bytes 100-199/%d", len(b))},
		{name: "range across chunks", header: []string{"Range", "bytes=5-"}, status: 206, want: b[5:], contentRange: fmt.Sprintf("bytes 5-%d/%d", len(b)-1, len(b))},
		{name: "the last bytes", header: []string{"Range", "bytes=-7"}, status: 206, want: b[len(b)-7:], contentRange: fmt.Sprintf("bytes %d-%d/%d", len(b)-7, len(b)-1, len(b))},
		{name: "range of the same content", header: []string{"Range", "bytes=0-0", "If-Range", etag}, status: 206, want: b[:1], contentRange: fmt.Sprintf("bytes 0-0/%d", len(b))},
		{name: "range of other content", header: []string{"Range", "bytes=0-0", "If-Range", `"other"`}, status: 200, want: b},
		{name: "not modified", header: []string{"If-None-Match", etag}, status: 304},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := request(t, server, or(tt.method, "GET"), "/content/"+content.String(), nil, tt.header...)
			if resp.StatusCode != tt.status || body != string(tt.want) {
				t.Errorf("status %d, %d bytes; want %d, %d bytes", resp.StatusCode, len(body), tt.status, len(tt.want))
			}
			if got := resp.Header.Get("Content-Range"); got != tt.contentRange {
				t.Errorf("Content-Range %q, want %q", got, tt.contentRange)
			}
			if got := resp.Header.Get("ETag"); got != etag {
				t.Errorf("ETag %q, want %q", got, etag)
			}
			if got := resp.Header.Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
				t.Errorf("Cache-Control %q", got)
			}
			if tt.status == 200 && resp.ContentLength != int64(len(b)) {
				t.Errorf("Content-Length %d, want %d", resp.ContentLength, len(b))
			}
		})
	}
	if resp, _ := request(t, server, "GET", "/content/"+content.String(), nil, "Range", fmt.Sprintf("bytes=%d-", len(b))); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("range beyond the end: status %d", resp.StatusCode)
	}

	t.Run("operator's content", func(t *testing.T) {
		resp, body := request(t, server, "GET", "/content/"+placed.String(), nil)
		got := map[string]string{"body": body}
		for _, k := range []string{"Content-Type", "Content-Disposition", "X-Content-Type-Options", "Cache-Control", "ETag", "Accept-Ranges"} {
			got[k] = resp.Header.Get(k)
		}
		want := map[string]string{
			"body": "placed by the operator", "Content-Type": "application/vnd.ipld.car",
			"Content-Disposition":    `attachment; filename="` + placed.String() + `.car"`,
			"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=3600",
			"ETag": `"` + placed.String() + `"`, "Accept-Ranges": "bytes",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestContentHandlerRefuses(t *testing.T) {
	root := t.TempDir()
	uploads, err := OpenDir(filepath.Join(root, "uploads"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(uploads.path, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	content := put(t, uploads, pattern(500, 0)).String()
	absent := contentOf(t, Raw, []byte("absent")).String()
	server := httptest.NewServer(NewContentHandler(newCustody(t, testBase, uploads), ContentConfig{}))
	defer server.Close()

	for _, tt := range []struct {
		method, path string
		status       int
		name         string
	}{
		{"GET", "/content/" + absent, 404, "ContentNotFound"},
		{"HEAD", "/content/" + absent, 404, "ContentNotFound"},
		{"GET", "/content/", 400, "InvalidContent"},
		{"GET", "/content/secret", 400, "InvalidContent"},
		{"GET", "/content/../secret", 400, "InvalidContent"},
		{"GET", "/content/..%2fsecret", 400, "InvalidContent"},
		{"GET", "/content/%2e%2e/secret", 400, "InvalidContent"},
		{"GET", "/content/..%5csecret", 400, "InvalidContent"},
		{"GET", "/content//etc/passwd", 400, "InvalidContent"},
		{"GET", "/content/" + content + "/../../secret", 400, "InvalidContent"},
		{"GET", "/content/" + content + "%00", 400, "InvalidContent"},
		{"GET", "/content/" + content + "/", 400, "InvalidContent"},
		{"GET", "/content/.incoming", 400, "InvalidContent"},
		{"GET", "/content/" + strings.Repeat("b", 4096), 400, "InvalidContent"},
		{"GET", "/other/" + content, 404, "NotFound"},
		{"GET", "/", 404, "NotFound"},
		{"PUT", "/content/" + content, 405, "MethodNotAllowed"},
		{"DELETE", "/content/" + content, 405, "MethodNotAllowed"},
	} {
		t.Run(tt.method+" "+tt.path[:min(len(tt.path), 40)], func(t *testing.T) {
			resp, body := request(t, server, tt.method, tt.path, nil)
			wantRefusal(t, resp, body, tt.status, tt.name)
			if allow := resp.Header.Get("Allow"); tt.status == 405 && allow != "GET, HEAD" {
				t.Errorf("Allow %q", allow)
			}
		})
	}

	t.Run("unreadable directory", func(t *testing.T) {
		broken := operatorDir(t, "x", nil)
		broken.path = filepath.Join(broken.path, "x")
		var log bytes.Buffer
		server := httptest.NewServer(NewContentHandler(newCustody(t, testBase, broken), ContentConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}))
		defer server.Close()
		resp, body := request(t, server, "GET", "/content/"+content, nil)
		wantRefusal(t, resp, body, 500, "Internal")
		server.Close() // the handler has returned
		if !strings.Contains(log.String(), content) {
			t.Errorf("log: %q", log.String())
		}
	})
}

// TestContentHandlerSlowReader: a client that asks for much and takes nothing is let go.
func TestContentHandlerSlowReader(t *testing.T) {
	content := contentOf(t, Raw, []byte("large"))
	dir := operatorDir(t, content.String(), nil)
	if err := os.Truncate(filepath.Join(dir.path, content.String()), 1<<30); err != nil {
		t.Fatal(err)
	}
	h := NewContentHandler(newCustody(t, testBase, dir), ContentConfig{Stall: 50 * time.Millisecond})
	returned := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(returned)
		h.ServeHTTP(w, r)
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /content/%s HTTP/1.1\r\nHost: x\r\n\r\n", content)
	if status, err := bufio.NewReaderSize(conn, 16).ReadString(' '); err != nil || status != "HTTP/1.1 " {
		t.Fatalf("%q, %v", status, err)
	}
	select {
	case <-returned:
	case <-time.After(30 * time.Second):
		t.Fatal("the handler still serves a client that does not read")
	}
}

func BenchmarkContentHandler(b *testing.B) {
	uploads := newDir(b)
	data := make([]byte, 64<<20)
	content := put(b, uploads, data)
	server := httptest.NewServer(NewContentHandler(newCustody(b, testBase, uploads), ContentConfig{}))
	defer server.Close()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		resp, err := http.Get(server.URL + "/content/" + content.String())
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != int64(len(data)) {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
}

func BenchmarkPut(b *testing.B) {
	data := make([]byte, 64<<20)
	content := contentOf(b, Raw, data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		b.StopTimer()
		d := newDir(b)
		b.StartTimer()
		if _, err := d.Put(b.Context(), content, bytes.NewReader(data), noLimit); err != nil {
			b.Fatal(err)
		}
	}
}
