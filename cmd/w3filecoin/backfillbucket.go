package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
)

// bucketFlags say how a bucket is reached, as the settings of the storefront's buckets do.
type bucketFlags struct {
	endpoint, region string
	pathStyle        bool
}

func (bf *bucketFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&bf.endpoint, "endpoint", "", "address of the store of s3://…; AWS if empty")
	f.StringVar(&bf.region, "region", "", "region of the bucket; \"auto\" if there is an endpoint")
	f.BoolVar(&bf.pathStyle, "path-style", false, "put the bucket's name into the path of addresses and not into the host")
}

// bucketScheme begins the names of buckets, s3://BUCKET/PREFIX.
const bucketScheme = "s3://"

// open opens s3://BUCKET/PREFIX, with credentials of the environment.
func (bf *bucketFlags) open(address string) (bucketFolder, error) {
	name, prefix, _ := strings.Cut(strings.TrimPrefix(address, bucketScheme), "/")
	b, err := s3.Open(s3.Config{Bucket: name, Endpoint: bf.endpoint, Region: bf.region, PathStyle: bf.pathStyle, Credentials: s3.Credentials{
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN")}})
	if err != nil {
		return bucketFolder{}, usage("it looks like s3://BUCKET/PREFIX, with --region or --endpoint", "%s: %v", address, err)
	}
	return bucketFolder{b, prefix}, nil
}

// bucketFolder is the objects of a bucket whose keys begin with a prefix.
type bucketFolder struct {
	b      *s3.Bucket
	prefix string
}

// find returns the object whose key is the prefix with this behind it.
func (f bucketFolder) find(ctx context.Context, key string) candidate {
	o, err := f.b.Object(ctx, f.prefix+key)
	switch {
	case errors.Is(err, source.ErrNoContent):
		return wrong(itemName(key), nameNotThere, "there is no such object")
	case err != nil:
		return wrong(itemName(key), nameUnreadable, "%v", err)
	}
	return f.object(o)
}

func (f bucketFolder) object(o s3.Object) candidate {
	return candidate{
		name: itemName(strings.TrimPrefix(o.Key, f.prefix)), version: o.ETag, content: contentNamed(o.Key), size: o.Length,
		open: func(ctx context.Context) (io.ReadCloser, error) { return f.b.OpenObject(ctx, o), nil },
	}
}

// walk yields every object but those that stand for folders.
func (f bucketFolder) walk(ctx context.Context) walk {
	return func(yield func(finder, error) bool) {
		for o, err := range f.b.Objects(ctx, f.prefix) {
			if err == nil && o.Length == 0 && strings.HasSuffix(o.Key, "/") {
				continue
			}
			if !yield(func(context.Context) candidate { return f.object(o) }, err) {
				return
			}
		}
	}
}
