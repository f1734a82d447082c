package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// deadLetters are the messages of some roles that failed for the last time: in databases that this process has open, or behind the admin
// interface of another one.
type deadLetters interface {
	// list returns a page in order of role and ID, of one role and one queue unless these are empty. next is empty if there are no more.
	list(ctx context.Context, f deadFilter, cursor string, limit int) (letters []deadLetter, next string, err error)
	// get returns one; the error of each of these wraps store.ErrNotFound if there is none.
	get(ctx context.Context, id deadID) (deadLetter, error)
	// retry delivers the message anew, with all its attempts before it.
	retry(ctx context.Context, id deadID) error
	// drop removes it for good.
	drop(ctx context.Context, id deadID) error
}

// deadFilter says which dead letters are meant; an empty field means all.
type deadFilter struct{ role, queue string }

// deadID names a dead letter: role, queue and message, "storefront/submit/42".
type deadID struct{ role, queue, message string }

func (id deadID) String() string { return id.role + "/" + id.queue + "/" + id.message }

// key is its name within the role.
func (id deadID) key() string { return id.queue + "/" + id.message }

func parseDeadID(text string) (deadID, error) {
	role, rest, _ := strings.Cut(text, "/")
	queue, message, _ := strings.Cut(rest, "/")
	if !slices.Contains(allRoles, role) || queue == "" || message == "" {
		return deadID{}, usage("w3filecoin admin dead list shows them, like storefront/submit/42", "%q is not the ID of a dead letter", text)
	}
	return deadID{role, queue, message}, nil
}

// deadLetter is a dead letter as it is shown.
type deadLetter struct {
	ID       string    `json:"id"`
	Role     string    `json:"role"`
	Queue    string    `json:"queue"`
	Attempts int       `json:"attempts"`
	Enqueued time.Time `json:"enqueued"`
	Died     time.Time `json:"died"`
	// Error is that of the last attempt, History has the latest ones before it too, oldest first.
	Error   string          `json:"error"`
	Body    json.RawMessage `json:"body"`
	History []deadAttempt   `json:"history,omitempty"`
}

type deadAttempt struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Error   string    `json:"error"`
}

func showDead(role string, d store.DeadLetter) deadLetter {
	l := deadLetter{ID: role + "/" + d.ID, Role: role, Queue: d.Queue, Attempts: d.Attempts, Enqueued: d.Enqueued, Died: d.Died,
		Error: d.Error, Body: readableBody(d.Body)}
	for _, f := range d.History {
		l.History = append(l.History, deadAttempt{f.Attempt, f.At, f.Error})
	}
	return l
}

// readableBody writes a message's body as JSON, CIDs as text and other bytes in hexadecimal: it is for people, who want to know what it is about.
func readableBody(body []byte) json.RawMessage {
	var v any
	if store.Decode(body, &v) == nil {
		if b, err := json.Marshal(readableValue(v)); err == nil {
			return b
		}
	}
	return json.RawMessage(`"` + hex.EncodeToString(body) + `"`)
}

func readableValue(v any) any {
	switch v := v.(type) {
	case []byte:
		if c, err := cid.Cast(v); err == nil {
			return c.String()
		}
		return hex.EncodeToString(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = readableValue(v[i])
		}
		return list
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, value := range v {
			m[fmt.Sprint(readableValue(k))] = readableValue(value)
		}
		return m
	}
	return v
}

// roleRows are the rows of one role.
type roleRows struct {
	role string
	rows store.Rows
}

// openDatabases are the dead letters of databases that this process has open, in the order of allRoles.
type openDatabases []roleRows

func (d openDatabases) of(role string) (store.Rows, error) {
	for _, r := range d {
		if r.role == role {
			return r.rows, nil
		}
	}
	return nil, fmt.Errorf("the %s has no database here: %w", role, store.ErrNotFound)
}

func (d openDatabases) list(ctx context.Context, f deadFilter, cursor string, limit int) ([]deadLetter, string, error) {
	return listAll(d, f.role, cursor, limit, func(r roleRows, cursor string, limit int) (list []deadLetter, next string, err error) {
		letters, next, err := store.ListDead(ctx, r.rows, f.queue, cursor, limit)
		for _, l := range letters {
			list = append(list, showDead(r.role, l))
		}
		return list, next, err
	})
}

// listAll lists what the databases hold, one after another, those of one role or, if that is empty, all. The cursor says where one page ended.
func listAll[T any](d openDatabases, role, cursor string, limit int,
	page func(r roleRows, cursor string, limit int) ([]T, string, error)) (list []T, next string, err error) {
	var chosen openDatabases
	for _, r := range d {
		if role == "" || role == r.role {
			chosen = append(chosen, r)
		}
	}
	i := 0
	if cursor != "" {
		at, err := store.DecodeCursor(cursor, 2)
		if err != nil {
			return nil, "", err
		}
		cursor = at[1]
		if i = slices.IndexFunc(chosen, func(r roleRows) bool { return r.role == at[0] }); i < 0 {
			return nil, "", fmt.Errorf("the cursor is of another list")
		}
	}
	limit = store.PageLimit(limit)
	for ; i < len(chosen); i++ {
		for more := true; more; more = cursor != "" {
			if len(list) == limit { // whether there are more is for the next page to find out
				return list, store.EncodeCursor(chosen[i].role, cursor), nil
			}
			var some []T
			some, cursor, err = page(chosen[i], cursor, limit-len(list))
			if err != nil {
				return nil, "", fmt.Errorf("%s: %w", chosen[i].role, err)
			}
			list = append(list, some...)
		}
	}
	return list, "", nil
}

func (d openDatabases) get(ctx context.Context, id deadID) (deadLetter, error) {
	rows, err := d.of(id.role)
	if err != nil {
		return deadLetter{}, err
	}
	l, err := store.GetDead(ctx, rows, id.key())
	if err != nil {
		return deadLetter{}, fmt.Errorf("dead letter %s: %w", id, err)
	}
	return showDead(id.role, l), nil
}

func (d openDatabases) retry(ctx context.Context, id deadID) error {
	rows, err := d.of(id.role)
	if err != nil {
		return err
	}
	return store.RetryDead(ctx, rows, id.key())
}

func (d openDatabases) drop(ctx context.Context, id deadID) error {
	rows, err := d.of(id.role)
	if err != nil {
		return err
	}
	return store.DropDead(ctx, rows, id.key())
}
