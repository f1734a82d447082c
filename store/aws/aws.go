// Package aws is the distributed storage engine: rows in DynamoDB, messages in SQS, blobs in S3 or anything that speaks its language. Any number
// of processes share one state; each runs the same code and none is special.
//
// # Commit
//
// A commit is one conditional UpdateItem on the row's item. The messages that the change causes ride in the item until they have
// been sent: each is an attribute of its own, "m:" and its ID, so that adding and removing them never conflicts. After the update the
// writer sends to SQS what is due within ten minutes and, in the background, takes what was sent out of the item. If the process ends in between,
// the item stays in the sparse index "outbox" with a time at which to look at it, and the relay of any replica sends it: a message is sent at
// least once, and perhaps twice, under one ID. Messages that are due later wait in the item; the same index is the wheel of timers.
//
// A deleted row that still has messages to send stays as an item of version 0, which nothing shows, until they are sent.
//
// Each update leaves a token of its own in the item. An update whose answer was lost is repeated by the SDK and then refused by its own
// success; the token tells the two apart, so that such a commit is reported as what it was.
//
// # Blobs
//
// Blobs up to 8 KiB are items of a second table, larger ones are objects. A blob is found by its CID alone, strongly consistent, which no attribute of
// the row's item could be: the blobs of a commit are therefore written before the row. The row's version is read before them, so that a
// commit that is refused leaves blobs only if the row changed in that moment; one that no row names is harmless.
//
// # Messages
//
// The lease of a message is its visibility timeout. SQS does not tell a stale holder that its acknowledgement did nothing, so the engine keeps
// the end of each lease it was given, by its own clock and counted from before the request, and answers ErrLeaseLost from then on.
// Visibility is in whole seconds, rounded up, and ends twelve hours after the message was received.
//
// SQS keeps a message for at most fourteen days: work of a role that no process has run for so long is lost. An alarm on the age of the oldest message
// belongs to every deployment.
//
// # Clocks
//
// Conditions decide everything; clocks say only when to look. Replicas whose clocks differ send a message twice at worst, and deliver a
// timer as much too early or too late as they differ.
package aws

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/storacha/w3filecoin/store"
)

// Options configures an engine. Role, Now and After are required.
type Options struct {
	// Role is whose state this is: part of every name.
	Role string

	// Now is the clock.
	Now func() time.Time

	// After starts a timer, as time.After does.
	After func(d time.Duration) <-chan time.Time

	// Observe, if set, is told of every request. It is called by whoever made it, so it must be quick.
	Observe func(Call)

	// OnError, if set, is told what went wrong where no caller waits: sending messages after their commit, the relay.
	OnError func(error)

	// Relay is how often to look for messages that their writer did not send; 0: DefaultRelay, negative: never.
	Relay time.Duration

	// Poll is how often to look into a queue that was empty, unless this process has sent something to it; 0: DefaultPoll, negative: at every Receive. One
	// that has been empty for long is looked into less often, down to every tenth time after 80 times as long.
	Poll time.Duration

	// Ahead is how long before its time a message goes to SQS, which delays it for the rest; 0: DefaultAhead, negative: only when it is due. SQS delays by
	// fifteen minutes at most.
	Ahead time.Duration

	// Serial makes one request at a time and leaves nothing to be done after a call has returned, so that a simulation has one order of things.
	Serial bool

	// Rand is where IDs come from, for several at a time; nil: from the system.
	Rand io.Reader

	// Configure, if set, has the last word on the SDK's configuration: credentials, HTTP client, retries.
	Configure func(*awssdk.Config)
}

// Defaults of [Options].
const (
	DefaultRelay = 15 * time.Second
	DefaultPoll  = time.Second
	DefaultAhead = 10 * time.Minute
)

// Limits of the services that the engine keeps by design.
const (
	maxAttempts    = 6                // of one request, the first included
	maxRetryPause  = 5 * time.Second  // between two of them
	requestTimeout = 10 * time.Second // of one attempt, to DynamoDB and SQS
	headerTimeout  = 30 * time.Second // until S3 begins to answer
	background     = time.Minute      // for what is done after a commit was answered
	sendPatience   = 2 * time.Second  // of a commit, for its messages to be sent
	sendParallel   = 4                // requests to one queue at a time
	tidyParallel   = 64               // items being tidied at a time
)

// Engine is the state of one role, opened by one process. It implements [store.Driver].
type Engine struct {
	where   Location
	options Options

	db      *dynamodb.Client
	sqs     *sqs.Client
	s3      *s3.Client
	rows    string // tables
	blobs   string
	bucket  string
	objects string // prefix of the keys of objects
	// partSize is how many bytes of a blob go in one request.
	partSize int64
	// patience is how long a commit waits for its messages to be sent.
	patience time.Duration

	queues queues
	leases leases
	tidies chan struct{} // a slot for each item being tidied

	mu     sync.RWMutex
	closed bool
	calls  sync.WaitGroup // under way, the background's among them
	stop   context.CancelFunc
	relay  sync.WaitGroup
	passes atomic.Uint64 // of the relay, for tests
}

var _ store.Driver = (*Engine)(nil)

var errClosed = errors.New("aws: engine is closed")

// Open opens the engine of a role. It makes no request: see [Check] for what must be there.
func Open(ctx context.Context, where Location, o Options) (*Engine, error) {
	e, err := open(ctx, where, o)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", where, err)
	}
	return e, nil
}

func open(ctx context.Context, where Location, o Options) (*Engine, error) {
	switch {
	case o.Now == nil:
		return nil, errors.New("option Now is missing")
	case o.After == nil:
		return nil, errors.New("option After is missing")
	}
	if err := errors.Join(checkRole(o.Role), where.Check()); err != nil {
		return nil, err
	}
	if o.Relay == 0 {
		o.Relay = DefaultRelay
	}
	if o.Poll == 0 {
		o.Poll = DefaultPoll
	}
	if o.Ahead == 0 {
		o.Ahead = DefaultAhead
	}
	o.Ahead = max(0, o.Ahead)
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	c, err := connect(ctx, where, o)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		where: where, options: o, db: c.db, sqs: c.sqs, s3: c.s3,
		rows: where.RowTable(o.Role), blobs: where.BlobTable(o.Role), bucket: where.BucketName(), objects: where.ObjectPrefix(o.Role), partSize: partSize, patience: sendPatience,
		tidies: make(chan struct{}, tidyParallel),
	}
	e.queues.known = make(map[string]*queue)
	e.leases.held = make(map[string]lease)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stop = stop
	if o.Relay > 0 {
		e.relay.Go(func() { e.runRelay(running) })
	}
	return e, nil
}

// clients are the three services of a location.
type clients struct {
	db  *dynamodb.Client
	sqs *sqs.Client
	s3  *s3.Client
}

func connect(ctx context.Context, where Location, o Options) (c clients, err error) {
	load := func(profile string) (awssdk.Config, error) {
		var with []func(*config.LoadOptions) error
		if where.Region != "" && profile == "" {
			with = append(with, config.WithRegion(where.Region))
		}
		if profile != "" {
			with = append(with, config.WithSharedConfigProfile(profile))
		}
		cfg, err := config.LoadDefaultConfig(ctx, with...)
		if err != nil {
			return cfg, fmt.Errorf("reading the configuration of the AWS SDK: %w", err)
		}
		cfg.Retryer = func() awssdk.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = maxAttempts, maxRetryPause })
		}
		if o.Configure != nil {
			o.Configure(&cfg)
		}
		chosen := cfg.Retryer
		cfg.Retryer = func() awssdk.Retryer { return retryer{chosen()} }
		if cfg.Region == "" {
			return cfg, errors.New("no region: give it in the location (region=eu-west-1) or as AWS_REGION")
		}
		return cfg, nil
	}
	cfg, err := load("")
	if err != nil {
		return c, err
	}
	objects := cfg
	if where.S3Profile != "" {
		if objects, err = load(where.S3Profile); err != nil {
			return c, err
		}
	}
	endpoint := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	api := httpClient(cfg.HTTPClient, func(c *awshttp.BuildableClient) *awshttp.BuildableClient { return c.WithTimeout(requestTimeout) })
	c.db = dynamodb.NewFromConfig(cfg, func(d *dynamodb.Options) {
		d.BaseEndpoint = endpoint(where.DynamoDB)
		d.HTTPClient = api
		d.APIOptions = append(d.APIOptions, observed("dynamodb", o))
	})
	c.sqs = sqs.NewFromConfig(cfg, func(s *sqs.Options) {
		s.BaseEndpoint = endpoint(where.SQS)
		s.HTTPClient = api
		s.APIOptions = append(s.APIOptions, observed("sqs", o))
	})
	c.s3 = s3.NewFromConfig(objects, func(s *s3.Options) {
		s.BaseEndpoint = endpoint(where.S3)
		s.UsePathStyle = where.PathStyle
		s.HTTPClient = httpClient(objects.HTTPClient, func(c *awshttp.BuildableClient) *awshttp.BuildableClient {
			return c.WithTransportOptions(func(t *http.Transport) { t.ResponseHeaderTimeout = headerTimeout })
		})
		// Blobs are verified by the CIDs that name them; ranges have no checksum.
		s.ResponseChecksumValidation = awssdk.ResponseChecksumValidationWhenRequired
		s.APIOptions = append(s.APIOptions, observed("s3", o))
	})
	return c, nil
}

// Objects says how the bucket of a location is reached by who is not an engine.
type Objects struct {
	Bucket string
	// Endpoint is another than that of AWS in Region, as a URL.
	Endpoint, Region string
	PathStyle        bool
	// Credentials are those that the SDK finds, and renews.
	Credentials awssdk.CredentialsProvider
}

// FindObjects reads the SDK's configuration as [Open] does. It makes no request.
func FindObjects(ctx context.Context, where Location, o Options) (Objects, error) {
	if err := where.Check(); err != nil {
		return Objects{}, err
	}
	c, err := connect(ctx, where, o)
	if err != nil {
		return Objects{}, err
	}
	s := c.s3.Options()
	return Objects{Bucket: where.BucketName(), Endpoint: awssdk.ToString(s.BaseEndpoint), Region: s.Region, PathStyle: s.UsePathStyle, Credentials: s.Credentials}, nil
}

// retryer also repeats a request whose answer broke off in the middle, which the SDK takes for one that nobody could read. Every request of the engine may be
// made twice.
type retryer struct{ awssdk.Retryer }

func (r retryer) IsErrorRetryable(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || r.Retryer.IsErrorRetryable(err)
}

// GetAttemptToken implements [awssdk.RetryerV2].
func (r retryer) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	if v2, ok := r.Retryer.(awssdk.RetryerV2); ok {
		return v2.GetAttemptToken(ctx)
	}
	return r.GetInitialToken(), nil
}

// httpClient is the configured client; the SDK's own is adjusted, somebody else's is left as it is. Without any it is one with room for many requests at a time.
func httpClient(configured awssdk.HTTPClient, adjust func(*awshttp.BuildableClient) *awshttp.BuildableClient) awssdk.HTTPClient {
	switch c := configured.(type) {
	case nil:
		return adjust(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxIdleConnsPerHost = 64 }))
	case *awshttp.BuildableClient:
		return adjust(c)
	}
	return configured
}

// Close waits for the calls under way and for what follows from them, then ends the relay. Closing twice is a success.
func (e *Engine) Close() error {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	e.mu.Unlock()
	if was {
		return nil
	}
	e.stop()
	e.relay.Wait()
	e.calls.Wait()
	return nil
}

// parallel is how many requests are made at a time where n would be well.
func (e *Engine) parallel(n int) int {
	if e.options.Serial {
		return 1
	}
	return n
}

// begin keeps the engine open until end.
func (e *Engine) begin(ctx context.Context) (end func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return nil, errClosed
	}
	e.calls.Add(1)
	return e.calls.Done, nil
}

// wait waits for d, or until ctx is done.
func (e *Engine) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-e.options.After(d):
		return nil
	}
}
