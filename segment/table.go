package segment

import (
	"hash/maphash"
	"math/bits"

	"github.com/storacha/w3filecoin/piece"
)

// A table finds pieces in a list by their links. It holds numbers only, so it takes 8 to 16 bytes per piece and is an
// order of magnitude faster to fill than a map of links. Its hash is seeded: whoever chooses the pieces cannot choose
// where they collide.
type table struct {
	seed  maphash.Seed
	slots []uint32 // one more than the number of a piece, 0 if free; a power of two of them, at most half in use
	used  int
}

func newTable(n int) table {
	return table{seed: maphash.MakeSeed(), slots: make([]uint32, 2<<bits.Len(uint(n)))}
}

// find returns the number of p in pieces.
func (t *table) find(pieces []piece.Link, p piece.Link) (int, bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	k := t.slots[t.slot(pieces, p)]
	if k == 0 {
		return 0, false
	}
	return int(k) - 1, true
}

// slot returns where p is, or the free place where it belongs.
func (t *table) slot(pieces []piece.Link, p piece.Link) uint64 {
	mask := uint64(len(t.slots) - 1)
	for at := maphash.Comparable(t.seed, p) & mask; ; at = (at + 1) & mask {
		if k := t.slots[at]; k == 0 || pieces[k-1] == p {
			return at
		}
	}
}

// add enters pieces[i], unless an equal piece is there already, whose number it returns.
func (t *table) add(pieces []piece.Link, i int) (first int, added bool) {
	if 2*(t.used+1) > len(t.slots) {
		t.enlarge(pieces)
	}
	at := t.slot(pieces, pieces[i])
	if k := t.slots[at]; k != 0 {
		return int(k) - 1, false
	}
	t.slots[at] = uint32(i) + 1
	t.used++
	return i, true
}

func (t *table) enlarge(pieces []piece.Link) {
	old := t.slots
	t.slots = make([]uint32, max(64, 2*len(old)))
	for _, k := range old {
		if k != 0 {
			t.slots[t.slot(pieces, pieces[k-1])] = k
		}
	}
}
