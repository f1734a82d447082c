package piece

import "encoding/binary"

// Pad spreads payload bytes into leaves: of every 127 bytes of src, each group of 254 bits becomes one 32-byte leaf of
// dst with its two top bits zero. src must hold a multiple of 127 bytes and dst 128 bytes for each of them, else Pad
// panics. dst and src must not overlap.
func Pad(dst, src []byte) {
	n := mustQuads(len(src), quad, len(dst), paddedQuad)
	for i := range n {
		padQuad((*[paddedQuad]byte)(dst[i*paddedQuad:]), (*[quad]byte)(src[i*quad:]))
	}
}

// Unpad is the inverse of [Pad]: it drops the two top bits of every leaf. src must hold a multiple of 128 bytes and
// dst 127 bytes for each of them, else Unpad panics. dst and src must not overlap.
func Unpad(dst, src []byte) {
	n := mustQuads(len(src), paddedQuad, len(dst), quad)
	for i := range n {
		unpadQuad((*[quad]byte)(dst[i*quad:]), (*[paddedQuad]byte)(src[i*paddedQuad:]))
	}
}

// mustQuads returns how many whole quads src holds, given that dst holds as many.
func mustQuads(src, srcQuad, dst, dstQuad int) int {
	n := src / srcQuad
	if src%srcQuad != 0 || dst != n*dstQuad {
		panic("piece: fr32 buffers do not hold the same number of whole quads")
	}
	return n
}

const topWord = 1<<62 - 1 // the last of a leaf's four words has 62 bits

// padQuad works on little-endian 64-bit words: leaf k starts at bit 254·k of the payload, so its words are those of
// the payload from byte 31·k+(0, 0, 1, 2) shifted right by 0, 6, 4 and 2 bits.
func padQuad(dst *[paddedQuad]byte, src *[quad]byte) {
	le := binary.LittleEndian

	le.PutUint64(dst[0:], le.Uint64(src[0:]))
	le.PutUint64(dst[8:], le.Uint64(src[8:]))
	le.PutUint64(dst[16:], le.Uint64(src[16:]))
	le.PutUint64(dst[24:], le.Uint64(src[24:])&topWord)

	le.PutUint64(dst[32:], le.Uint64(src[31:])>>6|uint64(src[39])<<58)
	le.PutUint64(dst[40:], le.Uint64(src[39:])>>6|uint64(src[47])<<58)
	le.PutUint64(dst[48:], le.Uint64(src[47:])>>6|uint64(src[55])<<58)
	le.PutUint64(dst[56:], (le.Uint64(src[55:])>>6|uint64(src[63])<<58)&topWord)

	le.PutUint64(dst[64:], le.Uint64(src[63:])>>4|uint64(src[71])<<60)
	le.PutUint64(dst[72:], le.Uint64(src[71:])>>4|uint64(src[79])<<60)
	le.PutUint64(dst[80:], le.Uint64(src[79:])>>4|uint64(src[87])<<60)
	le.PutUint64(dst[88:], (le.Uint64(src[87:])>>4|uint64(src[95])<<60)&topWord)

	le.PutUint64(dst[96:], le.Uint64(src[95:])>>2|uint64(src[103])<<62)
	le.PutUint64(dst[104:], le.Uint64(src[103:])>>2|uint64(src[111])<<62)
	le.PutUint64(dst[112:], le.Uint64(src[111:])>>2|uint64(src[119])<<62)
	le.PutUint64(dst[120:], le.Uint64(src[119:])>>2)
}

// unpadQuad moves each leaf back to its place in the payload; neighbouring leaves share a byte.
func unpadQuad(dst *[quad]byte, src *[paddedQuad]byte) {
	copy(dst[:32], src[:32])
	dst[31] = src[31]&truncate | src[32]<<6
	for i := 32; i < 63; i++ {
		dst[i] = src[i]>>2 | src[i+1]<<6
	}
	dst[63] = src[63]&truncate>>2 | src[64]<<4
	for i := 64; i < 95; i++ {
		dst[i] = src[i]>>4 | src[i+1]<<4
	}
	dst[95] = src[95]&truncate>>4 | src[96]<<2
	for i := 96; i < 127; i++ {
		dst[i] = src[i]>>6 | src[i+1]<<2
	}
}
