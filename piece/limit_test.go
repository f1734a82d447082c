package piece

import (
	"errors"
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
