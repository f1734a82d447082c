package storetest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/store"
)

const lease = 4 * time.Second

// receive returns a message of the queue, or fails. It looks several times: not every engine finds all messages at once.
func (s *suite) receive(queue string) store.Delivery {
	s.Helper()
	for range 50 {
		ds, err := s.d.Receive(s.Context(), queue, 1, lease)
		if err != nil {
			s.Fatalf("receiving from %s: %v", queue, err)
		}
		if len(ds) > 1 {
			s.Fatalf("received %d messages, asked for one", len(ds))
		}
		if len(ds) == 1 {
			return ds[0]
		}
		s.Clock.Advance(20 * time.Millisecond)
	}
	s.Fatalf("no message in queue %s", queue)
	return store.Delivery{}
}

func (s *suite) wantNone(queue string) {
	s.Helper()
	ds, err := s.d.Receive(s.Context(), queue, 10, lease)
	if err != nil || len(ds) != 0 {
		s.Errorf("queue %s: received %+v, %v, want nothing", queue, ds, err)
	}
}

func (s *suite) ack(d store.Delivery) {
	s.Helper()
	if err := s.d.Ack(s.Context(), d); err != nil {
		s.Fatalf("acknowledging %s: %v", d.ID, err)
	}
}

// send commits a row with messages.
func (s *suite) send(ms ...store.Message) {
	s.Helper()
	s.sent++
	s.commit(store.Change{Row: store.Row{Key: key("send", fmt.Sprint(s.sent))}, Messages: ms})
}

func testDelivery(s *suite) {
	s.wantNone("q")
	before := s.Clock.Now()
	s.send(store.Message{Queue: "q", Body: []byte("1")}, store.Message{Queue: "r", Body: []byte("other")}, store.Message{Queue: "q"})
	bodies := make(map[string]bool)
	ids := make(map[string]bool)
	for range 2 {
		d := s.receive("q")
		// Clocks of engines of their own may differ from ours by a little.
		if d.Attempt != 1 || d.Queue != "q" || d.ID == "" || d.Lease == "" ||
			d.Enqueued.Before(before.Add(-time.Minute)) || d.Enqueued.After(s.Clock.Now().Add(time.Minute)) {
			s.Errorf("delivery %+v", d)
		}
		bodies[string(d.Body)], ids[d.ID] = true, true
		s.ack(d)
	}
	if !bodies["1"] || !bodies[""] || len(ids) != 2 {
		s.Errorf("bodies %v, IDs %v", bodies, ids)
	}
	s.wantNone("q")
	s.Clock.Advance(lease + time.Second)
	s.wantNone("q") // acknowledged for good
	if d := s.receive("r"); string(d.Body) != "other" {
		s.Errorf("delivery %+v", d)
	}

	// Several at once, each once.
	const n = 15
	for range n {
		s.send(store.Message{Queue: "many"})
	}
	got := make(map[string]bool)
	for range 100 {
		ds, err := s.d.Receive(s.Context(), "many", 4, time.Hour)
		if err != nil || len(ds) > 4 {
			s.Fatalf("received %d messages, %v", len(ds), err)
		}
		for _, d := range ds {
			if got[d.ID] {
				s.Errorf("message %s delivered twice", d.ID)
			}
			got[d.ID] = true
		}
		if len(got) == n {
			return
		}
	}
	s.Errorf("received %d messages, want %d", len(got), n)
}

func testLease(s *suite) {
	s.send(store.Message{Queue: "q", Body: []byte("m")})
	first := s.receive("q")
	s.wantNone("q")
	s.Clock.Advance(lease / 2)
	s.wantNone("q")
	s.Clock.Advance(lease/2 + time.Second)
	second := s.receive("q")
	if second.ID != first.ID || second.Attempt != 2 || second.Lease == first.Lease || string(second.Body) != "m" || !second.Enqueued.Equal(first.Enqueued) {
		s.Errorf("redelivered as %+v after %+v", second, first)
	}
	s.ack(second)
	s.Clock.Advance(lease + time.Second)
	s.wantNone("q")

	// A lease that ended but was given to nobody else is still good enough for the acknowledgement.
	s.send(store.Message{Queue: "late"})
	d := s.receive("late")
	s.Clock.Advance(lease + time.Second)
	if err := s.d.Ack(s.Context(), d); err != nil && !errors.Is(err, store.ErrLeaseLost) {
		s.Errorf("acknowledging late: %v", err)
	}
}

func testExtend(s *suite) {
	s.send(store.Message{Queue: "q"})
	d := s.receive("q")
	for range 3 {
		s.Clock.Advance(lease - time.Second)
		if err := s.d.Extend(s.Context(), d, lease); err != nil {
			s.Fatalf("extending: %v", err)
		}
		s.wantNone("q")
	}
	s.Clock.Advance(lease + time.Second)
	if d := s.receive("q"); d.Attempt != 2 {
		s.Errorf("attempt %d after extensions, want 2", d.Attempt)
	}
}

func testRetry(s *suite) {
	s.send(store.Message{Queue: "q"})
	first := s.receive("q")
	if err := s.d.Retry(s.Context(), first, 0); err != nil {
		s.Fatal(err)
	}
	second := s.receive("q")
	if second.Attempt != 2 || second.ID != first.ID {
		s.Errorf("after an immediate retry: %+v", second)
	}
	if err := s.d.Retry(s.Context(), second, 3*time.Second); err != nil {
		s.Fatal(err)
	}
	s.wantNone("q")
	s.Clock.Advance(time.Second)
	s.wantNone("q")
	s.Clock.Advance(3 * time.Second)
	if third := s.receive("q"); third.Attempt != 3 || third.ID != first.ID {
		s.Errorf("after a delayed retry: %+v", third)
	}
}

func testDue(s *suite) {
	now := s.Clock.Now()
	s.send(store.Message{Queue: "q", Body: []byte("later"), Due: now.Add(3 * time.Second)},
		store.Message{Queue: "q", Body: []byte("overdue"), Due: now.Add(-time.Hour)},
		store.Message{Queue: "far", Due: now.AddDate(1, 0, 0)})
	d := s.receive("q")
	if string(d.Body) != "overdue" {
		s.Fatalf("received %q first", d.Body)
	}
	s.ack(d)
	s.wantNone("q")
	s.Clock.Advance(4 * time.Second)
	if d := s.receive("q"); string(d.Body) != "later" || d.Attempt != 1 {
		s.Errorf("received %+v", d)
	}
	s.wantNone("far")
}

func testLostLease(s *suite) {
	ctx := s.Context()
	end := map[string]func(d store.Delivery) error{
		"ack":    func(d store.Delivery) error { return s.d.Ack(ctx, d) },
		"extend": func(d store.Delivery) error { return s.d.Extend(ctx, d, time.Hour) },
		"retry":  func(d store.Delivery) error { return s.d.Retry(ctx, d, time.Hour) },
	}
	for name, end := range end {
		q := "q-" + name
		s.send(store.Message{Queue: q})
		stale := s.receive(q)
		s.Clock.Advance(lease + time.Second)
		s.receive(q)
		if err := end(stale); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after somebody else received it: %v, want ErrLeaseLost", name, err)
		}
		s.wantNone(q) // the stale holder did not give it back
		s.Clock.Advance(lease + time.Second)
		current := s.receive(q) // nor keep, nor remove it
		s.ack(current)
		if err := end(current); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after it was acknowledged: %v, want ErrLeaseLost", name, err)
		}

		s.send(store.Message{Queue: q})
		given := s.receive(q)
		if err := s.d.Retry(ctx, given, time.Second); err != nil {
			s.Fatal(err)
		}
		if err := end(given); !errors.Is(err, store.ErrLeaseLost) {
			s.Errorf("%s after it was given back: %v, want ErrLeaseLost", name, err)
		}
		s.Clock.Advance(2 * time.Second)
		s.ack(s.receive(q))
	}
}

func testOneHolder(s *suite) {
	const messages, receivers = 60, 8
	for range messages {
		s.send(store.Message{Queue: "q"})
	}
	var mu sync.Mutex
	held := make(map[string]int)
	var wg sync.WaitGroup
	for range receivers {
		wg.Go(func() {
			for range messages {
				ds, err := s.d.Receive(s.Context(), "q", 2, time.Hour)
				if err != nil {
					s.Errorf("receiving: %v", err)
					return
				}
				mu.Lock()
				for _, d := range ds {
					held[d.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id, n := range held {
		if n != 1 {
			s.Errorf("message %s is held by %d receivers", id, n)
		}
	}
	if len(held) != messages {
		s.Errorf("%d messages received, want %d", len(held), messages)
	}
}
