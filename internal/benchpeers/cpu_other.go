//go:build !unix

package main

import "time"

var began = time.Now()

// cpuTime returns the time since the process began, in milliseconds: there is nothing better.
func cpuTime() float64 { return float64(time.Since(began).Nanoseconds()) / 1e6 }
