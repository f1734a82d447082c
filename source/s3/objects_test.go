package s3_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
)

// TestObjects: every object of a prefix is listed once, whatever its key and however long the pages are, and opened as it was seen.
func TestObjects(t *testing.T) {
	store := s3test.NewFake(t)
	store.Fake.Page = 2
	testObjects(t, store)
}

// TestServerObjects is the same with a real server.
func TestServerObjects(t *testing.T) { testObjects(t, s3test.Start(t)) }

func testObjects(t *testing.T, store *s3test.Store) {
	bucket := store.CreateBucket(t)
	b, err := s3.Open(s3.Config{Bucket: bucket, Endpoint: store.Endpoint, Region: store.Region, PathStyle: true, Prefix: "in/",
		Credentials: s3.Credentials{AccessKey: store.AccessKey, SecretKey: store.SecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"in/a b+c%20d", "in/deep/ü&<x>.car", "in/plain", "in/z1", "in/z2"}
	for i, key := range append([]string{"elsewhere"}, want...) {
		store.Put(t, bucket, key, fmt.Appendf(nil, "object %d", i))
	}
	var got []string
	for o, err := range b.Objects(t.Context(), "in/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
		body := b.OpenObject(t.Context(), o)
		text, err := io.ReadAll(body)
		if err != nil || int64(len(text)) != o.Length || string(text) != fmt.Sprintf("object %d", len(got)) {
			t.Errorf("%s: %q of %d bytes, %v", o.Key, text, o.Length, err)
		}
		body.Close()
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	for range b.Objects(t.Context(), "") { // it may be left at any time
		break
	}

	o, err := b.Object(t.Context(), "in/plain")
	if err != nil || o.Length != 8 || o.ETag == "" {
		t.Errorf("object %+v, %v", o, err)
	}
	store.Put(t, bucket, "in/plain", []byte("changed!"))
	if text, err := io.ReadAll(b.OpenObject(t.Context(), o)); err == nil {
		t.Errorf("read %q, which is not what was looked at", text)
	}
	if _, err := b.Object(t.Context(), "in/absent"); !errors.Is(err, source.ErrNoContent) {
		t.Errorf("an object that is not there: %v", err)
	}
	missing, err := s3.Open(s3.Config{Bucket: "no-such-bucket-here", Endpoint: store.Endpoint, PathStyle: true, Region: store.Region,
		Credentials: s3.Credentials{AccessKey: store.AccessKey, SecretKey: store.SecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range missing.Objects(t.Context(), "") {
		if err == nil {
			t.Error("a bucket that is not there has objects")
		}
	}
}

// TestContents: what lies under the bucket's keys is listed as what it is named, whoever put it there.
func TestContents(t *testing.T) {
	store := s3test.NewFake(t)
	store.Fake.Page = 2
	name := store.CreateBucket(t)
	b := open(t, store, name, func(c *s3.Config) { c.Prefix = "in/" })
	want := map[cid.Cid]bool{}
	for i := range 5 {
		c := contentOf(t, source.Raw, fmt.Appendf(nil, "content %d", i))
		store.Put(t, name, b.Key(c), nil)
		store.Put(t, name, source.MultihashName(c), nil) // not below the prefix
		want[c] = true
	}
	store.Put(t, name, "in/notes.txt", nil)
	for c, err := range b.Contents(t.Context()) {
		if err != nil || !want[c] {
			t.Errorf("listed %s, %v", c, err)
		}
		delete(want, c)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}
