package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storacha/w3filecoin/store"
)

var _ store.Exporter = (*Engine)(nil)

// Statements of the exporter. They are rare and not worth being prepared.
const (
	selectMessages = `SELECT id, queue, visible, attempt, enqueued, body FROM message WHERE id > ? ORDER BY id LIMIT ?`
	countMessages  = `SELECT count(*) FROM message`
)

// Export implements [store.Exporter], in the order in which the messages were written. No lease is held by anybody: opening the engine ended those of
// processes that are gone, and this process has none to lose.
func (e *Engine) Export(ctx context.Context, _ []string, each func(store.Delivery) error) error {
	var after int64
	for {
		page, last, err := e.messages(ctx, after)
		if err != nil {
			return fmt.Errorf("sqlite: reading messages: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, d := range page {
			if err := each(d); err != nil {
				return err
			}
		}
		after = last
	}
}

func (e *Engine) messages(ctx context.Context, after int64) (page []store.Delivery, last int64, err error) {
	end, err := e.begin(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer end()
	rows, err := e.reads.db.QueryContext(uninterrupted(ctx), selectMessages, after, store.MaxPage)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var d store.Delivery
		var visible, enqueued int64
		if err := rows.Scan(&last, &d.Queue, &visible, &d.Attempt, &enqueued, &d.Body); err != nil {
			return nil, 0, err
		}
		d.ID, d.Due, d.Enqueued = formatID(last), time.Unix(0, visible).UTC(), time.Unix(0, enqueued).UTC()
		page = append(page, d)
	}
	return page, last, rows.Err()
}

// Backlog implements [store.Exporter].
func (e *Engine) Backlog(ctx context.Context, _ []string) (n int, err error) {
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := e.reads.db.QueryRowContext(uninterrupted(ctx), countMessages).Scan(&n); err != nil {
		return 0, fmt.Errorf("sqlite: counting messages: %w", err)
	}
	return n, nil
}
