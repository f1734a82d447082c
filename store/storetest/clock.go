package storetest

import (
	"sync"
	"time"
)

// Clock is time as an engine under test sees it.
type Clock interface {
	Now() time.Time
	// Advance returns when d has passed. Engines on a clock of their own wait; d is at least a millisecond and at most a few
	// seconds.
	Advance(d time.Duration)
}

// FakeClock is a clock that moves only when told to.
type FakeClock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a fake clock that shows some day in 2026.
func NewClock() *FakeClock { return NewClockAt(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)) }

// NewClockAt returns a fake clock that shows a time.
func NewClockAt(now time.Time) *FakeClock { return &FakeClock{now: now} }

// Now returns the clock's time.
func (c *FakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock on.
func (c *FakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
