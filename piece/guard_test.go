//go:build linux || darwin

package piece

import (
	"syscall"
	"testing"
)

// TestKernelsStayInside hashes payloads that begin and end where memory does: a read outside ends the test.
func TestKernelsStayInside(t *testing.T) {
	page := syscall.Getpagesize()
	room := (chunkSize/page + 1) * page
	all, err := syscall.Mmap(-1, 0, page+room+page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Skipf("mapping memory: %v", err)
	}
	defer syscall.Munmap(all)
	for _, guard := range [][]byte{all[:page], all[page+room:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Skipf("protecting memory: %v", err)
		}
	}
	inside := all[page : page+room]
	copy(inside, random(10, room))

	eachKernels(t, func(t *testing.T, k kernels) {
		for _, quads := range []int{1, 7, 8, 15, 16, 17, 31, 32, 64, 1000, 1024, chunkQuads - 1, chunkQuads} {
			for _, payload := range [][]byte{inside[:quads*quad], inside[room-quads*quad:]} {
				// A copy lies elsewhere, amid memory that may be read.
				want, err := Sum(append([]byte(nil), payload...))
				if err != nil {
					t.Fatal(err)
				}
				h := Hasher{forced: &k}
				if _, err := h.Write(payload); err != nil {
					t.Fatal(err)
				}
				if got, err := h.Sum(); err != nil || got != want {
					t.Errorf("%d quads: %v, %v, want %v", quads, got, err, want)
				}
			}
		}
		for pairs := 1; pairs < 40; pairs++ {
			src := asNodes(inside[room-2*pairs*NodeSize:])
			want, got := make([]Node, pairs), make([]Node, pairs)
			sumPairs(want, src)
			k.pairs(got, src)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("%d of %d pairs: %x, want %x", i, pairs, got[i], want[i])
				}
			}
		}
	})
}
