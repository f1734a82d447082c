package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// QueueName is the queue of dead letters that are tried again, and the name under which they stand.
const QueueName = "ingest"

// DefaultAttempts is how often a message comes before what is wrong with it is a dead letter. With the backoff of a store.Consumer these take nine hours.
const DefaultAttempts = store.DefaultAttempts

// Object is an object as it was when it was looked at.
type Object struct {
	ETag, Version string
	Length        int64 // bytes
}

// ErrGone: there is no such object (any more).
var ErrGone = errors.New("the object is not there any more")

// Bucket is a bucket whose events are followed. Safe for concurrent use.
type Bucket interface {
	// Covers reports whether the storefront has anything to do with a key.
	Covers(key string) bool
	// ContentOf returns the content that a key names, if the storefront finds it there by that name; undefined else.
	ContentOf(key string) cid.Cid
	// Look looks at an object. The error wraps ErrGone.
	Look(ctx context.Context, key string) (Object, error)
	// Open reads an object, and fails while that is read if it is another one than was looked at.
	Open(ctx context.Context, key string, o Object) (io.ReadCloser, error)
}

// Custody is where the storefront finds content.
type Custody interface {
	// Has reports whether it finds the content.
	Has(ctx context.Context, content cid.Cid) (bool, error)
	// Put stores content, and fails unless r yields just that.
	Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) error
}

// Deps is what an ingester is made of. Compute, MaxBytes, Copy, Attempts and Workers are optional.
type Deps struct {
	Rows store.Rows
	// Bucket returns a bucket whose events are followed.
	Bucket func(name string) (Bucket, bool)
	// Custody is the storefront's. Copy says that objects that it does not find, as their keys do not name their content, are copied there.
	Custody Custody
	Copy    bool
	// Compute returns the piece of content in custody, as a compute provider finds it; nil: bytes are hashed here. Those that are not in custody
	// by the name of their content always are.
	Compute func(ctx context.Context, content cid.Cid, length int64) (piece.Link, error)
	// Offer offers a piece to the storefront, in its own name. The task is the same each time.
	Offer func(ctx context.Context, content cid.Cid, p piece.Link) (task cid.Cid, err error)
	// MaxBytes is the longest content whose piece is accepted; 0: any.
	MaxBytes int64
	// Attempts is how often a message may come; 0: DefaultAttempts.
	Attempts int
	// Workers is how many goroutines hash one object; 0: as many as piece.HashReader thinks right.
	Workers int
	Now     func() time.Time
	Log     *slog.Logger
}

// Ingester handles messages of events. Safe for concurrent use.
type Ingester struct {
	Deps
	objects store.Table[Ingested]
}

// Ingested is what is known of an object, under `ingest/{SHA-256 of bucket and key}`.
type Ingested struct {
	Bucket string `cbor:"b"`
	Key    string `cbor:"k"`
	// What was offered; nothing yet if Task is not defined.
	ETag    string     `cbor:"e,omitzero"`
	Version string     `cbor:"v,omitzero"`
	Length  int64      `cbor:"l,omitzero"`
	Content cid.Cid    `cbor:"c,omitzero"`
	Piece   piece.Link `cbor:"p,omitzero"`
	Task    cid.Cid    `cbor:"t,omitzero"`
}

func objectKey(bucket, key string) store.Key {
	sum := sha256.Sum256([]byte(bucket + "\x00" + key))
	return store.Key{Partition: "ingest/" + hex.EncodeToString(sum[:])}
}

// again is the body of a dead letter: the row of an object, or the beginning of a message that was not understood.
type again struct {
	Object store.Key `cbor:"o,omitzero"`
	Raw    string    `cbor:"r,omitzero"`
}

var againQueue = store.NewQueue[again](QueueName)

// maxRaw is how much of a message that was not understood is kept.
const maxRaw = 900 // bytes; with what is around it less than store.MaxMessageBody

// New returns an ingester.
func New(d Deps) (*Ingester, error) {
	if d.Rows == nil || d.Bucket == nil || d.Custody == nil || d.Offer == nil || d.Now == nil || d.Log == nil {
		return nil, errors.New("ingest: rows, buckets, custody, offer, clock and log are required")
	}
	if d.Attempts == 0 {
		d.Attempts = DefaultAttempts
	}
	return &Ingester{d, store.NewTable[Ingested](d.Rows)}, nil
}

// Methods returns nothing: an ingester executes no capability.
func (i *Ingester) Methods() map[string]capabilities.Method { return nil }

// Handlers handles the dead letters that an operator retries. Messages of events are passed to Handle by whoever receives them.
func (i *Ingester) Handlers() map[string]store.Handler {
	return map[string]store.Handler{QueueName: i.Handle}
}

// An Unfit event is one that no repetition makes fit, until an operator changes something. It becomes a dead letter at once.
type Unfit struct{ Name, Message string }

func (u *Unfit) Error() string { return u.Name + ": " + u.Message }

// Names of what makes an event unfit. The storefront's refusals have the names that they have there.
const (
	ForeignBucket   = "ForeignBucket"
	ContentMismatch = "ContentMismatch"
	NotInCustody    = "NotInCustody"
	Malformed       = "MalformedEvent"
)

// permanent are the refusals of a storefront that are about the content, or about who offers, and not about the time.
var permanent = []string{capabilities.PieceTooLarge, capabilities.UnsupportedContent, capabilities.Unauthorized}

// Handle handles a message: of events, or of one object that is tried again. It returns nil when each of them is done, and the message can be deleted.
func (i *Ingester) Handle(ctx context.Context, d store.Delivery) error {
	list, err := i.events(ctx, d.Body)
	if errors.Is(err, ErrMalformed) {
		return i.bury(ctx, d, 0, again{Raw: string(d.Body[:min(len(d.Body), maxRaw)])}, &Unfit{Malformed, err.Error()})
	}
	if err != nil {
		return err
	}
	var failed error
	for n, e := range list {
		err := i.guarded(ctx, e)
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s in bucket %s: %w", short(e.Key), e.Bucket, err)
		var unfit *Unfit
		if ctx.Err() != nil || !errors.As(err, &unfit) && d.Attempt < i.Attempts {
			failed = errors.Join(failed, err)
			continue
		}
		body := again{Object: objectKey(e.Bucket, e.Key)}
		// The letter names the row, so that comes first.
		rec := store.Record[Ingested]{Key: body.Object, Value: Ingested{Bucket: e.Bucket, Key: e.Key}}
		if _, kept := i.objects.Create(ctx, &rec, store.Effects{}); kept != nil {
			failed = errors.Join(failed, kept)
			continue
		}
		failed = errors.Join(failed, i.bury(ctx, d, n, body, err))
	}
	return failed
}

// events returns what a message is about.
func (i *Ingester) events(ctx context.Context, body []byte) ([]Event, error) {
	if len(body) > 0 && body[0]>>5 != 5 { // a CBOR map begins so, and no JSON
		return Decode(body)
	}
	m, err := againQueue.Decode(body)
	switch {
	case err != nil:
		return nil, malformed("%v", err)
	case m.Raw != "":
		return Decode([]byte(m.Raw)) // it may be understood by now
	}
	rec, err := i.objects.Get(ctx, m.Object)
	if err != nil {
		return nil, err
	}
	return []Event{{Kind: Created, Name: "retried", Bucket: rec.Value.Bucket, Key: rec.Value.Key}}, nil
}

// bury writes a dead letter, the same each time, and the message is done with.
func (i *Ingester) bury(ctx context.Context, d store.Delivery, n int, what again, cause error) error {
	body, err := store.Encode(what)
	if err != nil {
		return err
	}
	created, err := store.WriteDead(ctx, i.Rows, fmt.Sprintf("%s.%d", d.ID, n), store.DeadLetter{
		Queue: QueueName, Body: body, Error: cause.Error(), Attempts: d.Attempt, Enqueued: d.Enqueued, Died: i.Now().UTC(),
	})
	if created {
		i.Log.Error("an event of a bucket cannot be followed: it is a dead letter now", "queue", QueueName, "message", d.ID, "attempt", d.Attempt, "err", cause)
	}
	return err
}

// guarded is event; whatever an object does to it, the message ends as others do.
func (i *Ingester) guarded(ctx context.Context, e Event) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return i.event(ctx, e)
}

// event does what follows from one event.
func (i *Ingester) event(ctx context.Context, e Event) error {
	log := i.Log.With("bucket", e.Bucket, "key", e.Key, "event", e.Name)
	switch e.Kind {
	case Test:
		log.Info("the events of a bucket come")
		return nil
	case Removed:
		log.Info("an object was removed: an offer is not taken back by that")
		return nil
	case Other:
		log.Debug("an event of a bucket that nothing follows from")
		return nil
	}
	b, ok := i.Bucket(e.Bucket)
	if !ok {
		return &Unfit{ForeignBucket, "its events are not followed here: add it to storefront.buckets and storefront.ingest.buckets, or stop sending them"}
	}
	if !b.Covers(e.Key) {
		log.Debug("an object that the storefront has nothing to do with")
		return nil
	}
	o, err := b.Look(ctx, e.Key)
	if errors.Is(err, ErrGone) {
		log.Info("an object is gone already")
		return nil
	}
	if err != nil {
		return err
	}
	if o.Length == 0 {
		log.Info("an object is empty: the smallest piece holds one byte")
		return nil
	}
	rec, err := i.objects.Get(ctx, objectKey(e.Bucket, e.Key))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if was := rec.Value; was.Task.Defined() && was.ETag == o.ETag && was.Version == o.Version && was.Length == o.Length {
		return nil
	}
	if i.MaxBytes > 0 && o.Length > i.MaxBytes {
		return &Unfit{capabilities.PieceTooLarge, fmt.Sprintf("it has %d bytes, at most %d are accepted", o.Length, i.MaxBytes)}
	}
	content, link, err := i.find(ctx, b, e, o)
	if err != nil {
		return err
	}
	task, err := i.Offer(ctx, content, link)
	var refusal *capabilities.Failure
	if errors.As(err, &refusal) && slices.Contains(permanent, refusal.Name) {
		return &Unfit{refusal.Name, refusal.Message}
	}
	if err != nil {
		return fmt.Errorf("offering it: %w", err)
	}
	_, err = i.objects.Update(ctx, objectKey(e.Bucket, e.Key), func(rec *store.Record[Ingested], _ *store.Effects) error {
		rec.Value = Ingested{e.Bucket, e.Key, o.ETag, o.Version, o.Length, content, link, task}
		return nil
	})
	if err != nil {
		return err
	}
	log.Info("an object is offered", "content", content, "piece", link, "task", task)
	return nil
}

// find returns what is in an object, once custody finds it there.
func (i *Ingester) find(ctx context.Context, b Bucket, e Event, o Object) (cid.Cid, piece.Link, error) {
	named := b.ContentOf(e.Key)
	asked := false
	if named.Defined() && i.Compute != nil {
		var err error
		if asked, err = i.Custody.Has(ctx, named); err != nil {
			return named, piece.Link{}, err
		}
	}
	if asked {
		link, err := i.Compute(ctx, named, o.Length)
		if err != nil {
			err = fmt.Errorf("asking a compute provider: %w", err)
		}
		return named, link, err
	}
	body, err := b.Open(ctx, e.Key, o)
	if err != nil {
		return cid.Undef, piece.Link{}, err
	}
	defer body.Close()
	var options []piece.Option
	if i.Workers > 0 {
		options = append(options, piece.WithWorkers(i.Workers))
	}
	found, err := piece.HashReader(ctx, body, options...)
	if err != nil {
		return cid.Undef, piece.Link{}, err
	}
	if found.Size != o.Length {
		return cid.Undef, piece.Link{}, fmt.Errorf("%d bytes came, not %d", found.Size, o.Length)
	}
	hash, err := multihash.Encode(found.SHA256[:], multihash.SHA2_256)
	if err != nil {
		return cid.Undef, piece.Link{}, err
	}
	if named.Defined() {
		if string(named.Hash()) != string(hash) {
			return named, found.Piece, &Unfit{ContentMismatch, fmt.Sprintf("its key names %s, its bytes are %s", named, cid.NewCidV1(cid.Raw, hash))}
		}
		return named, found.Piece, nil
	}
	content := cid.NewCidV1(cid.Raw, hash)
	return content, found.Piece, i.keep(ctx, b, e, o, content)
}

// keep sees to it that custody finds content whose key does not name it.
func (i *Ingester) keep(ctx context.Context, b Bucket, e Event, o Object, content cid.Cid) error {
	has, err := i.Custody.Has(ctx, content)
	if err != nil || has {
		return err
	}
	if !i.Copy {
		return &Unfit{NotInCustody, "its key does not name its content, so the storefront cannot find it: name it so, or set storefront.ingest.copy"}
	}
	body, err := b.Open(ctx, e.Key, o)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := i.Custody.Put(ctx, content, body, o.Length); err != nil {
		return fmt.Errorf("copying it into custody: %w", err)
	}
	return nil
}
