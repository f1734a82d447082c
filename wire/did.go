package wire

import (
	"fmt"
	"strings"

	"github.com/multiformats/go-varint"
)

// The multicodec codes that start the byte form of a DID.
const (
	codeEd25519   = 0xed
	codeSecp256k1 = 0xe7
	codeP256      = 0x1200
	codeRSA       = 0x1205
	codeDID       = 0x0d1d // any method but key: the text after "did:" follows
)

// maxDID bounds the text of a DID, in bytes.
const maxDID = 2048

// DID is a decentralised identifier, the name of a principal. It is comparable: two DIDs are equal if and only if
// their texts are, if and only if their bytes are. The zero DID is undefined and names nobody.
type DID struct{ text string }

// ParseDID reads the text of a DID, "did:method:identifier".
//
// Of did:key, Ed25519, secp256k1 (compressed), P-256 (compressed) and RSA keys are accepted; whether the bytes are a
// usable key is for VerifierOf to say. Of other methods the syntax is checked: a method of lower-case letters and
// digits, and an identifier of URI path characters without "/".
func ParseDID(text string) (DID, error) {
	rest, ok := strings.CutPrefix(text, "did:")
	if !ok || len(text) > maxDID {
		return DID{}, fmt.Errorf("%w: not a DID: %.80q", ErrMalformed, text)
	}
	key, ok := strings.CutPrefix(rest, "key:")
	if !ok {
		if err := checkMethod(rest); err != nil {
			return DID{}, err
		}
		return DID{text}, nil
	}
	if key == "" || key[0] != 'z' {
		return DID{}, fmt.Errorf("%w: did:key is not base58btc: %.80q", ErrMalformed, text)
	}
	var buf [64]byte
	b, ok := appendUnbase58(buf[:0], key[1:])
	if !ok {
		return DID{}, fmt.Errorf("%w: did:key is not base58btc: %.80q", ErrMalformed, text)
	}
	if err := checkKey(b); err != nil {
		return DID{}, err
	}
	return DID{text}, nil
}

// DecodeDID reads the byte form of a DID, in which UCANs name their issuer and audience: a multicodec code, then the
// public key, or for other methods the text after "did:".
func DecodeDID(b []byte) (DID, error) {
	code, n, err := varint.FromUvarint(b)
	if err != nil {
		return DID{}, fmt.Errorf("%w: DID: %w", ErrMalformed, err)
	}
	if code == codeDID {
		if len(b)+len("did:")-n > maxDID {
			return DID{}, fmt.Errorf("%w: DID of %d bytes", ErrMalformed, len(b))
		}
		text := "did:" + string(b[n:])
		if err := checkMethod(text[len("did:"):]); err != nil {
			return DID{}, err
		}
		return DID{text}, nil
	}
	if err := checkKey(b); err != nil {
		return DID{}, err
	}
	return keyDID(b), nil
}

// keyDID returns the did:key of a public key behind its multicodec code.
func keyDID(b []byte) DID {
	var buf [64]byte
	return DID{string(appendBase58(append(buf[:0], "did:key:z"...), b))}
}

// checkKey checks the code and the length of a public key.
func checkKey(b []byte) error {
	code, n, err := varint.FromUvarint(b)
	if err != nil {
		return fmt.Errorf("%w: DID: %w", ErrMalformed, err)
	}
	size := len(b) - n
	switch code {
	case codeEd25519:
		if size == 32 {
			return nil
		}
	case codeSecp256k1, codeP256:
		if size == 33 && (b[n] == 2 || b[n] == 3) {
			return nil
		}
	case codeRSA:
		if size >= 16 && size <= maxRSAKey {
			return nil
		}
	default:
		return fmt.Errorf("%w: DID with unsupported key type 0x%x", ErrMalformed, code)
	}
	return fmt.Errorf("%w: DID with a key of type 0x%x and %d bytes", ErrMalformed, code, size)
}

// checkMethod checks what follows "did:" where the method is not key.
func checkMethod(s string) error {
	method, id, ok := strings.Cut(s, ":")
	if !ok || method == "" || id == "" || id[len(id)-1] == ':' {
		return fmt.Errorf("%w: not a DID: %.80q", ErrMalformed, "did:"+s)
	}
	// The byte form of a did:key is the key itself. Taking its text as well would give one principal two byte forms.
	if method == "key" {
		return fmt.Errorf("%w: did:key in the form of another method", ErrMalformed)
	}
	for _, c := range []byte(method) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("%w: not a DID: %.80q", ErrMalformed, "did:"+s)
		}
	}
	for _, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("-._~%!$&'()*+,;=:@", rune(c)) {
			return fmt.Errorf("%w: not a DID: %.80q", ErrMalformed, "did:"+s)
		}
	}
	return nil
}

// Defined reports whether d is not the zero DID.
func (d DID) Defined() bool { return d.text != "" }

// String returns the text of d, "" if it is undefined.
func (d DID) String() string { return d.text }

// Method returns the method of d: "key", "web", "mailto"; "" if d is undefined.
func (d DID) Method() string {
	if d.text == "" {
		return ""
	}
	method, _, _ := strings.Cut(d.text[len("did:"):], ":")
	return method
}

// Bytes returns the byte form of d, nil if it is undefined.
func (d DID) Bytes() []byte { return d.appendBytes(nil) }

func (d DID) appendBytes(dst []byte) []byte {
	if d.text == "" {
		return dst
	}
	if key, ok := strings.CutPrefix(d.text, "did:key:z"); ok {
		dst, _ = appendUnbase58(dst, key) // it was decoded before, else d would not exist
		return dst
	}
	dst = append(dst, 0x9d, 0x1a) // varint of codeDID
	return append(dst, d.text[len("did:"):]...)
}

// MarshalText returns the text of d.
func (d DID) MarshalText() ([]byte, error) { return []byte(d.text), nil }

// UnmarshalText reads the text of a DID; the empty text gives the undefined DID.
func (d *DID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = DID{}
		return nil
	}
	parsed, err := ParseDID(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
