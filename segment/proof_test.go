package segment_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/filecoin-project/go-data-segment/datasegment"
	"github.com/google/go-cmp/cmp"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	"github.com/ipld/go-ipld-prime/node/basicnode"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

func clone(p segment.InclusionProof) segment.InclusionProof {
	p.Subtree.Path = slices.Clone(p.Subtree.Path)
	p.Index.Path = slices.Clone(p.Index.Path)
	return p
}

// TestVerifyRefuses changes one thing at a time in a proof that holds.
func TestVerifyRefuses(t *testing.T) {
	g := golden(t)
	a := mustBuild(t, g.DealSize, g.pieces())
	const i = 2
	p := a.Piece(i)
	otherPadding, err := piece.FromRootAndHeight(a.Link().Root(), a.Link().Height(), 1)
	if err != nil {
		t.Fatal(err)
	}
	larger, err := piece.FromRootAndHeight(a.Link().Root(), a.Link().Height()+1, 0)
	if err != nil {
		t.Fatal(err)
	}
	taller, err := piece.FromRootAndHeight(p.Root(), p.Height()+1, 0)
	if err != nil {
		t.Fatal(err)
	}
	none := func(*segment.InclusionProof) {}
	tests := []struct {
		name      string
		change    func(*segment.InclusionProof)
		piece     piece.Link
		aggregate piece.Link
	}{
		{"other piece", none, a.Piece(3), a.Link()},
		{"other height of the piece", none, taller, a.Link()},
		{"undefined piece", none, piece.Link{}, a.Link()},
		{"undefined aggregate", none, p, piece.Link{}},
		{"other aggregate", none, p, mustBuild(t, g.DealSize, g.pieces()[:4]).Link()},
		{"aggregate with padding", none, p, otherPadding},
		{"aggregate of another size", none, p, larger},
		{"no subtree", func(p *segment.InclusionProof) { p.Subtree = segment.ProofData{} }, p, a.Link()},
		{"no index", func(p *segment.InclusionProof) { p.Index = segment.ProofData{} }, p, a.Link()},
		{"nothing", func(p *segment.InclusionProof) { *p = segment.InclusionProof{} }, p, a.Link()},
		{"subtree at another place", func(p *segment.InclusionProof) { p.Subtree.Offset ^= 1 }, p, a.Link()},
		{"entry at another place", func(p *segment.InclusionProof) { p.Index.Offset ^= 1 }, p, a.Link()},
		{"subtree offset off the tree", func(p *segment.InclusionProof) {
			p.Subtree.Offset += 1 << len(p.Subtree.Path)
		}, p, a.Link()},
		{"entry offset off the tree", func(p *segment.InclusionProof) {
			p.Index.Offset += 1 << len(p.Index.Path)
		}, p, a.Link()},
		{"huge offsets", func(p *segment.InclusionProof) { p.Subtree.Offset, p.Index.Offset = 1<<63, 1<<63 }, p, a.Link()},
		{"short subtree", func(p *segment.InclusionProof) {
			p.Subtree.Path = p.Subtree.Path[:len(p.Subtree.Path)-1]
		}, p, a.Link()},
		{"short index", func(p *segment.InclusionProof) {
			p.Index.Path = p.Index.Path[:len(p.Index.Path)-1]
		}, p, a.Link()},
		{"both too long", func(p *segment.InclusionProof) {
			p.Subtree.Path = append(p.Subtree.Path, make([]piece.Node, 100)...)
			p.Index.Path = append(p.Index.Path, make([]piece.Node, 100)...)
		}, p, a.Link()},
		{"swapped", func(p *segment.InclusionProof) { p.Subtree, p.Index = p.Index, p.Subtree }, p, a.Link()},
		{"entry of another piece", func(p *segment.InclusionProof) { p.Index = mustProve(t, a, 3).Index }, p, a.Link()},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			proof := clone(mustProve(t, a, i))
			tc.change(&proof)
			if err := segment.Verify(proof, tc.piece, tc.aggregate); !errors.Is(err, segment.ErrProof) {
				t.Errorf("error %v, want ErrProof", err)
			}
		})
	}
	for _, path := range []func(*segment.InclusionProof) []piece.Node{
		func(p *segment.InclusionProof) []piece.Node { return p.Subtree.Path },
		func(p *segment.InclusionProof) []piece.Node { return p.Index.Path },
	} {
		proof := clone(mustProve(t, a, i))
		for k := range path(&proof) {
			path(&proof)[k][7] ^= 1
			if err := segment.Verify(proof, p, a.Link()); !errors.Is(err, segment.ErrProof) {
				t.Errorf("node %d changed: error %v, want ErrProof", k, err)
			}
			path(&proof)[k][7] ^= 1
		}
		if err := segment.Verify(proof, p, a.Link()); err != nil {
			t.Errorf("the proof itself: %v", err)
		}
	}
}

// TestEntryOutsideTheIndex proves a true inclusion of a piece and of its entry, the entry lying among the pieces, where
// nobody looks for it.
func TestEntryOutsideTheIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	p := randomLink(t, rng, 2)
	// The piece is the first quad of a deal. Its entry, as data, is half of the second quad.
	honest := mustBuild(t, 1<<12, []piece.Link{p})
	index, err := segment.ReadIndex(honest.IndexReader())
	if err != nil || len(index) != 1 {
		t.Fatal(index, err)
	}
	head := make([]byte, 127)
	if _, err := honest.IndexReader().ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	quad := make([]byte, 128)
	piece.Pad(quad, head)
	entry := make([]piece.Node, 2)
	copy(entry[0][:], quad[:32])
	copy(entry[1][:], quad[32:64])

	entryNode := piece.HashPair(&entry[0], &entry[1])
	zero := piece.ZeroRoot(1)
	fake := piece.HashPair(&entryNode, &zero)
	root := p.Root()
	node := piece.HashPair(&root, &fake)
	proof := segment.InclusionProof{
		Subtree: segment.ProofData{Offset: 0, Path: []piece.Node{fake}},
		Index:   segment.ProofData{Offset: 2, Path: []piece.Node{zero, root}},
	}
	for h := uint8(3); h < 7; h++ {
		zero := piece.ZeroRoot(h)
		node = piece.HashPair(&node, &zero)
		proof.Subtree.Path = append(proof.Subtree.Path, zero)
		proof.Index.Path = append(proof.Index.Path, zero)
	}
	aggregate, err := piece.FromRootAndHeight(node, 7, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := segment.Verify(proof, p, aggregate); !errors.Is(err, segment.ErrProof) {
		t.Errorf("error %v, want ErrProof", err)
	}
	oracle := oracleProof(proof)
	if _, err := oracle.ComputeExpectedAuxData(datasegment.VerifierDataForPieceInfo(pieceInfos([]piece.Link{p})[0])); err == nil {
		t.Error("go-data-segment takes the entry: the case tests nothing")
	}
}

// TestVerifyAgreesWithOracle damages proofs at random and asks go-data-segment what it makes of each.
func TestVerifyAgreesWithOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	pieces := make([]piece.Link, 30)
	for i := range pieces {
		pieces[i] = randomLink(t, rng, uint8(2+rng.IntN(10)))
	}
	a := mustBuild(t, 1<<22, pieces)
	holds := 0
	for c := range 2000 {
		i := rng.IntN(len(pieces))
		p, proof := pieces[i], clone(mustProve(t, a, i))
		for range c % 3 {
			data := &proof.Subtree
			if rng.IntN(2) == 0 {
				data = &proof.Index
			}
			switch rng.IntN(5) {
			case 0:
				data.Offset = uint64(rng.IntN(1 << 18))
			case 1:
				data.Path = data.Path[:rng.IntN(len(data.Path)+1)]
			case 2:
				data.Path = append(data.Path, piece.ZeroRoot(uint8(rng.IntN(32))))
			case 3:
				if len(data.Path) > 0 {
					data.Path[rng.IntN(len(data.Path))][rng.IntN(32)] ^= 1
				}
			case 4:
				p = pieces[rng.IntN(len(pieces))]
			}
		}
		got, err := segment.AggregateOf(proof, p)
		if err != nil && !errors.Is(err, segment.ErrProof) {
			t.Fatalf("error is not ErrProof: %v", err)
		}
		oracle := oracleProof(proof)
		want, wantErr := oracle.ComputeExpectedAuxData(datasegment.VerifierDataForPieceInfo(pieceInfos([]piece.Link{p})[0]))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%+v: error %v, go-data-segment says %v", proof, err, wantErr)
		}
		if err == nil {
			holds++
			if got.V1() != want.CommPa || got.PaddedSize() != uint64(want.SizePa) {
				t.Fatalf("aggregate %v, want %v of %d bytes", got, want.CommPa, want.SizePa)
			}
		}
	}
	if holds < 500 || holds > 1500 {
		t.Errorf("%d of 2000 proofs hold: the cases test too little", holds)
	}
}

// Shapes of a proof on the wire, made with go-ipld-prime.

func bytesPath(d segment.ProofData) qp.Assemble {
	return qp.List(int64(len(d.Path)), func(la datamodel.ListAssembler) {
		for _, n := range d.Path {
			qp.ListEntry(la, qp.Bytes(n[:]))
		}
	})
}

func tuple(d segment.ProofData) qp.Assemble {
	return qp.List(2, func(la datamodel.ListAssembler) {
		qp.ListEntry(la, qp.Int(int64(d.Offset)))
		qp.ListEntry(la, bytesPath(d))
	})
}

func pathAt(d segment.ProofData) qp.Assemble {
	return qp.Map(2, func(ma datamodel.MapAssembler) {
		qp.MapEntry(ma, "path", bytesPath(d))
		qp.MapEntry(ma, "at", qp.Int(int64(d.Offset)))
	})
}

func pairMap(k1 string, v1 qp.Assemble, k2 string, v2 qp.Assemble) qp.Assemble {
	return qp.Map(2, func(ma datamodel.MapAssembler) {
		qp.MapEntry(ma, k1, v1)
		qp.MapEntry(ma, k2, v2)
	})
}

func encode(t testing.TB, a qp.Assemble) []byte {
	t.Helper()
	nb := basicnode.Prototype.Any.NewBuilder()
	a(nb)
	var buf bytes.Buffer
	if err := dagcbor.Encode(nb.Build(), &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func shapes(t testing.TB, p segment.InclusionProof) map[string][]byte {
	t.Helper()
	wrap := func(d segment.ProofData) qp.Assemble { return qp.Bytes(encode(t, tuple(d))) }
	var reference bytes.Buffer
	oracle := oracleProof(p)
	if err := oracle.MarshalCBOR(&reference); err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"deployed":        encode(t, pairMap("subtree", tuple(p.Subtree), "index", tuple(p.Index))),
		"wrapped":         encode(t, pairMap("subtree", wrap(p.Subtree), "index", wrap(p.Index))),
		"specification":   encode(t, pairMap("tree", pathAt(p.Subtree), "index", pathAt(p.Index))),
		"go-data-segment": reference.Bytes(),
	}
}

func TestDecodeShapes(t *testing.T) {
	g := golden(t)
	a := mustBuild(t, g.DealSize, g.pieces())
	for i := range a.Len() {
		want := mustProve(t, a, i)
		for name, b := range shapes(t, want) {
			var got segment.InclusionProof
			if err := got.UnmarshalCBOR(b); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			encoded, err := want.MarshalCBOR()
			if err != nil {
				t.Fatal(err)
			}
			if name == "deployed" && !bytes.Equal(encoded, b) {
				t.Errorf("encodes to %x, want %x", encoded, b)
			}
		}
	}
	// Offsets of all widths.
	for _, offset := range []uint64{0, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, 1<<63 - 1} {
		want := segment.InclusionProof{Subtree: segment.ProofData{Offset: offset, Path: []piece.Node{}},
			Index: segment.ProofData{Offset: offset, Path: []piece.Node{{1}}}}
		b, err := want.MarshalCBOR()
		if err != nil || !bytes.Equal(b, shapes(t, want)["deployed"]) {
			t.Errorf("offset %d encodes to %x, %v", offset, b, err)
		}
		var got segment.InclusionProof
		if err := got.UnmarshalCBOR(b); err != nil {
			t.Errorf("offset %d: %v", offset, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("offset %d (-want +got):\n%s", offset, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	node := segment.ProofData{Offset: 1, Path: []piece.Node{{1}}}
	proof := segment.InclusionProof{Subtree: node, Index: node}
	long := segment.ProofData{Path: make([]piece.Node, 31)}
	dirty := segment.ProofData{Path: []piece.Node{{31: 0x40}}}
	valid, err := proof.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	data := encode(t, tuple(node))
	raw := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const index, subtree, list = "65696e646578", "6773756274726565", "820180" // "index", "subtree", [1, []]
	tests := map[string][]byte{
		"nothing":          nil,
		"trailing byte":    append(slices.Clone(valid), 0),
		"trailing proof":   append(slices.Clone(valid), valid...),
		"number":           {0x01},
		"null":             {0xf6},
		"empty map":        {0xa0},
		"keys swapped":     raw("a2" + subtree + list + index + list),
		"key twice":        raw("a2" + index + list + index + list),
		"key unknown":      raw("a2" + index + list + "6773756274726578" + list),
		"a third key":      raw("a3" + index + list + subtree + list + "676d6f72656d6f72" + list),
		"key as bytes":     raw("a2" + "45696e646578" + list + subtree + list),
		"one proof":        raw("a1" + index + list),
		"indefinite map":   raw("bf" + index + list + subtree + list + "ff"),
		"indefinite path":  raw("a2" + index + "82019fff" + subtree + list),
		"long offset":      raw("a2" + index + "82180180" + subtree + list),
		"longer offset":    raw("a2" + index + "8219000180" + subtree + list),
		"longest offset":   raw("a2" + index + "821b000000000000000180" + subtree + list),
		"negative offset":  raw("a2" + index + "822080" + subtree + list),
		"offset as text":   raw("a2" + index + "82613180" + subtree + list),
		"offset as float":  raw("a2" + index + "82fb3ff000000000000080" + subtree + list),
		"tagged offset":    raw("a2" + index + "82c10180" + subtree + list),
		"offset only":      raw("a2" + index + "8101" + subtree + list),
		"three elements":   raw("a2" + index + "83018000" + subtree + list),
		"short node":       raw("a2" + index + "82018141ff" + subtree + list),
		"node as text":     raw("a2" + index + "82018161" + "61" + subtree + list),
		"huge node":        raw("a2" + index + "8201815b7fffffffffffffff"),
		"huge path":        raw("a2" + index + "82019b7fffffffffffffff"),
		"path of 31 nodes": encode(t, pairMap("subtree", tuple(long), "index", tuple(node))),
		"node of 255 bits": encode(t, pairMap("subtree", tuple(dirty), "index", tuple(node))),
		"wrapped, trailing byte": encode(t, pairMap("subtree", qp.Bytes(append(slices.Clone(data), 0)),
			"index", qp.Bytes(data))),
		"wrapped twice": encode(t, pairMap("subtree", qp.Bytes(data), "index",
			qp.Bytes(encode(t, qp.Bytes(data))))),
		"wrapped junk":              encode(t, pairMap("subtree", qp.Bytes([]byte{1, 2, 3}), "index", qp.Bytes([]byte{4, 5, 6}))),
		"specification with tuples": encode(t, pairMap("tree", tuple(node), "index", tuple(node))),
		"deployed with maps":        encode(t, pairMap("subtree", pathAt(node), "index", pathAt(node))),
		"specification with links":  encode(t, pairMap("tree", qp.String("bafk"), "index", pathAt(node))),
	}
	for i := range valid {
		tests["cut at "+hex.EncodeToString([]byte{byte(i)})] = valid[:i]
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			got := proof
			if err := got.UnmarshalCBOR(b); err == nil {
				t.Errorf("accepted %x as %+v", b, got)
			}
			if diff := cmp.Diff(proof, got); diff != "" {
				t.Errorf("changed by a failure:\n%s", diff)
			}
		})
	}
}

func FuzzUnmarshalCBOR(f *testing.F) {
	g := golden(f)
	a := mustBuild(f, g.DealSize, g.pieces())
	for _, b := range shapes(f, mustProve(f, a, 0)) {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var p segment.InclusionProof
		if p.UnmarshalCBOR(b) != nil {
			return
		}
		// What decodes encodes to the deployed shape, which decodes to the same.
		encoded, err := p.MarshalCBOR()
		if err != nil {
			t.Fatal(err)
		}
		var again segment.InclusionProof
		if err := again.UnmarshalCBOR(encoded); err != nil {
			t.Fatalf("%x: %v", encoded, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Fatal(diff)
		}
		// The encoding is canonical by an independent decoder's and encoder's judgement.
		if p.Index.Offset < 1<<63 && p.Subtree.Offset < 1<<63 && !bytes.Equal(encoded, shapes(t, p)["deployed"]) {
			t.Fatalf("not canonical: %x", encoded)
		}
		if err := segment.Verify(p, a.Piece(0), a.Link()); err == nil {
			if diff := cmp.Diff(mustProve(t, a, 0), p); diff != "" {
				t.Fatalf("another proof holds:\n%s", diff)
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	g := golden(f)
	a := mustBuild(f, g.DealSize, g.pieces())
	f.Add(uint64(0), uint64(16376), 11, 14, uint8(0), false)
	f.Add(uint64(1), uint64(16377), 10, 14, uint8(1), true)
	f.Add(uint64(1)<<63, uint64(1)<<63, 200, 200, uint8(2), false)
	f.Fuzz(func(t *testing.T, subtree, index uint64, subtreeLen, indexLen int, number uint8, undefined bool) {
		i := int(number) % a.Len()
		honest := mustProve(t, a, i)
		resize := func(path []piece.Node, n int) []piece.Node {
			n = min(max(n, 0), 300)
			return slices.Clone(append(path[:min(n, len(path)):min(n, len(path))], make([]piece.Node, n-min(n, len(path)))...))
		}
		p := segment.InclusionProof{
			Subtree: segment.ProofData{Offset: subtree, Path: resize(honest.Subtree.Path, subtreeLen)},
			Index:   segment.ProofData{Offset: index, Path: resize(honest.Index.Path, indexLen)},
		}
		link := a.Piece(i)
		if undefined {
			link = piece.Link{}
		}
		err := segment.Verify(p, link, a.Link())
		if (err == nil) != (!undefined && cmp.Equal(p, honest)) {
			t.Fatalf("%+v: %v", p, err)
		}
		if err != nil && !errors.Is(err, segment.ErrProof) {
			t.Fatalf("error is not ErrProof: %v", err)
		}
	})
}
