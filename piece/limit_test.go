package piece

import (
	"errors"
	"io"
	"testing"
)

// TestTooLarge starts from a Hasher that has already taken nearly 64 GiB of zeros, which would take minutes to write.
func TestTooLarge(t *testing.T) {
	const quads = 1<<(MaxHeight-MinHeight) - 1
	var h Hasher
	for k := range MaxHeight - MinHeight {
		h.tree.nodes[k] = zeroRoots[k+MinHeight]
	}
	h.tree.quads = quads

	if n, err := h.Write(make([]byte, quad+1)); n != 0 || !errors.Is(err, ErrTooLarge) {
		t.Errorf("a byte too many: %d, %v", n, err)
	}
	if h.Size() != quads*quad {
		t.Fatalf("size %d after a refused write", h.Size())
	}
	if n, err := h.Write(make([]byte, quad)); n != quad || err != nil {
		t.Fatalf("the last quad: %d, %v", n, err)
	}
	if n, err := h.Write([]byte{0}); n != 0 || !errors.Is(err, ErrTooLarge) {
		t.Errorf("a byte more: %d, %v", n, err)
	}
	l, err := h.Sum()
	if err != nil || l.Root() != ZeroRoot(MaxHeight) || l.Height() != MaxHeight || l.Padding() != 0 {
		t.Errorf("64 GiB of zeros: %v, %v", l, err)
	}

	// One quad past the half: the rest of the tree is zeros that are never hashed one by one.
	h.tree.quads = 1 << (MaxHeight - MinHeight - 1)
	h.tree.nodes[MaxHeight-MinHeight-1] = zeroRoots[MaxHeight-1]
	if _, err := h.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if l, err := h.Sum(); err != nil || l.Root() != ZeroRoot(MaxHeight) || l.Height() != MaxHeight {
		t.Errorf("32 GiB and a byte of zeros: %v, %v", l, err)
	}
}

// TestReadTooLarge reads the last two chunks of 64 GiB of zeros, and then a byte more.
func TestReadTooLarge(t *testing.T) {
	for _, workers := range []int{1, 3} {
		for _, more := range []int64{0, 1, chunkSize, 3 * chunkSize} {
			h := Hasher{workers: workers}
			h.tree.quads = 1<<(MaxHeight-MinHeight) - 2*chunkQuads
			for k := chunkLog + 1; k < MaxHeight-MinHeight; k++ {
				h.tree.nodes[k] = zeroRoots[k+MinHeight]
			}
			n, err := h.ReadFrom(io.LimitReader(zeros{}, 2*chunkSize+more))
			if h.Size() > MaxPayloadSize {
				t.Fatalf("%d bytes are in the tree", h.Size())
			}
			if more > 0 {
				if !errors.Is(err, ErrTooLarge) {
					t.Errorf("%d bytes too many, %d workers: %v", more, workers, err)
				}
				continue
			}
			if n != 2*chunkSize || err != nil {
				t.Fatalf("the last two chunks, %d workers: %d, %v", workers, n, err)
			}
			if l, err := h.Sum(); err != nil || l.Root() != ZeroRoot(MaxHeight) || l.Padding() != 0 {
				t.Errorf("64 GiB of zeros: %v, %v", l, err)
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
