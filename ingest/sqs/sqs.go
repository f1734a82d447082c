// Package sqs receives the events of buckets from a queue of SQS that a store sends them to.
package sqs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/storacha/w3filecoin/store"
)

const (
	// wait is how long the service holds a request for messages that may come meanwhile.
	wait           = 10 * time.Second
	requestTimeout = wait + 20*time.Second
	// maxVisibility is how long a message can be kept from others, counted from when it was received.
	maxVisibility = 12 * time.Hour
	maxBatch      = 10
)

// Config describes a queue.
type Config struct {
	// URL is the queue's. Required.
	URL string
	// Region is the queue's; taken from a URL of AWS if empty.
	Region string
	// Endpoint is where requests go; the URL's own host if empty.
	Endpoint string
	// AccessKey and SecretKey are the credentials, SessionToken belongs to temporary ones. Required but for SessionToken.
	AccessKey, SecretKey, SessionToken string
}

// A Queue is a queue of SQS whose messages somebody else writes. It implements store.Messages, whatever name it is asked by. Safe for concurrent use.
//
// Whoever consumes it decides when a message is given up. A redrive policy of the queue should come later than that: it is the net under a process that
// ends with each attempt.
type Queue struct {
	url    string
	client *sqs.Client
}

var _ store.Messages = (*Queue)(nil)

// Open returns the queue. It asks nobody.
func Open(cfg Config) (*Queue, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") == "" {
		return nil, errors.New("the queue's URL is not https://host/account/name")
	}
	if cfg.Region == "" {
		if rest, ok := strings.CutPrefix(u.Hostname(), "sqs."); ok {
			cfg.Region, _, _ = strings.Cut(rest, ".")
		}
	}
	if cfg.Region == "" {
		return nil, errors.New("the queue's URL does not say its region: name it")
	}
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("reading a queue needs an access key and a secret key")
	}
	if cfg.Endpoint == "" {
		cfg.Endpoint = u.Scheme + "://" + u.Host
	}
	if e, err := url.Parse(cfg.Endpoint); err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" || e.User != nil {
		return nil, errors.New("the endpoint is not http(s)://host")
	}
	client := sqs.New(sqs.Options{
		Region: cfg.Region, BaseEndpoint: &cfg.Endpoint, HTTPClient: &http.Client{Timeout: requestTimeout},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: cfg.AccessKey, SecretAccessKey: cfg.SecretKey, SessionToken: cfg.SessionToken}, nil
		}),
	})
	return &Queue{cfg.URL, client}, nil
}

// Receive implements [store.Messages], but for one thing: while there is no message it waits for one, for ten seconds at most.
func (q *Queue) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	if limit < 1 {
		return nil, nil
	}
	out, err := q.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: int32(min(limit, maxBatch)), VisibilityTimeout: max(seconds(lease), 1), WaitTimeSeconds: seconds(wait),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{
			types.MessageSystemAttributeNameApproximateReceiveCount, types.MessageSystemAttributeNameSentTimestamp},
	})
	var full *types.OverLimit
	if errors.As(err, &full) {
		return nil, nil // as many are leased as may be
	}
	if err != nil {
		return nil, fmt.Errorf("receiving from SQS: %w", explain(err))
	}
	var list []store.Delivery
	for _, m := range out.Messages {
		d := store.Delivery{Message: store.Message{Queue: queue, Body: []byte(aws.ToString(m.Body))},
			ID: aws.ToString(m.MessageId), Attempt: 1, Lease: aws.ToString(m.ReceiptHandle)}
		if n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]); err == nil && n > 1 {
			d.Attempt = n
		}
		if ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64); err == nil {
			d.Enqueued = time.UnixMilli(ms).UTC()
		}
		list = append(list, d)
	}
	return list, nil
}

// Ack implements [store.Messages].
func (q *Queue) Ack(ctx context.Context, d store.Delivery) error {
	_, err := q.client.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: &d.Lease})
	return ended("deleting", d, err)
}

// Extend implements [store.Messages]. A message can be held for twelve hours in all.
func (q *Queue) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	return q.hold(ctx, d, max(seconds(lease), 1))
}

// Retry implements [store.Messages].
func (q *Queue) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	return q.hold(ctx, d, seconds(after))
}

func (q *Queue) hold(ctx context.Context, d store.Delivery, visibility int32) error {
	_, err := q.client.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: &q.url, ReceiptHandle: &d.Lease, VisibilityTimeout: visibility})
	return ended("holding", d, err)
}

// seconds rounds up: what is asked for a moment must not become none.
func seconds(d time.Duration) int32 {
	return int32(min(max((d+time.Second-1)/time.Second, 0), maxVisibility/time.Second-1))
}

// ended says what became of a request about a message.
func ended(doing string, d store.Delivery, err error) error {
	var api smithy.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &api):
		switch code := api.ErrorCode(); code {
		case "ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue", "AWS.SimpleQueueService.MessageNotInflight":
			return store.ErrLeaseLost
		}
	}
	return fmt.Errorf("%s message %s: %w", doing, d.ID, explain(err))
}

// explain shortens errors of the SDK, which repeat request IDs and addresses.
func explain(err error) error {
	var api smithy.APIError
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return e
		}
	}
	if errors.As(err, &api) {
		return fmt.Errorf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	}
	return err
}
