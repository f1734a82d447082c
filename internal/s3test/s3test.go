// Package s3test gives tests an S3-compatible store: a real server in a process of its own, or a small fake in this one.
package s3test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Variable names the environment variable that has the path of a versitygw binary. `make test-s3` sets it.
const Variable = "W3FILECOIN_VERSITYGW"

// A Store is an S3-compatible store on loopback.
type Store struct {
	Endpoint, Region     string
	AccessKey, SecretKey string

	// Fake is the handler of a store made by [NewFake], nil of others.
	Fake   *Fake
	client *s3.Client
}

// Start runs versitygw and ends it with the test. It skips the test if [Variable] is not set.
func Start(t testing.TB) *Store {
	t.Helper()
	binary := os.Getenv(Variable)
	if binary == "" {
		t.Skipf("%s is not set: `make test-s3` runs this test", Variable)
	}
	s := &Store{Region: "us-east-1", AccessKey: "test", SecretKey: "test-secret"}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil { // for the server to take
		t.Fatal(err)
	}
	s.Endpoint = "http://" + address

	cmd := exec.Command(binary, "--port", address, "--region", s.Region, "--quiet", "posix", data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting versitygw: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it has ended already
		<-ended
		if t.Failed() {
			t.Logf("versitygw says:\n%s", out.String())
		}
	})
	s.client = client(s)
	deadline := time.After(20 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if _, err := s.client.ListBuckets(t.Context(), &s3.ListBucketsInput{}); err == nil {
			tick.Stop()
			return s
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("versitygw ended:\n%s", out.String())
		case <-deadline:
			t.Fatalf("versitygw does not answer:\n%s", out.String())
		}
	}
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// NewFake serves a [Fake].
func NewFake(t testing.TB) *Store {
	t.Helper()
	f := &Fake{objects: map[string]*stored{}, uploads: map[string]map[int][]byte{}, said: map[string]string{}, buckets: map[string]bool{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	s := &Store{Endpoint: server.URL, Region: "us-east-1", AccessKey: "test", SecretKey: "test-secret", Fake: f}
	s.client = client(s)
	return s
}

func client(s *Store) *s3.Client {
	return s3.New(s3.Options{
		Region: s.Region, BaseEndpoint: &s.Endpoint, UsePathStyle: true, HTTPClient: &http.Client{Timeout: 20 * time.Second},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
		}),
	})
}

// CreateBucket makes a bucket with a name that the test can be told by.
func (s *Store) CreateBucket(t testing.TB) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	name = strings.Trim(name[:min(len(name), 40)], "-") + fmt.Sprintf("-%d", time.Now().UnixNano()%1_000_000)
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("creating bucket %s: %v", name, err)
	}
	return name
}

// Put stores an object.
func (s *Store) Put(t testing.TB, bucket, key string, b []byte) {
	t.Helper()
	if _, err := s.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(b)}); err != nil {
		t.Fatalf("storing %s in bucket %s: %v", key, bucket, err)
	}
}

// Keys lists the keys of a bucket, a thousand at most.
func (s *Store) Keys(t testing.TB, bucket string) []string {
	t.Helper()
	out, err := s.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		t.Fatalf("listing bucket %s: %v", bucket, err)
	}
	var keys []string
	for _, o := range out.Contents {
		keys = append(keys, *o.Key)
	}
	return keys
}

// Unfinished counts the uploads in parts that nobody has ended.
func (s *Store) Unfinished(t testing.TB, bucket string) int {
	t.Helper()
	out, err := s.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatalf("listing uploads of bucket %s: %v", bucket, err)
	}
	return len(out.Uploads)
}
