package store

import (
	"context"
	"sync"
)

// Each calls do for every item, up to parallel at a time (1: in order), and returns the first error; after it, or once ctx is done, no further
// call begins. Commits made side by side share their fsync.
func Each[T any](ctx context.Context, parallel int, items []T, do func(T) error) error {
	if parallel <= 1 || len(items) == 1 {
		for _, item := range items {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := do(item); err != nil {
				return err
			}
		}
		return nil
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		next  int
	)
	take := func() (item T, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = ctx.Err()
		}
		if first != nil || next == len(items) {
			return item, false
		}
		next++
		return items[next-1], true
	}
	for range min(parallel, len(items)) {
		wg.Go(func() {
			for item, ok := take(); ok; item, ok = take() {
				if err := do(item); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
