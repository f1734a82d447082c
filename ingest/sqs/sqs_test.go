package sqs_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/ingest/sqs"
	"github.com/storacha/w3filecoin/internal/sqstest"
	"github.com/storacha/w3filecoin/store"
)

func open(t *testing.T, cfg sqs.Config) *sqs.Queue {
	t.Helper()
	q, err := sqs.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestQueue is the life of messages: received, prolonged, given back, deleted.
func TestQueue(t *testing.T) {
	double := sqstest.New(t)
	testQueue(t, open(t, sqs.Config{URL: double.URL, Region: "us-east-1", AccessKey: "test", SecretKey: "test"}), double.Send)
	if n := double.Len(); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// TestServerQueue is the same with a server; `make test-aws` has one.
func TestServerQueue(t *testing.T) {
	s := sqstest.Start(t)
	testQueue(t, open(t, sqs.Config{URL: s.URL, Region: s.Region, Endpoint: s.Endpoint,
		AccessKey: s.AccessKey, SecretKey: s.SecretKey, SessionToken: s.SessionToken}), s.Send)
	if n := s.Len(); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

func testQueue(t *testing.T, q *sqs.Queue, send func(string)) {
	ctx := t.Context()
	receive := func() store.Delivery {
		t.Helper()
		for range 3 { // nothing for ten seconds, at most
			list, err := q.Receive(ctx, "ingest", 1, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 1 {
				return list[0]
			}
		}
		t.Fatal("no message comes")
		return store.Delivery{}
	}
	body := `{"Records": ["ü\u0000"]}`
	before := time.Now().Add(-time.Minute)
	send(body)
	first := receive()
	if string(first.Body) != body || first.Queue != "ingest" || first.Attempt != 1 || first.ID == "" || first.Enqueued.Before(before) {
		t.Errorf("received %+v", first)
	}
	if err := q.Extend(ctx, first, 2*time.Minute); err != nil {
		t.Errorf("prolonging: %v", err)
	}
	if err := q.Retry(ctx, first, 0); err != nil {
		t.Errorf("giving back: %v", err)
	}
	second := receive()
	if second.ID != first.ID || second.Attempt != 2 || second.Lease == first.Lease {
		t.Errorf("received again: %+v", second)
	}
	if err := q.Ack(ctx, second); err != nil {
		t.Errorf("deleting: %v", err)
	}
	send("another")
	if third := receive(); string(third.Body) != "another" {
		t.Errorf("received %+v", third)
	} else if err := q.Ack(ctx, third); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if err := q.Extend(ctx, store.Delivery{Lease: "AQEB-of-nobody"}, time.Minute); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("prolonging a message that nobody holds: %v", err)
	}
}

// TestQueueFails: faults of the service are told, not taken for an empty queue, and a call ends with its context.
func TestQueueFails(t *testing.T) {
	double := sqstest.New(t)
	double.Before = func(w http.ResponseWriter, _ string) bool {
		sqstest.Refuse(w, "AccessDenied", "not for you")
		return true
	}
	q := open(t, sqs.Config{URL: double.URL, Region: "us-east-1", AccessKey: "test", SecretKey: "test"})
	if list, err := q.Receive(t.Context(), "ingest", 1, time.Minute); err == nil || !strings.Contains(err.Error(), "AccessDenied") || list != nil {
		t.Errorf("received %v, %v", list, err)
	}
	if err := q.Ack(t.Context(), store.Delivery{ID: "x", Lease: "y"}); err == nil || errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("deleting: %v", err)
	}
	double.Before = nil
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := q.Receive(ctx, "ingest", 1, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a message: %v", err)
	}
}

func TestOpen(t *testing.T) {
	good := sqs.Config{URL: "https://sqs.eu-west-1.amazonaws.com/123456789012/events", AccessKey: "a", SecretKey: "s"}
	open(t, good)
	for name, change := range map[string]func(*sqs.Config){
		"no URL":           func(c *sqs.Config) { c.URL = "" },
		"no name":          func(c *sqs.Config) { c.URL = "https://sqs.eu-west-1.amazonaws.com/" },
		"no region":        func(c *sqs.Config) { c.URL = "http://127.0.0.1:4566/000000000000/events" },
		"no secret":        func(c *sqs.Config) { c.SecretKey = "" },
		"no key":           func(c *sqs.Config) { c.AccessKey = "" },
		"a bad endpoint":   func(c *sqs.Config) { c.Endpoint = "sqs.example.com" },
		"a URL of a queue": func(c *sqs.Config) { c.URL = "arn:aws:sqs:eu-west-1:123456789012:events" },
	} {
		c := good
		change(&c)
		if _, err := sqs.Open(c); err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
}
