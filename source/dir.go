package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/storefront"
)

// incoming is the folder of a writable Dir that holds what is being written.
const incoming = ".incoming"

// A Dir is a directory of content. Safe for concurrent use, also by several processes.
//
// The bytes of content c are the first of these that is a regular file, symbolic links followed:
//
//	<xy>/<multihash>   what Put writes: the multihash in multibase base32 ("bciq…"), xy its last two
//	                   characters but one
//	<cid>, <cid>.car   what an operator may place there: the CID in base32 ("bafkrei…", "bagbaiera…"), with either
//	                   codec, as both name the same bytes
//
// The 1,024 folders <xy> keep each of them small enough for any file system. Files below .incoming are uploads under way.
type Dir struct {
	path     string
	readOnly bool
	disk     disk
	publish  sync.Mutex // held while a verified file gets its name
}

// OpenDir opens a directory that content can be put into, and creates it if need be. It removes what processes that
// are gone left unfinished there.
func OpenDir(path string) (*Dir, error) { return openDir(path, osDisk{}) }

func openDir(path string, disk disk) (*Dir, error) {
	path = filepath.Clean(path)
	if err := makeDir(disk, filepath.Join(path, incoming)); err != nil {
		return nil, fmt.Errorf("creating content directory: %w", err)
	}
	if err := removeStale(filepath.Join(path, incoming)); err != nil {
		return nil, fmt.Errorf("clearing unfinished uploads: %w", err)
	}
	return &Dir{path: path, disk: disk}, nil
}

// OpenReadOnlyDir opens an operator's directory, which must exist and is never written to.
func OpenReadOnlyDir(path string) (*Dir, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening content directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("opening content directory: %s is not a directory", path)
	}
	return &Dir{path: path, readOnly: true}, nil
}

var _ Place = (*Dir)(nil)

// ReadOnly reports whether nothing can be put into the directory.
func (d *Dir) ReadOnly() bool { return d.readOnly }

// Stat returns the length of the content. The error wraps [ErrUnsupported] or storefront.ErrNoContent.
func (d *Dir) Stat(ctx context.Context, content cid.Cid) (length int64, err error) {
	_, info, err := d.find(ctx, content)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Open opens the content and returns its length. The bytes are as they lie there: unless Put wrote them, the caller
// verifies their hash. It fails as Stat does.
func (d *Dir) Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error) {
	name, _, err := d.find(ctx, content)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("opening content %s: %w", content, noContent(err))
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("opening content %s: %w", content, err)
	}
	return f, info.Size(), nil
}

// find returns the file that holds the content.
func (d *Dir) find(ctx context.Context, content cid.Cid) (string, fs.FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	if err := Check(content); err != nil {
		return "", nil, err
	}
	raw, car := cid.NewCidV1(Raw, content.Hash()).String(), cid.NewCidV1(CAR, content.Hash()).String()
	_, stored := d.nameOf(content)
	for _, name := range []string{
		stored,
		filepath.Join(d.path, raw), filepath.Join(d.path, car),
		filepath.Join(d.path, raw+".car"), filepath.Join(d.path, car+".car"),
	} {
		// Looked at before it is opened: opening a pipe or a device can block.
		info, err := os.Stat(name)
		switch {
		case err == nil && info.Mode().IsRegular():
			return name, info, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", nil, fmt.Errorf("looking for content %s: %w", content, err)
		}
	}
	return "", nil, fmt.Errorf("%s: %w", content, storefront.ErrNoContent)
}

// Verified implements [Voucher]. It returns the length of content that Put wrote. The error wraps [ErrUnsupported] or storefront.ErrNoContent.
func (d *Dir) Verified(ctx context.Context, content cid.Cid) (length int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := Check(content); err != nil {
		return 0, err
	}
	_, name := d.nameOf(content)
	info, err := os.Lstat(name)
	if err != nil {
		return 0, fmt.Errorf("looking for content %s: %w", content, noContent(err))
	}
	return info.Size(), nil
}

// Contents lists what Put has written, under CIDs with the raw codec: the name of a file does not say which it was stored with. What operators placed
// there is not among it. An error is the last that it yields.
func (d *Dir) Contents(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		fail := func(err error) { yield(cid.Undef, fmt.Errorf("listing content: %w", err)) }
		folders, err := os.ReadDir(d.path)
		if err != nil {
			fail(err)
			return
		}
		for _, folder := range folders {
			if !folder.IsDir() || len(folder.Name()) != 2 {
				continue
			}
			files, err := os.ReadDir(filepath.Join(d.path, folder.Name()))
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				fail(err)
				return
			}
			for _, file := range files {
				content, ok := parseMultihashName(file.Name())
				if !ok || !file.Type().IsRegular() {
					continue
				}
				if f, _ := d.nameOf(content); f != filepath.Join(d.path, folder.Name()) {
					continue
				}
				if !yield(content, nil) {
					return
				}
			}
		}
	}
}

// noContent replaces the error of a file that is gone by the one that callers ask for.
func noContent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return storefront.ErrNoContent
	}
	return err
}

// nameOf returns the folder and the path of the file that Put writes for the content.
func (d *Dir) nameOf(content cid.Cid) (folder, file string) {
	name := MultihashName(content)
	folder = filepath.Join(d.path, name[len(name)-3:len(name)-1])
	return folder, filepath.Join(folder, name)
}

// Put stores what r yields as the given content and reports whether it was new. It returns once the content is durable.
//
// The bytes are hashed while they are written to a file that no reader sees; it gets its name only when all of them are
// there, match and are on disk. So content is there as a whole or not at all, whenever the process or the machine
// stops, and however many put it at once. If the content is there already, r is not read.
//
// The error wraps [ErrMismatch], [ErrTooLarge] (more than maxBytes), [ErrUnsupported], [ErrReadOnly], the error of r or
// of the disk; nothing is left behind then.
func (d *Dir) Put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (created bool, err error) {
	if d.readOnly {
		return false, fmt.Errorf("storing content %s: %w", content, ErrReadOnly)
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := Check(content); err != nil {
		return false, err
	}
	created, err = d.put(ctx, content, r, maxBytes)
	if err != nil {
		return false, fmt.Errorf("storing content %s: %w", content, err)
	}
	return created, nil
}

func (d *Dir) put(ctx context.Context, content cid.Cid, r io.Reader, maxBytes int64) (bool, error) {
	folder, name := d.nameOf(content)
	if there, err := exists(name); err != nil {
		return false, err
	} else if there {
		// Whoever named the file may still be about to make the name durable.
		return false, d.syncName(folder)
	}

	tmp, tmpName, err := createTemp(d.disk, filepath.Join(d.path, incoming))
	if err != nil {
		return false, err
	}
	defer func() { _ = d.disk.Remove(tmpName) }() // fails once the file has got its name
	defer tmp.Close()
	if err := CopyVerified(ctx, tmp, r, content, maxBytes); err != nil {
		return false, err
	}
	if err := tmp.Sync(); err != nil {
		return false, err
	}

	created, err := d.name(tmpName, folder, name)
	if err != nil {
		return false, err
	}
	return created, d.syncName(folder)
}

// CopyVerified copies r to w and fails unless it yields the content, in at most maxBytes bytes. What has been written by
// then is worth nothing if it fails; the error wraps [ErrMismatch], [ErrTooLarge], or is that of r, w or the context.
func CopyVerified(ctx context.Context, w io.Writer, r io.Reader, content cid.Cid, maxBytes int64) error {
	h := sha256.New()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for n := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		k, rerr := r.Read(*buf)
		if n += int64(k); n > maxBytes {
			return fmt.Errorf("more than %d bytes: %w", maxBytes, ErrTooLarge)
		}
		h.Write((*buf)[:k])
		if _, err := w.Write((*buf)[:k]); err != nil {
			return err
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return fmt.Errorf("reading: %w", rerr)
		}
	}
	sum, err := multihash.Encode(h.Sum(nil), multihash.SHA2_256)
	if err != nil {
		return err
	}
	if got := cid.NewCidV1(content.Type(), sum); !got.Equals(content) {
		return fmt.Errorf("the bytes are %s: %w", got, ErrMismatch)
	}
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// name gives a finished file its name and reports whether no other Put was faster.
func (d *Dir) name(tmpName, folder, name string) (bool, error) {
	d.publish.Lock()
	defer d.publish.Unlock()
	if err := d.disk.Mkdir(folder); err != nil {
		return false, err
	}
	if there, err := exists(name); there || err != nil {
		return false, err
	}
	// Another process may come between: then the same bytes are replaced by the same bytes.
	if err := d.disk.Rename(tmpName, name); err != nil {
		return false, err
	}
	return true, nil
}

// syncName makes a file's name in the folder durable, and the folder's own.
func (d *Dir) syncName(folder string) error {
	if err := d.disk.SyncDir(folder); err != nil {
		return err
	}
	return d.disk.SyncDir(d.path)
}

func exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
