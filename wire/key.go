package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strings"

	"github.com/multiformats/go-varint"
)

// codeEd25519Private is the multicodec code of an Ed25519 private key.
const codeEd25519Private = 0x1300

// maxRSAKey bounds the PKCS#1 form of an RSA public key, in bytes: a modulus of 4096 bits, an exponent and DER. Writing
// a key in base58 takes time that grows with the square of its length.
const maxRSAKey = 540

// Signer is an Ed25519 private key together with the DID in whose name it signs. The zero Signer is of no use.
//
// Printing a Signer shows its DID, never the key.
type Signer struct {
	did    DID
	keyDID DID
	secret *secret
}

// secret is kept behind two pointers: package fmt prints unexported fields without asking their methods, and with some
// verbs it follows one pointer.
type secret struct{ key *ed25519.PrivateKey }

// NewSigner returns a Signer that signs in the name of its own did:key. The key is not copied.
func NewSigner(key ed25519.PrivateKey) (Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return Signer{}, fmt.Errorf("%w: Ed25519 private key of %d bytes", ErrMalformed, len(key))
	}
	did := keyDID(append([]byte{0xed, 0x01}, key.Public().(ed25519.PublicKey)...))
	return Signer{did: did, keyDID: did, secret: &secret{&key}}, nil
}

// GenerateSigner makes a new key from 32 bytes of random, which is crypto/rand.Reader outside of tests.
func GenerateSigner(random io.Reader) (Signer, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Signer{}, fmt.Errorf("generating a key: %w", err)
	}
	return NewSigner(ed25519.NewKeyFromSeed(seed))
}

// SignerOfSeed returns the Signer whose key has the 32 bytes of seed for its secret.
func SignerOfSeed(seed []byte) (Signer, error) {
	if len(seed) != ed25519.SeedSize {
		return Signer{}, fmt.Errorf("%w: Ed25519 seed of %d bytes", ErrMalformed, len(seed))
	}
	return NewSigner(ed25519.NewKeyFromSeed(seed))
}

// ParseSigner reads a private key in either of the forms in use: PEM of PKCS#8 (RFC 8410), as OpenSSL writes it, or
// the multibase form of the JavaScript tools, "Mg…", see Format.
func ParseSigner(text string) (Signer, error) {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "-----BEGIN") {
		return parsePEM(text)
	}
	encoded, ok := strings.CutPrefix(text, "M")
	if !ok || strings.ContainsAny(encoded, "\r\n") { // which the decoder would overlook
		return Signer{}, fmt.Errorf("%w: private key is neither PEM nor multibase M", ErrMalformed)
	}
	// The errors must not quote the input, which may well be a mistyped secret.
	b, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(b) != 2+32+2+32 || b[0] != 0x80 || b[1] != 0x26 || b[34] != 0xed || b[35] != 0x01 {
		return Signer{}, fmt.Errorf("%w: private key is not the multibase form of an Ed25519 key", ErrMalformed)
	}
	key := ed25519.NewKeyFromSeed(b[2:34])
	if !bytes.Equal(key[32:], b[36:]) {
		return Signer{}, fmt.Errorf("%w: private and public key do not belong together", ErrMalformed)
	}
	return NewSigner(key)
}

// pkcs8 is OneAsymmetricKey of RFC 5958; what may follow, attributes and the public key, is not needed.
type pkcs8 struct {
	Version   int
	Algorithm struct {
		OID        asn1.ObjectIdentifier
		Parameters asn1.RawValue `asn1:"optional"`
	}
	PrivateKey []byte
}

// oidEd25519 is id-Ed25519 of RFC 8410.
var oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}

func parsePEM(text string) (Signer, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return Signer{}, fmt.Errorf("%w: PEM does not hold one PKCS#8 private key", ErrMalformed)
	}
	var info pkcs8
	if rest, err := asn1.Unmarshal(block.Bytes, &info); err != nil || len(rest) > 0 {
		return Signer{}, fmt.Errorf("%w: PEM is not PKCS#8", ErrMalformed)
	}
	if !info.Algorithm.OID.Equal(oidEd25519) {
		return Signer{}, fmt.Errorf("%w: private key is not Ed25519 (algorithm %v)", ErrMalformed, info.Algorithm.OID)
	}
	var seed []byte
	if rest, err := asn1.Unmarshal(info.PrivateKey, &seed); err != nil || len(rest) > 0 ||
		len(seed) != ed25519.SeedSize {
		return Signer{}, fmt.Errorf("%w: PKCS#8 does not hold an Ed25519 key", ErrMalformed)
	}
	return NewSigner(ed25519.NewKeyFromSeed(seed))
}

// WithDID returns a Signer that signs with the same key in the name of d, typically a did:web whose document names the
// key. It fails if d is undefined or is the did:key of another key.
func (s Signer) WithDID(d DID) (Signer, error) {
	if !d.Defined() || d.Method() == "key" && d != s.keyDID {
		return Signer{}, fmt.Errorf("key %v cannot sign as %q", s.keyDID, d)
	}
	s.did = d
	return s, nil
}

// DID returns the DID in whose name s signs.
func (s Signer) DID() DID { return s.did }

// KeyDID returns the did:key of the key.
func (s Signer) KeyDID() DID { return s.keyDID }

func (s Signer) key() ed25519.PrivateKey { return *s.secret.key }

// Verifier returns the Verifier of what s signs.
func (s Signer) Verifier() Verifier {
	return Verifier{did: s.did, ed25519: s.key().Public().(ed25519.PublicKey)}
}

// Sign signs the payload. Ed25519 is deterministic: equal payloads give equal signatures.
func (s Signer) Sign(payload []byte) Signature {
	return NewSignature(SigEdDSA, ed25519.Sign(s.key(), payload))
}

// Format returns the private key in the multibase form of the JavaScript tools: base64pad of the varint 0x1300, the 32
// secret bytes, the varint 0xed and the 32 public bytes. The DID of WithDID is not part of it.
func (s Signer) Format() string {
	b := appendUvarint(nil, codeEd25519Private)
	b = append(b, s.key().Seed()...)
	b = appendUvarint(b, codeEd25519)
	b = append(b, s.key().Public().(ed25519.PublicKey)...)
	return "M" + base64.StdEncoding.EncodeToString(b)
}

// PEM returns the private key as PEM of PKCS#8.
func (s Signer) PEM() []byte {
	// SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING (32) } }
	der := []byte{0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: append(der, s.key().Seed()...)})
}

// String returns the DID of s.
func (s Signer) String() string { return s.did.String() }

// GoString returns the DID of s, so that no way of printing shows the key.
func (s Signer) GoString() string { return "wire.Signer(" + s.did.String() + ")" }

// Verifier checks the signatures of one DID. The zero Verifier accepts nothing.
type Verifier struct {
	did     DID
	ed25519 ed25519.PublicKey
	rsa     *rsa.PublicKey
}

// VerifierOf returns the Verifier of a did:key with an Ed25519 key (EdDSA) or an RSA key (RS256). Other keys have no
// verifier, in the JavaScript implementation neither; nor have other methods, whose key has to be found first, see
// Verifier.WithDID.
func VerifierOf(d DID) (Verifier, error) {
	encoded, ok := strings.CutPrefix(d.text, "did:key:z")
	if !ok {
		return Verifier{}, fmt.Errorf("DID %q is not a did:key", d)
	}
	b, _ := appendUnbase58(nil, encoded)
	code, n, err := varint.FromUvarint(b)
	if err != nil {
		return Verifier{}, fmt.Errorf("%w: DID: %w", ErrMalformed, err)
	}
	switch code {
	case codeEd25519:
		return Verifier{did: d, ed25519: ed25519.PublicKey(b[n:])}, nil
	case codeRSA:
		key, err := parseRSA(b[n:])
		if err != nil {
			return Verifier{}, fmt.Errorf("%w: RSA key of %.40s…: %w", ErrMalformed, d.text, err)
		}
		return Verifier{did: d, rsa: key}, nil
	default:
		return Verifier{}, fmt.Errorf("no verifier for keys of type 0x%x (%v)", code, d)
	}
}

// parseRSA reads an RSAPublicKey of PKCS#1 (RFC 8017, A.1.1).
func parseRSA(der []byte) (*rsa.PublicKey, error) {
	var key struct {
		N *big.Int
		E *big.Int
	}
	rest, err := asn1.Unmarshal(der, &key)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0:
		return nil, errors.New("bytes after the key")
	case key.N.Sign() <= 0 || key.E.Sign() <= 0 || !key.E.IsInt64() || key.E.Int64() > math.MaxInt32:
		return nil, errors.New("modulus or exponent out of range")
	}
	return &rsa.PublicKey{N: key.N, E: int(key.E.Int64())}, nil
}

// WithDID returns a Verifier with the same key for what is signed in the name of d: for a did:web the caller looks up
// the did:key that stands for it and makes VerifierOf(key).WithDID(web).
func (v Verifier) WithDID(d DID) Verifier {
	v.did = d
	return v
}

// DID returns the DID whose signatures v checks.
func (v Verifier) DID() DID { return v.did }

// Verify reports whether sig is the signature of the payload.
func (v Verifier) Verify(payload []byte, sig Signature) bool {
	code, raw, name := sig.split()
	if len(name) > 0 {
		return false
	}
	switch {
	case v.ed25519 != nil:
		return code == SigEdDSA && ed25519.Verify(v.ed25519, payload, raw)
	case v.rsa != nil:
		digest := sha256.Sum256(payload)
		return code == SigRS256 && rsa.VerifyPKCS1v15(v.rsa, crypto.SHA256, digest[:], raw) == nil
	default:
		return false
	}
}
