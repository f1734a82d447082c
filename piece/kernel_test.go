package piece

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/iotest"

	commp "github.com/filecoin-project/go-fil-commp-hashhash"
)

// eachKernels runs a test with each combination of kernels that can be in use, and skips those that this machine lacks.
// The one in plain Go is always there, so what is built on lanes is tested everywhere.
func eachKernels(t *testing.T, test func(t *testing.T, k kernels)) {
	for _, wide := range []kernel{sumKernel, shaKernel, laneKernelGo, laneKernel, laneKernelVBMI2} {
		for _, narrow := range []kernel{sumKernel, shaKernel} {
			if !wide.hasLanes() && narrow != wide {
				continue
			}
			t.Run(fmt.Sprintf("%v and %v", wide, narrow), func(t *testing.T) {
				if !wide.available() || !narrow.available() {
					t.Skip("this machine does not have it")
				}
				test(t, kernels{wide, narrow})
			})
		}
	}
}

// random returns n bytes that depend on seed and n alone.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// rootByHashhash returns the root that go-fil-commp-hashhash computes, which takes payloads from 65 bytes.
func rootByHashhash(t testing.TB, payload []byte) Node {
	var calc commp.Calc
	if _, err := calc.Write(payload); err != nil {
		t.Fatal(err)
	}
	root, _, err := calc.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return Node(root)
}

// sizes are payload sizes around everything that is a boundary to somebody.
func sizes() []int {
	var s []int
	around := func(n int) { s = append(s, n-1, n, n+1) }
	for n := 65; n < 1100; n++ { // each remainder of a quad several times
		s = append(s, n)
	}
	for k := 9; k <= 20; k++ {
		around(1 << k)
	}
	for quads := 1; quads < 80; quads++ { // lanes in part
		around(quads * quad)
	}
	for k := 4; k <= chunkLog+1; k++ { // sub-trees, and what is left of them
		for _, more := range []int{-17, -16, -1, 0, 1, 7, 8, 9, 15, 16, 17} {
			around((1<<k + more) * quad)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		s = append(s, 65+rng.IntN(30_000))
	}
	for range 30 {
		s = append(s, 65+rng.IntN(3*chunkSize))
	}
	valid := s[:0]
	for _, n := range s {
		if n >= 65 {
			valid = append(valid, n)
		}
	}
	return valid
}

func TestKernels(t *testing.T) {
	payload := random(1, 3*chunkSize+1)
	type sized struct {
		size int
		root Node
	}
	var want []sized
	for i, n := range sizes() {
		if testing.Short() && i%7 != 0 {
			continue
		}
		want = append(want, sized{n, rootByHashhash(t, payload[:n])})
	}
	t.Logf("%d sizes", len(want))
	eachKernels(t, func(t *testing.T, k kernels) {
		rng := rand.New(rand.NewPCG(2, 2))
		for i, w := range want {
			if k.wide == laneKernelGo && i%5 != 0 {
				continue
			}
			h := Hasher{forced: &k}
			// Half of them in one Write, half of them in some.
			for rest := payload[:w.size]; len(rest) > 0; {
				n := len(rest)
				if i%2 == 1 {
					n = 1 + rng.IntN(n)
				}
				if _, err := h.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if l, err := h.Sum(); err != nil || l.Root() != w.root {
				t.Fatalf("%d bytes: %x, %v, want %x", w.size, l.Root(), err, w.root)
			}
		}
	})
}

// TestKernelsTakeStreams reads through ReadFrom and HashReader, from any place in a chunk on.
func TestKernelsTakeStreams(t *testing.T) {
	payload := random(2, 3*chunkSize+4321)
	sizes := []int{65, 3000, chunkSize, chunkSize + 1, len(payload)}
	roots := map[int]Node{}
	for _, size := range sizes {
		roots[size] = rootByHashhash(t, payload[:size])
	}
	eachKernels(t, func(t *testing.T, k kernels) {
		starts := []int{0, 1, 127, 5000, chunkSize}
		if k != fastest() {
			starts = []int{5000} // the way of the bytes depends little on the kernel
		}
		for _, size := range sizes {
			want := roots[size]
			for _, workers := range []int{1, 3} {
				for _, before := range starts {
					if before >= size {
						continue
					}
					h := Hasher{forced: &k, workers: workers}
					if _, err := h.Write(payload[:before]); err != nil {
						t.Fatal(err)
					}
					n, err := io.Copy(&h, iotest.OneByteReader(bytes.NewReader(payload[before:before+1])))
					if n != 1 || err != nil {
						t.Fatalf("copied %d bytes, %v", n, err)
					}
					n, err = h.ReadFrom(bytes.NewReader(payload[before+1 : size]))
					if n != int64(size-before-1) || err != nil {
						t.Fatalf("read %d of %d bytes, %v", n, size-before-1, err)
					}
					if l, err := h.Sum(); err != nil || l.Root() != want || l.PayloadSize() != uint64(size) {
						t.Errorf("%d bytes by %d workers from %d on: %v, %v", size, workers, before, l, err)
					}
				}
				h := Hasher{forced: &k, workers: workers}
				c, err := h.content(t.Context(), bytes.NewReader(payload[:size]))
				if err != nil || c.Piece.Root() != want || c.SHA256 != sha256.Sum256(payload[:size]) || c.Size != int64(size) {
					t.Errorf("content of %d bytes by %d workers: %+v, %v", size, workers, c, err)
				}
			}
		}
	})
}

// TestReadFromBrokenReader: what came before the error is in the sum.
func TestReadFromBrokenReader(t *testing.T) {
	payload := random(3, 2*chunkSize+77)
	broken := errors.New("broken")
	for _, workers := range []int{1, 3} {
		for _, size := range []int{0, 1000, chunkSize, len(payload)} {
			h := NewHasher(WithWorkers(workers))
			n, err := h.ReadFrom(io.MultiReader(bytes.NewReader(payload[:size]), iotest.ErrReader(broken)))
			if n != int64(size) || !errors.Is(err, broken) || h.Size() != uint64(size) {
				t.Fatalf("%d workers: %d bytes, %v, want %d", workers, n, err, size)
			}
			if size == 0 {
				continue
			}
			got, err := h.Sum()
			if want, _ := Sum(payload[:size]); err != nil || got != want {
				t.Errorf("%d bytes by %d workers: %v, %v, want %v", size, workers, got, err, want)
			}
		}
	}
}

func TestKernelsHashPairs(t *testing.T) {
	src := asNodes(random(4, 2*100*NodeSize))
	for i := range src {
		src[i][NodeSize-1] &= truncate
	}
	eachKernels(t, func(t *testing.T, k kernels) {
		for n := range 100 {
			want := make([]Node, n)
			sumPairs(want, src[:2*n])

			got := make([]Node, n+1)
			k.pairs(got[:n], src[:2*n])
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("%d of %d pairs: %x, want %x", i, n, got[i], want[i])
				}
			}
			if got[n] != (Node{}) {
				t.Fatalf("%d pairs: more was written", n)
			}
			inPlace := append([]Node(nil), src[:2*n]...)
			k.pairs(inPlace[:n], inPlace)
			for i := range want {
				if inPlace[i] != want[i] {
					t.Fatalf("in place, %d of %d pairs: %x, want %x", i, n, inPlace[i], want[i])
				}
			}
			for i := n; i < 2*n; i++ {
				if inPlace[i] != src[i] {
					t.Fatalf("in place, %d pairs: node %d was overwritten", n, i)
				}
			}
		}
	})
}

// TestLaneTrees holds each lane of a kernel against crypto/sha256, for every number of quads that a lane can have.
func TestLaneTrees(t *testing.T) {
	payload := random(5, chunkSize)
	for _, k := range []kernel{laneKernelGo, laneKernel, laneKernelVBMI2} {
		t.Run(k.String(), func(t *testing.T) {
			if !k.available() {
				t.Skip("this machine does not have it")
			}
			for quads := 1; quads <= chunkQuads/lanes; quads *= 2 {
				var roots [lanes]Node
				k.laneTrees(&roots, payload, quads)
				for l, root := range roots {
					if want := sumKernel.root(payload[l*quads*quad : (l+1)*quads*quad]); root != want {
						t.Fatalf("%d quads, lane %d: %x, want %x", quads, l, root, want)
					}
				}
			}
		})
	}
}

// TestFastest: what is chosen exists. What it is depends on the machine.
func TestFastest(t *testing.T) {
	k := fastest()
	t.Logf("%v, and %v for little", k.wide, k.narrow)
	if !k.wide.available() || !k.narrow.available() || k.narrow.hasLanes() || k.wide == laneKernelGo {
		t.Errorf("%v and %v were chosen", k.wide, k.narrow)
	}
}

// TestTreeOfAnySize builds trees of up to 64 GiB of equal chunks and compares their roots with the definition, which for
// equal chunks takes one hash for each level.
func TestTreeOfAnySize(t *testing.T) {
	const maxChunks = 1 << (MaxHeight - MinHeight - chunkLog)
	chunkRoot := random(6, NodeSize)
	chunkRoot[NodeSize-1] &= truncate
	full := []Node{Node(chunkRoot)}
	for h := 0; 1<<h < maxChunks; h++ {
		full = append(full, HashPair(&full[h], &full[h]))
	}
	// define returns the root of height h over n chunks and zeros after them.
	var define func(n, h int) Node
	define = func(n, h int) Node {
		if n == 0 {
			return ZeroRoot(uint8(MinHeight + chunkLog + h))
		}
		if n == 1<<h {
			return full[h]
		}
		half := 1 << (h - 1)
		left, right := define(min(n, half), h-1), define(max(n-half, 0), h-1)
		return HashPair(&left, &right)
	}

	rng := rand.New(rand.NewPCG(6, 6))
	check := map[int]bool{1: true, maxChunks: true, maxChunks - 1: true, maxChunks/2 + 1: true, maxChunks / 2: true}
	for range 300 {
		check[1+rng.IntN(maxChunks)] = true
	}
	var tr tree
	for n := 1; n <= maxChunks; n++ {
		tr.push(sumKernel, &full[0], chunkLog)
		if n > 300 && !check[n] {
			continue
		}
		h := 0
		for 1<<h < n {
			h++
		}
		if got, want := tr.root(sumKernel), define(n, h); got != want {
			t.Fatalf("%d chunks: %x, want %x", n, got, want)
		}
		if size := tr.quads * quad; size > MaxPayloadSize || size != uint64(n)*chunkSize {
			t.Fatalf("%d chunks are %d bytes", n, size)
		}
	}
}

// TestGenerated runs the generator again and compares.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "run", "-tags", "gen", "./internal/gen",
		"-lanes", filepath.Join(dir, "lanes_amd64.s"), "-sha", filepath.Join(dir, "sha_amd64.s"))
	// For this machine, whatever the tests are built for.
	cmd.Env = append(os.Environ(), "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("running the generator: %v\n%s", err, out)
	}
	for _, name := range []string{"lanes_amd64.s", "sha_amd64.s"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the generator writes; run go generate ./piece", name)
		}
	}
}

// FuzzKernels compares all kernels with crypto/sha256, and that one with another way through the same functions.
func FuzzKernels(f *testing.F) {
	f.Add([]byte{1}, uint16(1), uint16(0))
	f.Add(random(7, 300), uint16(40), uint16(127))
	f.Add(random(8, 127), uint16(16), uint16(2000))
	f.Fuzz(func(t *testing.T, pattern []byte, repeat, cut uint16) {
		if len(pattern) == 0 || len(pattern) > 1<<12 {
			return
		}
		payload := bytes.Repeat(pattern, 1+int(repeat)%(1+1<<17/len(pattern)))
		i := int(cut) % len(payload)
		want := Hasher{forced: &kernels{sumKernel, sumKernel}}
		_, _ = want.Write(payload)
		link, err := want.Sum()
		if err != nil {
			t.Fatal(err)
		}
		for _, wide := range []kernel{sumKernel, shaKernel, laneKernelGo, laneKernel, laneKernelVBMI2} {
			narrow := shaKernel
			if !narrow.available() || wide == sumKernel {
				narrow = sumKernel
			}
			if !wide.available() {
				continue
			}
			h := Hasher{forced: &kernels{wide, narrow}}
			_, _ = h.Write(payload[:i])
			_, _ = h.Write(payload[i:])
			if got, err := h.Sum(); err != nil || got != link {
				t.Fatalf("%v and %v: %v, %v, want %v", wide, narrow, got, err, link)
			}
		}
	})
}

func BenchmarkKernels(b *testing.B) {
	payload := random(9, 16<<20)
	for _, k := range []kernels{{sumKernel, sumKernel}, {shaKernel, shaKernel},
		{laneKernel, shaKernel}, {laneKernelVBMI2, shaKernel}} {
		if !k.wide.available() || !k.narrow.available() {
			continue
		}
		b.Run("Write/"+k.wide.String(), func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			h := Hasher{forced: &k}
			for b.Loop() {
				h.Reset()
				if _, err := h.Write(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Read/"+k.wide.String(), func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			h := Hasher{forced: &k}
			for b.Loop() {
				h.Reset()
				if _, err := h.ReadFrom(bytes.NewReader(payload)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Pairs/"+k.wide.String(), func(b *testing.B) {
			nodes := asNodes(payload[:512*NodeSize])
			dst := make([]Node, 256)
			for b.Loop() {
				k.pairs(dst, nodes)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/node")
		})
	}
}
