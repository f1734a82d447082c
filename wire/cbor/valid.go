package cbor

import (
	"bytes"
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// Valid reports, as an error, why b is not exactly one canonical DAG-CBOR value; nil if it is.
func Valid(b []byte) error {
	end, err := skip(b, 0, 0)
	if err != nil {
		return err
	}
	if end != len(b) {
		return malformed(end, "%d bytes after the value", len(b)-end)
	}
	return nil
}

// head reads the head of the item at off: its first byte, its argument and the offset behind it. For major type 7
// only the simple values of DAG-CBOR and 64-bit floats, whose argument is their bits, are let through.
func head(b []byte, off int) (first byte, arg uint64, next int, err error) {
	if off >= len(b) {
		return 0, 0, 0, malformed(off, "unexpected end")
	}
	first = b[off]
	info := first & 0x1f
	rest := b[off+1:]
	if first>>5 == 7 {
		switch {
		case info >= 20 && info <= 22:
			return first, 0, off + 1, nil
		case info == 27 && len(rest) >= 8:
			return first, binary.BigEndian.Uint64(rest), off + 9, nil
		default:
			return 0, 0, 0, malformed(off, "no value of DAG-CBOR starts with 0x%02x here", first)
		}
	}
	if info < 24 {
		return first, uint64(info), off + 1, nil
	}
	var least uint64
	size := 1 << (info - 24)
	if info > 27 {
		return 0, 0, 0, malformed(off, "indefinite or reserved length")
	}
	if len(rest) < size {
		return 0, 0, 0, malformed(off, "unexpected end")
	}
	switch size {
	case 1:
		arg, least = uint64(rest[0]), 24
	case 2:
		arg, least = uint64(binary.BigEndian.Uint16(rest)), 1<<8
	case 4:
		arg, least = uint64(binary.BigEndian.Uint32(rest)), 1<<16
	default:
		arg, least = binary.BigEndian.Uint64(rest), 1<<32
	}
	if arg < least {
		return 0, 0, 0, malformed(off, "number not in its shortest form")
	}
	return first, arg, off + 1 + size, nil
}

// span returns the end of n content bytes that start at off.
func span(b []byte, off int, n uint64) (end int, err error) {
	if n > uint64(len(b)-off) {
		return 0, malformed(off, "%d bytes announced, %d left", n, len(b)-off)
	}
	return off + int(n), nil
}

// textAt checks the text whose head has been read and returns its end.
func textAt(b []byte, off int, n uint64) (end int, err error) {
	if end, err = span(b, off, n); err != nil {
		return 0, err
	}
	if !utf8.Valid(b[off:end]) {
		return 0, malformed(off, "text is not UTF-8")
	}
	return end, nil
}

// keyAt reads the map key at off; prev is the key before it, if there is one.
func keyAt(b []byte, off int, prev []byte, first bool) (key []byte, next int, err error) {
	lead, n, start, err := head(b, off)
	if err != nil {
		return nil, 0, err
	}
	if lead>>5 != 3 {
		return nil, 0, malformed(off, "map key is not text")
	}
	if next, err = textAt(b, start, n); err != nil {
		return nil, 0, err
	}
	key = b[start:next]
	if !first && compareKeys(prev, key) >= 0 {
		return nil, 0, malformed(off, "map key %.40q out of order", key)
	}
	return key, next, nil
}

// linkAt checks the tag, the byte string and the CID at off and returns the CID and the offset behind it.
func linkAt(b []byte, off int) (c []byte, next int, err error) {
	lead, tag, next, err := head(b, off)
	if err != nil {
		return nil, 0, err
	}
	if lead>>5 != 6 || tag != 42 {
		return nil, 0, malformed(off, "tag is not 42")
	}
	lead, n, start, err := head(b, next)
	if err != nil {
		return nil, 0, err
	}
	if lead>>5 != 2 {
		return nil, 0, malformed(next, "link is not a byte string")
	}
	if next, err = span(b, start, n); err != nil {
		return nil, 0, err
	}
	if n < 1 || b[start] != 0 {
		return nil, 0, malformed(start, "link lacks its leading zero")
	}
	c = b[start+1 : next]
	if !validCID(c) {
		return nil, 0, malformed(start, "link is not a CID")
	}
	return c, next, nil
}

// checkFloat refuses what DAG-CBOR has no place for.
func checkFloat(off int, bits uint64) (float64, error) {
	f := math.Float64frombits(bits)
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, malformed(off, "float is not finite")
	}
	return f, nil
}

// countAt checks the announced number of items, each at least size bytes long, against what is left.
func countAt(b []byte, off int, n uint64, size int) (int, error) {
	if n > uint64((len(b)-off)/size) {
		return 0, malformed(off, "%d items announced, %d bytes left", n, len(b)-off)
	}
	return int(n), nil
}

// skip checks the value at off and returns the offset behind it; depth counts the containers around it.
func skip(b []byte, off, depth int) (next int, err error) {
	first, arg, next, err := head(b, off)
	if err != nil {
		return 0, err
	}
	switch first >> 5 {
	case 0:
		return next, nil
	case 1:
		if arg > math.MaxInt64 {
			return 0, malformed(off, "integer below -2^63")
		}
		return next, nil
	case 2:
		return span(b, next, arg)
	case 3:
		return textAt(b, next, arg)
	case 4:
		if depth == MaxDepth {
			return 0, malformed(off, "nested deeper than %d", MaxDepth)
		}
		n, err := countAt(b, next, arg, 1)
		if err != nil {
			return 0, err
		}
		for range n {
			if next, err = skip(b, next, depth+1); err != nil {
				return 0, err
			}
		}
		return next, nil
	case 5:
		if depth == MaxDepth {
			return 0, malformed(off, "nested deeper than %d", MaxDepth)
		}
		n, err := countAt(b, next, arg, 2)
		if err != nil {
			return 0, err
		}
		var key []byte
		for i := range n {
			if key, next, err = keyAt(b, next, key, i == 0); err != nil {
				return 0, err
			}
			if next, err = skip(b, next, depth+1); err != nil {
				return 0, err
			}
		}
		return next, nil
	case 6:
		_, next, err := linkAt(b, off)
		return next, err
	default:
		if first&0x1f == 27 {
			if _, err := checkFloat(off, arg); err != nil {
				return 0, err
			}
		}
		return next, nil
	}
}

func compareKeys(a, b []byte) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare(a, b)
}

// validCID reports whether c is exactly one CID: version 0 (a sha2-256 multihash) or version 1. It accepts what
// cid.Cast accepts, without allocating.
func validCID(c []byte) bool {
	if len(c) == 34 && c[0] == 0x12 && c[1] == 0x20 {
		return true
	}
	version, c, ok := uvarint(c)
	if !ok || version != 1 {
		return false
	}
	_, c, ok = uvarint(c) // codec
	if !ok {
		return false
	}
	_, c, ok = uvarint(c) // hash function
	if !ok {
		return false
	}
	n, c, ok := uvarint(c)
	return ok && n == uint64(len(c))
}

// uvarint reads an unsigned varint as multiformats define it: at most nine bytes, shortest form.
func uvarint(b []byte) (n uint64, rest []byte, ok bool) {
	for i := 0; i < len(b) && i < 9; i++ {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return n, b[i+1:], i == 0 || b[i] != 0
		}
	}
	return 0, nil, false
}
