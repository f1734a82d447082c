package segment

import (
	"math/rand/v2"
	"testing"

	"github.com/storacha/w3filecoin/piece"
)

// TestHashes counts the hashes of a build. In descending order no node is hashed that need not be: per piece there is
// the entry's pair of leaves, about one node above the entries and about one above the pieces, and, counted with them,
// the checksum in the entry. What is left over is one path to the root, twice at most.
func TestHashes(t *testing.T) {
	const dealSize, height = 32 << 30, 30
	for _, tc := range []struct{ n, minHeight, maxHeight int }{
		{1, 30 - 1, 30 - 1}, {1, 2, 2}, {2, 2, 2}, {3, 5, 5}, {1000, 19, 19}, {1000, 2, 20}, {10_000, 16, 16},
		{10_000, 7, 17}, {100_000, 2, 13},
	} {
		rng := rand.New(rand.NewPCG(uint64(tc.n), uint64(tc.maxHeight)))
		pieces := make([]piece.Link, tc.n)
		for i := range pieces {
			root := piece.Node{byte(i), byte(i >> 8), byte(i >> 16), 1}
			h := uint8(tc.minHeight + rng.IntN(tc.maxHeight-tc.minHeight+1))
			var err error
			if pieces[i], err = piece.FromRootAndHeight(root, h, 0); err != nil {
				t.Fatal(err)
			}
		}
		SortDescending(pieces)
		hashes := 0
		a, err := build(dealSize, pieces, func(dst, src []piece.Node) {
			hashes += len(dst)
			piece.HashPairs(dst, src)
		})
		if err != nil {
			t.Fatal(err)
		}
		if hashes < 4*tc.n-2 || hashes > 4*tc.n+2*height {
			t.Errorf("%d pieces: %d hashes, want from %d to %d", tc.n, hashes, 4*tc.n-2, 4*tc.n+2*height)
		}
		// All nodes that are kept, but for zeros and what was given, were hashed, each once; the root is kept apart.
		kept := 1
		for h, l := range a.tree.levels {
			for _, node := range l.nodes {
				if node != piece.ZeroRoot(uint8(h)) {
					kept++
				}
			}
		}
		if checksums := tc.n; kept != hashes-checksums+tc.n {
			t.Errorf("%d pieces: %d nodes kept, %d hashed beside the checksums and %d given", tc.n, kept, hashes-checksums, tc.n)
		}
	}
}

// TestVerifyAllHashes counts the hashes of verifying all proofs: what a batch shares is hashed once, and each batch goes
// up to the root once on both sides.
func TestVerifyAllHashes(t *testing.T) {
	const n = 20_000
	pieces := make([]piece.Link, n)
	for i := range pieces {
		var err error
		if pieces[i], err = piece.FromRootAndHeight(piece.Node{byte(i), byte(i >> 8), 1}, 14, 0); err != nil {
			t.Fatal(err)
		}
	}
	a, err := Build(32<<30, pieces)
	if err != nil {
		t.Fatal(err)
	}
	hashes := 0
	err = verifyAll(a.Link(), a.Proofs(), func(dst, src []piece.Node) {
		hashes += len(dst)
		piece.HashPairs(dst, src)
	})
	if err != nil {
		t.Fatal(err)
	}
	const batches = (n + batchSize - 1) / batchSize
	if hashes < 4*n-2*batches || hashes > 4*n+2*batches*30 {
		t.Errorf("%d hashes for %d proofs, want from %d to %d", hashes, n, 4*n-2*batches, 4*n+2*batches*30)
	}
}

// TestVerifyAllHashesMixed counts them for pieces of all sizes in no order, whose ways meet at all heights: no node of
// the one batch is hashed twice.
func TestVerifyAllHashesMixed(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := make([]piece.Link, batchSize)
	for i := range pieces {
		var err error
		if pieces[i], err = piece.FromRootAndHeight(piece.Node{byte(i), 1}, uint8(2+rng.IntN(8)), 0); err != nil {
			t.Fatal(err)
		}
	}
	built, verified := 0, 0
	count := func(n *int) hashPairs {
		return func(dst, src []piece.Node) {
			*n += len(dst)
			piece.HashPairs(dst, src)
		}
	}
	a, err := build(1<<30, pieces, count(&built))
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyAll(a.Link(), a.Proofs(), count(&verified)); err != nil {
		t.Fatal(err)
	}
	// Where the ways from the entries and from the pieces meet, below the root, both are gone to the end.
	if verified < built || verified > built+1 {
		t.Errorf("%d hashes, want the %d of the build, and the root once more", verified, built)
	}
}

// TestLinear doubles the number of pieces: hashes and memory double.
func TestLinear(t *testing.T) {
	size := func(n int) (hashes, bytes int) {
		pieces := make([]piece.Link, n)
		for i := range pieces {
			var err error
			if pieces[i], err = piece.FromRootAndHeight(piece.Node{byte(i), byte(i >> 8), byte(i >> 16), 1}, 12, 0); err != nil {
				t.Fatal(err)
			}
		}
		a, err := build(32<<30, pieces, func(dst, src []piece.Node) {
			hashes += len(dst)
			piece.HashPairs(dst, src)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range a.tree.levels {
			bytes += len(l.nodes)*piece.NodeSize + 4*len(l.up)
		}
		return hashes, bytes + 8*len(a.entries.slots)
	}
	largest := 80_000
	if testing.Short() {
		largest = 20_000
	}
	hashes, bytes := size(5_000)
	for n := 10_000; n <= largest; n *= 2 {
		h, b := size(n)
		// The paths to the root and the rounding of the table are all that does not double.
		if d := h - 2*hashes; d < -200 || d > 200 {
			t.Errorf("%d pieces: %d hashes, %d for half of them", n, h, hashes)
		}
		if b > 2*bytes+bytes/10 {
			t.Errorf("%d pieces: %d bytes, %d for half of them", n, b, bytes)
		}
		hashes, bytes = h, b
	}
}
