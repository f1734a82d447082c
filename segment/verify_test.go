package segment_test

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// proven is a piece with its proof.
type proven struct {
	link  piece.Link
	proof segment.InclusionProof
}

func sequence(list []proven) iter.Seq2[piece.Link, segment.InclusionProof] {
	return func(yield func(piece.Link, segment.InclusionProof) bool) {
		for _, p := range list {
			if !yield(p.link, p.proof) {
				return
			}
		}
	}
}

// mixed returns n pieces of the given heights, in one of the orders that order knows.
func mixed(t testing.TB, rng *rand.Rand, n int, minHeight, maxHeight, kind int) []piece.Link {
	t.Helper()
	pieces := make([]piece.Link, n)
	for i := range pieces {
		pieces[i] = randomLink(t, rng, uint8(minHeight+rng.IntN(maxHeight-minHeight+1)))
	}
	order(rng, pieces, kind)
	return pieces
}

// TestProofs compares the proofs in a row with those one by one.
func TestProofs(t *testing.T) {
	rng := rand.New(rand.NewPCG(20, 20))
	for kind := range 3 {
		for _, n := range []int{1, 2, 3, 7, 100, 1001} {
			a := mustBuild(t, 1<<30, mixed(t, rng, n, 2, 10, kind))
			i := 0
			for p, proof := range a.Proofs() {
				if p != a.Piece(i) {
					t.Fatalf("order %d: piece %d of %d is %s, want %s", kind, i, n, p, a.Piece(i))
				}
				if want := mustProve(t, a, i); !reflect.DeepEqual(want, proof) {
					t.Fatalf("order %d: proof %d of %d (-want +got):\n%s", kind, i, n, cmp.Diff(want, proof))
				}
				i++
			}
			if i != n {
				t.Errorf("%d proofs of %d pieces", i, n)
			}
			for range a.Proofs() {
				break // has to be possible
			}
			for i, p := range a.Pieces() {
				if p != a.Piece(i) {
					t.Errorf("piece %d is %s, want %s", i, p, a.Piece(i))
				}
			}
		}
	}
}

func TestClone(t *testing.T) {
	a := mustBuild(t, 1<<20, mixed(t, rand.New(rand.NewPCG(21, 21)), 8, 2, 10, 0))
	var kept []segment.InclusionProof
	for _, proof := range a.Proofs() {
		kept = append(kept, proof.Clone())
	}
	for i := range kept {
		if diff := cmp.Diff(mustProve(t, a, i), kept[i]); diff != "" {
			t.Errorf("clone of proof %d (-want +got):\n%s", i, diff)
		}
	}
}

// TestVerifyAll damages lists of proofs at random: whether all hold has to be what Verify says of each.
func TestVerifyAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(22, 22))
	held := 0
	const cases = 400
	for c := range cases {
		n := 1 + rng.IntN(40)
		if c%20 == 0 {
			n = 600 + rng.IntN(100) // several batches
		}
		a := mustBuild(t, 1<<28, mixed(t, rng, n, 2, 11, c%3))
		var list []proven
		for p, proof := range a.Proofs() {
			list = append(list, proven{p, proof.Clone()})
		}
		if c%4 >= 2 {
			rng.Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
			list = append(list[:1+rng.IntN(n)], list[rng.IntN(n)]) // some, and one of them twice perhaps
		}
		if c%2 == 1 {
			damage(rng, list, a)
		}
		var want error
		for _, p := range list {
			if want = segment.Verify(p.proof, p.link, a.Link()); want != nil {
				break
			}
		}
		err := segment.VerifyAll(a.Link(), sequence(list))
		if (err == nil) != (want == nil) {
			t.Fatalf("case %d: %d proofs: %v, one by one %v", c, len(list), err, want)
		}
		if err == nil {
			held++
		} else if !errors.Is(err, segment.ErrProof) {
			t.Fatalf("case %d: error %v is not ErrProof", c, err)
		} else if !bytes.Contains([]byte(err.Error()), []byte(want.Error())) {
			t.Fatalf("case %d: error %v, want that of the first proof that does not hold, %v", c, err, want)
		}
		// Against the nodes of the aggregate the verdict on each is the same.
		for _, p := range list {
			got, want := a.VerifyProof(p.link, p.proof), segment.Verify(p.proof, p.link, a.Link())
			if (got == nil) != (want == nil) || got != nil && !errors.Is(got, segment.ErrProof) {
				t.Fatalf("case %d: VerifyProof %v, Verify %v", c, got, want)
			}
		}
	}
	if held < cases/2 || held > cases*3/4 {
		t.Errorf("%d of %d lists hold: the cases test too little", held, cases)
	}
}

// damage changes one thing in one of the proofs.
func damage(rng *rand.Rand, list []proven, a *segment.Aggregate) {
	p := &list[rng.IntN(len(list))]
	d := &p.proof.Subtree
	if rng.IntN(2) == 0 {
		d = &p.proof.Index
	}
	switch rng.IntN(6) {
	case 0:
		d.Offset ^= 1 << rng.IntN(12)
	case 1:
		d.Path = d.Path[:rng.IntN(len(d.Path))]
	case 2:
		d.Path[rng.IntN(len(d.Path))][rng.IntN(31)] ^= 1 << rng.IntN(8)
	case 3:
		p.link = list[rng.IntN(len(list))].link
	case 4:
		p.link = piece.Link{}
	case 5:
		p.proof.Index = list[rng.IntN(len(list))].proof.Clone().Index
	}
}

// TestVerifyAllReadsAll changes every node of every proof, one at a time, among others that hold.
func TestVerifyAllReadsAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(27, 27))
	a := mustBuild(t, 1<<14, mixed(t, rng, 4, 2, 5, 2))
	var list []proven
	for p, proof := range a.Proofs() {
		list = append(list, proven{p, proof.Clone()})
	}
	for i := range list {
		for _, path := range [][]piece.Node{list[i].proof.Subtree.Path, list[i].proof.Index.Path} {
			for k := range path {
				path[k][k] ^= 1
				if err := segment.VerifyAll(a.Link(), sequence(list)); !errors.Is(err, segment.ErrProof) {
					t.Errorf("proof %d, node %d of %d changed: error %v, want ErrProof", i, k, len(path), err)
				}
				path[k][k] ^= 1
			}
		}
	}
	if err := segment.VerifyAll(a.Link(), sequence(list)); err != nil {
		t.Error(err)
	}
}

func TestVerifyAllEdges(t *testing.T) {
	rng := rand.New(rand.NewPCG(23, 23))
	a, b := mustBuild(t, 1<<20, mixed(t, rng, 5, 2, 9, 0)), mustBuild(t, 1<<21, mixed(t, rng, 5, 2, 9, 0))
	if err := segment.VerifyAll(a.Link(), sequence(nil)); err != nil {
		t.Errorf("no proofs: %v", err)
	}
	padded, err := piece.FromRootAndHeight(a.Link().Root(), a.Link().Height(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		aggregate piece.Link
		proofs    iter.Seq2[piece.Link, segment.InclusionProof]
	}{
		"of another size":       {a.Link(), b.Proofs()},
		"of another aggregate":  {mustBuild(t, 1<<20, mixed(t, rng, 5, 2, 9, 0)).Link(), a.Proofs()},
		"undefined aggregate":   {piece.Link{}, a.Proofs()},
		"aggregate has padding": {padded, a.Proofs()},
	} {
		if err := segment.VerifyAll(tc.aggregate, tc.proofs); !errors.Is(err, segment.ErrProof) {
			t.Errorf("%s: error %v, want ErrProof", name, err)
		}
	}
}

// TestNestedPieces gives two pieces, side by side, as one piece of twice the size as well. It is in the aggregate, but
// not in the index: a way that meets another one needs to have come from somewhere.
func TestNestedPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(24, 24))
	left, right := randomLink(t, rng, 4), randomLink(t, rng, 4)
	l, r := left.Root(), right.Root()
	whole, err := piece.FromRootAndHeight(piece.HashPair(&l, &r), 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := mustBuild(t, 1<<13, []piece.Link{left, right})
	inner := mustProve(t, a, 0)
	outer := inner.Clone()
	outer.Subtree.Path = outer.Subtree.Path[1:]
	list := []proven{{left, inner}, {whole, outer}}
	if err := segment.VerifyAll(a.Link(), sequence(list)); !errors.Is(err, segment.ErrProof) {
		t.Errorf("error %v, want ErrProof", err)
	}
}

func TestVerifyAggregate(t *testing.T) {
	rng := rand.New(rand.NewPCG(25, 25))
	pieces := mixed(t, rng, 300, 2, 9, 0)
	a := mustBuild(t, 1<<26, pieces)
	index, err := io.ReadAll(a.IndexReader())
	if err != nil {
		t.Fatal(err)
	}
	var all []proven
	for p, proof := range a.Proofs() {
		all = append(all, proven{p, proof.Clone()})
	}
	flipped := func(at int) []byte {
		b := slices.Clone(index)
		b[at] ^= 1
		return b
	}
	forged := slices.Clone(all)
	forged[7].proof = forged[7].proof.Clone()
	forged[7].proof.Subtree.Path[3][3] ^= 1
	reversed := slices.Clone(pieces)
	slices.Reverse(reversed)
	broken := errors.New("broken")
	for _, tc := range []struct {
		name   string
		pieces []piece.Link
		index  io.Reader
		proofs []proven
		want   error
	}{
		{"all of it", pieces, bytes.NewReader(index), all, nil},
		{"in small reads", pieces, iotest.OneByteReader(bytes.NewReader(index)), all, nil},
		{"pieces alone", pieces, nil, nil, nil},
		{"proofs twice", pieces, nil, append(slices.Clone(all), all...), nil},
		{"other order", reversed, nil, nil, segment.ErrMismatch},
		{"one less", pieces[:299], nil, nil, segment.ErrMismatch},
		{"one twice", append(slices.Clone(pieces), pieces[3]), nil, nil, segment.ErrDuplicate},
		{"no pieces", nil, nil, nil, segment.ErrNoPieces},
		{"index damaged at its start", pieces, bytes.NewReader(flipped(0)), nil, segment.ErrMismatch},
		{"index damaged in use", pieces, bytes.NewReader(flipped(9000)), nil, segment.ErrMismatch},
		{"index damaged at its end", pieces, bytes.NewReader(flipped(len(index) - 1)), nil, segment.ErrMismatch},
		{"index short", pieces, bytes.NewReader(index[:len(index)-1]), nil, segment.ErrMismatch},
		{"index empty", pieces, bytes.NewReader(nil), nil, segment.ErrMismatch},
		{"index long", pieces, io.MultiReader(bytes.NewReader(index), bytes.NewReader([]byte{0})), nil, segment.ErrMismatch},
		{"index unreadable", pieces, io.MultiReader(bytes.NewReader(index[:50]), iotest.ErrReader(broken)), nil, broken},
		{"proof forged", pieces, nil, forged, segment.ErrProof},
		{"proof missing", pieces, nil, all[:299], segment.ErrProof},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var proofs iter.Seq2[piece.Link, segment.InclusionProof]
			if tc.proofs != nil {
				proofs = sequence(tc.proofs)
			}
			got, err := segment.VerifyAggregate(a.Link(), tc.pieces, tc.index, proofs)
			if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			if (got != nil) != (err == nil) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	if _, err := segment.Rebuild(piece.Link{}, pieces); err == nil {
		t.Error("an undefined aggregate was rebuilt")
	}
}

func TestCheckEntries(t *testing.T) {
	rng := rand.New(rand.NewPCG(26, 26))
	a := mustBuild(t, 1<<20, mixed(t, rng, 8, 2, 9, 2))
	good, err := segment.ReadIndex(a.IndexReader())
	if err != nil || len(good) != 8 {
		t.Fatal(good, err)
	}
	if err := segment.CheckEntries(good, 1<<20); err != nil {
		t.Errorf("entries of an aggregate: %v", err)
	}
	for name, change := range map[string]func(e []segment.Entry) []segment.Entry{
		"none":               func(e []segment.Entry) []segment.Entry { return nil },
		"too many":           func(e []segment.Entry) []segment.Entry { return append(e, e[0]) },
		"unordered":          func(e []segment.Entry) []segment.Entry { e[2], e[3] = e[3], e[2]; return e },
		"twice":              func(e []segment.Entry) []segment.Entry { e[5] = e[4]; return e },
		"overlapping":        func(e []segment.Entry) []segment.Entry { e[1].Offset = e[0].Offset; return e },
		"not aligned":        func(e []segment.Entry) []segment.Entry { e[7].Offset += e[7].Size / 2; return e },
		"no size of a piece": func(e []segment.Entry) []segment.Entry { e[7].Size = 384; return e },
		"in the index":       func(e []segment.Entry) []segment.Entry { e[7].Offset = 1<<20 - 512; e[7].Size = 128; return e },
		"behind the end":     func(e []segment.Entry) []segment.Entry { e[7].Offset = 1 << 63; e[7].Size = 1 << 36; return e },
		"root of zeros":      func(e []segment.Entry) []segment.Entry { e[4].Root = piece.Node{}; return e },
	} {
		if err := segment.CheckEntries(change(slices.Clone(good)), 1<<20); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := segment.CheckEntries(good, 3<<20); err == nil {
		t.Error("a deal size between powers of two: no error")
	}
}
