package piece_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
	"testing/synctest"

	commp "github.com/filecoin-project/go-fil-commp-hashhash"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/piece"
)

// randomBytes returns n bytes that depend on seed and n alone.
func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	if _, err := rand.NewChaCha8([32]byte{seed}).Read(b); err != nil {
		panic(err) // ChaCha8 never fails
	}
	return b
}

// oracle returns the link that go-fil-commp-hashhash computes. It takes payloads from 65 bytes.
func oracle(t testing.TB, payload []byte) piece.Link {
	t.Helper()
	var calc commp.Calc
	if _, err := calc.Write(payload); err != nil {
		t.Fatal(err)
	}
	root, padded, err := calc.Digest()
	if err != nil {
		t.Fatal(err)
	}
	l, err := piece.FromRoot(piece.Node(root), uint64(len(payload)))
	if err != nil {
		t.Fatal(err)
	}
	if l.PaddedSize() != padded {
		t.Fatalf("%d bytes: padded size %d, want %d", len(payload), l.PaddedSize(), padded)
	}
	return l
}

// bitwise computes a root one bit at a time, as the definition reads.
func bitwise(payload []byte, height uint8) piece.Node {
	layer := make([]piece.Node, 1<<height)
	for bit := range 8 * len(payload) {
		if payload[bit/8]>>(bit%8)&1 == 1 {
			layer[bit/254][bit%254/8] |= 1 << (bit % 254 % 8)
		}
	}
	for len(layer) > 1 {
		for i := range len(layer) / 2 {
			layer[i] = sha256.Sum256(append(layer[2*i][:], layer[2*i+1][:]...))
			layer[i][31] &= 0x3f
		}
		layer = layer[:len(layer)/2]
	}
	return layer[0]
}

func TestGoldenPieces(t *testing.T) {
	var golden struct {
		Pieces []struct {
			Seed    byte       `json:"seed"`
			Length  int        `json:"length"`
			Piece   piece.Link `json:"piece"`
			Content string     `json:"content"`
			Height  uint8      `json:"height"`
			Padding uint64     `json:"padding"`
		} `json:"pieces"`
	}
	b, err := os.ReadFile("testdata/javascript.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Pieces) == 0 {
		t.Fatal("no vectors")
	}
	for _, g := range golden.Pieces {
		payload := make([]byte, g.Length)
		for k := range payload {
			payload[k] = byte(k*7) + g.Seed*13
		}
		c, err := piece.HashReader(t.Context(), bytes.NewReader(payload))
		if err != nil {
			t.Fatal(err)
		}
		if c.Piece != g.Piece || c.Piece.Height() != g.Height || c.Piece.Padding() != g.Padding {
			t.Errorf("%d bytes: %v, height %d, padding %d; want %+v",
				g.Length, c.Piece, c.Piece.Height(), c.Piece.Padding(), g)
		}
		mh, err := multihash.Encode(c.SHA256[:], multihash.SHA2_256)
		if err != nil {
			t.Fatal(err)
		}
		if got := cid.NewCidV1(cid.Raw, mh).String(); got != g.Content {
			t.Errorf("content %s, want %s", got, g.Content)
		}
	}
}

// TestTinyPayloads covers what the oracle refuses: payloads below 65 bytes are filled up to a quad all the same.
func TestTinyPayloads(t *testing.T) {
	for n := 1; n <= 2*127+1; n++ {
		payload := randomBytes(1, n)
		got, err := piece.Sum(payload)
		if err != nil {
			t.Fatal(err)
		}
		want, err := piece.FromRoot(bitwise(payload, got.Height()), uint64(n))
		if err != nil || got != want {
			t.Errorf("%d bytes: %v, want %v, %v", n, got, want, err)
		}
	}
	if _, err := piece.Sum(nil); !errors.Is(err, piece.ErrEmpty) {
		t.Errorf("empty payload: %v", err)
	}
}

const chunkSize = 4096 * 127

func TestAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	sizes := []int{65, 126, 127, 128, 253, 254, 255, 507, 508, 509, 1015, 1016, 1017, 2032, 2033,
		chunkSize - 1, chunkSize, chunkSize + 1, 2*chunkSize - 1, 2 * chunkSize, 2*chunkSize + 1,
		3 * chunkSize, 3*chunkSize + 127, 4*chunkSize + 1, 5*chunkSize - 127, 9*chunkSize + 12345}
	for k := 7; k <= 20; k++ {
		sizes = append(sizes, 1<<k-1, 1<<k, 1<<k+1)
	}
	for range 40 {
		sizes = append(sizes, 65+rng.IntN(100_000))
	}
	for _, n := range sizes {
		payload := randomBytes(byte(n), n)
		want := oracle(t, payload)

		if got, err := piece.Sum(payload); err != nil || got != want {
			t.Errorf("Sum of %d bytes = %v, %v, want %v", n, got, err, want)
		}
		for _, workers := range []int{1, 3} {
			h := piece.NewHasher(piece.WithWorkers(workers))
			for rest := payload; len(rest) > 0; {
				m := 1 + rng.IntN(min(len(rest), 3*chunkSize))
				if n < 4096 {
					m = min(m, 1+rng.IntN(200))
				}
				if _, err := h.Write(rest[:m]); err != nil {
					t.Fatal(err)
				}
				rest = rest[m:]
			}
			if got, err := h.Sum(); err != nil || got != want {
				t.Errorf("%d bytes, %d workers: %v, %v, want %v", n, workers, got, err, want)
			}
			c, err := piece.HashReader(t.Context(), bytes.NewReader(payload), piece.WithWorkers(workers))
			if err != nil || c != (piece.Content{Piece: want, SHA256: sha256.Sum256(payload), Size: int64(n)}) {
				t.Errorf("HashReader of %d bytes, %d workers: %+v, %v, want %v", n, workers, c, err, want)
			}
		}
	}
}

// TestManyChunks goes through more chunks than one batch of a parallel Write holds.
func TestManyChunks(t *testing.T) {
	payload := randomBytes(4, 70*chunkSize+1000)
	want := oracle(t, payload)
	h := piece.NewHasher(piece.WithWorkers(2))
	for _, part := range [][]byte{payload[:100], payload[100:]} {
		if _, err := h.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := h.Sum(); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	c, err := piece.HashReader(t.Context(), bytes.NewReader(payload))
	if err != nil || c != (piece.Content{Piece: want, SHA256: sha256.Sum256(payload), Size: int64(len(payload))}) {
		t.Errorf("got %+v, %v, want %v", c, err, want)
	}
}

func TestSumKeepsTheState(t *testing.T) {
	payload := randomBytes(5, 3000)
	h := piece.NewHasher()
	for n := range payload {
		if _, err := h.Write(payload[n : n+1]); err != nil {
			t.Fatal(err)
		}
		if h.Size() != uint64(n+1) {
			t.Fatalf("size %d after %d bytes", h.Size(), n+1)
		}
		got, err := h.Sum()
		if err != nil {
			t.Fatal(err)
		}
		if want, err := piece.Sum(payload[:n+1]); err != nil || got != want {
			t.Fatalf("%d bytes: %v, want %v, %v", n+1, got, want, err)
		}
	}
	h.Reset()
	if _, err := h.Sum(); !errors.Is(err, piece.ErrEmpty) {
		t.Errorf("after Reset: %v", err)
	}
	if _, err := h.Write(payload[:200]); err != nil {
		t.Fatal(err)
	}
	got, err := h.Sum()
	if want, _ := piece.Sum(payload[:200]); err != nil || got != want {
		t.Errorf("after Reset: %v, %v, want %v", got, err, want)
	}
}

func TestHasherDoesNotAllocate(t *testing.T) {
	payload := randomBytes(6, 200_000)
	var h piece.Hasher
	if n := testing.AllocsPerRun(5, func() {
		h.Reset()
		for rest := payload; len(rest) > 0; {
			m := min(len(rest), 33_333)
			if _, err := h.Write(rest[:m]); err != nil {
				t.Fatal(err)
			}
			rest = rest[m:]
		}
		if _, err := h.Sum(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("hashing allocates %v times", n)
	}
}

func TestZeros(t *testing.T) {
	for _, n := range []int{127, 1000, 1 << 20} {
		l, err := piece.Sum(make([]byte, n))
		if err != nil {
			t.Fatal(err)
		}
		if l.Root() != piece.ZeroRoot(l.Height()) {
			t.Errorf("%d zeros: root %x, want %x", n, l.Root(), piece.ZeroRoot(l.Height()))
		}
	}
	if piece.ZeroRoot(0) != (piece.Node{}) {
		t.Error("zero leaf is not zero")
	}
}

func TestHashPairs(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	nodes := make([]piece.Node, 20)
	for i := range nodes {
		nodes[i] = randomRoot(rng)
	}
	want := make([]piece.Node, len(nodes)/2)
	for i := range want {
		want[i] = sha256.Sum256(append(nodes[2*i][:], nodes[2*i+1][:]...))
		want[i][31] &= 0x3f
		if got := piece.HashPair(&nodes[2*i], &nodes[2*i+1]); got != want[i] {
			t.Errorf("pair %d: %x, want %x", i, got, want[i])
		}
	}
	piece.HashPairs(nodes[:10], nodes) // in place
	for i := range want {
		if nodes[i] != want[i] {
			t.Errorf("in place, pair %d: %x, want %x", i, nodes[i], want[i])
		}
	}
}

func TestFr32(t *testing.T) {
	payload := randomBytes(8, 127*5)
	want := make([]byte, 128*5)
	for bit := range 8 * len(payload) {
		to := bit/254*256 + bit%254
		want[to/8] |= payload[bit/8] >> (bit % 8) & 1 << (to % 8)
	}
	got := bytes.Repeat([]byte{0xff}, len(want))
	piece.Pad(got, payload)
	if !bytes.Equal(got, want) {
		t.Errorf("Pad = %x\nwant  %x", got, want)
	}
	for i := 31; i < len(got); i += 32 {
		got[i] |= 0xc0 // not part of the payload
	}
	back := bytes.Repeat([]byte{0xff}, len(payload))
	piece.Unpad(back, got)
	if !bytes.Equal(back, payload) {
		t.Errorf("Unpad = %x\nwant    %x", back, payload)
	}
	for _, sizes := range [][2]int{{128, 126}, {127, 127}, {256, 127}, {0, 127}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Pad took buffers of %d and %d bytes", sizes[0], sizes[1])
				}
			}()
			piece.Pad(make([]byte, sizes[0]), make([]byte, sizes[1]))
		}()
	}
}

func TestHashReaderOddReaders(t *testing.T) {
	payload := randomBytes(9, 2*chunkSize+77)
	want := piece.Content{Piece: oracle(t, payload), SHA256: sha256.Sum256(payload), Size: int64(len(payload))}
	broken := errors.New("broken")
	tests := []struct {
		name string
		r    io.Reader
		want error
	}{
		{"half reads", iotest.HalfReader(bytes.NewReader(payload)), nil},
		{"data with EOF", iotest.DataErrReader(bytes.NewReader(payload)), nil},
		{"broken at once", iotest.ErrReader(broken), broken},
		{"broken early", io.MultiReader(bytes.NewReader(payload[:1000]), iotest.ErrReader(broken)), broken},
		{"broken late", io.MultiReader(bytes.NewReader(payload), iotest.ErrReader(broken)), broken},
		{"broken off, wrapping EOF",
			io.MultiReader(bytes.NewReader(payload), iotest.ErrReader(fmt.Errorf("connection: %w", io.EOF))), io.EOF},
		{"stalled", stalled{}, io.ErrNoProgress},
		{"empty", bytes.NewReader(nil), piece.ErrEmpty},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c, err := piece.HashReader(t.Context(), tc.r)
			if tc.want != nil {
				if !errors.Is(err, tc.want) || c != (piece.Content{}) {
					t.Errorf("got %+v, %v, want error %v", c, err, tc.want)
				}
				return
			}
			if err != nil || c != want {
				t.Errorf("got %+v, %v, want %+v", c, err, want)
			}
		})
	}
}

type stalled struct{}

func (stalled) Read([]byte) (int, error) { return 0, nil }

// cancelling cancels a context after a number of bytes, and goes on for ever.
type cancelling struct {
	after  int
	cancel func()
}

func (r *cancelling) Read(p []byte) (int, error) {
	if r.after -= len(p); r.after < 0 {
		r.cancel()
	}
	return len(p), nil
}

func TestHashReaderCancelled(t *testing.T) {
	for _, after := range []int{0, 5 * chunkSize} {
		ctx, cancel := context.WithCancel(t.Context())
		c, err := piece.HashReader(ctx, &cancelling{after, cancel})
		if !errors.Is(err, context.Canceled) || c != (piece.Content{}) {
			t.Errorf("after %d bytes: %+v, %v", after, c, err)
		}
	}
}

// TestHashReaderLeavesNoGoroutines relies on the bubble, which fails when a goroutine is left in it.
func TestHashReaderLeavesNoGoroutines(t *testing.T) {
	payload := randomBytes(10, 3*chunkSize)
	synctest.Test(t, func(t *testing.T) {
		if _, err := piece.HashReader(t.Context(), bytes.NewReader(payload)); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		defer func() {
			if recover() == nil {
				t.Error("the reader did not panic")
			}
		}()
		_, _ = piece.HashReader(t.Context(), io.MultiReader(bytes.NewReader(payload), panicking{}))
	})
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("reader") }

// FuzzHasher compares a Hasher that is written to in two parts with the definition.
func FuzzHasher(f *testing.F) {
	f.Add([]byte{1}, uint16(0))
	f.Add(randomBytes(11, 300), uint16(127))
	f.Fuzz(func(t *testing.T, payload []byte, cut uint16) {
		if len(payload) == 0 || len(payload) > 1<<14 {
			return
		}
		i := int(cut) % len(payload)
		var h piece.Hasher
		_, _ = h.Write(payload[:i])
		_, _ = h.Write(payload[i:])
		got, err := h.Sum()
		if err != nil {
			t.Fatal(err)
		}
		want, err := piece.FromRoot(bitwise(payload, got.Height()), uint64(len(payload)))
		if err != nil || got != want {
			t.Fatalf("%v, want %v, %v", got, want, err)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{100, 1016, 8 << 10, 64 << 10, 1 << 20, 16 << 20} {
		payload := randomBytes(12, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := piece.Sum(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOracle(b *testing.B) {
	for _, n := range []int{100, 8 << 10, 1 << 20, 16 << 20} {
		payload := randomBytes(12, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				oracle(b, payload)
			}
		})
	}
}

func BenchmarkParallel(b *testing.B) {
	payload := randomBytes(12, 64<<20)
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("Hasher/workers=%d", workers), func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			h := piece.NewHasher(piece.WithWorkers(workers))
			for b.Loop() {
				h.Reset()
				if _, err := h.Write(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("HashReader/workers=%d", workers), func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				r := bytes.NewReader(payload)
				if _, err := piece.HashReader(context.Background(), r, piece.WithWorkers(workers)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := piece.Parse(fourQuads); err != nil {
			b.Fatal(err)
		}
	}
}
