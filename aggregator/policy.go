package aggregator

import (
	"container/heap"
	"fmt"
	"slices"
	"strings"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// Ladder is the deal sizes in padded bytes that aggregates may have, ascending.
type Ladder []uint64

// Production is the ladder of the network's brokers: 32 GiB.
func Production() Ladder { return Ladder{32 << 30} }

// LadderBetween returns every power of two from the smallest to the largest deal size.
func LadderBetween(smallest, largest uint64) Ladder {
	var l Ladder
	for s := smallest; s <= largest; s *= 2 {
		l = append(l, s)
	}
	return l
}

// Validate checks that the ladder is one.
func (l Ladder) Validate() error {
	if len(l) == 0 {
		return fmt.Errorf("no deal sizes are configured")
	}
	for i, s := range l {
		if s&(s-1) != 0 || s < 1<<20 || s > piece.MaxPaddedSize {
			return fmt.Errorf("deal size %d is not a power of two from 1 MiB to %d", s, uint64(piece.MaxPaddedSize))
		}
		if i > 0 && s <= l[i-1] {
			return fmt.Errorf("deal sizes must ascend: %d stands after %d", s, l[i-1])
		}
	}
	return nil
}

// Largest returns the largest step.
func (l Ladder) Largest() uint64 { return l[len(l)-1] }

// MaxPiece returns the largest piece that can be placed, in padded bytes: half the largest step.
func (l Ladder) MaxPiece() uint64 { return l.Largest() / 2 }

// Minimum returns the least content that makes a valid aggregate, in padded bytes.
func (l Ladder) Minimum() uint64 { return minimum(l[0]) }

// Full returns the content from which a lane closes at once: 95 % of what the largest step holds.
func (l Ladder) Full() uint64 { return segment.ContentCapacity(l.Largest()) / 100 * 95 }

// Content of a valid aggregate is at least half its deal size, and leaves the room of the whole index: brokers size the deal by what is
// in it, and refuse or misplace what is less.
func minimum(dealSize uint64) uint64 { return dealSize / 2 }

// Candidate is a pending piece of a lane.
type Candidate struct {
	ID    string // whatever tells pieces apart; pieces of one link may have several
	Piece piece.Link
	// Order: retries first, then by age. Comparable as text.
	Order string
}

// Pool yields the pending pieces of a lane by height of their tree, each height in the order of Candidate.Order. Reading ahead costs
// engine reads, so the policy takes no more than it has to.
type Pool interface {
	// Heights returns the heights that may have pieces.
	Heights() []uint8
	// Next returns the next piece of a height, false if there is none.
	Next(height uint8) (Candidate, bool, error)
}

// Selection is what one aggregate is to hold.
type Selection struct {
	DealSize uint64
	Content  uint64 // sum of padded piece sizes
	Entries  int    // distinct pieces
	Pieces   []Candidate
}

// Select chooses the pieces of the next aggregate and its step of the ladder, or says why none can be made.
//
// It selects by age (retries first) and skips what does not fit: sizes are powers of two, so if the sum fits, placing in descending order
// fits as well. If so many small pieces came first that the index is used up below the minimum, the youngest of the smallest give way to the
// largest that wait, until the minimum is met. Of the steps that are valid for what was selected, the largest is taken.
func Select(ladder Ladder, pending Pool) (Selection, string, error) {
	c := &chooser{pending: pending, seen: map[piece.Node]piece.Link{}}
	if err := c.fill(ladder); err != nil {
		return Selection{}, "", err
	}
	if len(c.taken) == 0 {
		return Selection{}, "nothing is pending", nil
	}
	best := uint64(0) // the content of the step that came nearest, for the reason
	for _, step := range slices.Backward(ladder) {
		s := c.fit(step)
		if s.Content >= minimum(step) && s.Entries > 0 {
			return s, "", nil
		}
		best = max(best, s.Content)
	}
	missing := minimum(ladder[0]) - min(best, minimum(ladder[0]))
	return Selection{}, fmt.Sprintf("volume: %d padded bytes are missing for the smallest aggregate", missing), nil
}

// chooser gathers candidates for the largest step; smaller steps choose among them.
type chooser struct {
	pending Pool
	taken   []Candidate
	content uint64
	entries int
	seen    map[piece.Node]piece.Link // by root: equal links share a segment, equal roots of other padding wait
}

// accepts says whether a candidate may enter beside those taken, and whether it needs a segment of its own.
func (c *chooser) accepts(cand Candidate) (own, ok bool) {
	link, known := c.seen[cand.Piece.Root()]
	return !known, !known || link == cand.Piece
}

func (c *chooser) take(cand Candidate, own bool) {
	c.taken = append(c.taken, cand)
	if own {
		c.seen[cand.Piece.Root()] = cand.Piece
		c.content += cand.Piece.PaddedSize()
		c.entries++
	}
}

// fill takes candidates in their order up to the capacity and the entries of the largest step.
func (c *chooser) fill(ladder Ladder) error {
	capacity, limit := segment.ContentCapacity(ladder.Largest()), segment.MaxEntries(ladder.Largest())
	var merged order
	heights := c.pending.Heights()
	for _, h := range heights {
		cand, ok, err := c.pending.Next(h)
		if err != nil {
			return err
		}
		if ok {
			merged = append(merged, cand)
		}
	}
	heap.Init(&merged)
	for len(merged) > 0 && c.entries < limit {
		cand := merged[0]
		size := cand.Piece.PaddedSize()
		own, ok := c.accepts(cand)
		if ok && own && c.content+size > capacity {
			heap.Pop(&merged) // nothing of this size fits any more
			continue
		}
		if ok {
			c.take(cand, own)
		}
		next, more, err := c.pending.Next(cand.Piece.Height())
		if err != nil {
			return err
		}
		if more {
			merged[0] = next
			heap.Fix(&merged, 0)
		} else {
			heap.Pop(&merged)
		}
	}
	if c.entries >= limit && c.content < minimum(ladder.Largest()) {
		return c.gatherLarge(minimum(ladder.Largest()), merged)
	}
	return nil
}

// gatherLarge takes, over the limit of entries, the largest pieces that wait, until the content reaches want: small pieces came first and
// used up the index, so some of them will have to give way.
func (c *chooser) gatherLarge(want uint64, heads order) error {
	slices.SortFunc(heads, func(a, b Candidate) int { return int(b.Piece.Height()) - int(a.Piece.Height()) })
	for _, cand := range heads {
		for c.content < want {
			if own, ok := c.accepts(cand); ok {
				c.take(cand, own)
			}
			next, more, err := c.pending.Next(cand.Piece.Height())
			if err != nil {
				return err
			}
			if !more {
				break
			}
			cand = next
		}
	}
	return nil
}

// segmentOf is one distinct piece among the candidates, with the oldest claim to it.
type segmentOf struct {
	piece piece.Link
	order string
	in    bool
}

// fit chooses for one step among the candidates taken.
func (c *chooser) fit(step uint64) Selection {
	capacity, limit := segment.ContentCapacity(step), segment.MaxEntries(step)
	s := Selection{DealSize: step}
	segments := make([]*segmentOf, 0, len(c.taken))
	byLink := make(map[piece.Link]*segmentOf, len(c.taken))
	for _, cand := range c.taken {
		if byLink[cand.Piece] != nil {
			continue
		}
		seg := &segmentOf{piece: cand.Piece, order: cand.Order}
		byLink[cand.Piece] = seg
		segments = append(segments, seg)
		if size := cand.Piece.PaddedSize(); s.Entries < limit && s.Content+size <= capacity {
			seg.in = true
			s.Content += size
			s.Entries++
		}
	}
	if s.Content < minimum(step) && s.Entries == limit {
		s.Content = enlarge(segments, s.Content, minimum(step), capacity)
	}
	for _, cand := range c.taken {
		if byLink[cand.Piece].in {
			s.Pieces = append(s.Pieces, cand)
		}
	}
	return s
}

// enlarge replaces the youngest of the smallest segments chosen by the largest that were not, until the content reaches want, and
// returns the content.
func enlarge(segments []*segmentOf, content, want, capacity uint64) uint64 {
	var chosen, waiting []*segmentOf
	for _, seg := range segments {
		if seg.in {
			chosen = append(chosen, seg)
		} else {
			waiting = append(waiting, seg)
		}
	}
	slices.SortFunc(chosen, func(a, b *segmentOf) int {
		if a.piece.Height() != b.piece.Height() {
			return int(a.piece.Height()) - int(b.piece.Height())
		}
		return strings.Compare(b.order, a.order)
	})
	slices.SortStableFunc(waiting, func(a, b *segmentOf) int { return int(b.piece.Height()) - int(a.piece.Height()) })
	for _, in := range waiting {
		if len(chosen) == 0 || content >= want || in.piece.PaddedSize() <= chosen[0].piece.PaddedSize() {
			break
		}
		after := content - chosen[0].piece.PaddedSize() + in.piece.PaddedSize()
		if after > capacity {
			continue // a smaller one may still fit
		}
		chosen[0].in, in.in = false, true
		content, chosen = after, chosen[1:]
	}
	return content
}

type order []Candidate

func (o order) Len() int           { return len(o) }
func (o order) Less(i, j int) bool { return o[i].Order < o[j].Order }
func (o order) Swap(i, j int)      { o[i], o[j] = o[j], o[i] }
func (o *order) Push(x any)        { *o = append(*o, x.(Candidate)) }
func (o *order) Pop() any {
	old := *o
	last := old[len(old)-1]
	*o = old[:len(old)-1]
	return last
}
