package segment_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// TestBuilder adds pieces at random until nothing fits: what was taken makes the aggregate that Build makes of it.
func TestBuilder(t *testing.T) {
	rng := rand.New(rand.NewPCG(30, 30))
	refused := map[error]int{}
	for c := range 200 {
		dealSize := uint64(1<<12) << (c % 12)
		b, err := segment.NewBuilder(dealSize)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Build(); !errors.Is(err, segment.ErrNoPieces) {
			t.Fatalf("of nothing: %v", err)
		}
		var taken []piece.Link
		var sum uint64
		for range 2 + rng.IntN(150) {
			p := randomLink(t, rng, uint8(2+rng.IntN(8)))
			if len(taken) > 0 && rng.IntN(10) == 0 {
				p = taken[rng.IntN(len(taken))]
			}
			before := b.Has(p)
			if before != slices.Contains(taken, p) {
				t.Fatalf("Has says %v", before)
			}
			var want error
			switch {
			case before:
				want = segment.ErrDuplicate
			case len(taken) == segment.MaxEntries(dealSize):
				want = segment.ErrTooManyPieces
			case sum+p.PaddedSize() > segment.ContentCapacity(dealSize):
				want = segment.ErrDoesNotFit
			default:
				taken = append(taken, p)
				sum += p.PaddedSize()
			}
			if err := b.Add(p); !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Fatalf("adding %s: %v, want %v", p, err, want)
			}
			refused[want]++
			if b.DealSize() != dealSize || b.Len() != len(taken) || b.Content() != sum ||
				b.Free() != segment.ContentCapacity(dealSize)-sum {
				t.Fatalf("%d pieces of %d bytes, %d free; want %d of %d", b.Len(), b.Content(), b.Free(), len(taken), sum)
			}
			if len(taken) == 1 {
				if _, err := b.Build(); err != nil {
					t.Fatalf("on the way: %v", err)
				}
			}
		}
		if len(taken) == 0 {
			continue
		}
		got, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		segment.SortDescending(taken)
		if want := mustBuild(t, dealSize, taken); got.Link() != want.Link() || got.Len() != len(taken) {
			t.Fatalf("built %s of %d, want %s of %d", got.Link(), got.Len(), want.Link(), len(taken))
		}
	}
	for _, err := range []error{nil, segment.ErrDuplicate, segment.ErrTooManyPieces, segment.ErrDoesNotFit} {
		if refused[err] < 50 {
			t.Errorf("%v: %d times only", err, refused[err])
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	for _, size := range []uint64{0, 64, 128, 256, 3 << 20, 128 << 30} {
		if b, err := segment.NewBuilder(size); err == nil || b != nil {
			t.Errorf("deal of %d bytes: %v, %v", size, b, err)
		}
	}
	b, err := segment.NewBuilder(64 << 30)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(piece.Link{}); err == nil || b.Len() != 0 {
		t.Errorf("undefined piece: %v", err)
	}
}
