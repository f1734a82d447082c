package aws_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/store/aws"
)

func TestParseLocation(t *testing.T) {
	for _, tc := range []struct {
		text string
		want aws.Location
	}{
		{"aws://w3filecoin", aws.Location{Prefix: "w3filecoin"}},
		{"aws://w3-2/?region=eu-west-1&bucket=some.bucket", aws.Location{Prefix: "w3-2", Region: "eu-west-1", Bucket: "some.bucket"}},
		{"aws://dev?dynamodb=http://127.0.0.1:1&sqs=http://127.0.0.1:2&s3=https%3A%2F%2Fr2.example.com&s3_profile=r2&path_style=true", aws.Location{Prefix: "dev",
			DynamoDB: "http://127.0.0.1:1", SQS: "http://127.0.0.1:2", S3: "https://r2.example.com", S3Profile: "r2", PathStyle: true}},
		{"aws://w3filecoin?shards=128", aws.Location{Prefix: "w3filecoin", Shards: 128}},
	} {
		got, err := aws.ParseLocation(tc.text)
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.text, diff)
		}
		if again, err := aws.ParseLocation(got.String()); err != nil || again != got {
			t.Errorf("%s, written as %s, is read as %+v, %v", tc.text, got, again, err)
		}
	}
	for text, why := range map[string]string{
		"":                                 "not of the form",
		"s3://bucket":                      "not of the form",
		"aws://":                           "prefix",
		"aws://UPPER":                      "prefix",
		"aws://" + strings.Repeat("p", 25): "prefix",
		"aws://p/path":                     "not of the form",
		"aws://user:secret@pre":            "not of the form",
		"aws://pre?regoin=eu-west-1":       "no parameter regoin",
		"aws://pre?region=a&region=b":      "2 times",
		"aws://pre?path_style=perhaps":     "true or false",
		"aws://pre?bucket=A_B":             "bucket",
		"aws://pre?sqs=127.0.0.1:4566":     "endpoint",
		"aws://pre?a=%zz":                  "location",
		"aws://pre?shards=0":               "shards",
		"aws://pre?shards=1025":            "shards",
	} {
		if l, err := aws.ParseLocation(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %+v, %v, want an error about %q", text, l, err, why)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("aws://w3filecoin?region=eu-west-1&bucket=b-b&path_style=1")
	f.Add("aws://dev?s3=http%3A%2F%2F127.0.0.1%3A1")
	f.Add("aws:dev")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := aws.ParseLocation(text)
		if err != nil {
			return
		}
		if again, err := aws.ParseLocation(l.String()); err != nil || again != l {
			t.Errorf("%q is %+v, written %s, read again %+v, %v", text, l, l, again, err)
		}
	})
}

// TestFindObjects: what is not an engine reaches the bucket as the engine does, with the credentials of a profile if it is another maker's.
func TestFindObjects(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config":      "[profile r2]\nregion = auto\n",
		"credentials": "[r2]\naws_access_key_id = other\naws_secret_access_key = secret\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"AWS_CONFIG_FILE": filepath.Join(dir, "config"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "credentials"),
		"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": ""} {
		t.Setenv(name, value)
	}
	for text, want := range map[string]struct {
		aws.Objects
		key string
	}{
		"aws://dev?region=eu-west-1": {aws.Objects{Bucket: "dev-blobs", Region: "eu-west-1"}, "own"},
		"aws://dev?region=eu-west-1&bucket=mine&s3=https://r2.example.com&s3_profile=r2&path_style=true": {
			aws.Objects{Bucket: "mine", Region: "auto", Endpoint: "https://r2.example.com", PathStyle: true}, "other"},
	} {
		where, err := aws.ParseLocation(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := aws.FindObjects(t.Context(), where, aws.Options{})
		if err != nil {
			t.Fatal(err)
		}
		credentials, err := got.Credentials.Retrieve(t.Context())
		if got.Credentials = nil; got != want.Objects || credentials.AccessKeyID != want.key || err != nil {
			t.Errorf("%s: %+v by %s, %v", text, got, credentials.AccessKeyID, err)
		}
	}
	if _, err := aws.FindObjects(t.Context(), aws.Location{Prefix: "X"}, aws.Options{}); err == nil {
		t.Error("found a location that there cannot be")
	}
}
