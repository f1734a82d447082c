//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package main

import "os"

// lockFile takes no lock on systems without advisory ones: two backfills with one state would do the work twice, with the same effect.
func lockFile(*os.File) (bool, error) { return true, nil }
