package aggregator

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

const (
	mib = uint64(1) << 20
	gib = uint64(1) << 30
)

// lane is a Pool over lists in memory; what a test offers stays pending until it is removed.
type lane struct {
	pieces [64][]Candidate
	next   [64]int
	reads  int
	clock  int
	serial uint64
}

func (l *lane) add(height uint8) Candidate {
	l.clock++
	c := Candidate{ID: fmt.Sprint(l.clock), Piece: l.link(height), Order: fmt.Sprintf("1/%012d", l.clock)}
	l.pieces[height] = append(l.pieces[height], c)
	return c
}

// link makes a synthetic piece: a root that no data has, but of the right shape.
func (l *lane) link(height uint8) piece.Link {
	l.serial++
	var root piece.Node
	binary.LittleEndian.PutUint64(root[:], l.serial)
	link, err := piece.FromRootAndHeight(root, height, 0)
	if err != nil {
		panic(err)
	}
	return link
}

func (l *lane) remove(taken []Candidate) {
	gone := map[string]bool{}
	for _, c := range taken {
		gone[c.ID] = true
	}
	for h := range l.pieces {
		l.pieces[h] = slices.DeleteFunc(l.pieces[h], func(c Candidate) bool { return gone[c.ID] })
	}
}

func (l *lane) Heights() []uint8 {
	l.next = [64]int{}
	var hs []uint8
	for h := range l.pieces {
		if len(l.pieces[h]) > 0 {
			hs = append(hs, uint8(h))
		}
	}
	return hs
}

func (l *lane) Next(h uint8) (Candidate, bool, error) {
	if l.next[h] == len(l.pieces[h]) {
		return Candidate{}, false, nil
	}
	l.reads++
	l.next[h]++
	return l.pieces[h][l.next[h]-1], true, nil
}

func heightOf(padded uint64) (h uint8) {
	for piece.NodeSize<<h < padded {
		h++
	}
	return h
}

// check verifies what every selection promises: within the range, and placeable in descending order.
func check(t *testing.T, s Selection) {
	t.Helper()
	seen := map[piece.Link]bool{}
	var links []piece.Link
	var content uint64
	for _, c := range s.Pieces {
		if !seen[c.Piece] {
			seen[c.Piece] = true
			links = append(links, c.Piece)
			content += c.Piece.PaddedSize()
		}
	}
	if content != s.Content || len(links) != s.Entries {
		t.Fatalf("selection says %d bytes in %d entries, holds %d in %d", s.Content, s.Entries, content, len(links))
	}
	if content < s.DealSize/2 || content > s.DealSize-64*uint64(segment.MaxEntries(s.DealSize)) {
		t.Fatalf("content %d is outside the range of a deal of %d", content, s.DealSize)
	}
	if len(links) > segment.MaxEntries(s.DealSize) {
		t.Fatalf("%d entries are more than the index holds", len(links))
	}
	segment.SortDescending(links)
	if _, err := segment.Place(links, s.DealSize); err != nil {
		t.Fatalf("selection cannot be placed: %v", err)
	}
}

func TestSelectProductionSizes(t *testing.T) {
	tests := []struct {
		name string
		add  func(l *lane)
		want func(t *testing.T, s Selection)
	}{
		{"two of the largest do not fit beside the index, one is enough", func(l *lane) {
			l.add(heightOf(16 * gib))
			l.add(heightOf(16 * gib))
		}, func(t *testing.T, s Selection) {
			if s.Entries != 1 || s.Content != 16*gib {
				t.Errorf("got %d entries, %d bytes", s.Entries, s.Content)
			}
		}},
		{"a large piece behind many small ones is not starved", func(l *lane) {
			l.add(heightOf(16 * gib))
			for range 31 {
				l.add(heightOf(gib))
			}
		}, func(t *testing.T, s Selection) {
			if s.Content != 31*gib || s.Pieces[0].Piece.PaddedSize() != 16*gib {
				t.Errorf("got %d bytes, first piece %d", s.Content, s.Pieces[0].Piece.PaddedSize())
			}
		}},
		{"the oldest comes first whatever its size", func(l *lane) {
			l.add(heightOf(mib))
			for range 40 {
				l.add(heightOf(gib))
			}
		}, func(t *testing.T, s Selection) {
			if s.Pieces[0].Piece.PaddedSize() != mib {
				t.Errorf("the oldest piece was left out")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &lane{}
			tt.add(l)
			s, why, err := Select(Production(), l)
			if err != nil || why != "" {
				t.Fatalf("no selection: %q, %v", why, err)
			}
			check(t, s)
			tt.want(t, s)
		})
	}
}

func TestSelectWaitsForVolume(t *testing.T) {
	l := &lane{}
	for range 15 {
		l.add(heightOf(gib))
	}
	_, why, err := Select(Production(), l)
	if want := fmt.Sprintf("volume: %d padded bytes are missing for the smallest aggregate", gib); err != nil || why != want {
		t.Errorf("got %q, %v, want %q", why, err, want)
	}
	l.add(heightOf(gib))
	s, why, err := Select(Production(), l)
	if err != nil || why != "" {
		t.Fatalf("no selection: %q, %v", why, err)
	}
	check(t, s)
}

func TestSelectEqualLinksShareASegment(t *testing.T) {
	l := &lane{}
	first := l.add(heightOf(16 * gib))
	twin := first
	twin.ID, twin.Order = "twin", "1/000000000999"
	l.pieces[first.Piece.Height()] = append(l.pieces[first.Piece.Height()], twin)
	padded, err := piece.FromRootAndHeight(first.Piece.Root(), first.Piece.Height(), 127)
	if err != nil {
		t.Fatal(err)
	}
	other := Candidate{ID: "other padding", Piece: padded, Order: "1/000000000998"}
	l.pieces[first.Piece.Height()] = append(l.pieces[first.Piece.Height()], other)
	s, why, err := Select(Production(), l)
	if err != nil || why != "" {
		t.Fatalf("no selection: %q, %v", why, err)
	}
	check(t, s)
	if s.Entries != 1 || len(s.Pieces) != 2 {
		t.Errorf("got %d pieces in %d entries, want 2 in 1: the same link shares, another padding waits", len(s.Pieces), s.Entries)
	}
}

// TestSelectLadder: every total finds the largest step it is valid for, and the gap just below a power of two is bridged.
func TestSelectLadder(t *testing.T) {
	ladder := LadderBetween(4*mib, 32*gib)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		l := &lane{}
		var total uint64
		for range 1 + rng.IntN(60) {
			h := heightOf(1<<10) + uint8(rng.IntN(21))
			l.add(h)
			total += piece.NodeSize << h
		}
		s, why, err := Select(ladder, l)
		if err != nil {
			t.Fatal(err)
		}
		if why != "" {
			if total >= 4*mib {
				t.Fatalf("%d pending bytes make no aggregate: %s", total, why)
			}
			continue
		}
		check(t, s)
	}
}

// TestNoStarvation feeds a lane with every mix of sizes for many closes: each piece leaves within two closes of its turn.
func TestNoStarvation(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	ladder := Production()
	l := &lane{}
	waited := map[string]int{}
	var pendingBytes uint64
	for closes := 0; closes < 60; {
		for pendingBytes < 40*gib {
			h := heightOf(mib) + uint8(rng.IntN(15)) // 1 MiB to 16 GiB
			c := l.add(h)
			waited[c.ID] = 0
			pendingBytes += c.Piece.PaddedSize()
		}
		s, why, err := Select(ladder, l)
		if err != nil || why != "" {
			t.Fatalf("close %d: %q, %v", closes, why, err)
		}
		check(t, s)
		l.remove(s.Pieces)
		for _, c := range s.Pieces {
			delete(waited, c.ID)
		}
		pendingBytes -= s.Content
		closes++
		for id := range waited {
			if waited[id]++; waited[id] > 3 {
				t.Fatalf("piece %s was passed over by %d closes", id, waited[id])
			}
		}
	}
}

// TestTinyPiecesFlood: a million tiny pieces in front delay a large one by at most one close, and cost no more reads than an
// aggregate has entries.
func TestTinyPiecesFlood(t *testing.T) {
	l := &lane{}
	for range 1_000_000 {
		l.add(2) // 128 padded bytes
	}
	for range 20 {
		l.add(heightOf(gib))
	}
	s, why, err := Select(Production(), l)
	if err != nil || why != "" {
		t.Fatalf("no selection: %q, %v", why, err)
	}
	check(t, s)
	if large := slices.IndexFunc(s.Pieces, func(c Candidate) bool { return c.Piece.PaddedSize() == gib }); large < 0 {
		t.Error("the flood keeps the large pieces out")
	}
	if limit := segment.MaxEntries(32*gib) + 100; l.reads > limit {
		t.Errorf("%d reads for one selection, want at most %d", l.reads, limit)
	}
	tiny := 0
	for _, c := range s.Pieces {
		if c.Piece.PaddedSize() == 128 {
			tiny++
		}
	}
	if tiny < 262_000 {
		t.Errorf("only %d tiny pieces left with this close", tiny)
	}
}

func TestFloodWithoutVolumeWaits(t *testing.T) {
	l := &lane{}
	for range 300_000 {
		l.add(2)
	}
	_, why, err := Select(Production(), l)
	if err != nil || why == "" {
		t.Errorf("300,000 tiny pieces make no valid aggregate, got %q, %v", why, err)
	}
}

func TestLadderValidate(t *testing.T) {
	for _, tt := range []struct {
		ladder Ladder
		ok     bool
	}{
		{Production(), true},
		{LadderBetween(4*mib, 32*gib), true},
		{nil, false},
		{Ladder{3 * mib}, false},
		{Ladder{8 * gib, 4 * gib}, false},
		{Ladder{128 * gib}, false},
	} {
		if err := tt.ladder.Validate(); (err == nil) != tt.ok {
			t.Errorf("%v: %v", tt.ladder, err)
		}
	}
}
