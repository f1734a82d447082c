//go:build gen

package main

// The SHA-NI kernel. SHA256RNDS2 does two rounds on a state in two registers, and its result is the operand of the next:
// one message alone waits four cycles for each. Two messages that take turns fill those gaps, up to the one instruction
// in three cycles that the hardware can start.
//
// X0 is the operand that SHA256RNDS2 has without naming it: message words plus round constants. A stream has
//
//	s0, s1  the state: words f, e, b, a (lowest first) and h, g, d, c, as the instruction wants them
//	m[0-3]  the message, four words each; in the second compression m[0] and m[1] keep the state it started from
type stream struct {
	s0, s1 string
	m      [4]string
	src    int // where its pair is from SI on
	dst    int // where its node goes from DI on
}

const (
	shaTemp = "X13"
	shaSwap = "X14"
)

func shaFile() []byte {
	a := newFile(`
		Nodes of a piece's tree, two at a time, with the SHA extensions. See internal/gen/sha.go for the reasons.`)
	a.words("The round constants of the first compression; then those of the second, whose message is constant, with the\n"+
		"message added.", "shaRounds", append(append([]uint32{}, rounds...), paddingRounds()...))
	i := initial
	a.words("The initial state in the order of the instructions.", "shaInitial",
		[]uint32{i[5], i[4], i[1], i[0], i[7], i[6], i[3], i[2]})
	a.words("For PSHUFB: turns the bytes of each word around.", "shaSwap",
		[]uint32{0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f})
	a.words("All bits of the second half of a node but the top two.", "shaTop",
		[]uint32{0xffffffff, 0xffffffff, 0xffffffff, 0x3fffffff})

	one := stream{s0: "X1", s1: "X2", m: [4]string{"X3", "X4", "X5", "X6"}}
	two := stream{s0: "X7", s1: "X8", m: [4]string{"X9", "X10", "X11", "X12"}, src: 64, dst: 32}

	a.text(`
		func shaPairs(dst, src *Node, n int)

		dst[i] = the parent of src[2i] and src[2i+1], for n pairs. dst may be src: a pair is read before its parent is
		written. It needs the SHA extensions, SSSE3 and SSE4.1.`, "shaPairs", "NOSPLIT", 0, 24)
	a.op("MOVQ", "dst+0(FP)", "DI")
	a.op("MOVQ", "src+8(FP)", "SI")
	a.op("MOVQ", "n+16(FP)", "DX")
	a.op("LEAQ", "shaRounds<>(SB)", "R8")
	a.op("MOVOU", "shaSwap<>(SB)", shaSwap)
	a.op("SUBQ", "$2", "DX")
	a.op("JLT", "last")
	a.label("two")
	a.shaNodes(one, two)
	a.op("ADDQ", "$128", "SI")
	a.op("ADDQ", "$64", "DI")
	a.op("SUBQ", "$2", "DX")
	a.op("JGE", "two")
	a.WriteString("\nlast:\n")
	a.op("ADDQ", "$2", "DX")
	a.op("JEQ", "done")
	a.shaNodes(one)
	a.WriteString("\ndone:\n")
	a.op("RET")
	return a.Bytes()
}

// shaNodes writes the hashing of one node for each stream, the streams taking turns.
func (a *asm) shaNodes(streams ...stream) {
	a.note("First compression: the children.")
	for _, s := range streams {
		a.op("MOVOU", "shaInitial<>(SB)", s.s0)
		a.op("MOVOU", "shaInitial<>+16(SB)", s.s1)
		for k, m := range s.m {
			a.op("MOVOU", mem(s.src+16*k, "SI"), m)
			a.op("PSHUFB", shaSwap, m)
		}
	}
	for g := range 16 {
		a.note("rounds %d to %d", 4*g, 4*g+3)
		for _, s := range streams {
			m := func(k int) string { return s.m[(g+k+4)%4] }
			a.op("MOVOU", mem(16*g, "R8"), "X0")
			a.op("PADDL", m(0), "X0")
			a.op("SHA256RNDS2", "X0", s.s0, s.s1)
			if g >= 3 && g < 15 {
				// The next four words: the part that needs the newest.
				a.op("MOVO", m(0), shaTemp)
				a.op("PALIGNR", 4, m(-1), shaTemp)
				a.op("PADDL", shaTemp, m(1))
				a.op("SHA256MSG2", m(0), m(1))
			}
			a.op("PSHUFD", 0x0e, "X0", "X0")
			a.op("SHA256RNDS2", "X0", s.s1, s.s0)
			if g >= 1 && g < 13 {
				a.op("SHA256MSG1", m(0), m(-1))
			}
		}
	}
	a.note("Second compression: the padding, the same for all, so one operand serves every stream.")
	for _, s := range streams {
		a.op("MOVOU", "shaInitial<>(SB)", "X0")
		a.op("PADDL", "X0", s.s0)
		a.op("MOVOU", "shaInitial<>+16(SB)", "X0")
		a.op("PADDL", "X0", s.s1)
		a.op("MOVO", s.s0, s.m[0])
		a.op("MOVO", s.s1, s.m[1])
	}
	for g := range 16 {
		a.note("rounds %d to %d", 4*g, 4*g+3)
		a.op("MOVOU", mem(256+16*g, "R8"), "X0")
		for _, s := range streams {
			a.op("SHA256RNDS2", "X0", s.s0, s.s1)
		}
		a.op("PSHUFD", 0x0e, "X0", "X0")
		for _, s := range streams {
			a.op("SHA256RNDS2", "X0", s.s1, s.s0)
		}
	}
	a.note("Words a to d and e to h, their bytes turned around, without the top two bits.")
	for _, s := range streams {
		a.op("PADDL", s.m[0], s.s0)
		a.op("PADDL", s.m[1], s.s1)
		a.op("PSHUFD", 0x1b, s.s0, s.s0)
		a.op("PSHUFD", 0x1b, s.s1, s.s1)
		a.op("MOVO", s.s0, s.m[2])
		a.op("PUNPCKLQDQ", s.s1, s.s0)
		a.op("PUNPCKHQDQ", s.s1, s.m[2])
		a.op("PSHUFB", shaSwap, s.s0)
		a.op("PSHUFB", shaSwap, s.m[2])
		a.op("MOVOU", "shaTop<>(SB)", shaTemp)
		a.op("PAND", shaTemp, s.m[2])
		a.op("MOVOU", s.s0, mem(s.dst, "DI"))
		a.op("MOVOU", s.m[2], mem(s.dst+16, "DI"))
	}
}
