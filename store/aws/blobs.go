package aws

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

const (
	maxItemBlob = 8 << 10 // bytes up to which a blob is an item; a larger one is an object
	itemBatch   = 25      // items of a request, at most
	partSize    = 8 << 20 // bytes of a part; a blob of at most one is put by one request
	maxParts    = 10_000
	headSize    = 64 << 10 // bytes that opening an object reads
	maxResumes  = 5        // of one reading that breaks off
	putParallel = 8        // objects of a commit at a time
)

// putBlobsOf writes the blobs of a change before its row. It looks at the row first: a change that is refused should leave nothing.
func (e *Engine) putBlobsOf(ctx context.Context, c store.Change) error {
	it, err := e.getItem(ctx, c.Row.Key, attrVersion)
	if err != nil {
		return err
	}
	if uint64(numberOf(it, attrVersion)) != c.Row.Version {
		return store.ErrConflict
	}
	seen := map[cid.Cid]bool{}
	var small []types.WriteRequest
	var large []store.Blob
	for _, b := range c.Blobs {
		switch {
		case seen[b.CID]:
			continue
		case len(b.Bytes) <= maxItemBlob:
			small = append(small, types.WriteRequest{PutRequest: &types.PutRequest{Item: blobItem(b.CID, b.Bytes)}})
		default:
			large = append(large, b)
		}
		seen[b.CID] = true
	}
	if err := e.putItems(ctx, small); err != nil {
		return err
	}
	return store.Each(ctx, e.parallel(putParallel), large, func(b store.Blob) error { return e.putObject(ctx, b.CID, b.Bytes) })
}

func blobKey(c cid.Cid) item { return item{attrBlob: binary(c.Bytes())} }

func blobItem(c cid.Cid, b []byte) item {
	it := blobKey(c)
	it[attrSize] = number(len(b))
	if len(b) > 0 {
		it[attrBytes] = binary(bytes.Clone(b))
	}
	return it
}

// putItems writes blobs' items, again and again those that the service did not get to.
func (e *Engine) putItems(ctx context.Context, items []types.WriteRequest) error {
	for len(items) > 0 {
		n := min(itemBatch, len(items))
		batch := items[:n:n]
		items = items[n:]
		for try := 0; len(batch) > 0; try++ {
			out, err := e.db.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{
				RequestItems: map[string][]types.WriteRequest{e.blobs: batch}, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
			})
			if err != nil {
				return fault("writing blobs", err)
			}
			left := out.UnprocessedItems[e.blobs]
			if len(left) > 0 && try == maxBatchTries {
				return fmt.Errorf("aws: writing blobs: the table did not take %d of them in %d tries", len(left), try+1)
			}
			if batch = left; len(batch) > 0 {
				if err := e.wait(ctx, pause(try)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const maxBatchTries = 8

// pause is how long to wait after so many tries of what was not refused but not done either.
func pause(try int) time.Duration { return min(50*time.Millisecond<<try, maxRetryPause) }

func (e *Engine) objectKey(c cid.Cid) *string { return awssdk.String(e.objects + c.String()) }

// putObject writes a blob of one part. One that exists is left as it is.
func (e *Engine) putObject(ctx context.Context, c cid.Cid, b []byte) error {
	sum := sha256.Sum256(b)
	_, err := e.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &e.bucket, Key: e.objectKey(c), Body: bytes.NewReader(b), ContentLength: awssdk.Int64(int64(len(b))), IfNoneMatch: awssdk.String("*"),
		ChecksumSHA256: awssdk.String(base64.StdEncoding.EncodeToString(sum[:])),
	})
	if err == nil || status(err) == http.StatusPreconditionFailed {
		return nil
	}
	if status(err) == http.StatusConflict {
		// Somebody writes the same blob at this moment. Whether they succeed is not known, so ours has to.
		_, err = e.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: &e.bucket, Key: e.objectKey(c), Body: bytes.NewReader(b),
			ContentLength: awssdk.Int64(int64(len(b))), ChecksumSHA256: awssdk.String(base64.StdEncoding.EncodeToString(sum[:]))})
	}
	return wrapFault("writing blob "+c.String(), err)
}

// status is the HTTP status of what S3 refused; 0 for any other error.
func status(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// Put implements [store.Blobs].
func (e *Engine) Put(ctx context.Context, c cid.Cid, r io.Reader) error {
	if !c.Defined() {
		return errors.New("aws: blob without a CID")
	}
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	first, more, err := e.readPart(r)
	if err != nil {
		return fmt.Errorf("aws: reading blob %s: %w", c, err)
	}
	switch {
	case len(first) <= maxItemBlob:
		return e.putItems(ctx, []types.WriteRequest{{PutRequest: &types.PutRequest{Item: blobItem(c, first)}}})
	case !more:
		return e.putObject(ctx, c, first)
	}
	if _, err := e.objectSize(ctx, c); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return e.putParts(ctx, c, first, r)
}

// readPart reads the next part of a blob. more is false if it is the last, which may be empty.
func (e *Engine) readPart(r io.Reader) (b []byte, more bool, err error) {
	var part bytes.Buffer
	n, err := io.CopyN(&part, r, e.partSize)
	if errors.Is(err, io.EOF) {
		return part.Bytes(), false, nil
	}
	return part.Bytes(), n == e.partSize, err
}

// putParts writes a blob of several parts. It is there when all are; a source that breaks leaves nothing.
func (e *Engine) putParts(ctx context.Context, c cid.Cid, part []byte, r io.Reader) (err error) {
	key := e.objectKey(c)
	began, err := e.s3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &e.bucket, Key: key, ChecksumAlgorithm: s3types.ChecksumAlgorithmCrc32})
	if err != nil {
		return fault("beginning blob "+c.String(), err)
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), background)
		defer cancel()
		_, abortErr := e.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &e.bucket, Key: key, UploadId: began.UploadId})
		if abortErr != nil {
			err = errors.Join(err, fault("giving up blob "+c.String(), abortErr))
		}
	}()
	var parts []s3types.CompletedPart
	for more := true; len(part) > 0; {
		if len(parts) == maxParts {
			return fmt.Errorf("aws: blob %s: over %d bytes: %w", c, maxParts*e.partSize, store.ErrTooLarge)
		}
		n := awssdk.Int32(int32(len(parts) + 1))
		out, err := e.s3.UploadPart(ctx, &s3.UploadPartInput{Bucket: &e.bucket, Key: key, UploadId: began.UploadId, PartNumber: n,
			Body: bytes.NewReader(part), ContentLength: awssdk.Int64(int64(len(part))), ChecksumAlgorithm: s3types.ChecksumAlgorithmCrc32})
		if err != nil {
			return fault("writing blob "+c.String(), err)
		}
		parts = append(parts, s3types.CompletedPart{PartNumber: n, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32})
		if !more {
			break
		}
		if part, more, err = e.readPart(r); err != nil {
			return fmt.Errorf("aws: reading blob %s: %w", c, err)
		}
	}
	_, err = e.s3.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &e.bucket, Key: key, UploadId: began.UploadId,
		MultipartUpload: &s3types.CompletedMultipartUpload{Parts: parts}})
	return wrapFault("completing blob "+c.String(), err)
}

// getBlobItem returns the item of a small blob, nil if there is none.
func (e *Engine) getBlobItem(ctx context.Context, c cid.Cid) (item, error) {
	if !c.Defined() {
		return nil, store.ErrNotFound
	}
	out, err := e.db.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &e.blobs, Key: blobKey(c), ConsistentRead: awssdk.Bool(true), ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	if err != nil {
		return nil, fault("reading blob "+c.String(), err)
	}
	return out.Item, nil
}

func (e *Engine) objectSize(ctx context.Context, c cid.Cid) (int64, error) {
	out, err := e.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &e.bucket, Key: e.objectKey(c)})
	switch {
	case status(err) == http.StatusNotFound:
		return 0, store.ErrNotFound
	case err != nil:
		return 0, fault("looking for blob "+c.String(), err)
	}
	return awssdk.ToInt64(out.ContentLength), nil
}

// Has implements [store.Blobs].
func (e *Engine) Has(ctx context.Context, c cid.Cid) (int64, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	it, err := e.getBlobItem(ctx, c)
	if err != nil {
		return 0, err
	}
	if it != nil {
		return numberOf(it, attrSize), nil
	}
	return e.objectSize(ctx, c)
}

// itemBlob reads a blob that is an item.
type itemBlob struct{ *bytes.Reader }

func (itemBlob) Close() error { return nil }

// Open implements [store.Blobs].
func (e *Engine) Open(ctx context.Context, c cid.Cid) (store.BlobReader, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	it, err := e.getBlobItem(ctx, c)
	if err != nil {
		return nil, err
	}
	if it != nil {
		return itemBlob{bytes.NewReader(bytesOf(it, attrBytes))}, nil
	}
	// The reader may outlive the call, as a file does.
	o := &object{e: e, ctx: context.WithoutCancel(ctx), c: c}
	out, err := e.getRange(ctx, c, 0, headSize)
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	if o.size, err = totalSize(out); err != nil {
		return nil, fault("opening blob "+c.String(), err)
	}
	o.head = make([]byte, min(o.size, headSize))
	if _, err := io.ReadFull(out.Body, o.head); err != nil {
		o.head = nil // it is read again
	}
	return o, nil
}

// getRange reads up to n bytes of an object that begin at an offset within it.
func (e *Engine) getRange(ctx context.Context, c cid.Cid, offset, n int64) (*s3.GetObjectOutput, error) {
	out, err := e.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &e.bucket, Key: e.objectKey(c),
		Range: awssdk.String(fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))})
	switch {
	case status(err) == http.StatusNotFound:
		return nil, store.ErrNotFound
	case err != nil:
		return nil, fault("reading blob "+c.String(), err)
	}
	return out, nil
}

// totalSize is the size of the object of which a range was read.
func totalSize(out *s3.GetObjectOutput) (int64, error) {
	r := awssdk.ToString(out.ContentRange)
	if r == "" {
		return awssdk.ToInt64(out.ContentLength), nil
	}
	var from, to, size int64
	if _, err := fmt.Sscanf(r, "bytes %d-%d/%d", &from, &to, &size); err != nil || size < 0 {
		return 0, fmt.Errorf("range %q", r)
	}
	return size, nil
}

// object reads a blob that is an object. What Open has read already is not read again.
type object struct {
	e    *Engine
	ctx  context.Context
	c    cid.Cid
	size int64
	head []byte

	mu     sync.Mutex
	offset int64
	body   io.ReadCloser // from offset on; nil: not begun, or broken off
	broken int           // times that it broke off
}

func (o *object) Size() int64 { return o.size }

// Read implements [io.Reader]. A body that breaks off is taken up again where it did.
func (o *object) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if o.offset >= o.size {
			return 0, io.EOF
		}
		if o.offset < int64(len(o.head)) {
			n := copy(p, o.head[o.offset:])
			o.offset += int64(n)
			return n, nil
		}
		if o.body == nil {
			out, err := o.e.getRange(o.ctx, o.c, o.offset, o.size-o.offset)
			if err != nil {
				return 0, err
			}
			o.body = out.Body
		}
		n, err := o.body.Read(p)
		o.offset += int64(n)
		if err == nil || o.offset == o.size {
			return n, nil
		}
		_ = o.body.Close() // broken already
		o.body = nil
		if o.broken++; o.broken > maxResumes {
			return n, fault("reading blob "+o.c.String(), err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// ReadAt implements [io.ReaderAt].
func (o *object) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, errors.New("aws: negative offset")
	case off >= o.size:
		return 0, io.EOF
	}
	want := min(int64(len(p)), o.size-off)
	n := 0
	if off < int64(len(o.head)) {
		n = copy(p[:want], o.head[off:])
	}
	for broken := 0; int64(n) < want; {
		got, err := o.readRange(p[n:want], off+int64(n))
		n += got
		if broken++; err != nil && broken > maxResumes {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (o *object) readRange(p []byte, off int64) (int, error) {
	out, err := o.e.getRange(o.ctx, o.c, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer out.Body.Close()
	n, err := io.ReadFull(out.Body, p)
	if err != nil {
		return n, fault("reading blob "+o.c.String(), err)
	}
	return n, nil
}

func (o *object) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.body == nil {
		return nil
	}
	err := o.body.Close()
	o.body = nil
	return err
}

// Delete implements [store.Blobs].
func (e *Engine) Delete(ctx context.Context, c cid.Cid) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !c.Defined() {
		return nil
	}
	_, err = e.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &e.blobs, Key: blobKey(c), ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal})
	if err != nil {
		return fault("deleting blob "+c.String(), err)
	}
	_, err = e.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &e.bucket, Key: e.objectKey(c)})
	if status(err) == http.StatusNotFound {
		return nil
	}
	return wrapFault("deleting blob "+c.String(), err)
}

// List implements [store.Blobs]: first the blobs that are items, then those that are objects.
func (e *Engine) List(ctx context.Context, cursor string, limit int) ([]cid.Cid, string, error) {
	const inItems, inObjects = "i", "o"
	after := []string{inItems, ""}
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
	if after[0] == inItems {
		cids, next, err := e.listItems(ctx, after[1], limit)
		if err != nil {
			return nil, "", err
		}
		if next != "" {
			return cids, store.EncodeCursor(inItems, next), nil
		}
		return cids, store.EncodeCursor(inObjects, ""), nil
	}
	cids, more, err := e.listObjects(ctx, after[1], limit)
	if err != nil || !more {
		return cids, "", err
	}
	return cids, store.EncodeCursor(inObjects, cids[len(cids)-1].String()), nil
}

// listItems returns a page of the small blobs; next is the key of the last if there may be more.
func (e *Engine) listItems(ctx context.Context, after string, limit int) (cids []cid.Cid, next string, err error) {
	u := newUpdate()
	in := &dynamodb.ScanInput{TableName: &e.blobs, ConsistentRead: awssdk.Bool(true), Limit: awssdk.Int32(int32(limit)),
		ProjectionExpression: awssdk.String(u.name(attrBlob)), ExpressionAttributeNames: u.names, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal}
	if after != "" {
		in.ExclusiveStartKey = item{attrBlob: binary([]byte(after))}
	}
	out, err := e.db.Scan(ctx, in)
	if err != nil {
		return nil, "", fault("listing blobs", err)
	}
	for _, it := range out.Items {
		c, err := cid.Cast(bytesOf(it, attrBlob))
		if err != nil {
			return nil, "", fault("listing blobs", err)
		}
		cids = append(cids, c)
	}
	return cids, string(bytesOf(out.LastEvaluatedKey, attrBlob)), nil
}

// listObjects returns a page of the large blobs after one.
func (e *Engine) listObjects(ctx context.Context, after string, limit int) (cids []cid.Cid, more bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &e.bucket, Prefix: &e.objects, MaxKeys: awssdk.Int32(int32(limit))}
	if after != "" {
		in.StartAfter = awssdk.String(e.objects + after)
	}
	out, err := e.s3.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, fault("listing blobs", err)
	}
	for _, o := range out.Contents {
		name := strings.TrimPrefix(awssdk.ToString(o.Key), e.objects)
		c, err := cid.Decode(name)
		if err != nil {
			return nil, false, fmt.Errorf("aws: listing blobs: object %s: %w", name, err)
		}
		cids = append(cids, c)
	}
	return cids, awssdk.ToBool(out.IsTruncated) && len(cids) > 0, nil
}
