// Package sqlite is the embedded storage engine: one directory, one process.
//
// Rows, messages and small blobs are in one SQLite database, role.db, so that a commit is one transaction; blobs over
// 64 KiB are files beside it. One goroutine writes: it takes the changes that are waiting, up to 256, and puts them into one
// transaction, each under its own condition, so that they share one fsync and a change that is refused touches no other.
//
// Durability rests on WAL mode with synchronous=FULL, which Open asserts: the log is fsynced before a commit is answered. After kill -9 or
// a power failure SQLite finds the last complete transaction in the log. A blob's file is written under another name, fsynced, renamed,
// and its directory fsynced, before Put returns.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver, registered as "sqlite"

	"github.com/storacha/w3filecoin/store"
)

// Options configures an engine.
type Options struct {
	// Now is the clock, for due times, leases and measurements. Required.
	Now func() time.Time

	// OnBatch, if set, is told of every transaction. It is called by the goroutine that writes: it must be quick.
	OnBatch func(Batch)
}

// Batch is one transaction of the writer.
type Batch struct {
	Changes int           // that shared it
	Took    time.Duration // fsync included
	Err     error         // nil if it was committed; otherwise its changes are tried again one by one, if there were several
}

// Stats is a look at an engine. Counts are since it was opened.
type Stats struct {
	Batches   uint64 // transactions committed
	Changes   uint64 // commits, receipts and ends of messages, blobs: what the transactions were for
	Conflicts uint64 // commits refused because the row had changed
	Failures  uint64 // changes that failed for another reason
	WALBytes  int64  // size of the write-ahead log
	DBBytes   int64  // size of the database
}

// Files of a directory.
const (
	databaseName = "role.db"
	lockName     = "lock"
	blobsName    = "blobs"
)

// Engine is one directory opened by this process. It implements [store.Driver].
type Engine struct {
	dir     string
	options Options
	lock    *os.File
	reads   *readers
	blobs   *blobDir
	writer  *writer

	mu     sync.RWMutex
	closed bool           // no call begins any more
	calls  sync.WaitGroup // under way

	conflicts, failures atomic.Uint64
}

var _ store.Driver = (*Engine)(nil)

var errClosed = errors.New("sqlite: engine is closed")

// Open opens the engine on a directory, which it creates if there is none. It fails if another process, or another engine of this
// one, has the directory, if a newer version wrote it, and if SQLite does not promise durability.
func Open(dir string, o Options) (*Engine, error) {
	e, err := open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	return e, nil
}

func open(dir string, o Options) (_ *Engine, err error) {
	if o.Now == nil {
		return nil, errors.New("option Now is missing")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, blobsName), 0o700); err != nil {
		return nil, err
	}
	e := &Engine{dir: dir, options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.release())
		}
	}()
	if e.lock, err = lockFile(filepath.Join(dir, lockName)); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, databaseName)
	_, err = os.Stat(path)
	isNew := errors.Is(err, os.ErrNotExist)
	if err != nil && !isNew {
		return nil, err
	}
	if e.blobs, err = openBlobDir(osDir(filepath.Join(dir, blobsName))); err != nil {
		return nil, err
	}
	if isNew {
		names, err := e.blobs.names()
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			return nil, fmt.Errorf("there are blobs but no %s: part of the state is missing", databaseName)
		}
	}
	if e.writer, err = openWriter(path, o); err != nil {
		return nil, err
	}
	if isNew {
		// The names of the database, the blobs' directory and this one.
		for _, d := range []string{dir, filepath.Dir(dir)} {
			if err := osDir(d).syncDir(); err != nil {
				return nil, err
			}
		}
	}
	if e.reads, err = openReaders(path); err != nil {
		return nil, err
	}
	e.writer.start()
	return e, nil
}

// Close waits for the calls under way, then releases the directory. Closing twice is a success.
func (e *Engine) Close() error {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	e.mu.Unlock()
	if was {
		return nil
	}
	e.calls.Wait()
	if err := e.release(); err != nil {
		return fmt.Errorf("closing %s: %w", e.dir, err)
	}
	return nil
}

// release closes whatever is open, the lock last.
func (e *Engine) release() error {
	var errs []error
	if e.reads != nil {
		errs = append(errs, e.reads.close())
	}
	if e.writer != nil {
		errs = append(errs, e.writer.close())
	}
	if e.lock != nil {
		errs = append(errs, unlock(e.lock))
	}
	return errors.Join(errs...)
}

// begin keeps the engine open until end.
func (e *Engine) begin(ctx context.Context) (end func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return nil, errClosed
	}
	e.calls.Add(1)
	return e.calls.Done, nil
}

// write has the writer do a change and waits for its transaction. ctx can prevent the change only until the writer begins with
// it; then the outcome is waited for, so that it is known.
func (e *Engine) write(ctx context.Context, c change) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = e.writer.do(ctx, c)
	switch {
	case errors.Is(err, store.ErrConflict):
		e.conflicts.Add(1)
	case err != nil && !refused(err):
		e.failures.Add(1)
	}
	return err
}

// Stats returns counts and sizes.
func (e *Engine) Stats() Stats {
	return Stats{
		Batches:   e.writer.batches.Load(),
		Changes:   e.writer.changes.Load(),
		Conflicts: e.conflicts.Load(),
		Failures:  e.failures.Load(),
		WALBytes:  fileSize(filepath.Join(e.dir, databaseName+"-wal")),
		DBBytes:   fileSize(filepath.Join(e.dir, databaseName)),
	}
}

// fileSize is 0 for a file that is not there. (It must not open the file: closing it again would release SQLite's locks.)
func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// pragmas of every connection, with the values that they read back as.
var pragmas = []struct{ name, set, want string }{
	{"busy_timeout", "5000", "5000"}, // ms; nobody else writes, but a checkpoint waits for readers
	{"journal_mode", "WAL", "wal"},
	{"synchronous", "FULL", "2"}, // fsync the log at each commit
	{"fullfsync", "1", "1"},      // where fsync alone does not reach the medium
	{"checkpoint_fullfsync", "1", "1"},
	{"temp_store", "MEMORY", "2"},
	{"trusted_schema", "0", "0"},
}

// connect returns a pool of connections to the database with the pragmas above and the given ones.
func connect(path string, conns int, more ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range pragmas {
		q.Add("_pragma", p.name+"("+p.set+")")
	}
	for _, p := range more {
		q.Add("_pragma", p)
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// checkPragmas reads back what durability rests on: a misspelt setting is ignored by SQLite in silence.
func checkPragmas(ctx context.Context, conn *sql.Conn) error {
	for _, p := range pragmas {
		var got string
		if err := conn.QueryRowContext(ctx, "PRAGMA "+p.name).Scan(&got); err != nil {
			return fmt.Errorf("reading pragma %s: %w", p.name, err)
		}
		if got != p.want {
			return fmt.Errorf("pragma %s is %s instead of %s: state would not be durable", p.name, got, p.want)
		}
	}
	return nil
}

// schemaVersion is what this version writes. A database of a newer one is refused.
const schemaVersion = 1

// The tables. Keys are text and compared by their bytes. Empty values and bodies are NULL. Rows and blobs are appended in the order in which they
// are created, with a narrow index in the random order of their keys: values of a few hundred bytes to some KiB would fill
// the pages of a table that is ordered by key badly.
const schema = `
CREATE TABLE meta (
	name  TEXT PRIMARY KEY,
	value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE row (
	partition TEXT NOT NULL,
	sort      TEXT NOT NULL,
	version   INTEGER NOT NULL,
	list      TEXT, -- NULL: listed nowhere
	list_sort TEXT,
	value     BLOB,
	PRIMARY KEY (partition, sort)
);
CREATE INDEX listing ON row (list, list_sort, partition, sort) WHERE list IS NOT NULL;

-- A message can be received from visible on: its due time, or the end of its lease. Times are Unix nanoseconds.
CREATE TABLE message (
	id       INTEGER PRIMARY KEY,
	queue    TEXT NOT NULL,
	visible  INTEGER NOT NULL,
	attempt  INTEGER NOT NULL, -- deliveries so far
	leased   INTEGER NOT NULL, -- 1: the latest delivery has not been given back
	enqueued INTEGER NOT NULL,
	body     BLOB
);
CREATE INDEX receivable ON message (queue, visible);

CREATE TABLE blob (
	id    INTEGER PRIMARY KEY,
	cid   BLOB NOT NULL,
	bytes BLOB
);
CREATE UNIQUE INDEX blob_cid ON blob (cid);

INSERT INTO meta VALUES ('schema', 1), ('openings', 0);
`

// giveBack ends the leases of processes that are gone: nobody but this one has the database. A message that was out once is received again at
// once. One that was out at several ends in a row may be what ended them: it waits longer each time, at most as long as its lease would have.
// Queue by queue, because the index then leads past all that is due already.
const giveBack = `
WITH RECURSIVE q (name) AS (
	SELECT min(queue) FROM message
	UNION ALL SELECT (SELECT min(queue) FROM message WHERE queue > q.name) FROM q WHERE q.name IS NOT NULL
)
UPDATE message SET leased = 0, visible = min(visible, ?1 + (attempt - 1) * (attempt - 1) * 1000000000)
WHERE id IN (SELECT m.id FROM q JOIN message m ON m.queue = q.name AND m.visible > ?1 WHERE m.leased = 1)`

// prepareSchema creates the tables in an empty database, refuses one that is not ours, counts the opening, and gives back what was leased.
func prepareSchema(ctx context.Context, conn *sql.Conn, now time.Time) (openings int64, err error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	var objects, metas int
	const count = `SELECT count(*), coalesce(sum(name = 'meta'), 0) FROM sqlite_schema`
	if err := tx.QueryRowContext(ctx, count).Scan(&objects, &metas); err != nil {
		return 0, fmt.Errorf("reading the schema: %w", err)
	}
	switch {
	case objects == 0:
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return 0, fmt.Errorf("creating the schema: %w", err)
		}
	case metas == 0:
		return 0, fmt.Errorf("%s is a database of something else", databaseName)
	}
	var version int64
	if err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = 'schema'`).Scan(&version); err != nil {
		return 0, fmt.Errorf("reading the schema's version: %w", err)
	}
	if version > schemaVersion {
		return 0, fmt.Errorf("%s has schema version %d, this program knows %d: a newer version wrote it", databaseName, version, schemaVersion)
	}
	if version != schemaVersion {
		return 0, fmt.Errorf("%s has schema version %d, which never was", databaseName, version)
	}
	const bump = `UPDATE meta SET value = value + 1 WHERE name = 'openings' RETURNING value`
	if err := tx.QueryRowContext(ctx, bump).Scan(&openings); err != nil {
		return 0, fmt.Errorf("counting the opening: %w", err)
	}
	if _, err := tx.ExecContext(ctx, giveBack, now.UnixNano()); err != nil {
		return 0, fmt.Errorf("giving back messages: %w", err)
	}
	return openings, tx.Commit()
}

// messageIDBits of a message's ID count messages of one opening, the bits above count openings: an ID is never used twice, though
// acknowledged messages leave no trace.
const messageIDBits = 40

func formatID(id int64) string { return strconv.FormatInt(id, 10) }
