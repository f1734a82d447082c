package segment_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/filecoin-project/go-data-segment/datasegment"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// benchPieces returns n pieces of one size that together fill most of a 32 GiB deal.
func benchPieces(b *testing.B, n int, height uint8) []piece.Link {
	rng := rand.New(rand.NewPCG(20, 20))
	pieces := make([]piece.Link, n)
	for i := range pieces {
		pieces[i] = randomLink(b, rng, height)
	}
	return pieces
}

var benchSizes = []struct {
	n      int
	height uint8
}{{1_000, 19}, {10_000, 16}, {100_000, 13}, {260_000, 11}}

func BenchmarkBuild(b *testing.B) {
	for _, s := range benchSizes {
		pieces := benchPieces(b, s.n, s.height)
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := segment.Build(32<<30, pieces); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBuildOracle(b *testing.B) {
	for _, s := range benchSizes[:2] {
		infos := pieceInfos(benchPieces(b, s.n, s.height))
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := datasegment.NewAggregate(32<<30, infos); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkProof(b *testing.B) {
	for _, s := range benchSizes {
		a := mustBuild(b, 32<<30, benchPieces(b, s.n, s.height))
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := a.Proof(i * 7919 % s.n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	a := mustBuild(b, 32<<30, benchPieces(b, 10_000, 16))
	proof := mustProve(b, a, 4321)
	encoded, err := proof.MarshalCBOR()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Verify", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := segment.Verify(proof, a.Piece(4321), a.Link()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("MarshalCBOR", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := proof.MarshalCBOR(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("UnmarshalCBOR", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var p segment.InclusionProof
			if err := p.UnmarshalCBOR(encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkProofsInOrder makes all proofs of an aggregate, as a role that issues receipts does; the time is per proof.
func BenchmarkProofsInOrder(b *testing.B) {
	for _, s := range benchSizes {
		a := mustBuild(b, 32<<30, benchPieces(b, s.n, s.height))
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, err := a.Proof(i % s.n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkProofs makes all proofs of an aggregate in a row, and BenchmarkVerifyAll verifies them as well.
func BenchmarkProofs(b *testing.B) {
	for _, s := range benchSizes {
		a := mustBuild(b, 32<<30, benchPieces(b, s.n, s.height))
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for range a.Proofs() {
				}
			}
		})
	}
}

func BenchmarkVerifyAll(b *testing.B) {
	for _, s := range benchSizes {
		a := mustBuild(b, 32<<30, benchPieces(b, s.n, s.height))
		b.Run(fmt.Sprint(s.n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := segment.VerifyAll(a.Link(), a.Proofs()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
