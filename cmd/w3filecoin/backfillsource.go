package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
)

// A candidate is content that is stored somewhere, and may have to be offered.
type candidate struct {
	// name is what reports call it: a path, a key, a row of a list. version changes with the content as far as the place says so.
	name, version string
	// content is what somebody says it is; undefined if nobody does.
	content cid.Cid
	size    int64 // bytes; -1 if it is not known yet
	// held: it was found in the custody of the storefront, and is not to be stored there.
	held bool
	// url is an address at which others can read it; empty if there is none.
	url  string
	open func(ctx context.Context) (io.ReadCloser, error)
	// wrong says why it is none.
	wrong *itemError
}

// An itemError is what is wrong with one item, by name.
type itemError struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

func (e *itemError) Error() string { return e.Name + ": " + e.Message }

// Names of what can be wrong with an item before the storefront sees it.
const (
	nameUnreadable = "ContentUnreadable" // it cannot be read
	nameNotThere   = "ContentNotFound"   // it is not there
	nameMismatch   = "ContentMismatch"   // its bytes are other content than somebody says
	nameBadRow     = "InvalidRow"        // a row of a list that cannot be understood
	nameBadContent = "InvalidContent"    // a CID that names no content
)

func wrong(item, kind, format string, args ...any) candidate {
	message := fmt.Sprintf(format, args...)
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	return candidate{name: item, size: -1, wrong: &itemError{kind, message}}
}

// maxMessage bounds what is said of one item, in bytes: it may quote what somebody else wrote.
const maxMessage = 500

// unreadableFile is a file that cannot be read. Its name, which may be long, is not said again.
func unreadableFile(key string, err error) candidate {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		err = p.Err
	}
	return wrong(itemName(key), nameUnreadable, "%v", err)
}

// A finder finds out about one candidate. It may ask others, so several are called at a time.
type finder func(ctx context.Context) candidate

// A walk yields candidates one by one. An error is one of the source as a whole, and the last.
type walk iter.Seq2[finder, error]

// A base is where content is read by key.
type base interface {
	find(ctx context.Context, key string) candidate
}

// itemName is a key or a path as it stands in states and reports, which are UTF-8.
func itemName(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return strconv.Quote(name)
}

// contentNamed returns the content that a key names by its last part: a content CID, with ".car" or nothing behind it.
func contentNamed(key string) cid.Cid {
	name := strings.TrimSuffix(path.Base(key), ".car")
	c, err := source.ParseContent(name)
	if err != nil {
		return cid.Undef
	}
	return c
}

// directory is a directory whose files are content.
type directory struct{ root *os.Root }

// find returns the file at a path below the directory, and never one outside of it.
func (d directory) find(_ context.Context, key string) candidate {
	info, err := d.root.Stat(filepath.FromSlash(key))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrong(itemName(key), nameNotThere, "there is no such file")
	case err != nil:
		return unreadableFile(key, err)
	case !info.Mode().IsRegular():
		return wrong(itemName(key), nameUnreadable, "it is not a regular file")
	}
	return d.file(key, info)
}

func (d directory) file(key string, info fs.FileInfo) candidate {
	return candidate{
		name: itemName(key), version: fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano()), content: contentNamed(key), size: info.Size(),
		open: func(context.Context) (io.ReadCloser, error) { return d.root.Open(filepath.FromSlash(key)) },
	}
}

// walk yields every regular file below the directory but one: the state. Links are not followed.
func (d directory) walk(ctx context.Context, except os.FileInfo) walk {
	return func(yield func(finder, error) bool) {
		err := fs.WalkDir(d.root.FS(), ".", func(key string, entry fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var info fs.FileInfo
			if err == nil && entry.Type().IsRegular() {
				info, err = entry.Info()
				if errors.Is(err, fs.ErrNotExist) {
					return nil // removed since its directory was read
				}
			}
			switch {
			case err != nil && key == ".":
				return err
			case err != nil:
				c := unreadableFile(key, err)
				if !yield(func(context.Context) candidate { return c }, nil) {
					return fs.SkipAll
				}
				return nil // the rest of a directory that cannot be read is skipped by itself
			case info == nil || os.SameFile(info, except):
				return nil
			}
			if !yield(func(context.Context) candidate { return d.file(key, info) }, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(nil, fmt.Errorf("reading the directory: %w", err))
		}
	}
}

// A list is rows of content CIDs with or without a place, or of keys.
type list struct {
	file string
	base base // where keys are looked up; nil: there are no keys
	// held reads content from the custody of the storefront, fetch from an address.
	held  func(ctx context.Context, content cid.Cid) (io.ReadCloser, error)
	fetch func(ctx context.Context, url string) (io.ReadCloser, error)
}

// maxRow bounds a row of a list, in bytes. No key or address is longer.
const maxRow = 16 << 10

// walk yields the rows. Each is read by itself: one that is wrong spoils no other. An empty row is passed over, as is one of names at the top.
func (l list) walk(ctx context.Context) walk {
	return func(yield func(finder, error) bool) {
		f, err := os.Open(l.file)
		if err != nil {
			yield(nil, fmt.Errorf("opening the list: %w", err))
			return
		}
		defer f.Close()
		r := bufio.NewReaderSize(f, maxRow)
		var names []string
		for n := 1; ; n++ {
			row, err := readRow(r)
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				yield(nil, fmt.Errorf("reading the list: %w", err))
				return
			}
			var fields []string
			if err == nil {
				if n == 1 {
					row = bytes.TrimPrefix(row, []byte("\ufeff"))
				}
				if len(bytes.TrimSpace(row)) == 0 {
					continue
				}
				fields, err = splitRow(row)
			}
			if n == 1 && err == nil && isHeader(fields) {
				names = fields
				continue
			}
			if !yield(func(ctx context.Context) candidate { return l.row(ctx, n, fields, names, err) }, nil) {
				return
			}
		}
	}
}

// readRow reads up to the end of a line. The error is bufio.ErrBufferFull for one that is too long, which is passed over as a whole.
func readRow(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == io.EOF && len(line) > 0 {
		err = nil
	}
	if !errors.Is(err, bufio.ErrBufferFull) {
		return bytes.TrimRight(bytes.Clone(line), "\r\n"), err
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	return nil, bufio.ErrBufferFull
}

func splitRow(row []byte) ([]string, error) {
	r := csv.NewReader(bytes.NewReader(row))
	r.TrimLeadingSpace = true
	fields, err := r.Read()
	if err != nil {
		var parse *csv.ParseError
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, err
	}
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	return fields, nil
}

// isHeader reports whether the first row names the columns.
func isHeader(fields []string) bool {
	switch strings.ToLower(strings.Join(fields, ",")) {
	case "content", "content,url", "content,key", "key":
		return true
	}
	return false
}

// row understands one row: a content CID; a content CID and where it is, an address or a key; or a key. Without names at the top, a single field is
// a key if there is a base and it is no CID.
func (l list) row(ctx context.Context, n int, fields, names []string, err error) candidate {
	at := fmt.Sprintf("row %d", n)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return wrong(at, nameBadRow, "it is longer than %d bytes", maxRow)
	case err != nil:
		return wrong(at, nameBadRow, "%v", err)
	case fields[0] == "":
		return wrong(at, nameBadRow, "nothing is in its first field")
	case len(fields) > 2 || names != nil && len(fields) > len(names):
		return wrong(at, nameBadRow, "it has %d fields: a content CID and an address or a key are meant, or one of them", len(fields))
	}
	if len(fields) == 2 && fields[1] == "" {
		fields = fields[:1]
	}
	content, bad := source.ParseContent(fields[0])
	keys := len(names) > 0 && strings.EqualFold(names[0], "key")
	if len(fields) == 1 && (keys || bad != nil && names == nil && l.base != nil) {
		return l.keyed(ctx, at, fields[0], cid.Undef)
	}
	if bad != nil {
		return wrong(at, nameBadContent, "%q: %v", short(fields[0]), bad)
	}
	if len(fields) == 1 {
		return candidate{name: content.String(), content: content, size: -1, held: true,
			open: func(ctx context.Context) (io.ReadCloser, error) { return l.held(ctx, content) }}
	}
	where := fields[1]
	if u, err := url.Parse(where); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
		return candidate{name: content.String() + "," + itemName(where), content: content, size: -1, url: where,
			open: func(ctx context.Context) (io.ReadCloser, error) { return l.fetch(ctx, where) }}
	}
	return l.keyed(ctx, at, where, content)
}

func (l list) keyed(ctx context.Context, at, key string, content cid.Cid) candidate {
	if l.base == nil {
		return wrong(at, nameBadRow, "%q is neither a content CID nor an http address; keys need --base", short(key))
	}
	c := l.base.find(ctx, key)
	if content.Defined() {
		c.name, c.content = content.String()+","+c.name, content
	}
	return c
}

// short is text of somebody else's, cut for a message.
func short(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// heldBy reads content from the custody of a storefront.
func (o *offerer) heldBy(ctx context.Context, content cid.Cid) (io.ReadCloser, error) {
	resp, err := o.contentRequest(ctx, http.MethodGet, content)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, &itemError{nameNotThere, "the storefront does not hold it: name where it is, behind a comma"}
		}
		return nil, fmt.Errorf("the storefront answered %s", resp.Status)
	}
	return resp.Body, nil
}

// holds asks a storefront whether it can read content by itself.
func (o *offerer) holds(ctx context.Context, content cid.Cid) (bool, error) {
	resp, err := o.contentRequest(ctx, http.MethodHead, content)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	// Where it can be read by others the storefront sends them there.
	case http.StatusOK, http.StatusFound:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("%s answered %s when it was asked for %s", o.url, resp.Status, content)
}

func (o *offerer) contentRequest(ctx context.Context, method string, content cid.Cid) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.url+"/content/"+content.String(), nil)
	if err != nil {
		return nil, err
	}
	c := *o.http
	if method == http.MethodHead {
		// An address may be signed for GET alone.
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return c.Do(req)
}
