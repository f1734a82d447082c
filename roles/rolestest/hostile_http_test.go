package rolestest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sync/semaphore"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/resolver"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// TestHeaders: what is not an agent message by its headers is refused by them, and says what would be taken.
func TestHeaders(t *testing.T) {
	s, _, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.OfferAbility)
	before := s.stored()
	for _, tt := range []struct {
		name, header, value string
		code                int
	}{
		{"legacy content type", "Content-Type", "application/car", http.StatusUnsupportedMediaType},
		{"no content type", "Content-Type", "", http.StatusUnsupportedMediaType},
		{"JSON", "Content-Type", "application/json", http.StatusUnsupportedMediaType},
		{"a form", "Content-Type", "multipart/form-data; boundary=x", http.StatusUnsupportedMediaType},
		{"gzip", "Content-Encoding", "gzip", http.StatusUnsupportedMediaType},
		{"deflated twice", "Content-Encoding", "deflate, gzip", http.StatusUnsupportedMediaType},
		{"accepting pages", "Accept", "text/html", http.StatusNotAcceptable},
		{"accepting nothing", "Accept", "*/*;q=0", http.StatusNotAcceptable},
		{"accepting nonsense", "Accept", ";;;,", http.StatusNotAcceptable},
		{"accepting all", "Accept", "text/html, */*;q=0.1", http.StatusOK},
		{"accepting applications", "Accept", "application/*", http.StatusOK},
		{"accepting messages", "Accept", client.ContentType, http.StatusOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := s.post(c.role, c.good, tt.header, tt.value)
			if a.code != tt.code {
				t.Errorf("got %d %.200q, want %d", a.code, a.body, tt.code)
			}
			if hint := a.header.Get("Accept"); (tt.header == "Content-Type") != (hint == client.ContentType) {
				t.Errorf("header accept is %q", hint)
			}
		})
	}
	s.unchanged(t, before)
}

// stream is a body whose length is not announced.
func stream(r io.Reader) io.Reader { return struct{ io.Reader }{r} }

// endless is a reader of zeros that counts them.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	clear(b)
	e.read.Add(int64(len(b)))
	return len(b), nil
}

// TestCounts: more of anything than a message may have is refused before any of it is looked at.
func TestCounts(t *testing.T) {
	s, _, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.InfoAbility)
	base := s.chain(c, 1, nil)
	blocks := func(n int) []capabilities.Block {
		list := make([]capabilities.Block, n)
		for i := range list {
			data := []byte{byte(i), byte(i >> 8)}
			hash, err := multihash.Encode(data, multihash.IDENTITY)
			if err != nil {
				t.Fatal(err)
			}
			list[i] = capabilities.Block{CID: cid.NewCidV1(cid.Raw, hash), Bytes: data}
		}
		return list
	}
	proofs := func(n int) []byte {
		k := token{issuer: c.invoker, audience: base[1].Audience, caps: base[1].Capabilities}
		for i := range n {
			k.proofs = append(k.proofs, s.sign(token{issuer: mallory(), audience: c.invoker.DID(), caps: base[0].Capabilities, nonce: fmt.Sprint(i)}))
		}
		return message(append(k.proofs[:n:n], s.sign(k)))
	}
	receipts := func(n int) []byte {
		m := new(capabilities.Message)
		for i := range n {
			ran := blocks(i + 1)[i].CID
			r, err := wire.SignReceipt(mallory(), wire.Receipt{Ran: ran, Out: wire.Result{OK: []byte{0xa0}}})
			if err != nil {
				t.Fatal(err)
			}
			m.AddReceipt(r)
		}
		conclude := subjectOf(t, subjects, ucan.ConcludeAbility)
		chain := s.chain(conclude, 1, func(i int, k *token) {
			if i == 1 {
				k.caps[0].Nb = capabilities.Encode(&ucan.Conclude{Receipt: m.Receipts()[0].Link()})
			}
		})
		m.AddInvocation(chain[1], chain[0].Block())
		return m.Encode()
	}
	// Eight layers of eight proofs, each citing all of the layer below: 64 proofs, 8^8 ways through them, none of which ends at the owner.
	layers := func(perLayer int) []byte {
		var all, layer []*capabilities.UCAN
		for depth := range 8 {
			var next []*capabilities.UCAN
			from, to := TestKey(byte(150+depth)), TestKey(byte(151+depth))
			if depth == 7 {
				to = c.invoker
			}
			for i := range perLayer {
				next = append(next, s.sign(token{issuer: from, audience: to.DID(), caps: base[0].Capabilities, proofs: layer, nonce: fmt.Sprint(i)}))
			}
			all, layer = append(all, next...), next
		}
		return message(append(all, s.sign(token{issuer: c.invoker, audience: base[1].Audience, caps: base[1].Capabilities, proofs: layer})))
	}
	// Caveats of thousands of keys, repeated at each of eight depths.
	wide := func(keys int) []byte {
		nb := cbor.AppendMap(nil, keys)
		for i := range keys {
			nb = append(cbor.AppendText(nb, fmt.Sprintf("%06d", i)), 1)
		}
		return message(s.chain(c, 8, func(_ int, k *token) { k.caps[0].Nb = nb }))
	}
	before := s.stored()
	for _, tt := range []struct {
		name string
		body []byte
		code int
		text string
	}{
		{"10,000 blocks", message(base, blocks(9_997)...), http.StatusOK, ""},
		{"10,001 blocks", message(base, blocks(9_998)...), http.StatusBadRequest, "more than 10000 blocks"},
		{"64 proofs", proofs(64), http.StatusOK, ""},
		{"65 proofs", proofs(65), http.StatusBadRequest, "more than 64 proofs"},
		{"1,000 receipts", receipts(1000), http.StatusOK, ""},
		{"1,001 receipts", receipts(1001), http.StatusBadRequest, "more than 1000"},
		{"64 proofs in 8 layers", layers(8), http.StatusOK, ""},
		{"72 proofs in 8 layers", layers(9), http.StatusBadRequest, "more than 64 proofs"},
		{"caveats of 20,000 keys", wide(20_000), http.StatusOK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			a := s.post(c.role, tt.body)
			// Each takes some milliseconds. What it is about takes hours if done in the wrong way.
			if took := time.Since(began); a.code != tt.code || !strings.Contains(string(a.body), tt.text) || took > 10*time.Second {
				t.Errorf("%d bytes are answered in %v by %d %.200q", len(tt.body), took, a.code, a.body)
			}
		})
	}
	s.unchanged(t, before)
}

// rawConn is a connection on which a test says exactly what it wants.
type rawConn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (s *site) raw(t *testing.T, role string) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", s.servers[role].Listener.Addr().String())
	if err != nil {
		panic(err) // the caller may be a goroutine of the test, which cannot end it in another way
	}
	t.Cleanup(func() { conn.Close() })
	// Far beyond what any answer takes: a test that would hang fails.
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Error(err)
	}
	return &rawConn{conn, t, bufio.NewReader(conn)}
}

// say sends the head of a POST with these header lines, and what there is of the body.
func (c *rawConn) say(body string, headers ...string) {
	c.t.Helper()
	head := "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: " + client.ContentType + "\r\n" + strings.Join(append(headers, "", body), "\r\n")
	if _, err := io.WriteString(c, head); err != nil {
		c.t.Error(err)
	}
}

// hear reads an answer and returns its status.
func (c *rawConn) hear() int {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode
}

// ended waits until the server closes the connection, and reports whether it did.
func (c *rawConn) ended() bool {
	_, err := io.Copy(io.Discard, c.r)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestBodyTooLarge: no more is read than a role takes, whether the length is announced or not.
func TestBodyTooLarge(t *testing.T) {
	s, _, _ := dealt(t)
	before := s.stored()
	for role, h := range s.http {
		t.Run(role, func(t *testing.T) {
			// Announced: refused without a byte of it.
			c := s.raw(t, role)
			c.say("", fmt.Sprintf("Content-Length: %d", h.MaxBody+1))
			if code := c.hear(); code != http.StatusRequestEntityTooLarge {
				t.Errorf("announced: %d", code)
			}
			if !c.ended() {
				t.Error("announced: the connection is still open")
			}
			c = s.raw(t, role)
			c.say("", "Content-Length: 9223372036854775807")
			if code := c.hear(); code != http.StatusRequestEntityTooLarge {
				t.Errorf("announced, 2^63-1: %d", code)
			}
			// The largest that is taken.
			if a := s.post(role, make([]byte, h.MaxBody)); a.code != http.StatusBadRequest {
				t.Errorf("the largest: %d", a.code)
			}
			// Not announced, and without end.
			body := new(endless)
			if a := s.do(s.request(role, stream(io.LimitReader(body, h.MaxBody+1)))); a.code != http.StatusRequestEntityTooLarge {
				t.Errorf("a byte too much: %d", a.code)
			}
			c = s.raw(t, role)
			c.say("", "Transfer-Encoding: chunked")
			sent := make(chan int64)
			go func() {
				total := int64(0)
				chunk := append([]byte("10000\r\n"), make([]byte, 0x10000+2)...)
				copy(chunk[len(chunk)-2:], "\r\n")
				for {
					n, err := c.Write(chunk)
					if total += int64(n); err != nil {
						sent <- total
						return
					}
				}
			}()
			if code := c.hear(); code != http.StatusRequestEntityTooLarge {
				t.Errorf("endless: %d", code)
			}
			if !c.ended() {
				t.Error("endless: the connection is still open")
			}
			c.Close()
			if n := <-sent; n > h.MaxBody+(32<<20) { // what fits between the two ends
				t.Errorf("%d bytes were taken of an endless body", n)
			}
		})
	}
	s.unchanged(t, before)
}

// hasty returns a site whose servers have little time for bodies, and room for just one large body.
func hasty(t *testing.T, timeout time.Duration) (*site, []*subject) {
	t.Helper()
	s, _, subjects := dealt(t)
	decoding := semaphore.NewWeighted(roles.MaxBody("dealer"))
	for name, h := range s.http {
		h.BodyTimeout, h.Decoding = timeout, decoding
		s.servers[name].Close()
		s.serve(name, h)
	}
	return s, subjects
}

// TestSlowBodies: a connection on which a body is announced and does not come ends soon, also where the request was refused by its head. Those
// that wait for room behind such bodies are told to come again, and small requests do not wait at all.
func TestSlowBodies(t *testing.T) {
	s, subjects := hasty(t, time.Second)
	c := subjectOf(t, subjects, aggregatecap.OfferAbility)
	before := s.stored()
	waiting := map[string]*rawConn{}
	for name, headers := range map[string][]string{
		"announced":           {"Content-Length: 1000"},
		"announced, large":    {"Content-Length: 1000000"},
		"not announced":       {"Transfer-Encoding: chunked"},
		"of another type":     {"Content-Length: 1000", "Content-Type: text/plain"},
		"compressed":          {"Content-Length: 1000", "Content-Encoding: gzip"},
		"for another reader":  {"Content-Length: 1000", "Accept: text/html"},
		"asked for, not sent": {"Content-Length: 1000", "Expect: 100-continue"},
	} {
		body := "x"
		if strings.HasPrefix(headers[0], "Transfer") {
			body = "1\r\nx\r\n"
		}
		waiting[name] = s.raw(t, "dealer")
		waiting[name].say(body, headers...)
	}
	for _, path := range []string{"/version", "/nothing", "/receipt/x"} {
		c := s.raw(t, "dealer")
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx", path); err != nil {
			t.Fatal(err)
		}
		waiting["to "+path] = c
	}
	for name, c := range waiting {
		if !c.ended() {
			t.Errorf("a body %s: the connection is still open", name)
		}
	}
	t.Run("while others wait", func(t *testing.T) {
		large, decoding := make([]byte, roles.MaxBody("dealer")), s.http["dealer"].Decoding
		if err := decoding.Acquire(t.Context(), int64(len(large))); err != nil {
			t.Fatal(err)
		}
		if a := s.post("dealer", large); a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("a large body for which there is no room: %d %q", a.code, a.body)
		}
		for range 20 {
			if a := s.post(c.role, c.good); !bytes.Equal(a.body, c.answer) {
				t.Errorf("a small request beside large ones: %d %.200q", a.code, a.body)
			}
		}
		decoding.Release(int64(len(large)))
		// A body that drips takes the room, and gives it back when its time is up.
		drips := s.raw(t, "dealer")
		drips.say("1\r\nx\r\n", "Transfer-Encoding: chunked")
		if !drips.ended() {
			t.Error("a body that drips: the connection is still open")
		}
		if a := s.post("dealer", large); a.code != http.StatusBadRequest {
			t.Errorf("a large body afterwards: %d %q", a.code, a.body)
		}
	})
	s.unchanged(t, before)
}

// TestAnswersNotFetched: a client that sends a large message and never reads the answer does not keep the room that it took.
func TestAnswersNotFetched(t *testing.T) {
	s, _ := hasty(t, 500*time.Millisecond)
	agent := TestKey(51)
	m := new(capabilities.Message)
	for i := range 100 { // the answer repeats what was invoked
		m.AddInvocation(s.sign(token{issuer: agent, audience: s.Roles["dealer"].Signer.DID(), nonce: fmt.Sprintf("%d %s", i, strings.Repeat("x", 250_000)),
			caps: []wire.Capability{{Can: "x/y", With: agent.DID().String()}}}))
	}
	body := m.Encode()
	c := s.raw(t, "dealer")
	c.say("", fmt.Sprintf("Content-Length: %d", len(body)))
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
	if _, err := c.r.Peek(1); err != nil { // it is being answered
		t.Fatal(err)
	}
	for range 40 {
		a := s.post("dealer", make([]byte, roles.MaxBody("dealer")))
		if a.code == http.StatusBadRequest {
			return
		}
		if a.code != http.StatusServiceUnavailable {
			t.Fatalf("a large body meanwhile: %d %q", a.code, a.body)
		}
	}
	t.Error("the room for large bodies is taken for ever")
}

// TestLongWork: the time that a body may take to arrive says nothing about what happens then, nor about the next request of the connection.
func TestLongWork(t *testing.T) {
	n := New(t, Options{Seed: 103})
	s := guarded(t, n)
	const timeout = 250 * time.Millisecond
	h := s.http["dealer"]
	config := *h.Server
	config.Service = troubled{h.Server.Service, map[string]capabilities.Method{
		"test/long": func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(3 * timeout):
				return capabilities.Issue(h.Server.Signer, inv.Link(), &ucan.ConcludeOK{Time: 1}, capabilities.Effects{})
			}
		},
	}}
	h.Server, h.BodyTimeout = roles.NewServer(config), timeout
	s.listen()
	agent := TestKey(51)
	u := s.sign(token{issuer: agent, audience: h.Server.Signer.DID(), caps: []wire.Capability{{Can: "test/long", With: agent.DID().String()}}})
	body := message([]*capabilities.UCAN{u})
	for i := range 2 {
		reused := false
		trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
		req := s.request("dealer", stream(bytes.NewReader(body)))
		if got := s.do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace))).outcome(t, u.Link(), h.Server.Signer); got != "ok" {
			t.Errorf("long work: %s", got)
		}
		if i > 0 && !reused {
			t.Error("the connection was not used again")
		}
	}
}

// heap samples how many bytes of the heap are taken, by what lives and what is not collected yet, until stop is called; that returns the most.
func heap() (stop func() uint64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	done, most := make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		top := uint64(0)
		for {
			metrics.Read(sample)
			top = max(top, sample[0].Value.Uint64())
			select {
			case <-done:
				most <- top
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(done)
		return <-most
	}
}

// Memory that a process takes for requests, however many come at once and whatever is in them: so many times the budget for decoding (the bodies,
// what they are decoded into, which is four times as much for the worst, the answers, which repeat what was invoked, and what the garbage
// collector has not come around to), and what the signatures take that are checked at a time, a few MiB each.
const (
	memoryBound = 10
	memoryBase  = 128 << 20
)

// TestMemoryUnderAttack lets many clients send the largest bodies that are taken, and larger ones, at once: of every kind that takes more memory
// than it has bytes. Memory stays bounded by the budget for decoding, and others are served all the while.
func TestMemoryUnderAttack(t *testing.T) {
	s, o, subjects := dealt(t)
	offer := subjectOf(t, subjects, aggregatecap.OfferAbility)
	audience := s.Roles["dealer"].Signer.DID()
	text := func(s string) []byte { return cbor.AppendText(nil, s) }
	// A quarter of the real thing: what counts is the proportion.
	scale := int64(4)
	if testing.Short() {
		scale = 16
	}
	budget, limit, pieces := roles.DecodingBudget/scale, roles.MaxBody("dealer")/scale, 262_144/scale
	for name, h := range s.http {
		h.Decoding, h.MaxBody = semaphore.NewWeighted(budget), min(h.MaxBody, limit)
		s.servers[name].Close()
		s.serve(name, h)
	}
	room := int(limit) - 1<<19
	filled := func(size int, change func(i int, k cbortest.Fields)) []byte {
		// As many UCANs as fit: 100 invocations, each citing the next of the rest.
		template := cbortest.Split(t, s.sign(token{issuer: mallory(), audience: audience, caps: []wire.Capability{{Can: "x/y", With: "a:b"}}}).Block().Bytes)
		var blocks []capabilities.Block
		for i, total := 0, 0; len(blocks) < 9_000; i++ {
			k := template.With("nnc", text(fmt.Sprint(i)))
			change(i, k)
			b := wire.EncodeBlock(k.Join())
			if total += len(b.Bytes) + 50; total > size {
				break
			}
			blocks = append(blocks, b)
		}
		var invocations []cid.Cid
		rest := blocks
		for len(invocations) < 100 && len(rest) > 0 {
			n := min(60, len(rest)-1)
			var links [][]byte
			for _, b := range rest[:n] {
				links = append(links, linkTo(b.CID))
			}
			k := cbortest.Split(t, rest[n].Bytes)
			k["prf"] = cbortest.Array(links...)
			b := wire.EncodeBlock(k.Join())
			rest[n], invocations, rest = b, append(invocations, b.CID), rest[n+1:]
		}
		return envelope(invocations, nil, blocks...)
	}
	repeated := func(n int, item []byte) []byte { return append(cbor.AppendArray(nil, n), bytes.Repeat(item, n)...) }
	inline, err := multihash.Encode(nil, multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	shortest := linkTo(cid.NewCidV1(cid.Raw, inline))
	links := make([]piece.Link, pieces)
	for i := range links {
		links[i] = o.Piece
	}
	var tiny []capabilities.Block
	for i := range 9_990 {
		hash, err := multihash.Encode([]byte{byte(i), byte(i >> 8)}, multihash.IDENTITY)
		if err != nil {
			t.Fatal(err)
		}
		tiny = append(tiny, capabilities.Block{CID: cid.NewCidV1(cid.Raw, hash), Bytes: []byte{byte(i), byte(i >> 8)}})
	}
	huge := wire.EncodeBlock(append(cbor.AppendArray(nil, room/9), bytes.Repeat(append([]byte{0x81}, shortest...), room/9)...))
	bodies := map[string]func() io.Reader{}
	add := func(name string, body []byte) {
		if int64(len(body)) > limit {
			t.Fatalf("%s has %d bytes", name, len(body))
		}
		if bodies[name] = func() io.Reader { return bytes.NewReader(body) }; len(bodies)%2 == 0 {
			bodies[name] = func() io.Reader { return stream(bytes.NewReader(body)) } // its length is not announced
		}
	}
	add("facts", filled(room, func(_ int, k cbortest.Fields) { k["fct"] = repeated(100, []byte{0xa0}) }))
	add("capabilities", filled(room, func(_ int, k cbortest.Fields) {
		k["att"] = repeated(100, cbortest.Fields{"can": text("*"), "with": text("a:b")}.Join())
	}))
	add("proofs", filled(room, func(_ int, k cbortest.Fields) { k["prf"] = repeated(1000, shortest) }))
	add("text that grows when it is signed", filled(room, func(_ int, k cbortest.Fields) {
		k["nnc"] = text(strings.Repeat("\x01", 250_000-len(k["nnc"])) + string(k["nnc"][1:]))
	}))
	add("one block", message(s.chain(offer, 1, nil), huge))
	add("a list of pieces by a stranger", message(s.chain(offer, 1, func(i int, k *token) { k.issuer = mallory() }), aggregatecap.Pieces(links)))
	add("tiny blocks", message(s.chain(offer, 1, nil), tiny...))
	add("zeros", make([]byte, room))
	bodies["endless"] = func() io.Reader { return stream(io.LimitReader(new(endless), 2*limit)) }

	before := s.stored()
	debug.FreeOSMemory()
	var baseline uint64
	{
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		baseline = sample[0].Value.Uint64()
	}
	const each, enough = 2, 10
	var served, slowest atomic.Int64
	measured, began := heap(), time.Now()
	attack := make(chan struct{})
	var attackers, others sync.WaitGroup
	codes := map[int]int{}
	var mu sync.Mutex
	for name, body := range bodies {
		for range each {
			attackers.Go(func() {
				// Each comes again until enough others were served, which it should not hold up for long.
				for round := 0; round == 0 || round < 50 && served.Load() < enough; round++ {
					resp, err := http.DefaultTransport.RoundTrip(s.request("dealer", body()))
					if err != nil {
						if name != "endless" { // it may be cut off before its end
							t.Errorf("%s: %v", name, err)
						}
						continue
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Errorf("the answer to %s: %v", name, err)
					}
					resp.Body.Close()
					mu.Lock()
					codes[resp.StatusCode]++
					mu.Unlock()
					if resp.StatusCode >= 500 {
						t.Errorf("%s is answered by %s", name, resp.Status)
					}
				}
			})
		}
	}
	for _, c := range []*subject{offer, subjectOf(t, subjects, filecoin.OfferAbility)} {
		others.Go(func() {
			for {
				at := time.Now()
				a := s.post(c.role, c.good)
				if !bytes.Equal(a.body, c.answer) {
					t.Errorf("a good request during the attack: %d %.200q", a.code, a.body)
					return
				}
				served.Add(1)
				for took, was := int64(time.Since(at)), slowest.Load(); took > was && !slowest.CompareAndSwap(was, took); was = slowest.Load() {
				}
				select {
				case <-attack:
					return
				default:
				}
			}
		})
	}
	attackers.Wait()
	close(attack)
	others.Wait()
	top := measured() - baseline
	t.Logf("%d attackers in %v, answered by %v; heap grew by %d MiB at most; %d good requests meanwhile, the slowest in %v", each*len(bodies),
		time.Since(began).Round(time.Millisecond), codes, top>>20, served.Load(), time.Duration(slowest.Load()).Round(time.Millisecond))
	if top > memoryBound*uint64(budget)+memoryBase {
		t.Errorf("the heap grew by %d MiB, more than %d times the budget for decoding, %d MiB", top>>20, memoryBound, budget>>20)
	}
	if served.Load() < enough {
		t.Errorf("%d good requests were served meanwhile", served.Load())
	}
	s.unchanged(t, before)
}

// locator knows content by the world's custody.
type locator struct{ w *World }

func (l locator) Locate(ctx context.Context, c cid.Cid) (source.Location, error) {
	content, err := l.w.Stat(ctx, c)
	if errors.Is(err, storefront.ErrNoContent) {
		return source.Location{}, source.ErrNoContent
	}
	return source.At("https://custody.example/content/"+c.String(), content.Length), err
}

// TestReadingEndpoints asks every address for what it cannot have. The answer is the client's fault, never the role's.
func TestReadingEndpoints(t *testing.T) {
	s, o, _ := dealt(t)
	dir, err := source.OpenDir(filepath.Join(t.TempDir(), "uploads"))
	if err != nil {
		t.Fatal(err)
	}
	custody, err := source.NewCustody("https://custody.example", dir)
	if err != nil {
		t.Fatal(err)
	}
	resolve, err := resolver.New(resolver.Config{Contents: s.Roles["storefront"].Storefront, Locator: locator{s.World}})
	if err != nil {
		t.Fatal(err)
	}
	h := s.http["storefront"]
	h.Routes = map[string]http.Handler{
		"/content/": source.NewContentHandler(custody, source.ContentConfig{}), "/piece/{cid}": resolve, "GET /{cid}": resolve,
	}
	s.servers["storefront"].Close()
	s.serve("storefront", h)
	long, err := multihash.Encode(make([]byte, 20_000), multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := multihash.Encode(make([]byte, 100), multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	unknown := wire.EncodeBlock([]byte("unknown")).CID.Hash()
	garbage := []string{
		"", "x", ".", "..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "../../etc/passwd", "..%5c..%5cwindows", "%00", "a%00b", "%ff%fe", "%0d%0aX:%20y",
		"%e2%80%ae", "bafy", "bafkzci", "z" + strings.Repeat("1", 50), "z" + strings.Repeat("Z", 20_000), strings.Repeat("a", 20_000),
		strings.Repeat("/", 1000), strings.Repeat("../", 1000), "%252e%252e%252f", "<script>", "'%20OR%201=1--", "$(id)", "~root", "*", "?x=y", "#",
		o.Content.String() + "%2f..", o.Content.String() + "/..", o.Content.String() + "x",
		"ipfs%2f" + o.Content.String(), o.Piece.V1().String(), o.Task.String()[:30], cid.NewCidV0(unknown).String(),
		cid.NewCidV1(cid.Raw, identity).String(), cid.NewCidV1(cid.Raw, long).String(), cid.NewCidV1(1<<60, unknown).String(),
		cid.NewCidV1(cid.DagCBOR, o.Task.Hash()).String()[:58] + "a", "f" + strings.Repeat("0", 100), "b", "\U0001F4A9",
	}
	before := s.stored()
	count := 0
	for role, server := range s.servers {
		base, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(method, target string, headers ...string) answer {
			t.Helper()
			req := &http.Request{Method: method, URL: &url.URL{Scheme: "http", Host: base.Host, Opaque: target}, Header: http.Header{}}
			for i := 0; i < len(headers); i += 2 {
				req.Header.Set(headers[i], headers[i+1])
			}
			count++
			return s.do(req.WithContext(t.Context()))
		}
		refused := func(method, target string, headers ...string) {
			t.Helper()
			a := ask(method, target, headers...)
			redirected := a.code == http.StatusMovedPermanently || a.code == http.StatusTemporaryRedirect || a.code == http.StatusPermanentRedirect
			switch {
			case redirected && strings.HasPrefix(a.header.Get("Location"), "/") && !strings.HasPrefix(a.header.Get("Location"), "//"):
				// To the same path without dots.
			case a.code < 400 || a.code > 499:
				t.Errorf("%s: %s %.100s is answered by %d %.100q", role, method, target, a.code, a.body)
			}
			if strings.Contains(a.header.Get("Content-Type"), "html") && !redirected || a.header.Get("X") != "" {
				t.Errorf("%s: %s %.100s is answered by a page: %v", role, method, target, a.header)
			}
		}
		for _, prefix := range []string{"/receipt/", "/status/", "/revocations/", "/piece/", "/content/"} {
			for _, g := range garbage {
				refused(http.MethodGet, prefix+g)
				refused(http.MethodGet, prefix+g, "Accept", "application/json")
			}
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodTrace, "PROPFIND", "X"} {
				refused(method, prefix+o.Task.String())
			}
		}
		for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodTrace, "X"} {
			for _, path := range []string{"/", "/version", "/healthz", "/.well-known/did.json"} {
				refused(method, path)
			}
		}
		for _, path := range []string{"/nothing/at/all", "/receipt", "/receipt/", "/.well-known/", "/.git/config", "/debug/pprof/", "//", "/%2e%2e/"} {
			refused(http.MethodGet, path)
		}
		// What is there is still there.
		if a := ask(http.MethodGet, "/version"); a.code != http.StatusOK {
			t.Errorf("%s: /version: %d", role, a.code)
		}
		if role != "storefront" {
			continue
		}
		for target, code := range map[string]int{
			"/receipt/" + o.Task.String(): http.StatusOK, "/status/" + o.Piece.String(): http.StatusOK, "/status/" + o.Content.String(): http.StatusOK,
			"/piece/" + o.Piece.String(): http.StatusFound, "/revocations/" + o.Task.String(): http.StatusNotFound,
		} {
			if a := ask(http.MethodGet, target); a.code != code {
				t.Errorf("GET %s: %d %.200q", target, a.code, a.body)
			}
		}
	}
	t.Logf("%d requests", count)
	s.unchanged(t, before)
}
