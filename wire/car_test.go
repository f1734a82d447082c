package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/multiformats/go-multihash"
	oraclecar "github.com/storacha/go-ucanto/core/car"
	"github.com/storacha/go-ucanto/core/ipld"
	"github.com/storacha/go-ucanto/core/ipld/block"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

func hashed(t testing.TB, codec, hash uint64, length int, b []byte) wire.Block {
	t.Helper()
	mh := must[multihash.Multihash](t)(multihash.Sum(b, hash, length))
	return wire.Block{CID: cid.NewCidV1(codec, mh), Bytes: b}
}

func TestCAR(t *testing.T) {
	g := newGenerator(6)
	for n := range 40 {
		var roots []cid.Cid
		var blocks []wire.Block
		for i := range n {
			b := fmt.Appendf(nil, "%d %s", i, g.bytes(g.IntN(300)))
			switch i % 4 {
			case 0:
				blocks = append(blocks, wire.EncodeBlock(b))
			case 1:
				blocks = append(blocks, hashed(t, cid.Raw, multihash.SHA2_256, -1, b))
			case 2:
				blocks = append(blocks, hashed(t, cid.Raw, multihash.IDENTITY, -1, b[:min(len(b), 60)]))
			default:
				blocks = append(blocks, wire.Block{CID: cid.NewCidV0(wire.EncodeBlock(b).CID.Hash()), Bytes: b})
			}
			if i%3 == 0 {
				roots = append(roots, blocks[i].CID)
			}
		}
		car := wire.AppendCAR([]byte("before"), roots, blocks)[len("before"):]

		// Every block a second time, to be dropped.
		twice := wire.AppendCAR(nil, roots, slices.Concat(blocks, blocks))
		for _, in := range [][]byte{car, twice} {
			gotRoots, gotBlocks, err := wire.ReadCAR(in, wire.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(roots, gotRoots, compare); diff != "" {
				t.Fatal(diff)
			}
			if diff := cmp.Diff(blocks, gotBlocks, compare); diff != "" {
				t.Fatal(diff)
			}
		}

		var buf bytes.Buffer
		var links []ipld.Link
		for _, root := range roots {
			links = append(links, cidlink.Link{Cid: root})
		}
		if len(roots) == 0 {
			continue // go-car writes null for no roots
		}
		if _, err := buf.ReadFrom(oraclecar.Encode(links, func(yield func(ipld.Block, error) bool) {
			for _, b := range blocks {
				if !yield(block.NewBlock(cidlink.Link{Cid: b.CID}, b.Bytes), nil) {
					return
				}
			}
		})); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf.Bytes(), car) {
			t.Fatalf("go-ucanto writes\n%x, here it is\n%x", buf.Bytes(), car)
		}
	}
}

func TestMalformedCAR(t *testing.T) {
	b := wire.EncodeBlock([]byte{0xa0})
	good := wire.AppendCAR(nil, []cid.Cid{b.CID}, []wire.Block{b})
	if _, _, err := wire.ReadCAR(good, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	car := func(header []byte, blocks ...wire.Block) []byte {
		return append(append([]byte{byte(len(header))}, header...), wire.AppendCAR(nil, nil, blocks)[18:]...)
	}
	roots, one := cbortest.Array(link(b.CID)), []byte{1}
	if _, _, err := wire.ReadCAR(car(cbortest.Fields{"roots": roots, "version": one}.Join(), b), wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	section := func(s ...byte) []byte { return append(slices.Clone(good), append([]byte{byte(len(s))}, s...)...) }
	for name, in := range map[string][]byte{
		"nothing":              nil,
		"version 2":            car(cbortest.Fields{"version": {2}}.Join()),
		"version 2 with roots": car(cbortest.Fields{"roots": roots, "version": {2}}.Join(), b),
		"no version":           car(cbortest.Fields{"roots": roots}.Join(), b),
		"no roots":             car(cbortest.Fields{"version": one}.Join(), b),
		"roots null":           car(cbortest.Fields{"roots": {0xf6}, "version": one}.Join(), b),
		"root of text":         car(cbortest.Fields{"roots": cbortest.Array(text("x")), "version": one}.Join(), b),
		"unknown field":        car(cbortest.Fields{"roots": roots, "version": one, "x": one}.Join(), b),
		"fields in disorder":   car(append(append(append(cbor.AppendText([]byte{0xa2}, "version"), 1), text("roots")...), roots...), b),
		"header empty":         {0},
		"header length only":   {0x80},
		"header cut":           good[:20],
		"length not minimal":   append([]byte{good[0] | 0x80, 0}, good[1:]...),
		"length of ten bytes":  bytes.Repeat([]byte{0xff}, 10),
		"section empty":        append(slices.Clone(good), 0),
		"section cut":          good[:len(good)-1],
		"section of 2^60":      append(slices.Clone(good), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"CID cut":              section(1, 0x71, 0x12, 0x20, 1, 2, 3),
		"CID empty":            section(1),
		"CID of version 2":     section(append([]byte{2}, b.CID.Bytes()[1:]...)...),
		"CID of version 3":     section(3, 0x55, 0, 0),
		"CID codec endless":    section(1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"hash of others":       wire.AppendCAR(nil, []cid.Cid{b.CID}, []wire.Block{{CID: b.CID, Bytes: []byte{0xa1}}}),
		"identity of others":   wire.AppendCAR(nil, nil, []wire.Block{{CID: cid.MustParse("bafkqaaa"), Bytes: one}}),
		"hash cut":             wire.AppendCAR(nil, nil, []wire.Block{hashed(t, cid.Raw, multihash.SHA2_256, 20, one)}),
		"SHA2-512":             wire.AppendCAR(nil, nil, []wire.Block{hashed(t, cid.Raw, multihash.SHA2_512, -1, one)}),
		"SHA1":                 wire.AppendCAR(nil, nil, []wire.Block{hashed(t, cid.Raw, multihash.SHA1, -1, one)}),
	} {
		roots, blocks, err := wire.ReadCAR(in, wire.Limits{})
		if !errors.Is(err, wire.ErrMalformed) || roots != nil || blocks != nil {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

// The message may stand anywhere among the blocks, few or many.
func TestRootAnywhere(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	for _, n := range []int{1, 5, 40} {
		blocks := make([]wire.Block, n)
		links := make([][]byte, n)
		for i := range n {
			u := must[*wire.UCAN](t)(wire.SignUCAN(s, wire.UCAN{
				Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}}, Nonce: fmt.Sprint("n", i),
			}))
			blocks[i], links[i] = u.Block(), link(u.Link())
		}
		root := wire.EncodeBlock(cbortest.Fields{"ucanto/message@7.0.0": cbortest.Fields{"execute": cbortest.Array(links...)}.Join()}.Join())
		for _, at := range []int{0, n / 2, n} {
			car := wire.AppendCAR(nil, []cid.Cid{root.CID}, slices.Insert(slices.Clone(blocks), at, root))
			m, err := wire.DecodeMessage(car, wire.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(blocks, m.Blocks(), compare); diff != "" {
				t.Fatal(diff)
			}
			for i, b := range blocks {
				if got, ok := m.Block(b.CID); !ok || !bytes.Equal(got.Bytes, b.Bytes) || m.Invocations()[i].Link() != b.CID {
					t.Fatalf("block %d of %d with the root at %d is not found", i, n, at)
				}
			}
			if _, ok := m.Block(root.CID); ok {
				t.Error("the root is among the blocks")
			}
		}
	}
}

// Clients send along blocks that nothing links to, such as claims about where content lies.
func TestUnlinkedBlocks(t *testing.T) {
	v := loadVectors(t)
	s := v.signer(t, "agent")
	inv := must[*wire.UCAN](t)(wire.SignUCAN(s, wire.UCAN{
		Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}},
	}))
	claim := sampleUCAN(t, "attestation")
	raw := hashed(t, cid.Raw, multihash.SHA2_256, -1, []byte("anything"))
	var m wire.Message
	m.AddInvocation(inv, claim, raw, claim)
	got := must[*wire.Message](t)(wire.DecodeMessage(m.Encode(), wire.Limits{}))
	if diff := cmp.Diff([]wire.Block{claim, raw, inv.Block()}, got.Blocks(), compare); diff != "" {
		t.Error(diff)
	}
	if u, err := got.UCAN(claim.CID); err != nil || u.Link() != claim.CID {
		t.Errorf("claim: %v, %v", u, err)
	}
	if u, err := got.UCAN(raw.CID); u != nil || !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("raw block as a UCAN: %v, %v", u, err)
	}
	if exported := got.Export(inv); len(exported) != 1 {
		t.Errorf("exported %d blocks, want the invocation alone", len(exported))
	}
}

func TestLinks(t *testing.T) {
	_, body := loadSamples(t).message(t, "proofs and attached blocks")
	m := must[*wire.Message](t)(wire.DecodeMessage(body, wire.Limits{}))
	v := loadVectors(t)
	want := []string{v.Blocks["pieces of an aggregate"].CID, v.Aggregate, v.Blocks["buffer of an aggregator"].CID}
	var got []string
	for c := range m.Invocations()[0].Links {
		got = append(got, c.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for n := range want {
		count := 0
		for range m.Invocations()[0].Links {
			if count++; count > n {
				break
			}
		}
		if count != n+1 {
			t.Errorf("stopped after %d links, want %d", count, n+1)
		}
	}
	deep := must[*wire.UCAN](t)(wire.SignUCAN(v.signer(t, "agent"), wire.UCAN{
		Audience: parseDID(t, "did:web:example.com"),
		Capabilities: []wire.Capability{
			{Can: "a/b", With: "a:b", Nb: cbortest.Fields{"x": cbortest.Array([]byte{1}, cbortest.Fields{"y": link(sumCID(nil))}.Join(), link(sumCID(nil)))}.Join()},
			{Can: "a/b", With: "a:b"},
		},
		Facts: [][]byte{cbortest.Fields{"deep": cbortest.Array(link(sumCID(nil))), "n": {1}}.Join()},
	}))
	count := 0
	for range deep.Links {
		count++
	}
	if count != 2 {
		t.Errorf("%d links, want the 2 of the caveats", count)
	}
}
