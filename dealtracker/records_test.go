package dealtracker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// TestHistoryIsASet: events that come in any order, any number of times, as final ones before or after, give the same row.
func TestHistoryIsASet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	link := func(n byte) piece.Link {
		l, err := piece.FromRootAndHeight(piece.Node{n}, 20, 0)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	type reading struct {
		event Event
		final bool
	}
	kinds := []EventKind{Published, Activated, Terminated, Completed}
	for round := range 200 {
		var readings []reading
		for range 1 + rng.IntN(12) {
			kind := kinds[rng.IntN(len(kinds))]
			e := Event{ID: fmt.Sprintf("%s/%d", kind, rng.IntN(2)), Kind: kind, Epoch: int64(rng.IntN(3)), Reverted: rng.IntN(3) == 0}
			if rng.IntN(4) > 0 {
				e.Deal.Piece = link(byte(1 + rng.IntN(2)))
			}
			readings = append(readings, reading{e, rng.IntN(2) == 0})
		}
		row := func() []byte {
			var h History
			for range 2 {
				rng.Shuffle(len(readings), func(i, j int) { readings[i], readings[j] = readings[j], readings[i] })
				for _, r := range readings {
					if _, err := h.add(r.event, r.final); err != nil {
						t.Fatal(err)
					}
				}
			}
			b, err := store.Encode(h)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		if a, b := row(), row(); !bytes.Equal(a, b) {
			t.Fatalf("round %d: %d readings in two orders give different rows:\n%x\n%x", round, len(readings), a, b)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var h History
	for i := range maxHistory {
		if changed, err := h.add(Event{ID: fmt.Sprint(i), Kind: Published, Epoch: 1}, false); !changed || err != nil {
			t.Fatalf("event %d: %v, %v", i, changed, err)
		}
	}
	if _, err := h.add(Event{ID: "one more", Kind: Published, Epoch: 1}, false); err == nil {
		t.Error("a full history takes one more event")
	}
	if changed, err := h.add(Event{ID: "5", Kind: Published, Epoch: 1}, true); !changed || err != nil {
		t.Errorf("what is there already can still become final: %v, %v", changed, err)
	}
	if b, err := store.Encode(h); err != nil || len(b) > store.MaxValue/2 {
		t.Errorf("a full history has %d bytes, %v", len(b), err)
	}
}
