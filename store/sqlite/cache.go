package sqlite

import (
	"bytes"
	"sync"

	"github.com/storacha/w3filecoin/store"
)

// maxCached is about how many bytes of rows are kept in memory.
const maxCached = 4 << 20

// rowCache holds rows that were committed a short while ago, as they were committed: what follows from a commit nearly always begins with reading
// its row.
//
// It never shows anything but what the database does. The writer takes the rows of a transaction out before it commits and puts them in
// afterwards, readers change nothing, and no other process writes.
type rowCache struct {
	mu sync.Mutex
	// What was put in last is young. When there is as much of it as may be, it grows old, and what was old goes.
	young, old map[store.Key]store.Row
	size       int // of the young, in bytes
}

// rowOverhead is about what a row takes besides its strings and bytes.
const rowOverhead = 256

func (c *rowCache) get(key store.Key) (store.Row, bool) {
	c.mu.Lock()
	row, ok := c.young[key]
	if !ok {
		row, ok = c.old[key]
	}
	c.mu.Unlock()
	row.Value = bytes.Clone(row.Value)
	return row, ok
}

// put keeps a row; nobody else may hold its value.
func (c *rowCache) put(row store.Row) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size += rowOverhead + 2*(len(row.Partition)+len(row.Sort)) + len(row.Listing.Index) + len(row.Listing.Sort) + len(row.Value)
	if c.young == nil || c.size > maxCached/2 {
		c.young, c.old, c.size = make(map[store.Key]store.Row), c.young, 0
	}
	c.young[row.Key] = row
}

func (c *rowCache) drop(key store.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.young, key)
	delete(c.old, key)
}

// cached is the row that a change leaves, as it is read back; false if it leaves none.
func (c *commitRow) cached() (store.Row, bool) {
	row := c.Row
	row.Version, row.Value = c.version, bytes.Clone(row.Value)
	if len(row.Value) == 0 {
		row.Value = nil
	}
	return row, !c.Delete
}
