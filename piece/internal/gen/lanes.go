//go:build gen

package main

import "fmt"

// The AVX-512 kernel. A register of 512 bits holds 16 words of 32 bits; word w of 16 different messages in one register
// makes every instruction of SHA-256 work on 16 nodes. That form is called transposed: a node is 8 registers (word 0 to
// 7, in the byte order of SHA-256), and register w has word w of the node of lane 0 in its lowest element, of lane 1 in
// the next, and so on.
//
// The registers of the whole kernel:
//
//	Z0-Z15   the 16 words of the message
//	Z16-Z23  the state a to h, at the end the node
//	Z24-Z31  temporary; while rows are transposed Z16-Z31 are
//
// The limit is the two ports that operate on 512 bits, one operation each in a cycle. For 16 nodes the first compression
// takes 64 rounds of 17 operations, 48 words of schedule of 11, and 8; the second 64 rounds of 16, and 9; bringing leaves
// into lanes 196 for every four nodes. That is 2706 operations, 1353 cycles, 84.6 for a node. The kernel takes 88.5, on a
// core of the family of Sapphire Rapids, payload in cache. Copies of registers (VMOVDQA64) cost next to nothing there, and
// neither the order of independent instructions nor a first round with the known state folded in, nor copies kept in
// memory, made a difference of more than half a percent: so the code is the plain one.
const (
	message = 0
	state   = 16
	temp    = 24
)

const (
	lanes     = 16
	nodeBytes = 32 * lanes // a node of each lane, transposed

	// maxLog bounds the depth of a lane's sub-tree above the quads: 2^8 of them.
	maxLog = 8
)

func z(i int) string { return fmt.Sprintf("Z%d", i) }

// Truth tables for VPTERNLOGD $t, c, b, a: bit 4a+2b+c of t is the result.
const (
	xor3 = 0x96
	ch   = 0xca // a ? b : c
	maj  = 0xe8
)

func lanesFile() []byte {
	a := newFile(`
		Nodes of a piece's tree, 16 at a time, with AVX-512. See internal/gen/lanes.go for the reasons.

		A node in transposed form is eight registers; register w has word w of 16 nodes, one in each lane.`)
	a.words("The round constants of the first compression; then those of the second, whose message is constant, with the\n"+
		"message added; then the initial state.", "laneRounds",
		append(append(append([]uint32{}, rounds...), paddingRounds()...), initial...))
	a.words("For VPSHUFB: turns the bytes of each word around.", "laneSwap", []uint32{
		0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f, 0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f,
		0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f, 0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f})
	a.words("How far the quadwords of the third and the fourth leaf are shifted right, and then the low ones left.",
		"laneShifts", []uint32{4, 0, 4, 0, 4, 0, 4, 0, 2, 0, 2, 0, 2, 0, 2, 0,
			60, 0, 60, 0, 60, 0, 60, 0, 62, 0, 62, 0, 62, 0, 62, 0})
	a.words("All bits of a node's last word but the two that a node does not have; in SHA-256's byte order they are the top\n"+
		"two of its lowest byte.", "laneTop", []uint32{0xffffff3f, 0xffffff3f})
	a.compress()
	a.subtree("laneTreesVBMI2", true)
	a.subtree("laneTreesF", false)
	a.pairs()
	return a.Bytes()
}

// compress writes the routine that hashes 16 messages of 64 bytes.
func (a *asm) compress() {
	a.text(`
		laneHash computes 16 nodes: in, Z0-Z15 are the words of the 16 messages; out, Z16-Z23 are the words of the
		nodes. It uses Z0-Z15, Z24-Z31, CX and R10, and is called with no arguments.

		The loops hold 16 rounds: after 16 the eight state registers and the sixteen message registers have come back to
		where they were. Loops, and not 128 rounds in a row, keep the code in the cache of decoded instructions.`,
		"laneHash<>", "NOSPLIT", 0, 0)
	a.op("LEAQ", "laneRounds<>(SB)", "R10")
	for i := range 8 {
		a.op("VPBROADCASTD", mem(4*(128+i), "R10"), z(state+i))
	}
	a.op("MOVL", 3, "CX")
	a.label("first")
	for i := range 16 {
		a.round(i, true)
		a.schedule(i)
	}
	a.op("ADDQ", 64, "R10")
	a.op("DECL", "CX")
	a.op("JNZ", "first")
	a.note("The last 16 rounds need no further words.")
	for i := range 16 {
		a.round(i, true)
	}
	a.note("R10 has moved on by 48 words.")
	for i := range 8 {
		a.op("VPADDD.BCST", mem(4*(128-48+i), "R10"), z(state+i), z(state+i))
		a.op("VMOVDQA64", z(state+i), z(message+i))
	}
	a.note("Second compression: of the padding. The state it starts from waits in Z0-Z7.")
	a.op("MOVL", 4, "CX")
	a.op("ADDQ", 64, "R10")
	a.label("second")
	for i := range 16 {
		a.round(i, false)
	}
	a.op("ADDQ", 64, "R10")
	a.op("DECL", "CX")
	a.op("JNZ", "second")
	for i := range 8 {
		a.op("VPADDD", z(message+i), z(state+i), z(state+i))
	}
	a.note("A node has 254 bits.")
	a.op("VPANDD.BCST", "laneTop<>(SB)", z(state+7), z(state+7))
	a.op("RET")
}

// round writes round i of 16, whose constant is word i at R10. withMessage adds the word of the message as well.
//
//	t = h + K + W + ch(e, f, g) + (e>>>6 ^ e>>>11 ^ e>>>25)
//	d += t
//	h = t + maj(a, b, c) + (a>>>2 ^ a>>>13 ^ a>>>22)
//
// and then the eight names move on by one register. The sum is made in the order in which its parts are ready: what
// depends on the newest e is added last.
func (a *asm) round(i int, withMessage bool) {
	r := func(name int) string { return z(state + (name-i%8+8)%8) }
	ra, rb, rc, rd, re, rf, rg, rh := r(0), r(1), r(2), r(3), r(4), r(5), r(6), r(7)
	t0, t1, t2, t3, t4, t5 := z(temp), z(temp+1), z(temp+2), z(temp+3), z(temp+4), z(temp+5)

	a.note("round %d", i)
	if withMessage {
		a.op("VPADDD.BCST", mem(4*i, "R10"), z(message+i), t0)
		a.op("VPADDD", t0, rh, rh)
	} else {
		a.op("VPADDD.BCST", mem(4*i, "R10"), rh, rh)
	}
	a.op("VMOVDQA64", re, t4)
	a.op("VPTERNLOGD", ch, rg, rf, t4)
	a.op("VPRORD", 6, re, t1)
	a.op("VPRORD", 11, re, t2)
	a.op("VPRORD", 25, re, t3)
	a.op("VPADDD", t4, rh, rh)
	a.op("VPTERNLOGD", xor3, t3, t2, t1)
	a.op("VPADDD", t1, rh, rh)
	a.op("VPRORD", 2, ra, t1)
	a.op("VPRORD", 13, ra, t2)
	a.op("VPRORD", 22, ra, t3)
	a.op("VMOVDQA64", ra, t5)
	a.op("VPTERNLOGD", maj, rc, rb, t5)
	a.op("VPTERNLOGD", xor3, t3, t2, t1)
	a.op("VPADDD", rh, rd, rd)
	a.op("VPADDD", t5, t1, t1)
	a.op("VPADDD", t1, rh, rh)
}

// schedule replaces word i of the message by the word that is due 16 rounds later:
//
//	W[i+16] = W[i] + W[i+9] + (W[i+1]>>>7 ^ W[i+1]>>>18 ^ W[i+1]>>3) + (W[i+14]>>>17 ^ W[i+14]>>>19 ^ W[i+14]>>10)
func (a *asm) schedule(i int) {
	w := func(k int) string { return z(message + (i+k)%16) }
	t0, t1, t2, t3, t4, t5 := z(temp), z(temp+1), z(temp+2), z(temp+3), z(temp+6), z(temp+7)
	a.op("VPRORD", 7, w(1), t0)
	a.op("VPRORD", 18, w(1), t1)
	a.op("VPSRLD", 3, w(1), t4)
	a.op("VPADDD", w(9), w(0), w(0))
	a.op("VPTERNLOGD", xor3, t4, t1, t0)
	a.op("VPRORD", 17, w(14), t2)
	a.op("VPRORD", 19, w(14), t3)
	a.op("VPSRLD", 10, w(14), t5)
	a.op("VPADDD", t0, w(0), w(0))
	a.op("VPTERNLOGD", xor3, t5, t3, t2)
	a.op("VPADDD", t2, w(0), w(0))
}

// transpose turns 16 rows of 16 words, row r in register from[r], into the words of a transposed message in Z0-Z15: the
// same matrix with rows and columns exchanged. from is a permutation of Z0-Z15; Z16-Z31 are used.
//
// Four steps of 16 instructions: words of two rows are interleaved, then pairs of words; then a register has, in each of
// its four quarters, one word of four rows, and quarters are exchanged among registers in two steps.
func (a *asm) transpose() {
	a.note("Interleave words, then pairs of words, of four rows at a time: quarter q of register 4g+j then has word 4q+j of rows 4g to 4g+3.")
	for g := 0; g < 16; g += 4 {
		a.unpack(g, 16+g)
	}
	for j := range 4 {
		a.note("Words %d, %d, %d and %d: gather their quarters.", j, 4+j, 8+j, 12+j)
		a.quarters([4]int{j, 4 + j, 8 + j, 12 + j}, 16+j)
	}
}

// unpack interleaves words and then pairs of words of the registers r to r+3, in place, by way of t to t+3.
func (a *asm) unpack(r, t int) {
	a.op("VPUNPCKLDQ", z(r+1), z(r), z(t))
	a.op("VPUNPCKHDQ", z(r+1), z(r), z(t+1))
	a.op("VPUNPCKLDQ", z(r+3), z(r+2), z(t+2))
	a.op("VPUNPCKHDQ", z(r+3), z(r+2), z(t+3))
	a.op("VPUNPCKLQDQ", z(t+2), z(t), z(r))
	a.op("VPUNPCKHQDQ", z(t+2), z(t), z(r+1))
	a.op("VPUNPCKLQDQ", z(t+3), z(t+1), z(r+2))
	a.op("VPUNPCKHQDQ", z(t+3), z(t+1), z(r+3))
}

// quarters transposes the 4x4 matrix of 128-bit quarters of the registers r, in place, by way of t, t+4, t+8 and t+12.
func (a *asm) quarters(r [4]int, t int) {
	a.op("VSHUFI32X4", 0x88, z(r[1]), z(r[0]), z(t))
	a.op("VSHUFI32X4", 0xdd, z(r[1]), z(r[0]), z(t+4))
	a.op("VSHUFI32X4", 0x88, z(r[3]), z(r[2]), z(t+8))
	a.op("VSHUFI32X4", 0xdd, z(r[3]), z(r[2]), z(t+12))
	a.op("VSHUFI32X4", 0x88, z(t+8), z(t), z(r[0]))
	a.op("VSHUFI32X4", 0x88, z(t+12), z(t+4), z(r[1]))
	a.op("VSHUFI32X4", 0xdd, z(t+8), z(t), z(r[2]))
	a.op("VSHUFI32X4", 0xdd, z(t+12), z(t+4), z(r[3]))
}

// swap turns the bytes of the words in count registers around: memory is little-endian, SHA-256 is not.
func (a *asm) swap(from, count int) {
	a.note("Bytes in the order of SHA-256.")
	a.op("VMOVDQU64", "laneSwap<>(SB)", z(temp))
	for i := range count {
		a.op("VPSHUFB", z(temp), z(from+i), z(from+i))
	}
}

// storeNodes writes the 16 nodes in Z16-Z23 in order, 32 bytes each, to DI.
func (a *asm) storeNodes() {
	a.note("Turn the nodes back into rows of 32 bytes, two of them in each register.")
	a.swap(state, 8)
	for i := range 8 {
		a.op("VMOVDQA64", z(16+i), z(i))
	}
	a.unpack(0, 16)
	a.unpack(4, 20)
	a.note("Quarter q of Z0+j now has words 0 to 3 of node 4q+j, and Z4+j its words 4 to 7.")
	a.quarters([4]int{0, 4, 1, 5}, 16)
	a.quarters([4]int{2, 6, 3, 7}, 17)
	for q, r := range [4]int{0, 4, 1, 5} {
		a.op("VMOVDQU64", z(r), mem(128*q, "DI"))
	}
	for q, r := range [4]int{2, 6, 3, 7} {
		a.op("VMOVDQU64", z(r), mem(128*q+64, "DI"))
	}
}

// pairs writes the kernel that takes 16 pairs of nodes as they lie in memory.
func (a *asm) pairs() {
	a.text(`
		func lanePairs(dst *[16]Node, src *[32]Node)

		dst[i] = the parent of src[2i] and src[2i+1]. All of src is read before dst is written.`,
		"lanePairs", "NOSPLIT", 8, 16)
	a.op("MOVQ", "dst+0(FP)", "DI")
	a.op("MOVQ", "src+8(FP)", "SI")
	for r := range lanes {
		a.op("VMOVDQU64", mem(64*r, "SI"), z(r))
	}
	a.transpose()
	a.swap(message, 16)
	a.op("CALL", "·laneHash<>(SB)")
	a.storeNodes()
	a.op("VZEROUPPER")
	a.op("RET")
}

// subtree writes the kernel that hashes 16 sub-trees side by side, from the payload up to their roots.
//
// A quad is 127 bytes of payload, four leaves of 254 bits. Its leaves are hashed in two pairs, then the two nodes, and
// then, as in a binary counter, one node of each level that this quad completes: quad i completes a sub-tree for each
// trailing one bit of i. The left halves wait in transposed form on the stack, one of each level, about 5 KB: above the
// leaves nothing is ever shuffled or turned around.
//
// Leaf k starts at bit 254k of the quad. As 64-bit words with bit 0 first, the first two leaves are
//
//	words 0-3   the words at bytes 0, 8, 16, 24
//	words 4-7   the words at bytes 32, 40, 48, 56 shifted left by 2, filled up from the words 8 bytes before
//
// which makes one shift of the upper half of a register, VPSHLDQ, whose second operand is the same memory 8 bytes
// before, and whose mask keeps it from touching the lower half and the memory there. The other two leaves start 4 bits
// into byte 63, so from the 64 bytes at 63, the last of which is the last of the quad,
//
//	words 0-3   are shifted right by 4, words 4-7 by 2, and filled up from the words 8 bytes after
//
// which is VPSHRDVQ, again one for each row. Of the words 8 bytes after the last does not exist: it is masked, and reads
// as the zeros that belong there. Thus no byte beside the payload is ever read. Only the top bits of a leaf are left to
// clear: after the transposition they are in words 7 and 15 of all lanes, two instructions.
//
// Without VBMI2 a double shift is two shifts and a VPTERNLOGQ.
func (a *asm) subtree(name string, vbmi2 bool) {
	const (
		frame = (maxLog+1)*nodeBytes + 64 + nodeBytes
		or3   = 0xfe
	)
	need := "AVX-512 F, BW and VBMI2"
	if !vbmi2 {
		need = "AVX-512 F and BW"
	}
	a.text(fmt.Sprintf(`
		func %s(dst *[16]Node, p *byte, quads int)

		dst[l] = the root of the tree over the quads from l*quads to (l+1)*quads at p, of 127 bytes each. quads is a
		power of two, at most %d. It needs %s.

		SI is the next quad of lane 0, DX the distance of lanes, R8 three times that; R9 the stack of nodes, R11 its
		current level; BX the number of the quad, R12 that of quads.`, name, 1<<maxLog, need), name, "0", frame, 24)
	a.op("MOVQ", "dst+0(FP)", "DI")
	a.op("MOVQ", "p+8(FP)", "SI")
	a.op("MOVQ", "quads+16(FP)", "R12")
	a.op("IMUL3Q", 127, "R12", "DX")
	a.op("LEAQ", "(DX)(DX*2)", "R8")
	a.op("XORL", "BX", "BX")
	a.note("The stack of nodes starts at a cache line: first the left node of a quad, then one node of each level.")
	a.op("LEAQ", "63(SP)", "R9")
	a.op("ANDQ", "$-64", "R9")
	a.note("K1 is the upper half of a row, K2 all of its words but the last.")
	a.op("MOVL", 0xf0, "AX")
	a.op("KMOVW", "AX", "K1")
	a.op("MOVL", 0x7f, "AX")
	a.op("KMOVW", "AX", "K2")

	a.label("quad")
	a.note("The first two leaves of each lane. The second starts 2 bits before byte 32: the upper half moves up by 2 bits, which are\n" +
		"\t// those before it.")
	a.op("MOVQ", "SI", "R13")
	a.rows(func(r int, at func(disp int) string) {
		a.op("VMOVDQU64", at(0), z(r))
		if vbmi2 {
			a.op("VPSHLDQ", 2, at(-8), z(r), "K1", z(r))
			return
		}
		t := z(16 + r)
		a.op("VMOVDQU64.Z", at(-8), "K1", t)
		a.op("VPSRLQ", 62, t, t)
		a.op("VPSLLQ", 2, z(r), "K1", z(r))
		a.op("VPORQ", t, z(r), z(r))
	})
	a.leaves()
	a.op("CALL", "·laneHash<>(SB)")
	for i := range 8 {
		a.op("VMOVDQA64", z(state+i), mem(64*i, "R9"))
	}

	a.note("The other two start 4 bits into byte 63 and 2 bits into byte 95: the halves move down by 4 and by 2 bits, and take in\n" +
		"\t// those of the word after.")
	a.op("MOVQ", "SI", "R13")
	a.op("VMOVDQU64", "laneShifts<>(SB)", z(31))
	if !vbmi2 {
		a.op("VMOVDQU64", "laneShifts<>+64(SB)", z(30))
	}
	a.rows(func(r int, at func(disp int) string) {
		t := z(16 + r%8)
		a.op("VMOVDQU64", at(63), z(r))
		a.op("VMOVDQU64.Z", at(71), "K2", t)
		if vbmi2 {
			a.op("VPSHRDVQ", z(31), t, z(r))
			return
		}
		a.op("VPSRLVQ", z(31), z(r), z(r))
		a.op("VPSLLVQ", z(30), t, t)
		a.op("VPORQ", t, z(r), z(r))
	})
	a.leaves()
	a.op("CALL", "·laneHash<>(SB)")

	a.note("Their parent, and one node more for each level that this quad completes: left from the stack, right as it is.")
	a.op("MOVQ", "R9", "R11")
	a.op("MOVQ", "BX", "R14")
	a.op("ADDQ", 127, "SI")
	a.label("merge")
	for i := range 8 {
		a.op("VMOVDQA64", mem(64*i, "R11"), z(message+i))
		a.op("VMOVDQA64", z(state+i), z(message+8+i))
	}
	a.op("CALL", "·laneHash<>(SB)")
	a.op("ADDQ", fmt.Sprintf("$%d", nodeBytes), "R11")
	a.op("SHRQ", "$1", "R14")
	a.op("JCS", "merge")
	for i := range 8 {
		a.op("VMOVDQA64", z(state+i), mem(64*i, "R11"))
	}
	a.op("INCQ", "BX")
	a.op("CMPQ", "BX", "R12")
	a.op("JNE", "quad")

	a.storeNodes()
	a.op("VZEROUPPER")
	a.op("RET")
}

// rows calls load for the 16 rows, one of each lane; at is an operand for the byte at disp of that lane's quad.
func (a *asm) rows(load func(r int, at func(disp int) string)) {
	index := [4]string{"", "DX*1", "DX*2", "R8*1"}
	for r := range lanes {
		load(r, func(disp int) string {
			if index[r%4] == "" {
				return mem(disp, "R13")
			}
			return mem(disp, "R13", index[r%4])
		})
		if r%4 == 3 && r < lanes-1 {
			a.op("LEAQ", "(R13)(DX*4)", "R13")
		}
	}
}

// leaves turns 16 rows of two leaves, whose top bits are undefined, into a transposed message.
func (a *asm) leaves() {
	a.transpose()
	a.swap(message, 16)
	a.note("A leaf has 254 bits.")
	a.op("VPANDD.BCST", "laneTop<>(SB)", z(7), z(7))
	a.op("VPANDD.BCST", "laneTop<>(SB)", z(15), z(15))
}
