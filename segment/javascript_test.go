package segment_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// splitMix is SplitMix64, as interop/aggregates.test.mjs has it.
type splitMix uint64

func (s *splitMix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (s *splitMix) below(n int) int { return int(s.next() % uint64(n)) }

// madeUp returns the pieces of a case of interop/aggregates.test.mjs.
func madeUp(t testing.TB, number int) (dealSize uint64, pieces []piece.Link) {
	t.Helper()
	rng := splitMix(number)
	dealHeight := 2 + rng.below(29)
	tallest := max(3, dealHeight-rng.below(6))
	limit := 12
	if number%50 == 0 {
		limit = 60
	}
	for range 1 + rng.below(limit) {
		var root piece.Node
		for k := range 4 {
			binary.LittleEndian.PutUint64(root[8*k:], rng.next())
		}
		root[31] &= 0x3f
		p, err := piece.FromRootAndHeight(root, uint8(2+rng.below(tallest-1)), 0)
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, p)
	}
	byHeight := func(a, b piece.Link) int { return cmp.Compare(a.Height(), b.Height()) }
	switch rng.below(3) {
	case 0:
		slices.SortStableFunc(pieces, func(a, b piece.Link) int { return byHeight(b, a) })
	case 1:
		slices.SortStableFunc(pieces, byHeight)
	}
	return 32 << dealHeight, pieces
}

// TestAgainstJavaScript compares aggregates with those of @web3-storage/data-segment 5.3.0: roots and all proofs, by
// digests that the interop tests show to be the package's.
func TestAgainstJavaScript(t *testing.T) {
	text, err := os.ReadFile("testdata/javascript-aggregates.txt")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	cases := strings.Fields(string(text))
	for number, want := range cases {
		if testing.Short() && number%5 > 0 {
			continue
		}
		dealSize, pieces := madeUp(t, number)
		a, err := segment.Build(dealSize, pieces)
		if err != nil {
			refused++
			if want != "refused" || !errors.Is(err, segment.ErrDoesNotFit) && !errors.Is(err, segment.ErrTooManyPieces) {
				t.Fatalf("case %d: %v, want %s", number, err, want)
			}
			continue
		}
		hash := sha256.New()
		root := a.Link().Root()
		hash.Write(root[:])
		for _, proof := range a.Proofs() {
			for _, d := range []segment.ProofData{proof.Subtree, proof.Index} {
				fmt.Fprintf(hash, ",%d,%d", d.Offset, len(d.Path))
				for _, node := range d.Path {
					hash.Write(node[:])
				}
			}
		}
		if got := hex.EncodeToString(hash.Sum(nil)[:8]); got != want {
			t.Fatalf("case %d: %d pieces in %d bytes: %s, want %s", number, len(pieces), dealSize, got, want)
		}
		if err := segment.VerifyAll(a.Link(), a.Proofs()); err != nil {
			t.Fatalf("case %d: %v", number, err)
		}
	}
	if len(cases) < 2000 || refused < 100 || refused > len(cases)*3/4 {
		t.Errorf("%d cases, %d refused: they test too little", len(cases), refused)
	}
}

// FuzzBuild builds aggregates of pieces of any sizes, in any order, and compares everything with go-data-segment. Each
// byte is the height of a piece.
func FuzzBuild(f *testing.F) {
	f.Add(uint8(30), []byte{25, 24, 24, 3, 2})
	f.Add(uint8(30), []byte{2, 3, 24, 24, 25})
	f.Add(uint8(31), []byte{30, 2, 29, 2, 28})
	f.Add(uint8(7), []byte{2, 2, 2, 2})
	f.Add(uint8(7), []byte{2, 2, 2, 2, 2})
	f.Add(uint8(10), []byte{9, 9})
	f.Add(uint8(2), []byte{2})
	f.Fuzz(func(t *testing.T, dealHeight uint8, heights []byte) {
		const span = piece.MaxHeight - piece.MinHeight + 1
		if len(heights) == 0 || len(heights) > 200 {
			return
		}
		rng := splitMix(len(heights))
		pieces := make([]piece.Link, len(heights))
		for i, h := range heights {
			root := piece.Node{byte(i), 1}
			binary.LittleEndian.PutUint64(root[8:], rng.next())
			var err error
			if pieces[i], err = piece.FromRootAndHeight(root, piece.MinHeight+h%span, 0); err != nil {
				t.Fatal(err)
			}
		}
		dealSize := uint64(piece.NodeSize) << (piece.MinHeight + dealHeight%span)
		if !checkAgainstOracle(t, dealSize, pieces) {
			return
		}
		a := mustBuild(t, dealSize, pieces)
		if _, err := segment.VerifyAggregate(a.Link(), pieces, a.IndexReader(), a.Proofs()); err != nil {
			t.Fatal(err)
		}
		if err := segment.VerifyAll(a.Link(), a.Proofs()); err != nil {
			t.Fatal(err)
		}
	})
}
