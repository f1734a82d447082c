package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
)

// maxResumes is how often in a row a download is taken up again without getting any further.
const maxResumes = 3

// Open opens the content and returns its length. It is read with one request from where a Seek left off to the end;
// a connection that breaks is taken up again where it broke, as long as the object is the same. It fails as Stat does;
// reading fails with io.ErrUnexpectedEOF, source.ErrSlow and others.
func (b *Bucket) Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error) {
	o, err := b.find(ctx, content)
	if err != nil {
		return nil, 0, err
	}
	return &reader{b: b, ctx: ctx, object: o}, o.length, nil
}

// reader reads one object. One goroutine at a time uses it.
type reader struct {
	b      *Bucket
	ctx    context.Context
	object object
	off    int64 // of the next Read
	body   io.ReadCloser
	at     int64 // offset that body has come to
	cancel context.CancelFunc
	stall  *time.Timer
	stuck  atomic.Bool // the timer has ended the request
	fails  int         // since the last progress
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.object.length {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := r.read(p)
		r.off += int64(n)
		if n > 0 {
			r.fails = 0
			return n, nil // an error comes again, or is overcome, with the next call
		}
		if err == nil {
			continue
		}
		r.drop()
		if r.fails++; r.fails > maxResumes || !transient(err) || r.ctx.Err() != nil {
			return 0, fmt.Errorf("reading %s in bucket %s at byte %d: %w", r.object.key, r.b.cfg.Bucket, r.off, err)
		}
	}
}

// read makes one attempt to read something from off on.
func (r *reader) read(p []byte) (int, error) {
	if r.body != nil && r.at != r.off {
		r.drop()
	}
	if r.body == nil {
		if err := r.request(); err != nil {
			return 0, err
		}
	}
	if rest := r.object.length - r.off; int64(len(p)) > rest {
		p = p[:rest]
	}
	r.stall.Reset(r.b.cfg.Stall)
	n, err := r.body.Read(p)
	r.stall.Stop()
	r.at += int64(n)
	switch {
	case n > 0:
	case r.stuck.Load():
		return 0, fmt.Errorf("nothing came for %s: %w", r.b.cfg.Stall, source.ErrSlow)
	case err == io.EOF:
		return 0, io.ErrUnexpectedEOF
	case err != nil:
		return 0, explain(err)
	}
	return n, nil
}

// request asks for what is left from off on.
func (r *reader) request() error {
	ctx, cancel := context.WithCancel(r.ctx)
	r.stuck.Store(false)
	r.cancel = cancel
	r.stall = time.AfterFunc(r.b.cfg.Stall, func() { r.stuck.Store(true); cancel() })
	in := &s3.GetObjectInput{Bucket: &r.b.cfg.Bucket, Key: &r.object.key}
	if r.off > 0 {
		byteRange := fmt.Sprintf("bytes=%d-", r.off)
		in.Range = &byteRange
	}
	if r.object.version != "" {
		in.VersionId = &r.object.version
	}
	if r.object.etag != "" {
		in.IfMatch = &r.object.etag
	}
	out, err := r.b.client.GetObject(ctx, in)
	r.stall.Stop()
	if err != nil {
		cancel()
		if r.stuck.Load() {
			return fmt.Errorf("no answer for %s: %w", r.b.cfg.Stall, source.ErrSlow)
		}
		return explain(err)
	}
	r.body, r.at = out.Body, r.off
	// Counted before a byte of it is read.
	if out.ContentLength == nil || *out.ContentLength != r.object.length-r.off {
		return fmt.Errorf("%w: it has another length than was stated", errExists)
	}
	return nil
}

// transient reports whether another request may do better.
func transient(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.status >= 500 || status.status == 429
	}
	return !errors.Is(err, errExists) && !errors.Is(err, source.ErrNoContent)
}

// drop ends the request under way.
func (r *reader) drop() {
	if r.cancel == nil {
		return
	}
	r.stall.Stop()
	r.cancel()
	if r.body != nil {
		r.body.Close()
	}
	r.body, r.cancel = nil, nil
}

// Seek sets the offset of the next Read, as io.Seeker has it. It asks for nothing yet.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.object.length
	default:
		return 0, fmt.Errorf("seeking from %d", whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking to negative offset %d", offset)
	}
	r.off = offset
	return offset, nil
}

// Close ends the request under way, if there is one.
func (r *reader) Close() error {
	r.drop()
	return nil
}
