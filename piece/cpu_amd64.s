//go:build amd64 && !purego

#include "textflag.h"

// func cycles() uint64
TEXT ·cycles(SB), NOSPLIT, $0-8
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET

// func hasSHA() bool
//
// The SHA instructions are bit 29 of EBX in leaf 7 of CPUID, if there are that many leaves.
TEXT ·hasSHA(SB), NOSPLIT, $0-1
	XORL  AX, AX
	CPUID
	CMPL  AX, $7
	JLT   none
	MOVL  $7, AX
	XORL  CX, CX
	CPUID
	SHRL  $29, BX
	ANDL  $1, BX
	MOVB  BX, ret+0(FP)
	RET

none:
	MOVB $0, ret+0(FP)
	RET
