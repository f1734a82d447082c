package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// ErrUnchanged, returned by the decide function of [Table.Update], ends the update without a commit and without an error:
// there was nothing to do, or it had been done before.
var ErrUnchanged = errors.New("unchanged")

// maxDecisions bounds the conflicts of one update. Of n callers that update one row at the same moment one wins each
// round, so it is also how many of them may meet before the last gives up.
const maxDecisions = 128

// Record is one row with its value decoded.
type Record[T any] struct {
	Key     Key
	Version uint64 // 0: there is no such row (yet)
	Value   T
	Listing Listing
}

// Exists reports whether the row is there, as of when the record was read or committed.
func (r Record[T]) Exists() bool { return r.Version != 0 }

// Effects is what a commit causes besides its row. The zero Effects is none.
type Effects struct {
	Messages []Message
	Blobs    []Blob
	Delete   bool // remove the row instead of writing it

	err error // the first message that could not be encoded; the commit returns it
}

// Keep adds a blob to the commit.
func (fx *Effects) Keep(b Blob) { fx.Blobs = append(fx.Blobs, b) }

// Table is typed rows over an engine. All records that it reads have values of type T, encoded as [Encode] says, so keys of different
// types live in different partitions. The zero Table is not usable; a Table may be copied.
type Table[T any] struct {
	rows  Rows
	watch func(was, is T)
}

// NewTable returns the table of values of type T over an engine's rows.
func NewTable[T any](rows Rows) Table[T] { return Table[T]{rows: rows} }

// Watch returns the table with a function that is told of each value that [Table.Create] and [Table.Update] have committed, and of the one before
// (zero if there was none): for logs and measurements. It may run at the same time for several records, and misses a commit that was reported as
// lost. was is a shallow copy made before the decision: what its maps and slices hold may have changed.
func (t Table[T]) Watch(watch func(was, is T)) Table[T] {
	t.watch = watch
	return t
}

func (t Table[T]) committed(was, is T) {
	if t.watch != nil {
		t.watch(was, is)
	}
}

// Get returns the record as of some moment after the call began, or ErrNotFound. With ErrNotFound the record has its key and version 0:
// ready to be filled in and created.
func (t Table[T]) Get(ctx context.Context, key Key) (Record[T], error) {
	row, err := t.rows.Get(ctx, key)
	if err != nil {
		return Record[T]{Key: key}, fmt.Errorf("reading row %s: %w", key, err)
	}
	return t.decode(row)
}

// Query returns a page of the partition's records whose Sort begins with prefix, in order of Sort; see [Rows]. The page
// has at most limit records, and next is empty when there are no more.
func (t Table[T]) Query(ctx context.Context, partition, prefix, cursor string, limit int) (recs []Record[T], next string, err error) {
	page, err := t.rows.Query(ctx, partition, prefix, cursor, limit)
	if err != nil {
		return nil, "", fmt.Errorf("querying %s/%s: %w", partition, prefix, err)
	}
	return t.decodePage(page)
}

// All returns every record of the partition whose Sort begins with prefix, in order of Sort, read a page at a time: rows
// committed meanwhile may be among them. After an error there is nothing more.
func (t Table[T]) All(ctx context.Context, partition, prefix string) iter.Seq2[Record[T], error] {
	return func(yield func(Record[T], error) bool) {
		for cursor := ""; ; {
			recs, next, err := t.Query(ctx, partition, prefix, cursor, MaxPage)
			if err != nil {
				yield(Record[T]{}, err)
				return
			}
			for _, rec := range recs {
				if !yield(rec, nil) {
					return
				}
			}
			if cursor = next; cursor == "" {
				return
			}
		}
	}
}

// Scan returns a page of the records listed in an index, as of some time ago: missing or stale ones are possible. Its
// records are hints; read the one you mean to act on.
func (t Table[T]) Scan(ctx context.Context, index, from, cursor string, limit int) (recs []Record[T], next string, err error) {
	page, err := t.rows.Scan(ctx, index, from, cursor, limit)
	if err != nil {
		return nil, "", fmt.Errorf("scanning index %s: %w", index, err)
	}
	return t.decodePage(page)
}

// Commit writes the record and its effects if the row is still at the record's version (0: does not exist), all or nothing,
// and moves the record to the new version. ErrConflict means that nothing was written: read again. After any other error
// the outcome is unknown. [Effects.Delete] removes the row; the record's version is then 0.
func (t Table[T]) Commit(ctx context.Context, rec *Record[T], fx Effects) error {
	if fx.err != nil {
		return fmt.Errorf("committing row %s: %w", rec.Key, fx.err)
	}
	change := Change{
		Row:      Row{Key: rec.Key, Version: rec.Version, Listing: rec.Listing},
		Delete:   fx.Delete,
		Messages: fx.Messages,
		Blobs:    fx.Blobs,
	}
	if !fx.Delete {
		value, err := Encode(rec.Value)
		if err != nil {
			return fmt.Errorf("committing row %s: %w", rec.Key, err)
		}
		// A value that cannot be read back, an undefined CID in a field that should be omitted for instance, must not become a row
		// that stops every later reader.
		var back T
		if err := Decode(value, &back); err != nil {
			return fmt.Errorf("committing row %s: value cannot be read back: %w", rec.Key, err)
		}
		change.Row.Value = value
	}
	version, err := t.rows.Commit(ctx, change)
	if err != nil {
		return fmt.Errorf("committing row %s: %w", rec.Key, err)
	}
	rec.Version = version
	return nil
}

// Create commits a record that should not exist yet and reports whether this call created it. If the row exists, nothing
// is written and the record becomes what is there: the same creation repeated, or somebody else's.
func (t Table[T]) Create(ctx context.Context, rec *Record[T], fx Effects) (created bool, err error) {
	rec.Version = 0
	// The row may be deleted between the refusal and the reading; then it can be created after all.
	for range maxDecisions {
		err = t.Commit(ctx, rec, fx)
		if err == nil {
			var none T
			t.committed(none, rec.Value)
		}
		if !errors.Is(err, ErrConflict) {
			return err == nil, err
		}
		there, readErr := t.Get(ctx, rec.Key)
		if errors.Is(readErr, ErrNotFound) {
			continue
		}
		if readErr != nil {
			return false, readErr
		}
		*rec = there
		return false, nil
	}
	return false, err
}

// Update reads the record, lets decide change it and add effects, and commits; after a conflict it does so again, up to a bound. The
// record passed to decide is empty but for its key, and Exists reports false, if there is no such row: committing creates it.
//
// decide may run several times and must have no effects of its own. An earlier attempt, of this call too, may have
// been committed although it was reported as lost: where decide finds that what it wants is already there, it returns [ErrUnchanged], and
// Update returns the record as it was read. Any other error of decide ends the update and is returned as it is.
func (t Table[T]) Update(ctx context.Context, key Key, decide func(rec *Record[T], fx *Effects) error) (Record[T], error) {
	return t.update(ctx, key, nil, decide)
}

// UpdateFrom is Update for a record that was read a moment ago: the first decision is made on it, and the row is only read if it has changed
// since. Where a decision to do nothing depends on the row as it is now, use Update. What decide finds out before it returns [ErrUnchanged] must
// not have changed what the record's maps and slices hold.
func (t Table[T]) UpdateFrom(ctx context.Context, from Record[T], decide func(rec *Record[T], fx *Effects) error) (Record[T], error) {
	return t.update(ctx, from.Key, &from, decide)
}

func (t Table[T]) update(ctx context.Context, key Key, from *Record[T], decide func(rec *Record[T], fx *Effects) error) (Record[T], error) {
	var err error
	for range maxDecisions {
		var read func() (Record[T], error)
		if from != nil {
			known := *from
			read = func() (Record[T], error) { return known, nil }
			from = nil
		} else {
			row, getErr := t.rows.Get(ctx, key)
			if getErr != nil && !errors.Is(getErr, ErrNotFound) {
				return Record[T]{Key: key}, fmt.Errorf("reading row %s: %w", key, getErr)
			}
			read = func() (Record[T], error) {
				if getErr != nil {
					return Record[T]{Key: key}, nil
				}
				return t.decode(row)
			}
		}
		rec, decodeErr := read()
		if decodeErr != nil {
			return rec, decodeErr
		}
		var fx Effects
		was := rec.Value
		err = decide(&rec, &fx)
		if errors.Is(err, ErrUnchanged) {
			return read() // decide may have changed rec before it found out
		}
		if err != nil {
			return rec, err
		}
		rec.Key = key
		err = t.Commit(ctx, &rec, fx)
		if err == nil {
			t.committed(was, rec.Value)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
	return Record[T]{Key: key}, err
}

func (t Table[T]) decode(row Row) (Record[T], error) {
	rec := Record[T]{Key: row.Key, Version: row.Version, Listing: row.Listing}
	if err := Decode(row.Value, &rec.Value); err != nil {
		return Record[T]{Key: row.Key}, fmt.Errorf("row %s: %w", row.Key, err)
	}
	return rec, nil
}

func (t Table[T]) decodePage(page Page) ([]Record[T], string, error) {
	recs := make([]Record[T], len(page.Rows))
	for i, row := range page.Rows {
		rec, err := t.decode(row)
		if err != nil {
			return nil, "", err
		}
		recs[i] = rec
	}
	return recs, page.Next, nil
}

// Queue is the typed name of one kind of work: messages whose bodies are values of type M.
type Queue[M any] struct {
	Name string
}

// NewQueue returns the queue of that name.
func NewQueue[M any](name string) Queue[M] { return Queue[M]{Name: name} }

// Send adds a message to what a commit causes. If m cannot be encoded the commit returns the error.
func (q Queue[M]) Send(fx *Effects, m M) { q.SendAt(fx, time.Time{}, m) }

// SendAt is Send for a message that is not delivered before the due time.
func (q Queue[M]) SendAt(fx *Effects, due time.Time, m M) {
	body, err := Encode(m)
	if err == nil {
		err = Decode(body, new(M)) // as for rows: what cannot be read back is not written
	}
	if err != nil && fx.err == nil {
		fx.err = fmt.Errorf("message to %s: %w", q.Name, err)
	}
	fx.Messages = append(fx.Messages, Message{Queue: q.Name, Body: body, Due: due})
}

// Decode reads a message's body.
func (q Queue[M]) Decode(body []byte) (M, error) {
	var m M
	if err := Decode(body, &m); err != nil {
		return m, fmt.Errorf("message from %s: %w", q.Name, err)
	}
	return m, nil
}

// Handler returns the handler that decodes a message and passes it to handle.
func (q Queue[M]) Handler(handle func(ctx context.Context, m M) error) Handler {
	return func(ctx context.Context, d Delivery) error {
		m, err := q.Decode(d.Body)
		if err != nil {
			return err
		}
		return handle(ctx, m)
	}
}
