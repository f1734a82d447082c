package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
)

const (
	// partSize is what is sent in one request: 10,000 parts, the most that an upload may have, are more than the payload
	// of the largest piece. An upload takes up to two such buffers.
	partSize = 8 << 20
	// endTimeout bounds the requests that end an upload, which are made even if its context has ended.
	endTimeout  = time.Minute
	contentType = "application/octet-stream"
)

// Put stores content in the bucket, as source.Place has it. Up to 8 MiB go in one request, more in parts of that size;
// the store checks each by SHA-256 on arrival, and the object gets its name only if all of it hashes to the content.
// Nothing that is there is ever overwritten.
func (b *Bucket) Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (created bool, err error) {
	if b.ReadOnly() {
		return false, fmt.Errorf("storing content %s: %w", content, source.ErrReadOnly)
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := source.Check(content); err != nil {
		return false, err
	}
	created, err = b.put(ctx, content, r, maxBytes)
	if errors.Is(err, errExists) {
		// Another writer was faster, or is: it is there once it can be seen.
		if _, err = b.look(ctx, b.Key(content)); err == nil {
			return false, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("storing content %s in bucket %s: %w", content, b.cfg.Bucket, err)
	}
	return created, nil
}

func (b *Bucket) put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (bool, error) {
	key := b.Key(content)
	if _, err := b.look(ctx, key); !errors.Is(err, source.ErrNoContent) {
		return false, err
	}
	u := &upload{b: b, ctx: ctx, key: key, content: content}
	defer u.abort()
	if err := source.CopyVerified(ctx, u, r, content, maxBytes); err != nil {
		return false, err
	}
	return true, u.finish()
}

// An upload takes the bytes of an object. One part is on its way while the next is filled.
type upload struct {
	b       *Bucket
	ctx     context.Context
	key     string
	content cid.Cid

	part    *bytes.Buffer // being filled
	id      string        // of an upload in parts; empty as long as there is none
	parts   []types.CompletedPart
	sending chan error // result of the part on its way; nil: none
	done    bool
}

var partBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (u *upload) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if u.part == nil {
			u.part = partBuffers.Get().(*bytes.Buffer)
			u.part.Reset()
		}
		if u.part.Len() == partSize { // more follows, so this is not all of it
			if err := u.send(); err != nil {
				return n, err
			}
			continue
		}
		k := min(len(p), partSize-u.part.Len())
		u.part.Write(p[:k])
		n, p = n+k, p[k:]
	}
	return n, nil
}

// send waits for the part before, and sends the one that is filled.
func (u *upload) send() error {
	if u.id == "" {
		checksum, err := checksumOf(u.content)
		if err != nil {
			return err
		}
		out, err := u.b.client.CreateMultipartUpload(u.ctx, &s3.CreateMultipartUploadInput{
			Bucket: &u.b.cfg.Bucket, Key: &u.key, ContentType: aws.String(contentType), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
			Metadata: map[string]string{verifiedKey: checksum}})
		if err != nil {
			return fmt.Errorf("beginning the upload: %w", explain(err))
		}
		u.id = aws.ToString(out.UploadId)
	}
	if err := u.wait(); err != nil {
		return err
	}
	part, number := u.part, int32(len(u.parts)+1)
	u.part = nil
	sum := sha256.Sum256(part.Bytes())
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	u.parts = append(u.parts, types.CompletedPart{PartNumber: &number, ChecksumSHA256: &checksum})
	sending := make(chan error, 1)
	u.sending = sending
	go func() {
		out, err := u.b.client.UploadPart(u.ctx, &s3.UploadPartInput{
			Bucket: &u.b.cfg.Bucket, Key: &u.key, UploadId: &u.id, PartNumber: &number,
			Body: bytes.NewReader(part.Bytes()), ChecksumSHA256: &checksum}, hashedOnce)
		if err == nil {
			u.parts[number-1].ETag = out.ETag // read after the channel only
			partBuffers.Put(part)             // not after an error: the transport may still read it
		}
		sending <- explainPart(number, err)
	}()
	return nil
}

// hashedOnce leaves the body out of the signature, which covers the header with the body's checksum.
func hashedOnce(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func explainPart(number int32, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("sending part %d: %w", number, explain(err))
}

func (u *upload) wait() error {
	if u.sending == nil {
		return nil
	}
	err := <-u.sending
	u.sending = nil
	return err
}

// finish names the object, after all of its bytes have been found to be the content. The error is errExists if it is
// there by now.
func (u *upload) finish() error {
	if u.id == "" {
		return u.whole()
	}
	if err := errors.Join(u.send(), u.wait()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(u.ctx, endTimeout)
	defer cancel()
	_, err := u.b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &u.b.cfg.Bucket, Key: &u.key, UploadId: &u.id, IfNoneMatch: aws.String("*"),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts}})
	if err != nil {
		return fmt.Errorf("ending the upload: %w", explain(err))
	}
	u.done = true
	return nil
}

// whole sends what fits one request. The store compares the checksum, which is the content's hash.
func (u *upload) whole() error {
	checksum, err := checksumOf(u.content)
	if err != nil {
		return err
	}
	var body []byte
	if u.part != nil {
		body = u.part.Bytes()
	}
	_, err = u.b.client.PutObject(u.ctx, &s3.PutObjectInput{
		Bucket: &u.b.cfg.Bucket, Key: &u.key, Body: bytes.NewReader(body), IfNoneMatch: aws.String("*"),
		ChecksumSHA256: &checksum, ContentType: aws.String(contentType)}, hashedOnce)
	if err != nil {
		u.part = nil // the transport may still read it
		return fmt.Errorf("sending it: %w", explain(err))
	}
	return nil
}

// abort gives back what an upload holds, here and in the store. After it was finished that is little.
func (u *upload) abort() {
	if u.part != nil {
		partBuffers.Put(u.part)
		u.part = nil
	}
	if err := u.wait(); err == nil && u.done || u.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), endTimeout)
	defer cancel()
	// What this leaves is removed by the bucket's lifecycle rule for unfinished uploads.
	_, _ = u.b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.b.cfg.Bucket, Key: &u.key, UploadId: &u.id})
}
