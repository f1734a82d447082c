package rolestest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-varint"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	dealcap "github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// fuzzRoles are the roles that requests go to, by number.
var fuzzRoles = []string{"storefront", "aggregator", "dealer", "dealtracker", "compute"}

// How the input of FuzzHTTP becomes a request.
const (
	asIs     = iota // it is the body
	repaired        // it is a body; blocks are named by their hash and signed by their issuers again, whoever they are
	asCaveats
	asResult // of a task that the storefront waits for, signed by who it is for
	asList   // of an aggregate's pieces
	modes
)

// fuzzed is a site for one request after the other, until one of them leaves something behind.
type fuzzed struct {
	*awaited
	handlers map[string]http.Handler
	keys     map[capabilities.DID]capabilities.Signer
	subjects []*subject
	pieces   []piece.Link // of an aggregate that a dealer takes
	full     piece.Link
	before   map[string]string
}

func newFuzzed(t testing.TB) *fuzzed {
	w := &fuzzed{awaited: awaiting(t, 2), handlers: map[string]http.Handler{}, keys: map[capabilities.DID]capabilities.Signer{}}
	for name, h := range w.http {
		w.handlers[name] = h.Handler()
		w.keys[w.Roles[name].Signer.DID()] = w.Roles[name].Signer
	}
	space, agent := TestKey(50), TestKey(51)
	for _, k := range []capabilities.Signer{space, agent, mallory(), Agent()} {
		w.keys[k.DID()] = k
	}
	signer := func(role string) capabilities.Signer { return w.Roles[role].Signer }
	o := w.offers[0]
	for i := range 8 { // half of the smallest aggregate
		link, err := piece.Sum(bytes.Repeat([]byte{byte(i + 1)}, 60_000))
		if err != nil {
			t.Fatal(err)
		}
		w.pieces = append(w.pieces, link)
	}
	full, err := segment.Build(1<<20, w.pieces)
	if err != nil {
		t.Fatal(err)
	}
	w.full = full.Link()
	grant := w.sign(token{issuer: space, audience: agent.DID(), caps: []wire.Capability{{Can: "*", With: space.DID().String()}}})
	attach := []capabilities.Block{grant.Block(), aggregatecap.Pieces(w.pieces)}
	w.subjects = []*subject{
		{can: filecoin.OfferAbility, role: "storefront", owner: space, invoker: agent, nb: &filecoin.Offer{Content: o.Content, Piece: o.Piece}},
		{can: filecoin.InfoAbility, role: "storefront", owner: space, invoker: agent, nb: &filecoin.Info{Piece: o.Piece}},
		{can: piececap.OfferAbility, role: "aggregator", owner: signer("aggregator"), invoker: signer("storefront"),
			nb: &piececap.Offer{Piece: o.Piece, Group: signer("storefront").DID().String()}},
		{can: aggregatecap.OfferAbility, role: "dealer", owner: signer("dealer"), invoker: signer("aggregator"),
			nb: &aggregatecap.Offer{Aggregate: w.full, Pieces: attach[1].CID}},
		{can: dealcap.InfoAbility, role: "dealtracker", owner: space, invoker: agent, nb: &dealcap.Info{Piece: o.Piece}},
		{can: computecap.PieceCIDAbility, role: "compute", owner: signer("compute"), invoker: signer("storefront"), nb: &computecap.PieceCID{Content: o.Content}},
		{can: ucan.ConcludeAbility, role: "storefront", owner: space, invoker: agent, nb: &ucan.Conclude{Receipt: o.Task}},
		{can: ucan.RevokeAbility, role: "storefront", owner: space, invoker: agent, nb: &ucan.Revoke{UCAN: grant.Link()}},
	}
	for _, c := range w.subjects {
		c.attach = attach
	}
	w.before = w.stored()
	return w
}

// conclusion is a batch of receipts with its conclude, as the aggregator pushes it.
func (w *fuzzed) conclusion(receipts ...*capabilities.Receipt) []byte {
	m := new(capabilities.Message)
	for _, r := range receipts {
		m.AddReceipt(r, w.with...)
	}
	task, err := capabilities.Invoke(w.aggregator, w.Roles["storefront"].Signer.DID(), w.aggregator.DID().String(),
		&ucan.Conclude{Receipt: receipts[0].Link()}, capabilities.Terms{})
	if err != nil {
		w.t.Fatal(err)
	}
	m.AddInvocation(task.UCAN)
	return m.Encode()
}

// request makes a request of the input, nil if the input is not fit for the mode.
func (w *fuzzed) request(number, mode uint8, input []byte) (role string, body []byte) {
	role = fuzzRoles[int(number)%len(fuzzRoles)]
	c := w.subjects[int(number)%len(w.subjects)]
	switch mode % modes {
	case asIs:
		return role, input
	case repaired:
		return role, w.repair(input)
	case asCaveats:
		if cbor.Valid(input) != nil || input[0]>>5 != 5 || len(input) > 10_000 {
			return role, nil
		}
		if _, err := cbor.ToJSON(input); err != nil {
			return role, nil // cannot be signed
		}
		return c.role, message(w.chain(c, 1, func(i int, k *token) {
			if i == 1 {
				k.caps[0].Nb = input
			}
		}), c.attach...)
	case asResult:
		if cbor.Valid(input) != nil {
			return role, nil
		}
		out := wire.Result{OK: input}
		if number%2 == 1 {
			out = wire.Result{Error: input}
		}
		r, err := wire.SignReceipt(w.aggregator, wire.Receipt{Ran: w.tasks[0].Link(), Out: out, Join: w.offer.Link()})
		if err != nil {
			w.t.Fatal(err)
		}
		return "storefront", w.conclusion(r)
	}
	c = subjectOf(w.t, w.subjects, aggregatecap.OfferAbility)
	list := wire.EncodeBlock(input)
	return c.role, message(w.chain(c, 1, func(i int, k *token) {
		if i == 1 {
			k.caps[0].Nb = capabilities.Encode(&aggregatecap.Offer{Aggregate: w.full, Pieces: list.CID})
		}
	}), list)
}

// repair gives the blocks of a CAR the CIDs of their bytes, and all that links them follows. UCANs and receipts that still are such are signed
// again by their issuers, as far as their keys are known, which all in this test are. What is no CAR stays as it is.
func (w *fuzzed) repair(b []byte) []byte {
	section := func() (part []byte) {
		size, n, err := varint.FromUvarint(b)
		if err != nil || size > uint64(len(b)-n) {
			b = nil
			return nil
		}
		part, b = b[n:n+int(size)], b[n+int(size):]
		return part
	}
	whole := b
	header := section()
	var old, repl []cid.Cid
	follow := func(data []byte) []byte {
		data = bytes.Clone(data)
		for i := range old {
			data = bytes.ReplaceAll(data, old[i].Bytes(), repl[i].Bytes())
			data = bytes.ReplaceAll(data, []byte(old[i].String()), []byte(repl[i].String()))
		}
		return data
	}
	var blocks []capabilities.Block
	for len(b) > 0 && len(blocks) < 200 {
		part := section()
		n, c, err := cid.CidFromBytes(part)
		if err != nil {
			return whole
		}
		block := wire.EncodeBlock(follow(part[n:]))
		if u, err := wire.DecodeUCAN(block); err == nil {
			if key, ok := w.keys[u.Issuer]; ok {
				if signed, err := wire.SignUCAN(key, *u); err == nil {
					block = signed.Block()
				}
			}
		} else if r, err := wire.DecodeReceipt(block); err == nil {
			if key, ok := w.keys[r.Issuer]; ok {
				if signed, err := wire.SignReceipt(key, *r); err == nil {
					block = signed.Block()
				}
			}
		}
		if !c.Equals(block.CID) {
			old, repl = append(old, c), append(repl, block.CID)
		}
		blocks = append(blocks, block)
	}
	header = follow(header)
	out := append(varint.ToUvarint(uint64(len(header))), header...)
	for _, block := range blocks {
		out = append(out, varint.ToUvarint(uint64(block.CID.ByteLen()+len(block.Bytes)))...)
		out = append(append(out, block.CID.Bytes()...), block.Bytes...)
	}
	return out
}

// FuzzHTTP sends requests that began as good ones. No input makes a role panic, fail or wait; what is not answered by a receipt leaves nothing
// behind; and what leaves something behind is work that can be done.
func FuzzHTTP(f *testing.F) {
	w := newFuzzed(f)
	for i, c := range w.subjects {
		body := message(w.chain(c, 1, nil), c.attach...)
		number := uint8(slices.Index(fuzzRoles, c.role))
		f.Add(number, uint8(asIs), body)
		f.Add(number, uint8(repaired), body)
		f.Add(uint8(i), uint8(asCaveats), capabilities.Encode(c.nb))
	}
	var batch []*capabilities.Receipt
	for i, task := range w.tasks {
		ok := w.accepted(i)
		batch = append(batch, w.issue(w.aggregator, task.Link(), ok, capabilities.Effects{Join: &w.offer}))
		f.Add(uint8(0), uint8(asResult), capabilities.Encode(ok))
	}
	f.Add(uint8(1), uint8(asResult), capabilities.Fail(capabilities.InvalidPiece, "no").Encode())
	f.Add(uint8(0), uint8(repaired), w.conclusion(batch...))
	f.Add(uint8(0), uint8(asIs), w.conclusion(batch...))
	f.Add(uint8(0), uint8(asList), aggregatecap.Pieces(w.pieces).Bytes)
	w = nil // what was made for f is not used under t
	f.Fuzz(func(t *testing.T, number, mode uint8, input []byte) {
		if w == nil {
			w = newFuzzed(t)
		}
		w.t, w.site.t, w.Network.t = t, t, t
		role, body := w.request(number, mode, input)
		if body == nil {
			return
		}
		var commits atomic.Int64
		w.Count = func(_ string, u storetest.Used) {
			if u.Method == "Commit" && u.Err == nil {
				commits.Add(1)
			}
		}
		req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		req.Header.Set("Content-Type", client.ContentType)
		rec := httptest.NewRecorder()
		w.handlers[role].ServeHTTP(rec, req)
		changed := commits.Load() > 0
		for _, fault := range w.log.take() {
			// Integers beyond 63 bits are the one thing that one of the two judges cannot read.
			if !strings.Contains(fault, "disagree") {
				t.Fatalf("%s: %s", role, fault)
			}
		}
		switch rec.Code {
		case http.StatusOK:
			m, err := wire.DecodeMessage(rec.Body.Bytes(), wire.Limits{})
			if err != nil || len(m.Receipts()) == 0 {
				t.Fatalf("%s: the reply has no receipts: %v", role, err)
			}
			for _, r := range m.Receipts() {
				if err := r.Verify(w.Roles[role].Signer.Verifier()); err != nil {
					t.Fatalf("%s: %v", role, err)
				}
			}
		case http.StatusAccepted:
		case http.StatusBadRequest, http.StatusTooManyRequests, http.StatusServiceUnavailable:
			if changed {
				w.unchanged(t, w.before)
			}
		default:
			t.Fatalf("%s answers %d %.300q", role, rec.Code, rec.Body)
		}
		if changed {
			w.Run(2*time.Minute, func() bool { return false })
			w.noDeadLetters(t)
			w = nil
		}
	})
}
