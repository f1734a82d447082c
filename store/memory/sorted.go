package memory

import (
	"cmp"
	"slices"
)

// sorted is an ordered map for keys that mostly arrive near one end: a list of chunks, each an ordered slice, split when it is full.
// Insertion and removal move at most one chunk and the list of chunks.
type sorted[K, V any] struct {
	compare func(a, b K) int
	chunks  [][]entry[K, V]
}

type entry[K, V any] struct {
	key   K
	value V
}

const chunkSize = 256

// find returns the place of the first entry whose key is at least k, and whether it is k's. The place may be one past the last entry of
// the last chunk.
func (s *sorted[K, V]) find(k K) (chunk, at int, found bool) {
	// The chunk is the last one that begins at or before k.
	i, exact := slices.BinarySearchFunc(s.chunks, k, func(c []entry[K, V], k K) int { return s.compare(c[0].key, k) })
	if exact {
		return i, 0, true
	}
	if i > 0 {
		i--
	}
	if i == len(s.chunks) {
		return i, 0, false
	}
	j, found := slices.BinarySearchFunc(s.chunks[i], k, func(e entry[K, V], k K) int { return s.compare(e.key, k) })
	return i, j, found
}

func (s *sorted[K, V]) get(k K) (v V, ok bool) {
	i, j, found := s.find(k)
	if !found {
		return v, false
	}
	return s.chunks[i][j].value, true
}

func (s *sorted[K, V]) set(k K, v V) {
	i, j, found := s.find(k)
	if found {
		s.chunks[i][j].value = v
		return
	}
	if i == len(s.chunks) {
		s.chunks = append(s.chunks, []entry[K, V]{{k, v}})
		return
	}
	c := slices.Insert(s.chunks[i], j, entry[K, V]{k, v})
	s.chunks[i] = c
	if len(c) > chunkSize {
		half := len(c) / 2
		s.chunks[i] = slices.Clone(c[:half])
		s.chunks = slices.Insert(s.chunks, i+1, slices.Clone(c[half:]))
	}
}

func (s *sorted[K, V]) remove(k K) {
	i, j, found := s.find(k)
	if !found {
		return
	}
	s.chunks[i] = slices.Delete(s.chunks[i], j, j+1)
	if len(s.chunks[i]) == 0 {
		s.chunks = slices.Delete(s.chunks, i, i+1)
	}
}

// from calls yield with the entries whose keys are at least k, in order, until it returns false. The map must not change
// meanwhile.
func (s *sorted[K, V]) from(k K, yield func(K, V) bool) {
	i, j, _ := s.find(k)
	for ; i < len(s.chunks); i, j = i+1, 0 {
		for ; j < len(s.chunks[i]); j++ {
			if e := s.chunks[i][j]; !yield(e.key, e.value) {
				return
			}
		}
	}
}

// compareStrings orders lists of strings of equal length.
func compareStrings[A [2]string | [4]string](a, b A) int {
	for i := range len(a) {
		if c := cmp.Compare(a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}
