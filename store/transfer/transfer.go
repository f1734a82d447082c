// Package transfer carries the state of a role that no process runs from one engine to another.
//
// Rows, messages and blobs are written to the target only if they are not there, and compared if they are: a copy that was interrupted is begun again
// and continues. Versions of rows count what was written to one engine and begin at 1 in the target. A message is committed with a row that is named after
// its ID, a marker, so that it is sent once however often the copy is begun; attempts are counted anew. Blobs are found by their CIDs.
//
// At the end both sides are read in full and have to have equal sums. Messages are counted by their markers, which were committed with them: what the target's
// queues hold, not every engine can tell. Then the markers go. One row stays and says where the state came from and when; while it says
// that the copy has not ended, no role may run on the target, see [Unfinished].
package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Errors that callers switch on.
var (
	// ErrOccupied: the target holds something that is not of this copy. It was not changed.
	ErrOccupied = errors.New("the target holds other data")
	// ErrChanged: the source is not what it was when the copy began.
	ErrChanged = errors.New("the source changed while it was copied: a process uses it, or has since the copy began")
	// ErrDiffers: the sides are not equal, though the source did not change.
	ErrDiffers = errors.New("the copy is not equal to its source")
	// ErrUnfinished: the state is a copy that has not ended.
	ErrUnfinished = errors.New("the state is an unfinished copy")
)

// Side is the state of a role on one engine.
type Side struct {
	// Name says where it is. That of a source is kept in the target, and a copy is continued only from the same.
	Name string
	store.Driver
	store.Exporter
}

// Options of a copy. Now is required.
type Options struct {
	Now func() time.Time
	// Queues are those of the role; see [store.Exporter].
	Queues []string
	// Say, if set, is told what is being done.
	Say func(string)
	// Read, if set, gets the bytes of rows, messages and blobs as they are read: for progress. Several writes may happen at a time.
	Read io.Writer
}

// Report is what was carried. Already: an earlier copy had, and the target was not looked at.
type Report struct {
	Rows     Sum  `json:"rows" cbor:"1,keyasint"`
	Messages Sum  `json:"messages" cbor:"2,keyasint"`
	Blobs    Sum  `json:"blobs" cbor:"3,keyasint"`
	Already  bool `json:"already" cbor:"-"`
}

const (
	partition     = "copy" // of the rows that are the copy's own; they are never carried
	stateSort     = "state"
	messagePrefix = "message/"

	atATime      = 64 // commits
	blobsAtATime = 8
)

// state is the row that says how far a copy into this engine is.
type state struct {
	From  string `cbor:"1,keyasint"`
	Began int64  `cbor:"2,keyasint"` // Unix nanoseconds: messages are told apart by it, due and not yet due
	// Verified: the sides were equal; only markers are left to be removed. Ended: they have been.
	Verified bool      `cbor:"3,keyasint"`
	Ended    time.Time `cbor:"4,keyasint,omitzero"`
	Report   Report    `cbor:"5,keyasint"`
}

// marker is a message that was carried.
type marker struct {
	Queue string `cbor:"1,keyasint"`
	Body  []byte `cbor:"2,keyasint"`
	Due   int64  `cbor:"3,keyasint"` // Unix nanoseconds; 0: when the copy began, or before
}

var stateKey = store.Key{Partition: partition, Sort: stateSort}

// Unfinished returns ErrUnfinished if the state is the target of a copy that has not ended.
func Unfinished(ctx context.Context, rows store.Rows) error {
	rec, err := store.NewTable[state](rows).Get(ctx, stateKey)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case rec.Value.Ended.IsZero():
		return fmt.Errorf("%w of %s, begun %s", ErrUnfinished, rec.Value.From, time.Unix(0, rec.Value.Began).UTC().Format(time.RFC3339))
	}
	return nil
}

// Copy carries everything. After an error or an interruption it can be called again and continues.
func Copy(ctx context.Context, from, to Side, o Options) (Report, error) {
	if o.Say == nil {
		o.Say = func(string) {}
	}
	read := &lockedWriter{w: o.Read}
	if o.Read == nil {
		read.w = io.Discard
	}
	c := &copying{from: from, to: to, o: o, read: read, states: store.NewTable[state](to.Driver), markers: store.NewTable[marker](to.Driver)}
	if err := c.run(ctx); err != nil {
		return Report{}, fmt.Errorf("copying %s to %s: %w", from.Name, to.Name, err)
	}
	return c.rec.Value.Report, nil
}

// lockedWriter is written to by several.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

type copying struct {
	from, to Side
	o        Options
	read     io.Writer
	states   store.Table[state]
	markers  store.Table[marker]
	rec      store.Record[state]
}

func (c *copying) run(ctx context.Context) error {
	if err := Unfinished(ctx, c.from); err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	if !c.rec.Value.Ended.IsZero() {
		c.rec.Value.Report.Already = true
		return nil
	}
	if !c.rec.Value.Verified {
		report, err := c.carry(ctx)
		if err != nil {
			return err
		}
		c.rec.Value.Verified, c.rec.Value.Report = true, report
		if err := c.states.Commit(ctx, &c.rec, store.Effects{}); err != nil {
			return err
		}
	}
	c.o.Say("removing markers")
	if err := c.removeMarkers(ctx); err != nil {
		return err
	}
	c.rec.Value.Ended = c.o.Now().UTC()
	return c.states.Commit(ctx, &c.rec, store.Effects{})
}

// begin finds how far an earlier call came, or makes sure that the target is empty and says so in it.
func (c *copying) begin(ctx context.Context) (err error) {
	c.rec, err = c.states.Get(ctx, stateKey)
	if errors.Is(err, store.ErrNotFound) {
		if err := c.empty(ctx); err != nil {
			return err
		}
		c.rec.Value = state{From: c.from.Name, Began: c.o.Now().UnixNano()}
		_, err = c.states.Create(ctx, &c.rec, store.Effects{})
	}
	if err == nil && c.rec.Value.From != c.from.Name {
		return fmt.Errorf("%w: a copy of %s", ErrOccupied, c.rec.Value.From)
	}
	return err
}

func (c *copying) empty(ctx context.Context) error {
	page, err := c.to.Walk(ctx, "", 1)
	if err != nil {
		return fmt.Errorf("looking into the target: %w", err)
	}
	blobs, _, err := c.to.List(ctx, "", 1)
	if err != nil {
		return fmt.Errorf("looking into the target: %w", err)
	}
	messages, err := c.to.Backlog(ctx, c.o.Queues)
	switch {
	case err != nil:
		return fmt.Errorf("looking into the target: %w", err)
	case len(page.Rows) > 0:
		return fmt.Errorf("%w: row %s", ErrOccupied, page.Rows[0].Key)
	case len(blobs) > 0:
		return fmt.Errorf("%w: blob %s", ErrOccupied, blobs[0])
	case messages > 0:
		return fmt.Errorf("%w: %d messages", ErrOccupied, messages)
	}
	return nil
}

// carry writes what is missing, then reads both sides and compares.
func (c *copying) carry(ctx context.Context) (Report, error) {
	c.o.Say("messages")
	messages, err := c.carryMessages(ctx)
	if err != nil {
		return Report{}, err
	}
	c.o.Say("rows")
	rows, err := c.carryRows(ctx)
	if err != nil {
		return Report{}, err
	}
	c.o.Say("blobs")
	if err := eachBlob(ctx, c.from, func(id cid.Cid) error { return c.carryBlob(ctx, id) }); err != nil {
		return Report{}, err
	}
	c.o.Say("reading the source again")
	now, blobs, err := content(ctx, c.from, c.read)
	if err != nil {
		return Report{}, err
	}
	if now != rows {
		return Report{}, fmt.Errorf("%w: rows were %v and are %v", ErrChanged, rows, now)
	}
	c.o.Say("reading the target")
	gotRows, gotBlobs, err := content(ctx, c.to, c.read)
	if err != nil {
		return Report{}, err
	}
	var marks Digest
	for rec, err := range c.markers.All(ctx, partition, messagePrefix) {
		if err != nil {
			return Report{}, err
		}
		marks.message(rec.Value)
	}
	for _, pair := range []struct {
		what      string
		want, got Sum
	}{{"rows", rows, gotRows}, {"messages", messages, marks.Sum()}, {"blobs", blobs, gotBlobs}} {
		switch {
		case pair.got.Count > pair.want.Count:
			// More than there is to carry: gone from the source since an earlier call, or written by somebody to the target.
			return Report{}, fmt.Errorf("%s: %v in the source, %v in the target: %w, or %w", pair.what, pair.want, pair.got, ErrChanged, ErrOccupied)
		case pair.got != pair.want:
			return Report{}, fmt.Errorf("%w: %s: %v in the source, %v in the target", ErrDiffers, pair.what, pair.want, pair.got)
		}
	}
	return Report{Rows: rows, Messages: messages, Blobs: blobs}, nil
}

func (c *copying) carryMessages(ctx context.Context) (Sum, error) {
	var sum Digest
	seen := map[string]bool{}
	var batch []store.Delivery
	flush := func() error {
		defer func() { batch = batch[:0] }()
		return store.Each(ctx, atATime, batch, func(d store.Delivery) error { return c.carryMessage(ctx, d) })
	}
	err := c.from.Export(ctx, c.o.Queues, func(d store.Delivery) error {
		if seen[d.ID] {
			return nil
		}
		seen[d.ID] = true
		sum.message(c.marker(d))
		_, _ = c.read.Write(d.Body)
		if batch = append(batch, d); len(batch) < 4*atATime {
			return nil
		}
		return flush()
	})
	// What was seen is carried even if not all could be seen: the next call has less to do.
	if err == nil || errors.Is(err, store.ErrOnLease) {
		err = errors.Join(flush(), err)
	}
	if err != nil {
		return Sum{}, fmt.Errorf("carrying messages: %w", err)
	}
	return sum.Sum(), nil
}

func (c *copying) marker(d store.Delivery) marker {
	m := marker{Queue: d.Queue, Body: d.Body}
	if d.Due.After(time.Unix(0, c.rec.Value.Began)) {
		m.Due = d.Due.UnixNano()
	}
	return m
}

func (c *copying) carryMessage(ctx context.Context, d store.Delivery) error {
	want := c.marker(d)
	rec := store.Record[marker]{Key: store.Key{Partition: partition, Sort: messagePrefix + d.ID}, Value: want}
	message := store.Message{Queue: d.Queue, Body: d.Body}
	if want.Due != 0 {
		message.Due = d.Due
	}
	created, err := c.markers.Create(ctx, &rec, store.Effects{Messages: []store.Message{message}})
	if err != nil {
		return err
	}
	if got := rec.Value; !created && (got.Queue != want.Queue || got.Due != want.Due || !bytes.Equal(got.Body, want.Body)) {
		return fmt.Errorf("message %s: %w", d.ID, ErrChanged)
	}
	return nil
}

func (c *copying) carryRows(ctx context.Context) (Sum, error) {
	var sum Digest
	err := eachRow(ctx, c.from, func(page []store.Row) error {
		for _, row := range page {
			sum.row(row)
			_, _ = c.read.Write(row.Value)
		}
		return store.Each(ctx, atATime, page, func(row store.Row) error { return c.carryRow(ctx, row) })
	})
	return sum.Sum(), err
}

func (c *copying) carryRow(ctx context.Context, row store.Row) error {
	row.Version = 0
	_, err := c.to.Commit(ctx, store.Change{Row: row})
	if err == nil {
		return nil
	}
	if !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("writing row %s: %w", row.Key, err)
	}
	there, err := c.to.Get(ctx, row.Key)
	if err != nil {
		return fmt.Errorf("reading row %s: %w", row.Key, err)
	}
	if there.Version != 1 || there.Listing != row.Listing || !bytes.Equal(there.Value, row.Value) {
		return fmt.Errorf("row %s: %w, or %w", row.Key, ErrOccupied, ErrChanged)
	}
	return nil
}

// carryBlob trusts a blob of the right size that is there, for now: its bytes are compared at the end.
func (c *copying) carryBlob(ctx context.Context, id cid.Cid) error {
	size, err := c.from.Has(ctx, id)
	if err != nil {
		return fmt.Errorf("looking for blob %s: %w", id, err)
	}
	there, err := c.to.Has(ctx, id)
	switch {
	case err == nil && there == size:
		return nil
	case err == nil:
		return fmt.Errorf("blob %s of %d bytes instead of %d: %w", id, there, size, ErrOccupied)
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("looking for blob %s: %w", id, err)
	}
	in, err := c.from.Open(ctx, id)
	if err != nil {
		return fmt.Errorf("reading blob %s: %w", id, err)
	}
	defer in.Close()
	if err := c.to.Put(ctx, id, io.TeeReader(in, c.read)); err != nil {
		return fmt.Errorf("writing blob %s: %w", id, err)
	}
	return nil
}

func (c *copying) removeMarkers(ctx context.Context) error {
	for {
		recs, next, err := c.markers.Query(ctx, partition, messagePrefix, "", store.MaxPage)
		if err != nil {
			return err
		}
		err = store.Each(ctx, atATime, recs, func(rec store.Record[marker]) error {
			err := c.markers.Commit(ctx, &rec, store.Effects{Delete: true})
			if errors.Is(err, store.ErrConflict) { // removed by an attempt whose outcome was lost
				return nil
			}
			return err
		})
		if err != nil || next == "" {
			return err
		}
	}
}
