//go:build benchpeers

package piece

// Kernels returns the names of the kernels that this machine has; the first is the one in use. It exists for
// internal/benchpeers only, which builds with the tag benchpeers.
func Kernels() []string {
	names := []string{fastest().wide.String()}
	for _, k := range []kernel{sumKernel, shaKernel, laneKernel, laneKernelVBMI2} {
		if k.available() && k != fastest().wide {
			names = append(names, k.String())
		}
	}
	return names
}

// WithKernel forces the kernel of that name, one of [Kernels].
func WithKernel(name string) Option {
	for _, k := range []kernel{sumKernel, shaKernel, laneKernel, laneKernelVBMI2} {
		if k.String() != name {
			continue
		}
		forced := &kernels{wide: k, narrow: k}
		if k.hasLanes() {
			forced.narrow = fastest().narrow
		}
		return func(o *options) { o.forced = forced }
	}
	panic("piece: no kernel is called " + name)
}
