package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storacha/w3filecoin/store"
)

func openTest(t *testing.T, dir string, o Options) *Engine {
	t.Helper()
	if o.Now == nil {
		o.Now = time.Now
	}
	e, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// changeFunc is a change for tests.
type changeFunc func(w *writer) error

func (f changeFunc) apply(w *writer) error { return f(w) }

func row(sort string, version uint64) store.Change {
	return store.Change{Row: store.Row{Key: store.Key{Partition: "p", Sort: sort}, Version: version}}
}

// enqueue gives the writer changes in this order, as one batch if it is busy with another change, and returns when it has them.
func enqueue(t *testing.T, e *Engine, changes ...change) []*request {
	t.Helper()
	var rs []*request
	for _, c := range changes {
		r := &request{ctx: t.Context(), change: c, done: make(chan struct{})}
		e.writer.requests <- r
		rs = append(rs, r)
	}
	return rs
}

// busy keeps the writer busy until release is called.
func busy(t *testing.T, e *Engine) (release func()) {
	t.Helper()
	began, wait := make(chan struct{}), make(chan struct{})
	enqueue(t, e, changeFunc(func(*writer) error {
		close(began)
		<-wait
		return nil
	}))
	<-began
	return func() { close(wait) }
}

func results(rs []*request) []error {
	var errs []error
	for _, r := range rs {
		<-r.done
		errs = append(errs, r.result)
	}
	return errs
}

func TestOneBatchManyFates(t *testing.T) {
	fault := errors.New("fault")
	for _, tc := range []struct {
		name    string
		faulty  bool
		batches string // sizes, of those after the one that kept the writer busy; ! for a failed one
	}{
		{"a lost race touches no other change", false, "6"},
		{"nor does a fault", true, "7! 1 1 1 1 1 1 1!"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := t.Context()
			var sizes []string
			e := openTest(t, t.TempDir(), Options{OnBatch: func(b Batch) {
				s := fmt.Sprint(b.Changes)
				if b.Err != nil {
					s += "!"
				}
				sizes = append(sizes, s)
			}})
			if _, err := e.Commit(ctx, row("taken", 0)); err != nil {
				t.Fatal(err)
			}
			release := busy(t, e)
			cancelled, cancel := context.WithCancel(ctx)
			changes := []change{
				&commitRow{Change: row("a", 0)},
				&commitRow{Change: row("taken", 0)},
				&commitRow{Change: row("taken", 1)},
				&commitRow{Change: row("a", 0)},
				&commitRow{Change: row("b", 0)},
			}
			rs := enqueue(t, e, changes...)
			late := &request{ctx: cancelled, change: &commitRow{Change: row("cancelled", 0)}, done: make(chan struct{})}
			e.writer.requests <- late
			cancel()
			rs = append(rs, late)
			want := []error{nil, store.ErrConflict, nil, store.ErrConflict, nil, context.Canceled}
			if tc.faulty {
				rs = append(rs, enqueue(t, e, changeFunc(func(w *writer) error {
					if _, err := w.exec(w.insertRow, "p", "half", nil, nil, nil); err != nil {
						return err
					}
					return fault
				}))...)
				want = append(want, fault)
			}
			release()
			for i, err := range results(rs) {
				if !errors.Is(err, want[i]) {
					t.Errorf("change %d: %v, want %v", i, err, want[i])
				}
			}
			for sort, version := range map[string]uint64{"a": 1, "b": 1, "taken": 2, "half": 0, "cancelled": 0} {
				r, err := e.Get(ctx, store.Key{Partition: "p", Sort: sort})
				if r.Version != version || (version == 0) != errors.Is(err, store.ErrNotFound) {
					t.Errorf("row %s has version %d, %v, want %d", sort, r.Version, err, version)
				}
			}
			if err := e.Close(); err != nil { // OnBatch is done then
				t.Fatal(err)
			}
			if got := strings.Join(sizes[2:], " "); got != tc.batches {
				t.Errorf("batches %q, want %q", got, tc.batches)
			}
		})
	}
}

func TestCancelWhileQueued(t *testing.T) {
	e := openTest(t, t.TempDir(), Options{})
	release := busy(t, e)
	for len(e.writer.requests) < cap(e.writer.requests) {
		enqueue(t, e, changeFunc(func(*writer) error { return nil }))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := e.Commit(ctx, row("a", 0)); !errors.Is(err, context.Canceled) {
			t.Errorf("commit: %v", err)
		}
	})
	cancel()
	wg.Wait()
	release()
	if _, err := e.Get(t.Context(), row("a", 0).Row.Key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("cancelled commit: %v", err)
	}
}

func TestFullDatabase(t *testing.T) {
	ctx := t.Context()
	e := openTest(t, t.TempDir(), Options{})
	limit := func(pages int) {
		t.Helper()
		err := e.write(ctx, changeFunc(func(w *writer) error {
			var n int
			if err := w.conn.QueryRowContext(ctx, `PRAGMA page_count`).Scan(&n); err != nil {
				return err
			}
			return w.conn.QueryRowContext(ctx, fmt.Sprintf(`PRAGMA max_page_count(%d)`, n+pages)).Scan(&n)
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	commit := func(i int) error {
		c := row(fmt.Sprint(i), 0)
		c.Row.Value = make([]byte, 10<<10)
		c.Messages = []store.Message{{Queue: "q", Body: fmt.Append(nil, i)}}
		_, err := e.Commit(ctx, c)
		return err
	}
	limit(50)
	kept := 0
	for ; kept < 1000; kept++ {
		err := commit(kept)
		if err != nil {
			if refused(err) {
				t.Errorf("commit on a full disk: %v", err)
			}
			break
		}
	}
	if kept == 0 || kept == 1000 {
		t.Fatalf("%d commits succeeded", kept)
	}
	// A batch of those: all fail for themselves, and what needs no space succeeds.
	release := busy(t, e)
	deletion := row("0", 1)
	deletion.Delete = true
	big := row("big", 0)
	big.Row.Value = make([]byte, store.MaxValue)
	rs := enqueue(t, e, &commitRow{Change: big}, &commitRow{Change: deletion}, &commitRow{Change: row("taken", 7)})
	release()
	errs := results(rs)
	if errs[0] == nil || refused(errs[0]) || errs[1] != nil || !errors.Is(errs[2], store.ErrConflict) {
		t.Errorf("results %v", errs)
	}
	limit(1000)
	if err := commit(kept); err != nil {
		t.Errorf("commit once there is space: %v", err)
	}
	page, err := e.Query(ctx, "p", "", "", 0)
	if err != nil || len(page.Rows) != kept { // one deleted, one more
		t.Errorf("%d rows, %v, want %d", len(page.Rows), err, kept)
	}
	bodies := make(map[string]bool)
	for {
		ds, err := e.Receive(ctx, "q", 100, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 0 {
			break
		}
		for _, d := range ds {
			bodies[string(d.Body)] = true
		}
	}
	if len(bodies) != kept+1 {
		t.Errorf("%d messages, want %d", len(bodies), kept+1)
	}
	integrity(t, e)
}

// integrity has SQLite check the database.
func integrity(t *testing.T, e *Engine) {
	t.Helper()
	var result string
	if err := e.reads.db.QueryRowContext(t.Context(), `PRAGMA integrity_check`).Scan(&result); err != nil || result != "ok" {
		t.Errorf("integrity check: %s, %v", result, err)
	}
}

func TestWALStaysBounded(t *testing.T) {
	ctx := t.Context()
	e := openTest(t, t.TempDir(), Options{})
	wal := filepath.Join(e.dir, databaseName+"-wal")
	grow := func() {
		t.Helper()
		c := row("blobs", 0)
		if r, err := e.Get(ctx, c.Row.Key); err == nil {
			c.Row.Version = r.Version
		}
		for i := range store.MaxBlobs {
			c.Blobs = append(c.Blobs, store.RawBlob(fmt.Appendf(nil, "%0*d", store.MaxInlineBlob, int(c.Row.Version)*store.MaxBlobs+i)))
		}
		if _, err := e.Commit(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	// A reader that stays keeps the log from beginning anew, so it grows.
	rows, err := e.reads.db.QueryContext(ctx, `SELECT 1 UNION ALL SELECT value FROM meta`)
	if err != nil {
		t.Fatal(err)
	}
	if !rows.Next() {
		t.Fatal(rows.Err())
	}
	for fileSize(wal) < maxWAL {
		grow()
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 * walCheck {
		if _, err := e.Commit(ctx, row("small", e.version(t, "small"))); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.Stats().WALBytes; got > maxWAL/8 {
		t.Errorf("the log has %d bytes", got)
	}
}

func (e *Engine) version(t *testing.T, sort string) uint64 {
	t.Helper()
	r, err := e.Get(t.Context(), row(sort, 0).Row.Key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return r.Version
}

// No statement on the way of a message or a piece may read more than it returns.
func TestStatementsUseIndexes(t *testing.T) {
	e := openTest(t, t.TempDir(), Options{})
	for _, tc := range []struct {
		query string
		args  []any
		want  string // the only access to a table
	}{
		{selectRow, []any{"", ""}, "SEARCH row USING INDEX sqlite_autoindex_row_1 (partition=? AND sort=?)"},
		{selectPartition, []any{"", "", 1}, "SEARCH row USING INDEX sqlite_autoindex_row_1 (partition=? AND sort>?)"},
		{selectIndex, []any{"", "", "", "", 1}, "SEARCH row USING INDEX listing (list=? AND (list_sort,partition,sort)>(?,?,?))"},
		{selectAll, []any{"", "", 1}, "SEARCH row USING INDEX sqlite_autoindex_row_1 ((partition,sort)>(?,?))"},
		{selectHead, []any{""}, "SEARCH message USING COVERING INDEX receivable (queue=?)"},
		{selectDue, []any{"", 1, 1}, "SEARCH message USING INDEX receivable (queue=? AND visible<?)"},
		{selectBlob, []any{[]byte{}}, "SEARCH blob USING INDEX blob_cid (cid=?)"},
		{selectBlobSize, []any{[]byte{}}, "SEARCH blob USING INDEX blob_cid (cid=?)"},
		{selectBlobs, []any{[]byte{}, 1}, "SEARCH blob USING COVERING INDEX blob_cid (cid>?)"},
	} {
		rows, err := e.reads.db.QueryContext(t.Context(), `EXPLAIN QUERY PLAN `+tc.query, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(plan, []string{tc.want}) {
			t.Errorf("%s:\ngot  %q\nwant %q", tc.query, plan, tc.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	ctx := t.Context()
	prepare := func(t *testing.T, sql string) string {
		t.Helper()
		dir := t.TempDir()
		e := openTest(t, dir, Options{})
		err := e.write(ctx, changeFunc(func(w *writer) error {
			_, err := w.conn.ExecContext(ctx, sql)
			return err
		}))
		if err := errors.Join(err, e.Close()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	refuse := func(t *testing.T, dir string, o Options, want string) {
		t.Helper()
		e, err := Open(dir, o)
		if err == nil {
			err = e.Close()
			t.Fatalf("opened, closed: %v", err)
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %q, want it to say %q and where", err, want)
		}
	}
	now := Options{Now: time.Now}

	t.Run("a newer version's database", func(t *testing.T) {
		refuse(t, prepare(t, `UPDATE meta SET value = 2 WHERE name = 'schema'`), now, "a newer version wrote it")
	})
	t.Run("a version that never was", func(t *testing.T) {
		refuse(t, prepare(t, `UPDATE meta SET value = 0 WHERE name = 'schema'`), now, "never was")
	})
	t.Run("somebody else's database", func(t *testing.T) {
		refuse(t, prepare(t, `DROP TABLE meta`), now, "something else")
	})
	t.Run("a file that is no database", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, databaseName), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		refuse(t, dir, now, "not a database")
	})
	t.Run("blobs without their database", func(t *testing.T) {
		dir := t.TempDir()
		e := openTest(t, dir, Options{})
		if err := store.PutBlob(ctx, e, store.RawBlob(make([]byte, maxRowBlob+1))); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.Close(), os.Remove(filepath.Join(dir, databaseName))); err != nil {
			t.Fatal(err)
		}
		refuse(t, dir, now, "part of the state is missing")
	})
	t.Run("a directory in use", func(t *testing.T) {
		dir := t.TempDir()
		e := openTest(t, dir, Options{})
		refuse(t, dir, now, fmt.Sprintf("in use by process %d", os.Getpid()))
		// A child that is being started has a copy of every open file for a moment.
		held, err := unix.Dup(int(e.lock.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(held)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		openTest(t, dir, Options{})
	})
	t.Run("no clock", func(t *testing.T) {
		refuse(t, t.TempDir(), Options{}, "Now")
	})
}

func TestPragmasAreChecked(t *testing.T) {
	ctx := t.Context()
	e := openTest(t, t.TempDir(), Options{})
	for _, spoil := range []string{`PRAGMA synchronous = NORMAL`, `PRAGMA busy_timeout = 1`} {
		conn, err := e.reads.db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPragmas(ctx, conn); err != nil {
			t.Errorf("a fresh connection: %v", err)
		}
		if _, err := conn.ExecContext(ctx, spoil); err != nil {
			t.Fatal(err)
		}
		if err := checkPragmas(ctx, conn); err == nil {
			t.Errorf("accepted after %s", spoil)
		}
		if _, err := conn.ExecContext(ctx, `PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000`); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseWaitsAndRefuses(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	e := openTest(t, dir, Options{})
	var wg sync.WaitGroup
	acked := make(chan string, 200)
	for g := range 20 {
		wg.Go(func() {
			for i := range 10 {
				sort := fmt.Sprint(g, "/", i)
				_, err := e.Commit(ctx, row(sort, 0))
				if err == nil {
					acked <- sort
				} else if !errors.Is(err, errClosed) {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	acked <- <-acked // one at least
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	close(acked)
	if _, err := e.Get(ctx, row("", 0).Row.Key); !errors.Is(err, errClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	e = openTest(t, dir, Options{})
	for sort := range acked {
		if e.version(t, sort) != 1 {
			t.Errorf("row %s was acknowledged and is gone", sort)
		}
	}
	if s := e.Stats(); s.DBBytes == 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestStats(t *testing.T) {
	ctx := t.Context()
	e := openTest(t, t.TempDir(), Options{})
	for range 2 {
		_, err := e.Commit(ctx, row("a", 0))
		if err != nil && !errors.Is(err, store.ErrConflict) {
			t.Fatal(err)
		}
	}
	s := e.Stats()
	s.DBBytes = 0
	if s.WALBytes == 0 {
		t.Error("no log")
	}
	s.WALBytes = 0
	if want := (Stats{Batches: 2, Changes: 2, Conflicts: 1}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
}
