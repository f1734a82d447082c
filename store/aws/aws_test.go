package aws_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// services returns a location of its own at the services of the environment.
func services(t testing.TB) aws.Location {
	t.Helper()
	if where := awstest.Services(t); where != nil {
		return *where
	}
	t.Skipf("%s does not say where DynamoDB, SQS and S3 are: make test-aws does", awstest.ServicesVar)
	return aws.Location{}
}

// role is a role whose name no other test has: the bucket is common to all.
func role() string { return "r" + strings.ToLower(rand.Text()[:12]) }

// onDemand creates queues before they are used.
type onDemand struct {
	*aws.Engine
	mu    sync.Mutex
	known map[string]bool
}

func (d *onDemand) need(ctx context.Context, queue string) error {
	if ctx.Err() != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known[queue] {
		return nil
	}
	if err := d.CreateQueues(ctx, queue); err != nil {
		return err
	}
	d.known[queue] = true
	return nil
}

func (d *onDemand) Commit(ctx context.Context, c store.Change) (uint64, error) {
	for _, m := range c.Messages {
		if c.Check() == nil {
			if err := d.need(ctx, m.Queue); err != nil {
				return 0, err
			}
		}
	}
	return d.Engine.Commit(ctx, c)
}

func (d *onDemand) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	if err := d.need(ctx, queue); err != nil {
		return nil, err
	}
	return d.Engine.Receive(ctx, queue, limit, lease)
}

// realClock is time as the services see it.
type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Advance(d time.Duration) { <-time.After(d) }

func options(t testing.TB, role string) aws.Options {
	return aws.Options{
		Role: role, Now: time.Now, After: time.After, Poll: -1, Relay: -1,
		OnError:   func(err error) { t.Logf("in the background: %v", err) },
		Configure: anybody,
	}
}

// anybody gives the credentials that the substitutes take, unless the environment has some.
func anybody(cfg *awssdk.Config) {
	if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
		cfg.Credentials = awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
			return awssdk.Credentials{AccessKeyID: "test", SecretAccessKey: "testtest"}, nil
		})
	}
}

func TestEngine(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		where, role := services(t), role()
		if err := aws.Init(t.Context(), where, aws.Layout{role: nil}, options(t, role), nil); err != nil {
			t.Fatal(err)
		}
		return storetest.Harness{Clock: realClock{}, Open: func(t testing.TB) store.Driver {
			t.Helper()
			e, err := aws.Open(t.Context(), where, options(t, role))
			if err != nil {
				t.Fatal(err)
			}
			return &onDemand{Engine: e, known: map[string]bool{}}
		}}
	})
}

func TestInitAndCheck(t *testing.T) {
	where, role := services(t), role()
	layout := aws.Layout{role: {"first", "second"}}
	ctx, o := t.Context(), options(t, role)
	missing, err := aws.Check(ctx, where, layout, o)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range missing {
		if !f.Advice {
			names = append(names, f.Resource)
		}
	}
	want := fmt.Sprintf("[table %[1]s-rows table %[1]s-blobs queue %[1]s_dead queue %[1]s-first queue %[1]s-second]", where.Prefix+"-"+role)
	if got := fmt.Sprint(names); strings.TrimPrefix(got, "[bucket "+where.BucketName()+" ") != strings.TrimPrefix(want, "[") && got != want {
		t.Errorf("missing before: %s, want %s", got, want)
	}
	for round := range 2 {
		var told []string
		if err := aws.Init(ctx, where, layout, o, func(what string) { told = append(told, what) }); err != nil {
			t.Fatal(err)
		}
		if created := len(told); round == 0 && created < 5 || round == 1 && created != 0 {
			t.Errorf("round %d created %q", round, told)
		}
		found, err := aws.Check(ctx, where, layout, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if !f.Advice {
				t.Errorf("after round %d: %s %s", round, f.Resource, f.Problem)
			}
		}
	}
}
