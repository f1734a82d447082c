package sqlite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// directory is the little of a file system that blobs need: files of one directory, and the two kinds of fsync. Tests put one in its place
// that forgets, on a crash, whatever was not synced.
type directory interface {
	create(name string) (writeFile, error) // a new file; its name may be gone after a crash until syncDir
	open(name string) (readFile, error)
	size(name string) (int64, error)
	rename(from, to string) error
	remove(name string) error
	names() ([]string, error)
	syncDir() error // makes names durable: creations, renamings, removals
}

type writeFile interface {
	io.Writer
	Sync() error // makes the bytes durable
	Close() error
}

type readFile interface {
	io.Reader
	io.ReaderAt
	io.Closer
}

// osDir is a directory of the operating system, by path.
type osDir string

func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) create(name string) (writeFile, error) {
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (d osDir) open(name string) (readFile, error) { return os.Open(d.path(name)) }

func (d osDir) size(name string) (int64, error) {
	info, err := os.Stat(d.path(name))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (d osDir) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d osDir) remove(name string) error { return os.Remove(d.path(name)) }

func (d osDir) names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d osDir) syncDir() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// tempPrefix begins the names of files that are being written. No CID begins so.
const tempPrefix = ".new-"

// blobDir keeps blobs as files named by their CIDs. A file has its name only once its bytes are durable, so one that is there is whole.
type blobDir struct {
	dir  directory
	temp atomic.Uint64 // names the next new file
}

// openBlobDir removes what a crash left unfinished.
func openBlobDir(dir directory) (*blobDir, error) {
	names, err := dir.names()
	if err != nil {
		return nil, fmt.Errorf("reading the directory of blobs: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			if err := dir.remove(name); err != nil {
				return nil, fmt.Errorf("removing an unfinished blob: %w", err)
			}
		}
	}
	return &blobDir{dir: dir}, nil
}

// put stores a blob and returns once its bytes and its name are durable.
func (b *blobDir) put(c cid.Cid, r io.Reader) error {
	name := c.String()
	if _, err := b.dir.size(name); err == nil {
		// Its bytes are durable. Its name may not be yet, if another put is about to sync the directory.
		return b.dir.syncDir()
	}
	temp := tempPrefix + strconv.FormatUint(b.temp.Add(1), 10)
	if err := b.write(temp, r); err != nil {
		return errors.Join(err, b.discard(temp))
	}
	if err := b.dir.rename(temp, name); err != nil {
		return errors.Join(err, b.discard(temp))
	}
	return b.dir.syncDir()
}

// write makes a new file with durable bytes.
func (b *blobDir) write(name string, r io.Reader) (err error) {
	f, err := b.dir.create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Sync()
}

// discard removes an unfinished file, if it is there.
func (b *blobDir) discard(name string) error {
	if err := b.dir.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

type fileBlob struct {
	readFile
	size int64
}

func (f fileBlob) Size() int64 { return f.size }

func (b *blobDir) open(c cid.Cid) (store.BlobReader, error) {
	size, err := b.size(c)
	if err != nil {
		return nil, err
	}
	f, err := b.dir.open(c.String())
	if err != nil {
		return nil, missing(err)
	}
	return fileBlob{f, size}, nil
}

func (b *blobDir) size(c cid.Cid) (int64, error) {
	size, err := b.dir.size(c.String())
	return size, missing(err)
}

// missing translates the file system's word for it.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return store.ErrNotFound
	}
	return err
}

// remove deletes a blob, durably; one that is not there is a success.
func (b *blobDir) remove(c cid.Cid) error {
	err := b.dir.remove(c.String())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.dir.syncDir()
}

// names returns the names of all blobs, in order.
func (b *blobDir) names() ([]string, error) {
	names, err := b.dir.names()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, tempPrefix) })
	slices.Sort(names)
	return names, nil
}
