package wire_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/storacha/go-ucanto/core/dag/blockstore"
	"github.com/storacha/go-ucanto/core/delegation"
	"github.com/storacha/go-ucanto/core/invocation"
	"github.com/storacha/go-ucanto/core/ipld"
	"github.com/storacha/go-ucanto/core/ipld/block"
	"github.com/storacha/go-ucanto/core/message"
	"github.com/storacha/go-ucanto/core/receipt"
	"github.com/storacha/go-ucanto/core/receipt/fx"
	"github.com/storacha/go-ucanto/core/receipt/ran"
	"github.com/storacha/go-ucanto/core/result"
	"github.com/storacha/go-ucanto/did"
	"github.com/storacha/go-ucanto/principal"
	edsigner "github.com/storacha/go-ucanto/principal/ed25519/signer"
	edverifier "github.com/storacha/go-ucanto/principal/ed25519/verifier"
	rsasigner "github.com/storacha/go-ucanto/principal/rsa/signer"
	"github.com/storacha/go-ucanto/principal/signer"
	"github.com/storacha/go-ucanto/server"
	"github.com/storacha/go-ucanto/transport/car/request"
	thttp "github.com/storacha/go-ucanto/transport/http"
	"github.com/storacha/go-ucanto/ucan"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// go-ucanto is the oracle of these tests: what it makes must decode here, what is made here must decode there, and
// equal content must have equal bytes.

// generator makes random content.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 1))} }

func (g generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.IntN(256))
	}
	return b
}

func (g generator) cid() cid.Cid {
	switch b := g.bytes(20); g.IntN(3) {
	case 0:
		return wire.EncodeBlock(b).CID
	case 1:
		return cid.NewCidV1(cid.Raw, wire.EncodeBlock(b).CID.Hash())
	default:
		return cid.NewCidV0(wire.EncodeBlock(b).CID.Hash())
	}
}

func (g generator) cids(most int) []cid.Cid {
	var cids []cid.Cid
	for range g.IntN(most + 1) {
		cids = append(cids, g.cid())
	}
	return cids
}

// text avoids the few characters that JavaScript spells otherwise, to keep the two implementations comparable.
func (g generator) text() string {
	letters := []rune("abcXYZ019 -_/:\"\\\n\r\t\x01\x7fäß€\u2028\U0001f41f")
	r := make([]rune, g.IntN(12))
	for i := range r {
		r[i] = letters[g.IntN(len(letters))]
	}
	return string(r)
}

// value appends a random value.
func (g generator) value(dst []byte, depth int) []byte {
	kinds := 10
	if depth == 0 {
		kinds = 8
	}
	switch g.IntN(kinds) {
	case 0:
		return cbor.AppendNull(dst)
	case 1:
		return cbor.AppendBool(dst, g.IntN(2) == 0)
	case 2:
		return cbor.AppendInt(dst, int64(g.Uint64())>>g.IntN(64))
	case 3:
		// Never a whole number that could be an integer.
		return cbor.AppendFloat(dst, math.Ldexp(0.25+g.Float64()/2, []int{-40, -3, 0, 1, 70, 200}[g.IntN(6)]))
	case 4, 5:
		return cbor.AppendText(dst, g.text())
	case 6:
		return cbor.AppendBytes(dst, g.bytes(g.IntN(40)))
	case 7:
		return cbor.AppendLink(dst, g.cid())
	case 8:
		n := g.IntN(4)
		dst = cbor.AppendArray(dst, n)
		for range n {
			dst = g.value(dst, depth-1)
		}
		return dst
	default:
		return g.mapping(dst, depth-1)
	}
}

// notNull returns a value other than null, which go-ucanto does not decode as a result or in a fact.
func (g generator) notNull(depth int) []byte {
	for {
		if b := g.value(nil, depth); b[0] != 0xf6 {
			return b
		}
	}
}

func (g generator) mapping(dst []byte, depth int) []byte {
	m := cbortest.Fields{}
	for range g.IntN(5) {
		if key := g.text(); key != "/" {
			m[key] = g.notNull(max(0, depth))
		}
	}
	return append(dst, m.Join()...)
}

func (g generator) ucan(audience wire.DID) wire.UCAN {
	u := wire.UCAN{Audience: audience, Proofs: g.cids(3)}
	cans := []string{"filecoin/offer", "piece/*", "*", "a/b/c"}
	withs := []string{audience.String(), "ucan:*", "https://example.com/ä?b=\"c\""}
	for range 1 + g.IntN(3) {
		u.Capabilities = append(u.Capabilities, wire.Capability{
			Can: cans[g.IntN(len(cans))], With: withs[g.IntN(len(withs))], Nb: g.mapping(nil, 3),
		})
	}
	if g.IntN(2) == 0 {
		exp := int64(g.IntN(1<<40)) - 10
		u.Expiration = &exp
	}
	if g.IntN(2) == 0 {
		u.NotBefore = 1 + g.Int64N(1<<40)
	}
	if g.IntN(2) == 0 {
		u.Nonce = "n" + g.text()
	}
	for range g.IntN(3) {
		u.Facts = append(u.Facts, g.mapping(nil, 2))
	}
	return u
}

func node(t testing.TB, b []byte) datamodel.Node {
	t.Helper()
	nb := basicnode.Prototype.Any.NewBuilder()
	if err := dagcbor.Decode(nb, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return nb.Build()
}

// raw is a value in the form in which go-ucanto takes caveats, results and facts.
type raw struct {
	t testing.TB
	b []byte
}

func (r raw) ToIPLD() (datamodel.Node, error) { return node(r.t, r.b), nil }

type rawFact struct {
	t testing.TB
	b []byte
}

func (r rawFact) ToIPLD() (map[string]datamodel.Node, error) {
	m := map[string]datamodel.Node{}
	for key, value := range cbortest.Split(r.t, r.b) {
		m[key] = node(r.t, value)
	}
	return m, nil
}

func ipldLinks(cids []cid.Cid) []ipld.Link {
	var links []ipld.Link
	for _, c := range cids {
		links = append(links, cidlink.Link{Cid: c})
	}
	return links
}

// must returns v and fails the test on an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// oracleSigner is the same key in go-ucanto.
func oracleSigner(t testing.TB, s wire.Signer) principal.Signer {
	t.Helper()
	key := must[principal.Signer](t)(edsigner.Parse(s.Format()))
	if s.DID() == s.KeyDID() {
		return key
	}
	return must[signer.WrappedSigner](t)(signer.Wrap(key, must[did.DID](t)(did.Parse(s.DID().String()))))
}

// oracleUCAN issues u with go-ucanto.
func oracleUCAN(t testing.TB, s wire.Signer, u wire.UCAN) delegation.Delegation {
	t.Helper()
	var caps []ucan.Capability[raw]
	for _, c := range u.Capabilities {
		caps = append(caps, ucan.NewCapability(c.Can, c.With, raw{t, c.Nb}))
	}
	var opts []delegation.Option
	if u.Expiration != nil {
		opts = append(opts, delegation.WithExpiration(int(*u.Expiration)))
	} else {
		opts = append(opts, delegation.WithNoExpiration())
	}
	var proofs []delegation.Proof
	for _, l := range ipldLinks(u.Proofs) {
		proofs = append(proofs, delegation.FromLink(l))
	}
	var facts []ucan.FactBuilder
	for _, fact := range u.Facts {
		facts = append(facts, rawFact{t, fact})
	}
	opts = append(opts, delegation.WithNotBefore(int(u.NotBefore)), delegation.WithNonce(u.Nonce),
		delegation.WithProof(proofs...), delegation.WithFacts(facts))
	audience := must[did.DID](t)(did.Parse(u.Audience.String()))
	return must[delegation.Delegation](t)(delegation.Delegate(oracleSigner(t, s), audience, caps, opts...))
}

// signers are a did:key and a did:web.
func signers(t testing.TB, g generator) []wire.Signer {
	t.Helper()
	key := must[wire.Signer](t)(wire.NewSigner(ed25519.NewKeyFromSeed(g.bytes(32))))
	return []wire.Signer{key, must[wire.Signer](t)(key.WithDID(parseDID(t, "did:web:example.com")))}
}

func TestOracleUCANs(t *testing.T) {
	g := newGenerator(1)
	for i := range 300 {
		for _, s := range signers(t, g) {
			want := g.ucan(s.DID())
			ours := must[*wire.UCAN](t)(wire.SignUCAN(s, want))
			theirs := oracleUCAN(t, s, want)
			if ours.Link().String() != theirs.Link().String() || !bytes.Equal(ours.Block().Bytes, theirs.Root().Bytes()) {
				t.Fatalf("%d: go-ucanto signs it as\n%x, here it is\n%x", i, theirs.Root().Bytes(), ours.Block().Bytes)
			}
			decoded := must[*wire.UCAN](t)(wire.DecodeUCAN(wire.EncodeBlock(theirs.Root().Bytes())))
			if err := decoded.Verify(s.Verifier()); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			want.Issuer, want.Signature = s.DID(), decoded.Signature
			if diff := cmp.Diff(&want, decoded, compare); diff != "" {
				t.Fatalf("%d: %s", i, diff)
			}
		}
	}
}

// compare looks at the exported fields.
var compare = cmp.Options{
	cmp.Comparer(func(a, b wire.DID) bool { return a == b }),
	cmp.Comparer(func(a, b cid.Cid) bool { return a == b }),
	cmp.FilterPath(func(p cmp.Path) bool {
		f, ok := p.Last().(cmp.StructField)
		return ok && (f.Name() == "block" || f.Name() == "outcome")
	}, cmp.Ignore()),
}

// The same verdict over signatures by the right key, by another, over other content, and by RSA.
func TestOracleVerdicts(t *testing.T) {
	g := newGenerator(2)
	for i := range 200 {
		s := signers(t, g)[i%2]
		u := must[*wire.UCAN](t)(wire.SignUCAN(s, g.ucan(s.DID())))
		if i%3 == 0 {
			changed := *u
			changed.Signature = slices.Clone(u.Signature)
			changed.Signature[4+g.IntN(64)] ^= 1 << g.IntN(8)
			u = must[*wire.UCAN](t)(wire.DecodeUCAN(must[wire.Block](t)(changed.Encode())))
		}
		theirs := oracleDecode(t, u.Block())
		want := must[bool](t)(ucan.VerifySignature(theirs.Data(), oracleSigner(t, s).Verifier()))
		if err := u.Verify(s.Verifier()); (err == nil) != want || want != (i%3 != 0) {
			t.Errorf("%d: go-ucanto says %v, here it is %v", i, want, err)
		}
	}

	key := must[principal.Signer](t)(rsasigner.Generate())
	d := must[delegation.Delegation](t)(delegation.Delegate(key, key,
		[]ucan.Capability[raw]{ucan.NewCapability("a/b", "a:b", raw{t, []byte{0xa0}})}))
	u := must[*wire.UCAN](t)(wire.DecodeUCAN(wire.EncodeBlock(d.Root().Bytes())))
	v := must[wire.Verifier](t)(wire.VerifierOf(u.Issuer))
	if err := u.Verify(v); err != nil || u.Issuer.String() != key.DID().String() {
		t.Errorf("RSA: %v by %v", err, u.Issuer)
	}
	u.Signature[len(u.Signature)-1] ^= 1
	if err := u.Verify(v); err == nil {
		t.Error("RSA: a spoilt signature verifies")
	}
}

func oracleDecode(t testing.TB, b wire.Block) delegation.Delegation {
	t.Helper()
	bs := must[blockstore.BlockReader](t)(blockstore.NewBlockReader())
	return must[delegation.Delegation](t)(delegation.NewDelegation(block.NewBlock(cidlink.Link{Cid: b.CID}, b.Bytes), bs))
}

func TestOracleReceipts(t *testing.T) {
	g := newGenerator(3)
	for i := range 300 {
		s := signers(t, g)[i%2]
		want := wire.Receipt{Ran: g.cid(), Fork: g.cids(3), Proofs: g.cids(2)}
		var out result.Result[raw, raw]
		if g.IntN(2) == 0 {
			want.Out.OK = g.notNull(3)
			out = result.Ok[raw, raw](raw{t, want.Out.OK})
		} else {
			want.Out.Error = g.notNull(3)
			out = result.Error[raw](raw{t, want.Out.Error})
		}
		var opts []receipt.Option
		var forks []fx.Effect
		for _, l := range ipldLinks(want.Fork) {
			forks = append(forks, fx.FromLink(l))
		}
		opts = append(opts, receipt.WithFork(forks...))
		if g.IntN(2) == 0 {
			want.Join = g.cid()
			opts = append(opts, receipt.WithJoin(fx.FromLink(cidlink.Link{Cid: want.Join})))
		}
		if g.IntN(2) == 0 {
			want.Meta = cbortest.Fields{"n": {1}, "note": text("x")}.Join()
			opts = append(opts, receipt.WithMeta(map[string]any{"note": new("x"), "n": new(int64(1))}))
		}
		var proofs []delegation.Proof
		for _, l := range ipldLinks(want.Proofs) {
			proofs = append(proofs, delegation.FromLink(l))
		}
		opts = append(opts, receipt.WithProofs(proofs))
		theirs := must[receipt.AnyReceipt](t)(receipt.Issue(oracleSigner(t, s), out,
			ran.FromLink(cidlink.Link{Cid: want.Ran}), opts...))

		ours := must[*wire.Receipt](t)(wire.SignReceipt(s, want))
		if !bytes.Equal(ours.Block().Bytes, theirs.Root().Bytes()) {
			t.Fatalf("%d: go-ucanto signs it as\n%x, here it is\n%x", i, theirs.Root().Bytes(), ours.Block().Bytes)
		}
		decoded := must[*wire.Receipt](t)(wire.DecodeReceipt(wire.EncodeBlock(theirs.Root().Bytes())))
		want.Issuer, want.Signature = s.DID(), decoded.Signature
		if diff := cmp.Diff(&want, decoded, compare); diff != "" {
			t.Fatalf("%d: %s", i, diff)
		}
		if err := decoded.Verify(s.Verifier()); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if !must[bool](t)(theirs.VerifySignature(oracleSigner(t, s).Verifier())) {
			t.Fatalf("%d: go-ucanto does not verify its own", i)
		}
	}
}

func TestOracleMessages(t *testing.T) {
	g := newGenerator(4)
	s := signers(t, g)[0]
	var invocations []invocation.Invocation
	var receipts []receipt.AnyReceipt
	for i := range 20 {
		u := g.ucan(s.DID())
		u.Capabilities = u.Capabilities[:1]
		proof := oracleUCAN(t, s, g.ucan(s.DID()))
		inv := must[invocation.IssuedInvocation](t)(invocation.Invoke(oracleSigner(t, s), s2did(t, s),
			ucan.NewCapability(u.Capabilities[0].Can, u.Capabilities[0].With, raw{t, u.Capabilities[0].Nb}),
			delegation.WithProof(delegation.FromDelegation(proof)), delegation.WithNoExpiration(),
			delegation.WithNonce(fmt.Sprint(i))))
		invocations = append(invocations, inv)
		receipts = append(receipts, must[receipt.AnyReceipt](t)(receipt.Issue(oracleSigner(t, s),
			result.Ok[raw, raw](raw{t, g.notNull(2)}), ran.FromInvocation(inv))))
	}
	for _, test := range []struct {
		name        string
		invocations []invocation.Invocation
		receipts    []receipt.AnyReceipt
	}{
		{"one invocation", invocations[:1], nil},
		{"invocations", invocations, nil},
		{"one receipt", nil, receipts[:1]},
		{"receipts", nil, receipts},
		{"both", invocations[:10], receipts[5:]},
		{"empty", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			built := must[message.AgentMessage](t)(message.Build(test.invocations, test.receipts))
			req, err := request.Encode(built)
			if err != nil {
				t.Fatal(err)
			}
			body := must[[]byte](t)(io.ReadAll(req.Body()))
			m := must[*wire.Message](t)(wire.DecodeMessage(body, wire.Limits{}))

			// What is written here, go-ucanto reads to the same content. Its own form differs where it has an empty
			// list of invocations.
			ours := m.Encode()
			if len(test.invocations) > 0 && !bytes.Equal(ours, body) {
				t.Errorf("go-ucanto writes\n%x, here it is\n%x", body, ours)
			}
			again, err := request.Decode(thttp.NewRequest(bytes.NewReader(ours), http.Header{}))
			if err != nil {
				t.Fatal(err)
			}
			if len(again.Invocations()) != len(test.invocations) || len(again.Receipts()) != len(test.receipts) {
				t.Fatalf("%d invocations and %d receipts, want %d and %d", len(again.Invocations()),
					len(again.Receipts()), len(test.invocations), len(test.receipts))
			}
			for i, inv := range test.invocations {
				if got := m.Invocations()[i].Link().String(); got != inv.Link().String() {
					t.Errorf("invocation %d is %s, want %s", i, got, inv.Link())
				}
				if got := again.Invocations()[i].String(); got != inv.Link().String() {
					t.Errorf("go-ucanto: invocation %d is %s, want %s", i, got, inv.Link())
				}
				if proof, err := m.UCAN(m.Invocations()[i].Proofs[0]); proof == nil || err != nil {
					t.Errorf("proof of %d: %v, %v", i, proof, err)
				}
			}
			for i, rc := range test.receipts {
				task := cid.MustParse(rc.Ran().Link().String())
				if got := m.Receipt(task); got == nil || got.Link().String() != rc.Root().Link().String() {
					t.Errorf("receipt %d: got %v, want %s", i, got, rc.Root().Link())
				}
				if got, ok := again.Get(rc.Ran().Link()); !ok || got.String() != rc.Root().Link().String() {
					t.Errorf("go-ucanto: receipt %d: got %v, want %s", i, got, rc.Root().Link())
				}
			}
		})
	}
}

func s2did(t testing.TB, s wire.Signer) did.DID {
	t.Helper()
	return must[did.DID](t)(did.Parse(s.DID().String()))
}

// A request made here is served by a go-ucanto server, and its reply is read here.
func TestOracleServer(t *testing.T) {
	v := loadVectors(t)
	service, agent := v.signer(t, "storefront"), v.signer(t, "agent")
	srv := must[server.ServerView[server.Service]](t)(server.NewServer(oracleSigner(t, service)))
	var m wire.Message
	for i := range 3 {
		m.AddInvocation(must[*wire.UCAN](t)(wire.SignUCAN(agent, wire.UCAN{
			Audience:     service.DID(),
			Capabilities: []wire.Capability{{Can: "no/such", With: agent.DID().String(), Nb: []byte{0xa0}}},
			Nonce:        fmt.Sprint(i),
		})))
	}
	header := http.Header{"Content-Type": {request.ContentType}, "Accept": {request.ContentType}}
	res, err := srv.Request(t.Context(), thttp.NewRequest(bytes.NewReader(m.Encode()), header))
	if err != nil {
		t.Fatal(err)
	}
	reply := must[*wire.Message](t)(wire.DecodeMessage(must[[]byte](t)(io.ReadAll(res.Body())), wire.Limits{}))
	if len(reply.Receipts()) != 3 || len(reply.Invocations()) != 0 {
		t.Fatalf("%d receipts and %d invocations", len(reply.Receipts()), len(reply.Invocations()))
	}
	for _, inv := range m.Invocations() {
		rc := reply.Receipt(inv.Link())
		if rc == nil {
			t.Fatalf("no receipt of %v", inv.Link())
		}
		if err := rc.Verify(service.Verifier()); err != nil {
			t.Error(err)
		}
		if name := errorName(t, rc); name != "HandlerNotFoundError" {
			t.Errorf("error %q", name)
		}
	}
}

func errorName(t testing.TB, rc *wire.Receipt) string {
	t.Helper()
	r := cbor.NewReader(cbortest.Split(t, rc.Out.Error)["name"])
	name := r.Text()
	if err := r.Done(); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOracleDIDs(t *testing.T) {
	g := newGenerator(5)
	rsa := must[principal.Signer](t)(rsasigner.Generate())
	texts := []string{
		"did:web:example.com", "did:web:example.com%3A8080:a:b", "did:mailto:example.com:alice%2Bbob", "did:plc:abc",
		rsa.DID().String(),
	}
	for range 50 {
		b := append([]byte{0xed, 1}, g.bytes(32)...)
		if g.IntN(4) == 0 {
			clear(b[2 : 2+g.IntN(32)])
		}
		texts = append(texts, must[principal.Verifier](t)(edverifier.Decode(b)).DID().String())
	}
	for _, text := range texts {
		want := must[did.DID](t)(did.Parse(text))
		parsed := parseDID(t, text)
		if !bytes.Equal(parsed.Bytes(), want.Bytes()) || parsed.String() != text {
			t.Errorf("%s: bytes %x, want %x", text, parsed.Bytes(), want.Bytes())
		}
		if decoded := must[wire.DID](t)(wire.DecodeDID(want.Bytes())); decoded != parsed {
			t.Errorf("decoded %v, want %v", decoded, parsed)
		}
	}
}
