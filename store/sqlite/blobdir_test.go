package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// errPowerLost is what every call returns once the power is lost.
var errPowerLost = errors.New("power lost")

// simDir is a directory in memory that loses on a crash what was not synced: of a file's bytes those since its Sync, of the
// directory's changes since syncDir any of them, each by itself. It is the worst that a file system may do.
type simDir struct {
	mu      sync.Mutex
	rand    *rand.Rand
	files   map[string]*simFile // as a running system sees them
	durable map[string]*simFile // as of the last syncDir
	pending []func(map[string]*simFile)

	ops    int // calls that change something, so far
	failAt int // the power is lost at this call; 0: never
	lost   bool
	space  int // bytes left to write; negative: any number

	ignoreSync, ignoreSyncDir bool // a disk that lies: to see that the tests notice
}

type simFile struct{ data, durable []byte }

func newSimDir(r *rand.Rand) *simDir {
	return &simDir{rand: r, files: make(map[string]*simFile), durable: make(map[string]*simFile), space: -1}
}

// step counts a call that changes something, and may lose the power before it or, at random, after it.
func (d *simDir) step(do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost {
		return errPowerLost
	}
	d.ops++
	if d.ops != d.failAt {
		return do()
	}
	d.lost = true
	if d.rand.IntN(2) == 0 {
		_ = do() // done, perhaps, but nobody hears of it
	}
	return errPowerLost
}

// crash returns what is on the disk when the power is back.
func (d *simDir) crash() *simDir {
	for _, change := range d.pending {
		if d.rand.IntN(2) == 0 {
			change(d.durable)
		}
	}
	after := newSimDir(d.rand)
	for name, f := range d.durable {
		b := slices.Clone(f.durable)
		if len(f.data) > len(b) { // some of the rest made it, and some of that is rubbish
			rest := slices.Clone(f.data[len(b):])
			rest = rest[:d.rand.IntN(len(rest)+1)]
			for i := range rest {
				if d.rand.IntN(2) == 0 {
					rest[i] = 0
				}
			}
			b = append(b, rest...)
		}
		file := &simFile{data: b, durable: slices.Clone(b)}
		after.files[name], after.durable[name] = file, file
	}
	after.ignoreSync, after.ignoreSyncDir = d.ignoreSync, d.ignoreSyncDir
	return after
}

// change makes a change of the directory, durable only with the next syncDir.
func (d *simDir) change(apply func(map[string]*simFile)) {
	apply(d.files)
	d.pending = append(d.pending, apply)
}

type simWriter struct {
	d *simDir
	f *simFile
}

func (d *simDir) create(name string) (writeFile, error) {
	f := &simFile{}
	err := d.step(func() error {
		if d.files[name] != nil {
			return fs.ErrExist
		}
		d.change(func(m map[string]*simFile) { m[name] = f })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return simWriter{d, f}, nil
}

func (w simWriter) Write(p []byte) (n int, err error) {
	err = w.d.step(func() error {
		n = len(p)
		if w.d.space >= 0 && n > w.d.space {
			n, err = w.d.space, syscall.ENOSPC
		}
		if w.d.space >= 0 {
			w.d.space -= n
		}
		w.f.data = append(w.f.data, p[:n]...)
		return err
	})
	return n, err
}

func (w simWriter) Sync() error {
	return w.d.step(func() error {
		if !w.d.ignoreSync {
			w.f.durable = slices.Clone(w.f.data)
		}
		return nil
	})
}

func (w simWriter) Close() error {
	return w.d.step(func() error { return nil })
}

type simReader struct{ *bytes.Reader }

func (simReader) Close() error { return nil }

func (d *simDir) file(name string) (*simFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost {
		return nil, errPowerLost
	}
	f := d.files[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func (d *simDir) open(name string) (readFile, error) {
	f, err := d.file(name)
	if err != nil {
		return nil, err
	}
	return simReader{bytes.NewReader(f.data)}, nil
}

func (d *simDir) size(name string) (int64, error) {
	f, err := d.file(name)
	if err != nil {
		return 0, err
	}
	return int64(len(f.data)), nil
}

func (d *simDir) rename(from, to string) error {
	return d.step(func() error {
		f := d.files[from]
		if f == nil {
			return fs.ErrNotExist
		}
		d.change(func(m map[string]*simFile) {
			delete(m, from)
			m[to] = f
		})
		return nil
	})
}

func (d *simDir) remove(name string) error {
	return d.step(func() error {
		if d.files[name] == nil {
			return fs.ErrNotExist
		}
		d.change(func(m map[string]*simFile) { delete(m, name) })
		return nil
	})
}

func (d *simDir) names() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.files)), nil
}

func (d *simDir) syncDir() error {
	return d.step(func() error {
		if !d.ignoreSyncDir {
			d.durable, d.pending = maps.Clone(d.files), nil
		}
		return nil
	})
}

func simBlob(i int) store.Blob {
	return store.RawBlob(bytes.Repeat(fmt.Appendf(nil, "blob %d ", i), 100*i))
}

// losePower runs puts and deletions with the power lost at the n-th call that changes something, and returns what is wrong after it is
// back. more is false once the run is shorter than that.
func losePower(seed uint64, n int, spoil func(*simDir)) (wrong error, more bool) {
	d := newSimDir(rand.New(rand.NewPCG(seed, uint64(n))))
	d.failAt = n
	spoil(d)
	b, err := openBlobDir(d)
	if err != nil {
		return err, false
	}
	acked := make(map[cid.Cid]bool) // true: put, false: removed; missing: unknown
	for i := range 6 {
		blob := simBlob(i)
		delete(acked, blob.CID)
		for range 2 { // again is a success, and takes nothing back
			if b.put(blob.CID, bytes.NewReader(blob.Bytes)) == nil {
				acked[blob.CID] = true
			}
		}
		if i%3 == 2 {
			gone := simBlob(i - 1)
			delete(acked, gone.CID)
			if b.remove(gone.CID) == nil {
				acked[gone.CID] = false
			}
		}
	}
	more = d.lost

	d = d.crash()
	if b, err = openBlobDir(d); err != nil {
		return err, more
	}
	for name := range d.files {
		if strings.HasPrefix(name, tempPrefix) {
			return fmt.Errorf("unfinished file %s is left", name), more
		}
	}
	for i := range 6 {
		blob := simBlob(i)
		r, err := b.open(blob.CID)
		there := err == nil
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err, more
		}
		if want, known := acked[blob.CID]; known && want != there {
			return fmt.Errorf("blob %d: there is %v, acknowledged was %v", i, there, want), more
		}
		if !there {
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, blob.Bytes) {
			return fmt.Errorf("blob %d has %d bytes (%v), not the %d it should", i, len(got), err, len(blob.Bytes)), more
		}
	}
	return nil, more
}

func TestBlobFilesSurvivePowerLoss(t *testing.T) {
	for seed := range uint64(50) {
		for n := 1; ; n++ {
			wrong, more := losePower(seed, n, func(*simDir) {})
			if wrong != nil {
				t.Fatalf("seed %d, power lost at call %d: %v", seed, n, wrong)
			}
			if !more {
				break
			}
		}
	}
}

// The test above must notice a missing fsync of either kind.
func TestPowerLossIsNoticed(t *testing.T) {
	for name, spoil := range map[string]func(*simDir){
		"file not synced":      func(d *simDir) { d.ignoreSync = true },
		"directory not synced": func(d *simDir) { d.ignoreSyncDir = true },
	} {
		noticed := false
		for seed := range uint64(50) {
			for n, more := 1, true; more && !noticed; n++ {
				var wrong error
				wrong, more = losePower(seed, n, spoil)
				noticed = wrong != nil
			}
		}
		if !noticed {
			t.Errorf("%s: nothing was lost", name)
		}
	}
}

func TestBlobOnFullDisk(t *testing.T) {
	d := newSimDir(rand.New(rand.NewPCG(1, 1)))
	b, err := openBlobDir(d)
	if err != nil {
		t.Fatal(err)
	}
	small, large := simBlob(1), simBlob(5)
	if err := b.put(small.CID, bytes.NewReader(small.Bytes)); err != nil {
		t.Fatal(err)
	}
	d.space = len(large.Bytes) / 2
	if err := b.put(large.CID, bytes.NewReader(large.Bytes)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("put on a full disk: %v", err)
	}
	if _, err := b.size(large.CID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("half a blob: %v", err)
	}
	if got, err := d.names(); err != nil || !slices.Equal(got, []string{small.CID.String()}) {
		t.Errorf("files after a failed put: %v, %v", got, err)
	}
	d.space = -1
	if err := b.put(large.CID, bytes.NewReader(large.Bytes)); err != nil {
		t.Errorf("put once there is space: %v", err)
	}
	if size, err := b.size(large.CID); err != nil || size != int64(len(large.Bytes)) {
		t.Errorf("%d bytes, %v", size, err)
	}
}
