package s3_test

import (
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
)

// TestWithoutCredentials: others are sent to a public bucket by plain addresses.
func TestWithoutCredentials(t *testing.T) {
	content := cid.MustParse("bafkreibkkmj6prwzfko7zcaf6vk4xrbjfiqhjzumcwrxcf5qmxkmtg45ma")
	name := source.MultihashName(content)
	store := s3test.NewFake(t)
	bucket := store.CreateBucket(t)
	store.Put(t, bucket, "in/"+name, []byte("Kept by the operator.\n"))
	b, err := s3.Open(s3.Config{Bucket: bucket, Endpoint: store.Endpoint, PathStyle: true, Prefix: "in/"})
	if err != nil {
		t.Fatal(err)
	}
	at, err := b.Locate(t.Context(), content)
	if err != nil || at.Expires {
		t.Fatalf("located at %+v, %v", at, err)
	}
	if url, err := at.Sign(t.Context(), time.Hour); err != nil || url != store.Endpoint+"/"+bucket+"/in/"+name {
		t.Errorf("the address is %s, %v", url, err)
	}
	for _, c := range []struct {
		config s3.Config
		host   string
	}{
		{s3.Config{Bucket: "b", Region: "eu-west-1"}, "b.s3.eu-west-1.amazonaws.com"},
		{s3.Config{Bucket: "b", Endpoint: "https://store.example:9000/"}, "b.store.example:9000"},
		{s3.Config{Bucket: "b", Endpoint: "https://store.example:9000/", PathStyle: true}, "store.example:9000"},
		{s3.Config{Bucket: "b", Endpoint: "https://store.example", Private: true}, ""},
	} {
		b, err := s3.Open(c.config)
		if err != nil {
			t.Fatal(err)
		}
		if host, err := b.Host(t.Context()); err != nil || host != c.host {
			t.Errorf("%+v: host %q, %v, want %q", c.config, host, err, c.host)
		}
	}
}
