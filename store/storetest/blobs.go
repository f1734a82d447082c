package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// pattern is bytes that differ from page to page.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*17)
	}
	return b
}

func (s *suite) wantBlob(c cid.Cid, want []byte) {
	s.Helper()
	ctx := s.Context()
	if size, err := s.d.Has(ctx, c); err != nil || size != int64(len(want)) {
		s.Errorf("blob %s has %d bytes, %v, want %d", c, size, err, len(want))
	}
	r, err := s.d.Open(ctx, c)
	if err != nil {
		s.Errorf("opening blob %s: %v", c, err)
		return
	}
	defer func() {
		if err := r.Close(); err != nil {
			s.Errorf("closing blob %s: %v", c, err)
		}
	}()
	if r.Size() != int64(len(want)) {
		s.Errorf("blob %s: reader of %d bytes, want %d", c, r.Size(), len(want))
	}
	// Ranges, before and after the whole, and beyond the end.
	check := func(off, n int) {
		b := make([]byte, n)
		got, err := r.ReadAt(b, int64(off))
		avail := max(0, min(n, len(want)-off))
		if got != avail || !bytes.Equal(b[:got], want[min(off, len(want)):min(off, len(want))+avail]) || (got < n) != (err == io.EOF) && got < n {
			s.Errorf("blob %s: %d bytes at %d: got %d, %v", c, n, off, got, err)
		}
	}
	check(len(want)/3, min(1000, len(want)-len(want)/3))
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		s.Errorf("blob %s: read %d bytes, %v, want %d", c, len(got), err, len(want))
	}
	check(0, len(want))
	check(max(0, len(want)-5), 10)
	check(len(want)+1, 1)
}

// sizes of blobs around whatever borders engines have.
var sizes = []int{0, 1, 480, 8 << 10, 32 << 10, 32<<10 + 1, 64 << 10, 64<<10 + 1, 256<<10 + 3, 1<<20 + 7, 3 << 20}

func testBlobs(s *suite) {
	ctx := s.Context()
	for _, size := range sizes {
		b := store.RawBlob(pattern(size))
		if _, err := s.d.Has(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("%d bytes, before: %v, want ErrNotFound", size, err)
		}
		if _, err := s.d.Open(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("%d bytes, before: %v, want ErrNotFound", size, err)
		}
		for range 2 { // again is a success
			if err := s.d.Put(ctx, b.CID, bytes.NewReader(b.Bytes)); err != nil {
				s.Fatalf("putting %d bytes: %v", size, err)
			}
			s.wantBlob(b.CID, b.Bytes)
		}
	}
	for _, size := range sizes {
		b := store.RawBlob(pattern(size))
		s.wantBlob(b.CID, b.Bytes)
	}
	// The codec is part of the name.
	other := store.CBORBlob(pattern(1))
	if _, err := s.d.Has(ctx, other.CID); !errors.Is(err, store.ErrNotFound) {
		s.Errorf("same bytes under another CID: %v, want ErrNotFound", err)
	}
}

func testInlineBlobs(s *suite) {
	a, b := store.RawBlob(pattern(480)), store.CBORBlob(pattern(store.MaxInlineBlob))
	if err := store.PutBlob(s.Context(), s.d, a); err != nil {
		s.Fatal(err)
	}
	s.commit(store.Change{Row: store.Row{Key: key("p", "")}, Blobs: []store.Blob{a, b, b}})
	s.wantBlob(a.CID, a.Bytes)
	s.wantBlob(b.CID, b.Bytes)
	if err := store.PutBlob(s.Context(), s.d, b); err != nil {
		s.Errorf("putting what was committed: %v", err)
	}
	s.wantBlob(b.CID, b.Bytes)
}

func testBlobDelete(s *suite) {
	ctx := s.Context()
	for _, size := range []int{0, 480, 1 << 20} {
		b := store.RawBlob(pattern(size))
		if err := s.d.Delete(ctx, b.CID); err != nil {
			s.Errorf("deleting what is not there: %v", err)
		}
		put := func() error { return store.PutBlob(ctx, s.d, b) }
		if size == 480 {
			put = func() error {
				_, err := s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("p", fmt.Sprint(s.Clock.Now()))}, Blobs: []store.Blob{b}})
				s.Clock.Advance(time.Millisecond)
				return err
			}
		}
		for range 2 {
			if err := put(); err != nil {
				s.Fatal(err)
			}
			s.wantBlob(b.CID, b.Bytes)
			for range 2 {
				if err := s.d.Delete(ctx, b.CID); err != nil {
					s.Errorf("deleting %d bytes: %v", size, err)
				}
				if _, err := s.d.Has(ctx, b.CID); !errors.Is(err, store.ErrNotFound) {
					s.Errorf("%d bytes, deleted: %v, want ErrNotFound", size, err)
				}
			}
		}
	}
}

func testBlobList(s *suite) {
	ctx := s.Context()
	want := make(map[cid.Cid]bool)
	for i := range 24 {
		b := store.RawBlob(fmt.Append(nil, i))
		var err error
		switch i % 3 {
		case 0:
			err = store.PutBlob(ctx, s.d, b)
		case 1:
			b = store.RawBlob(bytes.Repeat([]byte{byte(i)}, 100<<10))
			err = store.PutBlob(ctx, s.d, b)
		case 2:
			_, err = s.d.Commit(ctx, store.Change{Row: store.Row{Key: key("p", fmt.Sprint(i))}, Blobs: []store.Blob{b}})
		}
		if err != nil {
			s.Fatal(err)
		}
		want[b.CID] = true
	}
	for _, limit := range []int{0, 1, 5} {
		seen := make(map[cid.Cid]bool)
		cursor := ""
		for range 100 {
			cids, next, err := s.d.List(ctx, cursor, limit)
			if err != nil || limit > 0 && len(cids) > limit {
				s.Fatalf("limit %d: %d CIDs, %v", limit, len(cids), err)
			}
			for _, c := range cids {
				if seen[c] || !want[c] {
					s.Errorf("limit %d: %s, seen before: %v", limit, c, seen[c])
				}
				seen[c] = true
			}
			if cursor = next; cursor == "" {
				break
			}
		}
		if cursor != "" || len(seen) != len(want) {
			s.Errorf("limit %d: %d CIDs, want %d, cursor %q", limit, len(seen), len(want), cursor)
		}
	}
}

// breaking is a source that fails after n bytes.
type breaking struct{ n int }

var errBroken = errors.New("source broke")

func (b *breaking) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, errBroken
	}
	n := min(b.n, len(p))
	b.n -= n
	return n, nil
}

func testBrokenSource(s *suite) {
	ctx := s.Context()
	for _, size := range []int{0, 480, 1 << 20} {
		c := store.RawBlob(fmt.Append(nil, "broken ", size)).CID
		if err := s.d.Put(ctx, c, &breaking{size}); !errors.Is(err, errBroken) {
			s.Errorf("source that breaks after %d bytes: %v", size, err)
		}
		if _, err := s.d.Has(ctx, c); !errors.Is(err, store.ErrNotFound) {
			s.Errorf("after a source broke at %d bytes: %v, want ErrNotFound", size, err)
		}
	}
	if cids, _, err := s.d.List(ctx, "", 0); err != nil || len(cids) != 0 {
		s.Errorf("listed %v, %v", cids, err)
	}
	if err := s.d.Put(ctx, cid.Undef, strings.NewReader("")); err == nil {
		s.Error("put a blob without a CID")
	}
}

func testConcurrentPuts(s *suite) {
	b := store.RawBlob(pattern(300 << 10))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := store.PutBlob(s.Context(), s.d, b); err != nil {
				s.Errorf("putting: %v", err)
			}
			if got, err := store.ReadBlob(s.Context(), s.d, b.CID, 1<<20); err != nil || !bytes.Equal(got, b.Bytes) {
				s.Errorf("reading: %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	s.wantBlob(b.CID, b.Bytes)
}
