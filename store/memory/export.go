package memory

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/storacha/w3filecoin/store"
)

var _ store.Exporter = (*Engine)(nil)

// Export implements [store.Exporter], in the order in which the messages were written; those on lease are due when that ends.
func (e *Engine) Export(ctx context.Context, _ []string, each func(store.Delivery) error) error {
	if err := e.begin(ctx); err != nil {
		return err
	}
	var all []store.Delivery
	for _, id := range slices.Sorted(maps.Keys(e.byID)) {
		m := e.byID[id]
		d := store.Delivery{Message: m.Message, ID: strconv.FormatUint(id, 10), Attempt: m.attempt, Enqueued: m.enqueued}
		d.Body, d.Due = bytes.Clone(m.Body), time.Unix(0, m.visible).UTC()
		all = append(all, d)
	}
	e.mu.Unlock()
	for _, d := range all {
		if err := each(d); err != nil {
			return err
		}
	}
	return nil
}

// Backlog implements [store.Exporter].
func (e *Engine) Backlog(ctx context.Context, _ []string) (int, error) {
	if err := e.begin(ctx); err != nil {
		return 0, err
	}
	defer e.mu.Unlock()
	return len(e.byID), nil
}
