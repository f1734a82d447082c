package dealtracker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// pollMessage asks for one look at the chain. One of an earlier round than the cursor's does nothing.
type pollMessage struct {
	Source string `cbor:"s"`
	Round  uint64 `cbor:"r"`
}

var pollQueue = store.NewQueue[pollMessage]("poll")

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{pollQueue.Name: pollQueue.Handler(s.poll)}
}

// Start begins to poll, and to read the last epochs once more: whatever went wrong with them is put right. Every replica calls it at its start;
// repeating it does nothing.
func (s *Service) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return nil
	}
	_, err := s.cursors.Update(ctx, cursorKey(s.Source.Name()), func(c *store.Record[Cursor], fx *store.Effects) error {
		// Counted from the mark, so that a process that starts again and again does not go back for ever.
		c.Value.Final = max(min(c.Value.Final, c.Value.Mark-s.Overlap), -1)
		c.Value.Seen = c.Value.Final
		s.arm(c, fx, 0)
		return nil
	})
	if err != nil {
		return fmt.Errorf("starting to poll: %w", err)
	}
	s.started = true
	return nil
}

func (s *Service) arm(c *store.Record[Cursor], fx *store.Effects, pause time.Duration) {
	next := s.Now().Add(pause)
	c.Value.Round++
	c.Value.Next = next.UnixMilli()
	pollQueue.SendAt(fx, next, pollMessage{s.Source.Name(), c.Value.Round})
}

// maxPause is the longest pause after failures.
const maxPause = 10 * time.Minute

// poll reads a part of what is new, and moves the cursor by what was read and committed.
func (s *Service) poll(ctx context.Context, msg pollMessage) error {
	if msg.Source != s.Source.Name() {
		return nil // of a source that is not read any more
	}
	cur, err := s.cursors.Get(ctx, cursorKey(msg.Source))
	if err != nil {
		return err
	}
	if cur.Value.Round != msg.Round {
		return nil
	}
	read := cur.Value
	more, failure := s.read(ctx, &read)
	if ctx.Err() != nil {
		return ctx.Err() // asked to stop: not a failure of the source
	}
	if failure != nil {
		s.Log.Warn("reading the chain failed and will be tried again", "source", msg.Source, "tries", read.Tries+1, "err", failure)
	}
	_, err = s.cursors.Update(ctx, cur.Key, func(c *store.Record[Cursor], fx *store.Effects) error {
		if c.Value.Round != msg.Round {
			return store.ErrUnchanged
		}
		c.Value = read
		pause := s.Timing.Poll
		switch {
		case failure != nil:
			c.Value.Tries++
			c.Value.Reason = failure.Error()
			pause = s.pause(c.Value.Tries, failure)
		case more:
			pause = 0
			fallthrough
		default:
			c.Value.Tries, c.Value.Reason = 0, ""
		}
		s.arm(c, fx, pause)
		return nil
	})
	return err
}

// pause is how long to leave a source alone after failures: longer each time, and as long as the source itself wants.
func (s *Service) pause(tries int, failure error) time.Duration {
	pause := tasks.Backoff(tries, s.Timing.Poll, max(maxPause, s.Timing.Poll))
	var busy interface{ RetryAfter() time.Duration }
	if errors.As(failure, &busy) {
		pause = max(pause, min(busy.RetryAfter(), time.Hour))
	}
	return pause
}

// read reads the next final epochs, or, once there are none left, those between them and the head. It reports whether there is more to be
// read at once. The cursor moves by what succeeded, after an error too.
func (s *Service) read(ctx context.Context, c *Cursor) (more bool, err error) {
	head, err := s.Source.Head(ctx)
	if err != nil {
		return false, fmt.Errorf("asking for the head of the chain: %w", err)
	}
	if c.Begun && head.Epoch < c.Final {
		return false, fmt.Errorf("the chain of %s ends at epoch %d, and was read up to %d before: is it the same chain?",
			s.Source.Name(), head.Epoch, c.Final)
	}
	c.Head, c.Finalized, c.At = head.Epoch, min(head.Finalized, head.Epoch), s.Now().UnixMilli()
	if !c.Begun {
		c.Begun = true
		c.Final = max(head.Epoch-s.Backfill, 0) - 1
		c.Mark, c.Seen = c.Final, c.Final
	}
	if c.Final < c.Finalized {
		to := min(c.Final+s.Step, c.Finalized)
		if err := s.take(ctx, c.Final+1, to, true); err != nil {
			return false, err
		}
		c.Final = to
		c.Mark, c.Seen = max(c.Mark, to), max(c.Seen, to)
		if to < c.Finalized {
			return true, nil
		}
	}
	from := max(c.Final, c.Seen-recheck) + 1
	if from > head.Epoch {
		return false, nil
	}
	to := min(from+s.Step-1, head.Epoch)
	if err := s.take(ctx, from, to, false); err != nil {
		return false, err
	}
	c.Seen = max(c.Seen, to)
	return to < head.Epoch, nil
}

// take reads a range and commits what happened in it.
func (s *Service) take(ctx context.Context, from, to int64, final bool) error {
	events, err := s.Source.Events(ctx, from, to)
	if err != nil {
		return fmt.Errorf("reading epochs %d to %d: %w", from, to, err)
	}
	byDeal := map[uint64][]Event{}
	var ids []uint64
	for _, e := range events {
		if e.Epoch < from || e.Epoch > to {
			return fmt.Errorf("reading epochs %d to %d: the source returned event %s of epoch %d", from, to, e.ID, e.Epoch)
		}
		if e.Deal.Piece.Defined() && s.Watch != nil && !s.Watch(e.Deal.Piece) {
			continue
		}
		if byDeal[e.Deal.ID] == nil {
			ids = append(ids, e.Deal.ID)
		}
		byDeal[e.Deal.ID] = append(byDeal[e.Deal.ID], e)
	}
	err = store.Each(ctx, s.Parallel, ids, func(id uint64) error { return s.keep(ctx, id, byDeal[id], final) })
	if err != nil {
		return fmt.Errorf("keeping the deals of epochs %d to %d: %w", from, to, err)
	}
	return nil
}

// keep commits events of one deal.
func (s *Service) keep(ctx context.Context, id uint64, events []Event, final bool) error {
	identified := false
	for _, e := range events {
		if p := e.Deal; p.Piece.Defined() {
			identified = true
			rec := store.Record[Deal]{Key: dealKey(p.Piece, id), Value: Deal{
				ID: id, Piece: p.Piece, Provider: p.Provider, Client: p.Client, Start: p.StartEpoch, End: p.EndEpoch, Verified: p.Verified,
				Source: s.Source.Name(), At: s.Now().UnixMilli(),
			}}
			if _, err := s.deals.Create(ctx, &rec, store.Effects{}); err != nil {
				return err
			}
		}
	}
	_, err := s.histories.Update(ctx, historyKey(id), func(h *store.Record[History], _ *store.Effects) error {
		// The end of a deal may come without its piece. If only some pieces are watched and the deal is unknown, it is not one of them.
		if !h.Exists() && !identified && s.Watch != nil {
			return store.ErrUnchanged
		}
		changed := false
		for _, e := range events {
			added, err := h.Value.add(e, final)
			if err != nil {
				s.Log.Error("an event is left out", "event", e.ID, "err", err)
			}
			changed = changed || added
		}
		if !changed {
			return store.ErrUnchanged
		}
		return nil
	})
	return err
}
