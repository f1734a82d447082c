package rolestest

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	dealcap "github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/wire"
)

// subject is one capability under attack.
type subject struct {
	can, role string
	// owner is the principal that the capability is invoked on, invoker who is delegated to invoke it.
	owner, invoker capabilities.Signer
	nb, other      capabilities.Caveats // what is asked for, and something else that could be
	attach         []capabilities.Block
	// delegated is how an authorised invocation by the invoker ends, stranger one that somebody else makes on his own DID with the same caveats.
	delegated, stranger string
	// good is a request that has been answered before, and has to be answered alike for ever.
	good, answer []byte
}

// mallory is nobody's friend.
func mallory() capabilities.Signer { return TestKey(66) }

// dealt is a site on which one offer went all the way to a deal, and the capabilities of its roles.
func dealt(t testing.TB) (*site, Offered, []*subject) {
	t.Helper()
	n := New(t, Options{Seed: 101})
	o := n.Offer("storefront", n.Payload(600_000))
	if !n.Run(3*day, n.Concluded(o)) {
		t.Fatal("not concluded")
	}
	s := guarded(t, n).listen()
	// The tasks of the chain, as their roles stored them.
	chain := map[string]capabilities.Task{}
	for _, step := range n.Chain(o).Steps() {
		m, err := n.Conn("storefront").Receipt(t.Context(), step.Task)
		if err != nil {
			t.Fatal(err)
		}
		chain[step.Ability], _ = capabilities.FindTask(m, step.Task)
	}
	read := func(can string, into capabilities.Struct) {
		if err := chain[can].Caveats(into); err != nil {
			t.Fatal(err)
		}
	}
	signer := func(role string) capabilities.Signer { return n.Roles[role].Signer }
	var offer filecoin.Offer
	var pieceOffer piececap.Offer
	var aggregateOffer aggregatecap.Offer
	read(filecoin.OfferAbility, &offer)
	read(piececap.OfferAbility, &pieceOffer)
	read(aggregatecap.OfferAbility, &aggregateOffer)
	other, err := piece.Sum(n.Payload(600_000))
	if err != nil {
		t.Fatal(err)
	}
	read2 := func(can string) []byte { return message([]*capabilities.UCAN{chain[can].UCAN}, chain[can].Proofs...) }

	list := aggregatecap.Pieces([]piece.Link{offer.Piece})
	if !list.CID.Equals(aggregateOffer.Pieces) {
		t.Fatal("the aggregate has other pieces")
	}
	space, agent, x := TestKey(50), TestKey(51), TestKey(52)
	unknown := s.sign(token{issuer: x, audience: mallory().DID(), caps: []wire.Capability{{Can: "x/y", With: x.DID().String()}}})
	var pushed []capabilities.Block
	var receipts []cid.Cid
	for _, out := range []byte{1, 2} {
		r, err := wire.SignReceipt(mallory(), wire.Receipt{Ran: unknown.Link(), Out: wire.Result{OK: []byte{out}}})
		if err != nil {
			t.Fatal(err)
		}
		pushed, receipts = append(pushed, r.Block()), append(receipts, r.Link())
	}
	var grants []*capabilities.UCAN
	for _, nonce := range []string{"1", "2"} {
		grants = append(grants, s.sign(token{issuer: space, audience: x.DID(), nonce: nonce, caps: []wire.Capability{{Can: "x/y", With: space.DID().String()}}}))
	}
	const unsupported = capabilities.UnsupportedCapability
	submit, accept := filecoin.Submit{Content: offer.Content, Piece: offer.Piece}, filecoin.Accept{Content: offer.Content, Piece: offer.Piece}
	all := []*subject{
		{can: filecoin.OfferAbility, role: "storefront", owner: space, invoker: agent, nb: &filecoin.Offer{Content: offer.Content, Piece: offer.Piece},
			other: &filecoin.Offer{Content: offer.Content, Piece: other}, delegated: "ok", stranger: "ok"},
		{can: filecoin.SubmitAbility, role: "storefront", owner: signer("storefront"), invoker: x, nb: &submit,
			other: &filecoin.Submit{Content: offer.Content, Piece: other}, delegated: unsupported, stranger: unsupported, good: read2(filecoin.SubmitAbility)},
		{can: filecoin.AcceptAbility, role: "storefront", owner: signer("storefront"), invoker: x, nb: &accept,
			other: &filecoin.Accept{Content: offer.Content, Piece: other}, delegated: unsupported, stranger: unsupported, good: read2(filecoin.AcceptAbility)},
		{can: filecoin.InfoAbility, role: "storefront", owner: space, invoker: agent, nb: &filecoin.Info{Piece: offer.Piece},
			other: &filecoin.Info{Piece: other}, delegated: "ok", stranger: "ok"},
		{can: piececap.OfferAbility, role: "aggregator", owner: signer("aggregator"), invoker: signer("storefront"), nb: &pieceOffer,
			other: &piececap.Offer{Piece: other, Group: pieceOffer.Group}, delegated: "ok", stranger: capabilities.Unauthorized, good: read2(piececap.OfferAbility)},
		{can: piececap.AcceptAbility, role: "aggregator", owner: signer("aggregator"), invoker: x,
			nb: &piececap.Accept{Piece: offer.Piece, Group: pieceOffer.Group}, other: &piececap.Accept{Piece: other, Group: pieceOffer.Group},
			delegated: unsupported, stranger: unsupported, good: read2(piececap.AcceptAbility)},
		{can: aggregatecap.OfferAbility, role: "dealer", owner: signer("dealer"), invoker: signer("aggregator"), nb: &aggregateOffer,
			other: &aggregatecap.Offer{Aggregate: other, Pieces: list.CID}, attach: []capabilities.Block{list},
			delegated: "ok", stranger: capabilities.Unauthorized, good: read2(aggregatecap.OfferAbility)},
		{can: aggregatecap.AcceptAbility, role: "dealer", owner: signer("dealer"), invoker: x,
			nb:    &aggregatecap.Accept{Aggregate: aggregateOffer.Aggregate, Pieces: aggregateOffer.Pieces},
			other: &aggregatecap.Accept{Aggregate: other, Pieces: aggregateOffer.Pieces}, delegated: unsupported, stranger: unsupported,
			good: read2(aggregatecap.AcceptAbility)},
		{can: dealcap.InfoAbility, role: "dealtracker", owner: space, invoker: agent, nb: &dealcap.Info{Piece: aggregateOffer.Aggregate},
			other: &dealcap.Info{Piece: other}, delegated: "ok", stranger: "ok"},
		{can: computecap.PieceCIDAbility, role: "compute", owner: signer("compute"), invoker: signer("storefront"),
			nb: &computecap.PieceCID{Content: offer.Content}, other: &computecap.PieceCID{Content: n.World.Put([]byte("other"))},
			delegated: capabilities.ContentNotFound, stranger: unsupported, good: read2(computecap.PieceCIDAbility)},
		{can: ucan.ConcludeAbility, role: "storefront", owner: space, invoker: agent, nb: &ucan.Conclude{Receipt: receipts[0]},
			other: &ucan.Conclude{Receipt: receipts[1]}, attach: pushed, delegated: "ok", stranger: "ok"},
		{can: ucan.RevokeAbility, role: "storefront", owner: space, invoker: agent, nb: &ucan.Revoke{UCAN: grants[0].Link()},
			other:  &ucan.Revoke{UCAN: grants[1].Link()},
			attach: []capabilities.Block{grants[0].Block(), grants[1].Block()}, delegated: "ok", stranger: roles.UnauthorizedRevocation},
	}
	for _, c := range all {
		var task cid.Cid
		if c.good == nil {
			links := s.chain(c, 1, nil)
			c.good, task = message(links, c.attach...), links[1].Link()
		} else {
			m, err := wire.DecodeMessage(c.good, wire.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			task = m.Invocations()[0].Link()
		}
		a := s.post(c.role, c.good)
		if got := a.outcome(t, task, signer(c.role)); got != "ok" {
			t.Fatalf("a good %s: %s", c.can, got)
		}
		c.answer = a.body
	}
	return s, o, all
}

// chain is a chain of n proofs from the owner of a subject to its invoker, and the invocation last; change may alter each before it is signed.
func (s *site) chain(c *subject, n int, change func(i int, k *token)) []*capabilities.UCAN {
	s.t.Helper()
	var chain []*capabilities.UCAN
	issuer := c.owner
	for i := range n + 1 {
		next := TestKey(byte(200 + i))
		if i == n-1 {
			next = c.invoker
		}
		k := token{issuer: issuer, audience: next.DID(), caps: []wire.Capability{{Can: c.can, With: c.owner.DID().String()}}}
		if i == n {
			k.audience = s.Roles[c.role].Signer.DID()
			k.caps[0].Nb = capabilities.Encode(c.nb)
		}
		if i > 0 {
			k.proofs = chain[i-1:]
		}
		if change != nil {
			change(i, &k)
		}
		chain = append(chain, s.sign(k))
		issuer = next
	}
	return chain
}

// revoke has the issuer of a UCAN revoke it at a role.
func (s *site) revoke(t testing.TB, role string, by capabilities.Signer, u *capabilities.UCAN) {
	t.Helper()
	r := s.Roles[role].Signer
	task, err := capabilities.Invoke(by, r.DID(), by.DID().String(), &ucan.Revoke{UCAN: u.Link()}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.post(role, message([]*capabilities.UCAN{task.UCAN}, u.Block())).outcome(t, task.Link(), r); got != "ok" {
		t.Fatalf("revoking: %s", got)
	}
}

// TestAuthorisation attacks every capability in every way in which authority can be missing. Whatever is refused leaves nothing behind, and the
// next request is answered as ever.
func TestAuthorisation(t *testing.T) {
	s, o, subjects := dealt(t)
	const unauthorised = capabilities.Unauthorized + ": "
	on := func(at int, do func(k *token)) func(int, *token) {
		return func(i int, k *token) {
			if i == at {
				do(k)
			}
		}
	}
	attacks := []struct {
		name   string
		proofs int
		change func(c *subject) func(i int, k *token)
		drop   bool // leave out the block of the first proof
		revoke int  // position of the UCAN that is revoked before, plus one
		want   string
		text   string
	}{
		{name: "wrong audience", proofs: 1, want: capabilities.InvalidAudience + ": ", text: mallory().DID().String(),
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.audience = mallory().DID() }) }},
		{name: "wrong issuer", proofs: 1, want: unauthorised, text: "not to " + mallory().DID().String() + " who cites it",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.issuer = mallory() }) }},
		{name: "foreign resource", proofs: 1, want: unauthorised, text: "delegated on",
			change: func(*subject) func(int, *token) {
				return on(1, func(k *token) { k.caps[0].With = TestKey(67).DID().String() })
			}},
		{name: "foreign resource delegated", proofs: 1, want: unauthorised, text: "delegated on",
			change: func(*subject) func(int, *token) {
				return on(0, func(k *token) { k.caps[0].With = TestKey(67).DID().String() })
			}},
		{name: "delegated by another", proofs: 1, want: unauthorised, text: "not the owner of the resource",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.issuer = mallory() }) }},
		{name: "another ability delegated", proofs: 1, want: unauthorised, text: "was delegated, not",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.caps[0].Can = "x/*" }) }},
		{name: "expired", proofs: 1, want: unauthorised, text: "the invocation expired",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.exp = -1 }) }},
		{name: "proof expired", proofs: 1, want: unauthorised, text: "expired at",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.exp = -1 }) }},
		{name: "not yet valid", proofs: 1, want: unauthorised, text: "the invocation is not valid before",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.nbf = 1 }) }},
		{name: "proof not yet valid", proofs: 1, want: unauthorised, text: "is not valid before",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.nbf = 1 }) }},
		{name: "no proof", proofs: 1, want: unauthorised, text: "there is no proof",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.proofs = nil }) }},
		{name: "proof not sent along", proofs: 1, drop: true, want: unauthorised, text: "is not in the message"},
		{name: "invocation revoked", proofs: 1, revoke: 2, want: unauthorised, text: "the invocation was revoked"},
		{name: "proof revoked", proofs: 1, revoke: 1, want: unauthorised, text: "was revoked"},
		{name: "proof revoked at depth 2", proofs: 2, revoke: 1, want: unauthorised, text: "was revoked"},
		{name: "caveat widened", proofs: 1, want: unauthorised, text: "delegated for one value of",
			change: func(c *subject) func(int, *token) {
				return on(0, func(k *token) { k.caps[0].Nb = capabilities.Encode(c.other) })
			}},
		{name: "caveat widened at depth 2", proofs: 2, want: unauthorised, text: "delegated for one value of",
			change: func(c *subject) func(int, *token) {
				return on(0, func(k *token) { k.caps[0].Nb = capabilities.Encode(c.other) })
			}},
		{name: "caveat widened on the way", proofs: 2, want: unauthorised, text: "delegated for one value of",
			change: func(c *subject) func(int, *token) {
				return func(i int, k *token) {
					if i < 2 {
						k.caps[0].Nb = capabilities.Encode([]capabilities.Caveats{c.other, c.nb}[i])
					}
				}
			}},
		{name: "proof chain too deep", proofs: 9, want: "HTTP 400: ", text: "proofs deeper than 8"},
		{name: "bad signature", proofs: 1, want: unauthorised, text: "the invocation has a signature that is not by the key of its issuer",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.forged = true }) }},
		{name: "bad signature of a proof", proofs: 1, want: unauthorised, text: "has a signature that is not by the key of its issuer",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.forged = true }) }},
		{name: "bad signature at depth 8", proofs: 8, want: unauthorised, text: "has a signature that is not by the key of its issuer",
			change: func(*subject) func(int, *token) { return on(0, func(k *token) { k.forged = true }) }},
		{name: "two capabilities", proofs: 1, want: capabilities.InvocationCapability + ": ", text: "single capability",
			change: func(*subject) func(int, *token) {
				return on(1, func(k *token) { k.caps = append(k.caps, k.caps[0]) })
			}},
		{name: "ability of another role", proofs: 1, want: capabilities.HandlerNotFound + ": ", text: "x/y",
			change: func(*subject) func(int, *token) { return func(_ int, k *token) { k.caps[0].Can = "x/y" } }},
		{name: "no caveats", proofs: 1, want: "", text: "malformed caveats",
			change: func(*subject) func(int, *token) { return on(1, func(k *token) { k.caps[0].Nb = nil }) }},
	}
	for _, c := range subjects {
		signer := s.Roles[c.role].Signer
		alive := func(t *testing.T) {
			t.Helper()
			if a := s.post(c.role, c.good); a.code != http.StatusOK || !bytes.Equal(a.body, c.answer) {
				t.Errorf("a good request is answered otherwise afterwards: %d %.300q", a.code, a.body)
			}
		}
		for _, a := range attacks {
			t.Run(c.can+"/"+a.name, func(t *testing.T) {
				var change func(int, *token)
				if a.change != nil {
					change = a.change(c)
				}
				chain := s.chain(c, a.proofs, func(i int, k *token) {
					k.nonce = a.name // each attack has UCANs of its own
					if change != nil {
						change(i, k)
					}
				})
				if a.revoke > 0 {
					by := c.owner
					if a.revoke == a.proofs+1 {
						by = c.invoker
					}
					s.revoke(t, c.role, by, chain[a.revoke-1])
				}
				before, sent := s.stored(), chain
				if a.drop {
					sent = chain[1:]
				}
				got := s.post(c.role, message(sent, c.attach...)).outcome(t, chain[len(chain)-1].Link(), signer)
				want := a.want
				if a.name == "no caveats" {
					want = noCaveats(c)
				}
				if !strings.HasPrefix(got, want) || !strings.Contains(got, a.text) && want == a.want {
					t.Errorf("got %s\nwant %s… %s", got, want, a.text)
				}
				s.unchanged(t, before)
				alive(t)
			})
		}
		t.Run(c.can+"/authorised", func(t *testing.T) {
			// The same chains, with nothing wrong in them: what is refused above is refused for its fault alone.
			for _, proofs := range []int{1, 2, 8} {
				chain := s.chain(c, proofs, func(i int, k *token) {
					k.nonce = fmt.Sprint("good", proofs)
					if i < proofs && proofs < 8 {
						k.caps[0].Nb = capabilities.Encode(c.nb)
					}
				})
				before, body := s.stored(), message(chain, c.attach...)
				first := s.post(c.role, body)
				got := first.outcome(t, chain[proofs].Link(), signer)
				if name, _, _ := strings.Cut(got, ":"); name != c.delegated {
					t.Errorf("%d proofs: got %s, want %s", proofs, got, c.delegated)
				}
				if c.delegated != "ok" {
					s.unchanged(t, before)
				}
				// Replayed: the same receipt, and nothing is done twice.
				before = s.stored()
				if again := s.post(c.role, body); again.code != first.code || !bytes.Equal(again.body, first.body) {
					t.Errorf("%d proofs: replayed, the answer is %d %.300q", proofs, again.code, again.body)
				}
				s.unchanged(t, before)
				if proofs > 1 || c.delegated != "ok" {
					continue
				}
				// An acknowledged invocation gets its receipt even once its proof is revoked; what only was a question does not.
				s.revoke(t, c.role, c.owner, chain[0])
				before = s.stored()
				again := s.post(c.role, body)
				kept := before[c.role+" task/"+chain[1].Link().String()] != ""
				if kept && !bytes.Equal(again.body, first.body) {
					t.Errorf("repeated after revocation, the answer is %s", again.outcome(t, chain[1].Link(), signer))
				}
				if got := again.outcome(t, chain[1].Link(), signer); !kept && !strings.HasPrefix(got, unauthorised) {
					t.Errorf("a question by revoked proof: %s", got)
				}
				s.unchanged(t, before)
			}
			alive(t)
		})
		t.Run(c.can+"/replayed by a stranger", func(t *testing.T) {
			m := mallory()
			u := s.sign(token{issuer: m, audience: signer.DID(),
				caps: []wire.Capability{{Can: c.can, With: m.DID().String(), Nb: capabilities.Encode(c.nb)}}})
			before := s.stored()
			a := s.post(c.role, message([]*capabilities.UCAN{u}, c.attach...))
			got := a.outcome(t, u.Link(), signer)
			if name, _, _ := strings.Cut(got, ":"); name != c.stranger {
				t.Errorf("got %s, want %s", got, c.stranger)
			}
			if c.can != filecoin.OfferAbility {
				s.unchanged(t, before)
			} else {
				// Anybody may offer, and shares the work: the effects are those of the first offer, which are concluded.
				mine, theirs := a.receipt(t, u.Link(), signer), s.post(c.role, c.good)
				first, err := wire.DecodeMessage(theirs.body, wire.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if r := first.Receipts()[0]; !mine.Join.Equals(r.Join) || len(mine.Fork) != 1 || !mine.Fork[0].Equals(r.Fork[0]) {
					t.Error("the stranger's offer has effects of its own")
				}
			}
			alive(t)
		})
	}
	s.Run(time.Hour, func() bool { return false })
	s.MustCheck([]Offered{o})
}

// noCaveats is how an invocation without caveats ends: tasks of a role's own are refused before that is noticed.
func noCaveats(c *subject) string {
	if c.delegated == capabilities.UnsupportedCapability {
		return capabilities.UnsupportedCapability
	}
	return capabilities.MalformedCapability
}
