package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/internal/cbortest"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

func sampleUCAN(t testing.TB, name string) wire.Block {
	t.Helper()
	for _, u := range loadSamples(t).UCANs {
		if u.Name == name {
			return u.block(t)
		}
	}
	t.Fatalf("no UCAN %q", name)
	return wire.Block{}
}

func sampleReceipt(t testing.TB, name string) wire.Block {
	t.Helper()
	for _, rc := range loadSamples(t).Receipts {
		if rc.Name == name {
			return rc.block(t)
		}
	}
	t.Fatalf("no receipt %q", name)
	return wire.Block{}
}

func text(s string) []byte        { return cbor.AppendText(nil, s) }
func byteString(b ...byte) []byte { return cbor.AppendBytes(nil, b) }
func link(c cid.Cid) []byte       { return cbor.AppendLink(nil, c) }

// edwards is an EdDSA signature of n bytes that announces size.
func edwards(size, n int) []byte {
	return byteString(append([]byte{0xed, 0xa1, 0x03, byte(size)}, make([]byte, n)...)...)
}

func TestMalformedUCAN(t *testing.T) {
	valid := cbortest.Split(t, sampleUCAN(t, "expiration, not before, nonce, facts").Bytes)
	capability := cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z6Mk"), "nb": {0xa0}}
	att := func(key string, value []byte) cbortest.Fields {
		return valid.With("att", cbortest.Array(capability.With(key, value).Join()))
	}
	did := func(text string) []byte { return append([]byte{0x9d, 0x1a}, text...) }

	tests := map[string]cbortest.Fields{
		"unknown field": valid.With("jwt", []byte{1}),

		"signature of another kind":              valid.With("s", text("x")),
		"signature empty":                        valid.With("s", byteString()),
		"signature with its code only":           valid.With("s", byteString(0xed, 0xa1, 0x03)),
		"signature with code and size only":      valid.With("s", byteString(0xed, 0xa1, 0x03, 0x40)),
		"signature with half a code":             valid.With("s", byteString(0xed)),
		"signature cut":                          valid.With("s", edwards(64, 63)),
		"signature with bytes behind":            valid.With("s", edwards(64, 65)),
		"signature too short for EdDSA":          valid.With("s", edwards(63, 63)),
		"signature of no bytes by EdDSA":         valid.With("s", edwards(0, 0)),
		"signature with size not minimal":        valid.With("s", byteString(append([]byte{0xed, 0xa1, 3, 0xc0, 0}, make([]byte, 64)...)...)),
		"signature with code not minimal":        valid.With("s", byteString(append([]byte{0xed, 0xa1, 0x83, 0, 64}, make([]byte, 64)...)...)),
		"signature by an unknown algorithm":      valid.With("s", byteString(0xee, 0xa1, 0x03, 1, 0)),
		"signature announcing 2^63 bytes":        valid.With("s", byteString(0x80, 0xa0, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)),
		"signature with a name that is not text": valid.With("s", byteString(0x80, 0xa0, 3, 0, 0xff)),
		"RSA signature with bytes behind":        valid.With("s", byteString(0x85, 0xa4, 0xc0, 0x06, 1, 0, 0)),

		"version older":           valid.With("v", text("0.9.0")),
		"version newer":           valid.With("v", text("1.0.0")),
		"version with bytes more": valid.With("v", text("0.9.1 ")),
		"version a number":        valid.With("v", []byte{1}),

		"issuer empty":                valid.With("iss", byteString()),
		"issuer half a code":          valid.With("iss", byteString(0xed)),
		"issuer with no key":          valid.With("iss", byteString(0xed, 1)),
		"issuer with a short key":     valid.With("iss", byteString(append([]byte{0xed, 1}, make([]byte, 31)...)...)),
		"issuer with a long key":      valid.With("iss", byteString(append([]byte{0xed, 1}, make([]byte, 33)...)...)),
		"issuer code not minimal":     valid.With("iss", byteString(append([]byte{0xed, 0x81, 0}, make([]byte, 32)...)...)),
		"issuer of an unknown type":   valid.With("iss", byteString(append([]byte{0x80, 0x26}, make([]byte, 32)...)...)),
		"issuer uncompressed P-256":   valid.With("iss", byteString(append([]byte{0x80, 0x24, 4}, make([]byte, 64)...)...)),
		"issuer tiny RSA":             valid.With("iss", byteString(0x85, 0x24, 0x30, 0)),
		"issuer did:key as text":      valid.With("iss", byteString(did("key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX")...)),
		"issuer without method":       valid.With("iss", byteString(did("")...)),
		"issuer without identifier":   valid.With("iss", byteString(did("web:")...)),
		"issuer with a space":         valid.With("iss", byteString(did("web:a b")...)),
		"issuer with a quote":         valid.With("iss", byteString(did(`web:a"b`)...)),
		"issuer with a control":       valid.With("iss", byteString(did("web:a\x00")...)),
		"issuer not UTF-8":            valid.With("iss", byteString(did("web:a\xff")...)),
		"issuer with a fragment":      valid.With("iss", byteString(did("web:a#key")...)),
		"issuer with a path":          valid.With("iss", byteString(did("web:a/b")...)),
		"issuer with an upper method": valid.With("iss", byteString(did("Web:a")...)),
		"issuer ending in a colon":    valid.With("iss", byteString(did("web:a:")...)),
		"issuer of great length":      valid.With("iss", byteString(append(did("web:"), bytes.Repeat([]byte("a"), 3000)...)...)),
		"issuer as text":              valid.With("iss", text("did:web:example.com")),
		"audience empty":              valid.With("aud", byteString()),
		"audience of an unknown type": valid.With("aud", byteString(0x01)),

		"no capability":              valid.With("att", cbortest.Array()),
		"capabilities not a list":    valid.With("att", capability.Join()),
		"capability not a map":       valid.With("att", cbortest.Array([]byte{1})),
		"capability empty":           valid.With("att", cbortest.Array([]byte{0xa0})),
		"capability without ability": att("can", nil),
		"capability w/o resource":    att("with", nil),
		"unknown capability field":   att("x", []byte{1}),
		"caveats null":               att("nb", []byte{0xf6}),
		"caveats a list":             att("nb", cbortest.Array()),
		"caveats a link":             att("nb", link(sampleUCAN(t, "did:web issuer").CID)),
		"caveats not canonical":      att("nb", []byte{0xa2, 0x61, 'b', 1, 0x61, 'a', 1}),
		"ability a number":           att("can", []byte{1}),
		"ability empty":              att("can", text("")),
		"ability without path":       att("can", text("offer")),
		"ability a slash":            att("can", text("/")),
		"ability starts by a slash":  att("can", text("/offer")),
		"ability ends in a slash":    att("can", text("filecoin/")),
		"ability in upper case":      att("can", text("Filecoin/offer")),
		"ability with a space":       att("can", text("filecoin/of fer")),
		"ability not ASCII":          att("can", text("filecoin/öffer")),
		"resource a number":          att("with", []byte{1}),
		"resource empty":             att("with", text("")),
		"resource without scheme":    att("with", text("example.com")),
		"resource of an empty one":   att("with", text(":x")),
		"resource scheme only":       att("with", text("did:")),
		"resource digit first":       att("with", text("1d:x")),
		"resource scheme odd":        att("with", text("d_d:x")),

		"expiration a float":       valid.With("exp", cbor.AppendFloat(nil, 1)),
		"expiration a text":        valid.With("exp", text("1")),
		"expiration beyond int64":  valid.With("exp", cbor.AppendUint(nil, 1<<63)),
		"not before zero":          valid.With("nbf", []byte{0}),
		"not before null":          valid.With("nbf", []byte{0xf6}),
		"nonce empty":              valid.With("nnc", text("")),
		"nonce bytes":              valid.With("nnc", byteString(1)),
		"nonce null":               valid.With("nnc", []byte{0xf6}),
		"facts empty":              valid.With("fct", cbortest.Array()),
		"facts a map":              valid.With("fct", []byte{0xa0}),
		"fact a number":            valid.With("fct", cbortest.Array([]byte{1})),
		"facts null":               valid.With("fct", []byte{0xf6}),
		"proofs null":              valid.With("prf", []byte{0xf6}),
		"proof not a link":         valid.With("prf", cbortest.Array(text("bafy"))),
		"proofs of a million":      valid.With("prf", cbor.AppendArray(nil, 1<<20)),
		"capabilities of millions": valid.With("att", cbor.AppendArray(nil, 1<<20)),
	}
	for _, key := range []string{"s", "v", "att", "aud", "exp", "iss", "prf"} {
		tests["without "+key] = valid.With(key, nil)
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			u, err := wire.DecodeUCAN(wire.EncodeBlock(m.Join()))
			if !errors.Is(err, wire.ErrMalformed) || u != nil {
				t.Errorf("got %v, %v, want ErrMalformed", u, err)
			}
		})
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "a number": {1}, "a list": {0x80}, "a JWT": []byte("eyJhbGciOiJFZERTQSJ9.e30.AAAA"),
		"cut":          valid.Join()[:100],
		"bytes behind": append(valid.Join(), 0),
	} {
		if _, err := wire.DecodeUCAN(wire.EncodeBlock(b)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if _, err := wire.DecodeUCAN(wire.EncodeBlock(valid.Join())); err != nil {
		t.Fatalf("the UCAN to be spoilt: %v", err)
	}

	// The block has to have the one kind of CID.
	b := sampleUCAN(t, "did:web issuer")
	identity, err := multihash.Sum(b.Bytes, multihash.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]cid.Cid{
		"undefined":   cid.Undef,
		"raw":         cid.NewCidV1(cid.Raw, b.CID.Hash()),
		"dag-json":    cid.NewCidV1(0x0129, b.CID.Hash()),
		"version 0":   cid.NewCidV0(b.CID.Hash()),
		"the content": cid.NewCidV1(cid.DagCBOR, identity),
	} {
		if _, err := wire.DecodeUCAN(wire.Block{CID: c, Bytes: b.Bytes}); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("CID %s: %v, want ErrMalformed", name, err)
		}
		rc := sampleReceipt(t, "error")
		if _, err := wire.DecodeReceipt(wire.Block{CID: c, Bytes: rc.Bytes}); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("receipt, CID %s: %v, want ErrMalformed", name, err)
		}
	}
}

func TestLegalUCANs(t *testing.T) {
	valid := cbortest.Split(t, sampleUCAN(t, "expiration, not before, nonce, facts").Bytes)
	capability := cbortest.Fields{"can": text("filecoin/offer"), "with": text("did:key:z6Mk"), "nb": {0xa0}}
	att := func(key string, value []byte) cbortest.Fields {
		return valid.With("att", cbortest.Array(capability.With(key, value).Join()))
	}
	p256 := append([]byte{0x80, 0x24, 2}, make([]byte, 32)...)
	secp := append([]byte{0xe7, 0x01, 3}, make([]byte, 32)...)
	for name, m := range map[string]cbortest.Fields{
		"no not before":        valid.With("nbf", nil),
		"no nonce":             valid.With("nnc", nil),
		"no facts":             valid.With("fct", nil),
		"no caveats":           att("nb", nil),
		"never expires":        valid.With("exp", []byte{0xf6}),
		"any ability":          att("can", text("*")),
		"all below":            att("can", text("filecoin/*")),
		"longer path":          att("can", text("a/b/c")),
		"unknown wildcard":     att("can", text("no/such/*")),
		"any resource":         att("with", text("ucan:*")),
		"URL":                  att("with", text("https://example.com/x?y#z")),
		"P-256":                valid.With("iss", byteString(p256...)),
		"secp256k1":            valid.With("aud", byteString(secp...)),
		"did:mailto":           valid.With("aud", byteString(append([]byte{0x9d, 0x1a}, "mailto:example.com:a%2Bb!"...)...)),
		"absent signature":     valid.With("s", byteString(0x80, 0xa0, 3, 0)),
		"named absent":         valid.With("s", byteString(append([]byte{0x80, 0xa0, 3, 0}, "wallet"...)...)),
		"non-standard":         valid.With("s", byteString(append([]byte{0x80, 0xa0, 3, 1, 0xff}, "wallet"...)...)),
		"signed by ES256":      valid.With("s", byteString(append([]byte{0x80, 0xa4, 0xc0, 0x06, 64}, make([]byte, 64)...)...)),
		"expired":              valid.With("exp", cbor.AppendInt(nil, -1)),
		"inline proof as link": valid.With("prf", cbortest.Array(link(cid.MustParse("bafkqaaa")))),
	} {
		t.Run(name, func(t *testing.T) {
			b := wire.EncodeBlock(m.Join())
			u, err := wire.DecodeUCAN(b)
			if err != nil {
				t.Fatal(err)
			}
			again, err := u.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if again.CID != b.CID {
				t.Errorf("encoded as %x, want %x", again.Bytes, b.Bytes)
			}
			// Nobody's key has made these signatures.
			key := loadVectors(t).signer(t, "agent").Verifier().WithDID(u.Issuer)
			if err := u.Verify(key); !errors.Is(err, wire.ErrSignature) {
				t.Errorf("verified: %v", err)
			}
			if _, err := wire.VerifierOf(u.Issuer); (err != nil) != (name == "P-256") {
				t.Errorf("verifier of %v: %v", u.Issuer, err)
			}
		})
	}
}

func TestSignRefusesMalformed(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	good := wire.UCAN{
		Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "did:web:example.com", Nb: []byte{0xa0}}},
	}
	if _, err := wire.SignUCAN(s, good); err != nil {
		t.Fatal(err)
	}
	capability := func(c wire.Capability) func(*wire.UCAN) {
		return func(u *wire.UCAN) { u.Capabilities = []wire.Capability{c} }
	}
	for name, spoil := range map[string]func(*wire.UCAN){
		"no audience":       func(u *wire.UCAN) { u.Audience = wire.DID{} },
		"no capability":     func(u *wire.UCAN) { u.Capabilities = nil },
		"ability":           capability(wire.Capability{Can: "ab", With: "a:b"}),
		"resource":          capability(wire.Capability{Can: "a/b", With: "ab"}),
		"caveats empty":     capability(wire.Capability{Can: "a/b", With: "a:b", Nb: []byte{}}),
		"caveats not a map": capability(wire.Capability{Can: "a/b", With: "a:b", Nb: []byte{0x80}}),
		"caveats two":       capability(wire.Capability{Can: "a/b", With: "a:b", Nb: []byte{0xa0, 0xa0}}),
		"caveats reserved":  capability(wire.Capability{Can: "a/b", With: "a:b", Nb: []byte{0xa1, 0x61, '/', 1}}),
		"fact":              func(u *wire.UCAN) { u.Facts = [][]byte{{0xa0}, {1}} },
		"proof":             func(u *wire.UCAN) { u.Proofs = []cid.Cid{cid.Undef} },
	} {
		u := good
		spoil(&u)
		if _, err := wire.SignUCAN(s, u); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("UCAN, %s: %v, want ErrMalformed", name, err)
		}
	}
	unsigned := good
	unsigned.Issuer = s.DID()
	if _, err := unsigned.Encode(); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("UCAN without signature: %v, want ErrMalformed", err)
	}
	unsigned.Signature = wire.AbsentSignature()
	if _, err := unsigned.Encode(); err != nil {
		t.Errorf("UCAN with an absent signature: %v", err)
	}

	ran := sampleUCAN(t, "did:web issuer").CID
	receipt := wire.Receipt{Ran: ran, Out: wire.Result{OK: []byte{0xa0}}}
	if _, err := wire.SignReceipt(s, receipt); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*wire.Receipt){
		"no task":          func(rc *wire.Receipt) { rc.Ran = cid.Undef },
		"no result":        func(rc *wire.Receipt) { rc.Out = wire.Result{} },
		"two results":      func(rc *wire.Receipt) { rc.Out.Error = []byte{0xa0} },
		"result malformed": func(rc *wire.Receipt) { rc.Out.OK = []byte{0x18, 1} },
		"result empty":     func(rc *wire.Receipt) { rc.Out.OK = []byte{} },
		"meta a list":      func(rc *wire.Receipt) { rc.Meta = []byte{0x80} },
		"fork undefined":   func(rc *wire.Receipt) { rc.Fork = []cid.Cid{cid.Undef} },
		"proof undefined":  func(rc *wire.Receipt) { rc.Proofs = []cid.Cid{cid.Undef} },
	} {
		rc := receipt
		spoil(&rc)
		if _, err := wire.SignReceipt(s, rc); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("receipt, %s: %v, want ErrMalformed", name, err)
		}
	}
	if _, err := receipt.Encode(); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("receipt without signature: %v, want ErrMalformed", err)
	}
	if err := receipt.Verify(s.Verifier()); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("receipt without signature: %v, want ErrSignature", err)
	}
}

// A signature covers one value only, though what is signed is a JSON text that can be read as two.
func TestLookalikes(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	c := sumCID(nil)
	sign := func(value []byte) *wire.UCAN {
		return must[*wire.UCAN](t)(wire.SignUCAN(s, wire.UCAN{
			Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b", Nb: cbortest.Fields{"x": value}.Join()}},
		}))
	}
	for name, test := range map[string]struct{ signed, lookalike []byte }{
		"link as map":         {link(c), cbortest.Fields{"/": text(c.String())}.Join()},
		"bytes as map":        {byteString(1, 2), cbortest.Fields{"/": cbortest.Fields{"bytes": text("AQI")}.Join()}.Join()},
		"integer as float":    {[]byte{1}, cbor.AppendFloat(nil, 1)},
		"zero as float":       {[]byte{0}, cbor.AppendFloat(nil, 0)},
		"zero as minus zero":  {[]byte{0}, cbor.AppendFloat(nil, math.Copysign(0, -1))},
		"negative as float":   {cbor.AppendInt(nil, -7), cbor.AppendFloat(nil, -7)},
		"2^53 as float":       {cbor.AppendInt(nil, 1<<53), cbor.AppendFloat(nil, 1<<53)},
		"2^63 as float":       {cbor.AppendUint(nil, 1<<63), cbor.AppendFloat(nil, 1<<63)},
		"-2^63 as float":      {cbor.AppendInt(nil, -1<<63), cbor.AppendFloat(nil, -1<<63)},
		"separator as escape": {text("\\u2028"), text("\u2028")},
	} {
		u := sign(test.signed)
		if err := u.Verify(s.Verifier()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		changed := *u
		changed.Capabilities = []wire.Capability{{Can: "a/b", With: "a:b", Nb: cbortest.Fields{"x": test.lookalike}.Join()}}
		other := must[*wire.UCAN](t)(wire.DecodeUCAN(must[wire.Block](t)(changed.Encode())))
		if err := other.Verify(s.Verifier()); !errors.Is(err, wire.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
}

func TestMalformedReceipt(t *testing.T) {
	valid := cbortest.Split(t, sampleReceipt(t, "meta and proofs").Bytes)
	outcome := cbortest.Split(t, valid["ocm"])
	ocm := func(key string, value []byte) cbortest.Fields {
		return valid.With("ocm", outcome.With(key, value).Join())
	}
	task := sampleUCAN(t, "did:web issuer").CID
	fork := cbortest.Array(link(task))

	tests := map[string]cbortest.Fields{
		"unknown field":             valid.With("x", []byte{1}),
		"unknown field of outcome":  ocm("x", []byte{1}),
		"signature code only":       valid.With("sig", byteString(0xed, 0xa1, 0x03)),
		"signature as text":         valid.With("sig", text("x")),
		"outcome a list":            valid.With("ocm", cbortest.Array()),
		"out empty":                 ocm("out", []byte{0xa0}),
		"out both":                  ocm("out", cbortest.Fields{"ok": {0xa0}, "error": {0xa0}}.Join()),
		"out neither":               ocm("out", cbortest.Fields{"maybe": {0xa0}}.Join()),
		"out a list":                ocm("out", cbortest.Array()),
		"fx empty":                  ocm("fx", []byte{0xa0}),
		"fx without fork":           ocm("fx", cbortest.Fields{"join": link(task)}.Join()),
		"fx unknown field":          ocm("fx", cbortest.Fields{"fork": fork, "x": {1}}.Join()),
		"fx null":                   ocm("fx", []byte{0xf6}),
		"fork a link":               ocm("fx", cbortest.Fields{"fork": link(task)}.Join()),
		"fork of text":              ocm("fx", cbortest.Fields{"fork": cbortest.Array(text("x"))}.Join()),
		"fork of a million":         ocm("fx", cbortest.Fields{"fork": cbor.AppendArray(nil, 1<<20)}.Join()),
		"join null":                 ocm("fx", cbortest.Fields{"fork": fork, "join": {0xf6}}.Join()),
		"join a list":               ocm("fx", cbortest.Fields{"fork": fork, "join": fork}.Join()),
		"issuer bytes":              ocm("iss", byteString(0xed)),
		"issuer not a DID":          ocm("iss", text("alice")),
		"issuer did:key of nothing": ocm("iss", text("did:key:z")),
		"issuer in base32":          ocm("iss", text("did:key:bafy")),
		"issuer with l and 0":       ocm("iss", text("did:key:z0l")),
		"ran text":                  ocm("ran", text("x")),
		"meta a list":               ocm("meta", cbortest.Array()),
		"meta null":                 ocm("meta", []byte{0xf6}),
		"proofs a map":              ocm("prf", []byte{0xa0}),
	}
	for _, key := range []string{"ocm", "sig"} {
		tests["without "+key] = valid.With(key, nil)
	}
	for _, key := range []string{"fx", "out", "prf", "ran", "meta"} {
		tests["outcome without "+key] = ocm(key, nil)
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			rc, err := wire.DecodeReceipt(wire.EncodeBlock(m.Join()))
			if !errors.Is(err, wire.ErrMalformed) || rc != nil {
				t.Errorf("got %v, %v, want ErrMalformed", rc, err)
			}
		})
	}

	// A receipt need not name its issuer; then the signature alone decides.
	rc, err := wire.DecodeReceipt(wire.EncodeBlock(ocm("iss", nil).Join()))
	if err != nil {
		t.Fatal(err)
	}
	if rc.Issuer.Defined() || rc.Join.Defined() {
		t.Errorf("issuer %v, join %v, want none", rc.Issuer, rc.Join)
	}
	if again, err := rc.Encode(); err != nil || again.CID != rc.Link() {
		t.Errorf("encoded as %v (%v), want %v", again.CID, err, rc.Link())
	}
	if err := rc.Verify(loadVectors(t).signer(t, "storefront").Verifier()); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("verified after the issuer was taken out: %v", err)
	}
}

// encodeMessage returns the CAR of a message with these fields and blocks.
func encodeMessage(m cbortest.Fields, blocks ...wire.Block) []byte {
	return tagged("ucanto/message@7.0.0", m, blocks...)
}

func tagged(tag string, m cbortest.Fields, blocks ...wire.Block) []byte {
	root := wire.EncodeBlock(cbortest.Fields{tag: m.Join()}.Join())
	return wire.AppendCAR(nil, []cid.Cid{root.CID}, append(slices.Clip(blocks), root))
}

func TestMalformedMessage(t *testing.T) {
	u := sampleUCAN(t, "did:web issuer")
	rc := sampleReceipt(t, "error")
	decoded, err := wire.DecodeReceipt(rc)
	if err != nil {
		t.Fatal(err)
	}
	execute := cbortest.Fields{"execute": cbortest.Array(link(u.CID))}
	report := cbortest.Fields{"report": cbortest.Fields{decoded.Ran.String(): link(rc.CID)}.Join()}
	for _, good := range [][]byte{encodeMessage(execute, u), encodeMessage(report, rc), encodeMessage(cbortest.Fields{}), encodeMessage(cbortest.Fields{"execute": cbortest.Array()})} {
		if _, err := wire.DecodeMessage(good, wire.Limits{}); err != nil {
			t.Fatal(err)
		}
	}

	vectors := loadVectors(t)
	agent := vectors.signer(t, "agent")
	// A proof without capabilities, next to a session for a did:mailto.
	session := sampleUCAN(t, "absent signature")
	hollow := wire.EncodeBlock(cbortest.Split(t, u.Bytes).With("att", cbortest.Array()).Join())
	over, err := wire.SignUCAN(agent, wire.UCAN{
		Audience: agent.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}},
		Proofs: []cid.Cid{session.CID, hollow.CID},
	})
	if err != nil {
		t.Fatal(err)
	}
	pieces := vectors.Blocks["pieces of an aggregate"].block(t)
	overPieces, err := wire.SignUCAN(agent, wire.UCAN{
		Audience: agent.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}}, Proofs: []cid.Cid{pieces.CID},
	})
	if err != nil {
		t.Fatal(err)
	}
	invalidUCAN := wire.EncodeBlock(cbortest.Split(t, u.Bytes).With("s", byteString(0xed, 0xa1, 0x03)).Join())
	invalidReceipt := wire.EncodeBlock(cbortest.Split(t, rc.Bytes).With("sig", byteString(0xed, 0xa1, 0x03)).Join())
	root := wire.EncodeBlock(cbortest.Fields{"ucanto/message@7.0.0": execute.Join()}.Join())
	rawRoot := wire.Block{CID: cid.NewCidV1(cid.Raw, root.CID.Hash()), Bytes: root.Bytes}
	upper, err := decoded.Ran.StringOfBase('B')
	if err != nil {
		t.Fatal(err)
	}

	for name, b := range map[string][]byte{
		"nothing":                    nil,
		"other version":              tagged("ucanto/message@8.0.0", execute, u),
		"two versions":               wire.AppendCAR(nil, []cid.Cid{root.CID}, nil),
		"unknown field":              encodeMessage(execute.With("x", []byte{1}), u),
		"execute a map":              encodeMessage(cbortest.Fields{"execute": {0xa0}}),
		"execute of text":            encodeMessage(cbortest.Fields{"execute": cbortest.Array(text("x"))}),
		"execute null":               encodeMessage(cbortest.Fields{"execute": {0xf6}}),
		"report a list":              encodeMessage(cbortest.Fields{"report": cbortest.Array()}),
		"report of text":             encodeMessage(cbortest.Fields{"report": cbortest.Fields{decoded.Ran.String(): text("x")}.Join()}, rc),
		"invocation missing":         encodeMessage(execute),
		"invocation a receipt":       encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(rc.CID))}, rc),
		"invocation without signer":  encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(invalidUCAN.CID))}, invalidUCAN),
		"invocation of no ability":   encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(hollow.CID))}, hollow),
		"proof of no ability":        encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(over.Link()))}, session, hollow, over.Block()),
		"proof not a UCAN":           encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(overPieces.Link()))}, pieces, overPieces.Block()),
		"receipt missing":            encodeMessage(report),
		"receipt a UCAN":             encodeMessage(cbortest.Fields{"report": cbortest.Fields{decoded.Ran.String(): link(u.CID)}.Join()}, u),
		"receipt without signature":  encodeMessage(cbortest.Fields{"report": cbortest.Fields{decoded.Ran.String(): link(invalidReceipt.CID)}.Join()}, invalidReceipt),
		"receipt of another task":    encodeMessage(cbortest.Fields{"report": cbortest.Fields{u.CID.String(): link(rc.CID)}.Join()}, rc),
		"receipt under no CID":       encodeMessage(cbortest.Fields{"report": cbortest.Fields{"task": link(rc.CID)}.Join()}, rc),
		"receipt under another base": encodeMessage(cbortest.Fields{"report": cbortest.Fields{upper: link(rc.CID)}.Join()}, rc),
		"no root":                    wire.AppendCAR(nil, nil, []wire.Block{u, root}),
		"two roots":                  wire.AppendCAR(nil, []cid.Cid{root.CID, root.CID}, []wire.Block{u, root}),
		"root missing":               wire.AppendCAR(nil, []cid.Cid{root.CID}, []wire.Block{u}),
		"root a UCAN":                wire.AppendCAR(nil, []cid.Cid{u.CID}, []wire.Block{u}),
		"root raw":                   wire.AppendCAR(nil, []cid.Cid{rawRoot.CID}, []wire.Block{u, rawRoot}),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := wire.DecodeMessage(b, wire.Limits{})
			if !errors.Is(err, wire.ErrMalformed) || m != nil {
				t.Errorf("got %v, %v, want ErrMalformed", m, err)
			}
		})
	}
}

// Cutting a message anywhere, or flipping any bit of it, is noticed: every byte is under a hash, a length or a rule.
func TestDamagedMessage(t *testing.T) {
	_, whole := loadSamples(t).message(t, "one invocation")
	for i := range whole {
		if _, err := wire.DecodeMessage(whole[:i], wire.Limits{}); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("cut at %d: %v", i, err)
		}
		for bit := range 8 {
			damaged := slices.Clone(whole)
			damaged[i] ^= 1 << bit
			if _, err := wire.DecodeMessage(damaged, wire.Limits{}); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
	}
}

// What a receipt links to need not be there, and need not be a UCAN until somebody asks.
func TestEffectsThatAreNotThere(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	pieces := loadVectors(t).Blocks["pieces of an aggregate"].block(t)
	absent := sampleUCAN(t, "did:web issuer").CID
	rc, err := wire.SignReceipt(s, wire.Receipt{
		Ran: absent, Out: wire.Result{OK: []byte{0xa0}}, Fork: []cid.Cid{pieces.CID, absent},
	})
	if err != nil {
		t.Fatal(err)
	}
	var m wire.Message
	m.AddReceipt(rc, pieces)
	got, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := got.UCAN(absent); u != nil || err != nil {
		t.Errorf("absent task: %v, %v", u, err)
	}
	if u, err := got.UCAN(pieces.CID); u != nil || !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("task that is a list of pieces: %v, %v", u, err)
	}
	if got.Receipt(absent).Join.Defined() {
		t.Error("there is a join")
	}
	if got.Receipt(pieces.CID) != nil {
		t.Error("there is a receipt of the fork")
	}
}

// chain signs n UCANs, each the proof of the next, and returns their blocks.
func chain(t testing.TB, s wire.Signer, n int) []wire.Block {
	t.Helper()
	var blocks []wire.Block
	for range n {
		u := wire.UCAN{Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}}}
		if len(blocks) > 0 {
			u.Proofs = []cid.Cid{blocks[len(blocks)-1].CID}
		}
		signed, err := wire.SignUCAN(s, u)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, signed.Block())
	}
	return blocks
}

func TestLimits(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	sign := func(nonce string, proofs ...cid.Cid) wire.Block {
		u, err := wire.SignUCAN(s, wire.UCAN{
			Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}}, Proofs: proofs, Nonce: nonce,
		})
		if err != nil {
			t.Fatal(err)
		}
		return u.Block()
	}
	invocations := func(n int) []byte {
		var links, blocks = make([][]byte, n), make([]wire.Block, n)
		for i := range n {
			blocks[i] = sign(fmt.Sprint("n", i))
			links[i] = link(blocks[i].CID)
		}
		return encodeMessage(cbortest.Fields{"execute": cbortest.Array(links...)}, blocks...)
	}
	receipts := func(n int) []byte {
		report, blocks := cbortest.Fields{}, make([]wire.Block, n)
		for i := range n {
			task := sumCID(fmt.Append(nil, i))
			rc, err := wire.SignReceipt(s, wire.Receipt{Ran: task, Out: wire.Result{OK: []byte{0xa0}}})
			if err != nil {
				t.Fatal(err)
			}
			blocks[i] = rc.Block()
			report[task.String()] = link(rc.Link())
		}
		return encodeMessage(cbortest.Fields{"report": report.Join()}, blocks...)
	}
	execute := func(blocks ...wire.Block) []byte {
		return encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(blocks[len(blocks)-1].CID))}, blocks...)
	}
	absentProofs := func(n int) []byte {
		proofs := make([]cid.Cid, n)
		for i := range proofs {
			proofs[i] = sumCID(fmt.Append(nil, i))
		}
		return execute(sign("x", proofs...))
	}
	proofReceipt := func(n int) []byte {
		rc, err := wire.SignReceipt(s, wire.Receipt{
			Ran: sumCID(nil), Out: wire.Result{OK: []byte{0xa0}}, Proofs: slices.Repeat([]cid.Cid{sumCID(nil)}, n),
		})
		if err != nil {
			t.Fatal(err)
		}
		return encodeMessage(cbortest.Fields{"report": cbortest.Fields{sumCID(nil).String(): link(rc.Link())}.Join()}, rc.Block())
	}
	// The deep path comes second: the shared proof has been measured on the short one before.
	twoPaths := func(n int) []byte {
		blocks := chain(t, s, n)
		return execute(append(blocks, sign("x", blocks[n-2].CID, blocks[n-1].CID))...)
	}

	tests := []struct {
		name string
		in   []byte
		l    wire.Limits
		ok   bool
	}{
		{"100 invocations", invocations(100), wire.Limits{}, true},
		{"101 invocations", invocations(101), wire.Limits{}, false},
		{"3 invocations of 2", invocations(3), wire.Limits{Invocations: 2}, false},
		{"1000 receipts", receipts(1000), wire.Limits{}, true},
		{"1001 receipts", receipts(1001), wire.Limits{}, false},
		{"64 proofs", absentProofs(64), wire.Limits{}, true},
		{"65 proofs", absentProofs(65), wire.Limits{}, false},
		{"64 proofs of a receipt", proofReceipt(64), wire.Limits{}, true},
		{"65 proofs of a receipt", proofReceipt(65), wire.Limits{}, false},
		{"depth 8", execute(chain(t, s, 9)...), wire.Limits{}, true},
		{"depth 9", execute(chain(t, s, 10)...), wire.Limits{}, false},
		{"depth 9, last not included", execute(chain(t, s, 10)[1:]...), wire.Limits{}, false},
		{"depth 8, last not included", execute(chain(t, s, 9)[1:]...), wire.Limits{}, true},
		{"depth 1 of 1", execute(chain(t, s, 2)...), wire.Limits{ProofDepth: 1}, true},
		{"depth 2 of 1", execute(chain(t, s, 3)...), wire.Limits{ProofDepth: 1}, false},
		{"depth 3 by the longer path", twoPaths(3), wire.Limits{ProofDepth: 2}, false},
		{"depth 3 by the longer path of 3", twoPaths(3), wire.Limits{ProofDepth: 3}, true},
		{"a chain of 3000", execute(chain(t, s, 3000)...), wire.Limits{}, false},
		{"blocks", invocations(4), wire.Limits{Blocks: 5}, true},
		{"too many blocks", invocations(5), wire.Limits{Blocks: 5}, false},
		{"block size", invocations(1), wire.Limits{BlockSize: 100}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := wire.DecodeMessage(test.in, test.l)
			if test.ok && err != nil {
				t.Errorf("got %v, want none", err)
			}
			if !test.ok && !errors.Is(err, wire.ErrLimit) {
				t.Errorf("got %v, want ErrLimit", err)
			}
		})
	}
}

func sumCID(b []byte) cid.Cid { return wire.EncodeBlock(b).CID }

// A proof that two others share is one proof, however many paths lead to it.
func TestDiamondProofs(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	sign := func(nonce string, proofs ...cid.Cid) wire.Block {
		u, err := wire.SignUCAN(s, wire.UCAN{
			Audience: s.DID(), Capabilities: []wire.Capability{{Can: "a/b", With: "a:b"}}, Proofs: proofs, Nonce: nonce,
		})
		if err != nil {
			t.Fatal(err)
		}
		return u.Block()
	}
	// Eight levels of two, each linking to both below: 2^8 paths.
	blocks := []wire.Block{sign("a0"), sign("b0")}
	for i := range 7 {
		below := blocks[len(blocks)-2:]
		blocks = append(blocks, sign(fmt.Sprint("a", i+1), below[0].CID, below[1].CID),
			sign(fmt.Sprint("b", i+1), below[0].CID, below[1].CID))
	}
	top := blocks[len(blocks)-2:]
	blocks = append(blocks, sign("top", top[0].CID, top[1].CID))
	m, err := wire.DecodeMessage(encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(blocks[16].CID))}, blocks...),
		wire.Limits{Proofs: 16})
	if err != nil {
		t.Fatal(err)
	}
	exported := m.Export(m.Invocations()[0])
	if len(exported) != 17 || exported[16].CID != blocks[16].CID {
		t.Errorf("exported %d blocks, want 17", len(exported))
	}
	if _, err := wire.DecodeMessage(encodeMessage(cbortest.Fields{"execute": cbortest.Array(link(blocks[16].CID))}, blocks...),
		wire.Limits{Proofs: 15}); !errors.Is(err, wire.ErrLimit) {
		t.Errorf("16 proofs of 15: %v", err)
	}
}
