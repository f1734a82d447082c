//go:build amd64 && !purego

package piece

import "golang.org/x/sys/cpu"

//go:generate go run -tags gen ./internal/gen

//go:noescape
func laneTreesVBMI2(dst *[lanes]Node, p *byte, quads int)

//go:noescape
func laneTreesF(dst *[lanes]Node, p *byte, quads int)

//go:noescape
func lanePairs(dst *[lanes]Node, src *[2 * lanes]Node)

//go:noescape
func shaPairs(dst, src *Node, n int)

// cycles reads the processor's time stamp counter, which counts at a constant rate.
func cycles() uint64

// hasSHA reports whether the processor has the SHA instructions, which golang.org/x/sys/cpu does not tell of amd64.
func hasSHA() bool

// available reports whether this machine can run a kernel.
func (k kernel) available() bool {
	switch k {
	case shaKernel:
		return hasSHA() && cpu.X86.HasSSSE3 && cpu.X86.HasSSE41
	case laneKernel:
		return cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW
	case laneKernelVBMI2:
		return cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI2
	default:
		return true
	}
}

// laneTrees sets dst[l] to the root of the tree over the quads of p from l*quads on. quads is a power of two.
func (k kernel) laneTrees(dst *[lanes]Node, p []byte, quads int) {
	p = p[:lanes*quads*quad] // the assembly trusts what it is told
	switch k {
	case laneKernelVBMI2:
		laneTreesVBMI2(dst, &p[0], quads)
	case laneKernel:
		laneTreesF(dst, &p[0], quads)
	default:
		laneTreesGo(dst, p, quads)
	}
}

// lanePairs is pairs for 16 pairs. dst may start where src starts.
func (k kernel) lanePairs(dst *[lanes]Node, src *[2 * lanes]Node) {
	if k == laneKernelGo {
		sumPairs(dst[:], src[:])
		return
	}
	lanePairs(dst, src)
}

// pairs is [HashPairs] for a kernel without lanes.
func (k kernel) pairs(dst, src []Node) {
	if k == shaKernel && len(dst) > 0 {
		src = src[:2*len(dst)]
		shaPairs(&dst[0], &src[0], len(dst))
		return
	}
	sumPairs(dst, src)
}

// measure returns the kernels that take the fewest cycles for a small piece. It takes about a quarter of a millisecond.
func measure() kernels {
	// Each is run some times, and its best run counts: the first runs wake up the wide units of the processor, and any
	// may be interrupted.
	const runs = 4
	payload := make([]byte, 64*quad)
	least := func(k kernels) uint64 {
		best := ^uint64(0)
		for range runs {
			start := cycles()
			k.root(payload)
			best = min(best, cycles()-start)
		}
		return best
	}
	fastest := kernels{sumKernel, sumKernel}
	cost := least(fastest)
	for _, k := range []kernel{shaKernel, laneKernel, laneKernelVBMI2} {
		if !k.available() {
			continue
		}
		candidate := kernels{wide: k, narrow: k}
		if k.hasLanes() {
			candidate.narrow = fastest.narrow
		}
		if c := least(candidate); c < cost {
			fastest, cost = candidate, c
		}
	}
	return fastest
}
