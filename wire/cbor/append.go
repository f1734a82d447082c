package cbor

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/ipfs/go-cid"
)

// The Append functions write the canonical form of one value, or the head of a container that its items must follow.
// The caller keeps two promises that a function for a single value cannot check: a container gets exactly the items
// its head announces, and map keys come in the order of CompareKeys. Valid tells whether they were kept.

// AppendMap appends the head of a map of n entries; n keys, each followed by its value, come next.
func AppendMap(dst []byte, n int) []byte { return appendHead(dst, 5, uint64(n)) }

// AppendArray appends the head of an array of n items; the items come next.
func AppendArray(dst []byte, n int) []byte { return appendHead(dst, 4, uint64(n)) }

// AppendText appends a text, or a map key. The text must be valid UTF-8.
func AppendText(dst []byte, s string) []byte {
	return append(appendHead(dst, 3, uint64(len(s))), s...)
}

// AppendBytes appends a byte string.
func AppendBytes(dst, b []byte) []byte {
	return append(appendHead(dst, 2, uint64(len(b))), b...)
}

// AppendLink appends a link. The CID must be defined.
func AppendLink(dst []byte, c cid.Cid) []byte {
	s := c.KeyString()
	dst = append(dst, 0xd8, 42)
	dst = appendHead(dst, 2, uint64(len(s))+1)
	dst = append(dst, 0)
	return append(dst, s...)
}

// AppendUint appends a non-negative integer.
func AppendUint(dst []byte, n uint64) []byte { return appendHead(dst, 0, n) }

// AppendInt appends an integer.
func AppendInt(dst []byte, n int64) []byte {
	if n < 0 {
		return appendHead(dst, 1, uint64(^n))
	}
	return appendHead(dst, 0, uint64(n))
}

// AppendFloat appends a float, which must be finite.
func AppendFloat(dst []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0xfb), math.Float64bits(f))
}

// AppendBool appends true or false.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 0xf5)
	}
	return append(dst, 0xf4)
}

// AppendNull appends null.
func AppendNull(dst []byte) []byte { return append(dst, 0xf6) }

// CompareKeys orders map keys as canonical DAG-CBOR does: shorter first, then bytewise. It suits slices.SortFunc.
func CompareKeys(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, major|27), n)
	}
}
