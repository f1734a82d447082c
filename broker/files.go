package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/store"
)

// tempPattern names files that are being written. No key looks like that.
const tempPattern = ".offer-*.tmp"

// openDir makes a directory of documents unless it is there, and removes what was never finished.
func openDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err == nil {
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := os.ReadDir(dir); err != nil { // it may be no directory
		return err
	}
	left, err := filepath.Glob(filepath.Join(escapeGlob(dir), tempPattern))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// escapeGlob takes the meaning from the characters that patterns give one.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// writeFile makes sure that the document of an aggregate is a file too. The file appears whole or not at all; several may write it at once.
func (d *Documents) writeFile(ctx context.Context, aggregate string) error {
	rec, err := d.rows.Get(ctx, documentKey(aggregate))
	if err != nil {
		return err
	}
	name := filepath.Join(d.cfg.Dir, rec.Value.Key)
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		if err := d.copyFile(ctx, rec.Value, name); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// Also for a file that is there: the call that wrote it may have ended before this.
	return syncDir(d.cfg.Dir)
}

// copyFile gives a file its content and then its name.
func (d *Documents) copyFile(ctx context.Context, doc kept, name string) (err error) {
	content, err := d.cfg.Store.Open(ctx, doc.Blob)
	if err != nil {
		return err
	}
	defer content.Close()
	f, err := os.CreateTemp(d.cfg.Dir, tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Adopt takes into the store the documents that are files of a directory, under the keys that they have: earlier versions kept them so, and nowhere else. Of
// several of one aggregate the first is its document, and what the store has already stays. It returns how many were new. A directory that is not there has none; a
// file with the name of a document that is none fails.
func (d *Documents) Adopt(ctx context.Context, dir string) (count int, err error) {
	entries, err := os.ReadDir(dir) // in order of name
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("adopting offer documents: %w", err)
	}
	var known map[string]bool
	for _, e := range entries {
		_, aggregate, ok := parseKey(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		if known == nil { // listed once, so that a start later costs no request for each
			known = map[string]bool{}
			keys, err := d.keys(ctx, "", 0)
			if err != nil {
				return 0, fmt.Errorf("adopting offer documents: %w", err)
			}
			for _, key := range keys {
				known[key] = true
			}
		}
		if known[e.Name()] {
			continue
		}
		created, err := d.adopt(ctx, filepath.Join(dir, e.Name()), e.Name(), aggregate)
		if err != nil {
			return count, fmt.Errorf("adopting offer document %s: %w", filepath.Join(dir, e.Name()), err)
		}
		if created {
			count++
		}
	}
	return count, nil
}

func (d *Documents) adopt(ctx context.Context, file, key, aggregate string) (created bool, err error) {
	if _, err := d.rows.Get(ctx, documentKey(aggregate)); !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	var doc document
	if err := json.Unmarshal(content, &doc); err != nil {
		return false, fmt.Errorf("it is none, move it away: %w", err)
	}
	means, _, err := encode(dealer.Offer{Aggregate: doc.Aggregate, Pieces: doc.Pieces, Collection: doc.Collection, OfferedAt: time.UnixMilli(doc.OrderID)})
	if err == nil && means != key {
		err = fmt.Errorf("it is that of %s", means)
	}
	if err != nil {
		return false, fmt.Errorf("it is not what its name says, move it away: %w", err)
	}
	first, err := d.keep(ctx, aggregate, key, content)
	return first == key, err
}
