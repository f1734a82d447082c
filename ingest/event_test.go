package ingest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/ingest"
)

var samples = map[string][]ingest.Event{
	"s3-notification.json": {
		{Kind: ingest.Created, Name: "ObjectCreated:Put", Bucket: "amzn-s3-demo-bucket", Key: "red flower+oneü.jpg"},
		{Kind: ingest.Removed, Name: "ObjectRemoved:DeleteMarkerCreated", Bucket: "amzn-s3-demo-bucket", Key: "gone/a.car"},
		{Kind: ingest.Other, Name: "ObjectTagging:Put", Bucket: "amzn-s3-demo-bucket", Key: "b.car"},
	},
	"s3-test.json":             {{Kind: ingest.Test, Name: "s3:TestEvent", Bucket: "amzn-s3-demo-bucket"}},
	"eventbridge.json":         {{Kind: ingest.Created, Name: "Object Created", Bucket: "amzn-s3-demo-bucket1", Key: "example+key%20ü"}},
	"eventbridge-deleted.json": {{Kind: ingest.Removed, Name: "Object Deleted", Bucket: "amzn-s3-demo-bucket1", Key: "example-key"}},
	"r2.json":                  {{Kind: ingest.Created, Name: "CopyObject", Bucket: "my-bucket", Key: "my new+object%20.car"}},
	"r2-deleted.json":          {{Kind: ingest.Removed, Name: "LifecycleDeletion", Bucket: "my-bucket", Key: "my-old-object"}},
	"sns.json":                 {{Kind: ingest.Created, Name: "ObjectCreated:CompleteMultipartUpload", Bucket: "b", Key: "large.car"}},
	"minio.json":               {{Kind: ingest.Created, Name: "ObjectCreated:Put", Bucket: "images", Key: "a b.jpg"}},
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDecode: the events of every store that is known, as its documentation shows them. Keys are encoded by S3 and by nobody else.
func TestDecode(t *testing.T) {
	for name, want := range samples {
		got, err := ingest.Decode(sample(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestDecodeRefuses: what is no event is said to be none.
func TestDecodeRefuses(t *testing.T) {
	s3 := string(sample(t, "s3-notification.json"))
	r2 := string(sample(t, "r2.json"))
	bridge := string(sample(t, "eventbridge.json"))
	for name, body := range map[string]string{
		"nothing":              "",
		"text":                 "hello",
		"a list":               "[]",
		"null":                 "null",
		"an empty object":      "{}",
		"cut off":              s3[:len(s3)-3],
		"more than one":        s3 + s3,
		"no records":           `{"Records":[]}`,
		"records of others":    strings.Replace(s3, `"aws:s3"`, `"aws:ses"`, 1),
		"an unknown version":   strings.Replace(s3, `"2.1"`, `"3.0"`, 1),
		"no object":            `{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put"}]}`,
		"a key badly encoded":  strings.Replace(s3, "%2B", "%2", 1),
		"a key that is a list": strings.Replace(r2, `"my new+object%20.car"`, `["a"]`, 1),
		"no key":               strings.Replace(r2, `my new+object%20.car`, ``, 1),
		"a key of no text":     strings.Replace(s3, "%C3%BC", "%C3", 1),
		"a key too long":       strings.Replace(r2, "my new", strings.Repeat("x", 1025), 1),
		"no bucket":            strings.Replace(bridge, `"name":"amzn-s3-demo-bucket1"`, `"name":""`, 1),
		"an event of EC2":      strings.Replace(bridge, `"aws.s3"`, `"aws.ec2"`, 1),
		"another test":         strings.Replace(string(sample(t, "s3-test.json")), "s3:TestEvent", "s3:Other", 1),
		"SNS in SNS":           `{"Type":"Notification","Message":"{\"Type\":\"Notification\",\"Message\":\"{}\"}"}`,
		"SNS that subscribes":  `{"Type":"SubscriptionConfirmation","Message":"You have chosen to subscribe"}`,
		"too long":             `{"Records":[` + strings.Repeat(" ", ingest.MaxBody) + `]}`,
	} {
		if got, err := ingest.Decode([]byte(body)); !errors.Is(err, ingest.ErrMalformed) || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for name := range samples {
		f.Add(sample(f, name))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := ingest.Decode(body)
		if (err == nil) == (len(list) == 0) || err != nil && !errors.Is(err, ingest.ErrMalformed) {
			t.Fatalf("%d events, %v", len(list), err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		for _, e := range list {
			if e.Bucket == "" || e.Name == "" || (e.Key == "") != (e.Kind == ingest.Test) && e.Kind != ingest.Test || !utf8.ValidString(e.Key) || len(e.Key) > 1024 {
				t.Errorf("event %+v", e)
			}
		}
	})
}
