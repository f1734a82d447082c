package roles

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// Workers run the message handlers of a role.
type Workers struct {
	Role     string
	Driver   *store.Waker
	Handlers map[string]store.Handler
	// Width is how many messages of one queue are handled at a time; 0: 4. Widths names queues with a width of their own.
	Width  int
	Widths map[string]int
	// Idle is how long a queue that had nothing waits before it is looked at again; 0: 1 s. Messages of this process wake it sooner; those
	// with a due time, and those of other replicas, are found by looking.
	Idle    time.Duration
	Now     func() time.Time
	Rand    func() float64
	After   func(time.Duration) <-chan time.Time
	Observe func(role string, o store.Outcome)
	Log     *slog.Logger
}

// Consumers returns one consumer per queue, for whoever wants to step them by hand.
func (w *Workers) Consumers() (map[string]*store.Consumer, error) {
	consumers := make(map[string]*store.Consumer, len(w.Handlers))
	for queue, handle := range w.Handlers {
		c, err := store.NewConsumer(store.ConsumerOptions{
			Driver: w.Driver, Queue: queue, Handle: handle, Now: w.Now, Rand: w.Rand, After: w.After, Observe: w.observe,
		})
		if err != nil {
			return nil, err
		}
		consumers[queue] = c
	}
	return consumers, nil
}

// observe logs what went wrong with a message: the one place where that is done.
func (w *Workers) observe(o store.Outcome) {
	attrs := []any{"role", w.Role, "queue", o.Delivery.Queue, "message", o.Delivery.ID, "attempt", o.Delivery.Attempt, "err", o.Err}
	switch o.Result {
	case store.Retried:
		w.Log.Warn("a message failed and will be tried again", attrs...)
	case store.Dead:
		w.Log.Error("a message failed for the last time: it is a dead letter now", attrs...)
	case store.Lost:
		w.Log.Warn("the lease of a message ended before its handler", attrs...)
	}
	if w.Observe != nil {
		w.Observe(w.Role, o)
	}
}

// Run handles messages until ctx is cancelled and returns when all handlers have ended.
func (w *Workers) Run(ctx context.Context) error {
	consumers, err := w.Consumers()
	if err != nil {
		return err
	}
	var pools sync.WaitGroup
	for queue, c := range consumers {
		width, idle := w.Width, w.Idle
		if n := w.Widths[queue]; n > 0 {
			width = n
		}
		if width == 0 {
			width = 4
		}
		if idle == 0 {
			idle = time.Second
		}
		pool := store.Pool{
			Step: c.Step, Workers: width, Idle: idle, Wake: w.Driver.Wake(queue), Grace: 10 * time.Second, After: w.After,
			OnError: func(err error) {
				if !errors.Is(err, context.Canceled) {
					w.Log.Error("working on a queue", "role", w.Role, "queue", queue, "err", err)
				}
			},
		}
		pools.Go(func() { pool.Run(ctx) })
	}
	pools.Wait()
	return nil
}
