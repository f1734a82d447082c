//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package source

import (
	"errors"
	"fmt"
)

// lock is missing on systems where nobody has tried what a crash leaves behind: content is only read there.
func lock(interface{ Fd() uintptr }) (bool, error) {
	return false, fmt.Errorf("storing content on this system: %w", errors.ErrUnsupported)
}
