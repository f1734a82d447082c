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
