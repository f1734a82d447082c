package source

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// crashDisk is a disk of which a crash takes what was not synced, and of which the step numbered fault fails.
type crashDisk struct {
	osDisk
	step, fault int
	persist     bool  // the failing step takes place all the same
	err         error // of the failing step
	unsynced    map[string]bool
	pending     []entry // changes of folders that were not synced, oldest first
}

type entry struct {
	folder string
	undo   func() error
}

var errFault = errors.New("disk fault")

func newCrashDisk(fault int, persist bool, err error) *crashDisk {
	return &crashDisk{fault: fault, persist: persist, err: err, unsynced: map[string]bool{}}
}

// do runs one step, or fails it before or after it took place.
func (d *crashDisk) do(f func() error) error {
	d.step++
	if d.step == d.fault {
		if d.persist {
			if err := f(); err != nil {
				return err
			}
		}
		return d.err
	}
	return f()
}

func (d *crashDisk) Create(name string) (diskFile, error) {
	var f diskFile
	err := d.do(func() (err error) {
		if f, err = d.osDisk.Create(name); err == nil {
			d.unsynced[name] = true
			d.pending = append(d.pending, entry{filepath.Dir(name), func() error { return os.Remove(name) }})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &crashFile{diskFile: f, disk: d, name: name}, nil
}

func (d *crashDisk) Mkdir(name string) error {
	return d.do(func() error {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		d.pending = append(d.pending, entry{filepath.Dir(name), func() error { return os.RemoveAll(name) }})
		return d.osDisk.Mkdir(name)
	})
}

func (d *crashDisk) Rename(from, to string) error {
	return d.do(func() error {
		d.pending = append(d.pending, entry{filepath.Dir(to), func() error { return os.Rename(to, from) }})
		if d.unsynced[from] {
			delete(d.unsynced, from)
			d.unsynced[to] = true
		}
		return d.osDisk.Rename(from, to)
	})
}

func (d *crashDisk) Remove(name string) error {
	return d.do(func() error { return d.osDisk.Remove(name) })
}

func (d *crashDisk) SyncDir(name string) error {
	return d.do(func() error {
		d.pending = slices.DeleteFunc(d.pending, func(e entry) bool { return e.folder == name })
		return d.osDisk.SyncDir(name)
	})
}

type crashFile struct {
	diskFile
	disk *crashDisk
	name string
}

func (f *crashFile) Write(p []byte) (n int, err error) {
	err = f.disk.do(func() error {
		n, err = f.diskFile.Write(p)
		return err
	})
	return n, err
}

func (f *crashFile) Sync() error {
	return f.disk.do(func() error {
		delete(f.disk.unsynced, f.name)
		return f.diskFile.Sync()
	})
}

// crash loses the bytes of files that were not synced and, if entries is set, what happened in folders since they were.
// Real file systems lose either or both.
func (d *crashDisk) crash(t *testing.T, entries bool) {
	t.Helper()
	for name := range d.unsynced {
		if err := os.Chmod(name, 0o644); err != nil {
			continue // removed since
		}
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !entries {
		return
	}
	for _, e := range slices.Backward(d.pending) {
		if err := e.undo(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestPutCrash fails each step of a Put, before and after it took place, repeats the Put or does not, and cuts the power.
// What was acknowledged is there, what is there is whole, and the directory goes on working.
func TestPutCrash(t *testing.T) {
	b := pattern(2000, 5)
	c := contentOf(t, Raw, b)
	steps := 0
	for fault := 0; fault == 0 || fault <= steps; fault++ {
		for _, persist := range []bool{false, true} {
			for _, again := range []bool{false, true} {
				for _, entries := range []bool{false, true} {
					t.Run(fmt.Sprintf("fault=%d,persist=%t,again=%t,entries=%t", fault, persist, again, entries), func(t *testing.T) {
						root := t.TempDir()
						path := filepath.Join(root, "uploads")
						disk := newCrashDisk(fault, persist, errFault)
						acknowledged := false
						d, err := openDir(path, disk)
						if err == nil {
							_, err = d.Put(t.Context(), c, bytes.NewReader(b), noLimit)
							acknowledged = err == nil
						}
						steps = max(steps, disk.step)
						if err != nil && !errors.Is(err, errFault) {
							t.Fatalf("unexpected error: %v", err)
						}
						if again && d != nil {
							if _, err = d.Put(t.Context(), c, bytes.NewReader(b), noLimit); err != nil {
								t.Fatalf("Put after a fault: %v", err)
							}
							acknowledged = true
						}
						disk.crash(t, entries)

						if d, err = OpenDir(path); err != nil {
							t.Fatal(err)
						}
						_, err = d.Stat(t.Context(), c)
						switch {
						case err == nil:
							wantContent(t, d, c, b)
						case acknowledged:
							t.Errorf("acknowledged content is lost: %v", err)
						}
						put(t, d, b)
						wantContent(t, d, c, b)
						if got := files(t, path); len(got) != 1 {
							t.Errorf("files: %q", got)
						}
					})
				}
			}
		}
	}
	if steps < 10 {
		t.Errorf("only %d steps were failed", steps)
	}
}

func TestPutWithoutSpace(t *testing.T) {
	b := make([]byte, 300<<10) // two writes
	c := contentOf(t, Raw, b)
	for fault := 1; ; fault++ {
		d := newDir(t)
		disk := newCrashDisk(fault, false, syscall.ENOSPC)
		d.disk = disk
		_, err := d.Put(t.Context(), c, bytes.NewReader(b), noLimit)
		if disk.step < fault {
			break // all steps went well
		}
		if err == nil {
			continue // the removal of a temporary name that is gone
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("step %d: %v, want ENOSPC", fault, err)
		}
		if got := files(t, filepath.Join(d.path, incoming)); len(got) != 0 {
			t.Errorf("step %d: left behind %q", fault, got)
		}
		put(t, d, b)
		wantContent(t, d, c, b)
	}
}
