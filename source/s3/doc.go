// Package s3 keeps and reads content in buckets of an S3-compatible object store: AWS, R2, MinIO and others.
//
// A [Bucket] is a source.Place: custody can read from several, each with its own endpoint, region and credentials, and
// store uploads in one. Objects are found by keys that carry the content's hash, so a key never names other bytes than
// it did before unless the operator breaks the bucket; in a bucket with versions an address is pinned to the version that
// was looked at besides.
//
// Credentials go to the configured endpoint and nowhere else: redirects are not followed.
package s3
