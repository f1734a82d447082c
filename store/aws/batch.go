package aws

import (
	"sync"
)

// batcher gathers calls that are made at about the same time into requests: a call waits only while as many requests are under way as may be, and
// then goes with all others that waited.
type batcher[T any] struct {
	max      int               // calls of a request
	parallel int               // requests at a time
	do       func([]T) []error // one error, or nil, for each

	mu      sync.Mutex
	running int
	waiting []*call[T]
}

type call[T any] struct {
	arg  T
	err  error
	done chan struct{}
}

// run makes one call for each argument and returns their errors when all are done.
func (b *batcher[T]) run(args []T) []error {
	calls := make([]*call[T], len(args))
	for i, a := range args {
		calls[i] = &call[T]{arg: a, done: make(chan struct{})}
	}
	b.mu.Lock()
	b.waiting = append(b.waiting, calls...)
	for b.running < b.parallel && b.running*b.max < len(b.waiting) {
		b.running++
		go b.work()
	}
	b.mu.Unlock()
	errs := make([]error, len(args))
	for i, c := range calls {
		<-c.done
		errs[i] = c.err
	}
	return errs
}

// work makes requests until nothing waits.
func (b *batcher[T]) work() {
	for {
		b.mu.Lock()
		n := min(b.max, len(b.waiting))
		if n == 0 {
			b.running--
			b.mu.Unlock()
			return
		}
		batch := b.waiting[:n:n]
		b.waiting = b.waiting[n:]
		b.mu.Unlock()
		args := make([]T, n)
		for i, c := range batch {
			args[i] = c.arg
		}
		for i, err := range b.do(args) {
			batch[i].err = err
			close(batch[i].done)
		}
	}
}
