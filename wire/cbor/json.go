package cbor

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// Spelling selects how DAG-JSON writes the few things whose form the implementations disagree about. It matters since
// the signature of a UCAN covers the JSON text. The two spellings differ for text with a backspace, a form feed, or
// one of the separators U+2028 and U+2029, for some floats without fraction, and in the order of keys outside the
// Basic Multilingual Plane; everything else has one spelling.
type Spelling uint8

const (
	// Go is the spelling of go-ipld-prime's dagjson.
	Go Spelling = iota
	// JavaScript is the spelling of @ipld/dag-json.
	JavaScript
)

// ToJSON returns the DAG-JSON text, in the spelling of Go, of the canonical DAG-CBOR value b.
//
// No two values have the same text, so that who signs the text signs the value. Refused is therefore what would look
// like something else: a map with the key "/", since that is how links and bytes are written, and a float without
// fraction that would look like an integer.
func ToJSON(b []byte) ([]byte, error) { return AppendJSON(nil, b, Go) }

// AppendJSON appends to dst the DAG-JSON text of the canonical DAG-CBOR value b, see ToJSON. On error the result is
// nil; what lies behind dst may have been overwritten.
func AppendJSON(dst, b []byte, spelling Spelling) ([]byte, error) {
	if err := Valid(b); err != nil {
		return nil, err
	}
	dst, _, err := appendJSON(dst, b, 0, spelling)
	if err != nil {
		return nil, err
	}
	return dst, nil
}

// appendJSON writes the value at off, which has been checked, and returns the offset behind it.
func appendJSON(dst, b []byte, off int, spelling Spelling) ([]byte, int, error) {
	first, arg, next, err := head(b, off)
	if err != nil {
		return nil, 0, err
	}
	switch first >> 5 {
	case 0:
		return strconv.AppendUint(dst, arg, 10), next, nil
	case 1:
		return strconv.AppendInt(dst, ^int64(arg), 10), next, nil
	case 2:
		end := next + int(arg)
		dst = append(dst, `{"/":{"bytes":"`...)
		dst = base64.RawStdEncoding.AppendEncode(dst, b[next:end])
		return append(dst, `"}}`...), end, nil
	case 3:
		end := next + int(arg)
		return AppendJSONText(dst, b[next:end], spelling), end, nil
	case 4:
		dst = append(dst, '[')
		for i := range int(arg) {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, next, err = appendJSON(dst, b, next, spelling); err != nil {
				return nil, 0, err
			}
		}
		return append(dst, ']'), next, nil
	case 5:
		return appendJSONMap(dst, b, next, int(arg), spelling)
	case 6:
		raw, next, err := linkAt(b, off)
		if err != nil {
			return nil, 0, err
		}
		dst = append(dst, `{"/":"`...)
		return append(AppendCIDText(dst, raw), `"}`...), next, nil
	}
	switch first {
	case 0xf4:
		return append(dst, "false"...), next, nil
	case 0xf5:
		return append(dst, "true"...), next, nil
	case 0xf6:
		return append(dst, "null"...), next, nil
	default:
		f := math.Float64frombits(arg)
		if !distinctFloat(f, spelling) {
			return nil, 0, malformed(off, "the float %v has the DAG-JSON form of an integer", f)
		}
		return appendJSONFloat(dst, f, spelling), next, nil
	}
}

// entry is where a map entry lies: the text of the key and the start of the value.
type entry struct{ key, keyEnd, value int }

func appendJSONMap(dst, b []byte, off, n int, spelling Spelling) ([]byte, int, error) {
	var few [8]entry
	entries := few[:0]
	for range n {
		_, length, key, err := head(b, off)
		if err != nil {
			return nil, 0, err
		}
		e := entry{key: key, keyEnd: key + int(length), value: key + int(length)}
		if length == 1 && b[key] == '/' {
			return nil, 0, malformed(key, `a map with the key "/" has no DAG-JSON form`)
		}
		if off, err = skip(b, e.value, 0); err != nil {
			return nil, 0, err
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(x, y entry) int {
		if spelling == JavaScript {
			return compareUTF16(b[x.key:x.keyEnd], b[y.key:y.keyEnd])
		}
		return bytes.Compare(b[x.key:x.keyEnd], b[y.key:y.keyEnd])
	})
	dst = append(dst, '{')
	for i, e := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendJSONText(dst, b[e.key:e.keyEnd], spelling)
		dst = append(dst, ':')
		var err error
		if dst, _, err = appendJSON(dst, b, e.value, spelling); err != nil {
			return nil, 0, err
		}
	}
	return append(dst, '}'), off, nil
}

// AppendJSONText appends s, which must be valid UTF-8, as a JSON string.
func AppendJSONText[T string | []byte](dst []byte, s T, spelling Spelling) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	done := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c != 0xe2 {
			continue
		}
		if c == 0xe2 {
			// U+2028 and U+2029 are e2 80 a8 and e2 80 a9.
			if spelling == Go && i+2 < len(s) && s[i+1] == 0x80 && s[i+2]&^1 == 0xa8 {
				dst = append(dst, s[done:i]...)
				dst = append(dst, '\\', 'u', '2', '0', '2', '8'+s[i+2]&1)
				done = i + 3
			}
			continue
		}
		dst = append(dst, s[done:i]...)
		done = i + 1
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\b' && spelling == JavaScript:
			dst = append(dst, '\\', 'b')
		case c == '\f' && spelling == JavaScript:
			dst = append(dst, '\\', 'f')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, s[done:]...)
	return append(dst, '"')
}

// distinctFloat reports whether the text of f is that of no integer.
func distinctFloat(f float64, spelling Spelling) bool {
	switch {
	case f != math.Trunc(f):
		return true
	case spelling == JavaScript:
		// Below 2^53 a number without fraction is written as an integer, zero with a sign included. From there on it
		// ends in ".0" if it is a float.
		return math.Abs(f) >= 1<<53
	default:
		return math.Abs(f) >= 1<<64 || f == 0 && math.Signbit(f)
	}
}

// appendJSONFloat writes f as ECMAScript turns a number into text, but for zero with a sign.
func appendJSONFloat(dst []byte, f float64, spelling Spelling) []byte {
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
		if n := len(dst); dst[n-4] == 'e' && dst[n-3] == '-' && dst[n-2] == '0' {
			dst = append(dst[:n-2], dst[n-1]) // e-09 is written e-9
		}
		return dst
	}
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if spelling == JavaScript && f == math.Trunc(f) {
		dst = append(dst, ".0"...)
	}
	return dst
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// AppendCIDText appends the text of the CID with these bytes, as cid.Cid.String writes it: version 1 in base32,
// version 0 in base58btc.
func AppendCIDText[T string | []byte](dst []byte, raw T) []byte {
	if len(raw) == 0 || raw[0] != 1 {
		c, err := cid.Cast([]byte(raw))
		if err != nil {
			return dst // no defined CID has such bytes
		}
		return append(dst, c.String()...)
	}
	var few [64]byte
	return base32Lower.AppendEncode(append(dst, 'b'), append(few[:0], raw...))
}

// compareUTF16 orders two UTF-8 texts by their UTF-16 code units, as JavaScript compares strings.
func compareUTF16(a, b []byte) int {
	for len(a) > 0 && len(b) > 0 {
		x, n := utf8.DecodeRune(a)
		y, m := utf8.DecodeRune(b)
		if x != y {
			// Equal first units are high surrogates of one block; there the order is that of the characters.
			return cmp.Or(cmp.Compare(firstUnit(x), firstUnit(y)), cmp.Compare(x, y))
		}
		a, b = a[n:], b[m:]
	}
	return len(a) - len(b)
}

// firstUnit returns the first UTF-16 code unit of a character.
func firstUnit(r rune) rune {
	if hi, _ := utf16.EncodeRune(r); hi != utf8.RuneError {
		return hi
	}
	return r
}
