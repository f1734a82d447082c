//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package source

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// lock takes the file's advisory lock, unless another handle has it. Closing the file gives it back.
func lock(f interface{ Fd() uintptr }) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("flock: %w", err)
	}
	return true, nil
}
