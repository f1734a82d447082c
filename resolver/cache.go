package resolver

import (
	"container/list"
	"sync"
	"time"
)

// A cache keeps the most recently used values, each for ttl from when it was put. Safe for concurrent use.
type cache struct {
	size int
	ttl  time.Duration

	mu      sync.Mutex
	entries map[string]*list.Element // of cached, by key
	order   list.List                // the most recently used first
}

type cached struct {
	key, value string
	until      time.Time
}

func newCache(size int, ttl time.Duration) *cache {
	return &cache{size: size, ttl: ttl, entries: make(map[string]*list.Element)}
}

// get returns a value that was put less than ttl before now.
func (c *cache) get(key string, now time.Time) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return "", false
	}
	v := e.Value.(*cached)
	if !now.Before(v.until) {
		c.order.Remove(e)
		delete(c.entries, key)
		return "", false
	}
	c.order.MoveToFront(e)
	return v.value, true
}

// put keeps a value, and drops the least recently used one if there are more than size.
func (c *cache) put(key, value string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &cached{key: key, value: value, until: now.Add(c.ttl)}
	if e, ok := c.entries[key]; ok {
		e.Value = v
		c.order.MoveToFront(e)
		return
	}
	c.entries[key] = c.order.PushFront(v)
	if c.order.Len() > c.size {
		oldest := c.order.Back()
		c.order.Remove(oldest)
		delete(c.entries, oldest.Value.(*cached).key)
	}
}
