package sqlite

import (
	"math"
	"sync"
)

// heads knows of each queue the earliest moment at which it may have something to receive, so that those who look in vain, and they are many, cost
// neither a read nor a place in a transaction. It is exact or too early, never too late: the writer tells it of every time that it writes, before it
// is durable, and what it does not know means now. Nobody else changes the messages.
type heads struct {
	mu    sync.Mutex
	known map[string]int64 // Unix nanoseconds
}

// never is the head of a queue without messages.
const never = math.MaxInt64

// due reports whether a queue may have something at a moment.
func (h *heads) due(queue string, now int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, known := h.known[queue]
	return !known || at <= now
}

// add says that a message of a queue can be received from some moment on.
func (h *heads) add(queue string, at int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before, known := h.known[queue]; known && at < before {
		h.known[queue] = at
	}
}

// set says when a queue has something next, as far as the transaction sees that goes on.
func (h *heads) set(queue string, at int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = make(map[string]int64)
	}
	h.known[queue] = at
}

// forget is for when a transaction did not come about: whatever was set in it may be too late.
func (h *heads) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.known)
}
