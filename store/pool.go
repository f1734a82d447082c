package store

import (
	"context"
	"sync"
	"time"
)

// Pool runs a step, [Consumer.Step] for instance, again and again in several goroutines. All fields but Wake and OnError are required.
type Pool struct {
	// Step does a piece of work and reports whether there was any.
	Step func(ctx context.Context) (worked bool, err error)
	// Workers is how many goroutines call it.
	Workers int
	// Idle is how long a worker that found nothing, or met an error, waits before it looks again.
	Idle time.Duration
	// Wake ends the waiting of one worker for each value received; see [Waker].
	Wake <-chan struct{}
	// Grace is how long steps under way may go on after the pool is asked to stop; then their context is cancelled.
	Grace time.Duration
	// After starts a timer, as time.After does.
	After func(d time.Duration) <-chan time.Time
	// OnError is told the errors of steps.
	OnError func(error)
}

// Run works until ctx is cancelled, then lets the steps under way end, and returns when all have. No goroutine is left.
func (p Pool) Run(ctx context.Context) {
	working, interrupt := context.WithCancel(context.WithoutCancel(ctx))
	defer interrupt()
	var workers sync.WaitGroup
	for range p.Workers {
		workers.Go(func() { p.work(ctx, working) })
	}
	ended := make(chan struct{})
	go func() {
		workers.Wait()
		close(ended)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-p.After(p.Grace):
		interrupt()
		<-ended
	}
}

// work steps until ctx is cancelled; steps get the other context.
func (p Pool) work(ctx, working context.Context) {
	for ctx.Err() == nil {
		worked, err := p.Step(working)
		if err != nil && p.OnError != nil {
			p.OnError(err)
		}
		if worked && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-p.Wake:
		case <-p.After(p.Idle):
		}
	}
}

// Waker is a driver that tells this process's consumers of messages as they are committed, so that nothing waits for the next poll.
// It is a shortcut only: messages of other processes, and those with a due time, are found by polling.
type Waker struct {
	Driver

	mu     sync.Mutex
	queues map[string]chan struct{}
}

// NewWaker wraps a driver.
func NewWaker(d Driver) *Waker {
	return &Waker{Driver: d, queues: make(map[string]chan struct{})}
}

// Wake returns the channel that receives a value for each message committed to the queue, as long as it has room.
func (w *Waker) Wake(queue string) <-chan struct{} {
	return w.channel(queue)
}

func (w *Waker) channel(queue string) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.queues[queue]
	if c == nil {
		c = make(chan struct{}, 64)
		w.queues[queue] = c
	}
	return c
}

// Commit implements [Rows].
func (w *Waker) Commit(ctx context.Context, c Change) (uint64, error) {
	version, err := w.Driver.Commit(ctx, c)
	// After an error the outcome may be unknown; looking in vain costs little.
	for _, m := range c.Messages {
		if m.Due.IsZero() {
			select {
			case w.channel(m.Queue) <- struct{}{}:
			default: // as many as there is room for are awake already
			}
		}
	}
	return version, err
}
