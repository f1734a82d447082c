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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

// expiry is when the tokens of these tests end, uploadClock the time that they are judged by.
var expiry = time.Unix(1_785_578_400, 0)

func uploadClock() time.Time { return expiry.Add(-time.Minute) }

func uploadSigner(t testing.TB, seed byte) capabilities.Signer {
	t.Helper()
	s, err := wire.SignerOfSeed(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newBucket(t testing.TB, d Place) *Uploads {
	t.Helper()
	b, err := newCustody(t, testBase, d).Uploads(uploadSigner(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newUploads serves uploads to a directory.
func newUploads(t testing.TB, d *Dir, cfg UploadConfig) *httptest.Server {
	t.Helper()
	cfg.Now = uploadClock
	server := httptest.NewServer(NewUploadHandler(newBucket(t, d), cfg))
	t.Cleanup(server.Close)
	return server
}

// allocated returns the headers of an address for content of a length.
func allocated(t testing.TB, content cid.Cid, length int) string {
	t.Helper()
	a, err := newBucket(t, newDir(t)).Allocate(t.Context(), blob.Blob{Digest: blob.Digest(content.Hash()), Size: uint64(length)}, expiry)
	if err != nil {
		t.Fatal(err)
	}
	if want := testBase + "/blob/" + cid.NewCidV1(Raw, content.Hash()).String(); a.URL != want || a.Expires != uint64(expiry.Unix()) || len(a.Headers) != 1 {
		t.Fatalf("the address is %+v, want it at %s", a, want)
	}
	return a.Headers["authorization"]
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
	bucket := newBucket(t, d)
	server := newUploads(t, d, UploadConfig{})
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	path, url := "/blob/"+content.String(), testBase+"/content/"+content.String()
	auth := []string{"Authorization", allocated(t, content, 500)}

	if _, err := bucket.Stat(t.Context(), blob.Digest(content.Hash())); !errors.Is(err, uploads.ErrNoBlob) {
		t.Errorf("before the upload: %v", err)
	}
	for i, body := range []io.Reader{bytes.NewReader(b), bytes.NewReader(b), struct{ io.Reader }{bytes.NewReader(b)}} {
		resp, text := request(t, server, "PUT", path, body, auth...)
		var got uploaded
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("upload %d: body %q: %v", i, text, err)
		}
		if diff := cmp.Diff(uploaded{Content: content.String(), Length: 500, URL: url}, got); diff != "" {
			t.Errorf("upload %d: %s", i, diff)
		}
		status := 200
		if i == 0 {
			status = 201
		}
		if resp.StatusCode != status || resp.Header.Get("Location") != url {
			t.Errorf("upload %d: status %d, Location %q; want %d, %q", i, resp.StatusCode, resp.Header.Get("Location"), status, url)
		}
	}
	wantContent(t, d, content, b)
	if got, err := bucket.Stat(t.Context(), blob.Digest(content.Hash())); err != nil || got != (uploads.Stored{Size: 500, URL: url}) {
		t.Errorf("after the upload: %+v, %v", got, err)
	}
}

// TestUploadWithoutLength: clients that stream state no length; what was allocated holds all the same.
func TestUploadWithoutLength(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{})
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	for _, tt := range []struct {
		name   string
		length int
		body   []byte
		status int
		want   string
	}{
		{"longer", 499, b, 413, "ContentTooLarge"},
		{"shorter", 500, b[:499], 400, "ContentMismatch"},
		{"shorter than allocated for these bytes", 501, b, 400, "LengthMismatch"},
	} {
		resp, text := request(t, server, "PUT", "/blob/"+content.String(), struct{ io.Reader }{bytes.NewReader(tt.body)},
			"Authorization", allocated(t, content, tt.length))
		wantRefusal(t, resp, text, tt.status, tt.want)
	}
	other := contentOf(t, CAR, b).String() // the same bytes, by another name
	if resp, _ := request(t, server, "PUT", "/blob/"+other, struct{ io.Reader }{bytes.NewReader(b)}, "Authorization", allocated(t, content, 500)); resp.StatusCode != 200 {
		t.Errorf("status %d, want 200", resp.StatusCode)
	}
}

// TestBucketVouches: what an operator placed has not been verified, and so is not what was uploaded.
func TestBucketVouches(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	d := newDir(t)
	if err := os.WriteFile(filepath.Join(d.path, content.String()), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newBucket(t, d).Stat(t.Context(), blob.Digest(content.Hash())); !errors.Is(err, uploads.ErrNoBlob) {
		t.Errorf("a file that was not uploaded: %v", err)
	}
	put(t, d, b)
	if got, err := newBucket(t, d).Stat(t.Context(), blob.Digest(content.Hash())); err != nil || got.Size != 500 {
		t.Errorf("what was uploaded: %+v, %v", got, err)
	}
}

func TestUploadRefuses(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	other := contentOf(t, Raw, pattern(500, 1))
	bearer := allocated(t, content, 500)
	token := strings.TrimPrefix(bearer, "Bearer ")
	sign := func(seed byte, length uint64, expires time.Time) string {
		return "Bearer " + uploadToken{content, length, expires.Unix()}.sign(uploadSigner(t, seed))
	}
	for _, tt := range []struct {
		name, method, path, auth string
		body                     io.Reader
		header                   []string
		status                   int
		want, says               string
	}{
		{name: "no token", auth: "-", status: 401, want: "Unauthorized", says: "space/blob/add"},
		{name: "wrong token", auth: bearer + "x", status: 401, want: "Unauthorized"},
		{name: "prefix of the token", auth: bearer[:len(bearer)-1], status: 401, want: "Unauthorized"},
		{name: "empty token", auth: "Bearer ", status: 401, want: "Unauthorized"},
		{name: "other scheme", auth: "Basic " + token, status: 401, want: "Unauthorized"},
		{name: "token in the query", path: "/blob/" + content.String() + "?access_token=" + token, auth: "-", status: 401, want: "Unauthorized"},
		{name: "token of somebody else", auth: sign(2, 500, expiry), status: 401, want: "Unauthorized"},
		{name: "token for other content", auth: allocated(t, other, 500), status: 401, want: "Unauthorized"},
		{name: "another length written into it", auth: strings.Replace(bearer, "500.", "501.", 1), status: 401, want: "Unauthorized"},
		{name: "another end written into it", auth: strings.Replace(bearer, ".17", ".18", 1), status: 401, want: "Unauthorized"},
		{name: "expired", auth: sign(1, 500, uploadClock()), status: 403, want: "Expired", says: "again"},
		{name: "endless", auth: sign(1, 1<<63, expiry), status: 413, want: "ContentTooLarge"},
		{name: "other bytes", path: "/blob/" + other.String(), auth: allocated(t, other, 500), status: 400, want: "ContentMismatch", says: content.String()},
		{name: "empty body", body: http.NoBody, status: 400, want: "LengthMismatch"},
		{name: "too long", body: bytes.NewReader(make([]byte, 501)), status: 413, want: "ContentTooLarge", says: "500 were allocated"},
		{name: "too short", body: bytes.NewReader(make([]byte, 499)), status: 400, want: "LengthMismatch", says: "500 were allocated"},
		{name: "part", header: []string{"Content-Range", "bytes 0-499/1000"}, status: 400, want: "InvalidRequest"},
		{name: "no CID", path: "/blob/", status: 400, want: "InvalidContent"},
		{name: "not a CID", path: "/blob/../../etc/passwd", status: 400, want: "InvalidContent"},
		{name: "encoded traversal", path: "/blob/..%2f..%2fetc%2fpasswd", status: 400, want: "InvalidContent"},
		{name: "piece CID", path: "/blob/bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq", status: 400, want: "InvalidContent", says: "sha2-256"},
		{name: "other path", path: "/elsewhere", status: 404, want: "NotFound"},
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
			resp, body := request(t, server, or(tt.method, "PUT"), or(tt.path, "/blob/"+content.String()), tt.body, header...)
			wantRefusal(t, resp, body, tt.status, tt.want)
			if !strings.Contains(body, tt.says) {
				t.Errorf("body %q does not say %q", body, tt.says)
			}
			challenge := resp.Header.Get("WWW-Authenticate")
			if (tt.status == 401) != strings.HasPrefix(challenge, `Bearer realm="`) || strings.Contains(body+challenge, token) {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
			given := strings.HasPrefix(tt.auth, "Bearer ") && tt.auth != "Bearer "
			if invalid := strings.Contains(challenge, "invalid_token"); tt.status == 401 && invalid != given {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
			if allow := resp.Header.Get("Allow"); tt.status == 405 && allow != "PUT" {
				t.Errorf("Allow %q", allow)
			}
			if got := files(t, d.path); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

// FuzzUploadToken: no text is a token but what the signer made.
func FuzzUploadToken(f *testing.F) {
	signer := uploadSigner(f, 1)
	content := contentOf(f, Raw, []byte("content"))
	good := uploadToken{content, 7, 1_785_578_400}.sign(signer)
	f.Add(good)
	f.Add("7.1785578400.")
	f.Add("-1..")
	f.Fuzz(func(t *testing.T, text string) {
		if got, ok := parseUploadToken(text, content, signer.Verifier()); ok && got != (uploadToken{content, 7, 1_785_578_400}) {
			t.Errorf("%q is taken for %+v", text, got)
		}
	})
}

func TestUploadBodyFails(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	head := fmt.Sprintf("PUT /blob/%s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 500\r\n", content, allocated(t, content, 500))

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
		h := NewUploadHandler(newBucket(t, d), UploadConfig{MinRate: 500, Now: uploadClock})
		var clock time.Time
		h.(*uploadHandler).now = func() time.Time {
			clock = clock.Add(time.Second)
			return clock
		}
		r := httptest.NewRequest("PUT", "/blob/"+content.String(), iotest.OneByteReader(bytes.NewReader(b)))
		r.ContentLength = 500
		r.Header.Set("Authorization", allocated(t, content, len(b)))
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
		resp, body := request(t, server, "PUT", "/blob/"+content.String(), bytes.NewReader(b), "Authorization", allocated(t, content, len(b)))
		wantRefusal(t, resp, body, tt.status, tt.name)
		if !strings.Contains(log.String(), tt.err.Error()) || strings.Contains(body, tt.err.Error()) {
			t.Errorf("log %q, body %q: the cause belongs into the log only", log.String(), body)
		}
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
		resp, _ = request(t, server, "PUT", "/blob/"+content.String(), bytes.NewReader(b), "Authorization", allocated(t, content, len(b)))
		if resp.StatusCode != 201 {
			t.Errorf("after the fault: status %d", resp.StatusCode)
		}
	}
}

func TestUploadBusy(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{MaxUploads: 1})
	b := pattern(2000, 3)
	content := contentOf(t, Raw, b)
	path := "/blob/" + content.String()

	body, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(b))
	req.Header.Set("Authorization", allocated(t, content, len(b)))
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

	resp, text := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", allocated(t, content, len(b)))
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
	if resp, _ := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", allocated(t, content, len(b))); resp.StatusCode != 200 {
		t.Errorf("after the first: status %d", resp.StatusCode)
	}
}

// TestUploadBusyContent: one content is not sent many times over at once, by one address or several; other contents have room beside it.
func TestUploadBusyContent(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{})
	b := pattern(2000, 3)
	content := contentOf(t, Raw, b)
	path := "/blob/" + content.String()
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	statuses := make(chan int, uploadsOfOne)
	var bodies []*io.PipeWriter
	for range uploadsOfOne {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = int64(len(b))
		req.Header.Set("Authorization", allocated(t, content, len(b)))
		req.Header.Set("Expect", "100-continue") // holds the body back until the handler reads, by when it has its slot
		go func() {
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			resp.Body.Close()
			statuses <- resp.StatusCode
		}()
		if _, err := w.Write(b[:1]); err != nil {
			t.Fatal(err)
		}
	}
	resp, text := request(t, server, "PUT", "/blob/"+cid.NewCidV1(CAR, content.Hash()).String(), bytes.NewReader(b), "Authorization", allocated(t, content, len(b)))
	wantRefusal(t, resp, text, 503, "Busy")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	other := pattern(2000, 4)
	if resp, text := request(t, server, "PUT", "/blob/"+contentOf(t, Raw, other).String(), bytes.NewReader(other), "Authorization",
		allocated(t, contentOf(t, Raw, other), len(other))); resp.StatusCode != 201 {
		t.Errorf("another content: %d %s", resp.StatusCode, text)
	}
	for _, w := range bodies {
		if _, err := w.Write(b[1:]); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	created := 0
	for range uploadsOfOne {
		switch status := <-statuses; status {
		case 201:
			created++
		case 200:
		default:
			t.Errorf("status %d", status)
		}
	}
	if created != 1 {
		t.Errorf("created %d times", created)
	}
	if resp, text := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", allocated(t, content, len(b))); resp.StatusCode != 200 {
		t.Errorf("afterwards: %d %s", resp.StatusCode, text)
	}
}

// TestUploadConcurrently: of many uploads of one content at once one stores it. Not all are taken at once; whoever is not is told to come again.
func TestUploadConcurrently(t *testing.T) {
	d := newDir(t)
	server := newUploads(t, d, UploadConfig{})
	b := pattern(100_000, 9)
	content := contentOf(t, Raw, b)
	path := "/blob/" + content.String()
	var created atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				resp, _ := request(t, server, "PUT", path, bytes.NewReader(b), "Authorization", allocated(t, content, len(b)))
				switch resp.StatusCode {
				case 201:
					created.Add(1)
				case 200:
				case 503:
					if resp.Header.Get("Retry-After") == "" {
						t.Error("refused without a word when to come again")
					}
					continue
				default:
					t.Errorf("status %d", resp.StatusCode)
				}
				return
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

func TestNewBucketRefuses(t *testing.T) {
	if _, err := newCustody(t, testBase, operatorDir(t, "x", nil)).Uploads(uploadSigner(t, 1)); err == nil {
		t.Error("no directory for uploads: accepted")
	}
	if _, err := newCustody(t, testBase, newDir(t)).Uploads(capabilities.Signer{}); err == nil {
		t.Error("no signer: accepted")
	}
	blake := append([]byte{0xa0, 0xe4, 0x02, 32}, make([]byte, 32)...)
	if _, err := newBucket(t, newDir(t)).Allocate(t.Context(), blob.Blob{Digest: blake}, expiry); err == nil {
		t.Error("another hash: accepted")
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
