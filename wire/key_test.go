package wire_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/multiformats/go-multibase"

	"github.com/storacha/w3filecoin/wire"
)

func TestSignerForms(t *testing.T) {
	for name, key := range loadVectors(t).Keys {
		s, err := wire.ParseSigner(key.Secret + "\n")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.DID().String() != key.DID || s.KeyDID() != s.DID() {
			t.Errorf("%s: DID %v, want %s", name, s.DID(), key.DID)
		}
		if got := s.Format(); got != key.Secret {
			t.Errorf("%s: formatted %s, want %s", name, got, key.Secret)
		}
		again, err := wire.ParseSigner(string(s.PEM()))
		if err != nil {
			t.Fatal(err)
		}
		if again.DID() != s.DID() || !bytes.Equal(again.Sign([]byte("x")), s.Sign([]byte("x"))) {
			t.Errorf("%s: another key after PEM", name)
		}

		// The PEM is that of the standard library.
		block, _ := pem.Decode(s.PEM())
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		want, err := wire.NewSigner(parsed.(ed25519.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		if want.DID() != s.DID() {
			t.Errorf("%s: PEM of %v", name, want.DID())
		}
		der, err := x509.MarshalPKCS8PrivateKey(parsed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(der, block.Bytes); diff != "" {
			t.Error(diff)
		}
	}
}

// The keys of RFC 8410, section 10.3: version 1, and version 2 with an attribute and the public key.
func TestParsePEM(t *testing.T) {
	public, err := hex.DecodeString("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1")
	if err != nil {
		t.Fatal(err)
	}
	want, err := wire.DecodeDID(append([]byte{0xed, 1}, public...))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
`, `-----BEGIN PRIVATE KEY-----
MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB
Z9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PRIVATE KEY-----`} {
		s, err := wire.ParseSigner(text)
		if err != nil {
			t.Fatal(err)
		}
		if s.DID() != want {
			t.Errorf("got %v, want %v", s.DID(), want)
		}
	}
}

func TestMalformedSigner(t *testing.T) {
	secret := loadVectors(t).Keys["agent"].Secret
	raw, err := base64.StdEncoding.DecodeString(secret[1:])
	if err != nil {
		t.Fatal(err)
	}
	changed := func(i int, b byte) string {
		c := bytes.Clone(raw)
		c[i] ^= b
		return "M" + base64.StdEncoding.EncodeToString(c)
	}
	pemOf := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	s, err := wire.ParseSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(s.PEM())
	der := func(i int, b byte) string {
		c := bytes.Clone(block.Bytes)
		c[i] ^= b
		return pemOf("PRIVATE KEY", c)
	}
	other, err := multibase.Encode(multibase.Base64url, raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":           "",
		"letter only":       "M",
		"a DID":             s.DID().String(),
		"other base":        other,
		"cut":               secret[:len(secret)-4],
		"longer":            "M" + base64.StdEncoding.EncodeToString(append(raw, 0)),
		"no padding":        strings.TrimRight(secret, "="),
		"line inside":       secret[:20] + "\n" + secret[20:],
		"other code":        changed(0, 1),
		"other public code": changed(34, 1),
		"other secret":      changed(10, 1),
		"other public key":  changed(60, 1),
		"PEM type":          pemOf("ED25519 PRIVATE KEY", block.Bytes),
		"PEM empty":         pemOf("PRIVATE KEY", nil),
		"PEM cut":           pemOf("PRIVATE KEY", block.Bytes[:40]),
		"PEM longer":        pemOf("PRIVATE KEY", append(bytes.Clone(block.Bytes), 0)),
		"PEM twice":         string(s.PEM()) + string(s.PEM()),
		"PEM algorithm":     der(11, 1),
		"PEM inner length":  der(15, 1),
		"PEM inner type":    der(14, 1),
		"PEM no end":        "-----BEGIN PRIVATE KEY-----\n",
	} {
		_, err := wire.ParseSigner(text)
		if !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
			continue
		}
		if len(text) > 20 && strings.Contains(err.Error(), text[10:20]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	if _, err := wire.NewSigner(make([]byte, 32)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("key of 32 bytes: %v, want ErrMalformed", err)
	}
}

func TestGenerateSigner(t *testing.T) {
	s, err := wire.GenerateSigner(bytes.NewReader(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if want := loadVectors(t).Keys["agent"]; s.Format() != want.Secret {
		t.Errorf("key of the seed 01… is %v, want %s", s.DID(), want.DID)
	}
	if _, err := wire.GenerateSigner(bytes.NewReader(make([]byte, 31))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("31 random bytes: %v", err)
	}
}

func TestSignerWithDID(t *testing.T) {
	v := loadVectors(t)
	s, other := v.signer(t, "storefront"), v.signer(t, "agent")
	web := parseDID(t, "did:web:example.com")
	w, err := s.WithDID(web)
	if err != nil {
		t.Fatal(err)
	}
	if w.DID() != web || w.KeyDID() != s.DID() || w.Verifier().DID() != web {
		t.Errorf("signs as %v with %v", w.DID(), w.KeyDID())
	}
	if back, err := w.WithDID(s.DID()); err != nil || back != s {
		t.Errorf("back to its own DID: %v, %v", back, err)
	}
	for _, d := range []wire.DID{{}, other.DID()} {
		if _, err := s.WithDID(d); err == nil {
			t.Errorf("signs as %q", d)
		}
	}
	if !w.Verifier().Verify([]byte("x"), s.Sign([]byte("x"))) {
		t.Error("the key under another name does not verify")
	}
}

// However a Signer is printed, its key is not.
func TestSignerIsSecret(t *testing.T) {
	s := loadVectors(t).signer(t, "storefront")
	config := struct {
		Signer wire.Signer
		hidden wire.Signer
	}{s, s}
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	out := string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+verb+verb, s, config, &config)
	}
	seed := bytes.Repeat([]byte{2}, 4) // the key is made of it
	for _, secret := range []string{hex.EncodeToString(seed), fmt.Sprint(seed)[1:8], "0x2, 0x2, 0x2", string(seed)} {
		if at := strings.Index(out, secret); at >= 0 {
			t.Errorf("%q shows %q", out[max(0, at-100):], secret)
		}
	}
	if s.String() != s.DID().String() {
		t.Errorf("printed as %s", s)
	}
}

func TestVerifierOf(t *testing.T) {
	for name, text := range map[string]string{
		"undefined": "",
		"web":       "did:web:example.com",
		"mailto":    "did:mailto:example.com:alice",
		"secp256k1": "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
		"P-256":     "did:key:zDnaeUKTWUXc1HDpGfKbEK31nKLN19yX5aunFd7VK1CUMeyJu",
	} {
		var d wire.DID
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if v, err := wire.VerifierOf(d); err == nil || v.DID().Defined() {
			t.Errorf("%s: got %v, want an error", name, v.DID())
		}
	}
	rsaKey := func(der ...byte) wire.DID {
		d, err := wire.DecodeDID(append([]byte{0x85, 0x24}, der...))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	integer := func(n int, first byte) []byte { return append([]byte{2, byte(n), first}, make([]byte, n-1)...) }
	sequence := func(parts ...[]byte) []byte {
		b := bytes.Join(parts, nil)
		return append([]byte{0x30, byte(len(b))}, b...)
	}
	e := []byte{2, 3, 1, 0, 1}
	for name, d := range map[string]wire.DID{
		"zeros":             rsaKey(make([]byte, 32)...),
		"negative modulus":  rsaKey(sequence(integer(32, 0x80), e)...),
		"zero modulus":      rsaKey(sequence([]byte{2, 1, 0}, integer(16, 1))...),
		"huge exponent":     rsaKey(sequence(integer(32, 1), integer(20, 1))...),
		"negative exponent": rsaKey(sequence(integer(32, 1), []byte{2, 1, 0xff})...),
		"bytes behind":      rsaKey(append(sequence(integer(32, 1), e), 0)...),
	} {
		if _, err := wire.VerifierOf(d); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("RSA, %s: %v, want ErrMalformed", name, err)
		}
	}
	// A key that is well formed but far too small verifies nothing, without a panic.
	small, err := wire.VerifierOf(rsaKey(sequence(integer(32, 1), e)...))
	if err != nil {
		t.Fatal(err)
	}
	if small.Verify([]byte("x"), wire.NewSignature(wire.SigRS256, make([]byte, 32))) {
		t.Error("a key of 256 bits verifies")
	}
	var none wire.Verifier
	if none.Verify([]byte("x"), loadVectors(t).signer(t, "agent").Sign([]byte("x"))) {
		t.Error("the zero Verifier verifies")
	}
}

func TestSignature(t *testing.T) {
	s := loadVectors(t).signer(t, "agent")
	v := s.Verifier()
	sig := s.Sign([]byte("hello"))
	if !v.Verify([]byte("hello"), sig) || v.Verify([]byte("hellO"), sig) {
		t.Error("the signature is not of the payload alone")
	}
	if sig.Code() != wire.SigEdDSA || sig.Algorithm() != "EdDSA" || len(sig.Raw()) != 64 || sig.Absent() {
		t.Errorf("signature 0x%x %s of %d bytes", sig.Code(), sig.Algorithm(), len(sig.Raw()))
	}
	// The algorithm is part of what is checked, and so is the end.
	if v.Verify([]byte("hello"), wire.NewSignature(wire.SigRS256, sig.Raw())) {
		t.Error("an EdDSA signature that claims to be RS256 verifies")
	}
	if v.Verify([]byte("hello"), append(bytes.Clone(sig), 0)) {
		t.Error("a signature with a byte behind it verifies")
	}
	absent := wire.AbsentSignature()
	if !absent.Absent() || absent.Algorithm() != "" || len(absent.Raw()) != 0 || v.Verify(nil, absent) {
		t.Errorf("absent signature %x", []byte(absent))
	}
	names := map[uint64]string{
		wire.SigES256K: "ES256K", wire.SigBLS12381G1: "BLS12381G1", wire.SigBLS12381G2: "BLS12381G2",
		wire.SigEIP191: "EIP191", wire.SigES256: "ES256", wire.SigES384: "ES384", wire.SigES512: "ES512",
		wire.SigRS256: "RS256",
	}
	for code, name := range names {
		sig, err := wire.DecodeSignature(wire.NewSignature(code, []byte{1, 2}))
		if err != nil {
			t.Fatal(err)
		}
		if sig.Code() != code || sig.Algorithm() != name || !bytes.Equal(sig.Raw(), []byte{1, 2}) {
			t.Errorf("0x%x: got 0x%x, %s, %x", code, sig.Code(), sig.Algorithm(), sig.Raw())
		}
	}
	named := append(wire.AbsentSignature(), "wallet"...)
	if sig, err := wire.DecodeSignature(named); err != nil || sig.Algorithm() != "wallet" || !sig.Absent() {
		t.Errorf("named absent signature: %v, %v", sig, err)
	}
	for _, junk := range []wire.Signature{nil, {0x80}, {0xed, 0xa1, 3}, {0xed, 0xa1, 3, 0x80}, {0xed, 0xa1, 3, 64, 1}} {
		if junk.Code() != 0 || junk.Raw() != nil || junk.Algorithm() != "" || junk.Absent() || v.Verify(nil, junk) {
			t.Errorf("%x is taken for a signature", []byte(junk))
		}
	}
}
