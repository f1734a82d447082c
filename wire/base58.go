package wire

import (
	"math/bits"
)

// Base58 in the Bitcoin alphabet, as in did:key. A library would do, but each request formats two keys, and working
// on ten digits at a time makes that ten times cheaper.

const (
	base58Alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	base58Chunk    = 10                 // digits per limb
	base58Limb     = 430804206899405824 // 58^10, below 2^64
)

// appendBase58 appends the digits of b, one "1" for each leading zero byte.
func appendBase58(dst, b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		dst = append(dst, base58Alphabet[0])
		b = b[1:]
	}
	// limbs hold the number in base 58^10, least significant first.
	var few [8]uint64
	limbs := few[:0]
	for len(b) > 0 {
		n := len(b) % 8
		if n == 0 {
			n = 8
		}
		var carry uint64
		for _, c := range b[:n] {
			carry = carry<<8 | uint64(c)
		}
		b = b[n:]
		for i, limb := range limbs {
			// The number so far is multiplied by 2^64 and the next eight bytes are added. Only the first word may
			// have fewer than eight bytes, and then there are no limbs yet.
			carry, limbs[i] = bits.Div64(limb, carry, base58Limb)
		}
		for carry > 0 {
			limbs = append(limbs, carry%base58Limb)
			carry /= base58Limb
		}
	}
	for i := len(limbs) - 1; i >= 0; i-- {
		var digits [base58Chunk]byte
		for j, limb := base58Chunk-1, limbs[i]; j >= 0; j-- {
			digits[j] = base58Alphabet[limb%58]
			limb /= 58
		}
		first := 0
		for i == len(limbs)-1 && digits[first] == base58Alphabet[0] {
			first++ // the most significant limb is not padded; it is not zero
		}
		dst = append(dst, digits[first:]...)
	}
	return dst
}

// appendUnbase58 appends the bytes that the digits in s stand for; it is the inverse of appendBase58.
func appendUnbase58(dst []byte, s string) (b []byte, ok bool) {
	for s != "" && s[0] == base58Alphabet[0] {
		dst = append(dst, 0)
		s = s[1:]
	}
	// limbs hold the number in base 2^64, least significant first.
	var few [8]uint64
	limbs := few[:0]
	for len(s) > 0 {
		n := len(s) % base58Chunk
		if n == 0 {
			n = base58Chunk
		}
		carry, factor := uint64(0), uint64(1)
		for _, c := range []byte(s[:n]) {
			digit := base58Digit(c)
			if digit < 0 {
				return nil, false
			}
			carry = carry*58 + uint64(digit)
			factor *= 58
		}
		s = s[n:]
		for i, limb := range limbs {
			hi, lo := bits.Mul64(limb, factor)
			var c uint64
			limbs[i], c = bits.Add64(lo, carry, 0)
			carry = hi + c
		}
		if carry > 0 {
			limbs = append(limbs, carry)
		}
	}
	leading := true
	for i := len(limbs) - 1; i >= 0; i-- {
		for shift := 56; shift >= 0; shift -= 8 {
			c := byte(limbs[i] >> shift)
			if leading = leading && c == 0; !leading {
				dst = append(dst, c)
			}
		}
	}
	return dst, true
}

func base58Digit(c byte) int {
	switch {
	case c >= '1' && c <= '9':
		return int(c - '1')
	case c >= 'A' && c <= 'H':
		return int(c-'A') + 9
	case c >= 'J' && c <= 'N':
		return int(c-'J') + 17
	case c >= 'P' && c <= 'Z':
		return int(c-'P') + 22
	case c >= 'a' && c <= 'k':
		return int(c-'a') + 33
	case c >= 'm' && c <= 'z':
		return int(c-'m') + 44
	default:
		return -1
	}
}
