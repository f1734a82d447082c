package wire

import (
	"fmt"
	"unicode/utf8"

	"github.com/multiformats/go-varint"
)

// The varsig codes of signature algorithms.
const (
	SigNonStandard = 0xd000 // any other algorithm, named at the end of the signature
	SigES256K      = 0xd0e7
	SigBLS12381G1  = 0xd0ea
	SigBLS12381G2  = 0xd0eb
	SigEdDSA       = 0xd0ed
	SigEIP191      = 0xd191
	SigES256       = 0xd01200
	SigES384       = 0xd01201
	SigES512       = 0xd01202
	SigRS256       = 0xd01205
)

// maxSignature bounds the raw signature, in bytes; an RSA key of 4096 bits makes 512.
const maxSignature = 512

// Signature is a varsig: varint algorithm code, varint length, raw signature, and for SigNonStandard the name of the
// algorithm in UTF-8.
type Signature []byte

// NewSignature makes a Signature of a raw one by a standard algorithm.
func NewSignature(code uint64, raw []byte) Signature {
	s := make(Signature, 0, varint.UvarintSize(code)+varint.UvarintSize(uint64(len(raw)))+len(raw))
	s = appendUvarint(s, code)
	s = appendUvarint(s, uint64(len(raw)))
	return append(s, raw...)
}

// AbsentSignature returns the signature of a principal that cannot sign, such as a did:mailto: empty, by an algorithm
// without a name. A UCAN that carries it has to be vouched for by another, and never verifies by itself.
func AbsentSignature() Signature { return NewSignature(SigNonStandard, nil) }

// DecodeSignature checks that b is a varsig by a known algorithm, in shortest form and without bytes that belong to
// nothing: an EdDSA signature has 64 bytes. Whether it is valid is another question. The result aliases b.
func DecodeSignature(b []byte) (Signature, error) {
	code, n, err := varint.FromUvarint(b)
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrMalformed, err)
	}
	size, m, err := varint.FromUvarint(b[n:])
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrMalformed, err)
	}
	rest := b[n+m:]
	if size > uint64(len(rest)) || size > maxSignature {
		return nil, fmt.Errorf("%w: signature announces %d bytes, has %d", ErrMalformed, size, len(rest))
	}
	name := rest[size:]
	switch code {
	case SigNonStandard:
		if len(name) > 64 || !utf8.Valid(name) {
			return nil, fmt.Errorf("%w: name of the signature algorithm", ErrMalformed)
		}
		return b, nil
	case SigEdDSA:
		if size != 64 {
			return nil, fmt.Errorf("%w: EdDSA signature of %d bytes", ErrMalformed, size)
		}
	case SigES256K, SigBLS12381G1, SigBLS12381G2, SigEIP191, SigES256, SigES384, SigES512, SigRS256:
	default:
		return nil, fmt.Errorf("%w: unknown signature algorithm 0x%x", ErrMalformed, code)
	}
	if len(name) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the signature", ErrMalformed, len(name))
	}
	return b, nil
}

// split returns the parts of s; zero values if s is no signature.
func (s Signature) split() (code uint64, raw, name []byte) {
	code, n, err := varint.FromUvarint(s)
	if err != nil {
		return 0, nil, nil
	}
	size, m, err := varint.FromUvarint(s[n:])
	if err != nil || size > uint64(len(s)-n-m) {
		return 0, nil, nil
	}
	rest := s[n+m:]
	return code, rest[:size], rest[size:]
}

// Code returns the code of the algorithm, zero if s is not a signature.
func (s Signature) Code() uint64 {
	code, _, _ := s.split()
	return code
}

// Raw returns the signature proper.
func (s Signature) Raw() []byte {
	_, raw, _ := s.split()
	return raw
}

// Algorithm returns the name of the algorithm as in the header of a JWT.
func (s Signature) Algorithm() string {
	code, _, name := s.split()
	switch code {
	case SigNonStandard:
		return string(name)
	case SigES256K:
		return "ES256K"
	case SigBLS12381G1:
		return "BLS12381G1"
	case SigBLS12381G2:
		return "BLS12381G2"
	case SigEdDSA:
		return "EdDSA"
	case SigEIP191:
		return "EIP191"
	case SigES256:
		return "ES256"
	case SigES384:
		return "ES384"
	case SigES512:
		return "ES512"
	case SigRS256:
		return "RS256"
	default:
		return ""
	}
}

// Absent reports whether s stands for a signature that its principal cannot make, see AbsentSignature.
func (s Signature) Absent() bool {
	code, raw, _ := s.split()
	return code == SigNonStandard && len(raw) == 0
}

func appendUvarint(dst []byte, n uint64) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}
