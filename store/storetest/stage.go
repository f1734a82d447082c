package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// Stage is what the tests of a service are played on: its messages are handled one after another, on a clock that is moved from one to the next.
type Stage struct {
	*testing.T
	Clock  *FakeClock
	Engine Simulated
	// Driver is Engine, or that with faults: deliveries come from it. Faults that were injected are no failure of the test.
	Driver   store.Driver
	Handlers func() map[string]store.Handler // by queue
	// Observe, if set, is told of every message that was handled.
	Observe func(store.Outcome)
	// Handled are all deliveries so far, for Replay.
	Handled []store.Delivery
	handled *sync.Mutex
}

// Simulated is an engine that says what will happen next.
type Simulated interface {
	store.Driver
	// Receivable returns the queues that have a message to deliver now.
	Receivable() []string
	// NextEvent returns when the next message becomes receivable by itself, false if none will.
	NextEvent() (time.Time, bool)
	// Waiting returns how many messages each queue holds, leased ones included.
	Waiting() map[string]int
}

// NewStage returns a stage on an engine, whose calls may meet faults that choose chooses (nil: none). Handlers is yet to be set.
func NewStage(t *testing.T, clock *FakeClock, engine Simulated, choose Chooser) Stage {
	s := Stage{T: t, Clock: clock, Engine: engine, Driver: engine, handled: new(sync.Mutex)}
	if choose != nil {
		s.Driver = NewFaulty(engine, choose)
	}
	return s
}

// Run handles messages for some time, moving the clock from one to the next.
func (s *Stage) Run(d time.Duration) {
	s.Helper()
	end := s.Clock.Now().Add(d)
	for {
		s.Settle()
		next, ok := s.Engine.NextEvent()
		if !ok || next.After(end) {
			s.Clock.Advance(end.Sub(s.Clock.Now()))
			return
		}
		s.Clock.Advance(next.Sub(s.Clock.Now()))
	}
}

// Settle handles messages until none is due.
func (s *Stage) Settle() {
	s.Helper()
	for s.Step() {
	}
}

// Consumer returns who handles the messages of a queue.
func (s *Stage) Consumer(queue string) *store.Consumer {
	s.Helper()
	handler := s.Handlers()[queue]
	if handler == nil {
		s.Fatalf("nobody handles queue %s", queue)
	}
	c, err := store.NewConsumer(store.ConsumerOptions{
		Driver: s.Driver, Queue: queue, Now: s.Clock.Now, Rand: func() float64 { return 1 }, Observe: s.Observe,
		Handle: func(ctx context.Context, d store.Delivery) error {
			s.handled.Lock()
			s.Handled = append(s.Handled, d)
			s.handled.Unlock()
			return handler(ctx, d)
		},
	})
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// Step handles one message of each queue and reports whether there was any.
func (s *Stage) Step() (worked bool) {
	s.Helper()
	for _, queue := range s.Engine.Receivable() {
		did, err := s.Consumer(queue).Step(s.Context())
		if err != nil && !errors.Is(err, ErrInjected) {
			s.Fatal(err)
		}
		worked = worked || did || err != nil
	}
	return worked
}

// Replay delivers every message of the past once more, the latest first. One that an injected fault meets is delivered again.
func (s *Stage) Replay() {
	s.Helper()
	handlers, past := s.Handlers(), s.Handled
	for i := len(past) - 1; i >= 0; i-- {
		err := ErrInjected
		for errors.Is(err, ErrInjected) {
			err = handlers[past[i].Queue](s.Context(), past[i])
		}
		if err != nil {
			s.Fatal(err)
		}
	}
}

// Rows returns all rows that match, by key.
func (s *Stage) Rows(match func(store.Key) bool) map[string]string {
	s.Helper()
	rows := map[string]string{}
	for cursor := ""; ; {
		page, err := s.Engine.Walk(s.Context(), cursor, 0)
		if err != nil {
			s.Fatal(err)
		}
		for _, r := range page.Rows {
			if match(r.Key) {
				rows[r.Key.String()] = string(r.Value)
			}
		}
		if cursor = page.Next; cursor == "" {
			return rows
		}
	}
}
