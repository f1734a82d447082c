package segment_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/filecoin-project/go-data-segment/datasegment"
	"github.com/filecoin-project/go-state-types/abi"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// payloads returns random payloads of the given sizes and their pieces.
func payloads(t testing.TB, rng *rand.Rand, sizes []int) ([][]byte, []piece.Link) {
	t.Helper()
	data := make([][]byte, len(sizes))
	links := make([]piece.Link, len(sizes))
	for i, n := range sizes {
		data[i] = make([]byte, n)
		for k := range data[i] {
			data[i][k] = byte(rng.Uint32())
		}
		var err error
		if links[i], err = piece.Sum(data[i]); err != nil {
			t.Fatal(err)
		}
	}
	return data, links
}

// inMemory reads segments from data and checks that it is asked for payload only.
func inMemory(t testing.TB, data [][]byte) segment.ReadSegment {
	return func(i int, off int64, p []byte) (int, error) {
		if len(p) == 0 || off < 0 || off+int64(len(p)) > int64(len(data[i])) {
			t.Errorf("asked for %d bytes at %d of segment %d, which has %d", len(p), off, i, len(data[i]))
		}
		return bytes.NewReader(data[i]).ReadAt(p, off)
	}
}

// TestFileIsTheAggregate hashes the file: its piece must be the aggregate, and its bytes those of go-data-segment.
func TestFileIsTheAggregate(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for c := range 60 {
		dealSize := uint64(1<<13) << (c % 9)
		limit := min(segment.MaxEntries(dealSize), 12)
		sizes := make([]int, 1+rng.IntN(limit))
		for i := range sizes {
			sizes[i] = 1 + rng.IntN(int(dealSize)/20)
		}
		data, links := payloads(t, rng, sizes)
		a, err := segment.Build(dealSize, links)
		if errors.Is(err, segment.ErrDoesNotFit) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r := segment.NewReader(a, inMemory(t, data))
		if want := int64(dealSize / 128 * 127); r.Size() != want {
			t.Fatalf("size %d, want %d", r.Size(), want)
		}
		file, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if err != nil {
			t.Fatal(err)
		}
		sum, err := piece.Sum(file)
		if err != nil || sum != a.Link() {
			t.Fatalf("%d pieces in %d bytes: the file is %v, %v, want %v", len(links), dealSize, sum, err, a.Link())
		}

		oracle, err := datasegment.NewAggregate(abi.PaddedPieceSize(dealSize), pieceInfos(links))
		if err != nil {
			t.Fatal(err)
		}
		readers := make([]io.Reader, len(data))
		for i := range data {
			readers[i] = bytes.NewReader(data[i])
		}
		or, err := oracle.AggregateObjectReader(readers)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(or)
		if err != nil || !bytes.Equal(file, want) {
			t.Fatalf("%d pieces in %d bytes: the file differs from go-data-segment's (%v)", len(links), dealSize, err)
		}

		// Any part reads as the whole does.
		for range 50 {
			off := rng.Int64N(r.Size())
			p := make([]byte, 1+rng.Int64N(r.Size()-off))
			if rng.IntN(2) == 0 {
				p = p[:min(len(p), 1+rng.IntN(300))]
			}
			n, err := r.ReadAt(p, off)
			if n != len(p) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p, file[off:off+int64(n)]) {
				t.Fatalf("%d bytes at %d: %d, %v, or other bytes", len(p), off, n, err)
			}
		}
		index, err := segment.ReadIndex(io.NewSectionReader(r, int64(piece.UnpaddedSize(a.IndexStart())), 1<<40))
		if err != nil || len(index) != len(links) {
			t.Fatalf("index of the file: %v, %v", index, err)
		}
		if c < 3 {
			if err := iotest.TestReader(io.NewSectionReader(r, 0, r.Size()), file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReaderEdges(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 10))
	data, links := payloads(t, rng, []int{100, 300})
	a := mustBuild(t, 4096, links)
	r := segment.NewReader(a, inMemory(t, data))
	size := r.Size()
	for _, tc := range []struct {
		off     int64
		n, want int
		err     error
	}{
		{0, 0, 0, nil}, {size - 10, 10, 10, nil}, {size - 10, 11, 10, io.EOF}, {size, 1, 0, io.EOF}, {size + 5, 1, 0, io.EOF},
	} {
		n, err := r.ReadAt(make([]byte, tc.n), tc.off)
		if n != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%d bytes at %d: %d, %v; want %d, %v", tc.n, tc.off, n, err, tc.want, tc.err)
		}
	}
	if n, err := r.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("at -1: %d, %v", n, err)
	}
}

// TestReaderRefusesShortPayload covers sources that have less than a link says, or fail: never are there zeros instead.
func TestReaderRefusesShortPayload(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 11))
	_, links := payloads(t, rng, []int{100, 300})
	a := mustBuild(t, 4096, links)
	broken := errors.New("broken")
	tests := []struct {
		name  string
		n     int
		err   error
		want  error
		wantN int
	}{
		{"nothing", 0, nil, io.ErrUnexpectedEOF, 0},
		{"short", 40, nil, io.ErrUnexpectedEOF, 40},
		{"short at the end", 40, io.EOF, io.ErrUnexpectedEOF, 40},
		{"broken", 40, broken, broken, 40},
		{"broken after all", 100, broken, broken, 100},
		{"more than asked for", 200, broken, broken, 100},
		{"negative", -1, nil, io.ErrUnexpectedEOF, 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := segment.NewReader(a, func(int, int64, []byte) (int, error) { return tc.n, tc.err })
			n, err := r.ReadAt(make([]byte, 1000), 0)
			if n != tc.wantN || !errors.Is(err, tc.want) || errors.Is(err, io.EOF) {
				t.Errorf("%d, %v; want %d, %v", n, err, tc.wantN, tc.want)
			}
			// The parts that need no source are there all the same.
			index := make([]byte, 127)
			if n, err := r.ReadAt(index, int64(piece.UnpaddedSize(a.IndexStart()))); n != len(index) || err != nil {
				t.Errorf("index: %d, %v", n, err)
			}
		})
	}
}

func TestReadIndexDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 12))
	pieces := []piece.Link{randomLink(t, rng, 3), randomLink(t, rng, 3), randomLink(t, rng, 2)}
	a := mustBuild(t, 4096, pieces)
	index, err := io.ReadAll(a.IndexReader())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(index)) != a.IndexReader().Size() || len(index) != 254 {
		t.Fatalf("index of %d bytes, want 254", len(index))
	}
	index[70] ^= 1 // in the second entry
	entries, err := segment.ReadIndex(bytes.NewReader(index))
	if err != nil || len(entries) != 2 || entries[0].Root != pieces[0].Root() || entries[1].Root != pieces[2].Root() {
		t.Errorf("entries %+v, %v; want the first and the third", entries, err)
	}
	if _, err := segment.ReadIndex(bytes.NewReader(index[:200])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut index: %v", err)
	}
	broken := errors.New("broken")
	if _, err := segment.ReadIndex(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("broken reader: %v", err)
	}
	if entries, err := segment.ReadIndex(bytes.NewReader(nil)); err != nil || len(entries) != 0 {
		t.Errorf("no index: %v, %v", entries, err)
	}
}

func FuzzReadIndex(f *testing.F) {
	g := golden(f)
	a := mustBuild(f, g.DealSize, g.pieces())
	index, err := io.ReadAll(a.IndexReader())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(index)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := segment.ReadIndex(bytes.NewReader(b))
		want, wantErr := datasegment.ParseDataSegmentIndex(bytes.NewReader(b))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, go-data-segment says %v", err, wantErr)
		}
		if err != nil {
			return
		}
		valid, err := want.ValidEntries()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(valid) {
			t.Fatalf("%d entries, want %d", len(got), len(valid))
		}
		for i, e := range valid {
			if got[i] != (segment.Entry{Root: piece.Node(e.CommDs), Offset: e.Offset, Size: e.Size}) {
				t.Fatalf("entry %d: %+v, want %+v", i, got[i], e)
			}
		}
	})
}
