package rolestest

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// awaited is a site whose storefront waits for the receipts of piece/accept of some offers, and an aggregate that they could be in.
type awaited struct {
	*site
	offers     []Offered
	tasks      []capabilities.Task // piece/accept, one per offer
	aggregate  *segment.Aggregate
	offer      capabilities.Task // aggregate/offer of the aggregate
	aggregator capabilities.Signer
	dealer     capabilities.Signer
	with       []capabilities.Block // the invocations, which go along with receipts
}

// step returns one link of an offer's chain, as the storefront serves it.
func (s *site) step(o Offered, can string) (task capabilities.Task, receipt *capabilities.Receipt) {
	s.t.Helper()
	chain := s.Chain(o)
	m, err := wire.DecodeMessage(chain.Encode(), wire.Limits{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, step := range chain.Steps() {
		if step.Ability == can {
			task, _ = capabilities.FindTask(m, step.Task)
			return task, step.Receipt
		}
	}
	return task, nil
}

func (s *site) invoke(by capabilities.Signer, to capabilities.DID, c capabilities.Caveats) capabilities.Task {
	s.t.Helper()
	task, err := capabilities.Invoke(by, to, to.String(), c, capabilities.Terms{})
	if err != nil {
		s.t.Fatal(err)
	}
	return task
}

func awaiting(t testing.TB, count int) *awaited {
	t.Helper()
	n := New(t, Options{Seed: 104})
	w := &awaited{aggregator: n.Roles["aggregator"].Signer, dealer: n.Roles["dealer"].Signer}
	for range count {
		w.offers = append(w.offers, n.Offer("storefront", n.Payload(60_000)))
	}
	// Too little for an aggregate: the aggregator waits for more.
	n.Run(10*time.Minute, func() bool { return false })
	w.site = guarded(t, n)
	var pieces []piece.Link
	for _, o := range w.offers {
		offer, receipt := w.step(o, piececap.OfferAbility)
		task := w.invoke(w.aggregator, w.aggregator.DID(), &piececap.Accept{Piece: o.Piece, Group: offer.Issuer.String()})
		if receipt == nil || !receipt.Join.Equals(task.Link()) || w.Chain(o).Concluded() {
			t.Fatalf("offer %s does not wait for piece/accept", o.Task)
		}
		w.tasks, pieces = append(w.tasks, task), append(pieces, o.Piece)
	}
	var err error
	if w.aggregate, err = segment.Build(1<<20, pieces); err != nil {
		t.Fatal(err)
	}
	w.offer = w.invoke(w.aggregator, w.dealer.DID(), &aggregatecap.Offer{Aggregate: w.aggregate.Link(), Pieces: aggregatecap.Pieces(pieces).CID})
	for _, task := range append(slices.Clone(w.tasks), w.offer) {
		w.with = append(w.with, task.Block())
	}
	return w
}

// accepted is what the aggregator would say of offer i if it were in the aggregate.
func (w *awaited) accepted(i int) *piececap.AcceptOK {
	w.t.Helper()
	entry, ok := w.aggregate.EntryOf(w.offers[i].Piece)
	if !ok {
		w.t.Fatal("the piece is not in the aggregate")
	}
	proof, err := w.aggregate.Proof(entry)
	if err != nil {
		w.t.Fatal(err)
	}
	return &piececap.AcceptOK{Piece: w.offers[i].Piece, Aggregate: w.aggregate.Link(), Inclusion: capabilities.Inclusion{InclusionProof: proof}}
}

func (s *site) issue(by capabilities.Signer, task cid.Cid, out capabilities.Struct, fx capabilities.Effects) *capabilities.Receipt {
	s.t.Helper()
	r, err := capabilities.Issue(by, task, out, fx)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// tampered returns a receipt with another signature, or with fields of its outcome replaced (nil: removed), as its block.
func (s *site) tampered(r *capabilities.Receipt, signature []byte, outcome cbortest.Fields) *capabilities.Receipt {
	s.t.Helper()
	all := cbortest.Split(s.t, r.Block().Bytes)
	if signature != nil {
		all["sig"] = cbor.AppendBytes(nil, signature)
	}
	ocm := cbortest.Split(s.t, all["ocm"])
	for key, value := range outcome {
		if ocm[key] = value; value == nil {
			delete(ocm, key)
		}
	}
	all["ocm"] = ocm.Join()
	changed, err := wire.DecodeReceipt(wire.EncodeBlock(all.Join()))
	if err != nil {
		s.t.Fatal(err)
	}
	return changed
}

// conclude pushes receipts to a role, as anybody may, and returns how that ended.
func (s *site) conclude(role string, with []capabilities.Block, receipts ...*capabilities.Receipt) string {
	s.t.Helper()
	m := new(capabilities.Message)
	for _, r := range receipts {
		m.AddReceipt(r, with...)
	}
	task, err := capabilities.Invoke(mallory(), s.Roles[role].Signer.DID(), mallory().DID().String(), &ucan.Conclude{Receipt: receipts[0].Link()}, capabilities.Terms{})
	if err != nil {
		s.t.Fatal(err)
	}
	m.AddInvocation(task.UCAN)
	return s.post(role, m.Encode()).outcome(s.t, task.Link(), s.Roles[role].Signer)
}

// states returns where the offers stand.
func (w *awaited) states() []string {
	w.t.Helper()
	var list []string
	for _, o := range w.offers {
		p, err := w.Status(o)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, p.State)
	}
	return list
}

// noDeadLetters fails the test if a message of a role has failed for good.
func (s *site) noDeadLetters(t testing.TB) {
	t.Helper()
	for name, r := range s.Roles {
		dead, _, err := store.ListDead(t.Context(), r.Engine, "", "", 10)
		if err != nil || len(dead) > 0 {
			t.Errorf("%s has dead letters: %+v, %v", name, dead, err)
		}
	}
}

// TestReceiptsNotBelieved pushes receipts that are not what they claim to be. None is kept, and the storefront goes on waiting for the right one.
func TestReceiptsNotBelieved(t *testing.T) {
	w := awaiting(t, 2)
	w.listen()
	ok, join := w.accepted(0), capabilities.Effects{Join: &w.offer}
	task, other := w.tasks[0].Link(), w.tasks[1].Link()
	right := w.issue(w.aggregator, task, ok, join)
	forged := bytes.Clone(right.Signature)
	forged[20] ^= 1
	byMallory := w.issue(mallory(), task, ok, join)
	name := func(s capabilities.Signer) []byte { return cbor.AppendText(nil, s.DID().String()) }
	unknown := w.sign(token{issuer: mallory(), audience: mallory().DID(), caps: []wire.Capability{{Can: piececap.AcceptAbility, With: mallory().DID().String()}}})
	accept, _ := w.step(w.offers[0], filecoin.AcceptAbility)
	const refused = "InvalidReceipt: none of the 1 receipts is to be believed"
	before := w.stored()
	for _, tt := range []struct {
		name    string
		receipt *capabilities.Receipt
		want    string
	}{
		{"forged signature", w.tampered(right, forged, nil), refused},
		{"signature of another receipt", w.tampered(right, byMallory.Signature, nil), refused},
		{"absent signature", w.tampered(right, wire.AbsentSignature(), nil), refused},
		{"signed by another", byMallory, refused},
		{"signed by another under the right name", w.tampered(byMallory, nil, cbortest.Fields{"iss": name(w.aggregator)}), refused},
		{"signed by another without a name", w.tampered(byMallory, nil, cbortest.Fields{"iss": nil}), refused},
		{"signed by the storefront itself", w.issue(w.Roles["storefront"].Signer, task, ok, join), refused},
		{"signed by the dealer", w.issue(w.dealer, task, ok, join), refused},
		{"under another name", w.tampered(right, nil, cbortest.Fields{"iss": name(mallory())}), refused},
		{"moved to another task", w.tampered(right, nil, cbortest.Fields{"ran": linkTo(other)}), refused},
		{"with another result", w.tampered(right, nil, cbortest.Fields{"out": cbortest.Fields{"ok": capabilities.Encode(w.accepted(1))}.Join()}), refused},
		{"with another join", w.tampered(right, nil, cbortest.Fields{"fx": cbortest.Fields{"fork": cbortest.Array(), "join": linkTo(other)}.Join()}), refused},
		{"turned into a failure", w.tampered(right, nil, cbortest.Fields{"out": cbortest.Fields{"error": capabilities.Fail("X", "x").Encode()}.Join()}), refused},
		{"result of another ability", w.issue(w.aggregator, task, &filecoin.PieceOK{Piece: ok.Piece}, join), refused},
		{"result without a proof", w.issue(w.aggregator, task, &aggregatecap.OfferOK{Aggregate: ok.Aggregate}, join), refused},
		{"result that is no map", w.tampered(right, nil, cbortest.Fields{"out": cbortest.Fields{"ok": {1}}.Join()}), refused},
		{"of a task that nobody knows", w.issue(mallory(), unknown.Link(), ok, join), "ok"},
		{"of a task of the storefront's own", w.issue(mallory(), accept.Link(), &filecoin.AcceptOK{Piece: ok.Piece, Aggregate: ok.Aggregate, Inclusion: ok.Inclusion}, capabilities.Effects{}), "ok"},
		{"of the offer itself", w.issue(mallory(), w.offers[0].Task, &filecoin.PieceOK{Piece: ok.Piece}, capabilities.Effects{}), "ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := w.conclude("storefront", append(slices.Clone(w.with), unknown.Block()), tt.receipt); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			w.unchanged(t, before)
		})
	}
	t.Run("shaped wrongly by its issuer", func(t *testing.T) {
		for name, out := range map[string][]byte{"nothing": {0xa0}, "a number": {1}, "null": {0xf6}, "a list": {0x80}} {
			r, err := wire.SignReceipt(w.aggregator, wire.Receipt{Ran: task, Out: wire.Result{OK: out}, Join: w.offer.Link()})
			if err != nil {
				t.Fatal(err)
			}
			if got := w.conclude("storefront", w.with, r); got != refused {
				t.Errorf("%s: %s", name, got)
			}
		}
		w.unchanged(t, before)
	})
	t.Run("in the published form", func(t *testing.T) {
		for name, tt := range map[string]struct {
			receipt cid.Cid
			attach  []capabilities.Block
			want    string
		}{
			"forged":              {byMallory.Link(), []capabilities.Block{byMallory.Block()}, "InvalidReceipt"},
			"not attached":        {right.Link(), nil, "HTTP 400: the message lacks the receipt"},
			"that is no receipt":  {w.tasks[0].Link(), nil, "HTTP 400: the attached receipt is malformed"},
			"with bytes of other": {right.Link(), []capabilities.Block{{CID: right.Link(), Bytes: byMallory.Block().Bytes}}, "HTTP 400: "},
		} {
			u, err := capabilities.Invoke(mallory(), w.Roles["storefront"].Signer.DID(), mallory().DID().String(), &ucan.Conclude{Receipt: tt.receipt}, capabilities.Terms{})
			if err != nil {
				t.Fatal(err)
			}
			got := w.post("storefront", message([]*capabilities.UCAN{u.UCAN}, append(tt.attach, w.with...)...)).outcome(t, u.Link(), w.Roles["storefront"].Signer)
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s: %s", name, got)
			}
		}
		w.unchanged(t, before)
	})
	if got := w.conclude("dealer", nil, right); !strings.HasPrefix(got, capabilities.HandlerNotFound) {
		t.Errorf("pushed to who waits for nothing: %s", got)
	}
	// The right one is believed, whoever brings it, as if nothing had happened.
	if got := w.conclude("storefront", w.with, right); got != "ok" {
		t.Errorf("the right receipt: %s", got)
	}
	w.Run(time.Minute, func() bool { return false })
	if got := w.states(); !slices.Equal(got, []string{"aggregated", "offered"}) {
		t.Errorf("then the offers are %v", got)
	}
	w.noDeadLetters(t)
}

// TestReceiptsThatProveNothing: the aggregator itself says what does not hold. That is kept, as its word, and moves nothing.
func TestReceiptsThatProveNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *awaited, ok *piececap.AcceptOK, fx *capabilities.Effects)
	}{
		{"the proof of another piece", func(w *awaited, ok *piececap.AcceptOK, _ *capabilities.Effects) {
			ok.Inclusion = w.accepted(1).Inclusion
		}},
		{"another piece", func(w *awaited, ok *piececap.AcceptOK, _ *capabilities.Effects) { *ok = *w.accepted(1) }},
		{"another aggregate", func(w *awaited, ok *piececap.AcceptOK, _ *capabilities.Effects) { ok.Aggregate = w.offers[1].Piece }},
		{"the proof of another aggregate", func(w *awaited, ok *piececap.AcceptOK, _ *capabilities.Effects) {
			alone, err := segment.Build(1<<20, []piece.Link{ok.Piece})
			if err != nil {
				w.t.Fatal(err)
			}
			if ok.Inclusion.InclusionProof, err = alone.Proof(0); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"an empty proof", func(_ *awaited, ok *piececap.AcceptOK, _ *capabilities.Effects) {
			ok.Inclusion = capabilities.Inclusion{}
		}},
		{"no aggregate/offer", func(_ *awaited, _ *piececap.AcceptOK, fx *capabilities.Effects) { fx.Join = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := awaiting(t, 2)
			w.listen()
			ok, fx := w.accepted(0), capabilities.Effects{Join: &w.offer}
			tt.do(w, ok, &fx)
			if got := w.conclude("storefront", w.with, w.issue(w.aggregator, w.tasks[0].Link(), ok, fx)); got != "ok" {
				t.Errorf("the aggregator's word: %s", got)
			}
			w.Run(time.Minute, func() bool { return false })
			p, err := w.Status(w.offers[0])
			if err != nil || p.State != "offered" || !strings.Contains(p.Reason, "does not hold") {
				t.Errorf("the piece is %+v, %v", p, err)
			}
			// A second word of the aggregator's is kept as evidence, and moves nothing either.
			if got := w.conclude("storefront", w.with, w.issue(w.aggregator, w.tasks[0].Link(), w.accepted(0), capabilities.Effects{Join: &w.offer})); got != "ok" {
				t.Errorf("the aggregator's second word: %s", got)
			}
			w.Run(time.Minute, func() bool { return false })
			if got := w.states(); !slices.Equal(got, []string{"offered", "offered"}) {
				t.Errorf("then the offers are %v", got)
			}
			evidence := 0
			for key := range w.stored() {
				if strings.HasPrefix(key, "storefront evidence/") {
					evidence++
				}
			}
			if evidence != 1 {
				t.Errorf("%d rows of evidence", evidence)
			}
			w.noDeadLetters(t)
		})
	}
}

// TestThousandReceipts: the good ones of a batch arrive, however many bad ones are among them, and only they leave something behind.
func TestThousandReceipts(t *testing.T) {
	const count, good = 8, 3
	w := awaiting(t, count)
	w.listen()
	var receipts []*capabilities.Receipt
	fx := capabilities.Effects{Join: &w.offer}
	for i, task := range w.tasks {
		r := w.issue(w.aggregator, task.Link(), w.accepted(i), fx)
		switch {
		case i < good:
		case i%2 == 0:
			r = w.issue(mallory(), task.Link(), w.accepted(i), fx)
		default:
			r = w.issue(w.aggregator, task.Link(), &piececap.OfferOK{Piece: w.offers[i].Piece}, fx)
		}
		receipts = append(receipts, r)
	}
	for i := range 1000 - count {
		ran := wire.EncodeBlock(cbor.AppendUint(nil, uint64(i))).CID
		receipts = append(receipts, w.issue(mallory(), ran, w.accepted(0), capabilities.Effects{}))
	}
	before := w.stored()
	for range 2 { // once more: nothing new
		if got := w.conclude("storefront", w.with, receipts...); got != "ok" {
			t.Fatalf("a batch: %s", got)
		}
		var changed []string
		for key, value := range w.stored() {
			if before[key] != value {
				changed = append(changed, key)
			}
		}
		for i := range good {
			want := "storefront task/" + w.tasks[i].Link().String()
			if at := slices.Index(changed, want); at < 0 {
				t.Errorf("the receipt of task %d is not kept", i)
			} else {
				changed = slices.Delete(changed, at, at+1)
			}
		}
		if len(changed) > 0 {
			t.Errorf("these changed as well: %v", changed)
		}
	}
	w.Run(time.Minute, func() bool { return false })
	for i, state := range w.states() {
		if want := map[bool]string{true: "aggregated", false: "offered"}[i < good]; state != want {
			t.Errorf("offer %d is %s, want %s", i, state, want)
		}
	}
	if a := w.post("storefront", []byte{1}); a.code != http.StatusBadRequest {
		t.Errorf("afterwards: %d", a.code)
	}
	w.noDeadLetters(t)
}

// TestDealsForAnotherAggregate: a deal counts for the aggregate that it is for, and nobody but the dealer reports it.
func TestDealsForAnotherAggregate(t *testing.T) {
	w := awaiting(t, 2)
	w.listen()
	accept := w.invoke(w.dealer, w.dealer.DID(), &aggregatecap.Accept{Aggregate: w.aggregate.Link(), Pieces: aggregatecap.Pieces(nil).CID})
	w.with = append(w.with, accept.Block())
	var batch []*capabilities.Receipt
	for i, task := range w.tasks {
		batch = append(batch, w.issue(w.aggregator, task.Link(), w.accepted(i), capabilities.Effects{Join: &w.offer}))
	}
	offered := w.issue(w.dealer, w.offer.Link(), &aggregatecap.OfferOK{Aggregate: w.aggregate.Link()}, capabilities.Effects{Join: &accept})
	for _, push := range [][]*capabilities.Receipt{batch, {offered}} {
		if got := w.conclude("storefront", w.with, push...); got != "ok" {
			t.Fatalf("the chain so far: %s", got)
		}
		w.Run(time.Minute, func() bool { return false })
	}
	before := w.stored()
	ok := &aggregatecap.AcceptOK{Aggregate: w.aggregate.Link(), DealMetadata: capabilities.DealMetadata{DealID: 7}}
	for _, by := range []capabilities.Signer{mallory(), w.aggregator, w.Roles["storefront"].Signer} {
		if got := w.conclude("storefront", w.with, w.issue(by, accept.Link(), ok, capabilities.Effects{})); !strings.HasPrefix(got, "InvalidReceipt") {
			t.Errorf("a deal reported by %s: %s", by, got)
		}
	}
	w.unchanged(t, before)
	ok.Aggregate = w.offers[0].Piece
	if got := w.conclude("storefront", w.with, w.issue(w.dealer, accept.Link(), ok, capabilities.Effects{})); got != "ok" {
		t.Errorf("the dealer's word: %s", got)
	}
	w.Run(time.Hour, func() bool { return false })
	for _, o := range w.offers {
		p, err := w.Status(o)
		if err != nil || p.State != "aggregated" || !strings.Contains(p.Reason, "another aggregate") {
			t.Errorf("the piece is %+v, %v", p, err)
		}
		if _, r := w.step(o, filecoin.AcceptAbility); r != nil {
			t.Error("filecoin/accept is concluded")
		}
	}
	w.noDeadLetters(t)
}

// TestDealsAtTheAggregator: the aggregator believes the dealer only, and only what it says of the aggregate that it was offered.
func TestDealsAtTheAggregator(t *testing.T) {
	for _, honest := range []bool{false, true} {
		n := New(t, Options{Seed: 105})
		s := guarded(t, n).listen()
		o := n.Offer("storefront", n.Payload(900_000))
		var offer aggregatecap.Offer
		if !n.Run(3*day, func() bool {
			task, _ := s.step(o, aggregatecap.OfferAbility)
			return task.UCAN != nil && task.Caveats(&offer) == nil && n.World.Published[offer.Aggregate.String()] > 0
		}) {
			t.Fatal("the aggregate is not published")
		}
		status := func() string {
			st, err := n.Roles["aggregator"].Server.Service.Status(t.Context(), offer.Aggregate.CID())
			if err != nil || len(st.Aggregates) != 1 {
				t.Fatalf("%+v, %v", st, err)
			}
			return st.Aggregates[0].State
		}
		n.Run(time.Minute, func() bool { return status() == "published" })
		dealer := n.Roles["dealer"].Signer
		accept := s.invoke(dealer, dealer.DID(), &aggregatecap.Accept{Aggregate: offer.Aggregate, Pieces: offer.Pieces})
		with := []capabilities.Block{accept.Block()}
		ok := &aggregatecap.AcceptOK{Aggregate: offer.Aggregate, DealMetadata: capabilities.DealMetadata{DealID: 7}}
		before := s.stored()
		for _, by := range []string{"aggregator", "storefront", "dealtracker"} {
			if got := s.conclude("aggregator", with, s.issue(n.Roles[by].Signer, accept.Link(), ok, capabilities.Effects{})); !strings.HasPrefix(got, "InvalidReceipt") {
				t.Errorf("a deal reported by %s: %s", by, got)
			}
		}
		s.unchanged(t, before)
		if !honest {
			ok.Aggregate = o.Piece
			if got := s.conclude("aggregator", with, s.issue(dealer, accept.Link(), ok, capabilities.Effects{})); got != "ok" {
				t.Errorf("the dealer's word: %s", got)
			}
			n.Run(time.Minute, func() bool { return false })
			if got := status(); got != "failed" {
				t.Errorf("after a deal for another aggregate this one is %s", got)
			}
			continue
		}
		if !n.Run(3*day, n.Concluded(o)) {
			t.Error("not concluded after all")
		}
		n.MustCheck([]Offered{o})
	}
}

// TestLongNames: what is acknowledged can be kept under the names that it brings.
func TestLongNames(t *testing.T) {
	s, o, subjects := dealt(t)
	c := subjectOf(t, subjects, piececap.OfferAbility)
	other := c.other.(*piececap.Offer).Piece
	for _, size := range []int{1, 200, 300, 400, 500, 10_000} {
		group := c.invoker.DID().String() + "/" + strings.Repeat("x", size)
		before := s.stored()
		chain := s.chain(c, 1, func(i int, k *token) {
			k.nonce = fmt.Sprint("group", size)
			if i == 1 {
				k.caps[0].Nb = capabilities.Encode(&piececap.Offer{Piece: other, Group: group})
			}
		})
		got := s.post(c.role, message(chain)).outcome(t, chain[1].Link(), s.Roles[c.role].Signer)
		switch {
		case strings.HasPrefix(got, capabilities.MalformedCapability+": ") && size >= 300:
			s.unchanged(t, before)
		case got != "ok" || size >= 300:
			t.Errorf("a group of %d bytes: %s", len(group), got)
		}
	}
	s.Run(time.Hour, func() bool { return false })
	s.noDeadLetters(t)
	s.MustCheck([]Offered{o})
}
