package rolestest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/semaphore"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// site is the roles of a network behind HTTP servers, with revocation, as a process of its own has them.
type site struct {
	*Network
	t       testing.TB
	http    map[string]*roles.HTTP
	servers map[string]*httptest.Server
	log     *faultLog
}

// faultLog keeps what the runtime logs as a fault of its own, and where its two judges of authority disagree.
type faultLog struct {
	slog.Handler
	mu     sync.Mutex
	faults []string
}

func (l *faultLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *faultLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *faultLog) WithGroup(string) slog.Handler            { return l }
func (l *faultLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "executing an invocation" && r.Message != "answering a request" {
		return nil
	}
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.add(text)
	return nil
}

func (l *faultLog) add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, text)
}

// take returns the faults since the last call.
func (l *faultLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	faults := l.faults
	l.faults = nil
	return faults
}

// noPatience is a clock for waiting that has always run out.
func noPatience(time.Duration) <-chan time.Time {
	c := make(chan time.Time, 1)
	c <- time.Time{}
	return c
}

// guarded returns the HTTP interfaces of a network's roles. They share one budget for decoding, as in one process.
func guarded(t testing.TB, n *Network) *site {
	s := &site{Network: n, t: t, http: map[string]*roles.HTTP{}, servers: map[string]*httptest.Server{}, log: &faultLog{}}
	decoding := semaphore.NewWeighted(roles.DecodingBudget)
	for name, r := range n.Roles {
		revocations := roles.NewRevocations(r.Engine, n.keys(), n.Now)
		server := roles.NewServer(roles.Server{
			Name: name, Signer: r.Signer, Service: r.Server.Service, Changes: r.Server.Changes, After: noPatience, Log: slog.New(s.log),
			Extra: map[string]capabilities.Method{ucan.RevokeAbility: revocations.Method(r.Signer)},
			Authority: &roles.Authority{Self: r.Signer.DID(), Keys: n.keys(), Now: n.Now, Revoked: revocations.Revoked,
				Disagreed: func(_ context.Context, u *capabilities.UCAN, why error) {
					t.Errorf("two validators disagree about %s: %v", u.Link(), why)
				}},
		})
		s.http[name] = &roles.HTTP{Server: server, MaxBody: roles.MaxBody(name), Decoding: decoding, Revocations: revocations,
			Version: roles.Version{Name: name, DID: r.Signer.DID().String()}}
	}
	return s
}

// listen starts a server for each role.
func (s *site) listen() *site {
	for name, h := range s.http {
		s.serve(name, h)
	}
	return s
}

func (s *site) serve(name string, h *roles.HTTP) *httptest.Server {
	server := httptest.NewUnstartedServer(h.Handler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.Start()
	s.t.Cleanup(server.Close)
	s.servers[name] = server
	return server
}

// answer is what came back for a request.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// receipt returns the receipt of a task in the answer, nil if it has none, after checking that it is the role's.
func (a answer) receipt(t testing.TB, task cid.Cid, by capabilities.Signer) *capabilities.Receipt {
	t.Helper()
	if a.code != http.StatusOK {
		return nil
	}
	m, err := wire.DecodeMessage(a.body, wire.Limits{})
	if err != nil {
		t.Fatalf("the reply cannot be read: %v", err)
	}
	r := m.Receipt(task)
	if r == nil {
		t.Fatalf("the reply has no receipt of %s", task)
	}
	if err := r.Verify(by.Verifier()); err != nil {
		t.Fatal(err)
	}
	return r
}

// outcome says how an invocation ended: "ok", "Name: message" of a failure, or "HTTP nnn: text".
func (a answer) outcome(t testing.TB, task cid.Cid, by capabilities.Signer) string {
	t.Helper()
	r := a.receipt(t, task, by)
	switch {
	case r == nil:
		return fmt.Sprintf("HTTP %d: %s", a.code, strings.TrimSpace(string(a.body)))
	case r.Out.Error != nil:
		return capabilities.ReadFailure(r.Out.Error).Error()
	}
	return "ok"
}

// do sends a request; many goroutines may do so at a time.
func (s *site) do(req *http.Request) answer {
	s.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Errorf("%s %s: %v", req.Method, req.URL, err)
		return answer{header: http.Header{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Errorf("reading the answer to %s %s: %v", req.Method, req.URL, err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// post sends an agent message to a role. Headers come in pairs and replace those that are right.
func (s *site) post(role string, body []byte, headers ...string) answer {
	s.t.Helper()
	return s.do(s.request(role, bytes.NewReader(body), headers...))
}

func (s *site) request(role string, body io.Reader, headers ...string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.servers[role].URL+"/", body)
	if err != nil {
		panic(err) // the address is a server's
	}
	req.Header.Set("Content-Type", client.ContentType)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

// stored is all that the engines hold: rows with their version, listing and value, and blobs. Messages come with rows.
func (s *site) stored() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for name, r := range s.Roles {
		for cursor := ""; ; {
			page, err := r.Engine.Walk(s.t.Context(), cursor, store.MaxPage)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, row := range page.Rows {
				all[name+" "+row.Key.String()] = fmt.Sprintf("%d %v %x", row.Version, row.Listing, sha256.Sum256(row.Value))
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		for cursor := ""; ; {
			cids, next, err := r.Engine.List(s.t.Context(), cursor, store.MaxPage)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, c := range cids {
				all[name+" blob "+c.String()] = ""
			}
			if cursor = next; cursor == "" {
				break
			}
		}
	}
	return all
}

// unchanged fails the test if anything was stored, changed or removed since before.
func (s *site) unchanged(t testing.TB, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, s.stored()); diff != "" {
		t.Errorf("what is stored has changed: %s", diff)
	}
	if faults := s.log.take(); faults != nil {
		t.Errorf("a hostile request is no fault of the role: %s", faults)
	}
}

// token is a UCAN in the making. Times are relative to the network's clock, in seconds.
type token struct {
	issuer   capabilities.Signer
	audience capabilities.DID
	caps     []wire.Capability
	proofs   []*capabilities.UCAN
	exp, nbf int64 // 0: none
	nonce    string
	facts    [][]byte
	forged   bool
}

func (s *site) sign(k token) *capabilities.UCAN {
	s.t.Helper()
	u := wire.UCAN{Audience: k.audience, Capabilities: k.caps, Nonce: k.nonce, Facts: k.facts}
	for _, p := range k.proofs {
		u.Proofs = append(u.Proofs, p.Link())
	}
	now := s.Now().Unix()
	if k.exp != 0 {
		exp := now + k.exp
		u.Expiration = &exp
	}
	if k.nbf != 0 {
		u.NotBefore = now + k.nbf
	}
	signed, err := wire.SignUCAN(k.issuer, u)
	if err != nil {
		s.t.Fatal(err)
	}
	if !k.forged {
		return signed
	}
	forged := *signed
	forged.Signature = bytes.Clone(signed.Signature)
	forged.Signature[20] ^= 1
	b, err := forged.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	decoded, err := wire.DecodeUCAN(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return decoded
}

// message returns a request that executes the last of the UCANs; the others and the blocks go along.
func message(ucans []*capabilities.UCAN, attach ...capabilities.Block) []byte {
	m := new(capabilities.Message)
	last := len(ucans) - 1
	for _, u := range ucans[:last] {
		attach = append(attach, u.Block())
	}
	m.AddInvocation(ucans[last], attach...)
	return m.Encode()
}

func linkTo(c cid.Cid) []byte { return cbor.AppendLink(nil, c) }

// envelope is a CAR with an agent message as its root, however little sense its parts make: execute lists invocations, report receipts by the
// text of their task.
func envelope(execute []cid.Cid, report map[string]cid.Cid, blocks ...capabilities.Block) []byte {
	body := cbortest.Fields{}
	if execute != nil {
		var links [][]byte
		for _, c := range execute {
			links = append(links, linkTo(c))
		}
		body["execute"] = cbortest.Array(links...)
	}
	if report != nil {
		list := cbortest.Fields{}
		for task, c := range report {
			list[task] = linkTo(c)
		}
		body["report"] = list.Join()
	}
	root := wire.EncodeBlock(cbortest.Fields{"ucanto/message@7.0.0": body.Join()}.Join())
	return wire.AppendCAR(nil, []cid.Cid{root.CID}, append(slices.Clone(blocks), root))
}

// executing is an envelope that executes the block of a UCAN.
func executing(invocation []byte, blocks ...capabilities.Block) []byte {
	b := wire.EncodeBlock(invocation)
	return envelope([]cid.Cid{b.CID}, nil, append(slices.Clone(blocks), b)...)
}
