package awstest_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
)

// TestServicesRemoved: of what tests create at services nothing is left, and nothing else is touched.
func TestServicesRemoved(t *testing.T) {
	other := awstest.Services(t)
	if other == nil {
		t.Skipf("%s does not say where DynamoDB, SQS and S3 are: make test-aws does", awstest.ServicesVar)
	}
	create := func(where aws.Location) {
		o := aws.Options{Role: "role", Now: time.Now, After: time.After}
		if err := aws.Init(t.Context(), where, aws.Layout{"role": {"queue"}}, o, nil); err != nil {
			t.Fatal(err)
		}
		e, err := aws.Open(t.Context(), where, o)
		if err != nil {
			t.Fatal(err)
		}
		b := store.RawBlob(bytes.Repeat([]byte("large"), 10_000))
		if err := e.Put(t.Context(), b.CID, bytes.NewReader(b.Bytes)); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// left counts tables, queues and objects.
	left := func(where aws.Location) (n [3]int) {
		c, err := awstest.Dial(t.Context(), where)
		if err != nil {
			t.Fatal(err)
		}
		tables, err := c.DB.ListTables(t.Context(), &dynamodb.ListTablesInput{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range tables.TableNames {
			if strings.HasPrefix(name, where.Prefix) {
				n[0]++
			}
		}
		queues, err := c.SQS.ListQueues(t.Context(), &sqs.ListQueuesInput{QueueNamePrefix: &where.Prefix})
		if err != nil {
			t.Fatal(err)
		}
		bucket := where.BucketName()
		objects, err := c.S3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &where.Prefix})
		if err != nil {
			t.Fatal(err)
		}
		n[1], n[2] = len(queues.QueueUrls), len(objects.Contents)
		return n
	}
	create(*other)
	where, err := awstest.Place()
	if err != nil {
		t.Fatal(err)
	}
	create(where)
	if got := left(where); got != [3]int{2, 2, 1} {
		t.Errorf("created %v tables, queues and objects", got)
	}
	if err := awstest.Remove(t.Context(), where); err != nil {
		t.Fatal(err)
	}
	if got := left(where); got != [3]int{} {
		t.Errorf("%v tables, queues and objects are left", got)
	}
	if got := left(*other); got != [3]int{2, 2, 1} {
		t.Errorf("of somebody else's, %v tables, queues and objects are left", got)
	}
	where.Prefix = "production"
	if err := awstest.Remove(t.Context(), where); err == nil {
		t.Error("what is not of tests may be removed")
	}
}
