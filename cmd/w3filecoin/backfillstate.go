package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
)

// backfillState is what earlier runs of a backfill did, in a file of JSON lines that is only ever appended to. The first line says what the state is of;
// each further one says of an item what was found in it, or that it is done. A line that says "done" is durable before anything rests on it. What a crash
// left at the end is cut off: the lines that are lost are of work that is done again, with the same effect.
type backfillState struct {
	path string
	info os.FileInfo

	mu     sync.Mutex
	f      *os.File
	broken error // of a line that may be there in part: nothing is written after it
	done   map[itemKey]struct{}
	hashed map[itemKey]hashedContent // of items that are not done
}

// backfillScope is what a state is of. The state of one scope says nothing about another.
type backfillScope struct {
	Backfill   int    `json:"backfill"` // version of the format
	Source     string `json:"source"`
	Storefront string `json:"storefront"`
	With       string `json:"with"`
}

const backfillFormat = 1

func (b backfillScope) line() []byte {
	line, _ := json.Marshal(b) // text and numbers always can be
	return append(line, '\n')
}

// hashedContent is what one pass over an item found.
type hashedContent struct {
	content cid.Cid
	piece   piece.Link
	size    int64 // bytes
}

// stateLine is one line but the first.
type stateLine struct {
	Item    string `json:"item"`
	Version string `json:"version,omitempty"`
	Content string `json:"content"`
	Piece   string `json:"piece"`
	Size    int64  `json:"size"`
	Done    bool   `json:"done,omitempty"`
	Task    string `json:"task,omitempty"`
}

// itemKey stands for an item in one version: a million of them take little memory.
type itemKey [16]byte

func keyOfItem(item, version string) itemKey {
	sum := sha256.Sum256([]byte(version + "\x00" + item))
	return itemKey(sum[:])
}

// openBackfillState opens the state in a file, and makes it if there is none. No other process may use it meanwhile.
func openBackfillState(path string, scope backfillScope) (_ *backfillState, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, usage("--state names a file that may be written", "opening the state: %v", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if ours, err := lockFile(f); err != nil {
		return nil, fmt.Errorf("locking the state: %w", err)
	} else if !ours {
		return nil, usage("wait for it, or name another file with --state", "another backfill is using %s", path)
	}
	s := &backfillState{path: path, f: f, done: map[itemKey]struct{}{}, hashed: map[itemKey]hashedContent{}}
	if s.info, err = f.Stat(); err != nil {
		return nil, err
	}
	good, err := s.read(scope)
	if err != nil {
		return nil, err
	}
	if good < s.info.Size() {
		if err := f.Truncate(good); err != nil {
			return nil, fmt.Errorf("cutting off the torn end of the state: %w", err)
		}
	}
	if good > 0 {
		return s, nil
	}
	if _, err := f.Write(scope.line()); err != nil {
		return nil, fmt.Errorf("beginning the state: %w", err)
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("beginning the state: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return s, errors.Join(dir.Sync(), dir.Close())
}

// read takes in the file and returns the length of what is good of it: all up to a torn end.
func (s *backfillState) read(scope backfillScope) (good int64, err error) {
	r := bufio.NewReaderSize(s.f, 64<<10)
	torn := 0 // number of the first line that is none
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			// What came without an end of line was being written, unless it is the beginning of something else.
			if n == 1 && !bytes.HasPrefix(scope.line(), line) {
				_, err := s.begin(line, scope)
				return 0, err
			}
			return good, nil
		}
		if err != nil {
			return good, fmt.Errorf("reading the state: %w", err)
		}
		ok := false
		if n == 1 {
			ok, err = s.begin(line, scope)
			if err != nil {
				return good, err
			}
		} else {
			ok = s.take(line)
		}
		switch {
		case ok && torn > 0:
			return good, usage("name another file with --state; offering again does no harm", "line %d of %s is damaged, and others follow it", torn, s.path)
		case ok:
			good += int64(len(line))
		case torn == 0:
			torn = n
		}
	}
}

// begin reads the first line.
func (s *backfillState) begin(line []byte, scope backfillScope) (ok bool, err error) {
	var found backfillScope
	if json.Unmarshal(line, &found) != nil || found.Backfill == 0 {
		return false, usage("--state names the file that keeps what is done", "%s is not the state of a backfill", s.path)
	}
	if found.Backfill != backfillFormat {
		return false, usage("name another file with --state", "%s was written by another version of this program", s.path)
	}
	for _, part := range []struct{ name, is, want string }{
		{"source", found.Source, scope.Source}, {"storefront", found.Storefront, scope.Storefront}, {"space", found.With, scope.With},
	} {
		if part.is != part.want {
			return false, usage("name another file with --state", "%s is of another %s: %s, not %s", s.path, part.name, part.is, part.want)
		}
	}
	return true, nil
}

// take reads one further line, and reports whether it is one.
func (s *backfillState) take(line []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var l stateLine
	if dec.Decode(&l) != nil || l.Item == "" {
		return false
	}
	if _, err := dec.Token(); err != io.EOF {
		return false // more than the line that was written
	}
	key := keyOfItem(l.Item, l.Version)
	if l.Done {
		s.done[key] = struct{}{}
		delete(s.hashed, key)
		return true
	}
	content, err := cid.Parse(l.Content)
	if err != nil {
		return false
	}
	link, err := piece.Parse(l.Piece)
	if err != nil {
		return false
	}
	if _, done := s.done[key]; !done {
		s.hashed[key] = hashedContent{content, link, l.Size}
	}
	return true
}

// lookup says whether an item is done, and else what was found in it, if anybody looked.
func (s *backfillState) lookup(c *candidate) (found hashedContent, looked, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := keyOfItem(c.name, c.version)
	_, done = s.done[key]
	found, looked = s.hashed[key]
	return found, looked, done
}

// found notes what is in an item. The line becomes durable with the next one that says "done": without it the item is read again.
func (s *backfillState) found(c *candidate, h hashedContent) error {
	return s.write(c, stateLine{Content: h.content.String(), Piece: h.piece.String(), Size: h.size}, func(key itemKey) { s.hashed[key] = h })
}

// finish notes that an item is done, durably. The task is that of its offer, undefined if it was not offered.
func (s *backfillState) finish(c *candidate, h hashedContent, task cid.Cid) error {
	line := stateLine{Content: h.content.String(), Piece: h.piece.String(), Size: h.size, Done: true}
	if task.Defined() {
		line.Task = task.String()
	}
	return s.write(c, line, func(key itemKey) {
		s.done[key] = struct{}{}
		delete(s.hashed, key)
	})
}

func (s *backfillState) write(c *candidate, line stateLine, then func(itemKey)) error {
	line.Item, line.Version = c.name, c.version
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	_, err = s.f.Write(append(b, '\n'))
	if err == nil && line.Done {
		err = s.f.Sync()
	}
	if err != nil {
		s.broken = fmt.Errorf("writing the state: %w", err)
		return s.broken
	}
	then(keyOfItem(c.name, c.version))
	return nil
}
