// Package store is the state of a role: rows, messages and blobs, over an engine.
//
// Everything durable is built from one operation, the weakest one that every engine has natively:
//
//	Commit: write one row if its version is still the one that was read, together with
//	the messages and the small blobs that this change causes. All of it or none of it.
//
// SQLite does it in a transaction that many independent commits share, DynamoDB in one conditional update. Because a commit
// covers one row only, every piece of logic above it is written as: read, decide, commit, and on [ErrConflict] read again.
//
// A [Driver] is what an engine implements. [Table], [Queue] and the blob helpers are typed views of it for roles.
package store

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ipfs/go-cid"
)

// Errors that callers switch on. Every other error of an engine is a fault: the outcome of the call is then unknown.
var (
	// ErrNotFound: the row, blob or message does not exist.
	ErrNotFound = errors.New("not found")

	// ErrConflict: the row is not at the version that the commit expected; nothing was written. The caller's own earlier attempt
	// may be what changed it (a commit whose outcome was lost), so re-read and look for one's own effect before giving up.
	ErrConflict = errors.New("row changed since it was read")

	// ErrLeaseLost: the message was acknowledged, or its lease ended and it was received by somebody else.
	ErrLeaseLost = errors.New("message lease lost")

	// ErrTooLarge: a value, message or batch is over the limits below. Nothing was written.
	ErrTooLarge = errors.New("over the engine's size limit")
)

// Limits of a commit that hold on every engine.
const (
	MaxValue       = 256 << 10 // bytes of one row's value
	MaxMessageBody = 1 << 10   // bytes: a message names things, it does not carry them
	MaxMessages    = 16        // messages of one commit
	MaxInlineBlob  = 32 << 10  // bytes of a blob that may ride in a commit; larger ones are Put before the row that names them
	MaxPage        = 1000      // rows of a page
)

// Key names a row. Rows of one partition are ordered by the bytes of Sort and can be queried together; Sort may be empty. Both are UTF-8,
// together at most MaxKey bytes.
type Key struct {
	Partition string
	Sort      string
}

// Listing places a row in a sparse index: Scan(Index) returns the rows of the index, ordered by Sort.
// Index and Sort are free text, UTF-8, together at most MaxListing bytes. The zero Listing lists the row nowhere.
type Listing struct {
	Index string
	Sort  string
}

// Row is one versioned record.
type Row struct {
	Key
	Version uint64 // 1 for a row just created, then one more with each commit; 0 only in a commit: "must not exist"
	Value   []byte
	Listing Listing
}

// Message is work that a commit causes. It becomes receivable only with the commit, at Due or at once, and is delivered at
// least once, in no particular order.
type Message struct {
	Queue string    // which kind of work; one consumer method per queue
	Body  []byte    // at most MaxMessageBody bytes
	Due   time.Time // not before this time; zero means now
}

// Blob is an immutable content-addressed byte string.
type Blob struct {
	CID   cid.Cid
	Bytes []byte
}

// Change is what one commit writes.
type Change struct {
	// Row is the row to write. Row.Version is the version that was read, 0 if the row must not exist yet.
	Row Row
	// Delete removes the row, at the version that was read, instead of writing it; Row.Value and Row.Listing are then ignored. A
	// row created again under the same key begins at version 1 again: whoever still holds what was read before the deletion could
	// take the new row for the old one, so keys whose rows are deleted should not be used for something else.
	Delete bool
	// Messages and Blobs become durable with the row, or not at all; at most MaxMessages and MaxBlobs of them.
	Messages []Message
	Blobs    []Blob
}

// Page is one page of rows. Next is empty when there are no more.
type Page struct {
	Rows []Row
	Next string
}

// Rows is the versioned state.
type Rows interface {
	// Get returns the row as of some moment after the call began (strongly consistent), or ErrNotFound.
	Get(ctx context.Context, key Key) (Row, error)

	// Query returns rows of a partition whose Sort begins with prefix, in order of Sort, after cursor (a previous page's Next;
	// empty to begin), at most limit (at most MaxPage; 0 means that). A page may hold fewer and have a Next nevertheless, when values are
	// large; the last page may be empty. Strongly consistent.
	Query(ctx context.Context, partition, prefix, cursor string, limit int) (Page, error)

	// Scan returns rows listed in an index, in order of Listing.Sort (then of key), after cursor. With an empty cursor it
	// begins at the first entry whose Listing.Sort is at least from. It is eventually consistent: a row may be
	// missing, or stale, for a while. Decide nothing by it alone; read the row before acting on it.
	Scan(ctx context.Context, index, from, cursor string, limit int) (Page, error)

	// Commit writes one change and returns the row's new version (0 after a deletion) once all of it is durable. Commits to equal keys serialise.
	// ErrConflict means that nothing was written; another error means that the outcome is unknown.
	Commit(ctx context.Context, c Change) (version uint64, err error)

	// Walk returns every row by cursor, in an order of the engine's choice. For administration only.
	Walk(ctx context.Context, cursor string, limit int) (Page, error)
}

// Delivery is a received message under lease.
type Delivery struct {
	Message
	ID       string // stable over redeliveries
	Attempt  int    // 1 at the first delivery
	Enqueued time.Time
	Lease    string // token: valid until the lease ends
}

// Messages is the work that commits have caused.
type Messages interface {
	// Receive leases up to max messages of a queue that are due. None is not an error; Receive does not wait.
	Receive(ctx context.Context, queue string, max int, lease time.Duration) ([]Delivery, error)

	// Ack removes a message for good. ErrLeaseLost if the lease is no longer ours.
	Ack(ctx context.Context, d Delivery) error

	// Extend prolongs the lease to now+lease.
	Extend(ctx context.Context, d Delivery, lease time.Duration) error

	// Retry gives the message back, to be delivered again after the delay; the next delivery's Attempt is one more.
	Retry(ctx context.Context, d Delivery, after time.Duration) error
}

// Blobs holds immutable content-addressed bytes. A blob is written before the row that names it; one that no row names is harmless.
type Blobs interface {
	// Put stores what r yields under c and returns once it is durable. It is the caller's business that c is the CID of
	// these bytes. Putting a blob that exists is a success.
	Put(ctx context.Context, c cid.Cid, r io.Reader) error

	// Open returns a reader over the blob's bytes, or ErrNotFound.
	Open(ctx context.Context, c cid.Cid) (BlobReader, error)

	// Has returns the size in bytes, or ErrNotFound.
	Has(ctx context.Context, c cid.Cid) (size int64, err error)

	// Delete removes a blob; one that does not exist is a success.
	Delete(ctx context.Context, c cid.Cid) error

	// List returns CIDs by cursor, in an order of the engine's choice. For administration only.
	List(ctx context.Context, cursor string, limit int) (cids []cid.Cid, next string, err error)
}

// BlobReader reads one blob, whole or by range.
type BlobReader interface {
	io.Reader
	io.ReaderAt
	io.Closer
	Size() int64
}

// Driver is one engine opened for one role. All methods are safe for concurrent use.
type Driver interface {
	Rows
	Messages
	Blobs
	// Close waits for commits under way and releases the engine.
	Close() error
}
