package interop

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/segment"
)

// dealSize is what server.mjs aggregates to, in padded bytes.
const dealSize = 4 << 20

type content struct {
	payload []byte
	cid     cid.Cid
	piece   piece.Link
}

func newContent(t *testing.T, length int) content {
	payload := bytes.Repeat([]byte{byte(length), byte(length >> 8), 7, 1}, length/4+1)[:length]
	sum := sha256.Sum256(payload)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	link, err := piece.Sum(payload)
	if err != nil {
		t.Fatal(err)
	}
	return content{payload, cid.NewCidV1(cid.Raw, hash), link}
}

// TestPublishedServices drives every capability of the published services, from an offer to its deal.
func TestPublishedServices(t *testing.T) {
	for _, l := range layouts(t) {
		t.Run(l.name, func(t *testing.T) { pipeline(t, start(t, l)) })
	}
}

func pipeline(t *testing.T, s *services) {
	const full = 1 << 20 / 128 * 127 // bytes that fill a piece of 1 MiB
	contents := []content{newContent(t, full), newContent(t, full/2), newContent(t, full/2-1000), newContent(t, 300)}
	first := contents[0]
	storefront, group := s.conn("storefront"), s.storefront.DID().String()
	with := s.agent.DID().String()

	info := func() (filecoin.InfoOK, error) {
		return client.Info(t.Context(), storefront, s.agent, s.storefront.DID(), with, first.piece,
			capabilities.Terms{Expiration: time.Now().Add(time.Minute)}, s)
	}
	var failure *capabilities.Failure
	if _, err := info(); !errors.As(err, &failure) || failure.Name != capabilities.RecordNotFound {
		t.Errorf("filecoin/info of a piece that was never offered: %v", err)
	}

	// filecoin/offer: the storefront names submit and accept, which we would have named alike.
	for _, c := range contents {
		s.control(t, http.MethodPut, "content", c.payload, nil)
		task, r, err := client.Offer(t.Context(), storefront, s.agent, s.storefront.DID(), with, filecoin.Offer{Content: c.cid, Piece: c.piece},
			capabilities.Terms{}, s)
		if err != nil {
			t.Fatal(err)
		}
		submit := invoke(t, s.storefront, s.storefront, &filecoin.Submit{Content: c.cid, Piece: c.piece}, capabilities.Terms{})
		accept := invoke(t, s.storefront, s.storefront, &filecoin.Accept{Content: c.cid, Piece: c.piece}, capabilities.Terms{})
		follows(t, r, accept.Link(), submit.Link())
		var ok filecoin.PieceOK
		if err := capabilities.ReadResult(r.Out, &ok); err != nil || ok.Piece != c.piece {
			t.Errorf("task %s: %v, %v", task.Link(), ok, err)
		}
	}
	// The published storefront computes the pieces itself, and finds ours.
	s.control(t, http.MethodPost, "validate", nil, nil)
	if ok, err := info(); err != nil || ok.Piece != first.piece || len(ok.Aggregates)+len(ok.Deals) != 0 {
		t.Errorf("filecoin/info of a piece on its way: %+v, %v", ok, err)
	}

	for _, c := range contents {
		submit := invoke(t, s.storefront, s.storefront, &filecoin.Submit{Content: c.cid, Piece: c.piece}, capabilities.Terms{})
		pieceOffer := invoke(t, s.storefront, s.aggregator, &piececap.Offer{Piece: c.piece, Group: group}, s.pieceOfferTerms(t))
		pieceAccept := invoke(t, s.aggregator, s.aggregator, &piececap.Accept{Piece: c.piece, Group: group}, capabilities.Terms{})

		var submitted filecoin.PieceOK
		follows(t, s.do(t, "storefront", submit, &submitted), pieceOffer.Link())
		var offered piececap.OfferOK
		follows(t, s.do(t, "aggregator", pieceOffer, &offered), pieceAccept.Link())
		if submitted.Piece != c.piece || offered.Piece != c.piece {
			t.Errorf("acknowledged are %s and %s, want %s", submitted.Piece, offered.Piece, c.piece)
		}
		s.fail(t, "UnexpectedState", "aggregator", pieceAccept) // not aggregated yet
		accept := invoke(t, s.storefront, s.storefront, &filecoin.Accept{Content: c.cid, Piece: c.piece}, capabilities.Terms{})
		s.fail(t, "ProofNotFound", "storefront", accept)
	}
	if s.aggregator.DID() != s.storefront.DID() {
		s.fail(t, capabilities.Unauthorized, "aggregator",
			invoke(t, s.storefront, s.aggregator, &piececap.Offer{Piece: first.piece, Group: group}, capabilities.Terms{}))
	}
	foreign := invokeOn(t, s.agent, s.storefront, s.agent, &filecoin.Submit{Content: first.cid, Piece: first.piece}, capabilities.Terms{})
	s.fail(t, capabilities.UnsupportedCapability, "storefront", foreign)

	// The aggregate that the published aggregator builds is ours: pieces by ascending size, in the order in which they came.
	made := s.aggregate(t)
	if len(made) != 1 {
		t.Fatalf("%d aggregates were built", len(made))
	}
	order := make([]piece.Link, len(contents))
	for i, c := range contents {
		order[i] = c.piece
	}
	slices.SortStableFunc(order, func(a, b piece.Link) int { return int(a.Height()) - int(b.Height()) })
	tree, err := segment.Build(dealSize, order)
	if err != nil {
		t.Fatal(err)
	}
	list := aggregatecap.Pieces(order)
	if tree.Link() != made[0].Aggregate || list.CID.String() != made[0].Pieces {
		t.Fatalf("built %s of %s, want %s of %s", made[0].Aggregate, made[0].Pieces, tree.Link(), list.CID)
	}

	aggregateOffer := invoke(t, s.aggregator, s.dealer, &aggregatecap.Offer{Aggregate: tree.Link(), Pieces: list.CID}, s.aggregateOfferTerms(t))
	// The published aggregator invokes it on itself and without a proof, which its dealer only takes if they share a DID.
	linked := invokeOn(t, s.aggregator, s.dealer, s.aggregator, &aggregatecap.Offer{Aggregate: tree.Link(), Pieces: list.CID}, capabilities.Terms{})
	if s.oneDID() != linked.Link().Equals(aggregateOffer.Link()) {
		t.Errorf("aggregate/offer is %s, the published aggregator links %s", aggregateOffer.Link(), linked.Link())
	}
	for _, c := range contents {
		task := invoke(t, s.aggregator, s.aggregator, &piececap.Accept{Piece: c.piece, Group: group}, capabilities.Terms{})
		var ok piececap.AcceptOK
		r := s.do(t, "aggregator", task, &ok)
		follows(t, r, linked.Link())
		if err := ok.Verify(); err != nil || ok.Piece != c.piece || ok.Aggregate != tree.Link() {
			t.Errorf("piece/accept proves %s in %s, %v", ok.Piece, ok.Aggregate, err)
		}
		entry, found := tree.EntryOf(c.piece)
		if !found {
			t.Fatalf("%s is not in the aggregate", c.piece)
		}
		proof, err := tree.Proof(entry)
		if err != nil {
			t.Fatal(err)
		}
		want := piececap.AcceptOK{Piece: c.piece, Aggregate: tree.Link(), Inclusion: capabilities.Inclusion{InclusionProof: proof}}
		sameBytes(t, task, r.Out.OK, &want)
	}

	// The list of pieces has to travel with aggregate/offer.
	if failure := s.fail(t, "DecodeBlockOperationFailed", "dealer", aggregateOffer); failure != nil && failure.Message == "" {
		t.Error("the failure says nothing")
	}
	if !s.oneDID() {
		s.fail(t, capabilities.UnsupportedCapability, "dealer", linked, list)
	}
	aggregateAccept := invoke(t, s.dealer, s.dealer, &aggregatecap.Accept{Aggregate: tree.Link(), Pieces: list.CID}, capabilities.Terms{})
	var offered aggregatecap.OfferOK
	r := s.do(t, "dealer", aggregateOffer, &offered, list)
	follows(t, r, aggregateAccept.Link())
	sameBytes(t, aggregateOffer, r.Out.OK, &aggregatecap.OfferOK{Aggregate: tree.Link()})
	s.fail(t, "Error", "dealer", aggregateAccept) // there is no deal yet

	dealInfo := func() (ok deal.InfoOK) {
		task := invokeOn(t, s.agent, s.tracker, s.agent, &deal.Info{Piece: tree.Link()}, capabilities.Terms{Expiration: time.Now().Add(time.Minute)})
		follows(t, s.do(t, "tracker", task, &ok), cid.Undef)
		return ok
	}
	if ok := dealInfo(); len(ok.Deals) != 0 {
		t.Errorf("deals of an aggregate without any: %v", ok.Deals)
	}
	s.deal(t, tree.Link(), 4711, "f01234")
	if diff := cmp.Diff(deal.Deals{4711: {Provider: "f01234"}}, dealInfo().Deals); diff != "" {
		t.Errorf("deal/info (-want +got):\n%s", diff)
	}

	meta := capabilities.DealMetadata{DealID: 4711}
	var dealt aggregatecap.AcceptOK
	r = s.do(t, "dealer", aggregateAccept, &dealt)
	follows(t, r, cid.Undef)
	sameBytes(t, aggregateAccept, r.Out.OK, &aggregatecap.AcceptOK{Aggregate: tree.Link(), DealMetadata: meta})

	// filecoin/accept: the published storefront finds the chain in what it has seen, if the aggregator links what the dealer executes.
	for _, c := range contents {
		task := invoke(t, s.storefront, s.storefront, &filecoin.Accept{Content: c.cid, Piece: c.piece}, capabilities.Terms{})
		if !s.oneDID() {
			s.fail(t, "ProofNotFound", "storefront", task)
			continue
		}
		var ok filecoin.AcceptOK
		r := s.do(t, "storefront", task, &ok)
		follows(t, r, cid.Undef)
		if err := ok.Verify(); err != nil || ok.Piece != c.piece || ok.Aux != meta {
			t.Errorf("filecoin/accept proves %+v, %v", ok, err)
		}
		want := filecoin.AcceptOK{Piece: c.piece, Aggregate: tree.Link(), Inclusion: ok.Inclusion, Aux: meta}
		sameBytes(t, task, r.Out.OK, &want)
	}
	if s.oneDID() {
		ok, err := info()
		if err != nil || len(ok.Aggregates) != 1 || len(ok.Deals) != 1 {
			t.Fatalf("filecoin/info of a piece in a deal: %+v, %v", ok, err)
		}
		if got, want := ok.Deals[0], (filecoin.InfoDeal{Aggregate: tree.Link(), Provider: "f01234", Aux: meta}); got != want {
			t.Errorf("filecoin/info names %+v, want %+v", got, want)
		}
		if err := segment.Verify(ok.Aggregates[0].Inclusion.InclusionProof, first.piece, ok.Aggregates[0].Aggregate); err != nil {
			t.Errorf("the inclusion in filecoin/info: %v", err)
		}
	}
}

// sameBytes checks that a result of the published services has the bytes in which we would state it.
func sameBytes(t *testing.T, task capabilities.Task, got []byte, want capabilities.Struct) {
	t.Helper()
	if ours := capabilities.Encode(want); !bytes.Equal(got, ours) {
		t.Errorf("%s: the result is %x, we write %x", task.Can(), got, ours)
	}
}

// TestPublishedRefusals: what the published framework refuses is read as what it is.
func TestPublishedRefusals(t *testing.T) {
	s := start(t, layouts(t)[0])
	c := newContent(t, 500)
	info := func(terms capabilities.Terms) capabilities.Task {
		return invokeOn(t, s.agent, s.storefront, s.agent, &filecoin.Info{Piece: c.piece}, terms)
	}
	s.fail(t, capabilities.Unauthorized, "storefront", info(capabilities.Terms{Expiration: time.Unix(1_700_000_000, 0)}))
	s.fail(t, capabilities.Unauthorized, "storefront", invokeOn(t, s.agent, s.storefront, s.dealer, &filecoin.Info{Piece: c.piece}, capabilities.Terms{}))
	s.fail(t, capabilities.HandlerNotFound, "storefront", invoke(t, s.agent, s.storefront, &deal.Info{Piece: c.piece}, capabilities.Terms{}))

	// A space delegates to the agent, by our delegation.
	space := layouts(t)[0].tracker
	grant, err := capabilities.Delegate(space, s.agent.DID(), []capabilities.Grant{{Can: "filecoin/*", With: space.DID().String()}},
		capabilities.Terms{Expiration: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	terms := capabilities.Terms{Proofs: []capabilities.Delegation{grant}}
	if _, _, err := client.Offer(t.Context(), s.conn("storefront"), s.agent, s.storefront.DID(), space.DID().String(),
		filecoin.Offer{Content: c.cid, Piece: c.piece}, terms, s); err != nil {
		t.Errorf("an offer on a space: %v", err)
	}

	// Several tasks in one message are answered in one.
	m, tasks := new(capabilities.Message), []capabilities.Task{info(capabilities.Terms{}), info(capabilities.Terms{Nonce: "again"})}
	for _, task := range tasks {
		m.AddInvocation(task.UCAN)
	}
	reply, err := s.conn("storefront").Execute(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if r := reply.Receipt(task.Link()); r == nil {
			t.Errorf("no receipt of %s", task.Link())
		} else if err := capabilities.VerifyReceipt(t.Context(), r, task.UCAN, s); err != nil {
			t.Error(err)
		}
	}

	// The published roles serve no receipts: that is not an error.
	if _, err := s.conn("storefront").Receipt(t.Context(), tasks[0].Link()); !errors.Is(err, capabilities.ErrNoReceipt) {
		t.Errorf("fetching a receipt: %v", err)
	}
}
