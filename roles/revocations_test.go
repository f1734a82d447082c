package roles

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// newRevocations returns a world whose authority asks revocations of its own, and how they are executed.
func newRevocations(t *testing.T) (*world, *Revocations, func(m *capabilities.Message, u *capabilities.UCAN) (*capabilities.Receipt, error)) {
	w, c := newWorld(t), new(clock)
	w.Now = c.now
	r := NewRevocations(memory.New(memory.Options{Now: c.now}), w.keys, func() time.Time {
		c.seconds.Add(1) // no two revocations at the same time
		return c.now()
	})
	w.Revoked = r.Revoked
	method := r.Method(w.service)
	return w, r, func(m *capabilities.Message, u *capabilities.UCAN) (*capabilities.Receipt, error) {
		if err := w.Authorize(t.Context(), m, u); err != nil {
			return nil, err
		}
		return method(t.Context(), capabilities.Invocation{Task: capabilities.TaskOf(m, u), Message: m})
	}
}

// revoke makes an invocation of ucan/revoke.
func (w *world) revoke(by capabilities.Signer, c cid.Cid, proof ...cid.Cid) spec {
	nb := capabilities.Encode(&ucan.Revoke{UCAN: c, Proof: proof})
	return spec{issuer: by, audience: w.service.DID(), caps: []wire.Capability{{Can: ucan.RevokeAbility, With: by.DID().String(), Nb: nb}}}
}

func revokedAt(t *testing.T, r *capabilities.Receipt, err error) int64 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var ok revokeOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		t.Fatal(err)
	}
	return ok.Time
}

func TestRevoke(t *testing.T) {
	w, r, execute := newRevocations(t)
	chain := w.chain(t, 3, nil) // space, agent0, agent1, agent2: the invocation
	m, u := send(t, chain...)
	check(t, w.Authorize(t.Context(), m, u), "")

	// The middle delegation is revoked by its issuer, the way that the JavaScript client does it: what it revokes
	// goes along as a proof.
	agent0 := newSigner(t, "agent0")
	inv := w.revoke(agent0, chain[1].Link())
	inv.proofs = chain[1:2]
	revocation := inv.sign(t)
	rm, ru := send(t, chain[0], chain[1], revocation)
	receipt, err := execute(rm, ru)
	at := revokedAt(t, receipt, err)
	if want := int64(noon+1) * 1000; at != want {
		t.Errorf("at %d, want %d", at, want)
	}
	if v := w.service.Verifier(); receipt.Verify(v) != nil || receipt.Ran != revocation.Link() {
		t.Error("not a receipt of the revocation")
	}
	check(t, w.Authorize(t.Context(), m, u), "Unauthorized: was revoked")
	for i, u := range chain {
		if revoked, err := r.Revoked(t.Context(), u.Link()); err != nil || revoked != (i == 1) {
			t.Errorf("%d is revoked: %v, %v", i, revoked, err)
		}
	}

	// Again: the same receipt. By somebody else who may: the time of the first.
	again, err := execute(rm, ru)
	if revokedAt(t, again, err) != at || again.Link() != receipt.Link() {
		t.Error("another receipt for the same invocation")
	}
	om, ou := send(t, chain[0], chain[1], w.revoke(w.space, chain[1].Link()).sign(t))
	other, err := execute(om, ou)
	if got := revokedAt(t, other, err); got != at {
		t.Errorf("revoked at %d, and at %d before", got, at)
	}

	// What is served proves it.
	proof, err := r.Get(t.Context(), chain[1].Link())
	if err != nil {
		t.Fatal(err)
	}
	if got := proof.Invocations(); len(got) != 1 || got[0].Link() != revocation.Link() {
		t.Fatalf("got %v", got)
	}
	if _, ok := proof.Block(chain[1].Link()); !ok {
		t.Error("what was revoked is missing")
	}
	if _, err := r.Get(t.Context(), chain[0].Link()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRevokeWho(t *testing.T) {
	w, r, execute := newRevocations(t)
	chain := w.chain(t, 3, nil)
	agent := func(i int) capabilities.Signer { return newSigner(t, fmt.Sprint("agent", i)) }
	stray := spec{issuer: w.mallory, audience: w.bob.DID(), caps: can("*", w.space.DID())}.sign(t)
	withStray := spec{issuer: agent(1), audience: agent(2).DID(), caps: can("*", w.space.DID()), proofs: []*capabilities.UCAN{stray, chain[1]}}.sign(t)
	forged := spec{issuer: w.mallory, audience: agent(1).DID(), caps: can("*", w.space.DID()), forged: true}.sign(t)
	onForged := spec{issuer: agent(1), audience: agent(2).DID(), caps: can("*", w.space.DID()), proofs: []*capabilities.UCAN{forged, chain[1]}}.sign(t)
	account := mustDID(t, "did:mailto:example.com:alice")
	unsigned := spec{from: account, audience: agent(1).DID(), caps: can("*", account)}.sign(t)
	missing := wire.EncodeBlock(cbor.AppendText(nil, "missing")).CID

	for _, tt := range []struct {
		name   string
		by     capabilities.Signer
		target *capabilities.UCAN
		sent   []*capabilities.UCAN
		proof  []cid.Cid
		want   string
	}{
		{"its issuer", agent(1), chain[2], chain[2:3], nil, ""},
		{"its audience", agent(2), chain[2], chain[2:3], nil, ""},
		{"the issuer of its proof", agent(0), chain[2], chain[1:3], chain[2].Proofs, ""},
		{"the issuer of the root", w.space, chain[2], chain[0:3], nil, ""},
		{"the issuer of an invocation", agent(2), chain[3], chain[3:4], nil, ""},
		{"the owner, of an invocation", w.space, chain[3], chain, nil, ""},
		{"the audience of one without signature", agent(1), unsigned, []*capabilities.UCAN{unsigned}, nil, ""},

		{"a stranger", w.mallory, chain[2], chain[:3], nil, "UnauthorizedRevocation: has no part in"},
		{"the issuer of what rests on it", agent(1), chain[0], chain[:3], nil, "UnauthorizedRevocation: has no part in"},
		{"the issuer of a proof that is not there", w.space, chain[2], chain[1:3], nil, "UnauthorizedRevocation: has to be in the message"},
		{"the issuer of a misaligned proof", w.mallory, withStray, []*capabilities.UCAN{chain[0], chain[1], stray, withStray}, nil, "UnauthorizedRevocation: has no part in"},
		{"the issuer of a forged proof", w.mallory, onForged, []*capabilities.UCAN{chain[0], chain[1], forged, onForged}, nil, "UnauthorizedRevocation: has no part in"},
		{"the owner, past a forged proof", w.space, onForged, []*capabilities.UCAN{chain[0], chain[1], forged, onForged}, nil, ""},
		{"somebody, of what is forged", w.mallory, forged, []*capabilities.UCAN{forged}, nil, "UnauthorizedRevocation: signature of"},

		{"without it", agent(1), chain[2], nil, nil, "UCANNotFound: The nb.ucan UCAN"},
		{"without the proof", agent(1), chain[2], chain[2:3], []cid.Cid{chain[2].Link(), missing}, "UCANNotFound: The nb.proof[1] UCAN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := w.revoke(tt.by, tt.target.Link(), tt.proof...)
			inv.nonce = tt.name
			m, u := send(t, append(append([]*capabilities.UCAN(nil), tt.sent...), inv.sign(t))...)
			before, err := r.Revoked(t.Context(), tt.target.Link())
			if err != nil {
				t.Fatal(err)
			}
			_, err = execute(m, u)
			check(t, err, tt.want)
			after, err := r.Revoked(t.Context(), tt.target.Link())
			if err != nil || tt.want == "" && !after || tt.want != "" && after != before {
				t.Errorf("revoked before: %v, after: %v, %v", before, after, err)
			}
		})
	}
	t.Run("not a UCAN", func(t *testing.T) {
		b := wire.EncodeBlock(cbor.AppendText(nil, "text"))
		m := new(capabilities.Message)
		m.AddInvocation(w.revoke(w.alice, b.CID).sign(t), b)
		_, err := execute(m, m.Invocations()[0])
		check(t, err, "MalformedCapability: nb.ucan is not a well-formed UCAN")
	})
	t.Run("no caveats", func(t *testing.T) {
		inv := w.revoke(w.alice, missing)
		inv.caps[0].Nb = nil
		m, u := send(t, inv.sign(t))
		_, err := execute(m, u)
		check(t, err, "MalformedCapability")
	})
	t.Run("in the name of another", func(t *testing.T) {
		// The space lets agent0 do anything in its name, and mallory nothing.
		for by, want := range map[capabilities.Signer]string{agent(0): "", w.mallory: "Unauthorized"} {
			target := spec{issuer: w.space, audience: w.bob.DID(), caps: can("*", w.space.DID()), nonce: by.DID().String()}.sign(t)
			grant := spec{issuer: w.space, audience: agent(0).DID(), caps: can("*", w.space.DID())}.sign(t)
			inv := w.revoke(by, target.Link())
			inv.caps[0].With = w.space.DID().String()
			inv.proofs = []*capabilities.UCAN{grant}
			m, u := send(t, grant, target, inv.sign(t))
			_, err := execute(m, u)
			check(t, err, want)
			if want != "" {
				continue
			}
			kept, err := r.Get(t.Context(), target.Link())
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := kept.Block(grant.Link()); !ok {
				t.Error("the proof of the revocation is missing")
			}
		}
	})
	t.Run("too large", func(t *testing.T) {
		target := spec{issuer: w.alice, audience: w.bob.DID(), caps: can("*", w.alice.DID()), nonce: strings.Repeat("x", store.MaxValue-300)}.sign(t)
		m, u := send(t, target, w.revoke(w.alice, target.Link()).sign(t))
		_, err := execute(m, u)
		check(t, err, "RevocationsStoreFailure: leave out proofs")
	})
}

// TestRevokeHostile: proofs that are repeated a thousand times, and layers of them, are looked at once.
func TestRevokeHostile(t *testing.T) {
	w, _, execute := newRevocations(t)
	var all, layer []*capabilities.UCAN
	issuer := w.space
	for depth := range 7 {
		next := newSigner(t, fmt.Sprint("layer", depth))
		var proofs []*capabilities.UCAN
		for i := range 8 {
			proofs = append(proofs, spec{issuer: issuer, audience: next.DID(), caps: can("*", w.space.DID()), proofs: layer, nonce: fmt.Sprint(i)}.sign(t))
		}
		all, issuer = append(all, proofs...), next
		layer = nil
		for range 100 {
			layer = append(layer, proofs...)
		}
	}
	target := spec{issuer: issuer, audience: w.alice.DID(), caps: can("*", w.space.DID()), proofs: layer}.sign(t)
	m, u := send(t, append(append(all, target), w.revoke(w.mallory, target.Link()).sign(t))...)
	w.keys.asked.Store(0)
	_, err := execute(m, u)
	check(t, err, "UnauthorizedRevocation")
	if n := w.keys.asked.Load(); n > 58 {
		t.Errorf("%d signatures verified", n)
	}
}

func TestRevokeManyProofs(t *testing.T) {
	w, _, execute := newRevocations(t)
	var proofs []*capabilities.UCAN
	for i := range 200 {
		proofs = append(proofs, spec{issuer: w.bob, audience: w.alice.DID(), caps: can("*", w.bob.DID()), nonce: fmt.Sprint(i)}.sign(t))
	}
	target := spec{issuer: w.alice, audience: w.carol.DID(), caps: can("*", w.bob.DID()), proofs: proofs}.sign(t)
	m, u := send(t, append(append(proofs, target), w.revoke(w.mallory, target.Link()).sign(t))...)
	w.keys.asked.Store(0)
	_, err := execute(m, u)
	check(t, err, "UnauthorizedRevocation")
	if n := w.keys.asked.Load(); n != 1+1+maxProofs { // of the invocation, the target and its proofs
		t.Errorf("%d signatures verified", n)
	}
}

func TestRevokeFaults(t *testing.T) {
	w, _, execute := newRevocations(t)
	target := spec{issuer: w.alice, audience: w.bob.DID(), caps: can("*", w.alice.DID())}.sign(t)
	m, u := send(t, target, w.revoke(w.bob, target.Link()).sign(t))
	down := errors.New("down")
	w.keys.fail = map[capabilities.DID]error{w.alice.DID(): down}
	if _, err := execute(m, u); !errors.Is(err, down) {
		t.Errorf("got %v, want the fault", err)
	}
	w.keys.fail = nil

	broken := NewRevocations(failingRows{err: down}, w.keys, w.Now)
	if _, err := broken.Revoked(t.Context(), target.Link()); !errors.Is(err, down) {
		t.Errorf("got %v, want the fault", err)
	}
	inv := capabilities.Invocation{Task: capabilities.TaskOf(m, u), Message: m}
	if _, err := broken.Method(w.service)(t.Context(), inv); !errors.Is(err, down) {
		t.Errorf("got %v, want the fault", err)
	}
}

type failingRows struct {
	store.Rows
	err error
}

func (f failingRows) Get(context.Context, store.Key) (store.Row, error)    { return store.Row{}, f.err }
func (f failingRows) Commit(context.Context, store.Change) (uint64, error) { return 0, f.err }

// TestRevokeConcurrently: whoever comes first, all are told the same time.
func TestRevokeConcurrently(t *testing.T) {
	w, _, _ := newRevocations(t)
	r := NewRevocations(memory.New(memory.Options{Now: w.Now}), w.keys, time.Now)
	method := r.Method(w.service)
	target := spec{issuer: w.alice, audience: w.bob.DID(), caps: can("*", w.alice.DID())}.sign(t)
	times := make([]int64, 16)
	var wg sync.WaitGroup
	for i := range times {
		inv := w.revoke([]capabilities.Signer{w.alice, w.bob}[i%2], target.Link())
		inv.nonce = fmt.Sprint(i)
		m, u := send(t, target, inv.sign(t))
		wg.Go(func() {
			receipt, err := method(context.Background(), capabilities.Invocation{Task: capabilities.TaskOf(m, u), Message: m})
			if err != nil {
				t.Error(err)
				return
			}
			var ok revokeOK
			if err := capabilities.ReadResult(receipt.Out, &ok); err != nil {
				t.Error(err)
			}
			times[i] = ok.Time
		})
	}
	wg.Wait()
	for _, at := range times {
		if at != times[0] || at == 0 {
			t.Fatalf("different times: %v", times)
		}
	}
}
