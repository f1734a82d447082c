package s3

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/source"
)

const (
	// maxPut is what a store takes in one request, in bytes.
	maxPut = 5 << 30
	// minPut is how long an address of an upload has to work at least to be worth giving out.
	minPut = 15 * time.Minute
	// verifiedKey is the metadata of an object that was put in parts, whose checksum is none of the whole. It is stated
	// when the upload begins, and becomes the object's only if the upload ends, after the hash was found right.
	verifiedKey = "w3filecoin-sha256"
)

// SignPut returns an address that takes exactly the bytes of the content by HTTP PUT, and the headers that the request
// has to have. Length and SHA-256 are signed: the store refuses any other length, bytes and time later than valid from
// now. It may be called any number of times; the same bytes may be put again. The address works as long as the credentials that
// sign it, if that is shorter. The error wraps errors.ErrUnsupported for a private bucket, for more than 5 GiB, the most that a
// store takes in one request, and if the credentials are about to end.
func (b *Bucket) SignPut(ctx context.Context, content cid.Cid, length int64, valid time.Duration) (source.PutAddress, error) {
	fail := func(err error) (source.PutAddress, error) {
		return source.PutAddress{}, fmt.Errorf("signing an upload to bucket %s: %w", b.cfg.Bucket, err)
	}
	if b.ReadOnly() {
		return fail(source.ErrReadOnly)
	}
	if b.cfg.Private || length > maxPut {
		return fail(errors.ErrUnsupported)
	}
	checksum, err := checksumOf(content)
	if err != nil {
		return fail(err)
	}
	if length < 0 || valid <= 0 || valid > MaxValid {
		return fail(fmt.Errorf("%d bytes for %s: out of range", length, valid))
	}
	credentials, err := b.client.Options().Credentials.Retrieve(ctx)
	if err != nil {
		return fail(err)
	}
	if credentials.CanExpire {
		left := time.Until(credentials.Expires)
		if left < min(valid, minPut) {
			return fail(fmt.Errorf("the credentials end in %s: %w", left.Round(time.Second), errors.ErrUnsupported))
		}
		valid = min(valid, left)
	}
	key := b.Key(content)
	req, err := b.signer.PresignPutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.cfg.Bucket, Key: &key, ContentLength: &length, ChecksumSHA256: &checksum,
	}, s3.WithPresignExpires(valid), func(o *s3.PresignOptions) {
		// A checksum in the query would be signed and never compared; one in a header is both.
		o.Presigner = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableHeaderHoisting, o.DisableURIPathEscaping = true, true })
	})
	if err != nil {
		return fail(err)
	}
	header := req.SignedHeader.Clone()
	header.Del("Host") // the client's own business
	return source.PutAddress{URL: req.URL, Header: header, Valid: valid}, nil
}

// Verified returns the length of the content if all of its bytes have been compared with the content's hash on their way
// in: by the store, for an address of [Bucket.SignPut], or by [Bucket.Put]. The error wraps source.ErrNoContent if they
// have not, or are not there.
func (b *Bucket) Verified(ctx context.Context, content cid.Cid) (length int64, err error) {
	checksum, err := checksumOf(content)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	key := b.Key(content)
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.cfg.Bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return 0, fmt.Errorf("looking for %s in bucket %s: %w", key, b.cfg.Bucket, explain(err))
	}
	if aws.ToString(out.ChecksumSHA256) != checksum && out.Metadata[verifiedKey] != checksum {
		return 0, fmt.Errorf("%s in bucket %s has no checksum that says it is this content: %w", key, b.cfg.Bucket, source.ErrNoContent)
	}
	if out.ContentLength == nil {
		return 0, fmt.Errorf("looking for %s in bucket %s: the store states no length", key, b.cfg.Bucket)
	}
	return *out.ContentLength, nil
}

// checksumOf returns the content's hash as S3 writes checksums.
func checksumOf(content cid.Cid) (string, error) {
	if err := source.Check(content); err != nil {
		return "", err
	}
	digest, err := multihash.Decode(content.Hash())
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(digest.Digest), nil
}
