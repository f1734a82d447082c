package awstest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/storacha/w3filecoin/store/aws"
)

// ServicesVar names the services that tests may use, as a location of which everything but the prefix is taken: `make test-aws` sets it to substitutes,
// unless somebody who has the real ones did.
const ServicesVar = "W3FILECOIN_TEST_AWS"

// ownPrefix is how the prefixes of tests begin.
const ownPrefix = "t-"

// Services returns a place of its own at the services of the environment, nil if it names none. What is created there is removed when the test has ended; the
// bucket stays.
func Services(t testing.TB) *aws.Location {
	t.Helper()
	if os.Getenv(ServicesVar) == "" {
		return nil
	}
	where, err := Place()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(context.WithoutCancel(t.Context()), where); err != nil {
			t.Errorf("what was created at %s costs money until it is removed: %v", where, err)
		}
	})
	return &where
}

// Place returns a location at the services of the environment with a prefix that nobody else has.
func Place() (aws.Location, error) {
	where, err := aws.ParseLocation(os.Getenv(ServicesVar))
	if err != nil {
		return aws.Location{}, fmt.Errorf("%s: %w", ServicesVar, err)
	}
	where.Bucket = where.BucketName()
	where.Prefix = ownPrefix + strings.ToLower(rand.Text()[:12])
	return where, nil
}

// Clients are the services of a location.
type Clients struct {
	DB  *dynamodb.Client
	SQS *sqs.Client
	S3  *s3.Client
}

// Dial returns the services of a location, with the SDK's usual configuration.
func Dial(ctx context.Context, where aws.Location) (c Clients, err error) {
	var with []func(*config.LoadOptions) error
	if where.Region != "" {
		with = append(with, config.WithRegion(where.Region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, with...)
	if err != nil {
		return c, err
	}
	endpoint := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	c.DB = dynamodb.NewFromConfig(cfg, func(d *dynamodb.Options) { d.BaseEndpoint = endpoint(where.DynamoDB) })
	c.SQS = sqs.NewFromConfig(cfg, func(s *sqs.Options) { s.BaseEndpoint = endpoint(where.SQS) })
	c.S3 = s3.NewFromConfig(cfg, func(s *s3.Options) { s.BaseEndpoint, s.UsePathStyle = endpoint(where.S3), where.PathStyle })
	return c, nil
}

// Remove removes all tables, queues and objects whose names begin with the prefix of a location of tests.
func Remove(ctx context.Context, where aws.Location) error {
	if !strings.HasPrefix(where.Prefix, ownPrefix) {
		return fmt.Errorf("prefix %s is not one of tests", where.Prefix)
	}
	c, err := Dial(ctx, where)
	if err != nil {
		return err
	}
	return errors.Join(c.removeTables(ctx, where.Prefix), c.removeQueues(ctx, where.Prefix), c.RemoveObjects(ctx, where.BucketName(), where.Prefix))
}

func (c Clients) removeTables(ctx context.Context, prefix string) error {
	var names []string
	for pages := dynamodb.NewListTablesPaginator(c.DB, &dynamodb.ListTablesInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		names = append(names, page.TableNames...)
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			_, err := c.DB.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: &name})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c Clients) removeQueues(ctx context.Context, prefix string) error {
	var urls []string
	for pages := sqs.NewListQueuesPaginator(c.SQS, &sqs.ListQueuesInput{QueueNamePrefix: &prefix, MaxResults: awssdk.Int32(1000)}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		urls = append(urls, page.QueueUrls...)
	}
	var errs []error
	for _, url := range urls {
		_, err := c.SQS.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: &url})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// RemoveObjects removes all objects whose keys begin with a prefix, from a bucket that need not exist.
func (c Clients) RemoveObjects(ctx context.Context, bucket, prefix string) error {
	_, err := c.S3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &bucket})
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) && answer.HTTPStatusCode() == 404 {
		return nil
	}
	for pages := s3.NewListObjectsV2Paginator(c.S3, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, object := range page.Contents {
			if _, err := c.S3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: object.Key}); err != nil {
				return err
			}
		}
	}
	return nil
}
