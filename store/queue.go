package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Handler does the work of one message. It is called again with the same message after an error, a crash or a lost lease, so it
// must be safe to repeat. When ctx is cancelled the work is no longer this handler's, or the process is about to stop.
type Handler func(ctx context.Context, d Delivery) error

// Defaults of [ConsumerOptions]. A message that fails every time is dead after about nine hours.
const (
	DefaultLease      = time.Minute
	DefaultAttempts   = 20
	DefaultMinBackoff = time.Second
	DefaultMaxBackoff = time.Hour
)

// ConsumerOptions configures a [Consumer]. Driver, Queue, Handle, Now and Rand are required.
type ConsumerOptions struct {
	Driver Driver
	Queue  string
	Handle Handler

	// OnDead, if set, ends the work of a message whose attempts are used up, so that nobody waits for it in silence. It is called after the
	// dead letter is written and before the message is acknowledged; when it fails it is called again later, so it must be safe to
	// repeat. cause is the error of the last attempt.
	OnDead func(ctx context.Context, d Delivery, cause error) error

	// Now is the clock.
	Now func() time.Time

	// Rand returns numbers in [0, 1): the jitter of retries.
	Rand func() float64

	// After starts a timer, as time.After does. With it the lease is prolonged while a handler runs; without it a handler has to be done
	// within the lease.
	After func(d time.Duration) <-chan time.Time

	Lease      time.Duration // how long a message is ours without a sign of life; 0: DefaultLease
	Attempts   int           // deliveries before a message is dead; 0: DefaultAttempts
	MinBackoff time.Duration // delay after the first failure, doubled with each further one; 0: DefaultMinBackoff
	MaxBackoff time.Duration // 0: DefaultMaxBackoff

	// Observe, if set, is told how each delivery ended. It is the place for logs and metrics.
	Observe func(Outcome)
}

// Outcome is how one delivery of a message ended.
type Outcome struct {
	Delivery Delivery
	Result   Result
	Err      error         // the handler's error, nil for Done
	Took     time.Duration // how long the handler ran
}

// Result is how one delivery of a message ended, in a word.
type Result string

// Results of a delivery.
const (
	Done    Result = "done"    // handled and acknowledged
	Retried Result = "retried" // failed, will be delivered again
	Dead    Result = "dead"    // failed for the last time: a dead letter now
	Lost    Result = "lost"    // the lease ended before the handler: somebody else has it, or will have
)

// Consumer handles the messages of one queue. It is safe for concurrent use: several goroutines may call Step.
type Consumer struct {
	o    ConsumerOptions
	dead Table[DeadLetter]

	mu       sync.Mutex
	failures map[string][]Failure // of messages this process has seen fail
}

// NewConsumer returns a consumer, or an error that names the missing option.
func NewConsumer(o ConsumerOptions) (*Consumer, error) {
	switch {
	case o.Driver == nil:
		return nil, errors.New("consumer: Driver is missing")
	case o.Queue == "":
		return nil, errors.New("consumer: Queue is missing")
	case o.Handle == nil:
		return nil, fmt.Errorf("consumer of %s: Handle is missing", o.Queue)
	case o.Now == nil:
		return nil, fmt.Errorf("consumer of %s: Now is missing", o.Queue)
	case o.Rand == nil:
		return nil, fmt.Errorf("consumer of %s: Rand is missing", o.Queue)
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	if o.Attempts == 0 {
		o.Attempts = DefaultAttempts
	}
	if o.MinBackoff == 0 {
		o.MinBackoff = DefaultMinBackoff
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = DefaultMaxBackoff
	}
	if o.Observe == nil {
		o.Observe = func(Outcome) {}
	}
	return &Consumer{o: o, dead: NewTable[DeadLetter](o.Driver), failures: make(map[string][]Failure)}, nil
}

// Step receives one message and handles it; worked is false if none was due. The error is a fault of the engine, never of the handler:
// handlers' errors lead to another delivery, and in the end to a dead letter. The message is safe in either case.
//
// When ctx is cancelled, the handler's context is too; what it achieved is still acknowledged, and a message it gave up
// on is given back at once.
func (c *Consumer) Step(ctx context.Context) (worked bool, err error) {
	began := c.o.Now()
	received, err := c.o.Driver.Receive(ctx, c.o.Queue, 1, c.o.Lease)
	if err != nil {
		return false, fmt.Errorf("receiving from %s: %w", c.o.Queue, err)
	}
	if len(received) == 0 {
		return false, nil
	}
	d := received[0]
	out := Outcome{Delivery: d}
	started := c.o.Now()
	err = c.holding(ctx, d, began.Add(c.o.Lease), func(ctx context.Context) error {
		out.Result, out.Err = c.attempt(ctx, d)
		out.Took = c.o.Now().Sub(started)
		if out.Result != Dead {
			return nil
		}
		return c.bury(ctx, d, out.Err)
	})

	// The outcome is made known even if we are asked to stop: it saves somebody the work of doing it again.
	end := context.WithoutCancel(ctx)
	switch {
	case errors.Is(err, ErrLeaseLost):
		// Nothing to acknowledge: whoever has the message now decides.
	case err != nil: // the dead letter could not be written, or its work not be ended: once more
		out.Result, out.Err = Retried, err
		err = c.o.Driver.Retry(end, d, c.backoff(d.Attempt))
	case out.Result == Retried && ctx.Err() != nil:
		err = c.o.Driver.Retry(end, d, 0)
	case out.Result == Retried:
		c.remember(d, out.Err)
		err = c.o.Driver.Retry(end, d, c.backoff(d.Attempt))
	default:
		err = c.o.Driver.Ack(end, d)
	}
	if errors.Is(err, ErrLeaseLost) {
		out.Result, err = Lost, nil
	}
	if out.Result != Retried {
		c.forget(d)
	}
	c.o.Observe(out)
	if err != nil {
		return true, fmt.Errorf("ending delivery %d of message %s/%s: %w", d.Attempt, c.o.Queue, d.ID, err)
	}
	return true, nil
}

// attempt runs the handler and says what follows from how it ended.
func (c *Consumer) attempt(ctx context.Context, d Delivery) (Result, error) {
	// More deliveries than attempts: each of them ended without an outcome (the process died, perhaps by this message), or the end of
	// the work failed after the last one. Either way the handler had its chances.
	if d.Attempt > c.o.Attempts {
		return Dead, fmt.Errorf("%d deliveries without an outcome", d.Attempt-1)
	}
	err := recovered(ctx, d, c.o.Handle)
	switch {
	case err == nil:
		return Done, nil
	case ctx.Err() != nil:
		return Retried, err // interrupted rather than failed
	case d.Attempt >= c.o.Attempts:
		return Dead, err
	}
	return Retried, err
}

// recovered calls the handler and turns a panic into an error.
func recovered(ctx context.Context, d Delivery, handle Handler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return handle(ctx, d)
}

// holding runs work and prolongs the message's lease meanwhile. When the lease is lost, work's context is cancelled and the error is
// ErrLeaseLost, whatever work returned.
func (c *Consumer) holding(ctx context.Context, d Delivery, until time.Time, work func(context.Context) error) error {
	if c.o.After == nil {
		return work(ctx)
	}
	working, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	// A handler that is asked to stop still needs its lease until it has.
	beating, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var beat sync.WaitGroup
	beat.Go(func() {
		for {
			select {
			case <-beating.Done():
				return
			case <-c.o.After(c.o.Lease / 3):
			}
			now := c.o.Now()
			err := c.o.Driver.Extend(beating, d, c.o.Lease)
			switch {
			case beating.Err() != nil:
				return
			case err == nil:
				until = now.Add(c.o.Lease)
			case errors.Is(err, ErrLeaseLost) || !now.Before(until):
				lose(ErrLeaseLost)
				return
			}
		}
	})
	err := work(working)
	stop()
	beat.Wait()
	if errors.Is(context.Cause(working), ErrLeaseLost) {
		return ErrLeaseLost
	}
	return err
}

// backoff is the delay after a failed attempt: exponential, between half of it and all of it at random, so that what failed together is not
// tried again together.
func (c *Consumer) backoff(attempt int) time.Duration {
	d := c.o.MaxBackoff
	if shift := attempt - 1; shift < 32 && c.o.MinBackoff<<shift>>shift == c.o.MinBackoff {
		d = min(d, c.o.MinBackoff<<shift)
	}
	return d/2 + time.Duration(c.o.Rand()*float64(d/2))
}

// maxRemembered bounds the messages whose failures are remembered; beyond it some are forgotten, and their dead letters
// have a shorter history.
const maxRemembered = 4096

func (c *Consumer) remember(d Delivery, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.failures[d.ID]; !known && len(c.failures) >= maxRemembered {
		for id := range c.failures {
			delete(c.failures, id)
			break
		}
	}
	c.failures[d.ID] = appendFailure(c.failures[d.ID], c.failure(d, err))
}

func (c *Consumer) forget(d Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.failures, d.ID)
}

func (c *Consumer) failure(d Delivery, err error) Failure {
	return Failure{Attempt: d.Attempt, At: c.o.Now().UTC(), Error: shorten(err)}
}

// bury writes the dead letter, unless an earlier attempt to bury the message did, and lets the role end the work.
func (c *Consumer) bury(ctx context.Context, d Delivery, cause error) error {
	c.mu.Lock()
	history := append([]Failure(nil), c.failures[d.ID]...)
	c.mu.Unlock()
	rec := Record[DeadLetter]{
		Key: deadKey(d.Queue + "/" + d.ID),
		Value: DeadLetter{
			Queue:    d.Queue,
			Body:     d.Body,
			Error:    shorten(cause),
			Attempts: d.Attempt,
			Enqueued: d.Enqueued.UTC(),
			Died:     c.o.Now().UTC(),
			History:  appendFailure(history, c.failure(d, cause)),
		},
	}
	created, err := c.dead.Create(ctx, &rec, Effects{})
	if err != nil {
		return fmt.Errorf("writing dead letter: %w", err)
	}
	if !created {
		cause = errors.New(rec.Value.Error)
	}
	if c.o.OnDead == nil {
		return nil
	}
	err = recovered(ctx, d, func(ctx context.Context, d Delivery) error { return c.o.OnDead(ctx, d, cause) })
	if err != nil {
		return fmt.Errorf("ending the work of a dead letter: %w", err)
	}
	return nil
}
