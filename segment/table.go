package segment

import (
	"hash/maphash"
	"math/bits"

	"github.com/storacha/w3filecoin/piece"
)

// A table finds pieces in a list by their links. It holds numbers only, 16 to 32 bytes per piece, and takes a fraction
// of the time and memory of a map of links. Its hash is seeded: whoever chooses the pieces cannot choose where they
// collide.
type table struct {
	seed  maphash.Seed
	slots []slot // a power of two of them, at least two, and at most half in use
	used  int
}

// A slot holds the number of a piece.
type slot struct {
	hash  uint32 // its highest bits tell where the slot is, or would be if those were free
	piece uint32 // one more than the number of the piece, 0 in a free slot
}

// newTable returns a table with room for n pieces.
func newTable(n int) table {
	return table{seed: maphash.MakeSeed(), slots: make([]slot, 2<<bits.Len(uint(max(n, 1)-1)))}
}

// partitions is into how many parts of a table fill sorts pieces, so that one part at a time is in cache.
const partitions = 256

// fill enters all pieces into an empty table with room for them. It returns the numbers of two that are equal, if there
// are such.
func (t *table) fill(pieces []piece.Link) (first, second int, duplicate bool) {
	hashed, sorted := make([]slot, len(pieces)), make([]slot, len(pieces))
	var ends [partitions]int
	for i := range pieces {
		hashed[i] = slot{t.hash(&pieces[i]), uint32(i) + 1}
		ends[hashed[i].hash>>24]++
	}
	end := 0
	for k, n := range ends {
		ends[k] = end // for now the start
		end += n
	}
	for _, s := range hashed {
		at := &ends[s.hash>>24]
		sorted[*at] = s
		*at++
	}
	for _, s := range sorted {
		to := t.find(pieces, s.hash, &pieces[s.piece-1])
		if to.piece != 0 {
			return int(to.piece) - 1, int(s.piece) - 1, true
		}
		*to = s
	}
	t.used = len(pieces)
	return 0, 0, false
}

func (t *table) hash(p *piece.Link) uint32 { return uint32(maphash.Comparable(t.seed, *p)) }

// find returns the slot where p is, or the free one where it belongs.
func (t *table) find(pieces []piece.Link, hash uint32, p *piece.Link) *slot {
	mask := len(t.slots) - 1
	for at := int(uint64(hash) * uint64(len(t.slots)) >> 32); ; at = (at + 1) & mask {
		s := &t.slots[at]
		if s.piece == 0 || s.hash == hash && pieces[s.piece-1] == *p {
			return s
		}
	}
}

// lookUp returns the number of p in pieces.
func (t *table) lookUp(pieces []piece.Link, p piece.Link) (int, bool) {
	s := t.find(pieces, t.hash(&p), &p)
	if s.piece == 0 {
		return 0, false
	}
	return int(s.piece) - 1, true
}

// add enters the last of pieces, and reports whether it was not there before.
func (t *table) add(pieces []piece.Link) bool {
	if 2*(t.used+1) > len(t.slots) {
		t.enlarge(pieces)
	}
	i := len(pieces) - 1
	hash := t.hash(&pieces[i])
	s := t.find(pieces, hash, &pieces[i])
	if s.piece != 0 {
		return false
	}
	*s = slot{hash, uint32(i) + 1}
	t.used++
	return true
}

func (t *table) enlarge(pieces []piece.Link) {
	old := t.slots
	t.slots = make([]slot, 2*len(old))
	for _, s := range old {
		if s.piece != 0 {
			*t.find(pieces, s.hash, &pieces[s.piece-1]) = s
		}
	}
}
