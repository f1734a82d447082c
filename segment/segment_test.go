package segment_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/filecoin-project/go-data-segment/datasegment"
	"github.com/filecoin-project/go-data-segment/merkletree"
	"github.com/filecoin-project/go-state-types/abi"
	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// byLink compares links by value.
var byLink = cmp.Comparer(func(a, b piece.Link) bool { return a == b })

// randomLink returns a made-up piece of the given height, with a payload of any size that gives that height.
func randomLink(t testing.TB, rng *rand.Rand, height uint8) piece.Link {
	t.Helper()
	var root piece.Node
	for i := range root {
		root[i] = byte(rng.Uint32())
	}
	root[31] &= 0x3f
	l, err := piece.FromRootAndHeight(root, height, rng.Uint64N(piece.UnpaddedSize(32<<height)/2-1))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustBuild(t testing.TB, dealSize uint64, pieces []piece.Link) *segment.Aggregate {
	t.Helper()
	a, err := segment.Build(dealSize, pieces)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustProve(t testing.TB, a *segment.Aggregate, i int) segment.InclusionProof {
	t.Helper()
	p, err := a.Proof(i)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// goldenProof is a proof that the JavaScript implementation made.
type goldenProof struct {
	Piece   piece.Link `json:"piece"`
	Subtree goldenData `json:"subtree"`
	Index   goldenData `json:"index"`
	CBOR    string     `json:"cbor"`
}

type goldenData struct {
	Offset uint64   `json:"offset"`
	Path   []string `json:"path"`
}

func (d goldenData) proofData(t testing.TB) segment.ProofData {
	t.Helper()
	out := segment.ProofData{Offset: d.Offset}
	for _, s := range d.Path {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		out.Path = append(out.Path, piece.Node(b))
	}
	return out
}

type goldenAggregate struct {
	DealSize uint64        `json:"dealSize"`
	Link     piece.Link    `json:"link"`
	Proofs   []goldenProof `json:"proofs"`
}

func golden(t testing.TB) goldenAggregate {
	t.Helper()
	b, err := os.ReadFile("testdata/javascript.json")
	if err != nil {
		t.Fatal(err)
	}
	var g goldenAggregate
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Proofs) == 0 {
		t.Fatal("no vectors")
	}
	return g
}

func (g goldenAggregate) pieces() []piece.Link {
	var out []piece.Link
	for _, p := range g.Proofs {
		out = append(out, p.Piece)
	}
	return out
}

func TestGoldenAggregate(t *testing.T) {
	g := golden(t)
	a := mustBuild(t, g.DealSize, g.pieces())
	if a.Link() != g.Link {
		t.Errorf("aggregate %v, want %v", a.Link(), g.Link)
	}
	for i, want := range g.Proofs {
		proof := mustProve(t, a, i)
		wantProof := segment.InclusionProof{Subtree: want.Subtree.proofData(t), Index: want.Index.proofData(t)}
		if diff := cmp.Diff(wantProof, proof); diff != "" {
			t.Errorf("proof %d (-want +got):\n%s", i, diff)
		}
		if err := segment.Verify(proof, want.Piece, g.Link); err != nil {
			t.Errorf("proof %d: %v", i, err)
		}
		b, err := proof.MarshalCBOR()
		if err != nil || hex.EncodeToString(b) != want.CBOR {
			t.Errorf("proof %d encodes to %x, %v; want %s", i, b, err, want.CBOR)
		}
		var back segment.InclusionProof
		if err := back.UnmarshalCBOR(b); err != nil {
			t.Errorf("proof %d: %v", i, err)
		}
		if diff := cmp.Diff(wantProof, back); diff != "" {
			t.Errorf("decoded proof %d (-want +got):\n%s", i, diff)
		}
	}
}

// pieceInfos returns pieces as go-data-segment takes them.
func pieceInfos(pieces []piece.Link) []abi.PieceInfo {
	out := make([]abi.PieceInfo, len(pieces))
	for i, p := range pieces {
		out[i] = abi.PieceInfo{Size: abi.PaddedPieceSize(p.PaddedSize()), PieceCID: p.V1()}
	}
	return out
}

// oracleProof returns a proof as go-data-segment has it.
func oracleProof(p segment.InclusionProof) datasegment.InclusionProof {
	data := func(d segment.ProofData) merkletree.ProofData {
		out := merkletree.ProofData{Index: d.Offset}
		for _, n := range d.Path {
			out.Path = append(out.Path, merkletree.Node(n))
		}
		return out
	}
	return datasegment.InclusionProof{ProofSubtree: data(p.Subtree), ProofIndex: data(p.Index)}
}

// checkAgainstOracle builds the aggregate with go-data-segment as well and compares everything it can tell.
func checkAgainstOracle(t *testing.T, dealSize uint64, pieces []piece.Link) (built bool) {
	t.Helper()
	want, wantErr := datasegment.NewAggregate(abi.PaddedPieceSize(dealSize), pieceInfos(pieces))
	got, err := segment.Build(dealSize, pieces)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%d pieces in %d bytes: error %v, go-data-segment says %v", len(pieces), dealSize, err, wantErr)
	}
	if err != nil {
		if !errors.Is(err, segment.ErrDoesNotFit) && !errors.Is(err, segment.ErrTooManyPieces) {
			t.Fatalf("%d pieces in %d bytes: %v, go-data-segment says %v", len(pieces), dealSize, err, wantErr)
		}
		return false
	}

	link, err := want.PieceCID()
	if err != nil {
		t.Fatal(err)
	}
	if got.Link().V1() != link || got.Link().PaddedSize() != dealSize || got.Link().Padding() != 0 {
		t.Fatalf("%d pieces in %d bytes: %v (v1 %v), want %v", len(pieces), dealSize, got.Link(), got.Link().V1(), link)
	}
	if got.DealSize() != dealSize || got.Len() != len(pieces) {
		t.Fatalf("deal size %d, %d pieces", got.DealSize(), got.Len())
	}
	wantIndex, err := want.IndexReader()
	if err != nil {
		t.Fatal(err)
	}
	// The used entries and a stretch behind them are compared; the rest is zeros by the megabyte.
	gotBytes := make([]byte, min(got.IndexReader().Size(), int64(len(pieces)*segment.EntrySize/127*127+10*127)))
	wantBytes := make([]byte, len(gotBytes))
	if _, err := io.ReadFull(wantIndex, wantBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(got.IndexReader(), gotBytes); err != nil || !bytes.Equal(gotBytes, wantBytes) {
		t.Fatalf("index differs (%v)", err)
	}
	wantSize, err := want.IndexSize()
	if err != nil || got.IndexReader().Size() != int64(wantSize.Unpadded()) {
		t.Fatalf("index of %d bytes, want %d padded, %v", got.IndexReader().Size(), wantSize, err)
	}
	start, err := want.IndexStartPosition()
	if err != nil || piece.UnpaddedSize(got.IndexStart()) != start {
		t.Fatalf("index at %d (padded), want %d (unpadded), %v", got.IndexStart(), start, err)
	}
	entries, err := segment.ReadIndex(bytes.NewReader(gotBytes))
	if err != nil || len(entries) != len(pieces) {
		t.Fatalf("index has %d entries, %v, want %d", len(entries), err, len(pieces))
	}

	for i, p := range pieces {
		e := want.Index.Entries[i]
		if got.Piece(i) != p || got.Offset(i) != e.Offset {
			t.Fatalf("piece %d: %v at %d, want %v at %d", i, got.Piece(i), got.Offset(i), p, e.Offset)
		}
		if entries[i] != (segment.Entry{Root: p.Root(), Offset: e.Offset, Size: p.PaddedSize()}) {
			t.Fatalf("entry %d is %+v", i, entries[i])
		}
		if n, ok := got.EntryOf(p); !ok || n != i {
			t.Fatalf("EntryOf(piece %d) = %d, %v", i, n, ok)
		}
		proof := mustProve(t, got, i)
		wantProof, err := want.ProofForIndexEntry(i)
		if err != nil {
			t.Fatal(err)
		}
		if got := oracleProof(proof); !reflect.DeepEqual(*wantProof, got) {
			t.Fatalf("proof %d (-want +got):\n%s", i, cmp.Diff(*wantProof, got))
		}
		if err := segment.Verify(proof, p, got.Link()); err != nil {
			t.Fatalf("proof %d: %v", i, err)
		}
	}
	return true
}

// order returns pieces in one of several orders.
func order(rng *rand.Rand, pieces []piece.Link, kind int) {
	switch kind {
	case 0:
		segment.SortDescending(pieces)
	case 1:
		segment.SortDescending(pieces)
		slices.Reverse(pieces)
	default:
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	}
}

func TestAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	built, refused := 0, 0
	cases := 1500
	if testing.Short() {
		cases = 300
	}
	for c := range cases {
		dealHeight := 2 + c%30 // 128 bytes to 64 GiB
		maxHeight := min(max(dealHeight-1, 3), 2+rng.IntN(29))
		pieces := make([]piece.Link, 1+rng.IntN(min(60, 8+c)))
		for i := range pieces {
			pieces[i] = randomLink(t, rng, uint8(2+rng.IntN(maxHeight-1)))
		}
		order(rng, pieces, c/30%3)
		if checkAgainstOracle(t, 32<<dealHeight, pieces) {
			built++
		} else {
			refused++
			// What was too much fits in part.
			if offsets, err := segment.Place(pieces[:1], 32<<dealHeight); err == nil && len(offsets) == 1 {
				checkAgainstOracle(t, 32<<dealHeight, pieces[:1])
			}
		}
	}
	if built < 100 || refused < 50 {
		t.Errorf("%d built, %d refused: the cases test too little", built, refused)
	}
}

func TestFullAggregates(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	// Every entry of the index in use: a 1 MiB deal has 8 of them, a 1 GiB deal 8,192.
	for _, dealSize := range []uint64{4 << 10, 1 << 20, 64 << 20, 1 << 30} {
		if testing.Short() && dealSize > 64<<20 {
			continue
		}
		pieces := make([]piece.Link, segment.MaxEntries(dealSize))
		for i := range pieces {
			pieces[i] = randomLink(t, rng, uint8(2+rng.IntN(2)))
		}
		for kind := range 3 {
			if kind > 0 && len(pieces) > 1000 {
				break // once is enough for the large ones
			}
			order(rng, pieces, kind)
			if !checkAgainstOracle(t, dealSize, pieces) {
				t.Errorf("%d pieces do not fit %d bytes", len(pieces), dealSize)
			}
		}
		_, err := segment.Build(dealSize, append(pieces, randomLink(t, rng, 2)))
		if !errors.Is(err, segment.ErrTooManyPieces) {
			t.Errorf("a piece too many for %d bytes: %v", dealSize, err)
		}
	}
	// Every padded byte in use: pieces of half the deal, a quarter and so on, down to the size of the index.
	const dealSize = 32 << 30
	var pieces []piece.Link
	for h := uint8(29); 32<<h >= 16<<20; h-- {
		pieces = append(pieces, randomLink(t, rng, h))
	}
	if !checkAgainstOracle(t, dealSize, pieces) {
		t.Error("pieces that fill the deal do not fit")
	}
	offsets, err := segment.Place(pieces, dealSize)
	last := len(pieces) - 1
	if err != nil || offsets[last]+pieces[last].PaddedSize() != segment.ContentCapacity(dealSize) {
		t.Errorf("pieces end elsewhere than at the index: %v, %v", offsets, err)
	}
	if _, err := segment.Build(dealSize, append(pieces, randomLink(t, rng, 2))); !errors.Is(err, segment.ErrDoesNotFit) {
		t.Errorf("a piece more: %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	a, b, large := randomLink(t, rng, 5), randomLink(t, rng, 6), randomLink(t, rng, 14)
	tests := []struct {
		name     string
		dealSize uint64
		pieces   []piece.Link
		want     error
	}{
		{"no pieces", 1 << 20, nil, segment.ErrNoPieces},
		{"empty list", 1 << 20, []piece.Link{}, segment.ErrNoPieces},
		{"the same piece twice", 1 << 20, []piece.Link{a, b, a}, segment.ErrDuplicate},
		{"five pieces, four entries", 1 << 12, []piece.Link{a, a, a, a, b}, segment.ErrTooManyPieces},
		{"piece of half the deal and another", 1 << 20, []piece.Link{b, large, a}, segment.ErrDoesNotFit},
		{"deal that is all index", 256, []piece.Link{randomLink(t, rng, 2)}, segment.ErrDoesNotFit},
		{"deal smaller than the index", 128, []piece.Link{randomLink(t, rng, 2)}, segment.ErrDoesNotFit},
		{"undefined piece", 1 << 20, []piece.Link{a, {}}, nil},
		{"no deal size", 0, []piece.Link{a}, nil},
		{"deal size between powers of two", 3 << 20, []piece.Link{a}, nil},
		{"deal size above 64 GiB", 128 << 30, []piece.Link{a}, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := segment.Build(tc.dealSize, tc.pieces)
			if err == nil || got != nil {
				t.Fatalf("built %v, %v", got, err)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
	// Pieces of one root and size that differ in padding have links of their own, and places of their own.
	other, err := piece.FromRootAndHeight(a.Root(), a.Height(), a.Padding()^1)
	if err != nil {
		t.Fatal(err)
	}
	agg := mustBuild(t, 1<<20, []piece.Link{a, other})
	for i, p := range []piece.Link{a, other} {
		if n, ok := agg.EntryOf(p); !ok || n != i {
			t.Errorf("EntryOf(%v) = %d, %v", p, n, ok)
		}
		if err := segment.Verify(mustProve(t, agg, i), p, agg.Link()); err != nil {
			t.Error(err)
		}
	}
	if n, ok := agg.EntryOf(b); ok {
		t.Errorf("EntryOf a piece that is not there = %d", n)
	}
	for _, i := range []int{-1, 2} {
		if _, err := agg.Proof(i); err == nil {
			t.Errorf("proof of piece %d of 2", i)
		}
	}
}

// TestBuildKeepsItsPieces changes the list that an aggregate was built from.
func TestBuildKeepsItsPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	pieces := []piece.Link{randomLink(t, rng, 3), randomLink(t, rng, 4)}
	want := slices.Clone(pieces)
	a := mustBuild(t, 1<<20, pieces)
	pieces[0] = piece.Link{}
	if diff := cmp.Diff(want, []piece.Link{a.Piece(0), a.Piece(1)}, byLink); diff != "" {
		t.Error(diff)
	}
}

func TestSizes(t *testing.T) {
	// From the reference implementations, which agree.
	for dealSize, want := range map[uint64]int{
		128: 4, 1 << 10: 4, 512 << 10: 4, 1 << 20: 8, 1 << 30: 8192, 8 << 30: 65536, 16 << 30: 131072,
		32 << 30: 262144, 64 << 30: 524288,
	} {
		if got := segment.MaxEntries(dealSize); got != want {
			t.Errorf("MaxEntries(%d) = %d, want %d", dealSize, got, want)
		}
	}
	for h := 2; h <= 31; h++ {
		dealSize := uint64(32) << h
		if got, want := segment.MaxEntries(dealSize), int(datasegment.MaxIndexEntriesInDeal(abi.PaddedPieceSize(dealSize))); got != want {
			t.Errorf("MaxEntries(%d) = %d, want %d", dealSize, got, want)
		}
	}
	for dealSize, want := range map[uint64]uint64{128: 0, 256: 0, 512: 256, 1 << 20: 1<<20 - 512, 32 << 30: 32<<30 - 16<<20} {
		if got := segment.ContentCapacity(dealSize); got != want {
			t.Errorf("ContentCapacity(%d) = %d, want %d", dealSize, got, want)
		}
	}
}

func TestSortDescending(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	pieces := make([]piece.Link, 500)
	var sum uint64
	for i := range pieces {
		pieces[i] = randomLink(t, rng, uint8(2+rng.IntN(12)))
		sum += pieces[i].PaddedSize()
	}
	again := slices.Clone(pieces)
	slices.Reverse(again)
	segment.SortDescending(pieces)
	segment.SortDescending(again)
	if diff := cmp.Diff(pieces, again, byLink); diff != "" {
		t.Errorf("the order depends on the order before:\n%s", diff)
	}
	for i := 1; i < len(pieces); i++ {
		a, b := pieces[i-1], pieces[i]
		if a.Height() < b.Height() || a.Height() == b.Height() && a.Compare(b) > 0 {
			t.Errorf("%v stands before %v", a, b)
		}
	}
	offsets, err := segment.Place(pieces, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	last := len(pieces) - 1
	if end := offsets[last] + pieces[last].PaddedSize(); end != sum {
		t.Errorf("placed in %d bytes, want %d: there are gaps", end, sum)
	}
}

func TestConcurrentProofs(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	pieces := make([]piece.Link, 200)
	for i := range pieces {
		pieces[i] = randomLink(t, rng, uint8(2+rng.IntN(8)))
	}
	a := mustBuild(t, 1<<30, pieces)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i, p := range pieces {
				proof, err := a.Proof(i)
				if err == nil {
					err = segment.Verify(proof, p, a.Link())
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}
