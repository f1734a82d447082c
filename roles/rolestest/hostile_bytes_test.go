package rolestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// subjectOf returns the subject of a capability.
func subjectOf(t testing.TB, all []*subject, can string) *subject {
	t.Helper()
	for _, c := range all {
		if c.can == can {
			return c
		}
	}
	t.Fatalf("no capability %s", can)
	return nil
}

// TestMalformedMessages sends what no client writes. Each is answered by status 400 before anything in it is looked at, among them the inputs
// that end a process built on go-ucanto's server alone: signatures cut short, principals that cannot be decoded, UCANs without capabilities.
func TestMalformedMessages(t *testing.T) {
	s, _, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.OfferAbility)
	chain := s.chain(c, 1, func(_ int, k *token) { k.nonce = "malformed" })
	proof, inv := cbortest.Split(t, chain[0].Block().Bytes), cbortest.Split(t, chain[1].Block().Bytes)
	good := message(chain)
	text := func(s string) []byte { return cbor.AppendText(nil, s) }
	raw := func(b ...byte) []byte { return cbor.AppendBytes(nil, b) }
	// under puts a proof below the invocation.
	under := func(proof cbortest.Fields, more ...capabilities.Block) []byte {
		b := wire.EncodeBlock(proof.Join())
		return executing(inv.With("prf", cbortest.Array(linkTo(b.CID))).Join(), append(more, b)...)
	}
	reporting := func(receipt []byte) []byte {
		b := wire.EncodeBlock(receipt)
		return envelope(nil, map[string]cid.Cid{chain[1].Link().String(): b.CID}, b)
	}
	signed, err := wire.SignReceipt(mallory(), wire.Receipt{Ran: chain[1].Link(), Out: wire.Result{OK: []byte{0xa0}}})
	if err != nil {
		t.Fatal(err)
	}
	receipt := cbortest.Split(t, signed.Block().Bytes)
	outcome := cbortest.Split(t, receipt["ocm"])
	// A proof without capabilities beside one by a principal that has no key: each alone, and one below the other.
	mailto := proof.With("iss", raw(append([]byte{0x9d, 0x1a}, "mailto:example.com:alice"...)...)).With("s", raw(wire.AbsentSignature()...))
	empty := proof.With("att", cbortest.Array())
	emptyBlock, mailtoBlock := wire.EncodeBlock(empty.Join()), wire.EncodeBlock(mailto.Join())
	deep := append(bytes.Repeat([]byte{0x81}, 100_000), 0xf6)
	wrongHash := wire.Block{CID: chain[0].Link(), Bytes: append(bytes.Clone(chain[0].Block().Bytes), 0)}
	md5, err := multihash.Encode(make([]byte, 16), multihash.MD5)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := multihash.Encode(chain[1].Block().Bytes, multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	inline := wire.Block{CID: cid.NewCidV1(cid.DagCBOR, identity), Bytes: chain[1].Block().Bytes}
	many := func(n int) []cid.Cid {
		links := make([]cid.Cid, n)
		for i := range links {
			links[i] = chain[1].Link()
		}
		return links
	}
	announcing := func(n int) []byte {
		root := wire.EncodeBlock(cbortest.Fields{"ucanto/message@7.0.0": cbortest.Fields{"execute": cbor.AppendArray(nil, n)}.Join()}.Join())
		return wire.AppendCAR(nil, []cid.Cid{root.CID}, []wire.Block{root})
	}
	tests := map[string][]byte{
		"signature of its code only":           executing(inv.With("s", raw(0xed, 0xa1, 0x03)).Join()),
		"signature of a proof likewise":        under(proof.With("s", raw(0xed, 0xa1, 0x03))),
		"signature empty":                      executing(inv.With("s", raw()).Join()),
		"signature announcing what is not":     executing(inv.With("s", raw(0xed, 0xa1, 0x03, 0x40)).Join()),
		"signature announcing 2^63 bytes":      executing(inv.With("s", raw(0x80, 0xa0, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)).Join()),
		"issuer that is none":                  executing(inv.With("iss", raw(1, 2, 3)).Join()),
		"issuer of a proof likewise":           under(proof.With("iss", raw(1, 2, 3))),
		"issuer empty":                         executing(inv.With("iss", raw()).Join()),
		"issuer with a key of an unknown type": executing(inv.With("iss", raw(append([]byte{0x80, 0x26}, make([]byte, 32)...)...)).Join()),
		"audience that is none":                executing(inv.With("aud", raw(0xed)).Join()),
		"audience of a proof likewise":         under(proof.With("aud", raw(0xed))),
		"no capability":                        executing(inv.With("att", cbortest.Array()).Join()),
		"proof without capability":             under(empty),
		"proof without capability beside one by a mailto": executing(
			inv.With("prf", cbortest.Array(linkTo(mailtoBlock.CID), linkTo(emptyBlock.CID))).Join(), mailtoBlock, emptyBlock),
		"proof without capability below one by a mailto": under(mailto.With("prf", cbortest.Array(linkTo(emptyBlock.CID))), emptyBlock),

		"effects that are no links": reporting(receipt.With("ocm",
			outcome.With("fx", cbortest.Fields{"fork": cbortest.Array(text("x"))}.Join()).Join()).Join()),
		"effects without forks":       reporting(receipt.With("ocm", outcome.With("fx", cbortest.Fields{}.Join()).Join()).Join()),
		"a join that is no link":      reporting(receipt.With("ocm", outcome.With("fx", cbortest.Fields{"fork": cbortest.Array(), "join": text("x")}.Join()).Join()).Join()),
		"receipt with half signature": reporting(receipt.With("sig", raw(0xed, 0xa1, 0x03)).Join()),
		"receipt with both results":   reporting(receipt.With("ocm", outcome.With("out", cbortest.Fields{"ok": {0xa0}, "error": {0xa0}}.Join()).Join()).Join()),
		"receipt with no result":      reporting(receipt.With("ocm", outcome.With("out", cbortest.Fields{}.Join()).Join()).Join()),
		"receipt by nobody":           reporting(receipt.With("ocm", outcome.With("iss", text("did:")).Join()).Join()),
		"receipt under another task":  envelope(nil, map[string]cid.Cid{chain[0].Link().String(): signed.Link()}, signed.Block()),
		"receipt under no CID":        envelope(nil, map[string]cid.Cid{"x": signed.Link()}, signed.Block()),
		"receipt that is not there":   envelope(nil, map[string]cid.Cid{chain[1].Link().String(): signed.Link()}),
		"receipt that is a UCAN":      envelope(nil, map[string]cid.Cid{chain[1].Link().String(): chain[1].Link()}, chain[1].Block()),
		"receipts only":               envelope(nil, map[string]cid.Cid{chain[1].Link().String(): signed.Link()}, signed.Block()),

		"empty body":                     {},
		"no CAR":                         []byte("GET / HTTP/1.1\r\n\r\n"),
		"zeros":                          make([]byte, 1<<16),
		"JSON":                           []byte(`{"ucanto/message@7.0.0":{}}`),
		"cut":                            good[:len(good)-1],
		"cut in the middle":              good[:len(good)/2],
		"one byte":                       {0x3a},
		"trailing bytes":                 append(bytes.Clone(good), 0, 0),
		"length not minimal":             append([]byte{good[0] | 0x80, 0}, good[1:]...),
		"length of 2^63":                 {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"no root":                        wire.AppendCAR(nil, nil, []wire.Block{chain[1].Block()}),
		"two roots":                      wire.AppendCAR(nil, []cid.Cid{chain[0].Link(), chain[1].Link()}, []wire.Block{chain[0].Block(), chain[1].Block()}),
		"root not there":                 wire.AppendCAR(nil, []cid.Cid{chain[0].Link()}, []wire.Block{chain[1].Block()}),
		"root that is a UCAN":            wire.AppendCAR(nil, []cid.Cid{chain[1].Link()}, []wire.Block{chain[1].Block()}),
		"invocation not there":           envelope([]cid.Cid{chain[1].Link()}, nil),
		"invocation that is no UCAN":     executing([]byte{0xa0}),
		"invocation that is a list":      executing(cbortest.Array()),
		"invocation under identity CID":  envelope([]cid.Cid{inline.CID}, nil, inline),
		"nothing to execute":             envelope(nil, nil),
		"empty list to execute":          envelope([]cid.Cid{}, nil),
		"101 invocations":                envelope(many(101), nil, chain[0].Block(), chain[1].Block()),
		"a million invocations":          announcing(1 << 20),
		"block of another hash":          message(chain[1:], wrongHash),
		"block under MD5":                message(chain, wire.Block{CID: cid.NewCidV1(cid.Raw, md5), Bytes: []byte("x")}),
		"caveats nested without end":     executing(inv.With("att", cbortest.Array(cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z"), "nb": deep}.Join())).Join()),
		"caveats with the keys unsorted": executing(inv.With("att", cbortest.Array(cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z"), "nb": {0xa2, 0x61, 'b', 1, 0x61, 'a', 1}}.Join())).Join()),
		"caveats with a key twice":       executing(inv.With("att", cbortest.Array(cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z"), "nb": {0xa2, 0x61, 'a', 1, 0x61, 'a', 1}}.Join())).Join()),
		"float that is not a number":     executing(inv.With("att", cbortest.Array(cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z"), "nb": {0xa1, 0x61, 'a', 0xfb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0}}.Join())).Join()),
		"proofs announced, not there":    executing(inv.With("prf", cbor.AppendArray(nil, 1<<40)).Join()),
		"facts announced, not there":     executing(inv.With("fct", cbor.AppendArray(nil, 1<<40)).Join()),
		"unknown field of a UCAN":        executing(inv.With("x", []byte{1}).Join()),
		"version of the future":          executing(inv.With("v", text("1.0.0")).Join()),
	}
	before := s.stored()
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			for role := range s.servers {
				if a := s.post(role, body); a.code != http.StatusBadRequest {
					t.Errorf("%s answers %d %.200q", role, a.code, a.body)
				}
			}
			if a := s.post(c.role, c.good); !bytes.Equal(a.body, c.answer) {
				t.Errorf("a good request is answered otherwise afterwards: %d %.300q", a.code, a.body)
			}
		})
	}
	s.unchanged(t, before)
}

// TestMalformedCaveats: what a capability asks for has to be of the right kind; a CID is not enough where a piece is meant.
func TestMalformedCaveats(t *testing.T) {
	s, _, subjects := dealt(t)
	// A CID of a plain hash, and pieces whose digest breaks a rule of its format: too short, of impossible height, with more padding than content.
	plain := wire.EncodeBlock([]byte{1}).CID
	digests := map[string][]byte{
		"piece of no bytes": {}, "piece cut short": make([]byte, 33), "piece too long": make([]byte, 40),
		"piece of height 64": append([]byte{0, 64}, make([]byte, 32)...), "piece of height 0": append([]byte{0, 0}, make([]byte, 32)...),
		"piece with more padding than content": append([]byte{0xff, 0x7f, 2}, make([]byte, 32)...),
		"piece with padding not minimal":       append([]byte{0x80, 0, 2}, make([]byte, 32)...),
	}
	bad := map[string]cid.Cid{"a plain CID": plain, "CID of version 0": cid.NewCidV0(plain.Hash())}
	for name, digest := range digests {
		hash, err := multihash.Encode(digest, 0x1011)
		if err != nil {
			t.Fatal(err)
		}
		bad[name] = cid.NewCidV1(cid.Raw, hash)
	}
	before := s.stored()
	for _, c := range subjects {
		good := cbortest.Split(t, capabilities.Encode(c.nb))
		for _, key := range []string{"piece", "aggregate"} {
			if good[key] == nil || c.delegated == capabilities.UnsupportedCapability {
				continue
			}
			values := map[string][]byte{"text": cbor.AppendText(nil, "bafk"), "null": {0xf6}, "a map": {0xa0}, "missing": nil}
			for name, b := range bad {
				values[name] = linkTo(b)
			}
			for name, value := range values {
				t.Run(c.can+"/"+key+"/"+name, func(t *testing.T) {
					nb := good.With(key, value)
					if value == nil {
						delete(nb, key)
					}
					chain := s.chain(c, 1, func(i int, k *token) {
						if i == 1 {
							k.caps[0].Nb = nb.Join()
						}
					})
					got := s.post(c.role, message(chain, c.attach...)).outcome(t, chain[1].Link(), s.Roles[c.role].Signer)
					if !strings.HasPrefix(got, capabilities.MalformedCapability+": ") {
						t.Errorf("got %s", got)
					}
				})
			}
		}
	}
	s.unchanged(t, before)
}

// TestPieceLists: the dealer takes an aggregate only with its list, whole and as linked.
func TestPieceLists(t *testing.T) {
	s, o, subjects := dealt(t)
	c := subjectOf(t, subjects, aggregatecap.OfferAbility)
	nb := *c.nb.(*aggregatecap.Offer)
	list := c.attach[0]
	identity, err := multihash.Encode(list.Bytes, multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	inline := capabilities.Block{CID: cid.NewCidV1(cid.DagCBOR, identity), Bytes: list.Bytes}
	plain := wire.EncodeBlock(cbortest.Array(linkTo(list.CID)))
	mapped := wire.EncodeBlock([]byte{0xa0})
	announced := wire.EncodeBlock(cbor.AppendArray(nil, 1<<40))
	before := s.stored()
	for _, tt := range []struct {
		name   string
		pieces cid.Cid
		attach []capabilities.Block
		want   string
	}{
		{"not sent along", list.CID, nil, "HTTP 400: the message lacks the list of pieces"},
		{"of other bytes", list.CID, []capabilities.Block{{CID: list.CID, Bytes: append(bytes.Clone(list.Bytes), 0)}}, "HTTP 400: "},
		{"of what are no pieces", plain.CID, []capabilities.Block{plain}, "HTTP 400: reading piece 0 of the list"},
		{"that is a map", mapped.CID, []capabilities.Block{mapped}, "HTTP 400: reading the list of pieces"},
		{"that is announced only", announced.CID, []capabilities.Block{announced}, "HTTP 400: reading the list of pieces"},
		{"inside its own CID", inline.CID, []capabilities.Block{inline}, "HTTP 400: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain := s.chain(c, 1, func(i int, k *token) {
				k.nonce = tt.name
				if i == 1 {
					k.caps[0].Nb = capabilities.Encode(&aggregatecap.Offer{Aggregate: nb.Aggregate, Pieces: tt.pieces})
				}
			})
			got := s.post(c.role, message(chain, tt.attach...)).outcome(t, chain[1].Link(), s.Roles[c.role].Signer)
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %s, want %s…", got, tt.want)
			}
		})
	}
	t.Run("of a million pieces", func(t *testing.T) {
		links := make([]piece.Link, 1_000_000)
		for i := range links {
			links[i] = o.Piece
		}
		body := message(s.chain(c, 1, nil), aggregatecap.Pieces(links))
		if a := s.post(c.role, body); a.code != http.StatusRequestEntityTooLarge {
			t.Errorf("%d bytes are answered by %d %.200q", len(body), a.code, a.body)
		}
	})
	s.unchanged(t, before)
}

// troubled is a service with methods that go wrong.
type troubled struct {
	roles.Service
	methods map[string]capabilities.Method
}

func (s troubled) Methods() map[string]capabilities.Method { return s.methods }

// TestFaultsInside: a fault of the role's own, a panic included, is answered by status 503 without a receipt and without a word of its cause; the
// others in the same message are answered as ever.
func TestFaultsInside(t *testing.T) {
	n := New(t, Options{Seed: 102})
	s := guarded(t, n)
	const secret = "password=hunter2"
	h := s.http["dealer"]
	fine := func(_ context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		return capabilities.Issue(h.Server.Signer, inv.Link(), &ucan.ConcludeOK{Time: 1}, capabilities.Effects{})
	}
	var none map[string]int
	config := *h.Server
	config.Service = troubled{h.Server.Service, map[string]capabilities.Method{
		"test/panic": func(context.Context, capabilities.Invocation) (*capabilities.Receipt, error) { panic(secret) },
		"test/write": func(context.Context, capabilities.Invocation) (*capabilities.Receipt, error) {
			none["x"] = 1
			return nil, nil
		},
		"test/fault": func(context.Context, capabilities.Invocation) (*capabilities.Receipt, error) {
			return nil, errors.New(secret)
		},
		"test/fine": fine,
	}}
	h.Server = roles.NewServer(config)
	s.listen()
	agent := TestKey(51)
	invoke := func(can string) *capabilities.UCAN {
		return s.sign(token{issuer: agent, audience: h.Server.Signer.DID(), caps: []wire.Capability{{Can: can, With: agent.DID().String()}}})
	}
	for _, can := range []string{"test/panic", "test/write", "test/fault"} {
		a := s.post("dealer", message([]*capabilities.UCAN{invoke(can)}))
		if a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || strings.Contains(string(a.body), "hunter2") {
			t.Errorf("%s is answered by %d %q, Retry-After %q", can, a.code, a.body, a.header.Get("Retry-After"))
		}
		if faults := s.log.take(); len(faults) != 1 || can != "test/write" && !strings.Contains(faults[0], secret) {
			t.Errorf("%s is logged as %v", can, faults)
		}
		if got := s.post("dealer", message([]*capabilities.UCAN{invoke("test/fine")})).outcome(t, invoke("test/fine").Link(), h.Server.Signer); got != "ok" {
			t.Errorf("after %s: %s", can, got)
		}
	}
	m := new(capabilities.Message)
	for _, can := range []string{"test/panic", "test/fine", "test/fault", "test/unknown"} {
		m.AddInvocation(invoke(can))
	}
	a := s.post("dealer", m.Encode())
	reply, err := wire.DecodeMessage(a.body, wire.Limits{})
	if a.code != http.StatusOK || err != nil || len(reply.Receipts()) != 2 || bytes.Contains(a.body, []byte("hunter2")) {
		t.Fatalf("four in a message: %d, %v, %d receipts", a.code, err, len(reply.Receipts()))
	}
	if got := a.outcome(t, invoke("test/fine").Link(), h.Server.Signer); got != "ok" {
		t.Errorf("the good one of four: %s", got)
	}
	if got := a.outcome(t, invoke("test/unknown").Link(), h.Server.Signer); !strings.HasPrefix(got, capabilities.HandlerNotFound) {
		t.Errorf("the unknown one of four: %s", got)
	}
}

// TestSameMessageAtOnce sends one request with attached blocks many times at once, and many requests with one of its parts shared: one task is
// acknowledged once, with one receipt.
func TestSameMessageAtOnce(t *testing.T) {
	s, o, subjects := dealt(t)
	for _, can := range []string{filecoin.OfferAbility, aggregatecap.OfferAbility} {
		c := subjectOf(t, subjects, can)
		chain := s.chain(c, 2, func(_ int, k *token) { k.nonce = "at once" })
		m := new(capabilities.Message)
		for range 3 { // and thrice in the list
			m.AddInvocation(chain[2], append([]capabilities.Block{chain[0].Block(), chain[1].Block()}, c.attach...)...)
		}
		body, before := m.Encode(), s.stored()
		answers := make([]answer, 16)
		var wg sync.WaitGroup
		for i := range answers {
			wg.Go(func() { answers[i] = s.post(c.role, body) })
		}
		wg.Wait()
		for _, a := range answers {
			if got := a.outcome(t, chain[2].Link(), s.Roles[c.role].Signer); got != "ok" || !bytes.Equal(a.body, answers[0].body) {
				t.Errorf("%s: one of the answers: %s", can, got)
			}
		}
		rows := 0
		for key := range s.stored() {
			if _, old := before[key]; !old && !strings.Contains(key, " blob ") {
				rows++
			}
		}
		if rows != 1 {
			t.Errorf("%s: %d rows for one task", can, rows)
		}
	}
	s.Run(time.Hour, func() bool { return false })
	s.MustCheck([]Offered{o})
}

// TestBatch: each of many invocations is judged by itself, and answered in one message.
func TestBatch(t *testing.T) {
	s, _, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.InfoAbility)
	m := new(capabilities.Message)
	want := map[cid.Cid]string{}
	for i := range 100 {
		chain := s.chain(c, 1, func(at int, k *token) {
			k.nonce = fmt.Sprint(i)
			k.forged = i%4 == at
		})
		m.AddInvocation(chain[1], chain[0].Block())
		want[chain[1].Link()] = "ok"
		if i%4 < 2 {
			want[chain[1].Link()] = capabilities.Unauthorized
		}
	}
	before := s.stored()
	a := s.post(c.role, m.Encode())
	for task, outcome := range want {
		got, _, _ := strings.Cut(a.outcome(t, task, s.Roles[c.role].Signer), ":")
		if got != outcome {
			t.Errorf("%s ended as %s, want %s", task, got, outcome)
		}
	}
	s.unchanged(t, before)
}

// TestTimeBounds: a UCAN is valid from its nbf on, at that very second too.
func TestTimeBounds(t *testing.T) {
	s, _, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.InfoAbility)
	chain := s.chain(c, 1, nil)
	now := s.Now().Unix()
	u, err := wire.SignUCAN(c.invoker, wire.UCAN{Audience: chain[1].Audience, Capabilities: chain[1].Capabilities, Proofs: chain[1].Proofs, NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.post(c.role, message([]*capabilities.UCAN{chain[0], u})).outcome(t, u.Link(), s.Roles[c.role].Signer); got != "ok" {
		t.Errorf("valid from now on: %s", got)
	}
}

// TestForgedReplies: a client believes no receipt because it came over the connection that it asked.
func TestForgedReplies(t *testing.T) {
	s, o, subjects := dealt(t)
	c := subjectOf(t, subjects, filecoin.OfferAbility)
	agent, storefront := Agent(), s.Roles["storefront"].Signer
	task, err := capabilities.Invoke(agent, storefront.DID(), agent.DID().String(), &filecoin.Offer{Content: o.Content, Piece: o.Piece}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	ok := &filecoin.PieceOK{Piece: o.Piece}
	issue := func(by capabilities.Signer, ran cid.Cid) *capabilities.Receipt {
		r, err := capabilities.Issue(by, ran, ok, capabilities.Effects{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	reply := func(r *capabilities.Receipt) []byte {
		m := new(capabilities.Message)
		m.AddReceipt(r)
		return m.Encode()
	}
	right := issue(storefront, task.Link())
	outcome := cbortest.Split(t, cbortest.Split(t, right.Block().Bytes)["ocm"])
	// Signed by another, in the name of the right one, or of nobody.
	relabel := func(iss string) []byte {
		forged := cbortest.Split(t, issue(mallory(), task.Link()).Block().Bytes)
		fake := outcome.With("iss", cbor.AppendText(nil, iss))
		if iss == "" {
			delete(fake, "iss")
		}
		b := wire.EncodeBlock(forged.With("ocm", fake.Join()).Join())
		return envelope(nil, map[string]cid.Cid{task.Link().String(): b.CID}, b)
	}
	byMallory := issue(mallory(), task.Link())
	for name, tt := range map[string]struct {
		body     []byte
		believed bool
		refused  bool // by verification, not by the decoder
	}{
		"the right one":                     {reply(right), true, false},
		"signed by another":                 {reply(byMallory), false, true},
		"signed by another under the name":  {relabel(storefront.DID().String()), false, true},
		"signed by another without a name":  {relabel(""), false, true},
		"of another task":                   {reply(issue(storefront, o.Content)), false, false},
		"no receipt":                        {envelope(nil, nil), false, false},
		"no message":                        {[]byte("<html>"), false, false},
		"nothing":                           {nil, false, false},
		"what the storefront said to other": {c.answer, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(tt.body) }))
			defer server.Close()
			_, _, err := client.Offer(t.Context(), client.Dial(server.URL, server.Client()), agent, storefront.DID(), agent.DID().String(),
				filecoin.Offer{Content: o.Content, Piece: o.Piece}, capabilities.Terms{}, s.keys())
			if (err == nil) != tt.believed || errors.Is(err, capabilities.ErrInvalidReceipt) != tt.refused {
				t.Errorf("got %v", err)
			}
		})
	}
}
