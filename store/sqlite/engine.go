package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// readers are the connections that only read. A read transaction is one statement, one page long at most, so none keeps the
// log from being emptied for long.
type readers struct {
	db *sql.DB

	get, query, scan, walk   *sql.Stmt
	blob, blobSize, blobList *sql.Stmt
}

// Statements of the readers. The successor of a string in the order of bytes is the string with a zero byte, so "after" a cursor is "from
// its successor on".
//
// The plus in LIMIT +? hides the parameter from the planner, which would look at its value and so prepare the statement anew whenever one is bound.
const (
	columns = `partition, sort, version, list, list_sort, value`

	selectRow       = `SELECT version, list, list_sort, value FROM row WHERE partition = ? AND sort = ?`
	selectPartition = `SELECT ` + columns + ` FROM row WHERE partition = ? AND sort >= ? ORDER BY sort LIMIT +?`
	selectIndex     = `SELECT ` + columns + ` FROM row WHERE list = ? AND (list_sort, partition, sort) >= (?, ?, ?)
		ORDER BY list_sort, partition, sort LIMIT +?`
	selectAll      = `SELECT ` + columns + ` FROM row WHERE (partition, sort) >= (?, ?) ORDER BY partition, sort LIMIT +?`
	selectBlob     = `SELECT bytes FROM blob WHERE cid = ?`
	selectBlobSize = `SELECT coalesce(length(bytes), 0) FROM blob WHERE cid = ?`
	selectBlobs    = `SELECT cid FROM blob WHERE cid > ? ORDER BY cid LIMIT +?`
)

func openReaders(path string) (_ *readers, err error) {
	r := &readers{}
	r.db, err = connect(path, max(4, 2*runtime.GOMAXPROCS(0)), "query_only(1)", "cache_size(-4096)")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	ctx := context.Background()
	for _, s := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&r.get, selectRow},
		{&r.query, selectPartition},
		{&r.scan, selectIndex},
		{&r.walk, selectAll},
		{&r.blob, selectBlob},
		{&r.blobSize, selectBlobSize},
		{&r.blobList, selectBlobs},
	} {
		if *s.stmt, err = r.db.PrepareContext(ctx, s.text); err != nil {
			return nil, fmt.Errorf("preparing %q: %w", s.text, err)
		}
	}
	return r, nil
}

func (r *readers) close() error { return r.db.Close() }

// uninterrupted is the context of a statement. ctx is looked at before it; no statement is so long that it had to be interrupted, and
// watching for that would cost a goroutine each.
func uninterrupted(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// Get implements [store.Rows].
func (e *Engine) Get(ctx context.Context, key store.Key) (store.Row, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Row{}, err
	}
	defer end()
	if row, ok := e.writer.cache.get(key); ok {
		return row, nil
	}
	if !e.writer.kinds.has(key.Partition) {
		return store.Row{}, store.ErrNotFound
	}
	row := store.Row{Key: key}
	var list, listSort sql.NullString
	err = e.reads.get.QueryRowContext(uninterrupted(ctx), key.Partition, key.Sort).Scan(&row.Version, &list, &listSort, &row.Value)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return store.Row{}, store.ErrNotFound
	case err != nil:
		return store.Row{}, fmt.Errorf("sqlite: reading row %s: %w", key, err)
	}
	row.Listing = store.Listing{Index: list.String, Sort: listSort.String}
	return row, nil
}

// Query implements [store.Rows].
func (e *Engine) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	start := prefix
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 1)
		if err != nil {
			return store.Page{}, err
		}
		start = max(start, after[0]+"\x00")
	}
	end, err := e.begin(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer end()
	if !e.writer.kinds.has(partition) {
		return store.Page{}, nil
	}
	return e.page(ctx, limit, e.reads.query, []any{partition, start},
		func(r store.Row) bool { return strings.HasPrefix(r.Sort, prefix) },
		func(last store.Row) string { return store.EncodeCursor(last.Sort) })
}

// Scan implements [store.Rows]. In this engine the index is part of the commit, so what it shows is up to date.
func (e *Engine) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	start := []any{index, from, "", ""}
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 3)
		if err != nil {
			return store.Page{}, err
		}
		start = []any{index, after[0], after[1], after[2] + "\x00"}
	}
	return e.page(ctx, limit, e.reads.scan, start, all,
		func(r store.Row) string { return store.EncodeCursor(r.Listing.Sort, r.Partition, r.Sort) })
}

// Walk implements [store.Rows], in order of key.
func (e *Engine) Walk(ctx context.Context, cursor string, limit int) (store.Page, error) {
	start := []any{"", ""}
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 2)
		if err != nil {
			return store.Page{}, err
		}
		start = []any{after[0], after[1] + "\x00"}
	}
	return e.page(ctx, limit, e.reads.walk, start, all,
		func(r store.Row) string { return store.EncodeCursor(r.Partition, r.Sort) })
}

func all(store.Row) bool { return true }

// page reads the rows of a statement until the page is full, or one does not belong to it.
func (e *Engine) page(ctx context.Context, limit int, stmt *sql.Stmt, args []any,
	belongs func(store.Row) bool, cursor func(last store.Row) string) (p store.Page, err error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer end()
	limit = store.PageLimit(limit)
	rows, err := stmt.QueryContext(uninterrupted(ctx), append(args, limit+1)...)
	if err != nil {
		return store.Page{}, fmt.Errorf("sqlite: reading a page: %w", err)
	}
	defer func() {
		if closeErr := rows.Close(); closeErr != nil && err == nil {
			err = fmt.Errorf("sqlite: reading a page: %w", closeErr)
		}
	}()
	size := 0
	for rows.Next() {
		var row store.Row
		var list, listSort sql.NullString
		if err := rows.Scan(&row.Partition, &row.Sort, &row.Version, &list, &listSort, &row.Value); err != nil {
			return store.Page{}, fmt.Errorf("sqlite: reading a page: %w", err)
		}
		row.Listing = store.Listing{Index: list.String, Sort: listSort.String}
		if !belongs(row) {
			return p, nil
		}
		if n := len(p.Rows); n == limit || n > 0 && size+len(row.Value) > store.MaxPageBytes {
			p.Next = cursor(p.Rows[n-1])
			return p, nil
		}
		size += len(row.Value)
		p.Rows = append(p.Rows, row)
	}
	if err := rows.Err(); err != nil {
		return store.Page{}, fmt.Errorf("sqlite: reading a page: %w", err)
	}
	return p, nil
}

// Commit implements [store.Rows].
func (e *Engine) Commit(ctx context.Context, c store.Change) (uint64, error) {
	if err := c.Check(); err != nil {
		return 0, err
	}
	change := &commitRow{Change: c}
	if err := e.write(ctx, change); err != nil {
		return 0, err
	}
	return change.version, nil
}

// Receive implements [store.Messages].
func (e *Engine) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if limit < 1 || !e.writer.heads.due(queue, e.options.Now().UnixNano()) {
		return nil, nil
	}
	change := &receive{queue: queue, limit: limit, lease: lease}
	if err := e.write(ctx, change); err != nil {
		return nil, err
	}
	return change.deliveries, nil
}

// Ack implements [store.Messages].
func (e *Engine) Ack(ctx context.Context, d store.Delivery) error {
	return e.write(ctx, endDelivery{func(w *writer) *sql.Stmt { return w.ackMessage }, nil, d})
}

// Extend implements [store.Messages].
func (e *Engine) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	return e.write(ctx, endDelivery{func(w *writer) *sql.Stmt { return w.extendLease }, &lease, d})
}

// Retry implements [store.Messages].
func (e *Engine) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	return e.write(ctx, endDelivery{func(w *writer) *sql.Stmt { return w.retryMessage }, &after, d})
}

// maxRowBlob is the size, in bytes, up to which a blob is a row; larger ones are files.
const maxRowBlob = 64 << 10

// Put implements [store.Blobs].
func (e *Engine) Put(ctx context.Context, c cid.Cid, r io.Reader) error {
	if !c.Defined() {
		return errors.New("sqlite: blob without a CID")
	}
	var head bytes.Buffer
	if _, err := io.CopyN(&head, r, maxRowBlob+1); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sqlite: reading blob %s: %w", c, err)
	}
	if head.Len() <= maxRowBlob {
		return e.write(ctx, putBlob{store.Blob{CID: c, Bytes: head.Bytes()}})
	}
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := e.blobs.put(c, io.MultiReader(&head, r)); err != nil {
		return fmt.Errorf("sqlite: writing blob %s: %w", c, err)
	}
	return nil
}

// rowBlob reads a blob that is a row.
type rowBlob struct{ *bytes.Reader }

func (rowBlob) Close() error { return nil }

// Open implements [store.Blobs].
func (e *Engine) Open(ctx context.Context, c cid.Cid) (store.BlobReader, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var b []byte
	err = e.reads.blob.QueryRowContext(uninterrupted(ctx), c.Bytes()).Scan(&b)
	if err == nil {
		return rowBlob{bytes.NewReader(b)}, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("sqlite: reading blob %s: %w", c, err)
	}
	f, err := e.blobs.open(c)
	if err != nil {
		return nil, fmt.Errorf("sqlite: opening blob %s: %w", c, err)
	}
	return f, nil
}

// Has implements [store.Blobs].
func (e *Engine) Has(ctx context.Context, c cid.Cid) (int64, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	var size int64
	err = e.reads.blobSize.QueryRowContext(uninterrupted(ctx), c.Bytes()).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		size, err = e.blobs.size(c)
	}
	if err != nil {
		return 0, fmt.Errorf("sqlite: looking for blob %s: %w", c, err)
	}
	return size, nil
}

// Delete implements [store.Blobs].
func (e *Engine) Delete(ctx context.Context, c cid.Cid) error {
	if err := e.write(ctx, removeBlob{c}); err != nil {
		return err
	}
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := e.blobs.remove(c); err != nil {
		return fmt.Errorf("sqlite: deleting blob %s: %w", c, err)
	}
	return nil
}

// List implements [store.Blobs]: first the blobs that are rows, then those that are files.
func (e *Engine) List(ctx context.Context, cursor string, limit int) ([]cid.Cid, string, error) {
	const inRows, inFiles = "r", "f"
	after := []string{inRows, ""}
	if cursor != "" {
		var err error
		if after, err = store.DecodeCursor(cursor, 2); err != nil {
			return nil, "", err
		}
	}
	end, err := e.begin(ctx)
	if err != nil {
		return nil, "", err
	}
	defer end()
	limit = store.PageLimit(limit)
	var cids []cid.Cid
	if after[0] == inRows {
		if cids, err = e.rowBlobs(ctx, after[1], limit+1); err != nil {
			return nil, "", fmt.Errorf("sqlite: listing blobs: %w", err)
		}
		if len(cids) > limit {
			return cids[:limit], store.EncodeCursor(inRows, cids[limit-1].KeyString()), nil
		}
		after = []string{inFiles, ""}
	}
	names, err := e.blobs.names()
	if err != nil {
		return nil, "", fmt.Errorf("sqlite: listing blobs: %w", err)
	}
	for _, name := range names {
		if name <= after[1] {
			continue
		}
		if len(cids) == limit {
			return cids, store.EncodeCursor(inFiles, after[1]), nil
		}
		c, err := cid.Decode(name)
		if err != nil {
			return nil, "", fmt.Errorf("sqlite: listing blobs: file %s: %w", name, err)
		}
		cids = append(cids, c)
		after[1] = name
	}
	return cids, "", nil
}

func (e *Engine) rowBlobs(ctx context.Context, after string, limit int) (cids []cid.Cid, err error) {
	rows, err := e.reads.blobList.QueryContext(uninterrupted(ctx), []byte(after), limit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return nil, err
		}
		c, err := cid.Cast(b)
		if err != nil {
			return nil, err
		}
		cids = append(cids, c)
	}
	return cids, rows.Err()
}
