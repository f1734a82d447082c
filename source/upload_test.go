package source

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const token = "a-token-of-more-than-16-characters"

// newUploads serves uploads to a directory, with the token above and a limit of 1 MiB unless cfg says otherwise.
func newUploads(t testing.TB, d *Dir, cfg UploadConfig) *httptest.Server {
	t.Helper()
	if cfg.Tokens == nil {
		cfg.Tokens = []string{token}
	}
	cfg.MaxBytes = or(cfg.MaxBytes, 1<<20)
	h, err := NewUploadHandler(newCustody(t, testBase, d), cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

// raw sends text as it is over a connection of its own. Closing is left to the test.
func raw(t testing.TB, server *httptest.Server, text string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), bufio.NewReader(conn)
}

func readResponse(t testing.TB, r *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Request = &http.Request{Method: http.MethodPut}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestUpload(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{Tokens: []string{"the-previous-token-is-valid-too", token}})
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	path := "/upload/" + content.String()
	url := testBase + "/content/" + content.String()
	bearer := []string{"Authorization", "Bearer " + token}

	resp, body := request(t, server, "HEAD", path, nil, bearer...)
	wantRefusal(t, resp, body, 404, "ContentNotFound")

	for i, status := range []int{201, 200, 200} {
		resp, body := request(t, server, "PUT", path, bytes.NewReader(b), bearer...)
		var got uploaded
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("upload %d: body %q: %v", i, body, err)
		}
		if diff := cmp.Diff(uploaded{Content: content.String(), Length: 500, URL: url}, got); diff != "" {
			t.Errorf("upload %d: %s", i, diff)
		}
		if resp.StatusCode != status || resp.Header.Get("Location") != url {
			t.Errorf("upload %d: status %d, Location %q; want %d, %q", i, resp.StatusCode, resp.Header.Get("Location"), status, url)
		}
	}
	wantContent(t, d, content, b)

	resp, _ = request(t, server, "HEAD", path, nil, "Authorization", "bearer the-previous-token-is-valid-too")
	if resp.StatusCode != 200 || resp.ContentLength != 500 || resp.Header.Get("Content-Location") != url {
		t.Errorf("HEAD: status %d, length %d, header %v", resp.StatusCode, resp.ContentLength, resp.Header)
	}
}

func TestUploadRefuses(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b).String()
	other := contentOf(t, Raw, pattern(500, 1)).String()
	absent := contentOf(t, Raw, []byte("absent")).String()
	bearer := "Bearer " + token
	for _, tt := range []struct {
		name, method, path, auth string
		body                     io.Reader
		header                   []string
		status                   int
		want, says               string
	}{
		{name: "no token", auth: "-", status: 401, want: "Unauthorized", says: "Authorization: Bearer"},
		{name: "no token, HEAD", method: "HEAD", auth: "-", status: 401},
		{name: "wrong token", auth: bearer + "x", status: 401, want: "Unauthorized"},
		{name: "prefix of the token", auth: bearer[:len(bearer)-1], status: 401, want: "Unauthorized"},
		{name: "empty token", auth: "Bearer ", status: 401, want: "Unauthorized"},
		{name: "other scheme", auth: "Basic " + token, status: 401, want: "Unauthorized"},
		{name: "token in the query", path: "/upload/" + content + "?access_token=" + token, auth: "-", status: 401, want: "Unauthorized"},
		{name: "other bytes", path: "/upload/" + other, status: 400, want: "ContentMismatch", says: content},
		{name: "empty body", path: "/upload/" + other, body: http.NoBody, status: 400, want: "ContentMismatch"},
		{name: "too long", body: bytes.NewReader(make([]byte, 1<<20+1)), status: 413, want: "ContentTooLarge", says: "at most 1048576"},
		{name: "no length", body: struct{ io.Reader }{bytes.NewReader(b)}, status: 411, want: "LengthRequired", says: "Content-Length"},
		{name: "part", header: []string{"Content-Range", "bytes 0-499/1000"}, status: 400, want: "InvalidRequest"},
		{name: "no CID", path: "/upload/", status: 400, want: "InvalidContent"},
		{name: "not a CID", path: "/upload/../../etc/passwd", status: 400, want: "InvalidContent"},
		{name: "encoded traversal", path: "/upload/..%2f..%2fetc%2fpasswd", status: 400, want: "InvalidContent"},
		{name: "piece CID", path: "/upload/bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq", status: 400, want: "InvalidContent", says: "sha2-256"},
		{name: "other path", path: "/elsewhere", status: 404, want: "NotFound"},
		{name: "absent, HEAD", method: "HEAD", path: "/upload/" + absent, body: http.NoBody, status: 404},
		{name: "not a CID, HEAD", method: "HEAD", path: "/upload/x", body: http.NoBody, status: 400},
		{name: "POST", method: "POST", status: 405, want: "MethodNotAllowed"},
		{name: "GET", method: "GET", body: http.NoBody, status: 405, want: "MethodNotAllowed"},
		{name: "DELETE", method: "DELETE", body: http.NoBody, status: 405, want: "MethodNotAllowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			server := newUploads(t, d, UploadConfig{})
			if tt.body == nil {
				tt.body = bytes.NewReader(b)
			}
			header := tt.header
			if tt.auth != "-" {
				header = append(header, "Authorization", or(tt.auth, bearer))
			}
			resp, body := request(t, server, or(tt.method, "PUT"), or(tt.path, "/upload/"+content), tt.body, header...)
			wantRefusal(t, resp, body, tt.status, tt.want)
			if !strings.Contains(body, tt.says) {
				t.Errorf("body %q does not say %q", body, tt.says)
			}
			challenge := resp.Header.Get("WWW-Authenticate")
			if (tt.status == 401) != strings.HasPrefix(challenge, `Bearer realm="`) || strings.Contains(body+challenge, token) {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
			if invalid := strings.Contains(challenge, "invalid_token"); invalid != (tt.name == "wrong token" || tt.name == "prefix of the token") {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
			if allow := resp.Header.Get("Allow"); tt.status == 405 && allow != "PUT, HEAD" {
				t.Errorf("Allow %q", allow)
			}
			if got := files(t, d.path); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

func TestUploadBodyFails(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	head := fmt.Sprintf("PUT /upload/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 500\r\n", content, token)

	t.Run("truncated", func(t *testing.T) {
		d := newDir(t)
		conn, r := raw(t, newUploads(t, d, UploadConfig{}), head+"\r\n"+string(b[:250]))
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		resp, body := readResponse(t, r)
		wantRefusal(t, resp, body, 400, "IncompleteContent")
		wantNothing(t, d, content)
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
	})

	t.Run("stalled", func(t *testing.T) {
		d := newDir(t)
		_, r := raw(t, newUploads(t, d, UploadConfig{Stall: 50 * time.Millisecond}), head+"\r\n"+string(b[:250]))
		resp, body := readResponse(t, r)
		wantRefusal(t, resp, body, 408, "TooSlow")
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
	})

	t.Run("trickling", func(t *testing.T) {
		// Each read takes a second by the clock that uploads are paced by.
		d := newDir(t)
		h, err := NewUploadHandler(newCustody(t, testBase, d), UploadConfig{Tokens: []string{token}, MaxBytes: 500, MinRate: 500})
		if err != nil {
			t.Fatal(err)
		}
		var clock time.Time
		h.(*uploadHandler).now = func() time.Time {
			clock = clock.Add(time.Second)
			return clock
		}
		r := httptest.NewRequest("PUT", "/upload/"+content.String(), iotest.OneByteReader(bytes.NewReader(b)))
		r.ContentLength = 500
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		resp := w.Result()
		resp.Request = r
		wantRefusal(t, resp, w.Body.String(), 408, "TooSlow")
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
	})

	t.Run("reset", func(t *testing.T) {
		d := newDir(t)
		var log lockedBuffer
		server := newUploads(t, d, UploadConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
		conn, _ := raw(t, server, head+"\r\n"+string(b[:250]))
		if err := conn.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		server.Close() // waits for the handler
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
		if log.String() != "" {
			t.Errorf("a client that left was logged as a failure: %s", log.String())
		}
	})

	t.Run("present content is answered before it is sent", func(t *testing.T) {
		d := newDir(t)
		put(t, d, b)
		_, r := raw(t, newUploads(t, d, UploadConfig{}), head+"Expect: 100-continue\r\n\r\n")
		resp, _ := readResponse(t, r)
		if resp.StatusCode != 200 {
			t.Errorf("status %d, want 200 without 100 before", resp.StatusCode)
		}
	})

	t.Run("present content is taken if it is sent", func(t *testing.T) {
		d := newDir(t)
		put(t, d, b)
		_, r := raw(t, newUploads(t, d, UploadConfig{}), head+"\r\n"+string(b)+head+"\r\n"+string(b))
		for range 2 { // on one connection: the body of the first is out of the way
			if resp, _ := readResponse(t, r); resp.StatusCode != 200 {
				t.Errorf("status %d, want 200", resp.StatusCode)
			}
		}
	})

	t.Run("huge header", func(t *testing.T) {
		_, r := raw(t, newUploads(t, newDir(t), UploadConfig{}), head+"X: "+strings.Repeat("x", 2<<20)+"\r\n\r\n")
		resp, _ := readResponse(t, r)
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d, want 431", resp.StatusCode)
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestUploadDiskFails(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	for _, tt := range []struct {
		err    error
		status int
		name   string
	}{
		{syscall.ENOSPC, 507, "OutOfSpace"},
		{syscall.EDQUOT, 507, "OutOfSpace"},
		{errFault, 500, "Internal"},
	} {
		d := newDir(t)
		d.disk = newCrashDisk(2, false, tt.err) // the first write
		var log lockedBuffer
		server := newUploads(t, d, UploadConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
		resp, body := request(t, server, "PUT", "/upload/"+content.String(), bytes.NewReader(b), "Authorization", "Bearer "+token)
		wantRefusal(t, resp, body, tt.status, tt.name)
		if !strings.Contains(log.String(), tt.err.Error()) || strings.Contains(body, tt.err.Error()) {
			t.Errorf("log %q, body %q: the cause belongs into the log only", log.String(), body)
		}
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
		resp, _ = request(t, server, "PUT", "/upload/"+content.String(), bytes.NewReader(b), "Authorization", "Bearer "+token)
		if resp.StatusCode != 201 {
			t.Errorf("after the fault: status %d", resp.StatusCode)
		}
	}
}

func TestUploadBusy(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{MaxUploads: 1})
	b := pattern(2000, 3)
	path := "/upload/" + contentOf(t, Raw, b).String()

	body, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(b))
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Expect", "100-continue") // holds the body back until the handler reads, by when it has its slot
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	first := make(chan error, 1)
	go func() {
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 201 {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
		}
		first <- err
	}()
	if _, err := w.Write(b[:1]); err != nil {
		t.Fatal(err)
	}

	resp, text := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", "Bearer "+token)
	wantRefusal(t, resp, text, 503, "Busy")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if _, err := w.Write(b[1:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if resp, _ := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", "Bearer "+token); resp.StatusCode != 200 {
		t.Errorf("after the first: status %d", resp.StatusCode)
	}
}

func TestUploadConcurrently(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{})
	b := pattern(100_000, 9)
	path := "/upload/" + contentOf(t, Raw, b).String()
	var created atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			resp, _ := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", "Bearer "+token)
			switch resp.StatusCode {
			case 201:
				created.Add(1)
			case 200:
			default:
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 {
		t.Errorf("%d answers say created", created.Load())
	}
	if got := files(t, d.path); len(got) != 1 || filepath.Dir(got[0]) == incoming {
		t.Errorf("files: %q", got)
	}
}

func TestNewUploadHandlerRefuses(t *testing.T) {
	writable := newCustody(t, testBase, newDir(t))
	readOnly := newCustody(t, testBase, operatorDir(t, "x", nil))
	for _, tt := range []struct {
		name    string
		custody *Custody
		cfg     UploadConfig
	}{
		{"no directory for uploads", readOnly, UploadConfig{Tokens: []string{token}, MaxBytes: 1}},
		{"no token", writable, UploadConfig{MaxBytes: 1}},
		{"empty token", writable, UploadConfig{Tokens: []string{token, ""}, MaxBytes: 1}},
		{"token that can be guessed", writable, UploadConfig{Tokens: []string{"secret"}, MaxBytes: 1}},
		{"token with a line end", writable, UploadConfig{Tokens: []string{token + "\n"}, MaxBytes: 1}},
		{"no limit", writable, UploadConfig{Tokens: []string{token}}},
	} {
		if _, err := NewUploadHandler(tt.custody, tt.cfg); err == nil {
			t.Errorf("%s: accepted", tt.name)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error repeats the token: %v", tt.name, err)
		}
	}
}

func TestPace(t *testing.T) {
	p := pace{minRate: 100}
	for i, tt := range []struct {
		bytes int
		after time.Duration
		slow  bool
	}{
		{0, 10 * time.Second, false}, // all of the grace
		{100, time.Second, false},    // just enough
		{99, time.Second, true},      // 199 where 200 are due
		{1, 0, false},
		{1000, 0, false}, // ahead
		{0, 10 * time.Second, false},
		{0, time.Second, true},
	} {
		if err := p.add(tt.bytes, tt.after); errors.Is(err, ErrSlow) != tt.slow {
			t.Errorf("step %d: %v, want slow %t", i, err, tt.slow)
		}
	}
	if err := (&pace{}).add(0, time.Hour); err != nil {
		t.Errorf("no rate is asked for: %v", err)
	}
}
