package store

import "sync"

// MaxSeen is how many keys a [Seen] remembers.
const MaxSeen = 4096

// Seen remembers keys of rows that this process has found as they will stay for ever, so that it need not look again. It is a shortcut only: a key that it
// does not have may have been seen, by this process too. The zero Seen is empty. It is safe for concurrent use.
type Seen struct {
	mu   sync.Mutex
	keys map[Key]struct{}
}

// Has reports whether the key was added, and is still remembered.
func (s *Seen) Has(k Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.keys[k]
	return ok
}

// Add remembers a key. When there are too many, all others are forgotten.
func (s *Seen) Add(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil || len(s.keys) >= MaxSeen {
		s.keys = make(map[Key]struct{})
	}
	s.keys[k] = struct{}{}
}

// Len returns how many keys are remembered.
func (s *Seen) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys)
}
