package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// Limits of a list of offers.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

const (
	documentsName = "spade"

	// timeOfKey is what JavaScript's toISOString writes: UTC, three digits of milliseconds. Keys then sort by time.
	timeOfKey = "2006-01-02T15:04:05.000Z"
	suffix    = ".json"
	maxKey    = 255 // bytes, as file systems have it

	// tempPattern names files that are being written. No key looks like that.
	tempPattern = ".offer-*.tmp"

	// settled is how long a directory must have rested for its modification time to tell whether it changed since it was read:
	// two changes within the clock tick of a file system leave the same time.
	settled = 2 * time.Second
)

// document is the offer of one aggregate as Spade reads it. The order of the fields is that of the documents in circulation.
type document struct {
	Aggregate  piece.Link   `json:"aggregate"`  // piece CID v2
	Pieces     []piece.Link `json:"pieces"`     // piece CIDs v2, in the order of the aggregate
	Collection string       `json:"collection"` // DID of the aggregator
	OrderID    int64        `json:"orderID"`    // milliseconds since 1970
}

// DocumentsConfig says where documents lie. Dir is required.
type DocumentsConfig struct {
	// Dir is the directory, which is made if its parent exists. One process writes to it; others may read it.
	Dir string
	// Log receives faults of the file system met while serving; nil means slog.Default.
	Log *slog.Logger
	// Now is the clock, nil for time.Now. It only serves to know when the directory has to be listed again.
	Now func() time.Time
}

// Documents publishes offers as documents in a directory, one per aggregate, for good:
//
//	<time of the offer>_<aggregate>.json    2026-08-01T12:00:00.000Z_bafkzcibc….json
//
// A document appears whole or not at all. It is safe for concurrent use.
type Documents struct {
	cfg DocumentsConfig

	publishing sync.Mutex // one Publish at a time

	mu    sync.Mutex
	index index
}

// index is what the directory holds.
type index struct {
	keys        []string          // in order
	byAggregate map[string]string // key by aggregate
	modified    time.Time         // of the directory when it was read
	read        time.Time         // when that was
}

var _ dealer.Broker = (*Documents)(nil)

// OpenDocuments opens a directory of documents and removes what an interrupted Publish left in it.
func OpenDocuments(cfg DocumentsConfig) (*Documents, error) {
	if cfg.Dir == "" {
		return nil, errors.New("opening offer documents: no directory is named")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.Mkdir(cfg.Dir, 0o755); err == nil {
		if err := syncDir(filepath.Dir(cfg.Dir)); err != nil {
			return nil, fmt.Errorf("opening offer documents: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("opening offer documents: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(escapeGlob(cfg.Dir), tempPattern))
	if err != nil {
		return nil, fmt.Errorf("opening offer documents: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("opening offer documents: %w", err)
		}
	}
	d := &Documents{cfg: cfg}
	if _, err := d.refresh(); err != nil {
		return nil, fmt.Errorf("opening offer documents: %w", err)
	}
	return d, nil
}

// escapeGlob takes the meaning from the characters that patterns give one.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Name returns "spade".
func (d *Documents) Name() string { return documentsName }

// Publish writes the document of an offer and returns its key once it is durable. An aggregate has one document: publishing it
// again, whatever else differs, returns the key of the first.
//
// It recomputes the aggregate from its pieces and refuses one that does not match, because Spade's poller stops at the first
// document that does not, and every other offer behind it then waits for days.
func (d *Documents) Publish(ctx context.Context, o dealer.Offer) (string, error) {
	key, content, err := encode(o)
	if err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	d.publishing.Lock()
	defer d.publishing.Unlock()
	known, err := d.refresh()
	if err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	if first, ok := known.byAggregate[o.Aggregate.String()]; ok {
		key = first
	} else if err := d.write(key, content); err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	// Also for a document that is there: the call that wrote it may have ended before this.
	if err := syncDir(d.cfg.Dir); err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	return key, nil
}

// encode checks an offer and returns its key and document.
func encode(o dealer.Offer) (key string, content []byte, err error) {
	at := o.OfferedAt.UTC()
	switch {
	case !o.Aggregate.Defined():
		return "", nil, errors.New("no aggregate is named")
	case o.Collection == "":
		return "", nil, errors.New("no collection is named")
	case at.Unix() <= 0 || at.Year() > 9999:
		return "", nil, fmt.Errorf("%s is no time of an offer", at)
	}
	built, err := segment.Build(o.Aggregate.PaddedSize(), o.Pieces)
	if err != nil {
		return "", nil, err
	}
	if built.Link() != o.Aggregate {
		return "", nil, fmt.Errorf("its pieces make %s", built.Link())
	}
	content, err = json.Marshal(document{
		Aggregate: o.Aggregate, Pieces: o.Pieces, Collection: o.Collection, OrderID: at.UnixMilli(),
	})
	if err != nil {
		return "", nil, fmt.Errorf("encoding document: %w", err)
	}
	return at.Format(timeOfKey) + "_" + o.Aggregate.String() + suffix, content, nil
}

// write gives a file its content and then its name.
func (d *Documents) write(key string, content []byte) (err error) {
	f, err := os.CreateTemp(d.cfg.Dir, tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
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
	return os.Rename(f.Name(), filepath.Join(d.cfg.Dir, key))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// parseKey returns the aggregate that a key names. A key has one spelling.
func parseKey(key string) (aggregate string, ok bool) {
	at, rest, found := strings.Cut(key, "_")
	name, isJSON := strings.CutSuffix(rest, suffix)
	if !found || !isJSON || len(key) > maxKey {
		return "", false
	}
	t, err := time.Parse(timeOfKey, at)
	if err != nil || t.Format(timeOfKey) != at {
		return "", false
	}
	if _, err := piece.Parse(name); err != nil {
		return "", false
	}
	return name, true
}

// refresh returns what the directory holds. It reads the names only, and only if the directory has changed. The slices and maps of
// an index are never changed once it is made.
func (d *Documents) refresh() (index, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := os.Stat(d.cfg.Dir)
	if err != nil {
		return index{}, err
	}
	if d.index.modified.Equal(info.ModTime()) && d.index.read.Sub(info.ModTime()) > settled {
		return d.index, nil
	}
	next := index{byAggregate: map[string]string{}, modified: info.ModTime(), read: d.cfg.Now()}
	entries, err := os.ReadDir(d.cfg.Dir) // in order of name
	if err != nil {
		return index{}, err
	}
	for _, e := range entries {
		aggregate, ok := parseKey(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		next.keys = append(next.keys, e.Name())
		if _, ok := next.byAggregate[aggregate]; !ok { // the first one counts
			next.byAggregate[aggregate] = e.Name()
		}
	}
	d.index = next
	return next, nil
}

// Listed is one offer in a list.
type Listed struct {
	Key string `json:"key"`
	URL string `json:"url"` // relative to the list
}

// List is a page of offers in order of key. Next is the cursor of the next page, empty if there is none.
type List struct {
	Offers []Listed `json:"offers"`
	Next   string   `json:"next"`
}

// Handler serves
//
//	GET /offers?after=<cursor>&limit=<n>    a [List]: offers with keys above the cursor, at most n
//	GET /offers/<key>                       the document of an offer
//
// A cursor is any beginning of a key: a reader that wants the offers of the last days passes a date, and so sees those as well that
// were published late. The limit is 100 if none is given and at most 1,000.
func (d *Documents) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /offers", d.serveList)
	mux.HandleFunc("GET /offers/{key}", d.serveDocument)
	return mux
}

func (d *Documents) serveList(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after := query.Get("after")
	if !isCursor(after) {
		http.Error(w, "after must be a key or the beginning of one", http.StatusBadRequest)
		return
	}
	limit := DefaultPage
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			http.Error(w, "limit must be a number from 1 to 1000", http.StatusBadRequest)
			return
		}
		limit = min(n, MaxPage)
	}
	known, err := d.refresh()
	if err != nil {
		d.fault(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page(known.keys, after, limit)) // the client may be gone
}

func page(keys []string, after string, limit int) List {
	start, found := slices.BinarySearch(keys, after)
	if found {
		start++
	}
	keys = keys[start:]
	list := List{Offers: make([]Listed, 0, min(limit, len(keys)))}
	if len(keys) > limit {
		keys = keys[:limit]
		list.Next = keys[limit-1]
	}
	for _, key := range keys {
		list.Offers = append(list.Offers, Listed{Key: key, URL: "offers/" + url.PathEscape(key)})
	}
	return list
}

// isCursor reports whether a text could be the beginning of a key.
func isCursor(s string) bool {
	if len(s) > maxKey {
		return false
	}
	for _, b := range []byte(s) {
		switch {
		case b >= '0' && b <= '9', b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', strings.IndexByte("-:._", b) >= 0:
		default:
			return false
		}
	}
	return true
}

func (d *Documents) serveDocument(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	if _, ok := parseKey(key); !ok {
		http.Error(w, "no such offer", http.StatusNotFound)
		return
	}
	f, err := os.Open(filepath.Join(d.cfg.Dir, key))
	if errors.Is(err, fs.ErrNotExist) {
		http.Error(w, "no such offer", http.StatusNotFound)
		return
	}
	if err != nil {
		d.fault(w, r, err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		d.fault(w, r, err)
		return
	}
	if !info.Mode().IsRegular() {
		http.Error(w, "no such offer", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", `"`+key+`"`) // a document never changes
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// fault answers a request that a fault of our own prevents from being answered.
func (d *Documents) fault(w http.ResponseWriter, r *http.Request, err error) {
	d.cfg.Log.ErrorContext(r.Context(), "offers could not be served", "path", r.URL.Path, "error", err)
	http.Error(w, "offers cannot be read now", http.StatusInternalServerError)
}
