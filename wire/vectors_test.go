package wire_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire"
)

// hexBytes is a byte string that JSON holds in hexadecimal.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) error {
	var err error
	*b, err = hex.DecodeString(string(text))
	return err
}

type vectorBlock struct {
	CID string
	Hex hexBytes
}

func (v vectorBlock) block(t testing.TB) wire.Block {
	t.Helper()
	c, err := cid.Decode(v.CID)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Block{CID: c, Bytes: v.Hex}
}

// vectors are UCANs and blocks of a whole pipeline, made by the JavaScript implementation with fixed keys.
type vectors struct {
	Keys map[string]struct {
		DID    string
		Secret string
	}
	Pieces []struct {
		Piece   string
		Content string
	}
	Aggregate  string
	Blocks     map[string]vectorBlock
	Inclusions []hexBytes
	UCANs      map[string]vectorBlock
}

// signed is a UCAN or a receipt, who it is by and the did:key that verifies it.
type signed struct {
	Name   string
	Issuer string
	Key    string
	Ran    string
	vectorBlock
}

// samples are UCANs, receipts and messages of every shape, made by testdata/generate.mjs.
type samples struct {
	UCANs    []signed
	Receipts []signed
	Messages []struct {
		Name    string
		Kind    string
		Request hexBytes
		Hex     hexBytes
	}
	Archives []vectorBlock // Hex is the archive of the UCAN with that CID
}

func load[T any](t testing.TB, name string) T {
	t.Helper()
	var v T
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func loadVectors(t testing.TB) vectors { return load[vectors](t, "vectors.json") }
func loadSamples(t testing.TB) samples { return load[samples](t, "ucanto.json") }

// sample returns the message of that name.
func (s samples) message(t testing.TB, name string) (request, message []byte) {
	t.Helper()
	for _, m := range s.Messages {
		if m.Name == name {
			return m.Request, m.Hex
		}
	}
	t.Fatalf("no message %q", name)
	return nil, nil
}

func (v vectors) signer(t testing.TB, name string) wire.Signer {
	t.Helper()
	s, err := wire.ParseSigner(v.Keys[name].Secret)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parseDID(t testing.TB, text string) wire.DID {
	t.Helper()
	d, err := wire.ParseDID(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// verifier returns the verifier of an issuer whose key is a did:key.
func verifier(t testing.TB, issuer, key string) wire.Verifier {
	t.Helper()
	v, err := wire.VerifierOf(parseDID(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return v.WithDID(parseDID(t, issuer))
}
