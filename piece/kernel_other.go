//go:build !amd64 || purego

package piece

// Elsewhere crypto/sha256 is all there is; on arm64 it uses the instructions that the processor has for it.

func (k kernel) available() bool { return k == sumKernel || k == laneKernelGo }

func (k kernel) laneTrees(dst *[lanes]Node, p []byte, quads int) { laneTreesGo(dst, p, quads) }

func (k kernel) lanePairs(dst *[lanes]Node, src *[2 * lanes]Node) { sumPairs(dst[:], src[:]) }

func (k kernel) pairs(dst, src []Node) { sumPairs(dst, src) }

func measure() kernels { return kernels{wide: sumKernel, narrow: sumKernel} }
