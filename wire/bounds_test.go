package wire_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// TestUCANBounds: what is a little more than a UCAN may have is refused, by those who read it and by those who write it.
func TestUCANBounds(t *testing.T) {
	signer, err := wire.GenerateSigner(bytes.NewReader(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	capability := wire.Capability{Can: "*", With: "a:b"}
	capabilities := func(n int) []wire.Capability {
		list := make([]wire.Capability, n)
		for i := range list {
			list[i] = capability
		}
		return list
	}
	facts := func(n int) [][]byte {
		list := make([][]byte, n)
		for i := range list {
			list[i] = []byte{0xa0}
		}
		return list
	}
	proof := sampleUCAN(t, "did:web issuer").CID
	proofs := func(n int) []cid.Cid {
		list := make([]cid.Cid, n)
		for i := range list {
			list[i] = proof
		}
		return list
	}
	valid := cbortest.Split(t, sampleUCAN(t, "expiration, not before, nonce, facts").Bytes)
	rest := len(valid.With("nnc", text("x")).Join()) - 1 + 4 // without the nonce, and with the head of a long one
	const size = 256 << 10
	for _, tt := range []struct {
		name    string
		ucan    wire.UCAN
		encoded cbortest.Fields
		ok      bool
	}{
		{"100 capabilities", wire.UCAN{Capabilities: capabilities(100)}, valid.With("att", bytes.Join([][]byte{
			cbor.AppendArray(nil, 100), bytes.Repeat(cbortest.Fields{"can": text("*"), "with": text("a:b")}.Join(), 100)}, nil)), true},
		{"101 capabilities", wire.UCAN{Capabilities: capabilities(101)}, valid.With("att", bytes.Join([][]byte{
			cbor.AppendArray(nil, 101), bytes.Repeat(cbortest.Fields{"can": text("*"), "with": text("a:b")}.Join(), 101)}, nil)), false},
		{"100 facts", wire.UCAN{Capabilities: capabilities(1), Facts: facts(100)},
			valid.With("fct", append(cbor.AppendArray(nil, 100), bytes.Repeat([]byte{0xa0}, 100)...)), true},
		{"101 facts", wire.UCAN{Capabilities: capabilities(1), Facts: facts(101)},
			valid.With("fct", append(cbor.AppendArray(nil, 101), bytes.Repeat([]byte{0xa0}, 101)...)), false},
		{"1,000 proofs", wire.UCAN{Capabilities: capabilities(1), Proofs: proofs(1000)},
			valid.With("prf", append(cbor.AppendArray(nil, 1000), bytes.Repeat(link(proof), 1000)...)), true},
		{"1,001 proofs", wire.UCAN{Capabilities: capabilities(1), Proofs: proofs(1001)},
			valid.With("prf", append(cbor.AppendArray(nil, 1001), bytes.Repeat(link(proof), 1001)...)), false},
		{"256 KiB", wire.UCAN{Capabilities: capabilities(1), Nonce: strings.Repeat("x", size-1000)},
			valid.With("nnc", text(strings.Repeat("x", size-rest))), true},
		{"256 KiB and a byte", wire.UCAN{Capabilities: capabilities(1), Nonce: strings.Repeat("x", size)},
			valid.With("nnc", text(strings.Repeat("x", size-rest+1))), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			judge := func(err error) {
				t.Helper()
				if tt.ok && err != nil || !tt.ok && !errors.Is(err, wire.ErrLimit) {
					t.Errorf("got %v", err)
				}
			}
			b := wire.EncodeBlock(tt.encoded.Join())
			if strings.HasPrefix(tt.name, "256 KiB") && len(b.Bytes)-size > 1 {
				t.Fatalf("the block has %d bytes", len(b.Bytes))
			}
			_, err := wire.DecodeUCAN(b)
			judge(err)
			tt.ucan.Audience = signer.DID()
			_, err = wire.SignUCAN(signer, tt.ucan)
			judge(err)
			tt.ucan.Issuer, tt.ucan.Signature = signer.DID(), wire.AbsentSignature()
			_, err = tt.ucan.Encode()
			judge(err)
		})
	}
}
