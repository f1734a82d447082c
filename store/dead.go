package store

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// DeadLetter is a message whose attempts are used up. It stays until an operator retries or drops it.
type DeadLetter struct {
	ID string `cbor:"-"` // names it: queue, slash, message ID

	Queue    string    `cbor:"1,keyasint"`
	Body     []byte    `cbor:"2,keyasint"`
	Error    string    `cbor:"3,keyasint"` // of the last attempt
	Attempts int       `cbor:"4,keyasint"`
	Enqueued time.Time `cbor:"5,keyasint,omitzero"`
	Died     time.Time `cbor:"6,keyasint"`
	History  []Failure `cbor:"7,keyasint,omitempty"` // the latest failures, oldest first, as far as the last consumer had seen them
}

// Failure is one failed attempt of a message.
type Failure struct {
	Attempt int       `cbor:"1,keyasint"`
	At      time.Time `cbor:"2,keyasint"`
	Error   string    `cbor:"3,keyasint"`
}

const (
	deadPartition = "dead"
	maxHistory    = 10
	maxErrorText  = 4 << 10 // bytes
)

func deadKey(id string) Key { return Key{Partition: deadPartition, Sort: id} }

func appendFailure(history []Failure, f Failure) []Failure {
	history = append(history, f)
	return history[max(0, len(history)-maxHistory):]
}

// shorten makes a text of bounded size and valid UTF-8 of an error.
func shorten(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(s) <= maxErrorText {
		return s
	}
	n := maxErrorText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + " …"
}

// ListDead returns a page of the dead letters of a queue ("": of all queues), in order of ID.
func ListDead(ctx context.Context, rows Rows, queue, cursor string, limit int) (letters []DeadLetter, next string, err error) {
	prefix := ""
	if queue != "" {
		prefix = queue + "/"
	}
	recs, next, err := NewTable[DeadLetter](rows).Query(ctx, deadPartition, prefix, cursor, limit)
	if err != nil {
		return nil, "", fmt.Errorf("listing dead letters: %w", err)
	}
	for _, rec := range recs {
		rec.Value.ID = rec.Key.Sort
		letters = append(letters, rec.Value)
	}
	return letters, next, nil
}

// GetDead returns a dead letter, or ErrNotFound.
func GetDead(ctx context.Context, rows Rows, id string) (DeadLetter, error) {
	rec, err := NewTable[DeadLetter](rows).Get(ctx, deadKey(id))
	if err != nil {
		return DeadLetter{}, err
	}
	rec.Value.ID = id
	return rec.Value, nil
}

// WriteDead writes the dead letter of the message with that ID, unless there is one, and reports whether it did. It is for engines that find messages
// which no [Consumer] has answered for; nobody is told of the end of their work.
func WriteDead(ctx context.Context, rows Rows, messageID string, letter DeadLetter) (created bool, err error) {
	rec := Record[DeadLetter]{Key: deadKey(letter.Queue + "/" + messageID), Value: letter}
	created, err = NewTable[DeadLetter](rows).Create(ctx, &rec, Effects{})
	if err != nil {
		return false, fmt.Errorf("writing dead letter: %w", err)
	}
	return created, nil
}

// RetryDead sends a dead letter's message once more, with a new ID and all its attempts, and removes the dead letter in the same commit.
// ErrNotFound if there is none.
func RetryDead(ctx context.Context, rows Rows, id string) error {
	return removeDead(ctx, rows, id, func(dead DeadLetter, fx *Effects) {
		fx.Messages = []Message{{Queue: dead.Queue, Body: dead.Body}}
	})
}

// DropDead removes a dead letter for good. ErrNotFound if there is none.
func DropDead(ctx context.Context, rows Rows, id string) error {
	return removeDead(ctx, rows, id, func(DeadLetter, *Effects) {})
}

func removeDead(ctx context.Context, rows Rows, id string, effects func(DeadLetter, *Effects)) error {
	seen := false
	_, err := NewTable[DeadLetter](rows).Update(ctx, deadKey(id), func(rec *Record[DeadLetter], fx *Effects) error {
		switch {
		case !rec.Exists() && seen:
			return ErrUnchanged // gone after a conflict: by our own commit, or by somebody's with the same purpose
		case !rec.Exists():
			return fmt.Errorf("dead letter %s: %w", id, ErrNotFound)
		}
		seen = true
		fx.Delete = true
		effects(rec.Value, fx)
		return nil
	})
	return err
}
