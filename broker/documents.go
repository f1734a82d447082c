package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
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
)

// document is the offer of one aggregate as Spade reads it. The order of the fields is that of the documents in circulation.
type document struct {
	Aggregate  piece.Link   `json:"aggregate"`  // piece CID v2
	Pieces     []piece.Link `json:"pieces"`     // piece CIDs v2, in the order of the aggregate
	Collection string       `json:"collection"` // DID of the aggregator
	OrderID    int64        `json:"orderID"`    // milliseconds since 1970
}

// kept is where a document is, under `document/{aggregate}`, listed in `documents` by its key.
type kept struct {
	Key  string  `cbor:"k"`
	Blob cid.Cid `cbor:"b"` // the document
}

const documentsIndex = "documents"

func documentKey(aggregate string) store.Key { return store.Key{Partition: "document/" + aggregate} }

// DocumentsConfig says where documents are kept. Store is required.
type DocumentsConfig struct {
	// Store is the dealer's.
	Store store.Driver
	// Dir is a directory, made if its parent exists, in which each document is a file as well, named by its key: for brokers that read files.
	// Empty: there are none.
	Dir string
	// Log receives faults met while serving; nil means slog.Default.
	Log *slog.Logger
}

// Documents publishes offers as documents, one per aggregate, for good, whichever replica of the dealer is asked, and by several at once:
//
//	<time of the offer>_<aggregate>.json    2026-08-01T12:00:00.000Z_bafkzcibc….json
//
// It is safe for concurrent use.
type Documents struct {
	cfg  DocumentsConfig
	rows store.Table[kept]
}

var _ dealer.Broker = (*Documents)(nil)

// OpenDocuments opens the documents of a dealer, and removes what an interrupted Publish left in their directory.
func OpenDocuments(cfg DocumentsConfig) (*Documents, error) {
	if cfg.Store == nil {
		return nil, errors.New("opening offer documents: no store")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Dir != "" {
		if err := openDir(cfg.Dir); err != nil {
			return nil, fmt.Errorf("opening offer documents: %w", err)
		}
	}
	return &Documents{cfg: cfg, rows: store.NewTable[kept](cfg.Store)}, nil
}

// Name returns "spade".
func (d *Documents) Name() string { return documentsName }

// Publish keeps the document of an offer and returns its key once it is durable. An aggregate has one document: publishing it
// again, whatever else differs, returns the key of the first.
//
// It recomputes the aggregate from its pieces and refuses one that does not match, because Spade's poller stops at the first
// document that does not, and every other offer behind it then waits for days.
func (d *Documents) Publish(ctx context.Context, o dealer.Offer) (key string, err error) {
	key, content, err := encode(o)
	if err == nil {
		key, err = d.keep(ctx, o.Aggregate.String(), key, content)
	}
	if err == nil && d.cfg.Dir != "" {
		err = d.writeFile(ctx, o.Aggregate.String())
	}
	if err != nil {
		return "", fmt.Errorf("publishing offer of %s: %w", o.Aggregate, err)
	}
	return key, nil
}

// keep makes a document that of its aggregate unless there is one, and returns the key of the one that it is.
func (d *Documents) keep(ctx context.Context, aggregate, key string, content []byte) (string, error) {
	rec, err := d.rows.Get(ctx, documentKey(aggregate))
	if !errors.Is(err, store.ErrNotFound) {
		return rec.Value.Key, err
	}
	blob := store.RawBlob(content)
	var fx store.Effects
	if len(content) > store.MaxInlineBlob {
		if err := store.PutBlob(ctx, d.cfg.Store, blob); err != nil {
			return "", err
		}
	} else {
		fx.Keep(blob)
	}
	rec.Value, rec.Listing = kept{Key: key, Blob: blob.CID}, store.Listing{Index: documentsIndex, Sort: key}
	_, err = d.rows.Create(ctx, &rec, fx) // somebody else's, if that was faster
	return rec.Value.Key, err
}

// find returns the document with a key, or store.ErrNotFound.
func (d *Documents) find(ctx context.Context, key string) (kept, error) {
	_, aggregate, ok := parseKey(key)
	if !ok {
		return kept{}, store.ErrNotFound
	}
	rec, err := d.rows.Get(ctx, documentKey(aggregate))
	if err == nil && rec.Value.Key != key {
		return kept{}, store.ErrNotFound
	}
	return rec.Value, err
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

// parseKey returns when an offer was made, and the aggregate that its key names. A key has one spelling.
func parseKey(key string) (at time.Time, aggregate string, ok bool) {
	stamp, rest, found := strings.Cut(key, "_")
	name, isJSON := strings.CutSuffix(rest, suffix)
	if !found || !isJSON || len(key) > maxKey {
		return at, "", false
	}
	at, err := time.Parse(timeOfKey, stamp)
	if err != nil || at.Format(timeOfKey) != stamp {
		return at, "", false
	}
	if _, err := piece.Parse(name); err != nil {
		return at, "", false
	}
	return at, name, true
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
// were published late, or that an engine's index did not list yet: a document is there, under its key, a moment before it is listed. The limit is 100 if none is given and at most 1,000.
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
	keys, err := d.keys(r.Context(), after, limit+1)
	if err != nil {
		d.fault(w, r, err)
		return
	}
	list := List{Offers: make([]Listed, 0, len(keys))}
	if len(keys) > limit {
		keys = keys[:limit]
		list.Next = keys[limit-1]
	}
	for _, key := range keys {
		list.Offers = append(list.Offers, Listed{Key: key, URL: "offers/" + url.PathEscape(key)})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the client may be gone
}

// keys lists keys above a beginning of one, in order, at most limit of them (0: all).
func (d *Documents) keys(ctx context.Context, after string, limit int) (keys []string, err error) {
	for cursor := ""; ; {
		recs, next, err := d.rows.Scan(ctx, documentsIndex, after, cursor, limit)
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			if rec.Value.Key == after {
				continue
			}
			if keys = append(keys, rec.Value.Key); len(keys) == limit {
				return keys, nil
			}
		}
		if cursor = next; cursor == "" {
			return keys, nil
		}
	}
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
	found, err := d.find(r.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		http.Error(w, "no such offer", http.StatusNotFound)
		return
	}
	if err != nil {
		d.fault(w, r, err)
		return
	}
	content, err := d.cfg.Store.Open(r.Context(), found.Blob)
	if err != nil {
		d.fault(w, r, err)
		return
	}
	defer content.Close()
	at, _, _ := parseKey(key)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", `"`+key+`"`) // a document never changes
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "", at, &seeker{BlobReader: content})
}

// seeker reads a blob in one go as long as nobody skips anything: each ReadAt may be a request.
type seeker struct {
	store.BlobReader
	at   int64 // of the next Read
	read int64 // how far the blob's own Read has come
}

func (s *seeker) Read(p []byte) (n int, err error) {
	if s.at == s.read {
		n, err = s.BlobReader.Read(p)
		s.read += int64(n)
	} else {
		n, err = s.ReadAt(p, s.at)
	}
	s.at += int64(n)
	return n, err
}

func (s *seeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.Size()
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking to %d", offset)
	}
	s.at = offset
	return offset, nil
}

// fault answers a request that a fault of our own prevents from being answered.
func (d *Documents) fault(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil { // the client waits
		d.cfg.Log.ErrorContext(r.Context(), "offers could not be served", "path", r.URL.Path, "err", err)
	}
	http.Error(w, "offers cannot be read now", http.StatusInternalServerError)
}
