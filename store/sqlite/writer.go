package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

const (
	maxBatch = 256 // changes of one transaction

	// checkpointPages is the length of the write-ahead log at which SQLite copies it into the database, within a commit.
	checkpointPages = 4000
	// maxWAL is the size of the log, in bytes, at which the writer insists on emptying it: copying alone does not shrink the file, and
	// readers can keep it from beginning anew.
	maxWAL = 64 << 20
	// walCheck is after how many batches the log's size is looked at.
	walCheck = 64
)

// change is something that the writer does within a transaction. It either does all of it, or returns a refusal and has done
// nothing, or returns another error and the transaction is rolled back.
type change interface {
	apply(w *writer) error
}

// refused tells the errors that are answers from those that are faults.
func refused(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrLeaseLost) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// request is a change that waits for the writer.
type request struct {
	ctx    context.Context
	change change
	result error
	done   chan struct{}
}

// writer owns the one connection that writes. All its methods but do are called by its own goroutine, or before that is started.
type writer struct {
	db      *sql.DB
	conn    *sql.Conn
	path    string
	options Options
	nextID  int64 // of the next message

	requests chan *request
	stopped  sync.WaitGroup

	batches, changes atomic.Uint64
	cache            rowCache
	heads            heads
	kinds            kinds

	insertRow, updateRow, deleteRow                           *sql.Stmt
	insertMessage, due, leaseMessage, ackMessage, extendLease *sql.Stmt
	retryMessage, head, insertBlob, deleteBlob                *sql.Stmt
	beginTransaction, commitTransaction, rollbackTransaction  *sql.Stmt
}

// selectDue finds the messages of a queue that have been due, or out of lease, the longest. (For the plus see the statements of the readers.)
const selectDue = `SELECT id, attempt, enqueued, body FROM message WHERE queue = ? AND visible <= ? ORDER BY visible LIMIT +?`

// selectHead finds when a queue has something to receive, NULL if it has no messages.
const selectHead = `SELECT min(visible) FROM message WHERE queue = ?`

func openWriter(path string, o Options) (_ *writer, err error) {
	// The writer has no context: a statement that is interrupted takes the batch with it.
	ctx := context.Background()
	w := &writer{path: path, options: o, requests: make(chan *request, maxBatch)}
	// The cache is small because a commit that has put pages in another order, as most do here, looks at every page in it.
	w.db, err = connect(path, 1,
		fmt.Sprintf("wal_autocheckpoint(%d)", checkpointPages), fmt.Sprintf("journal_size_limit(%d)", maxWAL), "cache_size(-4096)")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.closeDB())
		}
	}()
	if w.conn, err = w.db.Conn(ctx); err != nil {
		return nil, err
	}
	if err := checkPragmas(ctx, w.conn); err != nil {
		return nil, err
	}
	openings, err := prepareSchema(ctx, w.conn, o.Now())
	if err != nil {
		return nil, err
	}
	w.nextID = openings << messageIDBits
	if err := w.kinds.read(ctx, w.conn); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&w.beginTransaction, `BEGIN IMMEDIATE`},
		{&w.commitTransaction, `COMMIT`},
		{&w.rollbackTransaction, `ROLLBACK`},
		{&w.insertRow, `INSERT INTO row (partition, sort, version, list, list_sort, value) VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT DO NOTHING`},
		{&w.updateRow, `UPDATE row SET version = version + 1, list = ?, list_sort = ?, value = ? WHERE partition = ? AND sort = ? AND version = ?`},
		{&w.deleteRow, `DELETE FROM row WHERE partition = ? AND sort = ? AND version = ?`},
		{&w.insertMessage, `INSERT INTO message (id, queue, visible, attempt, leased, enqueued, body) VALUES (?, ?, ?, 0, 0, ?, ?)`},
		{&w.due, selectDue},
		{&w.leaseMessage, `UPDATE message SET visible = ?, attempt = ?, leased = 1 WHERE id = ?`},
		{&w.ackMessage, `DELETE FROM message WHERE id = ? AND attempt = ? AND leased = 1`},
		{&w.extendLease, `UPDATE message SET visible = ? WHERE id = ? AND attempt = ? AND leased = 1`},
		{&w.retryMessage, `UPDATE message SET visible = ?, leased = 0 WHERE id = ? AND attempt = ? AND leased = 1`},
		{&w.head, selectHead},
		{&w.insertBlob, `INSERT INTO blob (cid, bytes) VALUES (?, ?) ON CONFLICT DO NOTHING`},
		{&w.deleteBlob, `DELETE FROM blob WHERE cid = ?`},
	} {
		if *s.stmt, err = w.conn.PrepareContext(ctx, s.text); err != nil {
			return nil, fmt.Errorf("preparing %q: %w", s.text, err)
		}
	}
	return w, nil
}

// start starts the writer's goroutine; close ends it.
func (w *writer) start() { w.stopped.Go(w.run) }

// close does what is waiting and closes the connection. Nobody may call do any more.
func (w *writer) close() error {
	close(w.requests)
	w.stopped.Wait()
	return w.closeDB()
}

func (w *writer) closeDB() error {
	var errs []error
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	return errors.Join(append(errs, w.db.Close())...)
}

// do has a change done and returns its result once it is durable.
func (w *writer) do(ctx context.Context, c change) error {
	r := &request{ctx: ctx, change: c, done: make(chan struct{})}
	select {
	case w.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-r.done
	return r.result
}

// run writes batches until the channel is closed and empty.
func (w *writer) run() {
	batch := make([]*request, 0, maxBatch)
	for r := range w.requests {
		batch = append(batch[:0], r)
		for more := true; more; {
			// Whoever is ready to run may have a change to add: what shares the transaction shares its cost. Where nobody is, this is nothing.
			runtime.Gosched()
			batch, more = w.drain(batch)
		}
		w.write(batch)
		clear(batch)
		if w.batches.Load()%walCheck == 0 {
			w.boundWAL()
		}
	}
}

// drain adds the changes that wait to a batch, and reports whether there were any and there is room for more.
func (w *writer) drain(batch []*request) ([]*request, bool) {
	before := len(batch)
	for len(batch) < maxBatch {
		select {
		case r, ok := <-w.requests:
			if !ok {
				return batch, false
			}
			batch = append(batch, r)
		default:
			return batch, len(batch) > before
		}
	}
	return batch, false
}

// write answers all requests of a batch.
func (w *writer) write(batch []*request) {
	err := w.transaction(batch)
	if err != nil && len(batch) > 1 {
		// Whatever it was, it is some change's fault, or the disk's. Each for itself then: those that can succeed do.
		for i := range batch {
			if err := w.transaction(batch[i : i+1]); err != nil {
				batch[i].result = err
			}
		}
	} else if err != nil {
		batch[0].result = err
	}
	for _, r := range batch {
		close(r.done)
	}
}

// transaction applies all changes and commits, or none. Their results are set if it returns nil.
func (w *writer) transaction(batch []*request) (err error) {
	started := w.options.Now()
	defer func() {
		if err == nil {
			w.batches.Add(1)
			w.changes.Add(uint64(len(batch)))
		}
		if w.options.OnBatch != nil {
			w.options.OnBatch(Batch{Changes: len(batch), Took: w.options.Now().Sub(started), Err: err})
		}
	}()
	if _, err := w.exec(w.beginTransaction); err != nil {
		w.rollback() // one that failed before can have left a transaction open
		if _, err := w.exec(w.beginTransaction); err != nil {
			return fmt.Errorf("beginning transaction: %w", err)
		}
	}
	for _, r := range batch {
		if r.result = r.ctx.Err(); r.result != nil {
			continue
		}
		if r.result = r.change.apply(w); r.result != nil && !refused(r.result) {
			w.rollback()
			return r.result
		}
	}
	for _, r := range batch {
		if c, ok := r.change.(*commitRow); ok && r.result == nil {
			w.cache.drop(c.Row.Key)
			w.kinds.add(c.Row.Partition)
		}
	}
	if _, err := w.exec(w.commitTransaction); err != nil {
		w.rollback()
		return fmt.Errorf("committing transaction: %w", err)
	}
	for _, r := range batch {
		if c, ok := r.change.(*commitRow); ok && r.result == nil {
			if row, ok := c.cached(); ok {
				w.cache.put(row)
			}
		}
	}
	return nil
}

// rollback gives up the transaction. It fails when SQLite has done so by itself, as after most errors.
func (w *writer) rollback() {
	_, _ = w.exec(w.rollbackTransaction)
	w.heads.forget()
}

// boundWAL empties the log when it has grown too long. Failing is no fault: it is tried again.
func (w *writer) boundWAL() {
	if fileSize(w.path+"-wal") < maxWAL {
		return
	}
	// A reader of another program, a backup for instance, may hold the log for long. Commits must not wait for it.
	ctx := context.Background()
	_, _ = w.conn.ExecContext(ctx, `PRAGMA busy_timeout = 50`)
	defer func() { _, _ = w.conn.ExecContext(ctx, `PRAGMA busy_timeout = 5000`) }()
	var busy, log, done int
	_ = w.conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &done)
}

// exec runs a statement and returns how many rows it changed.
func (w *writer) exec(s *sql.Stmt, args ...any) (int64, error) {
	res, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// nullable makes NULL of nothing.
func nullable(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// commitRow is a [store.Change].
type commitRow struct {
	store.Change
	version uint64 // the result
}

func (c *commitRow) apply(w *writer) error {
	row := c.Row
	var list, listSort any
	if row.Listing.Index != "" {
		list, listSort = row.Listing.Index, row.Listing.Sort
	}
	var n int64
	var err error
	switch {
	case c.Delete:
		n, err = w.exec(w.deleteRow, row.Partition, row.Sort, int64(row.Version))
		c.version = 0
	case row.Version == 0:
		n, err = w.exec(w.insertRow, row.Partition, row.Sort, list, listSort, nullable(row.Value))
		c.version = 1
	default:
		n, err = w.exec(w.updateRow, list, listSort, nullable(row.Value), row.Partition, row.Sort, int64(row.Version))
		c.version = row.Version + 1
	}
	if err != nil {
		return fmt.Errorf("writing row %s: %w", row.Key, err)
	}
	if n == 0 {
		return store.ErrConflict
	}
	now := w.options.Now()
	for _, m := range c.Messages {
		visible := now
		if m.Due.After(now) {
			visible = m.Due
		}
		if _, err := w.exec(w.insertMessage, w.nextID, m.Queue, visible.UnixNano(), now.UnixNano(), nullable(m.Body)); err != nil {
			return fmt.Errorf("writing message to %s: %w", m.Queue, err)
		}
		w.heads.add(m.Queue, visible.UnixNano())
		w.nextID++
	}
	for _, b := range c.Blobs {
		if err := (putBlob{b}).apply(w); err != nil {
			return err
		}
	}
	return nil
}

// putBlob puts a small blob, if it is not there.
type putBlob struct{ store.Blob }

func (c putBlob) apply(w *writer) error {
	if _, err := w.exec(w.insertBlob, c.CID.Bytes(), nullable(c.Bytes)); err != nil {
		return fmt.Errorf("writing blob %s: %w", c.CID, err)
	}
	return nil
}

// removeBlob removes a small blob, if it is there.
type removeBlob struct{ cid cid.Cid }

func (c removeBlob) apply(w *writer) error {
	if _, err := w.exec(w.deleteBlob, c.cid.Bytes()); err != nil {
		return fmt.Errorf("deleting blob %s: %w", c.cid, err)
	}
	return nil
}

// receive leases messages.
type receive struct {
	queue string
	limit int
	lease time.Duration

	deliveries []store.Delivery // the result
}

func (c *receive) apply(w *writer) error {
	if err := c.lend(w); err != nil {
		return fmt.Errorf("leasing messages of %s: %w", c.queue, err)
	}
	if len(c.deliveries) == c.limit {
		return nil // there may be more
	}
	var head sql.NullInt64
	if err := w.head.QueryRowContext(context.Background(), c.queue).Scan(&head); err != nil {
		return fmt.Errorf("looking for messages of %s: %w", c.queue, err)
	}
	if !head.Valid {
		head.Int64 = never
	}
	w.heads.set(c.queue, head.Int64)
	return nil
}

// lend finds messages first and leases them then. One statement for both costs more: it keeps what it finds, and what it returns, in tables of its own.
func (c *receive) lend(w *writer) error {
	c.deliveries = nil // of an earlier try
	now := w.options.Now()
	ids, err := c.find(w, now)
	if err != nil {
		return err
	}
	until := now.Add(c.lease).UnixNano()
	for i, id := range ids {
		if _, err := w.exec(w.leaseMessage, until, c.deliveries[i].Attempt, id); err != nil {
			return err
		}
	}
	return nil
}

// find makes deliveries of the messages that are due.
func (c *receive) find(w *writer, now time.Time) (ids []int64, err error) {
	rows, err := w.due.QueryContext(context.Background(), c.queue, now.UnixNano(), c.limit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id, attempt, enqueued int64
		d := store.Delivery{Message: store.Message{Queue: c.queue}}
		if err := rows.Scan(&id, &attempt, &enqueued, &d.Body); err != nil {
			return nil, err
		}
		attempt++
		d.ID, d.Attempt, d.Lease = formatID(id), int(attempt), strconv.FormatInt(attempt, 10)
		d.Enqueued = time.Unix(0, enqueued).UTC()
		ids = append(ids, id)
		c.deliveries = append(c.deliveries, d)
	}
	return ids, rows.Err()
}

// endDelivery acknowledges a message, extends its lease, or gives it back.
type endDelivery struct {
	stmt    func(*writer) *sql.Stmt
	visible *time.Duration // from now; nil for an acknowledgement
	store.Delivery
}

func (c endDelivery) apply(w *writer) error {
	id, err := strconv.ParseInt(c.ID, 10, 64)
	if err != nil {
		return store.ErrLeaseLost // no message of ours has this ID
	}
	attempt, err := strconv.ParseInt(c.Lease, 10, 64)
	if err != nil {
		return store.ErrLeaseLost
	}
	var n int64
	if c.visible == nil {
		n, err = w.exec(c.stmt(w), id, attempt)
	} else {
		visible := w.options.Now().Add(*c.visible).UnixNano()
		n, err = w.exec(c.stmt(w), visible, id, attempt)
		w.heads.add(c.Queue, visible)
	}
	if err != nil {
		return fmt.Errorf("writing message %s of %s: %w", c.ID, c.Queue, err)
	}
	if n == 0 {
		return store.ErrLeaseLost
	}
	return nil
}
