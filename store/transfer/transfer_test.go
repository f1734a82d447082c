package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/sqlite"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/store/transfer"
)

type exporter interface {
	store.Driver
	store.Exporter
}

func side(name string, e exporter) transfer.Side {
	return transfer.Side{Name: name, Driver: e, Exporter: e}
}

func newMemory(clock *storetest.FakeClock) *memory.Engine {
	return memory.New(memory.Options{Now: clock.Now})
}

func newSQLite(t *testing.T, clock *storetest.FakeClock) *sqlite.Engine {
	t.Helper()
	e, err := sqlite.Open(filepath.Join(t.TempDir(), "role"), sqlite.Options{Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return e
}

const rowsOfSource = 9

// fill makes a state of every kind: rows listed and not, empty and changed since, one deleted; messages due, due later, on lease and given back; blobs
// of the sizes that engines keep in different places.
func fill(t *testing.T, e store.Driver, clock *storetest.FakeClock) {
	t.Helper()
	ctx := t.Context()
	commit := func(c store.Change) {
		t.Helper()
		if _, err := e.Commit(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rowsOfSource {
		row := store.Row{Key: store.Key{Partition: "p\x00é", Sort: fmt.Sprint(i)}, Value: bytes.Repeat([]byte{byte(i)}, i*100)}
		if i%2 == 1 {
			row.Listing = store.Listing{Index: "odd", Sort: fmt.Sprint(100 - i)}
		}
		c := store.Change{Row: row, Messages: []store.Message{{Queue: "now", Body: []byte{byte(i)}}}}
		if i == 3 {
			c.Messages = append(c.Messages, store.Message{Queue: "later", Body: []byte("later"), Due: clock.Now().Add(40 * time.Hour)}, store.Message{Queue: "empty"})
			c.Blobs = []store.Blob{store.RawBlob([]byte("inline"))}
		}
		commit(c)
	}
	commit(store.Change{Row: store.Row{Key: store.Key{Partition: "p\x00é", Sort: "1"}, Version: 1, Value: []byte("changed")}})
	commit(store.Change{Row: store.Row{Key: store.Key{Partition: "gone"}}})
	commit(store.Change{Row: store.Row{Key: store.Key{Partition: "gone"}, Version: 1}, Delete: true})
	for _, size := range []int{0, 1, 9 << 10, 70 << 10} {
		if err := store.PutBlob(ctx, e, store.RawBlob(bytes.Repeat([]byte("b"), size))); err != nil {
			t.Fatal(err)
		}
	}
	clock.Advance(time.Second)
	held, err := e.Receive(ctx, "now", 2, time.Hour)
	if err != nil || len(held) != 2 {
		t.Fatalf("received %d, %v", len(held), err)
	}
	if err := e.Retry(ctx, held[0], 2*time.Hour); err != nil {
		t.Fatal(err)
	}
}

// messages takes all messages of an engine as they become due.
func messages(t *testing.T, e store.Driver, clock *storetest.FakeClock) map[string]time.Duration {
	t.Helper()
	got := map[string]time.Duration{}
	began := clock.Now()
	for range 50 {
		for _, queue := range []string{"now", "later", "empty"} {
			ds, err := e.Receive(t.Context(), queue, 100, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				name := fmt.Sprintf("%s %x", d.Queue, d.Body)
				if _, twice := got[name]; twice {
					t.Errorf("message %s came twice", name)
				}
				got[name] = clock.Now().Sub(began).Truncate(time.Hour)
				if d.Attempt != 1 {
					t.Errorf("message %s is delivered for the %d. time", name, d.Attempt)
				}
				if err := e.Ack(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
		}
		clock.Advance(time.Hour)
	}
	return got
}

// wantMessages is when the messages of fill come, counted from the copy.
func wantMessages() map[string]time.Duration {
	want := map[string]time.Duration{"empty ": 0, "later 6c61746572": 40 * time.Hour}
	for i := range rowsOfSource {
		want[fmt.Sprintf("now %02x", i)] = 0
	}
	want["now 00"] = 2 * time.Hour // given back
	want["now 01"] = time.Hour     // on lease
	return want
}

// TestRoundTrip: from one engine to the next and the next all is equal, and every message comes once, when it is due.
func TestRoundTrip(t *testing.T) {
	clock := storetest.NewClock()
	first, second, third, last := newMemory(clock), newSQLite(t, clock), newSQLite(t, clock), newMemory(clock)
	fill(t, first, clock)
	o := transfer.Options{Now: clock.Now}
	var reports []transfer.Report
	for _, pair := range [][2]exporter{{first, second}, {second, third}, {third, last}} {
		r, err := transfer.Copy(t.Context(), side("a", pair[0]), side("b", pair[1]), o)
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, r)
		again, err := transfer.Copy(t.Context(), side("a", pair[0]), side("b", pair[1]), o)
		if err != nil || !again.Already || again.Rows != r.Rows {
			t.Errorf("copied again: %+v, %v", again, err)
		}
		if err := transfer.Unfinished(t.Context(), pair[1]); err != nil {
			t.Errorf("after the end: %v", err)
		}
	}
	if diff := cmp.Diff(reports[0], reports[1]); diff != "" {
		t.Errorf("second copy (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(reports[0], reports[2]); diff != "" {
		t.Errorf("third copy (-first +third):\n%s", diff)
	}
	if r := reports[0]; r.Rows.Count != rowsOfSource || r.Messages.Count != rowsOfSource+2 || r.Blobs.Count != 5 || r.Blobs.Bytes != 6+1+79<<10 {
		t.Errorf("report %+v", r)
	}
	page, err := third.Scan(t.Context(), "odd", "", "", 0)
	if err != nil || len(page.Rows) != rowsOfSource/2-1 || page.Rows[0].Sort != "7" {
		t.Errorf("the index has %d rows (%v)", len(page.Rows), err)
	}
	if diff := cmp.Diff(wantMessages(), messages(t, last, clock)); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	page, err = last.Query(t.Context(), "copy", "", "", 0)
	if err != nil || len(page.Rows) != 1 || page.Rows[0].Sort != "state" {
		t.Errorf("the copy left %v (%v)", page.Rows, err)
	}
}

// TestFaults: whichever call of either side fails, before or after it was done, the copy begun again ends as if nothing had happened.
func TestFaults(t *testing.T) {
	for _, where := range []string{"source", "target"} {
		t.Run(where, func(t *testing.T) {
			faults := []storetest.Fault{storetest.FailBefore}
			if where == "target" {
				faults = append(faults, storetest.FailAfter, storetest.ReportConflict)
			}
			storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
				clock := storetest.NewClock()
				a, b := newMemory(clock), newMemory(clock)
				fill(t, a, clock)
				from, to := side("a", a), side("b", b)
				if where == "source" {
					from.Driver = storetest.NewFaulty(a, choose)
				} else {
					to.Driver = storetest.NewFaulty(b, choose)
				}
				var r transfer.Report
				var err error
				for range 3 {
					r, err = transfer.Copy(t.Context(), from, to, transfer.Options{Now: clock.Now})
					if err == nil {
						break
					}
					clock.Advance(time.Second)
				}
				if err != nil {
					t.Fatal(err)
				}
				if r.Rows.Count != rowsOfSource || r.Messages.Count != rowsOfSource+2 || r.Blobs.Count != 5 {
					t.Errorf("report %+v", r)
				}
				if diff := cmp.Diff(wantMessages(), messages(t, b, clock)); diff != "" {
					t.Errorf("messages (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestInterrupted: a copy that was cancelled in any step continues, and no role runs on the target before it has ended.
func TestInterrupted(t *testing.T) {
	for _, step := range []string{"messages", "rows", "blobs", "reading the source again", "reading the target", "removing markers"} {
		t.Run(step, func(t *testing.T) {
			clock := storetest.NewClock()
			a, b := newSQLite(t, clock), newSQLite(t, clock)
			fill(t, a, clock)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := transfer.Options{Now: clock.Now, Say: func(s string) {
				if s == step {
					cancel()
				}
			}}
			if _, err := transfer.Copy(ctx, side("a", a), side("b", b), o); !errors.Is(err, context.Canceled) {
				t.Fatalf("cancelled: %v", err)
			}
			if err := transfer.Unfinished(t.Context(), b); !errors.Is(err, transfer.ErrUnfinished) {
				t.Errorf("in between: %v", err)
			}
			if _, err := transfer.Copy(t.Context(), side("b", b), side("c", newMemory(clock)), o); !errors.Is(err, transfer.ErrUnfinished) {
				t.Errorf("copied further: %v", err)
			}
			if _, err := transfer.Copy(t.Context(), side("other", a), side("b", b), o); !errors.Is(err, transfer.ErrOccupied) {
				t.Errorf("continued from elsewhere: %v", err)
			}
			o.Say = nil
			r, err := transfer.Copy(t.Context(), side("a", a), side("b", b), o)
			if err != nil || r.Messages.Count != rowsOfSource+2 || r.Already {
				t.Fatalf("continued: %+v, %v", r, err)
			}
			if diff := cmp.Diff(wantMessages(), messages(t, b, clock)); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRefuses: a target that holds anything is left alone.
func TestRefuses(t *testing.T) {
	for name, put := range map[string]func(e *memory.Engine) error{
		"row": func(e *memory.Engine) error {
			_, err := e.Commit(t.Context(), store.Change{Row: store.Row{Key: store.Key{Partition: "p"}}})
			return err
		},
		"blob": func(e *memory.Engine) error { return store.PutBlob(t.Context(), e, store.RawBlob([]byte("x"))) },
		"message": func(e *memory.Engine) error {
			row := store.Row{Key: store.Key{Partition: "p"}}
			if _, err := e.Commit(t.Context(), store.Change{Row: row, Messages: []store.Message{{Queue: "q"}}}); err != nil {
				return err
			}
			row.Version = 1
			_, err := e.Commit(t.Context(), store.Change{Row: row, Delete: true})
			return err
		},
	} {
		clock := storetest.NewClock()
		a, b := newMemory(clock), newMemory(clock)
		fill(t, a, clock)
		if err := put(b); err != nil {
			t.Fatal(err)
		}
		if _, err := transfer.Copy(t.Context(), side("a", a), side("b", b), transfer.Options{Now: clock.Now}); !errors.Is(err, transfer.ErrOccupied) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Get(t.Context(), store.Key{Partition: "copy", Sort: "state"}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: the target was changed: %v", name, err)
		}
	}
}

// TestNotices: what changes on either side while the copy is under way, or gets lost, is found at the end.
func TestNotices(t *testing.T) {
	row := store.Row{Key: store.Key{Partition: "zz"}, Value: []byte("new")}
	for name, tc := range map[string]struct {
		step string
		do   func(ctx context.Context, a, b *memory.Engine) error
		want error
	}{
		"source written": {"blobs", func(ctx context.Context, a, _ *memory.Engine) error {
			_, err := a.Commit(ctx, store.Change{Row: row})
			return err
		}, transfer.ErrChanged},
		"target written": {"blobs", func(ctx context.Context, _, b *memory.Engine) error {
			_, err := b.Commit(ctx, store.Change{Row: row})
			return err
		}, transfer.ErrOccupied},
		"row in the way": {"rows", func(ctx context.Context, _, b *memory.Engine) error {
			_, err := b.Commit(ctx, store.Change{Row: store.Row{Key: store.Key{Partition: "p\x00é", Sort: "4"}}})
			return err
		}, transfer.ErrOccupied},
		"target lost a row": {"blobs", func(ctx context.Context, _, b *memory.Engine) error {
			_, err := b.Commit(ctx, store.Change{Row: store.Row{Key: store.Key{Partition: "p\x00é", Sort: "4"}, Version: 1}, Delete: true})
			return err
		}, transfer.ErrDiffers},
		"target has other bytes in a blob": {"blobs", func(ctx context.Context, _, b *memory.Engine) error {
			return b.Put(ctx, store.RawBlob([]byte("inline")).CID, strings.NewReader("INLINE"))
		}, transfer.ErrDiffers},
		"target has a blob of another size": {"blobs", func(ctx context.Context, _, b *memory.Engine) error {
			return b.Put(ctx, store.RawBlob([]byte("inline")).CID, strings.NewReader("in"))
		}, transfer.ErrOccupied},
	} {
		clock := storetest.NewClock()
		a, b := newMemory(clock), newMemory(clock)
		fill(t, a, clock)
		o := transfer.Options{Now: clock.Now, Say: func(s string) {
			if s == tc.step {
				if err := tc.do(t.Context(), a, b); err != nil {
					t.Error(err)
				}
			}
		}}
		if _, err := transfer.Copy(t.Context(), side("a", a), side("b", b), o); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if err := transfer.Unfinished(t.Context(), b); !errors.Is(err, transfer.ErrUnfinished) {
			t.Errorf("%s: afterwards: %v", name, err)
		}
	}
}

// TestSourceUsedInBetween: messages that the source no longer has when the copy is continued have been sent to the target already.
func TestSourceUsedInBetween(t *testing.T) {
	clock := storetest.NewClock()
	a, b := newMemory(clock), newMemory(clock)
	fill(t, a, clock)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := transfer.Options{Now: clock.Now, Say: func(s string) {
		if s == "rows" {
			cancel()
		}
	}}
	if _, err := transfer.Copy(ctx, side("a", a), side("b", b), o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	ds, err := a.Receive(t.Context(), "now", 1, time.Minute)
	if err != nil || len(ds) != 1 {
		t.Fatalf("received %d, %v", len(ds), err)
	}
	if err := a.Ack(t.Context(), ds[0]); err != nil {
		t.Fatal(err)
	}
	o.Say = nil
	if _, err := transfer.Copy(t.Context(), side("a", a), side("b", b), o); !errors.Is(err, transfer.ErrChanged) {
		t.Errorf("continued: %v", err)
	}
}

// onLease is a source whose last messages cannot be had.
type onLease struct {
	store.Exporter
	left int
}

func (l *onLease) Export(ctx context.Context, queues []string, each func(store.Delivery) error) error {
	n := 0
	err := l.Exporter.Export(ctx, queues, func(d store.Delivery) error {
		if n++; n > l.left {
			return nil
		}
		return each(d)
	})
	if err == nil && n > l.left {
		return store.ErrOnLease
	}
	return err
}

// TestOnLease: what can be had is carried, the rest when it can be had.
func TestOnLease(t *testing.T) {
	clock := storetest.NewClock()
	a, b := newMemory(clock), newMemory(clock)
	fill(t, a, clock)
	from, slow := side("a", a), &onLease{a, 4}
	from.Exporter = slow
	var read countingWriter
	o := transfer.Options{Now: clock.Now, Read: &read}
	if _, err := transfer.Copy(t.Context(), from, side("b", b), o); !errors.Is(err, store.ErrOnLease) {
		t.Fatalf("at first: %v", err)
	}
	if n := b.Waiting()["now"]; n != 4 {
		t.Errorf("%d messages carried at first", n)
	}
	slow.left = 100
	r, err := transfer.Copy(t.Context(), from, side("b", b), o)
	if err != nil || r.Messages.Count != rowsOfSource+2 {
		t.Fatalf("then: %+v, %v", r, err)
	}
	if int64(read) < 3*(r.Rows.Bytes+r.Blobs.Bytes) { // carried, and both sides read
		t.Errorf("progress was told of %d bytes", read)
	}
}

type countingWriter int64

func (c *countingWriter) Write(b []byte) (int, error) {
	*c += countingWriter(len(b))
	return len(b), nil
}

// unread is a target that reports that blobs are there which it does not hold.
type unread struct{ store.Driver }

func (u unread) Put(_ context.Context, _ cid.Cid, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// TestDroppedBlobs: a target that loses blobs is found out.
func TestDroppedBlobs(t *testing.T) {
	clock := storetest.NewClock()
	a, b := newMemory(clock), newMemory(clock)
	fill(t, a, clock)
	to := side("b", b)
	to.Driver = unread{b}
	if _, err := transfer.Copy(t.Context(), side("a", a), to, transfer.Options{Now: clock.Now}); !errors.Is(err, transfer.ErrDiffers) {
		t.Errorf("copied: %v", err)
	}
}
