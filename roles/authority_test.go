package roles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/storacha/go-ucanto/core/dag/blockstore"
	"github.com/storacha/go-ucanto/core/delegation"
	"github.com/storacha/go-ucanto/core/ipld/block"
	"github.com/storacha/go-ucanto/did"
	edverifier "github.com/storacha/go-ucanto/principal/ed25519/verifier"
	"github.com/storacha/go-ucanto/validator"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// noon is the time of these tests.
const noon = 1_800_000_000

func newSigner(t testing.TB, name string) capabilities.Signer {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	s, err := wire.GenerateSigner(bytes.NewReader(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustDID(t testing.TB, text string) capabilities.DID {
	t.Helper()
	d, err := wire.ParseDID(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// spec is a UCAN in the making.
type spec struct {
	issuer   capabilities.Signer
	audience capabilities.DID
	caps     []wire.Capability
	proofs   []*capabilities.UCAN
	exp, nbf int64 // relative to noon; exp 0: never
	nonce    string
	from     capabilities.DID // issuer without a signature
	forged   bool
}

func (s spec) sign(t testing.TB) *capabilities.UCAN {
	t.Helper()
	u := wire.UCAN{Audience: s.audience, Capabilities: s.caps, Nonce: s.nonce}
	for _, p := range s.proofs {
		u.Proofs = append(u.Proofs, p.Link())
	}
	if s.exp != 0 {
		exp := noon + s.exp
		u.Expiration = &exp
	}
	if s.nbf != 0 {
		u.NotBefore = noon + s.nbf
	}
	signed := &u
	if s.from.Defined() {
		u.Issuer, u.Signature = s.from, wire.AbsentSignature()
	} else {
		var err error
		if signed, err = wire.SignUCAN(s.issuer, u); err != nil {
			t.Fatal(err)
		}
	}
	if s.forged {
		signed.Signature = bytes.Clone(signed.Signature)
		signed.Signature[20] ^= 1
	}
	b, err := signed.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := wire.DecodeUCAN(b)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func can(ability string, with capabilities.DID) []wire.Capability {
	return []wire.Capability{{Can: ability, With: with.String()}}
}

// onPiece are caveats that set a piece, and a group if it is not empty.
func onPiece(name, group string) []byte {
	link := wire.EncodeBlock(cbor.AppendText(nil, name)).CID
	if group == "" {
		return cbor.AppendLink(cbor.AppendText(cbor.AppendMap(nil, 1), "piece"), link)
	}
	b := cbor.AppendText(cbor.AppendText(cbor.AppendMap(nil, 2), "group"), group)
	return cbor.AppendLink(cbor.AppendText(b, "piece"), link)
}

// send returns the message as a server sees it: the last UCAN is the invocation.
func send(t testing.TB, ucans ...*capabilities.UCAN) (*capabilities.Message, *capabilities.UCAN) {
	t.Helper()
	m, err := trySend(ucans...)
	if err != nil {
		t.Fatal(err)
	}
	return m, m.Invocations()[0]
}

func trySend(ucans ...*capabilities.UCAN) (*capabilities.Message, error) {
	m := new(capabilities.Message)
	last := len(ucans) - 1
	var with []capabilities.Block
	for _, u := range ucans[:last] {
		with = append(with, u.Block())
	}
	m.AddInvocation(ucans[last], with...)
	return wire.DecodeMessage(m.Encode(), wire.Limits{})
}

// countingKeys counts how often a key is asked for, which is once for each signature that is verified.
type countingKeys struct {
	capabilities.Keys
	asked atomic.Int64
	fail  map[capabilities.DID]error
}

func (k *countingKeys) Verifier(ctx context.Context, d capabilities.DID) (capabilities.Verifier, error) {
	k.asked.Add(1)
	if err := k.fail[d]; err != nil {
		return capabilities.Verifier{}, err
	}
	return k.Keys.Verifier(ctx, d)
}

// world is an authority with its surroundings.
type world struct {
	*Authority
	keys    *countingKeys
	revoked map[cid.Cid]bool
	asked   map[cid.Cid]int // about revocation

	service, space, alice, bob, carol, mallory capabilities.Signer
}

func newWorld(t testing.TB) *world {
	w := &world{revoked: map[cid.Cid]bool{}, asked: map[cid.Cid]int{},
		service: newSigner(t, "service"), space: newSigner(t, "space"), alice: newSigner(t, "alice"), bob: newSigner(t, "bob"),
		carol: newSigner(t, "carol"), mallory: newSigner(t, "mallory")}
	now := func() time.Time { return time.Unix(noon, 0) }
	w.keys = &countingKeys{Keys: NewKeys(KeysConfig{Now: now}), fail: map[capabilities.DID]error{}}
	w.Authority = &Authority{Self: w.service.DID(), Keys: w.keys, Now: now,
		Revoked: func(_ context.Context, c cid.Cid) (bool, error) {
			w.asked[c]++
			return w.revoked[c], nil
		},
		Disagreed: func(_ context.Context, u *capabilities.UCAN, err error) {
			t.Errorf("go-ucanto disagrees about %s: %v", u.Link(), err)
		},
	}
	return w
}

// under makes the service known by a did:web.
func (w *world) under(t testing.TB, static map[capabilities.DID]capabilities.DID, web string) {
	d := mustDID(t, web)
	var err error
	if w.service, err = w.service.WithDID(d); err != nil {
		t.Fatal(err)
	}
	w.Self = d
	static[d] = w.service.KeyDID()
	w.keys.Keys = NewKeys(KeysConfig{Now: w.Now, Static: static})
}

// check expects the failure of that name, with a text that holds the rest; "" expects none.
func check(t *testing.T, err error, want string) {
	t.Helper()
	name, text, _ := strings.Cut(want, ": ")
	if want == "" {
		if err != nil {
			t.Errorf("not authorised: %v", err)
		}
		return
	}
	f := new(capabilities.Failure)
	switch {
	case err == nil:
		t.Errorf("authorised, want %s", want)
	case !errors.As(err, &f):
		t.Errorf("a fault, want %s: %v", want, err)
	case f.Name != name || !strings.Contains(f.Message, text):
		t.Errorf("got %v\nwant %s", f, want)
	default:
		if err := cbor.Valid(f.Encode()); err != nil {
			t.Errorf("the failure cannot be sent: %v", err)
		}
	}
}

func TestAuthorizeSelfIssued(t *testing.T) {
	w := newWorld(t)
	base := func() spec {
		return spec{issuer: w.space, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID())}
	}
	for _, tt := range []struct {
		name   string
		change func(s *spec)
		want   string
	}{
		{"plain", func(s *spec) {}, ""},
		{"caveats", func(s *spec) { s.caps[0].Nb = onPiece("a", "") }, ""},
		{"expires in a second", func(s *spec) { s.exp = 1 }, ""},
		{"expired", func(s *spec) { s.exp = -1 }, "Unauthorized: expired at 2027-01-15T07:59:59Z"},
		{"valid from the next second on", func(s *spec) { s.nbf = 1 }, "Unauthorized: is not valid before 2027-01-15T08:00:01Z"},
		{"wrong audience", func(s *spec) { s.audience = w.bob.DID() }, "InvalidAudience: address it to this DID"},
		{"foreign resource", func(s *spec) { s.caps = can("filecoin/offer", w.bob.DID()) }, "Unauthorized: there is no proof"},
		{"resource that is no DID", func(s *spec) { s.caps[0].With = "https://example.com/x" }, "Unauthorized: there is no proof"},
		{"resource of all", func(s *spec) { s.caps[0].With = "ucan:*" }, "Unauthorized: there is no proof"},
		{"forged", func(s *spec) { s.forged = true }, "Unauthorized: signature"},
		{"two capabilities", func(s *spec) { s.caps = append(s.caps, s.caps[0]) }, "InvocationCapabilityError: single capability"},
		{"issuer without signature", func(s *spec) { s.from = s.issuer.DID() }, "Unauthorized: signature"},
		{"issuer without key", func(s *spec) {
			s.from = mustDID(t, "did:mailto:example.com:alice")
			s.caps = can("filecoin/offer", s.from)
		}, "Unauthorized: key is not known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := base()
			tt.change(&s)
			m, u := send(t, s.sign(t))
			check(t, w.Authorize(t.Context(), m, u), tt.want)
		})
	}
	t.Run("expiry is exclusive and nbf inclusive", func(t *testing.T) {
		s := base()
		s.exp, s.nbf = 10, 5
		m, u := send(t, s.sign(t))
		now := w.Now
		defer func() { w.Now = now }()
		for offset, want := range map[int64]string{4: "Unauthorized: not valid before", 5: "", 9: "", 10: "Unauthorized: expired"} {
			w.Now = func() time.Time { return time.Unix(noon+offset, 999_999_999) }
			check(t, w.Authorize(t.Context(), m, u), want)
		}
	})
	t.Run("alias", func(t *testing.T) {
		s := base()
		s.audience = mustDID(t, "did:web:example.com")
		m, u := send(t, s.sign(t))
		check(t, w.Authorize(t.Context(), m, u), "InvalidAudience")
		w.Aliases = []capabilities.DID{s.audience}
		check(t, w.Authorize(t.Context(), m, u), "")
	})
	t.Run("revoked", func(t *testing.T) {
		m, u := send(t, base().sign(t))
		w.revoked[u.Link()] = true
		check(t, w.Authorize(t.Context(), m, u), "Unauthorized: revoked")
	})
	t.Run("one question each", func(t *testing.T) {
		s := base()
		s.nonce = "1"
		// A proof that is not needed is not looked at.
		s.proofs = []*capabilities.UCAN{spec{issuer: w.bob, audience: w.space.DID(), caps: can("*", w.bob.DID())}.sign(t)}
		m, u := send(t, s.proofs[0], s.sign(t))
		w.keys.asked.Store(0)
		check(t, w.Authorize(t.Context(), m, u), "")
		if n := w.keys.asked.Load(); n != 1 || w.asked[u.Link()] != 1 || w.asked[s.proofs[0].Link()] != 0 {
			t.Errorf("%d signatures verified, revocation asked %v", n, w.asked)
		}
	})
}

func TestAuthorizeFaults(t *testing.T) {
	w := newWorld(t)
	root := spec{issuer: w.space, audience: w.alice.DID(), caps: can("*", w.space.DID())}.sign(t)
	m, u := send(t, root, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
		proofs: []*capabilities.UCAN{root}}.sign(t))
	down := errors.New("store is down")
	for _, fails := range []cid.Cid{u.Link(), root.Link()} {
		w.Revoked = func(_ context.Context, c cid.Cid) (bool, error) {
			if c == fails {
				return false, down
			}
			return false, nil
		}
		if err := w.Authorize(t.Context(), m, u); !errors.Is(err, down) {
			t.Errorf("got %v, want the fault", err)
		}
	}
	w.Revoked = func(context.Context, cid.Cid) (bool, error) { return false, nil }
	for _, fails := range []capabilities.DID{w.alice.DID(), w.space.DID()} {
		w.keys.fail = map[capabilities.DID]error{fails: down}
		if err := w.Authorize(t.Context(), m, u); !errors.Is(err, down) {
			t.Errorf("got %v, want the fault", err)
		}
	}
	// A key that cannot be looked up does not matter where another chain is good.
	web, err := w.bob.WithDID(mustDID(t, "did:web:bob.example"))
	if err != nil {
		t.Fatal(err)
	}
	w.keys.fail = map[capabilities.DID]error{web.DID(): down}
	viaBob := spec{issuer: web, audience: w.alice.DID(), caps: can("*", w.space.DID()),
		proofs: []*capabilities.UCAN{spec{issuer: w.space, audience: web.DID(), caps: can("*", w.space.DID())}.sign(t)}}.sign(t)
	m, u = send(t, viaBob, root, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
		proofs: []*capabilities.UCAN{viaBob, root}}.sign(t))
	check(t, w.Authorize(t.Context(), m, u), "")
}

// chain is a chain of delegations from the space over n agents to the invocation, which is last: of n proofs. change
// may alter each before it is signed: position 0 is the root, n the invocation.
func (w *world) chain(t testing.TB, n int, change func(i int, s *spec)) []*capabilities.UCAN {
	t.Helper()
	var chain []*capabilities.UCAN
	issuer := w.space
	for i := range n + 1 {
		next := newSigner(t, fmt.Sprint("agent", i))
		s := spec{issuer: issuer, audience: next.DID(), caps: can("filecoin/offer", w.space.DID())}
		if i == n {
			s.audience = w.service.DID()
		}
		if i > 0 {
			s.proofs = chain[i-1:]
		}
		if change != nil {
			change(i, &s)
		}
		chain = append(chain, s.sign(t))
		issuer = next
	}
	return chain
}

func TestAuthorizeChains(t *testing.T) {
	w := newWorld(t)
	const a, b = "piece a", "piece b"
	nb := func(name string) func(*spec) { return func(s *spec) { s.caps[0].Nb = onPiece(name, "") } }
	ability := func(text string) func(*spec) { return func(s *spec) { s.caps[0].Can = text } }
	with := func(text string) func(*spec) { return func(s *spec) { s.caps[0].With = text } }
	forged := func(s *spec) { s.forged = true }
	expired := func(s *spec) { s.exp = -1 }
	early := func(s *spec) { s.nbf = 1 }
	misaligned := func(s *spec) { s.audience = w.mallory.DID() }
	by := func(who capabilities.Signer) func(*spec) { return func(s *spec) { s.issuer = who } }
	type changes map[int]func(*spec)
	for _, tt := range []struct {
		name    string
		n       int
		changes changes
		want    string
	}{
		{"one proof", 1, nil, ""},
		{"two proofs", 2, nil, ""},
		{"eight proofs", 8, nil, ""},

		{"wildcard namespace", 1, changes{0: ability("filecoin/*")}, ""},
		{"wildcard of all", 1, changes{0: ability("*")}, ""},
		{"wildcards narrowed", 3, changes{0: ability("*"), 1: ability("filecoin/*")}, ""},
		{"wildcard passed on wider than it was", 2, changes{1: ability("*")}, ""}, // what is invoked is within both
		{"other ability", 1, changes{0: ability("filecoin/info")}, "Unauthorized: filecoin/info was delegated, not filecoin/offer"},
		{"other namespace", 1, changes{0: ability("piece/*")}, "Unauthorized: piece/* was delegated"},
		{"ability widened at depth 1", 1, changes{0: ability("filecoin/info")}, "Unauthorized"},
		{"ability widened at depth 2", 2, changes{0: ability("filecoin/info"), 1: ability("*")}, "Unauthorized"},
		{"ability widened at depth 3", 3, changes{0: ability("filecoin/info"), 1: ability("*"), 2: ability("filecoin/*")}, "Unauthorized"},

		{"foreign resource delegated", 1, changes{0: with(w.bob.DID().String())}, "Unauthorized: delegated on"},
		{"foreign resource in the middle", 3, changes{1: with(w.bob.DID().String())}, "Unauthorized: delegated on"},
		{"resource by prefix", 1, changes{0: with(w.space.DID().String()[:20] + "*")}, "Unauthorized: delegated on"},
		{"all resources of the owner", 1, changes{0: with("ucan:*")}, ""},
		{"all resources passed on", 2, changes{1: with("ucan:*")}, ""},
		{"all resources of somebody else", 1, changes{0: func(s *spec) { s.issuer = w.mallory; s.caps[0].With = "ucan:*" }},
			"Unauthorized: not the owner of the resource"},

		{"caveat repeated", 1, changes{0: nb(a), 1: nb(a)}, ""},
		{"caveat added", 2, changes{1: nb(a), 2: nb(a)}, ""},
		{"caveat beside others", 1, changes{0: nb(a), 1: func(s *spec) { s.caps[0].Nb = onPiece(a, "group") }}, ""},
		{"caveat widened at depth 1", 1, changes{0: nb(a), 1: nb(b)}, `Unauthorized: delegated for one value of "piece" only`},
		{"caveat widened at depth 2", 2, changes{0: nb(a), 1: nb(b), 2: nb(b)}, `Unauthorized: delegated for one value of "piece" only`},
		{"caveat widened at depth 3", 3, changes{0: nb(a), 1: nb(b), 2: nb(b), 3: nb(b)}, `Unauthorized: delegated for one value of "piece" only`},
		{"caveat dropped by the invocation", 1, changes{0: nb(a)}, `Unauthorized: delegated for one value of "piece" only`},
		{"caveat dropped in the middle", 3, changes{0: nb(a), 3: nb(b)}, `Unauthorized: delegated for one value of "piece" only`},
		{"caveat dropped in the middle, repeated at the end", 3, changes{0: nb(a), 3: nb(a)}, ""},
		{"contradicting caveats", 2, changes{0: nb(a), 1: nb(b), 2: nb(a)}, `Unauthorized: delegated for one value of "piece" only`},

		{"root by another", 1, changes{0: by(w.mallory)}, "Unauthorized: not the owner of the resource"},
		{"root by another, deeper", 3, changes{0: by(w.mallory)}, "Unauthorized: not the owner of the resource"},
		{"middle by another", 3, changes{1: by(w.mallory)}, "Unauthorized: not to " + w.mallory.DID().String() + " who cites it"},
		{"replayed by another issuer", 1, changes{1: by(w.mallory)}, "Unauthorized: not to " + w.mallory.DID().String() + " who cites it"},

		{"root forged", 3, changes{0: forged}, "Unauthorized: signature that is not by the key of its issuer"},
		{"second forged", 3, changes{1: forged}, "Unauthorized: signature that is not by the key of its issuer"},
		{"third forged", 3, changes{2: forged}, "Unauthorized: signature that is not by the key of its issuer"},
		{"invocation forged", 3, changes{3: forged}, "Unauthorized: the invocation has a signature"},
		{"root expired", 3, changes{0: expired}, "Unauthorized: expired at"},
		{"middle expired", 3, changes{1: expired}, "Unauthorized: expired at"},
		{"last expired", 3, changes{2: expired}, "Unauthorized: expired at"},
		{"invocation expired", 3, changes{3: expired}, "Unauthorized: the invocation expired at"},
		{"root early", 3, changes{0: early}, "Unauthorized: is not valid before"},
		{"middle early", 3, changes{1: early}, "Unauthorized: is not valid before"},
		{"invocation early", 3, changes{3: early}, "Unauthorized: the invocation is not valid before"},
		{"root misaligned", 3, changes{0: misaligned}, "Unauthorized: is delegated to " + w.mallory.DID().String()},
		{"middle misaligned", 3, changes{1: misaligned}, "Unauthorized: is delegated to " + w.mallory.DID().String()},
		{"last misaligned", 3, changes{2: misaligned}, "Unauthorized: is delegated to " + w.mallory.DID().String()},
		{"for another service", 3, changes{3: misaligned}, "InvalidAudience: the invocation is for " + w.mallory.DID().String()},

		{"several capabilities", 1, changes{0: func(s *spec) {
			s.caps = append(can("filecoin/info", w.space.DID()), can("filecoin/offer", w.space.DID())...)
		}}, ""},
		{"several capabilities, none covers", 1, changes{0: func(s *spec) {
			s.caps = append(can("filecoin/info", w.space.DID()), can("filecoin/offer", w.bob.DID())...)
		}}, "Unauthorized: has 2 capabilities, none of which covers"},
		{"proof cited twice", 2, changes{2: func(s *spec) { s.proofs = append(slices.Clone(s.proofs), s.proofs...) }}, ""},
		{"text that JavaScript spells otherwise", 1, changes{0: func(s *spec) { s.nonce = "\u2028" }, 1: func(s *spec) { s.nonce = "\b" }}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain := w.chain(t, tt.n, func(i int, s *spec) {
				if change := tt.changes[i]; change != nil {
					change(s)
				}
			})
			m, u := send(t, chain...)
			check(t, w.Authorize(t.Context(), m, u), tt.want)
		})
	}

	t.Run("missing block", func(t *testing.T) {
		for missing := range 3 {
			chain := w.chain(t, 3, nil)
			m, u := send(t, slices.Delete(chain, missing, missing+1)...)
			check(t, w.Authorize(t.Context(), m, u), "Unauthorized: is not in the message")
		}
	})
	t.Run("revoked", func(t *testing.T) {
		for i := range 4 {
			chain := w.chain(t, 3, nil)
			m, u := send(t, chain...)
			w.revoked = map[cid.Cid]bool{chain[i].Link(): true}
			check(t, w.Authorize(t.Context(), m, u), "Unauthorized: was revoked")
		}
		w.revoked, w.asked = map[cid.Cid]bool{}, map[cid.Cid]int{}
		m, u := send(t, w.chain(t, 3, nil)...)
		check(t, w.Authorize(t.Context(), m, u), "")
		for _, b := range m.Blocks() {
			if w.asked[b.CID] != 1 {
				t.Errorf("asked %d times whether %s was revoked", w.asked[b.CID], b.CID)
			}
		}
	})
	t.Run("too deep", func(t *testing.T) {
		chain := w.chain(t, 9, nil)
		if _, err := trySend(chain...); !errors.Is(err, wire.ErrLimit) {
			t.Errorf("decoded: %v", err)
		}
		// A message that was decoded with other limits.
		m := new(capabilities.Message)
		for _, u := range chain {
			m.AddInvocation(u)
		}
		check(t, w.Authorize(t.Context(), m, chain[9]), "Unauthorized: longer than 8 proofs")
	})
	t.Run("too many", func(t *testing.T) {
		var proofs []*capabilities.UCAN
		m := new(capabilities.Message)
		for i := range 200 {
			p := spec{issuer: w.mallory, audience: w.alice.DID(), caps: can("*", w.space.DID()), nonce: fmt.Sprint(i)}.sign(t)
			m.AddInvocation(p)
			proofs = append(proofs, p)
		}
		u := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()), proofs: proofs}.sign(t)
		m.AddInvocation(u)
		check(t, w.Authorize(t.Context(), m, u), "Unauthorized: and 60 more") // of 64 proofs, and that there are more
	})
	t.Run("long names", func(t *testing.T) {
		// What the client sent comes back shortened, and as valid text.
		s := spec{issuer: w.alice, audience: w.service.DID(), caps: can("x/"+strings.Repeat("a", 5000), w.space.DID())}
		s.caps[0].With = "did:web:" + strings.Repeat("ä", 5000)
		m, u := send(t, s.sign(t))
		err := w.Authorize(t.Context(), m, u)
		check(t, err, "Unauthorized: there is no proof")
		if n := len(err.Error()); n > 1000 {
			t.Errorf("a text of %d bytes", n)
		}
	})
}

// TestAuthorizeTwoPaths: one path is bad, one is good, in both orders and with the fault at each depth.
func TestAuthorizeTwoPaths(t *testing.T) {
	w := newWorld(t)
	path := func(name string, spoil func(depth int, s *spec)) (top *capabilities.UCAN, all []*capabilities.UCAN) {
		middle := newSigner(t, name)
		root := spec{issuer: w.space, audience: middle.DID(), caps: can("filecoin/*", w.space.DID()), nonce: name}
		spoil(2, &root)
		all = append(all, root.sign(t))
		last := spec{issuer: middle, audience: w.alice.DID(), caps: can("*", w.space.DID()), nonce: name, proofs: all}
		spoil(1, &last)
		all = append(all, last.sign(t))
		return all[1], all
	}
	spoils := map[string]func(*spec){
		"good":      func(*spec) {},
		"forged":    func(s *spec) { s.forged = true },
		"expired":   func(s *spec) { s.exp = -1 },
		"ability":   func(s *spec) { s.caps[0].Can = "piece/*" },
		"caveat":    func(s *spec) { s.caps[0].Nb = onPiece("other", "") },
		"audience":  func(s *spec) { s.audience = w.mallory.DID() },
		"revoked":   nil,
		"no proofs": func(s *spec) { s.proofs = nil; s.issuer = w.mallory },
	}
	for name, spoil := range spoils {
		for _, depth := range []int{1, 2} {
			bad, badAll := path("bad", func(d int, s *spec) {
				if d == depth && spoil != nil {
					spoil(s)
				}
			})
			w.revoked = map[cid.Cid]bool{}
			if spoil == nil {
				w.revoked[badAll[2-depth].Link()] = true
			}
			good, goodAll := path("fine", func(int, *spec) {})
			for _, proofs := range [][]*capabilities.UCAN{{bad, good}, {good, bad}, {bad}} {
				inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()), proofs: proofs}
				m, u := send(t, append(append(slices.Clone(badAll), goodAll...), inv.sign(t))...)
				want := ""
				if len(proofs) == 1 && name != "good" {
					want = "Unauthorized"
				}
				if err := w.Authorize(t.Context(), m, u); (err != nil) != (want != "") {
					t.Errorf("%s at depth %d, %d paths: %v", name, depth, len(proofs), err)
				}
			}
		}
	}
}

// TestAuthorizeRepeated: what is cited ten thousand times is looked at once.
func TestAuthorizeRepeated(t *testing.T) {
	w := newWorld(t)
	chain := w.chain(t, 3, func(i int, s *spec) {
		if i > 0 {
			s.proofs = slices.Repeat(s.proofs[:1], 1_000)
		}
	})
	m, u := send(t, chain...)
	if n := testing.AllocsPerRun(1, func() { check(t, w.Authorize(t.Context(), m, u), "") }); n > 500_000 {
		t.Errorf("%.0f allocations", n)
	}
	if n := w.keys.asked.Load(); n != 2*4 {
		t.Errorf("%d signatures verified in two runs", n)
	}
	s := &search{Authority: w.Authority, message: m, claim: u.Capabilities[0], now: noon, tokens: map[cid.Cid]*token{}}
	if n := len(s.cited(&step{token: &token{UCAN: u}})); n != 1 {
		t.Errorf("%d proofs are cited", n)
	}
}

// TestAuthorizeJavaScriptSpelling: a JavaScript client signs some texts in another spelling than go-ucanto verifies.
func TestAuthorizeJavaScriptSpelling(t *testing.T) {
	w := newWorld(t)
	const nonce = "\b\u2028"
	for _, good := range []bool{true, false} {
		u := wire.UCAN{Issuer: w.space.DID(), Audience: w.alice.DID(), Capabilities: can("*", w.space.DID()), Nonce: nonce}
		text := func(s string) string { return string(cbor.AppendJSONText(nil, s, cbor.JavaScript)) }
		payload := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT","ucv":"0.9.1"}`)) + "." +
			base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"att":[{"can":"*","with":%q}],"aud":%q,"exp":null,"iss":%q,"nnc":%s,"prf":[]}`,
				u.Issuer, u.Audience, u.Issuer, text(nonce))))
		signer := w.space
		if !good {
			signer = w.mallory
		}
		u.Signature = signer.Sign([]byte(payload))
		b, err := u.Encode()
		if err != nil {
			t.Fatal(err)
		}
		root, err := wire.DecodeUCAN(b)
		if err != nil {
			t.Fatal(err)
		}
		m, inv := send(t, root, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
			proofs: []*capabilities.UCAN{root}}.sign(t))
		if foreignAccess(t, m, inv, w.service) == nil {
			t.Error("go-ucanto verifies it: this test shows nothing")
		}
		check(t, w.Authorize(t.Context(), m, inv), map[bool]string{true: "", false: "Unauthorized: signature"}[good])
	}
}

// TestAuthorizeShared: a proof that serves at one place and is misaligned at another is found where it serves.
func TestAuthorizeShared(t *testing.T) {
	w := newWorld(t)
	root := spec{issuer: w.space, audience: w.bob.DID(), caps: can("*", w.space.DID())}.sign(t)
	viaBob := spec{issuer: w.bob, audience: w.alice.DID(), caps: can("*", w.space.DID()), proofs: []*capabilities.UCAN{root}}.sign(t)
	m, u := send(t, root, viaBob, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
		proofs: []*capabilities.UCAN{root, viaBob, root}}.sign(t))
	check(t, w.Authorize(t.Context(), m, u), "")

	// Principals may form a circle, proofs cannot.
	toAlice := spec{issuer: w.bob, audience: w.alice.DID(), caps: can("*", w.space.DID()), nonce: "1"}.sign(t)
	toBob := spec{issuer: w.alice, audience: w.bob.DID(), caps: can("*", w.space.DID()), proofs: []*capabilities.UCAN{toAlice}}.sign(t)
	back := spec{issuer: w.bob, audience: w.alice.DID(), caps: can("*", w.space.DID()), proofs: []*capabilities.UCAN{toBob}}.sign(t)
	m, u = send(t, toAlice, toBob, back, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
		proofs: []*capabilities.UCAN{back}}.sign(t))
	check(t, w.Authorize(t.Context(), m, u), "Unauthorized: not the owner of the resource")
}

// TestAuthorizeHostileDAG: eight layers of eight proofs, each citing the whole layer below, have 8^8 paths.
func TestAuthorizeHostileDAG(t *testing.T) {
	for _, good := range []bool{false, true} {
		w := newWorld(t)
		var all, layer []*capabilities.UCAN
		issuer := w.space
		for depth := range 8 {
			next := newSigner(t, fmt.Sprint("layer", depth))
			var proofs []*capabilities.UCAN
			for i := range 8 {
				p := spec{issuer: issuer, audience: next.DID(), caps: can("*", w.space.DID()), proofs: layer, nonce: fmt.Sprint(i),
					forged: depth == 0 && (i < 7 || !good)}
				proofs = append(proofs, p.sign(t))
			}
			all, layer, issuer = append(all, proofs...), proofs, next
		}
		inv := spec{issuer: issuer, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()), proofs: layer}.sign(t)
		m, u := send(t, append(all, inv)...)
		want := ""
		if !good {
			want = "Unauthorized"
		}
		check(t, w.Authorize(t.Context(), m, u), want)
		defer func() {
			if n := testing.AllocsPerRun(1, func() { _ = w.Authorize(t.Context(), m, u) }); n > 50_000 {
				t.Errorf("%.0f allocations for 65 UCANs", n)
			}
		}()
		if n := w.keys.asked.Load(); n > 65 {
			t.Errorf("%d signatures verified for 65 UCANs", n)
		}
		for c, n := range w.asked {
			if n > 1 {
				t.Errorf("asked %d times whether %s was revoked", n, c)
			}
		}
	}
}

func TestAuthorizeSessions(t *testing.T) {
	const mailto = "did:mailto:example.com:alice"
	account := mustDID(t, mailto)
	static := map[capabilities.DID]capabilities.DID{}
	w := newWorld(t)
	w.under(t, static, "did:web:service.example")
	web := func(s capabilities.Signer, text string) capabilities.Signer {
		s, err := s.WithDID(mustDID(t, text))
		if err != nil {
			t.Fatal(err)
		}
		static[s.DID()] = s.KeyDID()
		return s
	}
	sister, stranger := web(w.carol, "did:web:sister.example"), web(w.mallory, "did:web:stranger.example")
	w.Attestors = []capabilities.DID{sister.DID()}

	attest := func(by capabilities.Signer, to capabilities.DID, of *capabilities.UCAN) spec {
		return spec{issuer: by, audience: to, caps: []wire.Capability{{Can: ucan.AttestAbility, With: by.DID().String(),
			Nb: capabilities.Encode(&ucan.Attest{Proof: of.Link()})}}}
	}
	delegation := spec{from: account, audience: w.alice.DID(), caps: can("*", account)}
	other := spec{from: account, audience: w.alice.DID(), caps: can("filecoin/*", account)}.sign(t)
	for _, tt := range []struct {
		name   string
		attest func(of *capabilities.UCAN) *spec
		want   string
	}{
		{"none", func(*capabilities.UCAN) *spec { return nil }, "Unauthorized: carries no signature: include the session"},
		{"by the service", func(of *capabilities.UCAN) *spec { s := attest(w.service, w.alice.DID(), of); return &s }, ""},
		{"by an attestor", func(of *capabilities.UCAN) *spec { s := attest(sister, w.alice.DID(), of); return &s }, ""},
		{"by a stranger", func(of *capabilities.UCAN) *spec { s := attest(stranger, w.alice.DID(), of); return &s }, "Unauthorized: carries no signature"},
		{"by a stranger in the name of the service", func(of *capabilities.UCAN) *spec {
			s := attest(stranger, w.alice.DID(), of)
			s.caps[0].With = w.service.DID().String()
			return &s
		}, "Unauthorized: carries no signature"},
		{"by an attestor in the name of the service", func(of *capabilities.UCAN) *spec {
			s := attest(sister, w.alice.DID(), of)
			s.caps[0].With = w.service.DID().String()
			return &s
		}, "Unauthorized: carries no signature"},
		{"forged", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.forged = true
			return &s
		}, "Unauthorized: attestation"},
		{"by the key of a stranger", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.issuer, _ = w.bob.WithDID(w.service.DID())
			return &s
		}, "Unauthorized: attestation"},
		{"to somebody else", func(of *capabilities.UCAN) *spec { s := attest(w.service, w.bob.DID(), of); return &s }, "Unauthorized: carries no signature"},
		{"of another delegation", func(*capabilities.UCAN) *spec { s := attest(w.service, w.alice.DID(), other); return &s }, "Unauthorized: carries no signature"},
		{"expired", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.exp = -1
			return &s
		}, "Unauthorized: expired"},
		{"early", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.nbf = 1
			return &s
		}, "Unauthorized: not valid before"},
		{"of no delegation", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.caps[0].Nb = nil
			return &s
		}, "Unauthorized: carries no signature"},
		{"with something else", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.caps[0].Nb = cbor.AppendNull(cbor.AppendText(cbor.AppendMap(nil, 2), "a"))
			s.caps[0].Nb = cbor.AppendLink(cbor.AppendText(s.caps[0].Nb, "proof"), of.Link())
			return &s
		}, "Unauthorized: carries no signature"},
		{"with another ability", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.caps[0].Can = "ucan/*"
			return &s
		}, "Unauthorized: carries no signature"},
		{"with two capabilities", func(of *capabilities.UCAN) *spec {
			s := attest(w.service, w.alice.DID(), of)
			s.caps = append(s.caps, s.caps[0])
			return &s
		}, "Unauthorized: carries no signature"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := delegation.sign(t)
			ucans := []*capabilities.UCAN{root}
			if a := tt.attest(root); a != nil {
				ucans = append(ucans, a.sign(t))
			}
			for _, reverse := range []bool{false, true} {
				proofs := slices.Clone(ucans)
				if reverse {
					slices.Reverse(proofs)
				}
				inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", account), proofs: proofs}.sign(t)
				m, u := send(t, append(slices.Clone(ucans), inv)...)
				check(t, w.Authorize(t.Context(), m, u), tt.want)
			}
		})
	}

	t.Run("deeper", func(t *testing.T) {
		// The account delegates to bob, in a session of bob's; he passes it on to alice.
		s := delegation
		s.audience = w.bob.DID()
		root := s.sign(t)
		session := attest(w.service, w.bob.DID(), root).sign(t)
		passed := spec{issuer: w.bob, audience: w.alice.DID(), caps: can("filecoin/*", account), proofs: []*capabilities.UCAN{root, session}}.sign(t)
		inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", account), proofs: []*capabilities.UCAN{passed}}.sign(t)
		m, u := send(t, root, session, passed, inv)
		check(t, w.Authorize(t.Context(), m, u), "")
		for _, b := range m.Blocks() {
			w.revoked = map[cid.Cid]bool{b.CID: true}
			check(t, w.Authorize(t.Context(), m, u), "Unauthorized: was revoked")
		}
		w.revoked = map[cid.Cid]bool{}

		// A session stands beside what it attests, not elsewhere.
		passed = spec{issuer: w.bob, audience: w.alice.DID(), caps: can("filecoin/*", account), proofs: []*capabilities.UCAN{root}}.sign(t)
		inv = spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", account), proofs: []*capabilities.UCAN{passed, session}}.sign(t)
		m, u = send(t, root, session, passed, inv)
		check(t, w.Authorize(t.Context(), m, u), "Unauthorized: carries no signature")
	})
	t.Run("account in the middle", func(t *testing.T) {
		root := spec{issuer: w.space, audience: account, caps: can("*", w.space.DID())}.sign(t)
		passed := spec{from: account, audience: w.alice.DID(), caps: can("*", mustDID(t, "did:key:"+w.space.DID().String()[8:])),
			proofs: []*capabilities.UCAN{root}}
		passed.caps[0].With = "ucan:*"
		login := passed.sign(t)
		session := attest(w.service, w.alice.DID(), login).sign(t)
		inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
			proofs: []*capabilities.UCAN{login, session}}.sign(t)
		m, u := send(t, root, login, session, inv)
		check(t, w.Authorize(t.Context(), m, u), "")
	})
	t.Run("issuer with a key of its own", func(t *testing.T) {
		for _, forged := range []bool{false, true} {
			root := spec{issuer: stranger, audience: w.alice.DID(), caps: can("*", stranger.DID()), forged: forged}.sign(t)
			// An attestation that does not hold does no harm.
			vain := attest(w.service, w.alice.DID(), root)
			vain.forged = true
			inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", stranger.DID()),
				proofs: []*capabilities.UCAN{root, vain.sign(t)}}.sign(t)
			m, u := send(t, root, vain.sign(t), inv)
			check(t, w.Authorize(t.Context(), m, u), map[bool]string{false: "", true: "Unauthorized: signature"}[forged])
		}
	})
	t.Run("issued by the service", func(t *testing.T) {
		for _, forged := range []bool{false, true} {
			root := spec{issuer: w.service, audience: w.alice.DID(), caps: can("*", w.service.DID()), forged: forged}.sign(t)
			// Nobody else vouches for what the service is said to have issued.
			session := attest(sister, w.alice.DID(), root).sign(t)
			inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.service.DID()),
				proofs: []*capabilities.UCAN{root, session}}.sign(t)
			m, u := send(t, root, session, inv)
			check(t, w.Authorize(t.Context(), m, u), map[bool]string{false: "", true: "Unauthorized: signature"}[forged])
		}
	})
	t.Run("invoked by a did:web", func(t *testing.T) {
		m, u := send(t, spec{issuer: sister, audience: w.service.DID(), caps: can("filecoin/offer", sister.DID())}.sign(t))
		check(t, w.Authorize(t.Context(), m, u), "")
		root := spec{issuer: w.space, audience: sister.DID(), caps: can("*", w.space.DID())}.sign(t)
		m, u = send(t, root, spec{issuer: sister, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()), proofs: []*capabilities.UCAN{root}}.sign(t))
		check(t, w.Authorize(t.Context(), m, u), "")
	})
	t.Run("attesting itself is delegated", func(t *testing.T) {
		// An invocation of ucan/attest is judged like any other.
		root := spec{issuer: w.space, audience: w.alice.DID(), caps: can("ucan/attest", w.space.DID())}
		root.caps[0].Nb = onPiece("a", "")
		for _, nb := range [][]byte{onPiece("a", ""), onPiece("b", "")} {
			r := root.sign(t)
			inv := spec{issuer: w.alice, audience: w.service.DID(), caps: can("ucan/attest", w.space.DID()), proofs: []*capabilities.UCAN{r}}
			inv.caps[0].Nb = nb
			m, u := send(t, r, inv.sign(t))
			check(t, w.Authorize(t.Context(), m, u), map[bool]string{true: "", false: "Unauthorized"}[bytes.Equal(nb, root.caps[0].Nb)])
		}
	})
}

// TestAuthorizeForeignKeys: keys that the format knows and nobody can verify with. go-ucanto panics when it prints
// such a DID.
func TestAuthorizeForeignKeys(t *testing.T) {
	w := newWorld(t)
	point := append([]byte{2}, bytes.Repeat([]byte{7}, 32)...)
	for _, code := range [][]byte{{0xe7, 0x01}, {0x80, 0x24}} {
		foreign, err := wire.DecodeDID(append(code, point...))
		if err != nil {
			t.Fatal(err)
		}
		if d, err := did.Decode(foreign.Bytes()); err == nil || !panics(func() { _ = d.String() }) {
			t.Fatalf("go-ucanto decodes %s now", foreign)
		}
		es := spec{from: foreign, audience: w.alice.DID(), caps: can("*", foreign)}.sign(t)
		for _, tt := range [][]*capabilities.UCAN{
			{spec{from: foreign, audience: w.service.DID(), caps: can("filecoin/offer", foreign)}.sign(t)},
			{es, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", foreign), proofs: []*capabilities.UCAN{es}}.sign(t)},
		} {
			m, u := send(t, tt...)
			check(t, w.Authorize(t.Context(), m, u), "Unauthorized")
		}
		// As the audience of a proof beside the good one.
		stray := spec{issuer: w.space, audience: foreign, caps: can("*", w.space.DID())}.sign(t)
		root := spec{issuer: w.space, audience: w.alice.DID(), caps: can("*", w.space.DID())}.sign(t)
		m, u := send(t, stray, root, spec{issuer: w.alice, audience: w.service.DID(), caps: can("filecoin/offer", w.space.DID()),
			proofs: []*capabilities.UCAN{stray, root}}.sign(t))
		check(t, w.Authorize(t.Context(), m, u), "")
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// TestKnownPanics: three inputs end a process that hands them to go-ucanto, two of them in goroutines where nothing
// can be recovered. None passes the decoder; that each still panics over there is shown too.
func TestKnownPanics(t *testing.T) {
	w := newWorld(t)
	good := spec{issuer: w.space, audience: w.alice.DID(), caps: can("*", w.space.DID())}.sign(t)
	raw := func(s, iss []byte, caps int) capabilities.Block {
		b := cbor.AppendBytes(cbor.AppendText(cbor.AppendMap(nil, 7), "s"), s)
		b = cbor.AppendText(cbor.AppendText(b, "v"), wire.Version)
		b = cbor.AppendArray(cbor.AppendText(b, "att"), caps)
		for range caps {
			b = cbor.AppendText(cbor.AppendText(cbor.AppendMap(b, 2), "can"), "*")
			b = cbor.AppendText(cbor.AppendText(b, "with"), w.space.DID().String())
		}
		b = cbor.AppendBytes(cbor.AppendText(b, "aud"), w.alice.DID().Bytes())
		b = cbor.AppendNull(cbor.AppendText(b, "exp"))
		b = cbor.AppendBytes(cbor.AppendText(b, "iss"), iss)
		return wire.EncodeBlock(cbor.AppendArray(cbor.AppendText(b, "prf"), 0))
	}
	if _, err := wire.DecodeUCAN(raw(good.Signature, good.Issuer.Bytes(), 1)); err != nil {
		t.Fatalf("the pattern itself is malformed: %v", err)
	}
	for _, tt := range []struct {
		name  string
		block capabilities.Block
		there func(d delegation.Delegation)
	}{
		{"signature of a prefix", raw([]byte{0xed, 0xa1, 0x03}, good.Issuer.Bytes(), 1), func(d delegation.Delegation) { d.Signature().Raw() }},
		{"issuer that is no DID", raw(good.Signature, []byte{1, 2, 3}, 1), func(d delegation.Delegation) { _ = d.Issuer().DID().String() }},
		{"no capability", raw(good.Signature, good.Issuer.Bytes(), 0), func(d delegation.Delegation) { _ = d.Capabilities()[0] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := decodeForeign(tt.block)
			if err != nil || !panics(func() { tt.there(d) }) {
				t.Errorf("go-ucanto does not panic any more: %v", err)
			}
			for _, asProof := range []bool{true, false} {
				m := new(capabilities.Message)
				if asProof {
					u, err := wire.SignUCAN(w.alice, wire.UCAN{Audience: w.service.DID(), Capabilities: can("filecoin/offer", w.space.DID()),
						Proofs: []cid.Cid{tt.block.CID}})
					if err != nil {
						t.Fatal(err)
					}
					m.AddInvocation(u, tt.block)
				} else {
					// The last block of such a message is the root, {execute: [the block]}.
					b := cbor.AppendText(cbor.AppendMap(nil, 1), "ucanto/message@7.0.0")
					b = cbor.AppendArray(cbor.AppendText(cbor.AppendMap(b, 1), "execute"), 1)
					root := wire.EncodeBlock(cbor.AppendLink(b, tt.block.CID))
					car := wire.AppendCAR(nil, []cid.Cid{root.CID}, []capabilities.Block{tt.block, root})
					if _, err := wire.DecodeMessage(car, wire.Limits{}); !errors.Is(err, wire.ErrMalformed) {
						t.Errorf("invocation decoded: %v", err)
					}
					continue
				}
				if _, err := wire.DecodeMessage(m.Encode(), wire.Limits{}); !errors.Is(err, wire.ErrMalformed) {
					t.Errorf("proof decoded: %v", err)
				}
			}
		})
	}
}

// TestJudge: go-ucanto refuses by itself what the search should not have let through.
func TestJudge(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name   string
		change func(i int, s *spec)
		want   string
	}{
		{"good", func(int, *spec) {}, ""},
		{"misaligned", func(i int, s *spec) {
			if i == 1 {
				s.audience = w.mallory.DID()
			}
		}, "Delegation audience is"},
		{"expired", func(i int, s *spec) {
			if i == 0 {
				s.exp = -1
			}
		}, "has expired"},
		{"early", func(i int, s *spec) {
			if i == 0 {
				s.nbf = 1
			}
		}, "not valid before"},
		{"forged", func(i int, s *spec) { s.forged = i == 1 }, "does not verify by go-ucanto"},
		{"root of another", func(i int, s *spec) {
			if i == 0 {
				s.issuer = w.mallory
			}
		}, "can not be (self) issued by"},
		{"other ability", func(i int, s *spec) {
			if i == 0 {
				s.caps[0].Can = "piece/offer"
			}
		}, "unknown capabilities"},
		{"other resource", func(i int, s *spec) {
			if i == 0 {
				s.caps[0].With = w.bob.DID().String()
			}
		}, "is not contained by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := w.judgeChain(t, w.chain(t, 2, tt.change)); (err == nil) != (tt.want == "") ||
				err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
	t.Run("a panic is an error", func(t *testing.T) {
		chain := w.chain(t, 2, nil)
		foreign, err := wire.DecodeDID(append([]byte{0xe7, 0x01, 2}, make([]byte, 32)...))
		if err != nil {
			t.Fatal(err)
		}
		root := *chain[0]
		root.Issuer = foreign
		b, err := root.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if chain[0], err = wire.DecodeUCAN(b); err != nil {
			t.Fatal(err)
		}
		if err := w.judgeChain(t, chain); err == nil || !strings.Contains(err.Error(), "go-ucanto panicked") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("what was not asked about counts as revoked", func(t *testing.T) {
		chain := w.chain(t, 1, nil)
		c := &court{evidence: map[string]*exhibit{}}
		d, err := decodeForeign(chain[0].Block())
		if err != nil {
			t.Fatal(err)
		}
		auth := validator.ConvertUnknownAuthorization(validator.NewAuthorization[any](
			validator.NewMatch[any](validator.NewSource(d.Capabilities()[0], d), d.Capabilities()[0], nil), nil, nil))
		if c.validateAuthorization(t.Context(), auth) == nil {
			t.Error("not revoked")
		}
		c.evidence[d.Link().String()] = &exhibit{Delegation: d}
		if r := c.validateAuthorization(t.Context(), auth); r != nil {
			t.Errorf("revoked: %v", r)
		}
	})
}

// TestAuthorizeDisagreement: both validators have to agree. go-ucanto cannot write integers beyond 2^63-1 as JSON.
func TestAuthorizeDisagreement(t *testing.T) {
	w := newWorld(t)
	var told error
	w.Disagreed = func(_ context.Context, _ *capabilities.UCAN, err error) { told = err }
	nb := cbor.AppendUint(cbor.AppendText(cbor.AppendMap(nil, 1), "n"), 1<<63)
	m, u := send(t, w.chain(t, 1, func(_ int, s *spec) { s.caps[0].Nb = nb })...)
	check(t, w.Authorize(t.Context(), m, u), "Unauthorized: refused by the other")
	if told == nil {
		t.Error("nobody was told")
	}
	w.Disagreed = nil
	check(t, w.Authorize(t.Context(), m, u), "Unauthorized: refused by the other")
}

// judgeChain has go-ucanto decide about a chain that nobody has looked at before.
func (w *world) judgeChain(t *testing.T, chain []*capabilities.UCAN) error {
	s := &search{Authority: w.Authority, claim: chain[len(chain)-1].Capabilities[0], now: noon}
	var last *step
	for _, u := range slices.Backward(chain) {
		v, _ := wire.VerifierOf(u.Issuer) // the zero Verifier accepts nothing
		last = &step{token: &token{UCAN: u, verifier: v}, citer: last}
	}
	return s.judge(t.Context(), last)
}

// foreignAccess is the verdict of go-ucanto alone, on the whole message.
func foreignAccess(t testing.TB, m *capabilities.Message, u *capabilities.UCAN, self capabilities.Signer) error {
	t.Helper()
	var blocks []block.Block
	for _, b := range m.Blocks() {
		blocks = append(blocks, block.NewBlock(cidlink.Link{Cid: b.CID}, b.Bytes))
	}
	reader, err := blockstore.NewBlockReader(blockstore.WithBlocks(blocks))
	if err != nil {
		t.Fatal(err)
	}
	inv, err := delegation.NewDelegationView(cidlink.Link{Cid: u.Link()}, reader)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := edverifier.Parse(self.DID().String())
	if err != nil {
		t.Fatal(err)
	}
	clock := &court{search: &search{now: noon}}
	parser := validator.NewCapability(u.Capabilities[0].Can, asIs[string]{}, asIs[any]{}, validator.DefaultDerives[any])
	vctx := validator.NewValidationContext(authority, parser, validator.IsSelfIssued[any],
		func(context.Context, validator.Authorization[any]) validator.Revoked { return nil },
		validator.ProofUnavailable, edverifier.Parse, validator.FailDIDKeyResolution, clock.validateTimeBounds)
	if _, unauthorized := validator.Access(t.Context(), inv, vctx); unauthorized != nil {
		return unauthorized
	}
	return nil
}

// dice are random choices, from a generator or from a fuzzer.
type dice struct{ next func() int }

func (d dice) roll(n int) int { return d.next() % n }

// randomDAG makes up to seven proofs and an invocation that cites them, likely enough to hold a good chain. There are
// no caveats.
func randomDAG(t testing.TB, w *world, d dice) []*capabilities.UCAN {
	people := []capabilities.Signer{w.space, w.alice, w.bob, w.carol}
	abilities := []string{"filecoin/offer", "filecoin/offer", "filecoin/*", "*", "filecoin/info", "f/*", "ucan/attest"}
	resources := []string{w.space.DID().String(), "ucan:*", w.bob.DID().String()}
	var all []*capabilities.UCAN
	n := 1 + d.roll(7)
	for i := range n {
		last := i == n-1
		s := spec{issuer: people[d.roll(4)], audience: people[d.roll(4)].DID(), nonce: fmt.Sprint(i)}
		if i == 0 && d.roll(4) > 0 {
			s.issuer = w.space
		}
		for range 1 + d.roll(5)/4 {
			s.caps = append(s.caps, wire.Capability{Can: abilities[d.roll(len(abilities))], With: resources[max(0, d.roll(6)-3)]})
		}
		if last {
			s.audience, s.caps = w.service.DID(), can("filecoin/offer", w.space.DID())
		}
		for _, p := range all {
			if d.roll(3) > 0 {
				s.proofs = append(s.proofs, p)
			}
		}
		if len(all) > 0 && d.roll(4) > 0 { // aligned with one of those before
			p := all[d.roll(len(all))]
			for _, who := range people {
				if who.DID() == p.Audience {
					s.issuer, s.proofs = who, append(s.proofs, p)
				}
			}
		}
		s.forged = d.roll(16) == 0
		s.exp = []int64{0, 0, 0, 0, 0, 0, 60, -1}[d.roll(8)]
		s.nbf = []int64{0, 0, 0, 0, 0, 0, -60, 1}[d.roll(8)]
		all = append(all, s.sign(t))
	}
	return all
}

// compareVerdicts has both validators decide about a message, in which a block may be missing.
func compareVerdicts(t testing.TB, w *world, d dice) (authorised bool) {
	all := randomDAG(t, w, d)
	if missing := d.roll(8 * len(all)); missing < len(all)-1 {
		all = slices.Delete(all, missing, missing+1)
	}
	m, u := send(t, all...)
	w.keys.asked.Store(0)
	ours, theirs := w.Authorize(t.Context(), m, u), foreignAccess(t, m, u, w.service)
	if (ours == nil) != (theirs == nil) {
		t.Fatalf("here: %v\nby go-ucanto: %v", ours, theirs)
	}
	if n := w.keys.asked.Load(); n > int64(len(all)) {
		t.Fatalf("%d signatures verified of %d UCANs", n, len(all))
	}
	return ours == nil
}

// TestAuthorizeAsGoUcanto: on chains without caveats the verdict is that of go-ucanto's validator. With caveats it is
// not and must not be: there the delegated caveats are replaced by the claimed ones before they are compared, so that
// a delegation for one piece authorises any other. See TestCaveatsBeyondGoUcanto.
func TestAuthorizeAsGoUcanto(t *testing.T) {
	w := newWorld(t)
	verdicts := map[bool]int{}
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 7))
		verdicts[compareVerdicts(t, w, dice{func() int { return r.IntN(1 << 20) }})]++
	}
	t.Logf("authorised %d, refused %d", verdicts[true], verdicts[false])
	if verdicts[true] < 200 || verdicts[false] < 200 {
		t.Error("too one-sided to show anything")
	}
}

func FuzzAuthorize(f *testing.F) {
	w := newWorld(f)
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 9))
		b := make([]byte, 100)
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		compareVerdicts(t, w, dice{func() int {
			if len(b) == 0 {
				return 1
			}
			n := int(b[0])
			b = b[1:]
			return n
		}})
	})
}

func TestCaveatsBeyondGoUcanto(t *testing.T) {
	w := newWorld(t)
	chain := w.chain(t, 1, func(i int, s *spec) { s.caps[0].Nb = onPiece([]string{"a", "b"}[i], "") })
	m, u := send(t, chain...)
	if err := foreignAccess(t, m, u, w.service); err != nil {
		t.Errorf("go-ucanto enforces caveats now: %v", err)
	}
	check(t, w.Authorize(t.Context(), m, u), `Unauthorized: delegated for one value of "piece" only`)
}

// TestAuthorizeConcurrently is for the race detector: a message is shared by all that it invokes.
func TestAuthorizeConcurrently(t *testing.T) {
	w := newWorld(t)
	w.Revoked = func(context.Context, cid.Cid) (bool, error) { return false, nil }
	m, u := send(t, w.chain(t, 3, nil)...)
	errs := make(chan error)
	for range 8 {
		go func() { errs <- w.Authorize(context.Background(), m, u) }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkAuthorize(b *testing.B) {
	w := newWorld(b)
	w.Revoked = func(context.Context, cid.Cid) (bool, error) { return false, nil }
	for _, n := range []int{0, 1, 2, 8} {
		b.Run(fmt.Sprint("proofs=", n), func(b *testing.B) {
			m, u := send(b, w.chain(b, n, func(i int, s *spec) { s.caps[0].Nb = onPiece("a", "group") })...)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Authorize(b.Context(), m, u); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
