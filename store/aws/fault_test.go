package aws_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// bench is an engine on a double.
type bench struct {
	*testing.T
	clock  *storetest.FakeClock
	d      *awstest.Double
	engine *aws.Engine
	behind []error // what went wrong in the background
	mu     sync.Mutex
}

const benchRole = "bench"

// newBench opens an engine whose SDK makes each request so many times at most.
func newBench(t *testing.T, attempts int) *bench {
	t.Helper()
	return newLateBench(t, attempts, 0)
}

// newLateBench is a bench whose indexes show a write after some time.
func newLateBench(t *testing.T, attempts int, lag time.Duration) *bench {
	t.Helper()
	clock := storetest.NewClock()
	b := &bench{T: t, clock: clock, d: awstest.New(awstest.Options{Now: clock.Now, IndexLag: lag, IndexLagCommits: math.MaxInt})}
	layout := aws.Layout{benchRole: {"q", "r"}}
	if err := aws.Init(t.Context(), b.d.Location(), layout, b.options(benchRole, 1), nil); err != nil {
		t.Fatal(err)
	}
	b.engine = b.open(attempts)
	return b
}

// options are those of an engine on the double.
func (b *bench) options(role string, attempts int) aws.Options {
	return doubleOptions(b.T, b.d, b.clock, role, attempts)
}

func doubleOptions(t testing.TB, d *awstest.Double, clock *storetest.FakeClock, role string, attempts int) aws.Options {
	o := options(t, role)
	o.Now = clock.Now
	o.After = func(pause time.Duration) <-chan time.Time {
		clock.Advance(pause)
		c := make(chan time.Time, 1)
		c <- clock.Now()
		return c
	}
	o.Configure = d.Configure(attempts)
	return o
}

func (b *bench) open(attempts int) *aws.Engine {
	b.Helper()
	o := b.options(benchRole, attempts)
	o.OnError = func(err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.behind = append(b.behind, err)
	}
	e, err := aws.Open(b.Context(), b.d.Location(), o)
	if err != nil {
		b.Fatal(err)
	}
	e.SetPartSize(64 << 10)
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Errorf("closing: %v", err)
		}
	})
	return e
}

// restart closes the engine, which ends what it does in the background, and opens another.
func (b *bench) restart() {
	b.Helper()
	if err := b.engine.Close(); err != nil {
		b.Fatal(err)
	}
	b.engine = b.open(3)
}

func (b *bench) relay() int {
	b.Helper()
	n, err := b.engine.Relay(b.Context())
	if err != nil {
		b.Fatalf("relay: %v", err)
	}
	return n
}

// receiveAll receives what there is.
func (b *bench) receiveAll(queue string) (all []store.Delivery) {
	b.Helper()
	for {
		ds, err := b.engine.Receive(b.Context(), queue, 10, time.Minute)
		if err != nil {
			b.Fatalf("receiving: %v", err)
		}
		if len(ds) == 0 {
			return all
		}
		all = append(all, ds...)
	}
}

// drain receives and acknowledges what there is, and returns how often each body came and the IDs it came under.
func (b *bench) drain(queue string) (bodies map[string]int, ids map[string]bool) {
	b.Helper()
	bodies, ids = map[string]int{}, map[string]bool{}
	for range 100 {
		ds, err := b.engine.Receive(b.Context(), queue, 10, time.Minute)
		if err != nil {
			b.Fatalf("receiving: %v", err)
		}
		if len(ds) == 0 {
			return bodies, ids
		}
		for _, d := range ds {
			bodies[string(d.Body)]++
			ids[d.ID] = true
			if err := b.engine.Ack(b.Context(), d); err != nil {
				b.Fatalf("acknowledging: %v", err)
			}
		}
	}
	b.Fatal("the queue is never empty")
	return nil, nil
}

// items are the items of the table of rows: the attributes that each has.
func (b *bench) items() (all []string) {
	for _, names := range b.d.Attributes(b.d.Location().RowTable(benchRole)) {
		for i, name := range names {
			if strings.HasPrefix(name, "m:") {
				names[i] = "m:"
			}
		}
		all = append(all, strings.Join(names, " "))
	}
	slices.Sort(all)
	return all
}

func (b *bench) wantItems(what string, want ...string) {
	b.Helper()
	if got := b.items(); !slices.Equal(got, want) {
		b.Errorf("%s: items %q, want %q", what, got, want)
	}
}

func message(queue, body string) store.Message {
	return store.Message{Queue: queue, Body: []byte(body)}
}

func change(sort string, version uint64, messages ...store.Message) store.Change {
	return store.Change{Row: store.Row{Key: store.Key{Partition: "p", Sort: sort}, Version: version, Value: []byte(sort)}, Messages: messages}
}

func (b *bench) commit(c store.Change) {
	b.Helper()
	if _, err := b.engine.Commit(b.Context(), c); err != nil {
		b.Fatalf("committing %s: %v", c.Row.Key, err)
	}
}

// TestEngineOnDouble: the suite, offline and on a clock of its own.
func TestEngineOnDouble(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		clock := storetest.NewClock()
		d := awstest.New(awstest.Options{Now: clock.Now, OnDemand: true})
		o := doubleOptions(t, d, clock, benchRole, 1)
		if err := aws.Init(t.Context(), d.Location(), aws.Layout{benchRole: nil}, o, nil); err != nil {
			t.Fatal(err)
		}
		return storetest.Harness{Clock: clock, Open: func(t testing.TB) store.Driver {
			t.Helper()
			e, err := aws.Open(t.Context(), d.Location(), o)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}}
	})
}

// everything is a scenario that uses all the engine's ways to write: commits of a row created, changed and deleted, with messages and blobs of all sizes,
// and a blob of several parts. Each step is repeated, as callers do, until it succeeds or finds its own effect.
func (b *bench) everything(attempts int) {
	b.Helper()
	// What is deleted whole bears no token: here the SDK's repetition meets its own success as a conflict.
	const deletingAll = "deleting without messages"
	small, large := store.RawBlob([]byte("small")), store.RawBlob(make([]byte, 20<<10))
	parts := store.RawBlob(make([]byte, 150<<10))
	step := func(what string, do func() error) {
		b.Helper()
		for try := 1; ; try++ {
			err := do()
			switch {
			case err == nil:
				return
			case (try > 1 || what == deletingAll && attempts > 1) && errors.Is(err, store.ErrConflict):
				return // our own
			case attempts > 1 || try > 2:
				b.Fatalf("%s: %v", what, err)
			}
		}
	}
	committing := func(c store.Change) func() error {
		return func() error {
			_, err := b.engine.Commit(b.Context(), c)
			return err
		}
	}
	created := change("row", 0, message("q", "created"), message("r", "created"))
	created.Blobs = []store.Blob{small, large}
	created.Row.Listing = store.Listing{Index: "x", Sort: "1"}
	step("creating", committing(created))
	changed := change("row", 1, message("q", "changed"))
	step("changing", committing(changed))
	deleted := change("row", 2, message("q", "deleted"))
	deleted.Delete = true
	step("deleting", committing(deleted))
	plain := change("plain", 0)
	step("creating without messages", committing(plain))
	plain.Row.Version, plain.Delete = 1, true
	step(deletingAll, committing(plain))
	step("putting", func() error { return store.PutBlob(b.Context(), b.engine, parts) })

	// Whatever failed once does so no more; then a message that was promised comes, and nothing else.
	b.d.Failing(nil)
	b.restart()
	for range 3 {
		b.clock.Advance(2 * time.Minute)
		b.relay()
	}
	q, _ := b.drain("q")
	r, _ := b.drain("r")
	if q["created"] < 1 || q["changed"] < 1 || q["deleted"] < 1 || len(q) != 3 || r["created"] < 1 || len(r) != 1 {
		b.Errorf("messages %v and %v", q, r)
	}
	b.wantItems("afterwards")
	for _, blob := range []store.Blob{small, large, parts} {
		if _, err := store.ReadBlob(b.Context(), b.engine, blob.CID, 10<<20); err != nil {
			b.Error(err)
		}
	}
}

// TestFaultAtEachRequest: one request fails, in each way that there is, and the SDK repeats it: nobody notices.
func TestFaultAtEachRequest(t *testing.T) {
	for _, f := range []awstest.Fault{awstest.Throttle, awstest.Broken, awstest.Lost, awstest.Cut, awstest.Short, awstest.Refused} {
		sweepRequests(t, f, 3)
	}
}

// TestFaultAtEachRequestWithoutRetries: the SDK does not repeat it: the caller does, and all that was promised is done.
func TestFaultAtEachRequestWithoutRetries(t *testing.T) {
	for _, f := range []awstest.Fault{awstest.Throttle, awstest.Broken, awstest.Lost, awstest.Cut, awstest.Partial, awstest.Short, awstest.Refused} {
		sweepRequests(t, f, 1)
	}
}

func sweepRequests(t *testing.T, f awstest.Fault, attempts int) {
	t.Helper()
	if testing.Short() && f != awstest.Lost {
		return
	}
	for n, hit := 1, true; hit && !t.Failed(); n++ {
		hit = false
		t.Run(fmt.Sprintf("%v at request %d", f, n), func(t *testing.T) {
			b := newBench(t, attempts)
			var mu sync.Mutex
			b.d.Failing(func(request int, op string) awstest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if request != n {
					return awstest.Fine
				}
				hit = true
				return f
			})
			b.everything(attempts)
		})
		if n > 200 {
			t.Fatal("the scenario makes more and more requests")
		}
	}
}

// TestAnswerLost: a commit whose answer is lost is known for what it was by its token, not taken for somebody else's.
func TestAnswerLost(t *testing.T) {
	b := newBench(t, 3)
	done := false
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "UpdateItem" && !done {
			done = true
			return awstest.Cut
		}
		return awstest.Fine
	})
	v, err := b.engine.Commit(t.Context(), change("row", 0, message("q", "m")))
	if v != 1 || err != nil {
		t.Errorf("version %d, %v", v, err)
	}
	if got, _ := b.drain("q"); got["m"] != 1 {
		t.Errorf("messages %v", got)
	}
	// Somebody else's is a conflict all the same.
	if _, err := b.engine.Commit(t.Context(), change("row", 0)); !errors.Is(err, store.ErrConflict) {
		t.Errorf("created again: %v", err)
	}
}

// TestWriterGone: what a writer did not send the relay does, when the writer has had its time, and the item holds nothing any more.
func TestWriterGone(t *testing.T) {
	b := newBench(t, 1)
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "SendMessageBatch" {
			return awstest.Broken
		}
		return awstest.Fine
	})
	b.commit(change("row", 0, message("q", "m")))
	b.restart()
	b.wantItems("not sent", "e k m: n p q s t v")
	b.d.Failing(nil)
	b.clock.Advance(50 * time.Second)
	if n := b.relay(); n != 0 {
		t.Errorf("%d messages were taken from a writer that may still send them", n)
	}
	b.clock.Advance(11 * time.Second)
	if n := b.relay(); n != 1 {
		t.Errorf("the relay sent %d messages", n)
	}
	b.wantItems("sent", "e k n p s v")
	if n := b.relay(); n != 0 {
		t.Errorf("the relay sent %d messages again", n)
	}
	if got, _ := b.drain("q"); got["m"] != 1 {
		t.Errorf("messages %v", got)
	}
}

// TestQueueDoesNotAnswer: the commit is durable and says so; its message comes when the queue does.
func TestQueueDoesNotAnswer(t *testing.T) {
	b := newBench(t, 1)
	b.engine.SetPatience(10 * time.Millisecond)
	hang := make(chan struct{})
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "SendMessageBatch" {
			<-hang
		}
		return awstest.Fine
	})
	b.commit(change("row", 0, message("q", "m")))
	close(hang)
	b.restart()
	b.d.Failing(nil)
	b.wantItems("answered", "e k n p s v")
	if got, _ := b.drain("q"); got["m"] != 1 {
		t.Errorf("messages %v", got)
	}
}

// TestTidyingLost: the message was sent, but the item was not told. It is sent again, under the same ID.
func TestTidyingLost(t *testing.T) {
	b := newBench(t, 1)
	updates := 0
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "UpdateItem" {
			updates++
		}
		if op == "UpdateItem" && updates > 1 {
			return awstest.Throttle
		}
		return awstest.Fine
	})
	b.commit(change("row", 0, message("q", "m")))
	b.restart()
	b.d.Failing(nil)
	_, first := b.drain("q")
	b.clock.Advance(2 * time.Minute)
	if n := b.relay(); n != 1 {
		t.Errorf("the relay sent %d messages", n)
	}
	_, second := b.drain("q")
	if len(first) != 1 || !maps.Equal(first, second) {
		t.Errorf("delivered under %v, then under %v", first, second)
	}
	b.wantItems("afterwards", "e k n p s v")
}

// TestTwoRelays: replicas that relay at the same time may send twice, under one ID, and leave the item in order.
func TestTwoRelays(t *testing.T) {
	b := newBench(t, 1)
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "SendMessageBatch" {
			return awstest.Broken
		}
		return awstest.Fine
	})
	for i := range 20 {
		b.commit(change(fmt.Sprint(i), 0, message("q", fmt.Sprint(i))))
	}
	b.restart()
	b.d.Failing(nil)
	other := b.open(1)
	b.clock.Advance(2 * time.Minute)
	var wg sync.WaitGroup
	for _, e := range []*aws.Engine{b.engine, other} {
		wg.Go(func() {
			if _, err := e.Relay(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	bodies, ids := b.drain("q")
	if len(bodies) != 20 || len(ids) != 20 {
		t.Errorf("%d bodies under %d IDs", len(bodies), len(ids))
	}
	b.wantItems("afterwards", slices.Repeat([]string{"e k n p s v"}, 20)...)
}

// TestTimers: what is due late waits in its item, beside what is due now, and is delivered at its time, not before.
func TestTimers(t *testing.T) {
	b := newBench(t, 1)
	due := b.clock.Now().Add(time.Hour)
	b.commit(change("row", 0, store.Message{Queue: "q", Body: []byte("late"), Due: due}, message("q", "now")))
	b.restart()
	b.wantItems("one waits", "e k m: n p q s t v")
	if got, _ := b.drain("q"); got["now"] != 1 || len(got) != 1 {
		t.Errorf("at first: %v", got)
	}
	// The row changes, with and without messages; the timer stays.
	b.commit(change("row", 1))
	b.commit(change("row", 2, message("q", "more")))
	b.restart()
	b.wantItems("it still waits", "e k m: n p q s t v")
	if got, _ := b.drain("q"); got["more"] != 1 || len(got) != 1 {
		t.Errorf("then: %v", got)
	}
	for b.clock.Now().Before(due.Add(-11 * time.Minute)) {
		b.clock.Advance(30 * time.Second)
		if n := b.relay(); n != 0 {
			t.Fatalf("sent at %s, due at %s", b.clock.Now(), due)
		}
	}
	b.clock.Advance(2 * time.Minute)
	if n := b.relay(); n != 1 {
		t.Errorf("the relay sent %d messages", n)
	}
	b.wantItems("it is in the queue", "e k n p s v")
	for b.clock.Now().Before(due) {
		if got, _ := b.drain("q"); len(got) != 0 {
			t.Fatalf("delivered at %s, due at %s", b.clock.Now(), due)
		}
		b.clock.Advance(10 * time.Second)
	}
	b.clock.Advance(time.Second)
	if got, _ := b.drain("q"); got["late"] != 1 {
		t.Errorf("at its time: %v", got)
	}
}

// TestDeletedRowWithMessages: nothing shows the row, its messages come, and then nothing is left; in between the key is free.
func TestDeletedRowWithMessages(t *testing.T) {
	for _, again := range []bool{false, true} {
		b := newBench(t, 1)
		b.commit(change("row", 0))
		b.d.Failing(func(_ int, op string) awstest.Fault {
			if op == "SendMessageBatch" {
				return awstest.Broken
			}
			return awstest.Fine
		})
		c := change("row", 1, message("q", "last"))
		c.Delete = true
		b.commit(c)
		b.restart()
		b.d.Failing(nil)
		b.wantItems("deleted", "e k m: n p q s t")
		if _, err := b.engine.Get(t.Context(), c.Row.Key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got a deleted row: %v", err)
		}
		for name, read := range map[string]func() (store.Page, error){
			"query": func() (store.Page, error) { return b.engine.Query(t.Context(), "p", "", "", 0) },
			"walk":  func() (store.Page, error) { return b.engine.Walk(t.Context(), "", 0) },
		} {
			if page, err := read(); err != nil || len(page.Rows) != 0 {
				t.Errorf("%s: %d rows, %v", name, len(page.Rows), err)
			}
		}
		want := []string{}
		if again {
			b.commit(change("row", 0))
			want = append(want, "e k n p s v")
		}
		b.clock.Advance(2 * time.Minute)
		b.relay()
		b.wantItems("sent", want...)
		if got, _ := b.drain("q"); got["last"] != 1 {
			t.Errorf("messages %v", got)
		}
	}
}

// TestLateIndex: the outbox shows what was there some time ago. What is gone is not sent again, what it does not show is sent later.
func TestLateIndex(t *testing.T) {
	b := newLateBench(t, 1, math.MaxInt64)
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "SendMessageBatch" {
			return awstest.Broken
		}
		return awstest.Fine
	})
	b.commit(change("row", 0, message("q", "m")))
	b.restart()
	b.d.Failing(nil)
	b.clock.Advance(2 * time.Minute)
	if n := b.relay(); n != 0 {
		t.Errorf("the relay sent %d messages that it cannot see", n)
	}
	b.d.Settle()
	if n := b.relay(); n != 1 {
		t.Errorf("the relay sent %d messages", n)
	}
	for range 3 {
		if n := b.relay(); n != 0 {
			t.Errorf("the relay sent %d messages that were sent", n)
		}
	}
	if got, _ := b.drain("q"); got["m"] != 1 {
		t.Errorf("messages %v", got)
	}
}

// TestPartialBatches: what the services leave out of a batch is done all the same.
func TestPartialBatches(t *testing.T) {
	b := newBench(t, 1)
	var c store.Change
	for i := range 16 {
		c = change("row", 0, append(c.Messages, message("q", fmt.Sprint(i)))...)
	}
	for i := range 60 {
		c.Blobs = append(c.Blobs, store.RawBlob(fmt.Append(nil, i)))
	}
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "BatchWriteItem" || op == "SendMessageBatch" || op == "DeleteMessageBatch" {
			return awstest.Partial
		}
		return awstest.Fine
	})
	b.commit(c)
	b.restart()
	// The writer has sent all of them: nothing waits for the relay. What is acknowledged together is gone.
	ds := b.receiveAll("q")
	if len(ds) != 16 {
		t.Errorf("%d messages came", len(ds))
	}
	var acking sync.WaitGroup
	for _, d := range ds {
		acking.Go(func() {
			if err := b.engine.Ack(t.Context(), d); err != nil {
				t.Errorf("acknowledging: %v", err)
			}
		})
	}
	acking.Wait()
	for _, blob := range c.Blobs {
		if _, err := b.engine.Has(t.Context(), blob.CID); err != nil {
			t.Errorf("blob %s: %v", blob.CID, err)
		}
	}
	b.d.Failing(nil)
	b.clock.Advance(2 * time.Minute)
	b.relay()
	if got, _ := b.drain("q"); len(got) != 0 {
		t.Errorf("messages again %v", got)
	}
	b.wantItems("afterwards", "e k n p s v")

	// A table that takes nothing is reported, and the row is not written.
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "BatchWriteItem" {
			return awstest.Throttle
		}
		return awstest.Fine
	})
	c.Row.Sort = "other"
	if _, err := b.engine.Commit(t.Context(), c); err == nil {
		t.Error("committed without its blobs")
	}
	if _, err := b.engine.Get(t.Context(), c.Row.Key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("row without its blobs: %v", err)
	}
}

// TestClocksDiffer: a replica whose clock is ahead sends what another is about to; under the same ID, and nothing is lost.
func TestClocksDiffer(t *testing.T) {
	b := newBench(t, 1)
	o := b.options(benchRole, 1)
	o.Now = func() time.Time { return b.clock.Now().Add(90 * time.Second) }
	ahead, err := aws.Open(t.Context(), b.d.Location(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer ahead.Close()
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "SendMessageBatch" {
			return awstest.Broken
		}
		return awstest.Fine
	})
	b.commit(change("row", 0, message("q", "m"), store.Message{Queue: "q", Body: []byte("late"), Due: b.clock.Now().Add(time.Hour)}))
	b.restart()
	b.d.Failing(nil)
	if n, err := ahead.Relay(t.Context()); n != 1 || err != nil {
		t.Errorf("the replica ahead sent %d, %v", n, err)
	}
	b.clock.Advance(time.Hour)
	if n := b.relay(); n != 1 {
		t.Errorf("the other one sent %d", n)
	}
	b.clock.Advance(time.Minute)
	if got, _ := b.drain("q"); got["m"] != 1 || got["late"] != 1 {
		t.Errorf("messages %v", got)
	}
}

// TestUnknownQueue: a message that could not be sent is not promised.
func TestUnknownQueue(t *testing.T) {
	b := newBench(t, 1)
	for _, queue := range []string{"nowhere", "not a name", strings.Repeat("n", 41)} {
		if _, err := b.engine.Commit(t.Context(), change("row", 0, message(queue, "m"))); err == nil {
			t.Errorf("committed a message to %q", queue)
		}
	}
	b.wantItems("afterwards")
}

// TestDeadQueue: what SQS moved away becomes a dead letter, whatever it is.
func TestDeadQueue(t *testing.T) {
	b := newBench(t, 1)
	b.commit(change("row", 0, message("q", "crasher")))
	d, err := b.engine.Receive(t.Context(), "q", 1, time.Second)
	if err != nil || len(d) != 1 {
		t.Fatalf("received %v, %v", d, err)
	}
	dead := b.d.Location().DeadQueueName(benchRole)
	b.d.Move(b.d.Location().QueueName(benchRole, "q"), dead)
	b.d.Put(dead, "foreign", "not ours")
	b.clock.Advance(time.Minute)
	if err := b.engine.DrainDead(t.Context()); err != nil {
		t.Fatal(err)
	}
	letters, _, err := store.ListDead(t.Context(), b.engine, "", "", 0)
	if err != nil || len(letters) != 2 {
		t.Fatalf("dead letters %+v, %v", letters, err)
	}
	if l := letters[0]; l.ID != "q/"+d[0].ID || string(l.Body) != "crasher" || l.Attempts != 2 || !l.Enqueued.Equal(d[0].Enqueued) {
		t.Errorf("dead letter %+v of delivery %+v", l, d[0])
	}
	if l := letters[1]; l.ID != "unknown/foreign" || string(l.Body) != "not ours" {
		t.Errorf("dead letter %+v", l)
	}
	if err := store.RetryDead(t.Context(), b.engine, letters[0].ID); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.drain("q"); got["crasher"] != 1 {
		t.Errorf("retried: %v", got)
	}
}

// TestLeaseEnds: who held a message too long is told, though the service would not.
func TestLeaseEnds(t *testing.T) {
	b := newBench(t, 1)
	b.commit(change("row", 0, message("q", "m")))
	receive := func() store.Delivery {
		t.Helper()
		ds, err := b.engine.Receive(t.Context(), "q", 1, time.Minute)
		if err != nil || len(ds) != 1 {
			t.Fatalf("received %v, %v", ds, err)
		}
		return ds[0]
	}
	first := receive()
	b.clock.Advance(2 * time.Minute)
	second := receive()
	if err := b.engine.Ack(t.Context(), first); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("acknowledged by a stale holder: %v", err)
	}
	// Prolongations end after twelve hours.
	var err error
	began := b.clock.Now()
	for err == nil && b.clock.Now().Sub(began) < 13*time.Hour {
		b.clock.Advance(50 * time.Second)
		err = b.engine.Extend(t.Context(), second, time.Minute)
	}
	if held := b.clock.Now().Sub(began); !errors.Is(err, store.ErrLeaseLost) || held < 11*time.Hour || held > 12*time.Hour+time.Minute {
		t.Errorf("held for %s, then %v", held, err)
	}
	// An acknowledgement that failed may be repeated.
	b.clock.Advance(time.Minute)
	third := receive()
	fails := 1
	b.d.Failing(func(_ int, op string) awstest.Fault {
		if op == "DeleteMessageBatch" && fails > 0 {
			fails--
			return awstest.Broken
		}
		return awstest.Fine
	})
	if err := b.engine.Ack(t.Context(), third); err == nil || errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("failed acknowledgement: %v", err)
	}
	if err := b.engine.Ack(t.Context(), third); err != nil {
		t.Errorf("repeated: %v", err)
	}
}

// TestPoll: a queue that was empty is left alone for a while, unless this process sent something.
func TestPoll(t *testing.T) {
	b := newBench(t, 1)
	o := b.options(benchRole, 1)
	o.Poll = time.Second
	e, err := aws.Open(t.Context(), b.d.Location(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	receive := func() int {
		t.Helper()
		ds, err := e.Receive(t.Context(), "q", 1, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if err := e.Ack(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		return len(ds)
	}
	for range 10 {
		receive()
	}
	if n := b.d.Count("ReceiveMessage"); n != 1 {
		t.Errorf("an empty queue was looked into %d times", n)
	}
	// Whoever comes while somebody is looking finds nothing: the other one will see. The double answers nobody meanwhile.
	b.clock.Advance(time.Second)
	asked, answered := make(chan struct{}), make(chan struct{})
	b.d.Failing(func(int, string) awstest.Fault {
		close(asked)
		<-answered
		return awstest.Fine
	})
	var looking sync.WaitGroup
	looking.Go(func() { receive() })
	<-asked
	for range 10 {
		receive()
	}
	close(answered)
	looking.Wait()
	b.d.Failing(nil)
	if n := b.d.Count("ReceiveMessage"); n != 2 {
		t.Errorf("several looked into an empty queue at a time, %d times", n)
	}
	if _, err := e.Commit(t.Context(), change("row", 0, message("q", "m"))); err != nil {
		t.Fatal(err)
	}
	if n := receive(); n != 1 {
		t.Errorf("received %d of one message that was just sent", n)
	}
	receive()
	b.commit(change("other", 0, message("q", "m"))) // by another process
	if n := receive(); n != 0 {
		t.Errorf("received %d at once", n)
	}
	b.clock.Advance(time.Second)
	if n := receive(); n != 1 {
		t.Errorf("received %d after the pause", n)
	}
	// Looked at all the time for an hour, in which nothing comes.
	before := b.d.Count("ReceiveMessage")
	for range 3600 {
		b.clock.Advance(time.Second)
		receive()
	}
	if n := b.d.Count("ReceiveMessage") - before; n < 360 || n > 420 {
		t.Errorf("a queue that was empty for an hour was looked into %d times", n)
	}
	b.commit(change("third", 0, message("q", "m"))) // by another process
	b.clock.Advance(10 * time.Second)
	if n := receive(); n != 1 {
		t.Errorf("received %d after the longest pause", n)
	}
	before = b.d.Count("ReceiveMessage")
	for range 4 {
		b.clock.Advance(time.Second)
		receive()
	}
	if n := b.d.Count("ReceiveMessage") - before; n != 4 {
		t.Errorf("a queue that had something was looked into %d times in 4 s", n)
	}
}

// TestBlobReading: a body that breaks off is taken up again where it did, and not for ever.
func TestBlobReading(t *testing.T) {
	b := newBench(t, 1)
	content := make([]byte, 300<<10)
	for i := range content {
		content[i] = byte(i >> 7)
	}
	blob := store.RawBlob(content)
	if err := store.PutBlob(t.Context(), b.engine, blob); err != nil {
		t.Fatal(err)
	}
	entry := store.Entry{CID: store.RawBlob(content[60<<10 : 200<<10]).CID, Offset: 60 << 10, Length: 140 << 10}
	for _, times := range []int{0, 1, 2, 4, 1000} {
		b.d.Failing(func(request int, op string) awstest.Fault {
			if op == "GET" && times > 0 {
				times--
				return awstest.Short
			}
			return awstest.Fine
		})
		_, whole := store.ReadBlob(t.Context(), b.engine, blob.CID, 1<<20)
		_, part := store.ReadEntry(t.Context(), b.engine, blob.CID, entry)
		if ended := times > 100; ended != (whole != nil) || ended != (part != nil) {
			t.Errorf("breaking off again and again, %v: whole %v, part %v", ended, whole, part)
		}
	}
}

// TestMoreShards: processes that know of more shards of the outbox send what those left that knew of fewer, and the other way round as far as they know.
func TestMoreShards(t *testing.T) {
	b := newBench(t, 1)
	open := func(shards int) *aws.Engine {
		o := b.options(benchRole, 1)
		where := b.d.Location()
		where.Shards = shards
		e, err := aws.Open(t.Context(), where, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		return e
	}
	few, many := open(1), open(64)
	later := func(e *aws.Engine, row string) {
		m := message("q", row)
		m.Due = b.clock.Now().Add(time.Hour)
		if _, err := e.Commit(t.Context(), change(row, 0, m)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 8 {
		later(few, fmt.Sprint("few", i))
		later(many, fmt.Sprint("many", i))
	}
	b.clock.Advance(time.Hour)
	if n, err := few.Relay(t.Context()); err != nil || n < 8 || n == 16 {
		t.Errorf("with one shard %d messages were sent, %v", n, err)
	}
	if _, err := many.Relay(t.Context()); err != nil {
		t.Error(err)
	}
	got := 0
	for {
		ds, err := many.Receive(t.Context(), "q", 10, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 0 {
			break
		}
		got += len(ds)
	}
	if got != 16 {
		t.Errorf("%d of 16 messages came", got)
	}
}
