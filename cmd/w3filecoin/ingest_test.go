package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/ingest"
	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/internal/sqstest"
	"github.com/storacha/w3filecoin/source"
)

// TestIngest runs the whole pipeline on objects that nobody offers: the storefront follows the events of its bucket, by itself or by a compute provider,
// and what can never be offered is a dead letter that the command line shows.
func TestIngest(t *testing.T) {
	for _, compute := range []string{computeLocal, computeProvider} {
		t.Run(compute, func(t *testing.T) {
			queue := sqstest.New(t)
			testIngest(t, s3test.NewFake(t), queue, ingestQueue{queue.URL, "", "us-east-1", "test", "test"}, compute)
		})
	}
}

// TestServerIngest is the same with servers of S3 and SQS. `make test-aws` has both.
func TestServerIngest(t *testing.T) {
	store, queue := s3test.Start(t), sqstest.Start(t)
	testIngest(t, store, queue, ingestQueue{queue.URL, queue.Endpoint, queue.Region, queue.AccessKey, queue.SecretKey}, computeProvider)
}

// ingestQueue is how the storefront is told of a queue.
type ingestQueue struct{ url, endpoint, region, accessKey, secretKey string }

func testIngest(t *testing.T, s3 *s3test.Store, queue interface {
	Send(body string)
	Len() int
}, at ingestQueue, compute string) {
	bucket := s3.CreateBucket(t)
	// The storefront itself need not be among those that may offer.
	n := newTogether(t, `allow = ["did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX"]`, fmt.Sprintf(`
[[storefront.buckets]]
bucket = %q
endpoint = %q
region = %q
path_style = true
access_key = %q
secret_key = %q
prefix = "in/"
[storefront.ingest]
queue = %q
endpoint = %q
region = %q
access_key = %q
secret_key = %q
compute = %q
copy = true
`, bucket, s3.Endpoint, s3.Region, s3.AccessKey, s3.SecretKey, at.url, at.endpoint, at.region, at.accessKey, at.secretKey, compute))
	r := rand.New(rand.NewPCG(seed(t), 0))
	named, loose := newContent(t, r, 20_000), newContent(t, r, 30_000)
	put := func(key string, c content) string {
		s3.Put(t, bucket, "in/"+key, c.bytes)
		b, err := json.Marshal(map[string]any{"account": "x", "action": "PutObject", "bucket": bucket, "object": map[string]any{"key": "in/" + key}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	queue.Send(put(source.MultihashName(named.cid), named))
	event := put("deep/a b+ü.mp4", loose)
	queue.Send(event)
	queue.Send(event)
	queue.Send("no event at all")

	for _, c := range []content{named, loose} {
		o := &offerer{url: n.front.url, http: new(http.Client)}
		eventually(t, "what was stored is validated", func(ctx context.Context) error {
			var s capabilities.Status
			if err := o.getJSON(ctx, "/status/"+c.cid.String(), &s); err != nil {
				return err
			}
			if p := s.Pieces[0]; p.Piece != c.piece.String() || p.State == "submitted" {
				return fmt.Errorf("it is %s, %s", p.State, p.Reason)
			}
			return nil
		})
	}
	eventually(t, "every message is done with", func(context.Context) error {
		if left := queue.Len(); left > 0 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	n.stop()
	var out, errs strings.Builder
	if code := run(t.Context(), newApp(strings.NewReader(""), &out, &errs), []string{"admin", "dead", "list", "--data", n.data, "--json"}); code != exitOK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	if got := out.String(); strings.Count(got, `"error"`) != 1 || !strings.Contains(got, ingest.Malformed) {
		t.Errorf("dead letters: %s", got)
	}
}
