package resolver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

// Contents knows which content a piece was computed from. The storefront implements it.
type Contents interface {
	// ContentOf returns the content CIDs that were validated for the piece, the preferred one first, none if there are
	// none.
	ContentOf(ctx context.Context, p piece.Link) ([]cid.Cid, error)
}

// Locator knows where content is served that the service answers for. *source.Custody implements it.
type Locator interface {
	// Locate returns where everybody can read the content. The error wraps source.ErrNoContent if it is nowhere.
	Locate(ctx context.Context, content cid.Cid) (source.Location, error)
}

// Keys knows objects of the operator's buckets by key, whatever they hold.
type Keys interface {
	// LocateKey returns where everybody can read an object; bucket is empty for the one that is meant if none is named.
	// The error wraps source.ErrNoContent if there is no such object, or no such bucket that is open for this.
	LocateKey(ctx context.Context, bucket, key string) (source.Location, error)
}

const (
	// MaxExpires is the largest value of the query parameter expires, in seconds: three days.
	MaxExpires = 259_200
	// DefaultTTL is how long a redirect is remembered here and, unless the query says otherwise, by the client.
	DefaultTTL = 5 * time.Minute
	// DefaultMissTTL is how long it is remembered that there is nothing to redirect to.
	DefaultMissTTL = 2 * time.Second
	// DefaultCacheSize is how many redirects are remembered; each takes about 500 bytes.
	DefaultCacheSize = 65_536

	// missShare is the part of the cache's size that misses may take beside it: asking for pieces that do not exist costs
	// nothing, so it must not push out those that do.
	missShare = 16
	piecePath = "/piece/"
	keyPath   = "/key/"
	maxKey    = 1024 + 63 // bytes of a key and a bucket's name
	// maxText bounds the text that is decoded as a CID.
	maxText = 256
	// retryAfter is what a client is told while the answer is not to be had, in seconds.
	retryAfter = 5
)

// Config configures [New].
type Config struct {
	Contents Contents // required
	Locator  Locator  // required
	// Keys serves /key/. Nil: no bucket is open for that.
	Keys Keys

	// TTL is how long it is remembered where something is; 0 means DefaultTTL. A redirect to content that has left the custody is
	// given out for that long.
	TTL time.Duration
	// MissTTL is how long it is remembered that a piece or content is not there; 0 means DefaultMissTTL.
	MissTTL time.Duration
	// CacheSize is how many redirects are remembered; 0 means DefaultCacheSize.
	CacheSize int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log receives what a client is not told: why a look-up failed. Nil discards.
	Log *slog.Logger
}

// New returns the resolver. It answers by the whole path of the request:
//
//	GET, HEAD /piece/{piece CID v2}   where a content of the piece is
//	GET, HEAD /{content CID}          where the content is
//	GET, HEAD /{piece CID v2}         as /piece/
//	GET, HEAD /key/{key}?bucket=      where the object of one of the operator's buckets is
//
// with
//
//	302  Location, Cache-Control: public, max-age = what is smaller of expires and the TTL
//	400  what should name a piece or content does not, or expires is not a number from 1 to MaxExpires
//	404  nothing in custody that goes by this name
//	415  a piece CID v1, which does not say what size the piece has
//	503  the look-up failed; Retry-After
//
// Every refusal has the body {"name", "message"}. The query parameter expires is how many seconds the client means to
// use the address, MaxExpires if it is not said: an address that is signed works for that long, and the redirect may be
// cached for half of it. Other addresses do not expire.
func New(cfg Config) (http.Handler, error) {
	if cfg.Contents == nil || cfg.Locator == nil {
		return nil, errors.New("resolver: Contents and Locator are required")
	}
	if cfg.TTL < 0 || cfg.MissTTL < 0 || cfg.CacheSize < 0 {
		return nil, errors.New("resolver: a limit is negative")
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.MissTTL == 0 {
		cfg.MissTTL = DefaultMissTTL
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = DefaultCacheSize
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &resolver{
		cfg:    cfg,
		hits:   newCache[source.Location](cfg.CacheSize, cfg.TTL),
		misses: newCache[string](max(1, cfg.CacheSize/missShare), cfg.MissTTL),
	}, nil
}

type resolver struct {
	cfg    Config
	hits   *cache[source.Location] // by binary CID
	misses *cache[string]          // why there is none
}

func (s *resolver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := onlyReads(w, r); err != nil {
		s.refuse(w, r, err)
		return
	}
	if strings.HasPrefix(r.URL.Path, keyPath) {
		s.serveKey(w, r)
		return
	}
	n, err := parsePath(r.URL.Path)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	expires, err := parseExpires(r.URL.RawQuery)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	at, err := s.resolve(r.Context(), n)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.redirect(w, r, at, expires)
}

// onlyReads refuses other methods than GET and HEAD.
func onlyReads(w http.ResponseWriter, r *http.Request) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	w.Header().Set("Allow", "GET, HEAD")
	return &refusal{status: http.StatusMethodNotAllowed, name: "MethodNotAllowed", message: "use GET or HEAD"}
}

// serveKey redirects to an object of a bucket.
func (s *resolver) serveKey(w http.ResponseWriter, r *http.Request) {
	expires, err := parseExpires(r.URL.RawQuery)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	key, bucket := strings.TrimPrefix(r.URL.Path, keyPath), r.URL.Query().Get("bucket")
	missing := notFound("there is no such object in a bucket that is open for this")
	if s.cfg.Keys == nil || key == "" || len(key)+len(bucket) > maxKey {
		s.refuse(w, r, missing)
		return
	}
	// Neither a binary CID nor a bucket's name has a NUL in front.
	at, err := s.remember("\x00"+bucket+"\x00"+key, func() (source.Location, error) {
		at, err := s.cfg.Keys.LocateKey(r.Context(), bucket, key)
		if errors.Is(err, source.ErrNoContent) || err == nil && at.Sign == nil {
			return at, missing
		}
		return at, err
	})
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.redirect(w, r, at, expires)
}

// redirect sends a client to where something is.
func (s *resolver) redirect(w http.ResponseWriter, r *http.Request, at source.Location, expires time.Duration) {
	location, err := at.Sign(r.Context(), expires)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	maxAge := min(s.cfg.TTL, expires)
	if at.Expires { // whoever takes it from a cache has half of its life left at least
		maxAge = min(s.cfg.TTL, expires/2)
	}
	h := w.Header()
	h.Set("Location", location)
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(maxAge/time.Second)))
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusFound)
}

// A name is what a path asks for: a piece, or content if the link is not defined.
type name struct {
	piece   piece.Link
	content cid.Cid
}

// key is the binary CID.
func (n name) key() string {
	if n.piece.Defined() {
		return n.piece.CID().KeyString()
	}
	return n.content.KeyString()
}

// resolve returns where that is what n names.
func (s *resolver) resolve(ctx context.Context, n name) (source.Location, error) {
	return s.remember(n.key(), func() (source.Location, error) { return s.lookUp(ctx, n) })
}

// remember returns what is remembered by the key, or looks it up.
func (s *resolver) remember(key string, lookUp func() (source.Location, error)) (source.Location, error) {
	now := s.cfg.Now()
	if at, ok := s.hits.get(key, now); ok {
		return at, nil
	}
	if message, ok := s.misses.get(key, now); ok {
		return source.Location{}, notFound(message)
	}
	at, err := lookUp()
	if err == nil {
		s.hits.put(key, at, now)
		return at, nil
	}
	if miss := (*refusal)(nil); errors.As(err, &miss) {
		s.misses.put(key, miss.message, now)
	}
	return source.Location{}, err
}

func (s *resolver) lookUp(ctx context.Context, n name) (at source.Location, err error) {
	if !n.piece.Defined() {
		at, err = s.cfg.Locator.Locate(ctx, n.content)
		if errors.Is(err, source.ErrNoContent) {
			return at, notFound("this service does not hold the content " + n.content.String())
		}
		return at, err
	}
	contents, err := s.cfg.Contents.ContentOf(ctx, n.piece)
	if err != nil {
		return at, fmt.Errorf("looking up contents of piece %s: %w", n.piece, err)
	}
	if len(contents) == 0 {
		return at, notFound("no content is known for the piece " + n.piece.String())
	}
	var failed error
	for _, content := range contents {
		at, err := s.cfg.Locator.Locate(ctx, content)
		switch {
		case err == nil && fits(n.piece, at.Length):
			return at, nil
		case err == nil:
			// Somebody has changed a file behind the service's back: its bytes cannot be the piece.
			s.cfg.Log.ErrorContext(ctx, "content in custody has another length than its piece",
				"piece", n.piece.String(), "content", content.String(), "length", at.Length)
		case !errors.Is(err, source.ErrNoContent):
			failed = errors.Join(failed, fmt.Errorf("locating content of piece %s: %w", n.piece, err))
		}
	}
	if failed != nil {
		return at, failed
	}
	return at, notFound("the content of the piece " + n.piece.String() + " is not held here any more")
}

// fits reports whether content of that length can have the piece: its padded size is the piece's. The padding that the
// link states says more, but a link that was made from a piece CID v1 states none.
func fits(p piece.Link, length int64) bool {
	if length <= 0 {
		return false
	}
	size, err := piece.PaddedSizeOf(uint64(length))
	return err == nil && size == p.PaddedSize()
}

// parseExpires returns for how long the client means to use an address.
func parseExpires(query string) (time.Duration, error) {
	const most = MaxExpires * time.Second
	if query == "" {
		return most, nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, badRequest("InvalidQuery", "the query cannot be parsed")
	}
	if !values.Has("expires") {
		return most, nil
	}
	expires, err := strconv.ParseUint(values.Get("expires"), 10, 32)
	if err != nil || expires < 1 || expires > MaxExpires || len(values["expires"]) > 1 {
		return 0, badRequest("InvalidQuery", fmt.Sprintf("expires is not a number of seconds from 1 to %d", MaxExpires))
	}
	return time.Duration(expires) * time.Second, nil
}

// parsePath returns what a path names.
func parsePath(path string) (name, error) {
	if text, ok := strings.CutPrefix(path, piecePath); ok {
		p, err := parsePiece(text)
		return name{piece: p}, err
	}
	text, ok := strings.CutPrefix(path, "/")
	if !ok || text == "" || strings.Contains(text, "/") {
		return name{}, notFound("ask for " + piecePath + "{piece CID} or /{content CID}")
	}
	c, err := source.ParseContent(text)
	if err == nil {
		return name{content: c}, nil
	}
	p, perr := parsePiece(text)
	if perr == nil || errors.Is(perr, piece.ErrV1) {
		return name{piece: p}, perr
	}
	return name{}, badRequest("InvalidContent", err.Error())
}

// parsePiece decodes a piece CID v2 in any multibase.
func parsePiece(text string) (piece.Link, error) {
	if len(text) > maxText {
		return piece.Link{}, badRequest("InvalidPiece",
			fmt.Sprintf("piece CID has %d characters, at most %d are read", len(text), maxText))
	}
	p, err := piece.Parse(text)
	if err == nil {
		return p, nil
	}
	if c, cerr := cid.Decode(text); cerr == nil {
		if p, err = piece.FromCID(c); err == nil {
			return p, nil
		}
	}
	status := http.StatusBadRequest
	if errors.Is(err, piece.ErrV1) {
		status = http.StatusUnsupportedMediaType
	}
	return piece.Link{}, &refusal{status: status, name: "InvalidPiece", message: err.Error(), cause: err}
}

// A refusal is an answer that the same request would get again, for a while at least.
type refusal struct {
	status        int
	name, message string
	cause         error
}

func (e *refusal) Error() string { return e.message }
func (e *refusal) Unwrap() error { return e.cause }

func notFound(message string) error {
	return &refusal{status: http.StatusNotFound, name: "NotFound", message: message}
}

func badRequest(name, message string) error {
	return &refusal{status: http.StatusBadRequest, name: name, message: message}
}

// refuse answers a request that cannot be redirected.
func (s *resolver) refuse(w http.ResponseWriter, r *http.Request, err error) {
	refuse(w, r, err, s.cfg.MissTTL, s.cfg.Log)
}

func refuse(w http.ResponseWriter, r *http.Request, err error, missTTL time.Duration, log *slog.Logger) {
	var e *refusal
	if !errors.As(err, &e) {
		if r.Context().Err() != nil {
			return // nobody is left to be told, and nothing is wrong here
		}
		log.ErrorContext(r.Context(), "resolving failed", "path", r.URL.Path, "err", err)
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		e = &refusal{status: http.StatusServiceUnavailable, name: "Unavailable", message: "the look-up failed; try again in a few seconds"}
	}
	cache := "no-store"
	if e.status == http.StatusNotFound {
		cache = "public, max-age=" + strconv.Itoa(int(missTTL/time.Second))
	}
	w.Header().Set("Cache-Control", cache)
	reply(w, e)
}

func reply(w http.ResponseWriter, e *refusal) {
	b, err := json.Marshal(struct {
		Name    string `json:"name"`
		Message string `json:"message"`
	}{e.name, e.message})
	if err != nil {
		http.Error(w, "encoding the answer failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.status)
	w.Write(append(b, '\n'))
}
