package s3

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/ipfs/go-cid"
)

// An Object is an object of a bucket, whatever it holds, as it was when somebody looked.
type Object struct {
	Key string
	// ETag names its bytes as the store does, Version is empty where the bucket keeps none, or in a listing.
	ETag, Version string
	Length        int64 // bytes
}

// Object looks at an object by its whole key, with the prefix that the bucket's keys have, if they have one. The error wraps source.ErrNoContent if
// it is not there.
func (b *Bucket) Object(ctx context.Context, key string) (Object, error) {
	o, err := b.look(ctx, key)
	if err != nil {
		return Object{}, err
	}
	return Object{Key: o.key, ETag: o.etag, Version: o.version, Length: o.length}, nil
}

// OpenObject opens an object as it was looked at: reading fails if it is another one by then. It asks for nothing yet. See [Bucket.Open].
func (b *Bucket) OpenObject(ctx context.Context, o Object) io.ReadSeekCloser {
	return &reader{b: b, ctx: ctx, object: object{key: o.Key, version: o.Version, etag: o.ETag, length: o.Length}}
}

// Objects lists the objects whose keys begin with a prefix, in the store's order, page by page. An error is the last that it yields.
func (b *Bucket) Objects(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.cfg.Bucket, Prefix: &prefix, EncodingType: types.EncodingTypeUrl}
		for {
			out, err := b.page(ctx, in)
			if err != nil {
				yield(Object{}, fmt.Errorf("listing bucket %s: %w", b.cfg.Bucket, explain(err)))
				return
			}
			for _, o := range out.Contents {
				key := aws.ToString(o.Key)
				if out.EncodingType == types.EncodingTypeUrl { // some stores do not encode
					if key, err = url.QueryUnescape(key); err != nil {
						yield(Object{}, fmt.Errorf("listing bucket %s: key %q: %w", b.cfg.Bucket, aws.ToString(o.Key), err))
						return
					}
				}
				if !yield(Object{Key: key, ETag: aws.ToString(o.ETag), Length: aws.ToInt64(o.Size)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			if aws.ToString(out.NextContinuationToken) == "" {
				yield(Object{}, fmt.Errorf("listing bucket %s: the store says that there is more, and not where", b.cfg.Bucket))
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// Contents lists the contents that lie under the bucket's keys, an object once. An error is the last that it yields.
func (b *Bucket) Contents(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		for o, err := range b.Objects(ctx, b.cfg.Prefix) {
			if err != nil {
				yield(cid.Undef, err)
				return
			}
			if content := b.ContentOf(o.Key); content.Defined() && !yield(content, nil) {
				return
			}
		}
	}
}

func (b *Bucket) page(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return b.client.ListObjectsV2(ctx, in)
}
