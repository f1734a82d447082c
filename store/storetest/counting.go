package storetest

import (
	"context"
	"io"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Used is one call of an engine that was made.
type Used struct {
	Method string // of [store.Driver]
	// Step is what the call was made for: see [WithStep].
	Step string
	// Partition is of the rows read, Index of those scanned, Queue of messages; Commit has its change.
	Partition, Index, Queue string
	Change                  store.Change
	// Items is how many rows or messages were returned, Bytes their size: of values, bodies, or of the blob that was put or opened.
	Items, Bytes int
	Err          error
}

type stepKey struct{}

// WithStep marks the calls made with a context by what they are made for: a message's queue, an ability.
func WithStep(ctx context.Context, step string) context.Context {
	return context.WithValue(ctx, stepKey{}, step)
}

// StepOf returns what WithStep said, empty if nothing did.
func StepOf(ctx context.Context) string {
	step, _ := ctx.Value(stepKey{}).(string)
	return step
}

// Counting is an engine that tells of its calls.
type Counting struct {
	Driver store.Driver
	Count  func(Used) // is told of each call when it is over
}

var _ store.Driver = (*Counting)(nil)

func (c *Counting) used(ctx context.Context, u Used) {
	u.Step = StepOf(ctx)
	c.Count(u)
}

func page(u Used, p store.Page, err error) Used {
	u.Items, u.Err = len(p.Rows), err
	for _, r := range p.Rows {
		u.Bytes += len(r.Value)
	}
	return u
}

// Get implements [store.Rows].
func (c *Counting) Get(ctx context.Context, key store.Key) (store.Row, error) {
	row, err := c.Driver.Get(ctx, key)
	u := Used{Method: "Get", Partition: key.Partition, Bytes: len(row.Value), Err: err}
	if err == nil {
		u.Items = 1
	}
	c.used(ctx, u)
	return row, err
}

// Query implements [store.Rows].
func (c *Counting) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	p, err := c.Driver.Query(ctx, partition, prefix, cursor, limit)
	c.used(ctx, page(Used{Method: "Query", Partition: partition}, p, err))
	return p, err
}

// Scan implements [store.Rows].
func (c *Counting) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	p, err := c.Driver.Scan(ctx, index, from, cursor, limit)
	c.used(ctx, page(Used{Method: "Scan", Index: index}, p, err))
	return p, err
}

// Walk implements [store.Rows].
func (c *Counting) Walk(ctx context.Context, cursor string, limit int) (store.Page, error) {
	p, err := c.Driver.Walk(ctx, cursor, limit)
	c.used(ctx, page(Used{Method: "Walk"}, p, err))
	return p, err
}

// Commit implements [store.Rows].
func (c *Counting) Commit(ctx context.Context, change store.Change) (uint64, error) {
	version, err := c.Driver.Commit(ctx, change)
	c.used(ctx, Used{Method: "Commit", Partition: change.Row.Partition, Change: change, Err: err})
	return version, err
}

// Receive implements [store.Messages].
func (c *Counting) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	ds, err := c.Driver.Receive(ctx, queue, limit, lease)
	u := Used{Method: "Receive", Queue: queue, Items: len(ds), Err: err}
	for _, d := range ds {
		u.Bytes += len(d.Body)
	}
	c.used(ctx, u)
	return ds, err
}

// Ack implements [store.Messages].
func (c *Counting) Ack(ctx context.Context, d store.Delivery) error {
	err := c.Driver.Ack(ctx, d)
	c.used(ctx, Used{Method: "Ack", Queue: d.Queue, Err: err})
	return err
}

// Extend implements [store.Messages].
func (c *Counting) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	err := c.Driver.Extend(ctx, d, lease)
	c.used(ctx, Used{Method: "Extend", Queue: d.Queue, Err: err})
	return err
}

// Retry implements [store.Messages].
func (c *Counting) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	err := c.Driver.Retry(ctx, d, after)
	c.used(ctx, Used{Method: "Retry", Queue: d.Queue, Err: err})
	return err
}

// Put implements [store.Blobs].
func (c *Counting) Put(ctx context.Context, b cid.Cid, r io.Reader) error {
	counted := &countedReader{Reader: r}
	err := c.Driver.Put(ctx, b, counted)
	c.used(ctx, Used{Method: "Put", Bytes: counted.n, Err: err})
	return err
}

type countedReader struct {
	io.Reader
	n int
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += n
	return n, err
}

// Open implements [store.Blobs]. The blob counts whole, however much of it is read.
func (c *Counting) Open(ctx context.Context, b cid.Cid) (store.BlobReader, error) {
	r, err := c.Driver.Open(ctx, b)
	u := Used{Method: "Open", Err: err}
	if err == nil {
		u.Bytes = int(r.Size())
	}
	c.used(ctx, u)
	return r, err
}

// Has implements [store.Blobs].
func (c *Counting) Has(ctx context.Context, b cid.Cid) (int64, error) {
	n, err := c.Driver.Has(ctx, b)
	c.used(ctx, Used{Method: "Has", Err: err})
	return n, err
}

// Delete implements [store.Blobs].
func (c *Counting) Delete(ctx context.Context, b cid.Cid) error {
	err := c.Driver.Delete(ctx, b)
	c.used(ctx, Used{Method: "Delete", Err: err})
	return err
}

// List implements [store.Blobs].
func (c *Counting) List(ctx context.Context, cursor string, limit int) ([]cid.Cid, string, error) {
	cids, next, err := c.Driver.List(ctx, cursor, limit)
	c.used(ctx, Used{Method: "List", Items: len(cids), Err: err})
	return cids, next, err
}

// Close closes the engine.
func (c *Counting) Close() error { return c.Driver.Close() }
