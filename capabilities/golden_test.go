package capabilities_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// golden is what the JavaScript packages made, with keys that are for tests only.
type golden struct {
	Keys      map[string]struct{ DID, Secret string }
	Pieces    []struct{ Piece, Content string }
	Aggregate struct {
		Size        uint64
		Link        string
		PiecesBlock struct{ CID, Hex string }
		Proofs      []struct {
			Piece   string
			CBORHex string `json:"cborHex"`
		}
	}
	UCANs map[string]struct{ CID, Hex string } `json:"ucans"`
}

func readGolden(t testing.TB) golden {
	t.Helper()
	b, err := os.ReadFile("testdata/js-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g golden) signer(t testing.TB, name string) capabilities.Signer {
	t.Helper()
	s, err := wire.ParseSigner(g.Keys[name].Secret)
	if err != nil {
		t.Fatal(err)
	}
	if s.DID().String() != g.Keys[name].DID {
		t.Fatalf("key of %s gives %s, want %s", name, s.DID(), g.Keys[name].DID)
	}
	return s
}

func (g golden) link(t testing.TB, i int) piece.Link {
	t.Helper()
	l, err := piece.Parse(g.Pieces[i].Piece)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestGoldenUCANs signs the nine UCANs of the JavaScript packages again, through the typed capabilities, and gets the same bytes.
func TestGoldenUCANs(t *testing.T) {
	g := readGolden(t)
	agent, storefront := g.signer(t, "agent"), g.signer(t, "storefront")
	aggregator, dealer, tracker := g.signer(t, "aggregator"), g.signer(t, "dealer"), g.signer(t, "tracker")
	content := cid.MustParse(g.Pieces[0].Content)
	link := g.link(t, 0)
	agg, err := piece.Parse(g.Aggregate.Link)
	if err != nil {
		t.Fatal(err)
	}
	list := cid.MustParse(g.Aggregate.PiecesBlock.CID)
	group := storefront.DID().String()

	proof, err := capabilities.Delegate(aggregator, storefront.DID(),
		[]capabilities.Grant{{Can: piececap.OfferAbility, With: aggregator.DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		issuer   capabilities.Signer
		audience capabilities.Signer
		with     capabilities.Signer
		caveats  capabilities.Caveats
		terms    capabilities.Terms
	}{
		{"filecoin/offer", agent, storefront, agent, &filecoin.Offer{Content: content, Piece: link}, capabilities.Terms{}},
		{"filecoin/submit", storefront, storefront, storefront, &filecoin.Submit{Content: content, Piece: link}, capabilities.Terms{}},
		{"filecoin/accept", storefront, storefront, storefront, &filecoin.Accept{Content: content, Piece: link}, capabilities.Terms{}},
		{"piece/offer (delegated)", storefront, aggregator, aggregator, &piececap.Offer{Piece: link, Group: group},
			capabilities.Terms{Proofs: []capabilities.Delegation{proof}}},
		{"piece/accept", aggregator, aggregator, aggregator, &piececap.Accept{Piece: link, Group: group}, capabilities.Terms{}},
		// The predecessor names the aggregator here; what we emit names the executor, the dealer.
		{"aggregate/offer", aggregator, dealer, aggregator, &aggregate.Offer{Aggregate: agg, Pieces: list}, capabilities.Terms{}},
		{"aggregate/accept", dealer, dealer, dealer, &aggregate.Accept{Aggregate: agg, Pieces: list}, capabilities.Terms{}},
		{"deal/info", dealer, tracker, dealer, &deal.Info{Piece: agg}, capabilities.Terms{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task, err := capabilities.Invoke(tt.issuer, tt.audience.DID(), tt.with.DID().String(), tt.caveats, tt.terms)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, g, tt.name, task.UCAN)
		})
	}
	compare(t, g, "proof: aggregator delegates piece/offer to storefront", proof.UCAN)
}

func compare(t *testing.T, g golden, name string, u *capabilities.UCAN) {
	t.Helper()
	want, ok := g.UCANs[name]
	if !ok {
		t.Fatalf("no vector %q", name)
	}
	if got := hex.EncodeToString(u.Block().Bytes); got != want.Hex || u.Link().String() != want.CID {
		t.Errorf("%s\n got %s %s\nwant %s %s", name, u.Link(), got, want.CID, want.Hex)
	}
}

func TestGoldenPiecesBlock(t *testing.T) {
	g := readGolden(t)
	var links []piece.Link
	for i := range g.Pieces {
		links = append(links, g.link(t, i))
	}
	b := aggregate.Pieces(links)
	if got := hex.EncodeToString(b.Bytes); got != g.Aggregate.PiecesBlock.Hex || b.CID.String() != g.Aggregate.PiecesBlock.CID {
		t.Errorf("got %s %s", b.CID, got)
	}
	back, err := aggregate.ReadPieces(b.Bytes)
	if err != nil || fmt.Sprint(back) != fmt.Sprint(links) {
		t.Errorf("read back %v, %v", back, err)
	}
}

// TestGoldenInclusion: proofs are emitted in the deployed shape, inside the results that carry them.
func TestGoldenInclusion(t *testing.T) {
	g := readGolden(t)
	agg, err := piece.Parse(g.Aggregate.Link)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range g.Aggregate.Proofs {
		raw, err := hex.DecodeString(p.CBORHex)
		if err != nil {
			t.Fatal(err)
		}
		var proof segment.InclusionProof
		if err := proof.UnmarshalCBOR(raw); err != nil {
			t.Fatal(err)
		}
		ok := piececap.AcceptOK{Piece: g.link(t, i), Aggregate: agg, Inclusion: capabilities.Inclusion{InclusionProof: proof}}
		if err := ok.Verify(); err != nil {
			t.Errorf("proof %d: %v", i, err)
		}
		enc := capabilities.Encode(&ok)
		if !bytes.Contains(enc, raw) {
			t.Errorf("proof %d is not in the result as JavaScript writes it", i)
		}
		var back piececap.AcceptOK
		if err := capabilities.Decode(enc, &back); err != nil || back.Verify() != nil {
			t.Errorf("proof %d does not come back: %v", i, err)
		}
	}
}

// TestRoundTrips: whatever a capability writes it reads.
func TestRoundTrips(t *testing.T) {
	g := readGolden(t)
	link, content := g.link(t, 1), cid.MustParse(g.Pieces[1].Content)
	meta := capabilities.DealMetadata{DealID: 42}
	for _, tt := range []struct{ in, out capabilities.Struct }{
		{&filecoin.Offer{Content: content, Piece: link, PDP: content}, new(filecoin.Offer)},
		{&filecoin.InfoOK{Piece: link}, new(filecoin.InfoOK)},
		{&filecoin.InfoOK{Piece: link, Deals: filecoin.Deals{{Aggregate: link, Provider: "f01000", Aux: meta}}}, new(filecoin.InfoOK)},
		{&aggregate.AcceptOK{Aggregate: link, DealMetadata: meta}, new(aggregate.AcceptOK)},
		{&deal.InfoOK{Deals: deal.Deals{1: {Provider: "f01"}, 1111: {Provider: "f02", Status: deal.StatusActive, Expiration: -3}}}, new(deal.InfoOK)},
		{capabilities.NewInvalidPiece(link, []piece.Link{link}).Details, new(capabilities.InvalidPieceDetails)},
	} {
		b := capabilities.Encode(tt.in)
		if err := capabilities.Decode(b, tt.out); err != nil {
			t.Errorf("%T: %v", tt.in, err)
			continue
		}
		if again := capabilities.Encode(tt.out); !bytes.Equal(again, b) {
			t.Errorf("%T: wrote %x, read and wrote %x", tt.in, b, again)
		}
	}
}

func TestDecodeNamesTheField(t *testing.T) {
	g := readGolden(t)
	missing := capabilities.Encode(&filecoin.Info{Piece: g.link(t, 0)})
	if err := capabilities.Decode(missing, new(filecoin.Offer)); err == nil || !bytes.Contains([]byte(err.Error()), []byte("content")) {
		t.Errorf("a missing field is not named: %v", err)
	}
	v1 := capabilities.Encode(&filecoin.Offer{Content: cid.MustParse(g.Pieces[0].Content), Piece: g.link(t, 0)})
	v1 = bytes.Replace(v1, g.link(t, 0).CID().Bytes(), append(cid.MustParse(g.Pieces[0].Content).Bytes(), make([]byte, 3)...), 1)
	if err := capabilities.Decode(v1, new(filecoin.Offer)); err == nil {
		t.Error("a piece that is not a piece CID was accepted")
	}
}

func TestFailures(t *testing.T) {
	g := readGolden(t)
	link, content := g.link(t, 0), cid.MustParse(g.Pieces[0].Content)
	m := capabilities.Mismatch{Content: content, Piece: link, Computed: g.link(t, 1)}
	f := capabilities.NewInvalidContentPiece(m)
	back := capabilities.ReadFailure(f.Encode())
	var details capabilities.Mismatch
	if err := back.ReadDetails(&details); err != nil || back.Name != capabilities.InvalidContentPiece || back.Message != f.Message || details != m {
		t.Errorf("read %v %+v, %v", back, details, err)
	}
	if !bytes.Equal(back.Encode(), f.Encode()) {
		t.Error("a failure that was read encodes to other bytes")
	}
	text, err := cbor.ToJSON(capabilities.NewQuarantineEnded(link, "did:web:a/quarantine", time.Unix(1_800_000_000, 0)).Encode())
	if want := `{"group":"did:web:a/quarantine","message":"piece ` + link.String() + ` of group did:web:a/quarantine was kept apart, as too much that was offered ` +
		`with it was proven wrong, and since 2027-01-15T08:00:00Z too little came to fill an aggregate","name":"QuarantineEnded","piece":{"/":"` + link.String() +
		`"},"since":1800000000}`; err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	if odd := capabilities.ReadFailure([]byte{0x63, 'o', 'd', 'd'}); odd.Name != "Error" || odd.Message != `"odd"` {
		t.Errorf("an error that is no map became %v", odd)
	}
}

func TestCovers(t *testing.T) {
	g := readGolden(t)
	pieceA, pieceB := g.link(t, 0), g.link(t, 1)
	nb := func(p piece.Link) []byte { return capabilities.Encode(&piececap.Offer{Piece: p, Group: "g"}) }
	only := func(p piece.Link) []byte { return capabilities.Encode(&filecoin.Info{Piece: p}) }
	claim := wire.Capability{Can: "piece/offer", With: "did:key:z1", Nb: nb(pieceA)}
	for _, tt := range []struct {
		name      string
		delegated wire.Capability
		ok        bool
	}{
		{"the same", claim, true},
		{"without caveats", wire.Capability{Can: "piece/offer", With: "did:key:z1"}, true},
		{"with empty caveats", wire.Capability{Can: "piece/offer", With: "did:key:z1", Nb: []byte{0xa0}}, true},
		{"namespace", wire.Capability{Can: "piece/*", With: "did:key:z1"}, true},
		{"everything", wire.Capability{Can: "*", With: "did:key:z1"}, true},
		{"every resource", wire.Capability{Can: "piece/offer", With: "ucan:*"}, true},
		{"one caveat of two", wire.Capability{Can: "piece/offer", With: "did:key:z1", Nb: only(pieceA)}, true},
		{"another piece", wire.Capability{Can: "piece/offer", With: "did:key:z1", Nb: only(pieceB)}, false},
		{"another piece under everything", wire.Capability{Can: "*", With: "ucan:*", Nb: only(pieceB)}, false},
		{"a caveat that the claim lacks", wire.Capability{Can: "piece/offer", With: "did:key:z1",
			Nb: capabilities.Encode(&filecoin.Submit{Content: cid.MustParse(g.Pieces[0].Content), Piece: pieceA})}, false},
		{"another resource", wire.Capability{Can: "piece/offer", With: "did:key:z2"}, false},
		{"another ability", wire.Capability{Can: "piece/accept", With: "did:key:z1"}, false},
		{"another namespace", wire.Capability{Can: "pie/*", With: "did:key:z1"}, false},
		{"part of a namespace", wire.Capability{Can: "piece/of*", With: "did:key:z1"}, false},
	} {
		if err := capabilities.Covers(tt.delegated, claim); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestArchive(t *testing.T) {
	g := readGolden(t)
	root, err := capabilities.Delegate(g.signer(t, "aggregator"), g.signer(t, "storefront").DID(),
		[]capabilities.Grant{{Can: "piece/*", With: g.Keys["aggregator"].DID}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := capabilities.Delegate(g.signer(t, "storefront"), g.signer(t, "agent").DID(),
		[]capabilities.Grant{{Can: "piece/offer", With: g.Keys["aggregator"].DID}},
		capabilities.Terms{Proofs: []capabilities.Delegation{root}, Expiration: time.Unix(1800000000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := capabilities.Extract(capabilities.Archive(sub))
	if err != nil {
		t.Fatal(err)
	}
	if !back.Link().Equals(sub.Link()) || len(back.Proofs) != 1 || !back.Proofs[0].CID.Equals(root.Link()) {
		t.Errorf("got %s with %d proofs", back.Link(), len(back.Proofs))
	}
	if _, err := capabilities.Extract([]byte("nonsense")); err == nil {
		t.Error("nonsense was extracted")
	}
}

func FuzzDecode(f *testing.F) {
	g := readGolden(f)
	f.Add(capabilities.Encode(&filecoin.Offer{Content: cid.MustParse(g.Pieces[0].Content), Piece: g.link(f, 0)}))
	f.Add(capabilities.Encode(&deal.InfoOK{Deals: deal.Deals{7: {Provider: "f01"}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range []capabilities.Struct{new(filecoin.Offer), new(filecoin.AcceptOK), new(filecoin.InfoOK), new(deal.InfoOK),
			new(capabilities.InvalidPieceDetails)} {
			if capabilities.Decode(b, s) == nil {
				// What was read can be written and read again.
				if err := capabilities.Decode(capabilities.Encode(s), s); err != nil {
					t.Errorf("%T: %v", s, err)
				}
			}
		}
		_ = capabilities.ReadFailure(b).Encode()
		_, _ = aggregate.ReadPieces(b)
	})
}
