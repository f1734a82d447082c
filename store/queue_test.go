package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

type job struct {
	N int `cbor:"1,keyasint"`
}

var jobs = store.NewQueue[job]("jobs")

// send commits a row with one message.
func send(t *testing.T, d store.Driver, n int) {
	t.Helper()
	var fx store.Effects
	jobs.Send(&fx, job{n})
	rec := store.Record[job]{Key: store.Key{Partition: "job", Sort: fmt.Sprint(n)}}
	if err := store.NewTable[job](d).Commit(t.Context(), &rec, fx); err != nil {
		t.Fatal(err)
	}
}

// bench is a consumer on a memory engine, with a clock that moves when told to.
type bench struct {
	*storetest.FakeClock
	engine   *memory.Engine
	driver   store.Driver // the engine, unless a test puts something in between
	options  store.ConsumerOptions
	outcomes []store.Outcome
}

func newBench(handle store.Handler) *bench {
	b := &bench{FakeClock: storetest.NewClock()}
	b.engine = memory.New(memory.Options{Now: b.Now})
	b.driver = b.engine
	b.options = store.ConsumerOptions{
		Driver:     b.engine,
		Queue:      jobs.Name,
		Handle:     handle,
		Now:        b.Now,
		Rand:       func() float64 { return 0.5 },
		Lease:      10 * time.Second,
		Attempts:   3,
		MinBackoff: 4 * time.Second,
		MaxBackoff: 6 * time.Second,
		Observe:    func(o store.Outcome) { b.outcomes = append(b.outcomes, o) },
	}
	return b
}

func (b *bench) consumer(t *testing.T) *store.Consumer {
	t.Helper()
	c, err := store.NewConsumer(b.options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bench) results() string {
	var s []string
	for _, o := range b.outcomes {
		s = append(s, string(o.Result))
	}
	return strings.Join(s, " ")
}

// step expects a step to find work, or not.
func step(t *testing.T, c *store.Consumer, want bool) {
	t.Helper()
	worked, err := c.Step(t.Context())
	if err != nil || worked != want {
		t.Fatalf("step: worked %v, %v, want %v", worked, err, want)
	}
}

func TestConsumerAcknowledges(t *testing.T) {
	var got []int
	b := newBench(jobs.Handler(func(_ context.Context, j job) error {
		got = append(got, j.N)
		return nil
	}))
	c := b.consumer(t)
	step(t, c, false)
	send(t, b.engine, 1)
	send(t, b.engine, 2)
	step(t, c, true)
	step(t, c, true)
	step(t, c, false)
	b.Advance(time.Hour)
	step(t, c, false)
	if diff := cmp.Diff([]int{1, 2}, got); diff != "" || b.results() != "done done" {
		t.Errorf("handled (-want +got):\n%s\nresults %s", diff, b.results())
	}
}

func TestConsumerRetriesThenBuries(t *testing.T) {
	ctx := t.Context()
	attempts := 0
	b := newBench(func(context.Context, store.Delivery) error {
		attempts++
		return fmt.Errorf("failure %d", attempts)
	})
	var ended []string
	b.options.OnDead = func(ctx context.Context, d store.Delivery, cause error) error {
		j, err := jobs.Decode(d.Body)
		if err != nil {
			return err
		}
		if _, err := store.GetDead(ctx, b.engine, jobs.Name+"/"+d.ID); err != nil {
			t.Errorf("OnDead before the dead letter is written: %v", err)
		}
		if b.engine.Waiting()[jobs.Name] != 1 {
			t.Error("OnDead after the acknowledgement")
		}
		ended = append(ended, fmt.Sprint(j.N, " ", cause))
		return nil
	}
	c := b.consumer(t)
	send(t, b.engine, 7)

	// With jitter 0.5: 4 s give 3, then 6 (8 capped) give 4.5.
	for i, delay := range []time.Duration{3 * time.Second, 4500 * time.Millisecond} {
		step(t, c, true)
		b.Advance(delay - 1)
		step(t, c, false)
		b.Advance(1)
		if attempts != i+1 {
			t.Fatalf("%d attempts after step %d", attempts, i+1)
		}
	}
	step(t, c, true)
	b.Advance(time.Hour)
	step(t, c, false)
	if b.results() != "retried retried dead" || attempts != 3 {
		t.Errorf("results %s after %d attempts", b.results(), attempts)
	}
	if diff := cmp.Diff([]string{"7 failure 3"}, ended); diff != "" {
		t.Errorf("OnDead (-want +got):\n%s", diff)
	}

	letters, next, err := store.ListDead(ctx, b.engine, "", "", 0)
	if err != nil || next != "" || len(letters) != 1 {
		t.Fatalf("dead letters: %v, %q, %v", letters, next, err)
	}
	dead := letters[0]
	body, err := store.Encode(job{7})
	if err != nil {
		t.Fatal(err)
	}
	want := store.DeadLetter{
		ID: dead.ID, Queue: jobs.Name, Body: body, Error: "failure 3", Attempts: 3, Enqueued: start, Died: start.Add(7500 * time.Millisecond),
		History: []store.Failure{
			{Attempt: 1, At: start, Error: "failure 1"},
			{Attempt: 2, At: start.Add(3 * time.Second), Error: "failure 2"},
			{Attempt: 3, At: start.Add(7500 * time.Millisecond), Error: "failure 3"},
		},
	}
	if diff := cmp.Diff(want, dead); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(dead.ID, "jobs/") {
		t.Errorf("ID %q does not begin with the queue", dead.ID)
	}
	if other, _, err := store.ListDead(ctx, b.engine, "job", "", 0); err != nil || len(other) != 0 {
		t.Errorf("dead letters of another queue: %v, %v", other, err)
	}
}

func TestDeadLetterIsWrittenBeforeItsMessageGoes(t *testing.T) {
	b := newBench(func(context.Context, store.Delivery) error { return errors.New("no") })
	b.options.Attempts = 1
	refuse := true
	calls := 0
	b.options.OnDead = func(_ context.Context, _ store.Delivery, cause error) error {
		calls++
		if cause.Error() != "no" {
			t.Errorf("cause %q", cause)
		}
		if refuse {
			return errors.New("cannot end the work yet")
		}
		return nil
	}
	c := b.consumer(t)
	send(t, b.engine, 1)
	step(t, c, true)
	if b.results() != "retried" || b.engine.Waiting()[jobs.Name] != 1 {
		t.Fatalf("results %s, waiting %v", b.results(), b.engine.Waiting())
	}
	refuse = false
	b.Advance(time.Hour)
	step(t, c, true)
	step(t, c, false)
	if b.results() != "retried dead" || calls != 2 || b.engine.Waiting()[jobs.Name] != 0 {
		t.Errorf("results %s, OnDead called %d times, waiting %v", b.results(), calls, b.engine.Waiting())
	}
}

func TestMessageThatKillsTheProcessEnds(t *testing.T) {
	ctx := t.Context()
	b := newBench(func(context.Context, store.Delivery) error { t.Error("handled again"); return nil })
	c := b.consumer(t)
	send(t, b.engine, 1)
	for range b.options.Attempts { // received, and never heard of again
		if ds, err := b.engine.Receive(ctx, jobs.Name, 1, time.Second); err != nil || len(ds) != 1 {
			t.Fatalf("received %v, %v", ds, err)
		}
		b.Advance(time.Second)
	}
	step(t, c, true)
	letters, _, err := store.ListDead(ctx, b.engine, jobs.Name, "", 0)
	if err != nil || len(letters) != 1 || !strings.Contains(letters[0].Error, "without an outcome") {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}

func TestRetryAndDropDead(t *testing.T) {
	ctx := t.Context()
	fail := true
	b := newBench(func(context.Context, store.Delivery) error {
		if fail {
			return errors.New("no")
		}
		return nil
	})
	b.options.Attempts = 1
	c := b.consumer(t)
	bury := func() string {
		send(t, b.engine, len(b.outcomes))
		step(t, c, true)
		letters, _, err := store.ListDead(ctx, b.engine, "", "", 0)
		if err != nil || len(letters) != 1 {
			t.Fatalf("dead letters: %v, %v", letters, err)
		}
		return letters[0].ID
	}

	id := bury()
	if err := store.DropDead(ctx, b.engine, id); err != nil {
		t.Fatal(err)
	}
	step(t, c, false)
	for name, err := range map[string]error{
		"get":   second(store.GetDead(ctx, b.engine, id)),
		"drop":  store.DropDead(ctx, b.engine, id),
		"retry": store.RetryDead(ctx, b.engine, id),
	} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s after drop: %v", name, err)
		}
	}

	id = bury()
	// The commit succeeds but is reported as a conflict: still a success, and one message only.
	lying := rowsFunc{b.engine, func(ctx context.Context, ch store.Change) (uint64, error) {
		if _, err := b.engine.Commit(ctx, ch); err != nil {
			return 0, err
		}
		return 0, store.ErrConflict
	}}
	if err := store.RetryDead(ctx, lying, id); err != nil {
		t.Fatal(err)
	}
	fail = false
	step(t, c, true)
	step(t, c, false)
	if got := b.results(); got != "dead dead done" {
		t.Errorf("results %s", got)
	}
	if _, err := store.GetDead(ctx, b.engine, id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("dead letter after retry: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPanicIsAFailure(t *testing.T) {
	b := newBench(func(context.Context, store.Delivery) error { panic("\xff" + strings.Repeat("é", 4<<10)) })
	b.options.Attempts = 1
	b.options.OnDead = func(context.Context, store.Delivery, error) error { panic("again") }
	c := b.consumer(t)
	send(t, b.engine, 1)
	step(t, c, true)
	if b.results() != "retried" || !strings.Contains(b.outcomes[0].Err.Error(), "panic: again") {
		t.Errorf("results %s, %v", b.results(), b.outcomes[0].Err)
	}
	letters, _, err := store.ListDead(t.Context(), b.engine, "", "", 0)
	if err != nil || len(letters) != 1 || len(letters[0].Error) > 5<<10 || !strings.HasPrefix(letters[0].Error, "panic: \uFFFD") {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}

func TestUndecodableMessageDies(t *testing.T) {
	b := newBench(jobs.Handler(func(context.Context, job) error { t.Error("handled"); return nil }))
	b.options.Attempts = 1
	c := b.consumer(t)
	_, err := b.engine.Commit(t.Context(), store.Change{
		Row:      store.Row{Key: store.Key{Partition: "p"}},
		Messages: []store.Message{{Queue: jobs.Name, Body: []byte("?")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	step(t, c, true)
	if b.results() != "dead" {
		t.Errorf("results %s", b.results())
	}
}

func TestLostLeaseIsNotAcknowledged(t *testing.T) {
	b := newBench(nil)
	b.options.Handle = func(ctx context.Context, d store.Delivery) error {
		if d.Attempt > 1 {
			return nil
		}
		b.Advance(b.options.Lease) // too slow, and without a heartbeat
		ds, err := b.engine.Receive(ctx, jobs.Name, 1, b.options.Lease)
		if err != nil || len(ds) != 1 {
			t.Errorf("received %v, %v", ds, err)
		}
		return nil
	}
	c := b.consumer(t)
	send(t, b.engine, 1)
	step(t, c, true)
	if b.results() != "lost" || b.engine.Waiting()[jobs.Name] != 1 {
		t.Fatalf("results %s, waiting %v", b.results(), b.engine.Waiting())
	}
	b.Advance(b.options.Lease)
	step(t, c, true)
	if b.results() != "lost done" || b.engine.Waiting()[jobs.Name] != 0 {
		t.Errorf("results %s, waiting %v", b.results(), b.engine.Waiting())
	}
}

// In a synctest bubble time.Now and time.After are the bubble's clock.
func bubbleBench(handle store.Handler) *bench {
	b := newBench(handle)
	b.engine = memory.New(memory.Options{Now: time.Now})
	b.driver = b.engine
	b.options.Driver = b.engine
	b.options.Now = time.Now
	b.options.After = time.After
	return b
}

func TestHeartbeatKeepsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bubbleBench(func(ctx context.Context, _ store.Delivery) error {
			select {
			case <-ctx.Done():
			case <-time.After(95 * time.Second): // many leases
			}
			return ctx.Err()
		})
		c := b.consumer(t)
		send(t, b.engine, 1)
		step(t, c, true)
		if b.results() != "done" || b.outcomes[0].Took != 95*time.Second {
			t.Errorf("results %s, took %v, %v", b.results(), b.outcomes[0].Took, b.outcomes[0].Err)
		}
	})
}

// extendFails is a driver whose Extend fails.
type extendFails struct {
	store.Driver
	err error
}

func (e extendFails) Extend(context.Context, store.Delivery, time.Duration) error { return e.err }

func TestLostLeaseCancelsTheHandler(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		at   time.Duration // when the handler is cancelled; beats are at thirds of the lease of 9 s
	}{
		{"at once when somebody else has it", store.ErrLeaseLost, 3 * time.Second},
		{"at its end when the engine is out of reach", errors.New("out of reach"), 9 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at time.Duration
				began := time.Now()
				b := bubbleBench(func(ctx context.Context, _ store.Delivery) error {
					<-ctx.Done()
					at = time.Since(began)
					return nil
				})
				b.options.Lease = 9 * time.Second
				b.options.Driver = extendFails{b.engine, tc.err}
				c := b.consumer(t)
				send(t, b.engine, 1)
				step(t, c, true)
				if b.results() != "lost" || at != tc.at || b.engine.Waiting()[jobs.Name] != 1 {
					t.Errorf("results %s, cancelled after %v, waiting %v", b.results(), at, b.engine.Waiting())
				}
			})
		})
	}
}

func TestInterruptedHandlerGivesTheMessageBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := bubbleBench(func(ctx context.Context, d store.Delivery) error {
			if d.Attempt > 1 {
				return nil
			}
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		b.options.Attempts = 2
		c := b.consumer(t)
		send(t, b.engine, 1)
		if worked, err := c.Step(ctx); !worked || err != nil {
			t.Fatalf("step: %v, %v", worked, err)
		}
		step(t, c, true) // without a delay
		if b.results() != "retried done" {
			t.Errorf("results %s", b.results())
		}
	})
}

func TestConsumerOptionsAreChecked(t *testing.T) {
	whole := newBench(func(context.Context, store.Delivery) error { return nil }).options
	for name, spoil := range map[string]func(*store.ConsumerOptions){
		"Driver": func(o *store.ConsumerOptions) { o.Driver = nil },
		"Queue":  func(o *store.ConsumerOptions) { o.Queue = "" },
		"Handle": func(o *store.ConsumerOptions) { o.Handle = nil },
		"Now":    func(o *store.ConsumerOptions) { o.Now = nil },
		"Rand":   func(o *store.ConsumerOptions) { o.Rand = nil },
	} {
		o := whole
		spoil(&o)
		if _, err := store.NewConsumer(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestPoolWorksAndDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		handled := make(map[string]int)
		engine := memory.New(memory.Options{Now: time.Now})
		waker := store.NewWaker(engine)
		slow := make(chan struct{})
		c, err := store.NewConsumer(store.ConsumerOptions{
			Driver: waker, Queue: jobs.Name, Now: time.Now, After: time.After, Rand: func() float64 { return 0 },
			Handle: func(ctx context.Context, d store.Delivery) error {
				mu.Lock()
				handled[d.ID]++
				last := len(handled) == n
				mu.Unlock()
				if last {
					cancel()
					<-slow // is at work while the pool is asked to stop
					if ctx.Err() != nil {
						t.Error("interrupted within the grace period")
					}
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			send(t, waker, i)
		}
		began := time.Now()
		go func() {
			<-ctx.Done()
			<-time.After(3 * time.Second)
			close(slow)
		}()
		store.Pool{
			Step: c.Step, Workers: 4, Idle: time.Hour, Grace: 5 * time.Second, After: time.After, Wake: waker.Wake(jobs.Name),
			OnError: func(err error) { t.Error(err) },
		}.Run(ctx)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("ended after %v", took)
		}
		for id, times := range handled {
			if times != 1 {
				t.Errorf("message %s handled %d times", id, times)
			}
		}
		if len(handled) != n || engine.Waiting()[jobs.Name] != 0 {
			t.Errorf("%d messages handled, waiting %v", len(handled), engine.Waiting())
		}
	})
}

func TestPoolInterruptsAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		store.Pool{
			Step: func(ctx context.Context) (bool, error) {
				cancel()
				<-ctx.Done()
				return true, nil
			},
			Workers: 2, Idle: time.Second, Grace: 5 * time.Second, After: time.After,
		}.Run(ctx)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestPoolWakesAndIdles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		wake := make(chan struct{}, 1)
		var steps atomic.Int64
		var failures atomic.Int64
		var done sync.WaitGroup
		done.Go(func() {
			store.Pool{
				Step: func(context.Context) (bool, error) {
					if steps.Add(1) == 2 {
						return true, errors.New("engine fault") // is not a reason to spin
					}
					return false, nil
				},
				Workers: 1, Idle: time.Minute, Grace: time.Second, After: time.After, Wake: wake,
				OnError: func(error) { failures.Add(1) },
			}.Run(ctx)
		})
		expect := func(when string, want int64) {
			t.Helper()
			synctest.Wait()
			if got := steps.Load(); got != want {
				t.Errorf("%s: %d steps, want %d", when, got, want)
			}
		}
		expect("at the start", 1)
		wake <- struct{}{}
		expect("woken", 2)
		<-time.After(59 * time.Second)
		expect("idle", 2)
		<-time.After(2 * time.Second)
		expect("after idling", 3)
		cancel()
		done.Wait()
		if failures.Load() != 1 {
			t.Errorf("%d errors reported", failures.Load())
		}
	})
}
