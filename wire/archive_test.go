package wire_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/storacha/go-ucanto/core/delegation"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
)

func TestArchive(t *testing.T) {
	for _, sample := range loadSamples(t).Archives {
		u, blocks, err := wire.DecodeArchive(sample.Hex, wire.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if u.Link().String() != sample.CID {
			t.Errorf("archive of %v, want %s", u.Link(), sample.CID)
		}
		if got := wire.EncodeArchive(u, blocks...); !bytes.Equal(got, sample.Hex) {
			t.Errorf("encoded differently:\n%x\n%x", got, []byte(sample.Hex))
		}

		theirs := must[delegation.Delegation](t)(delegation.Extract(sample.Hex))
		if theirs.Link().String() != sample.CID {
			t.Errorf("go-ucanto finds %s, want %s", theirs.Link(), sample.CID)
		}
		want := must[string](t)(delegation.Format(theirs))
		archive := must[[]byte](t)(io.ReadAll(theirs.Archive()))
		if got := wire.FormatArchive(archive); got != want {
			t.Errorf("text\n%s, want\n%s", got, want)
		}
		if diff := cmp.Diff(archive, must[[]byte](t)(wire.ParseArchive(want+"\n"))); diff != "" {
			t.Error(diff)
		}
	}
}

func TestMalformedArchive(t *testing.T) {
	u := sampleUCAN(t, "did:web issuer")
	rc := sampleReceipt(t, "error")
	archive := func(m cbortest.Fields, blocks ...wire.Block) []byte {
		root := wire.EncodeBlock(m.Join())
		return wire.AppendCAR(nil, []cid.Cid{root.CID}, append(slices.Clip(blocks), root))
	}
	good := archive(cbortest.Fields{"ucan@0.9.1": link(u.CID)}, u)
	if _, _, err := wire.DecodeArchive(good, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	s := loadVectors(t).signer(t, "agent")
	deep := chain(t, s, 4)
	for name, in := range map[string][]byte{
		"nothing":       nil,
		"a message":     encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(u.CID))}, u),
		"other version": archive(cbortest.Fields{"ucan@0.9.0": link(u.CID)}, u),
		"two":           archive(cbortest.Fields{"ucan@0.9.1": link(u.CID), "ucan@0.9.2": link(u.CID)}, u),
		"no link":       archive(cbortest.Fields{"ucan@0.9.1": {1}}, u),
		"missing":       archive(cbortest.Fields{"ucan@0.9.1": link(u.CID)}),
		"a receipt":     archive(cbortest.Fields{"ucan@0.9.1": link(rc.CID)}, rc),
		"bad proof": archive(cbortest.Fields{"ucan@0.9.1": link(deep[1].CID)}, deep[1], wire.Block{
			CID: deep[0].CID, Bytes: rc.Bytes,
		}),
	} {
		if _, _, err := wire.DecodeArchive(in, wire.Limits{}); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	tall := archive(cbortest.Fields{"ucan@0.9.1": link(deep[3].CID)}, deep...)
	if _, _, err := wire.DecodeArchive(tall, wire.Limits{ProofDepth: 2}); !errors.Is(err, wire.ErrLimit) {
		t.Errorf("deep proofs: %v, want ErrLimit", err)
	}

	formatted := wire.FormatArchive(good)
	for name, text := range map[string]string{
		"nothing":     "",
		"other base":  "u" + formatted[1:],
		"line inside": formatted[:50] + "\n" + formatted[50:],
		"cut":         formatted[:len(formatted)-5],
		"bad digit":   formatted[:50] + "-" + formatted[51:],
		"other codec": "mAVUAA" + strings.Repeat("A", 4),
		"a hash":      must[string](t)(u.CID.StringOfBase('m')),
		"version 0":   "mEiA" + strings.Repeat("A", 43),
	} {
		if b, err := wire.ParseArchive(text); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %x, %v, want ErrMalformed", name, b, err)
		}
	}
}
