package aws_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
)

// counter counts requests.
type counter struct {
	mu       sync.Mutex
	requests map[string]int
	calls    []aws.Call
}

func (c *counter) observe(call aws.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[call.Operation] += call.Attempts
	c.calls = append(c.calls, call)
}

// take returns what was counted since the last time.
func (c *counter) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.requests
	c.requests, c.calls = map[string]int{}, nil
	return got
}

// TestRequestsPerChange: what a change costs is a property of the engine: docs/operations.md has this table.
func TestRequestsPerChange(t *testing.T) {
	b := newBench(t, 1)
	count := &counter{requests: map[string]int{}}
	o := b.options(benchRole, 3)
	o.Observe = count.observe
	open := func() *aws.Engine {
		e, err := aws.Open(t.Context(), b.d.Location(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{"q", "r"} { // found once by each process
			if _, err := e.Receive(t.Context(), q, 1, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		count.take()
		return e
	}
	blobs := func(n, size int) (out []store.Blob) {
		for i := range n {
			out = append(out, store.RawBlob(append(make([]byte, size-1), byte(i))))
		}
		return out
	}
	with := func(c store.Change, blobs ...store.Blob) store.Change {
		c.Blobs = blobs
		return c
	}
	deleted := func(c store.Change) store.Change {
		c.Delete = true
		return c
	}
	commit := func(c store.Change) func(*aws.Engine) error {
		return func(e *aws.Engine) error {
			_, err := e.Commit(t.Context(), c)
			return err
		}
	}
	b.commit(change("b", 0))
	b.commit(change("timer", 0))
	for _, tc := range []struct {
		name string
		do   func(e *aws.Engine) error
		want map[string]int
	}{
		{"row", commit(change("a", 0)), map[string]int{"UpdateItem": 1}},
		{"row, changed", commit(change("a", 1)), map[string]int{"UpdateItem": 1}},
		{"row, refused", func(e *aws.Engine) error {
			if _, err := e.Commit(t.Context(), change("a", 1)); err == nil {
				return fmt.Errorf("not refused")
			}
			return nil
		}, map[string]int{"UpdateItem": 1, "GetItem": 1}}, // the service saves the reading by giving the item with its refusal, the double does not
		{"row, one message", commit(change("a", 2, message("q", "1"))), map[string]int{"UpdateItem": 2, "SendMessageBatch": 1}},
		{"row, ten messages to a queue", commit(change("a", 3, message("q", "1"), message("q", "2"), message("q", "3"), message("q", "4"), message("q", "5"),
			message("q", "6"), message("q", "7"), message("q", "8"), message("q", "9"), message("q", "10"))),
			map[string]int{"UpdateItem": 2, "SendMessageBatch": 1}},
		{"row, messages to two queues", commit(change("a", 4, message("q", "1"), message("r", "2"))), map[string]int{"UpdateItem": 2, "SendMessageBatch": 2}},
		{"row, timer", commit(change("timer", 1, store.Message{Queue: "q", Due: b.clock.Now().Add(time.Hour)})), map[string]int{"UpdateItem": 2}},
		{"row, 25 small blobs", commit(with(change("a", 5), blobs(25, 100)...)), map[string]int{"GetItem": 1, "BatchWriteItem": 1, "UpdateItem": 1}},
		{"row, 2 blobs over 8 KiB", commit(with(change("a", 6), blobs(2, 9000)...)), map[string]int{"GetItem": 1, "PutObject": 2, "UpdateItem": 1}},
		{"row, deleted", commit(deleted(change("a", 7))), map[string]int{"DeleteItem": 1}},
		{"row, deleted with a message", commit(deleted(change("b", 1, message("q", "1")))), map[string]int{"UpdateItem": 1, "SendMessageBatch": 1, "DeleteItem": 1}},
		{"row read", func(e *aws.Engine) error { _, err := e.Get(t.Context(), change("timer", 0).Row.Key); return err }, map[string]int{"GetItem": 1}},
		{"page of rows", func(e *aws.Engine) error { _, err := e.Query(t.Context(), "p", "", "", 0); return err }, map[string]int{"Query": 1}},
		{"small blob put", func(e *aws.Engine) error { return store.PutBlob(t.Context(), e, blobs(1, 50)[0]) }, map[string]int{"BatchWriteItem": 1}},
		{"small blob read", func(e *aws.Engine) error {
			_, err := store.ReadBlob(t.Context(), e, blobs(1, 50)[0].CID, 100)
			return err
		},
			map[string]int{"GetItem": 1}},
		{"large blob read", func(e *aws.Engine) error {
			_, err := store.ReadBlob(t.Context(), e, blobs(1, 9000)[0].CID, 9000)
			return err
		},
			map[string]int{"GetItem": 1, "GetObject": 1}},
		{"message handled", func(e *aws.Engine) error {
			b.clock.Advance(2 * time.Minute) // what opening received comes again
			ds, err := e.Receive(t.Context(), "q", 1, time.Minute)
			if err != nil || len(ds) != 1 {
				return fmt.Errorf("received %d, %v", len(ds), err)
			}
			return e.Ack(t.Context(), ds[0])
		}, map[string]int{"ReceiveMessage": 1, "DeleteMessageBatch": 1}},
		{"relay, nothing to do", func(e *aws.Engine) error { _, err := e.Relay(t.Context()); return err }, map[string]int{"Query": 32}},
	} {
		e := open()
		err := tc.do(e)
		if closeErr := e.Close(); err != nil || closeErr != nil {
			t.Fatalf("%s: %v, %v", tc.name, err, closeErr)
		}
		if diff := cmp.Diff(tc.want, count.take()); diff != "" {
			t.Errorf("%s: requests (-want +got):\n%s", tc.name, diff)
		}
	}
}

// TestObserve: a call is told with its attempts, its bytes and its error.
func TestObserve(t *testing.T) {
	b := newBench(t, 1)
	count := &counter{requests: map[string]int{}}
	o := b.options(benchRole, 3)
	o.Observe = count.observe
	e, err := aws.Open(t.Context(), b.d.Location(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b.d.Failing(func(request int, _ string) awstest.Fault {
		if request < 3 {
			return awstest.Throttle
		}
		return awstest.Fine
	})
	if _, err := e.Commit(t.Context(), change("row", 0)); err != nil {
		t.Fatal(err)
	}
	b.d.Failing(func(int, string) awstest.Fault { return awstest.Broken })
	if _, err := e.Get(t.Context(), change("row", 0).Row.Key); err == nil {
		t.Error("read in spite of faults")
	}
	count.mu.Lock()
	defer count.mu.Unlock()
	if len(count.calls) != 2 {
		t.Fatalf("calls %+v", count.calls)
	}
	if c := count.calls[0]; c.Service != "dynamodb" || c.Operation != "UpdateItem" || c.Attempts != 3 || c.Sent < 300 || c.Received < 20 || c.Err != nil {
		t.Errorf("call %+v", c)
	}
	if c := count.calls[1]; c.Operation != "GetItem" || c.Attempts != 3 || c.Err == nil {
		t.Errorf("call %+v", c)
	}
}
