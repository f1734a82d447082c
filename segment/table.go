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
	slots []slot // a power of two of them, at most half in use
	used  int
}

// A slot holds the number of a piece.
type slot struct {
	hash  uint32
	piece uint32 // one more than the number of the piece, 0 in a free slot
}

func newTable(n int) table {
	return table{seed: maphash.MakeSeed(), slots: make([]slot, 2<<bits.Len(uint(n)))}
}

// find returns the number of p in pieces.
func (t *table) find(pieces []piece.Link, p piece.Link) (int, bool) {
	s, _ := t.slot(pieces, p)
	if s.piece == 0 {
		return 0, false
	}
	return int(s.piece) - 1, true
}

// slot returns the slot where p is, or the free one where it belongs.
func (t *table) slot(pieces []piece.Link, p piece.Link) (s *slot, hash uint32) {
	hash = uint32(maphash.Comparable(t.seed, p))
	mask := uint32(len(t.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		s = &t.slots[at]
		if s.piece == 0 || s.hash == hash && pieces[s.piece-1] == p {
			return s, hash
		}
	}
}

// add enters pieces[i], unless an equal piece is there already, whose number it returns.
func (t *table) add(pieces []piece.Link, i int) (first int, added bool) {
	if 2*(t.used+1) > len(t.slots) {
		t.enlarge()
	}
	s, hash := t.slot(pieces, pieces[i])
	if s.piece != 0 {
		return int(s.piece) - 1, false
	}
	*s = slot{hash, uint32(i) + 1}
	t.used++
	return i, true
}

func (t *table) enlarge() {
	old := t.slots
	t.slots = make([]slot, 2*len(old))
	mask := uint32(len(t.slots) - 1)
	for _, s := range old {
		if s.piece == 0 {
			continue
		}
		at := s.hash & mask
		for t.slots[at].piece != 0 {
			at = (at + 1) & mask
		}
		t.slots[at] = s
	}
}
