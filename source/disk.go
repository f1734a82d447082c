package source

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// disk is what durability depends on, so that tests can take away what was not synced and fail each step.
type disk interface {
	// Create creates a file that must not exist.
	Create(name string) (diskFile, error)
	// Mkdir creates a folder unless it exists.
	Mkdir(name string) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the entries of a folder durable.
	SyncDir(name string) error
}

type diskFile interface {
	io.WriteCloser
	Sync() error
	Fd() uintptr
}

type osDisk struct{}

// Create makes the file read-only for everybody: it is written once, through this handle.
func (osDisk) Create(name string) (diskFile, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osDisk) Mkdir(name string) error {
	if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) Remove(name string) error     { return os.Remove(name) }

func (osDisk) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// makeDir creates a folder and those above it, durably.
func makeDir(disk disk, name string) error {
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(name)
	if err := makeDir(disk, parent); err != nil {
		return err
	}
	if err := disk.Mkdir(name); err != nil {
		return err
	}
	return disk.SyncDir(parent)
}

// createTemp creates a file in the folder and marks it as in use, by a lock that ends with the process at the latest.
func createTemp(disk disk, folder string) (diskFile, string, error) {
	for {
		name := filepath.Join(folder, rand.Text())
		f, err := disk.Create(name)
		if err != nil {
			return nil, "", err
		}
		// Between its creation and its lock a file looks stale: another process that opens the directory right then
		// takes it away, which shows here.
		locked, err := lock(f)
		if err == nil && locked {
			if locked, err = exists(name); err == nil && locked {
				return f, name, nil
			}
		}
		f.Close()
		_ = disk.Remove(name) // another process was faster, or the next one that opens the directory does it
		if err != nil {
			return nil, "", fmt.Errorf("locking %s: %w", name, err)
		}
	}
}

// removeStale removes the files in the folder that no process holds the lock of.
func removeStale(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeUnlocked(filepath.Join(folder, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func removeUnlocked(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // just got its name
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if locked, err := lock(f); err != nil || !locked {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
