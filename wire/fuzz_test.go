package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	oraclecar "github.com/storacha/go-ucanto/core/car"
	"github.com/storacha/go-ucanto/core/dag/blockstore"
	"github.com/storacha/go-ucanto/core/delegation"
	"github.com/storacha/go-ucanto/core/ipld/block"
	oraclereceipt "github.com/storacha/go-ucanto/core/receipt"
	"github.com/storacha/go-ucanto/did"
	edverifier "github.com/storacha/go-ucanto/principal/ed25519/verifier"
	"github.com/storacha/go-ucanto/transport/car/request"
	thttp "github.com/storacha/go-ucanto/transport/http"
	"github.com/storacha/go-ucanto/ucan"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

func isOurs(err error) bool {
	return errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrLimit)
}

// guarded calls f, which runs code of go-ucanto, and turns a panic into an error.
func guarded(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// hasNull reports whether a null occurs anywhere in b: go-ucanto fails on some, which are good DAG-CBOR all the same.
func hasNull(b []byte) bool {
	var walk func(r *cbor.Reader) bool
	walk = func(r *cbor.Reader) bool {
		switch r.Peek() {
		case cbor.Null:
			return true
		case cbor.Array:
			for range r.Array() {
				if walk(r) {
					return true
				}
			}
		case cbor.Map:
			for range r.Map() {
				if r.Key(); walk(r) {
					return true
				}
			}
		default:
			r.Skip()
		}
		return false
	}
	return walk(cbor.NewReader(b))
}

// unchanged reports whether b is what go-ipld-prime makes of it.
func unchanged(b []byte) bool {
	nb := basicnode.Prototype.Any.NewBuilder()
	if err := dagcbor.Decode(nb, bytes.NewReader(b)); err != nil {
		return false
	}
	var buf bytes.Buffer
	err := dagcbor.Encode(nb.Build(), &buf)
	return err == nil && bytes.Equal(buf.Bytes(), b)
}

// strictness lists what this package refuses on purpose though go-ucanto does not look at it.
var strictness = []string{
	"UTF-8", "nested deeper", "version", "ability", "resource", "is not a map", "rather than absent", "DID", "did:key",
	"signature", "Signature", "no capability", "required field", "exactly one",
}

func deliberate(err error) bool {
	for _, s := range strictness {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

func FuzzUCAN(f *testing.F) {
	for _, u := range loadSamples(f).UCANs {
		f.Add([]byte(u.Hex))
	}
	valid := cbortest.Split(f, sampleUCAN(f, "expiration, not before, nonce, facts").Bytes)
	f.Add(valid.With("s", byteString(0xed, 0xa1, 0x03)).Join())
	f.Add(valid.With("iss", byteString(0xff)).Join())
	f.Add(valid.With("att", cbortest.Array()).Join())
	f.Fuzz(func(t *testing.T, b []byte) {
		in := wire.EncodeBlock(b)
		u, err := wire.DecodeUCAN(in)
		var theirs delegation.Delegation
		oracleErr := guarded(func() (err error) {
			bs, err := blockstore.NewBlockReader()
			if err != nil {
				return err
			}
			theirs, err = delegation.NewDelegation(block.NewBlock(cidlink.Link{Cid: in.CID}, b), bs)
			return err
		})
		if err != nil {
			if !isOurs(err) {
				t.Fatalf("error of another family: %v", err)
			}
			if oracleErr == nil && unchanged(b) && !deliberate(err) {
				t.Fatalf("go-ucanto accepts %x, here: %v", b, err)
			}
			return
		}
		again, err := u.Encode()
		if err != nil || !bytes.Equal(again.Bytes, b) {
			t.Fatalf("read %x, wrote %x (%v)", b, again.Bytes, err)
		}
		if _, err := u.Payload(); err != nil && !strings.Contains(err.Error(), "DAG-JSON form") {
			t.Fatalf("no payload: %v", err)
		}
		for range u.Links {
		}
		if oracleErr != nil {
			if hasNull(b) {
				return
			}
			t.Fatalf("accepted %x, go-ucanto says %v", b, oracleErr)
		}
		if code := u.Issuer.Bytes()[0]; code == 0xe7 || code == 0x80 {
			return // keys that go-ucanto does not know
		}
		if got := theirs.Issuer().DID().String(); got != u.Issuer.String() {
			t.Fatalf("issuer %v, go-ucanto says %s", u.Issuer, got)
		}
		if code := u.Audience.Bytes()[0]; code != 0xe7 && code != 0x80 {
			if got := theirs.Audience().DID().String(); got != u.Audience.String() {
				t.Fatalf("audience %v, go-ucanto says %s", u.Audience, got)
			}
		}
		if len(theirs.Capabilities()) != len(u.Capabilities) || len(theirs.Proofs()) != len(u.Proofs) ||
			theirs.Nonce() != u.Nonce || int64(theirs.NotBefore()) != u.NotBefore ||
			len(theirs.Facts()) != len(u.Facts) || (theirs.Expiration() == nil) != (u.Expiration == nil) {
			t.Fatalf("go-ucanto reads %x otherwise", b)
		}
		v, err := wire.VerifierOf(u.Issuer)
		if err != nil || u.Issuer.Bytes()[0] != 0xed {
			return
		}
		key := must[ucan.Verifier](t)(edverifier.Decode(u.Issuer.Bytes()))
		var want bool
		if err := guarded(func() (err error) { want, err = ucan.VerifySignature(theirs.Data(), key); return err }); err != nil {
			return // it cannot write the payload
		}
		if got := u.Verify(v) == nil; got != want && !(got && differsInSpelling(u)) {
			t.Fatalf("verified %v, go-ucanto says %v", got, want)
		}
	})
}

// differsInSpelling reports whether the payload has two spellings, of which go-ucanto takes one.
func differsInSpelling(u *wire.UCAN) bool {
	golang, script := u.Payloads()
	return !bytes.Equal(golang, script)
}

func FuzzReceipt(f *testing.F) {
	for _, rc := range loadSamples(f).Receipts {
		f.Add([]byte(rc.Hex))
	}
	valid := cbortest.Split(f, sampleReceipt(f, "meta and proofs").Bytes)
	f.Add(valid.With("sig", byteString(0xed, 0xa1, 0x03)).Join())
	f.Add(valid.With("ocm", cbortest.Split(f, valid["ocm"]).With("fx", []byte{0xa0}).Join()).Join())
	key := loadVectors(f).signer(f, "storefront").Verifier()
	f.Fuzz(func(t *testing.T, b []byte) {
		in := wire.EncodeBlock(b)
		rc, err := wire.DecodeReceipt(in)
		var theirs oraclereceipt.AnyReceipt
		oracleErr := guarded(func() (err error) {
			root := block.NewBlock(cidlink.Link{Cid: in.CID}, b)
			bs, err := blockstore.NewBlockReader(blockstore.WithBlocks([]block.Block{root}))
			if err != nil {
				return err
			}
			if theirs, err = oraclereceipt.NewAnyReceipt(root.Link(), bs); err != nil {
				return err
			}
			theirs.Out()
			return nil
		})
		if err != nil {
			if !isOurs(err) {
				t.Fatalf("error of another family: %v", err)
			}
			if oracleErr == nil && unchanged(b) && !deliberate(err) {
				t.Fatalf("go-ucanto accepts %x, here: %v", b, err)
			}
			return
		}
		again, err := rc.Encode()
		if err != nil || !bytes.Equal(again.Bytes, b) {
			t.Fatalf("read %x, wrote %x (%v)", b, again.Bytes, err)
		}
		if oracleErr != nil {
			if hasNull(b) {
				return
			}
			t.Fatalf("accepted %x, go-ucanto says %v", b, oracleErr)
		}
		if theirs.Ran().Link().String() != rc.Ran.String() || len(theirs.Fx().Fork()) != len(rc.Fork) ||
			(theirs.Fx().Join().Link() != nil) != rc.Join.Defined() || len(theirs.Meta()) != len(metaFields(t, rc)) {
			t.Fatalf("go-ucanto reads %x otherwise", b)
		}
		if rc.Issuer != key.DID() {
			return
		}
		oracleKey := must[ucan.Verifier](t)(edverifier.Decode(key.DID().Bytes()))
		want := must[bool](t)(theirs.VerifySignature(oracleKey))
		if got := rc.Verify(key) == nil; got != want {
			t.Fatalf("verified %v, go-ucanto says %v", got, want)
		}
	})
}

func metaFields(t testing.TB, rc *wire.Receipt) cbortest.Fields {
	if rc.Meta == nil {
		return nil
	}
	return cbortest.Split(t, rc.Meta)
}

// FuzzMessage tries CARs, and messages over good blocks: a change to a CAR rarely gets past its hashes.
func FuzzMessage(f *testing.F) {
	var blocks []wire.Block
	for _, sample := range loadSamples(f).Messages {
		f.Add(true, []byte(sample.Hex))
		roots, all, err := wire.ReadCAR(sample.Hex, wire.Limits{})
		if err != nil {
			f.Fatal(err)
		}
		for _, b := range all {
			if b.CID == roots[0] {
				f.Add(false, b.Bytes)
			} else {
				blocks = append(blocks, b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, whole bool, b []byte) {
		if !whole {
			root := wire.EncodeBlock(b)
			b = wire.AppendCAR(nil, []cid.Cid{root.CID}, append(blocks[:len(blocks):len(blocks)], root))
		}
		m, err := wire.DecodeMessage(b, wire.Limits{})
		if err != nil {
			if !isOurs(err) || m != nil {
				t.Fatalf("error of another family: %v", err)
			}
			return
		}
		encoded := m.Encode()
		again, err := wire.DecodeMessage(encoded, wire.Limits{})
		if err != nil {
			t.Fatalf("its own bytes: %v", err)
		}
		if !bytes.Equal(again.Encode(), encoded) {
			t.Fatal("encoded differently the second time")
		}
		if diff := cmp.Diff(m.Blocks(), again.Blocks(), compare); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(m.Invocations(), again.Invocations(), compare); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(m.Receipts(), again.Receipts(), compare); diff != "" {
			t.Fatal(diff)
		}
		for _, u := range m.Invocations() {
			m.Export(u)
		}

		theirs, err := request.Decode(thttp.NewRequest(bytes.NewReader(b), http.Header{}))
		if err != nil {
			t.Fatalf("accepted %x, go-ucanto says %v", b, err)
		}
		if len(theirs.Invocations()) != len(m.Invocations()) || len(theirs.Receipts()) != len(m.Receipts()) {
			t.Fatalf("go-ucanto reads %x otherwise", b)
		}
		for i, l := range theirs.Invocations() {
			inv, ok, err := theirs.Invocation(l)
			if err != nil || !ok || inv.Link().String() != m.Invocations()[i].Link().String() {
				t.Fatalf("invocation %d: %v, %v", i, ok, err)
			}
		}
	})
}

func FuzzCAR(f *testing.F) {
	for _, sample := range loadSamples(f).Messages[:4] {
		f.Add([]byte(sample.Hex))
	}
	small := wire.EncodeBlock([]byte{0xa0})
	f.Add(wire.AppendCAR(nil, []cid.Cid{small.CID}, []wire.Block{small}))
	f.Add(wire.AppendCAR(nil, nil, []wire.Block{{CID: cid.MustParse("bafkqaaa")}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		roots, blocks, err := wire.ReadCAR(b, wire.Limits{})
		if err != nil {
			if !isOurs(err) {
				t.Fatalf("error of another family: %v", err)
			}
			return
		}
		again := wire.AppendCAR(nil, roots, blocks)
		roots2, blocks2, err := wire.ReadCAR(again, wire.Limits{})
		if err != nil {
			t.Fatalf("its own bytes: %v", err)
		}
		if diff := cmp.Diff([]any{roots, blocks}, []any{roots2, blocks2}, compare); diff != "" {
			t.Fatal(diff)
		}
		links, theirs, err := oraclecar.Decode(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("accepted %x, go-ucanto says %v", b, err)
		}
		if len(links) != len(roots) {
			t.Fatalf("%d roots, go-ucanto finds %d", len(roots), len(links))
		}
		i := 0
		for theirs, err := range theirs {
			if err != nil {
				t.Fatalf("accepted %x, go-ucanto says %v", b, err)
			}
			if theirs.Link().String() != blocks[i].CID.String() || !bytes.Equal(theirs.Bytes(), blocks[i].Bytes) {
				t.Fatalf("block %d differs", i)
			}
			i++
		}
		if i != len(blocks) {
			t.Fatalf("%d blocks, go-ucanto finds %d", len(blocks), i)
		}
	})
}

func FuzzDID(f *testing.F) {
	for _, text := range []string{
		"did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX", "did:web:example.com", "did:mailto:a:b%2Bc",
		"did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
	} {
		f.Add([]byte(text))
		f.Add(parseDID(f, text).Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(d wire.DID) {
			back, err := wire.DecodeDID(d.Bytes())
			if err != nil || back != d {
				t.Fatalf("%v: bytes %x decode to %v, %v", d, d.Bytes(), back, err)
			}
			if again, err := wire.ParseDID(d.String()); err != nil || again != d {
				t.Fatalf("%v: text parses to %v, %v", d, again, err)
			}
			if v, err := wire.VerifierOf(d); err == nil {
				v.Verify(b, wire.NewSignature(wire.SigRS256, make([]byte, 256)))
				v.Verify(b, wire.NewSignature(wire.SigEdDSA, make([]byte, 64)))
			}
			if code := d.Bytes()[0]; code == 0xe7 || code == 0x80 {
				return // keys that go-ucanto does not know
			}
			theirs, err := did.Parse(d.String())
			if err != nil || !bytes.Equal(theirs.Bytes(), d.Bytes()) {
				t.Fatalf("%v: go-ucanto makes it %x, %v", d, theirs.Bytes(), err)
			}
		}
		if d, err := wire.ParseDID(string(b)); err == nil {
			check(d)
			if d.String() != string(b) {
				t.Fatalf("parsed %q as %v", b, d)
			}
		} else if !isOurs(err) {
			t.Fatalf("error of another family: %v", err)
		}
		if d, err := wire.DecodeDID(b); err == nil {
			check(d)
			if !bytes.Equal(d.Bytes(), b) {
				t.Fatalf("decoded %x as %x", b, d.Bytes())
			}
		} else if !isOurs(err) {
			t.Fatalf("error of another family: %v", err)
		}
	})
}

func FuzzArchive(f *testing.F) {
	for _, sample := range loadSamples(f).Archives {
		f.Add([]byte(sample.Hex))
		f.Add([]byte(wire.FormatArchive(sample.Hex)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if archive, err := wire.ParseArchive(string(b)); err == nil {
			if got := wire.FormatArchive(archive); got != strings.TrimSpace(string(b)) {
				t.Fatalf("parsed %q, formatted %q", b, got)
			}
			b = archive
		} else if !isOurs(err) {
			t.Fatalf("error of another family: %v", err)
		}
		u, blocks, err := wire.DecodeArchive(b, wire.Limits{})
		if err != nil {
			if !isOurs(err) {
				t.Fatalf("error of another family: %v", err)
			}
			return
		}
		again, blocks2, err := wire.DecodeArchive(wire.EncodeArchive(u, blocks...), wire.Limits{})
		if err != nil {
			t.Fatalf("its own bytes: %v", err)
		}
		if diff := cmp.Diff([]any{u, blocks}, []any{again, blocks2}, compare); diff != "" {
			t.Fatal(diff)
		}
		theirs, err := delegation.Extract(b)
		if err != nil {
			t.Fatalf("accepted %x, go-ucanto says %v", b, err)
		}
		if theirs.Link().String() != u.Link().String() {
			t.Fatalf("archive of %v, go-ucanto says %s", u.Link(), theirs.Link())
		}
	})
}
