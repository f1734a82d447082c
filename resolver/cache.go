package resolver

import (
	"container/list"
	"sync"
	"time"
)

// A cache keeps the most recently used values, each for ttl from when it was put. Safe for concurrent use.
type cache[V any] struct {
	size int
	ttl  time.Duration

	mu      sync.Mutex
	entries map[string]*list.Element // of cached[V], by key
	order   list.List                // the most recently used first
}

type cached[V any] struct {
	key   string
	value V
	until time.Time
}

func newCache[V any](size int, ttl time.Duration) *cache[V] {
	return &cache[V]{size: size, ttl: ttl, entries: make(map[string]*list.Element)}
}

// get returns a value that was put less than ttl before now.
func (c *cache[V]) get(key string, now time.Time) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return value, false
	}
	v := e.Value.(*cached[V])
	if !now.Before(v.until) {
		c.order.Remove(e)
		delete(c.entries, key)
		return value, false
	}
	c.order.MoveToFront(e)
	return v.value, true
}

// put keeps a value, and drops the least recently used one if there are more than size.
func (c *cache[V]) put(key string, value V, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &cached[V]{key: key, value: value, until: now.Add(c.ttl)}
	if e, ok := c.entries[key]; ok {
		e.Value = v
		c.order.MoveToFront(e)
		return
	}
	c.entries[key] = c.order.PushFront(v)
	if c.order.Len() > c.size {
		oldest := c.order.Back()
		c.order.Remove(oldest)
		delete(c.entries, oldest.Value.(*cached[V]).key)
	}
}
