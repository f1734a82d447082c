// Package memory is a complete storage engine without durability, for tests and simulation.
//
// It is stricter with its users than engines on disk are. Index reads lag behind commits, as on a distributed engine; message
// order can be shuffled from a seed. Time comes from the caller only, so a run that makes the same calls gives the same results.
//
// A crash is simulated by [Engine.Reopen]: calls on the old engine fail from then on, what was committed is there, and leases
// end when the clock says so.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Options configures an engine. Now is required; the zero value of everything else is usable.
type Options struct {
	// Now is the clock, for due times and leases.
	Now func() time.Time

	// An index shows a commit once IndexLag has passed by the clock or IndexLagCommits further commits of any row have been made,
	// whichever is first. Zero values mean [DefaultIndexLag] and [DefaultIndexLagCommits]; negative ones none: with either negative
	// indexes are up to date.
	IndexLag        time.Duration
	IndexLagCommits int

	// Rand, if set, chooses which of the due messages are delivered next. Without it those that have been due the longest come first.
	Rand *rand.Rand
}

// Defaults of [Options].
const (
	DefaultIndexLag        = time.Second
	DefaultIndexLagCommits = 4
)

// Engine is one opening of a memory store.
type Engine struct {
	*state
	closed atomic.Bool
}

var _ store.Driver = (*Engine)(nil)

// errClosed is what calls on an engine return after Close or Reopen.
var errClosed = errors.New("memory: engine is closed")

// New returns an empty engine.
func New(o Options) *Engine {
	if o.IndexLag == 0 {
		o.IndexLag = DefaultIndexLag
	}
	if o.IndexLagCommits == 0 {
		o.IndexLagCommits = DefaultIndexLagCommits
	}
	return &Engine{state: &state{
		options: o,
		rows:    sorted[[2]string, store.Row]{compare: compareStrings[[2]string]},
		index:   sorted[[4]string, store.Row]{compare: compareStrings[[4]string]},
		queues:  make(map[string]*sorted[slot, *message]),
		byID:    make(map[uint64]*message),
		blobs:   sorted[string, []byte]{compare: cmp.Compare[string]},
	}}
}

// state is what outlives an opening.
type state struct {
	options Options

	mu      sync.Mutex
	rows    sorted[[2]string, store.Row] // by partition, sort
	commits uint64

	// index holds the listed rows as of the last update that has become visible; lagging the updates that have not, oldest first.
	index   sorted[[4]string, store.Row] // by index, listing's sort, partition, sort
	lagging []indexUpdate

	queues map[string]*sorted[slot, *message]
	byID   map[uint64]*message
	lastID uint64

	blobs sorted[string, []byte] // by CID's bytes
}

// indexUpdate is what one commit does to the index.
type indexUpdate struct {
	commit uint64
	at     time.Time
	before store.Row // its listing's entry goes; not listed if there was no row
	after  store.Row // its listing's entry comes; not listed if there is no row
}

// slot orders a queue's messages by when they can be received.
type slot struct {
	visible int64 // Unix nanoseconds: the due time, or the end of the lease
	id      uint64
}

type message struct {
	store.Message
	slot
	enqueued time.Time
	attempt  int
	leased   bool // the current attempt has not been given back
}

func compareSlots(a, b slot) int {
	return cmp.Or(cmp.Compare(a.visible, b.visible), cmp.Compare(a.id, b.id))
}

func rowKey(k store.Key) [2]string { return [2]string{k.Partition, k.Sort} }

func indexKey(r store.Row) [4]string {
	return [4]string{r.Listing.Index, r.Listing.Sort, r.Partition, r.Sort}
}

// begin takes the lock, or reports why the call cannot be made.
func (e *Engine) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	if e.closed.Load() {
		e.mu.Unlock()
		return errClosed
	}
	return nil
}

// Close ends this opening; what was committed stays for [Engine.Reopen]. Closing twice is a success.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed.Store(true)
	return nil
}

// Reopen returns a new opening with everything that was committed, and closes this one: a process that was killed cannot commit any more.
func (e *Engine) Reopen() *Engine {
	_ = e.Close() // cannot fail
	return &Engine{state: e.state}
}

// Get implements [store.Rows].
func (e *Engine) Get(ctx context.Context, key store.Key) (store.Row, error) {
	if err := e.begin(ctx); err != nil {
		return store.Row{}, err
	}
	defer e.mu.Unlock()
	row, ok := e.rows.get(rowKey(key))
	if !ok {
		return store.Row{}, store.ErrNotFound
	}
	return clone(row), nil
}

// Query implements [store.Rows].
func (e *Engine) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	after, err := cursorParts(cursor, 1)
	if err != nil {
		return store.Page{}, err
	}
	if err := e.begin(ctx); err != nil {
		return store.Page{}, err
	}
	defer e.mu.Unlock()
	start := prefix
	if after != nil {
		start = max(start, after[0])
	}
	p := pager{limit: store.PageLimit(limit)}
	e.rows.from([2]string{partition, start}, func(k [2]string, row store.Row) bool {
		if k[0] != partition || !strings.HasPrefix(k[1], prefix) {
			return false
		}
		if after != nil && k[1] <= after[0] {
			return true
		}
		return p.add(row, func(last store.Row) string { return store.EncodeCursor(last.Sort) })
	})
	return p.page, nil
}

// Scan implements [store.Rows]. It shows what has become visible; see [Options].
func (e *Engine) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	after, err := cursorParts(cursor, 3)
	if err != nil {
		return store.Page{}, err
	}
	if err := e.begin(ctx); err != nil {
		return store.Page{}, err
	}
	defer e.mu.Unlock()
	e.settleIndex()
	start := [4]string{index, from}
	var last [4]string
	if after != nil {
		last = [4]string{index, after[0], after[1], after[2]}
		start = last
	}
	p := pager{limit: store.PageLimit(limit)}
	e.index.from(start, func(k [4]string, row store.Row) bool {
		if k[0] != index {
			return false
		}
		if after != nil && k == last {
			return true
		}
		return p.add(row, func(r store.Row) string { return store.EncodeCursor(r.Listing.Sort, r.Partition, r.Sort) })
	})
	return p.page, nil
}

// Walk implements [store.Rows], in order of key.
func (e *Engine) Walk(ctx context.Context, cursor string, limit int) (store.Page, error) {
	after, err := cursorParts(cursor, 2)
	if err != nil {
		return store.Page{}, err
	}
	if err := e.begin(ctx); err != nil {
		return store.Page{}, err
	}
	defer e.mu.Unlock()
	var start [2]string
	if after != nil {
		start = [2]string{after[0], after[1]}
	}
	p := pager{limit: store.PageLimit(limit)}
	e.rows.from(start, func(k [2]string, row store.Row) bool {
		if after != nil && k == start {
			return true
		}
		return p.add(row, func(r store.Row) string { return store.EncodeCursor(r.Partition, r.Sort) })
	})
	return p.page, nil
}

// Commit implements [store.Rows].
func (e *Engine) Commit(ctx context.Context, c store.Change) (uint64, error) {
	if err := c.Check(); err != nil {
		return 0, err
	}
	if err := e.begin(ctx); err != nil {
		return 0, err
	}
	defer e.mu.Unlock()

	before, exists := e.rows.get(rowKey(c.Row.Key))
	if before.Version != c.Row.Version {
		return 0, store.ErrConflict
	}
	var after store.Row
	if c.Delete {
		e.rows.remove(rowKey(c.Row.Key))
	} else {
		after = clone(c.Row)
		after.Version++
		e.rows.set(rowKey(after.Key), after)
	}
	now := e.options.Now()
	e.commits++
	if exists && before.Listing.Index != "" || after.Listing.Index != "" {
		e.lagging = append(e.lagging, indexUpdate{commit: e.commits, at: now, before: before, after: after})
	}
	for _, m := range c.Messages {
		e.enqueue(m, now)
	}
	for _, b := range c.Blobs {
		e.putBlob(b.CID, bytes.Clone(b.Bytes))
	}
	return after.Version, nil
}

// settleIndex applies the updates that have become visible.
func (e *Engine) settleIndex() {
	now := e.options.Now()
	n := 0
	for _, u := range e.lagging {
		if now.Sub(u.at) < e.options.IndexLag && int64(e.commits-u.commit) < int64(e.options.IndexLagCommits) {
			break
		}
		if u.before.Listing.Index != "" {
			e.index.remove(indexKey(u.before))
		}
		if u.after.Listing.Index != "" {
			e.index.set(indexKey(u.after), u.after)
		}
		n++
	}
	e.lagging = slices.Delete(e.lagging, 0, n)
}

func (e *Engine) enqueue(m store.Message, now time.Time) {
	e.lastID++
	due := m.Due
	if due.Before(now) {
		due = now
	}
	m.Body = bytes.Clone(m.Body)
	msg := &message{Message: m, slot: slot{visible: due.UnixNano(), id: e.lastID}, enqueued: now}
	if e.queues[m.Queue] == nil {
		e.queues[m.Queue] = &sorted[slot, *message]{compare: compareSlots}
	}
	e.queues[m.Queue].set(msg.slot, msg)
	e.byID[msg.id] = msg
}

// move changes when a message can be received.
func (e *Engine) move(m *message, visible time.Time) {
	q := e.queues[m.Queue]
	q.remove(m.slot)
	m.visible = visible.UnixNano()
	q.set(m.slot, m)
}

// shuffleWindow is among how many due messages a seeded engine chooses the next one.
const shuffleWindow = 64

// Receive implements [store.Messages].
func (e *Engine) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	if err := e.begin(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	q := e.queues[queue]
	if q == nil {
		return nil, nil
	}
	now := e.options.Now()
	window := limit
	if e.options.Rand != nil {
		window = max(limit, shuffleWindow)
	}
	var due []*message
	q.from(slot{}, func(s slot, m *message) bool {
		if s.visible > now.UnixNano() || len(due) >= window {
			return false
		}
		due = append(due, m)
		return true
	})
	if e.options.Rand != nil {
		e.options.Rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	due = due[:max(0, min(limit, len(due)))]
	out := make([]store.Delivery, len(due))
	for i, m := range due {
		m.attempt++
		m.leased = true
		e.move(m, now.Add(lease))
		out[i] = store.Delivery{
			Message:  m.Message,
			ID:       strconv.FormatUint(m.id, 10),
			Attempt:  m.attempt,
			Enqueued: m.enqueued,
			Lease:    strconv.Itoa(m.attempt),
		}
		out[i].Body = bytes.Clone(m.Body)
	}
	return out, nil
}

// leasedMessage returns the message if the delivery's lease is still the current one.
func (e *Engine) leasedMessage(d store.Delivery) (*message, error) {
	id, err := strconv.ParseUint(d.ID, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("memory: message ID %q", d.ID)
	}
	m := e.byID[id]
	if m == nil || !m.leased || strconv.Itoa(m.attempt) != d.Lease {
		return nil, store.ErrLeaseLost
	}
	return m, nil
}

// Ack implements [store.Messages].
func (e *Engine) Ack(ctx context.Context, d store.Delivery) error {
	if err := e.begin(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	m, err := e.leasedMessage(d)
	if err != nil {
		return err
	}
	e.queues[m.Queue].remove(m.slot)
	delete(e.byID, m.id)
	return nil
}

// Extend implements [store.Messages].
func (e *Engine) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	if err := e.begin(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	m, err := e.leasedMessage(d)
	if err != nil {
		return err
	}
	e.move(m, e.options.Now().Add(lease))
	return nil
}

// Retry implements [store.Messages].
func (e *Engine) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	if err := e.begin(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	m, err := e.leasedMessage(d)
	if err != nil {
		return err
	}
	m.leased = false
	e.move(m, e.options.Now().Add(after))
	return nil
}

func (e *Engine) putBlob(c cid.Cid, b []byte) {
	if _, ok := e.blobs.get(c.KeyString()); !ok {
		e.blobs.set(c.KeyString(), b)
	}
}

// Put implements [store.Blobs].
func (e *Engine) Put(ctx context.Context, c cid.Cid, r io.Reader) error {
	if !c.Defined() {
		return errors.New("memory: blob without a CID")
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("memory: reading blob %s: %w", c, err)
	}
	if err := e.begin(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	e.putBlob(c, b)
	return nil
}

type blobReader struct {
	*bytes.Reader
}

func (blobReader) Close() error { return nil }

// Open implements [store.Blobs].
func (e *Engine) Open(ctx context.Context, c cid.Cid) (store.BlobReader, error) {
	if err := e.begin(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	b, ok := e.blobs.get(c.KeyString())
	if !ok {
		return nil, store.ErrNotFound
	}
	return blobReader{bytes.NewReader(b)}, nil
}

// Has implements [store.Blobs].
func (e *Engine) Has(ctx context.Context, c cid.Cid) (int64, error) {
	if err := e.begin(ctx); err != nil {
		return 0, err
	}
	defer e.mu.Unlock()
	b, ok := e.blobs.get(c.KeyString())
	if !ok {
		return 0, store.ErrNotFound
	}
	return int64(len(b)), nil
}

// Delete implements [store.Blobs].
func (e *Engine) Delete(ctx context.Context, c cid.Cid) error {
	if err := e.begin(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	e.blobs.remove(c.KeyString())
	return nil
}

// List implements [store.Blobs], in order of the CIDs' bytes.
func (e *Engine) List(ctx context.Context, cursor string, limit int) ([]cid.Cid, string, error) {
	after, err := cursorParts(cursor, 1)
	if err != nil {
		return nil, "", err
	}
	if err := e.begin(ctx); err != nil {
		return nil, "", err
	}
	defer e.mu.Unlock()
	var start string
	if after != nil {
		start = after[0]
	}
	limit = store.PageLimit(limit)
	var cids []cid.Cid
	next := ""
	e.blobs.from(start, func(k string, _ []byte) bool {
		if after != nil && k == start {
			return true
		}
		if len(cids) == limit {
			next = store.EncodeCursor(cids[limit-1].KeyString())
			return false
		}
		var c cid.Cid
		if c, err = cid.Cast([]byte(k)); err != nil {
			return false
		}
		cids = append(cids, c)
		return true
	})
	return cids, next, err
}

// Waiting returns how many messages each queue holds, leased ones included. Queues that are empty are left out.
func (e *Engine) Waiting() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := make(map[string]int)
	for _, m := range e.byID {
		n[m.Queue]++
	}
	return n
}

// Receivable returns the queues that have a message to deliver now, in order of name: what a simulation may choose from.
func (e *Engine) Receivable() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.options.Now().UnixNano()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(e.queues)) {
		e.queues[name].from(slot{}, func(s slot, _ *message) bool {
			if s.visible <= now {
				names = append(names, name)
			}
			return false
		})
	}
	return names
}

// NextEvent returns the earliest time after now at which something happens by itself: a message becomes receivable, by its
// due time or the end of its lease, or an index shows a commit. A simulation with nothing to do moves its clock there.
func (e *Engine) NextEvent() (at time.Time, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.options.Now()
	earliest := func(t time.Time) {
		if t.After(now) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	for _, q := range e.queues {
		q.from(slot{visible: now.UnixNano() + 1}, func(s slot, _ *message) bool {
			earliest(time.Unix(0, s.visible).UTC())
			return false
		})
	}
	e.settleIndex()
	if len(e.lagging) > 0 {
		earliest(e.lagging[0].at.Add(e.options.IndexLag))
	}
	return at, ok
}

// pager gathers a page.
type pager struct {
	limit int
	size  int
	page  store.Page
}

// add takes one more row, or notes that there is one and ends the page.
func (p *pager) add(row store.Row, cursor func(last store.Row) string) bool {
	if n := len(p.page.Rows); n == p.limit || n > 0 && p.size+len(row.Value) > store.MaxPageBytes {
		p.page.Next = cursor(p.page.Rows[n-1])
		return false
	}
	p.page.Rows = append(p.page.Rows, clone(row))
	p.size += len(row.Value)
	return true
}

// clone keeps callers from sharing bytes with the engine.
func clone(row store.Row) store.Row {
	row.Value = bytes.Clone(row.Value)
	return row
}

// cursorParts returns nil for the empty cursor.
func cursorParts(cursor string, n int) ([]string, error) {
	if cursor == "" {
		return nil, nil
	}
	return store.DecodeCursor(cursor, n)
}
