package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/ingest"
	"github.com/storacha/w3filecoin/ingest/sqs"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/store"
)

// IngestConfig makes the storefront follow the events of its buckets: it offers itself what is stored there.
type IngestConfig struct {
	// Queue is the URL of the queue (SQS) that the events come to; nothing is followed if it is empty.
	Queue string `toml:"queue"`
	// Region is the queue's, taken from a URL of AWS if empty; Endpoint is where requests go, the URL's own host if empty.
	Region   string `toml:"region"`
	Endpoint string `toml:"endpoint"`
	// AccessKey and SecretKey are the credentials, and SessionToken if they are temporary; those of the environment if empty, as for buckets.
	AccessKey    string `toml:"access_key"`
	SecretKey    string `toml:"secret_key"`
	SessionToken string `toml:"session_token"`
	// Buckets are those of storefront.buckets whose events are followed; all if empty.
	Buckets []string `toml:"buckets"`
	// Compute says who hashes objects whose keys name their content: "local", this process, or "provider", a compute provider.
	Compute string `toml:"compute"`
	// Copy copies objects whose keys do not name their content to where uploads go, where the storefront finds them.
	Copy bool `toml:"copy"`
	// Parallel is how many objects are worked on at a time; 2.
	Parallel int `toml:"parallel"`
}

const (
	computeLocal    = "local"
	computeProvider = "provider"
)

func (c *IngestConfig) open() (*sqs.Queue, error) {
	return sqs.Open(sqs.Config{URL: c.Queue, Region: c.Region, Endpoint: c.Endpoint,
		AccessKey: c.AccessKey, SecretKey: c.SecretKey, SessionToken: c.SessionToken})
}

// check says what is wrong with the settings.
func (c *IngestConfig) check(s *StorefrontConfig) (errs []error) {
	if c.Queue == "" {
		return nil
	}
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("storefront.ingest."+format, args...))
	}
	if _, err := c.open(); err != nil {
		bad("queue: %v", err)
	}
	if len(s.Buckets) == 0 {
		bad("buckets: there are none in storefront.buckets whose events could be followed")
	}
	for _, name := range c.Buckets {
		if !slices.ContainsFunc(s.Buckets, func(b BucketConfig) bool { return b.Bucket == name }) {
			bad("buckets: %s is not in storefront.buckets", name)
		}
	}
	if c.Compute != computeLocal && c.Compute != computeProvider {
		bad("compute: %q is neither %s nor %s", c.Compute, computeLocal, computeProvider)
	}
	if c.Parallel < 0 {
		bad("parallel: %d is no number of objects", c.Parallel)
	}
	return errs
}

// ingester follows the events of buckets, nil if it is not to.
func (n *node) ingester(custody *source.Custody, provider capabilities.Peer, driver store.Driver, log *slog.Logger) (*ingest.Ingester, error) {
	cfg := n.cfg.Storefront.Ingest
	if cfg.Queue == "" {
		return nil, nil
	}
	queue, err := cfg.open()
	if err != nil {
		return nil, err
	}
	buckets := map[string]ingest.Bucket{}
	for i := range n.cfg.Storefront.Buckets {
		b := &n.cfg.Storefront.Buckets[i]
		if len(cfg.Buckets) > 0 && !slices.Contains(cfg.Buckets, b.Bucket) {
			continue
		}
		opened, err := b.open()
		if err != nil {
			return nil, err
		}
		buckets[b.Bucket] = followed{opened}
	}
	self := n.signers[storefrontRole]
	deps := ingest.Deps{
		Rows: driver, Custody: ingestCustody{custody}, Copy: cfg.Copy, MaxBytes: maxPayload(n.cfg.Storefront.MaxPiece), Now: time.Now, Log: log,
		Bucket: func(name string) (ingest.Bucket, bool) { b, ok := buckets[name]; return b, ok },
		Offer: func(ctx context.Context, content cid.Cid, p piece.Link) (cid.Cid, error) {
			task, _, err := client.Offer(ctx, &local{n, storefrontRole}, self, self.DID(), self.DID().String(),
				filecoin.Offer{Content: content, Piece: p}, capabilities.Terms{}, n.keys)
			if err != nil {
				return cid.Undef, err
			}
			return task.Link(), nil
		},
	}
	if cfg.Compute == computeProvider {
		deps.Compute = func(ctx context.Context, content cid.Cid, length int64) (piece.Link, error) {
			return n.askProvider(ctx, provider, content, custody.URL(content), length)
		}
	}
	following, err := ingest.New(deps)
	if err != nil {
		return nil, err
	}
	width := cfg.Parallel
	if width == 0 {
		width = 2
	}
	n.following = func(ctx context.Context) error {
		return n.follow(ctx, following, fedBy{driver, queue, ctx}, width, log)
	}
	return following, nil
}

// follow handles messages until ctx ends. Those that are being handled then have some time to end.
func (n *node) follow(ctx context.Context, following *ingest.Ingester, driver store.Driver, width int, log *slog.Logger) error {
	consumer, err := store.NewConsumer(store.ConsumerOptions{
		Driver: driver, Queue: ingest.QueueName, Handle: following.Handle, Now: time.Now, Rand: mathrand.Float64, After: time.After,
		// The ingester ends a message itself. What comes more often than that ended the process each time.
		Attempts: ingest.DefaultAttempts + 5,
		Observe: func(o store.Outcome) {
			if o.Result == store.Retried || o.Result == store.Lost {
				log.Warn("events of a bucket will come again", "message", o.Delivery.ID, "attempt", o.Delivery.Attempt, "result", o.Result, "err", o.Err)
			}
			n.metrics.Message(time.Now)(storefrontRole, o)
		},
	})
	if err != nil {
		return err
	}
	// A queue that is away stays so for a while: once a minute is enough to say it.
	var mu sync.Mutex
	var said time.Time
	store.Pool{Step: consumer.Step, Workers: width, Idle: time.Second, Grace: 10 * time.Second, After: time.After, OnError: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil && time.Since(said) > time.Minute {
			said = time.Now()
			log.Error("following the events of buckets", "err", err)
		}
	}}.Run(ctx)
	return nil
}

// fedBy is an engine whose messages come from elsewhere. Nothing is waited for once running has ended.
type fedBy struct {
	store.Driver
	queue   store.Messages
	running context.Context
}

func (f fedBy) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.running, cancel)()
	return f.queue.Receive(ctx, queue, limit, lease)
}
func (f fedBy) Ack(ctx context.Context, d store.Delivery) error { return f.queue.Ack(ctx, d) }
func (f fedBy) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	return f.queue.Extend(ctx, d, lease)
}
func (f fedBy) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	return f.queue.Retry(ctx, d, after)
}

// followed is a bucket as the ingester sees it.
type followed struct{ *s3.Bucket }

func (f followed) Look(ctx context.Context, key string) (ingest.Object, error) {
	o, err := f.Object(ctx, key)
	if errors.Is(err, source.ErrNoContent) {
		return ingest.Object{}, fmt.Errorf("%w: %w", ingest.ErrGone, err)
	}
	return ingest.Object{ETag: o.ETag, Version: o.Version, Length: o.Length}, err
}

func (f followed) Open(ctx context.Context, key string, o ingest.Object) (io.ReadCloser, error) {
	return f.OpenObject(ctx, s3.Object{Key: key, ETag: o.ETag, Version: o.Version, Length: o.Length}), nil
}

// ingestCustody is the storefront's custody as the ingester sees it.
type ingestCustody struct{ *source.Custody }

func (c ingestCustody) Has(ctx context.Context, content cid.Cid) (bool, error) {
	_, err := c.Stat(ctx, content)
	if errors.Is(err, source.ErrNoContent) {
		return false, nil
	}
	return err == nil, err
}

func (c ingestCustody) Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) error {
	_, err := c.Custody.Put(ctx, content, r, maxBytes)
	return err
}

// askProvider asks a compute provider for the piece of content in custody, by the task that the storefront asks it with too: it is worked on once.
func (n *node) askProvider(ctx context.Context, p capabilities.Peer, content cid.Cid, url string, length int64) (piece.Link, error) {
	self := n.signers[storefrontRole]
	task, err := capabilities.Invoke(self, p.DID, p.DID.String(), &computecap.PieceCID{Content: content}, p.Terms(self.DID(), ""))
	if err != nil {
		return piece.Link{}, err
	}
	claim, err := capabilities.Invoke(self, p.DID, self.DID().String(), &assert.Location{
		Content: assert.Content{Link: content}, Location: []string{url}, Range: &assert.Range{Length: uint64(length)},
	}, capabilities.Terms{Expiration: time.Now().Add(time.Hour)})
	if err != nil {
		return piece.Link{}, err
	}
	for {
		m := new(capabilities.Message)
		m.AddInvocation(task.UCAN, append([]capabilities.Block{claim.Block()}, task.Proofs...)...)
		reply, err := p.Conn.Execute(ctx, m)
		var away *capabilities.Unavailable
		if errors.As(err, &away) && away.Accepted {
			select {
			case <-time.After(min(max(away.RetryAfter, time.Second), 10*time.Second)):
				continue
			case <-ctx.Done():
				return piece.Link{}, ctx.Err()
			}
		}
		if err != nil {
			return piece.Link{}, err
		}
		r := reply.Receipt(task.Link())
		if r == nil {
			return piece.Link{}, fmt.Errorf("%s answered without a receipt of %s", p.DID, task.Can())
		}
		if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, n.keys); err != nil {
			return piece.Link{}, err
		}
		var ok computecap.PieceCIDOK
		err = capabilities.ReadResult(r.Out, &ok)
		return ok.Piece, err
	}
}
