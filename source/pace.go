package source

import (
	"errors"
	"fmt"
	"time"
)

// ErrSlow means that the other side sent nothing for too long, or too little over a longer time.
var ErrSlow = errors.New("too slow")

// paceGrace is how much waiting is free before the average rate counts.
const paceGrace = 10 * time.Second

// A pace ends a transfer that crawls. Only the time spent waiting for the other side counts, not what the reader of the
// bytes needs in between.
type pace struct {
	minRate int64 // bytes per second, on average after the grace period; 0: any
	waited  time.Duration
	bytes   int64
}

// add counts n bytes that took d to arrive and returns an error that wraps [ErrSlow] once too few have.
func (p *pace) add(n int, d time.Duration) error {
	p.waited += d
	p.bytes += int64(n)
	if late := p.waited - paceGrace; late > 0 && float64(p.bytes) < float64(p.minRate)*late.Seconds() {
		return fmt.Errorf("%d bytes in %s: %w", p.bytes, p.waited.Round(time.Second), ErrSlow)
	}
	return nil
}
