package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/storacha/w3filecoin/compute"
)

// TestAttacks reads content for validation from hostile sources, as compute does: fetched with all limits, hashed as it
// comes. Nothing is accepted, and none costs more than a bounded time and memory. The log has the table.
func TestAttacks(t *testing.T) {
	const (
		size      = 1 << 20
		maxBytes  = 4 << 20
		stall     = 100 * time.Millisecond
		timeout   = time.Second
		maxTook   = 5 * time.Second
		maxMemory = 48 << 20 // buffers of the hasher and of the connection, and what the servers of this test need
	)
	log.SetOutput(io.Discard) // net/http reports what comes on an idle connection
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	want := pattern(size, 1)
	content := contentOf(t, Raw, want)
	internal := serveInternal(t)
	_, internalPort, err := net.SplitHostPort(internal)
	if err != nil {
		t.Fatal(err)
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	stated := func(n int64) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n", ok, n) }
	flipped := bytes.Clone(want)
	flipped[size-1] ^= 1

	type attack struct {
		name  string
		send  func(net.Conn)                               // what the source does with a connection, or
		reply func(w http.ResponseWriter, r *http.Request) // how it answers
		url   func(server string) string                   // the address that is claimed, if not the server's
		names func(n int32) string                         // address of every name at its n-th look-up
		claim uint64                                       // length that is claimed for the content; 0: none
		want  error                                        // or
		says  string                                       // in the error
	}
	write := func(parts ...string) func(net.Conn) {
		return func(conn net.Conn) {
			for _, p := range parts {
				io.WriteString(conn, p)
			}
		}
	}
	// forever writes until the connection is closed.
	forever := func(header string, b []byte) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, header)
			for {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		}
	}
	trickle := func(header string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, header)
			gone := make(chan struct{})
			go func() { waitForClient(conn); close(gone) }()
			for tick := time.NewTicker(10 * time.Millisecond); ; {
				select {
				case <-tick.C:
					io.WriteString(conn, "x")
				case <-gone:
					tick.Stop()
					return
				}
			}
		}
	}
	redirect := func(to string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	}
	attacks := []attack{
		{name: "body cut short", send: write(stated(size), string(want[:size/2])), want: io.ErrUnexpectedEOF},
		{name: "body cut short, at every attempt to go on", want: io.ErrUnexpectedEOF, reply: func(w http.ResponseWriter, r *http.Request) {
			from := 0
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("ETag", `"x"`)
			w.Header().Set("Content-Length", fmt.Sprint(size-from))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			w.Write(want[from : from+1])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}},
		{name: "endless body", send: forever(ok+"\r\n", make([]byte, 64<<10)), want: ErrTooLarge},
		{name: "endless chunks", send: forever(ok+"Transfer-Encoding: chunked\r\n\r\n", []byte("8000\r\n"+strings.Repeat("x", 0x8000)+"\r\n")), want: ErrTooLarge},
		{name: "endless body behind a stated length", send: forever(stated(size), flipped), says: "not this content"},
		{name: "endless header", send: forever(ok, []byte("X-Padding: "+strings.Repeat("x", 1000)+"\r\n")), says: "no valid HTTP"},
		{name: "endless interim responses", send: forever("", []byte("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")), says: "no valid HTTP"},
		{name: "no answer", send: waitForClient, want: ErrSlow},
		{name: "half a header, then nothing", send: func(conn net.Conn) { io.WriteString(conn, ok+"Content-"); waitForClient(conn) }, want: ErrSlow},
		{name: "a header byte by byte", send: trickle(ok + "X-Padding: "), want: ErrSlow},
		{name: "half a body, then nothing", send: func(conn net.Conn) { io.WriteString(conn, stated(size)+"half"); waitForClient(conn) }, want: ErrSlow},
		{name: "a body byte by byte", send: trickle(stated(size)), want: ErrSlow},
		{name: "redirect to a private address", reply: redirect("http://" + internal + "/"), want: ErrForbidden},
		{name: "redirect to cloud metadata", reply: redirect("http://169.254.169.254/latest/meta-data/"), want: ErrForbidden},
		{name: "redirect to a name with a private address", reply: redirect("http://inside.test:" + internalPort + "/"), want: ErrForbidden,
			names: func(int32) string { return "127.0.0.2" }},
		{name: "redirect to a file", reply: redirect("file:///etc/passwd"), want: ErrForbidden},
		{name: "redirect in a circle", reply: redirect("/"), says: "redirects"},
		{name: "private address", url: func(string) string { return "http://" + internal + "/" }, want: ErrForbidden},
		{name: "private address, written otherwise", url: func(string) string { return "http://[::ffff:7f00:2]:" + internalPort + "/" }, want: ErrForbidden},
		{name: "DNS that answers differently the second time", want: ErrForbidden,
			url: func(server string) string { return strings.Replace(server, "127.0.0.1", "twice.test", 1) },
			names: func(n int32) string {
				if n == 1 {
					return "127.0.0.1"
				}
				return "127.0.0.2"
			},
			reply: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				w.Header().Set("Location", "http://twice.test:"+internalPort+"/")
				w.WriteHeader(http.StatusFound)
			}},
		{name: "1 byte, claimed as 32 GiB", send: write(stated(1), "x"), claim: 32 << 30, says: "there are 1 bytes"},
		{name: "1 byte, stated as 32 GiB", send: write(stated(32<<30), "x"), want: ErrTooLarge},
		{name: "1 byte, stated as 2 MiB", send: write(stated(2<<20), "x"), want: io.ErrUnexpectedEOF},
		{name: "32 GiB, claimed as 1 byte", send: forever(stated(32<<30), make([]byte, 64<<10)), claim: 1, want: ErrTooLarge},
		{name: "2 MiB, claimed as 1 byte", send: write(stated(2<<20), string(want), string(want)), claim: 1, says: "not this content"},
		{name: "endless, claimed as 1 byte", send: forever(ok+"\r\n", []byte("xxxx")), claim: 1, says: "not this content"},
		{name: "fewer bytes than claimed, no length stated", send: write(ok+"\r\n", string(want[:size-1])), claim: size, says: "bytes came"},
		{name: "one bit flipped", send: write(stated(size), string(flipped)), claim: size, says: "not this content"},
		{name: "nothing at all", send: write(stated(0)), says: "empty"},
		{name: "encoded though not asked for", send: write(ok+"Content-Encoding: gzip\r\n\r\n", string(want)), says: "encoded"},
		{name: "a part though the whole was asked for", says: "status 206", reply: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-9/%d", size))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[:10])
		}},
	}

	var table bytes.Buffer
	out := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "attack\ttook\theap\trefused as")
	refused := 0
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			server := "http://127.0.0.1:1"
			switch {
			case a.send != nil:
				server = hijack(t, a.send).URL
			case a.reply != nil:
				server = serve(t, a.reply).URL
			}
			cfg := HTTPConfig{MaxBytes: maxBytes, Stall: stall, Timeout: timeout}
			if a.names != nil {
				var lookups atomic.Int32
				cfg.Resolver = resolver(func(string) []string { return []string{a.names(lookups.Add(1))} })
			}
			address := server
			if a.url != nil {
				address = a.url(server)
			}
			h := newFetcher(t, cfg)
			peak := watchHeap()
			began := time.Now()
			found, err := compute.Read(t.Context(), h, compute.Location{URL: address, Length: a.claim}, content)
			took, heap := time.Since(began), peak()
			if err == nil {
				t.Fatalf("accepted: %+v", found)
			}
			if a.want != nil && !errors.Is(err, a.want) || !strings.Contains(err.Error(), a.says) {
				t.Errorf("%v; want %v %s", err, a.want, a.says)
			}
			if took > maxTook || heap > maxMemory {
				t.Errorf("it took %s and %d MiB", took, heap>>20)
			}
			if n := len(h.slots); n != 0 {
				t.Errorf("%d slots are in use", n)
			}
			refused++
			why := strings.NewReplacer(server, "", "fetching from ", "", "http://", "").Replace(err.Error())
			fmt.Fprintf(out, "%s\t%s\t%.1f MiB\t%s\n", a.name, took.Round(time.Millisecond), float64(heap)/(1<<20), why)
		})
	}
	out.Flush()
	t.Logf("%d attacks tried, %d refused\n%s", len(attacks), refused, table.String())

	// The same fetcher takes good content, so it is not that nothing is ever accepted.
	good := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(want) })
	found, err := compute.Read(t.Context(), newFetcher(t, HTTPConfig{MaxBytes: maxBytes, Stall: stall}), compute.Location{URL: good.URL, Length: size}, content)
	if err != nil || found.Size != size {
		t.Errorf("good content: %+v, %v", found, err)
	}
}

// watchHeap returns a function that ends the watch and returns by how many bytes the heap has grown meanwhile, garbage
// included.
func watchHeap() func() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, top := m.HeapAlloc, m.HeapAlloc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
			}
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapAlloc)
			if ctx.Err() != nil {
				return
			}
		}
	}()
	return func() uint64 {
		cancel()
		<-done
		return top - before
	}
}
