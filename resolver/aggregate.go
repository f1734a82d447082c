package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/source"
)

const (
	aggregatePath = "/aggregate/"
	// keptAggregates are remembered with their segments and index; the largest takes about 40 MB.
	keptAggregates = 4
)

// Aggregates knows which pieces an aggregate has. The aggregator implements it.
type Aggregates interface {
	// PiecesOf returns the pieces of an aggregate in their order, none if it is unknown.
	PiecesOf(ctx context.Context, aggregate piece.Link) ([]piece.Link, error)
}

// Payloads reads what pieces were computed from.
type Payloads interface {
	// OpenPiece opens content that gave the piece from an offset in bytes on, to be read within ctx, and returns the length of the whole
	// content. The error wraps source.ErrNoContent if there is none.
	OpenPiece(ctx context.Context, p piece.Link, off int64) (body io.ReadCloser, length int64, err error)
}

// AggregatesConfig configures [NewAggregates].
type AggregatesConfig struct {
	Aggregates Aggregates // required
	Payloads   Payloads   // required

	// MissTTL is how long it is remembered that an aggregate is not known; 0 means DefaultMissTTL.
	MissTTL time.Duration
	// Stall ends a download whose receiver takes nothing for that long; 0 means source.DefaultStall.
	Stall time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log receives what a client is not told: why a piece could not be read. Nil discards.
	Log *slog.Logger
}

// NewAggregates returns the handler of
//
//	GET, HEAD /aggregate/{piece CID v2}  the aggregate as one file, ranges included
//
// with
//
//	200, 206  the bytes
//	400, 404, 415, 503  as [New] has them
//	416  a range behind the end
//
// The file is the one whose piece CID is the aggregate's; it exists nowhere, and is put together from its pieces as it is read. What cannot be
// read ends the response before the length that was stated; it is never zeros. Whether the bytes of a piece are what they were when it was
// validated is not checked here: whoever takes the file computes its piece.
func NewAggregates(cfg AggregatesConfig) (http.Handler, error) {
	if cfg.Aggregates == nil || cfg.Payloads == nil {
		return nil, errors.New("resolver: Aggregates and Payloads are required")
	}
	cfg.MissTTL = cmp.Or(cfg.MissTTL, DefaultMissTTL)
	cfg.Stall = cmp.Or(cfg.Stall, source.DefaultStall)
	if cfg.MissTTL < 0 || cfg.Stall < 0 {
		return nil, errors.New("resolver: a limit is negative")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &aggregates{cfg: cfg, misses: newCache[string](DefaultCacheSize/missShare, cfg.MissTTL)}, nil
}

type aggregates struct {
	cfg    AggregatesConfig
	misses *cache[string] // why there is none, by binary CID

	mu    sync.Mutex
	built []*segment.Aggregate // those that were asked for last, the most recently used first
	// building is held by the one who builds an aggregate, which takes a moment of a core and the memory for it.
	building sync.Mutex
}

func (s *aggregates) get(link piece.Link) *segment.Aggregate {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.built, func(a *segment.Aggregate) bool { return a.Link() == link })
	if i < 0 {
		return nil
	}
	a := s.built[i]
	s.built = slices.Insert(slices.Delete(s.built, i, i+1), 0, a)
	return a
}

func (s *aggregates) put(a *segment.Aggregate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.built = slices.Insert(s.built, 0, a)
	if len(s.built) > keptAggregates {
		s.built = slices.Delete(s.built, keptAggregates, len(s.built))
	}
}

// aggregate returns an aggregate with its segments and index.
func (s *aggregates) aggregate(ctx context.Context, link piece.Link) (*segment.Aggregate, error) {
	if a := s.get(link); a != nil {
		return a, nil
	}
	key := link.CID().KeyString()
	if message, ok := s.misses.get(key, s.cfg.Now()); ok {
		return nil, notFound(message)
	}
	pieces, err := s.cfg.Aggregates.PiecesOf(ctx, link)
	if err != nil {
		return nil, fmt.Errorf("looking up pieces of aggregate %s: %w", link, err)
	}
	if len(pieces) == 0 {
		message := "the aggregate " + link.String() + " was not made here"
		s.misses.put(key, message, s.cfg.Now())
		return nil, notFound(message)
	}
	s.building.Lock()
	defer s.building.Unlock()
	if a := s.get(link); a != nil { // somebody else was faster
		return a, nil
	}
	a, err := segment.Build(link.PaddedSize(), pieces)
	if err != nil {
		return nil, fmt.Errorf("aggregate %s: %w", link, err)
	}
	if a.Link() != link {
		return nil, fmt.Errorf("the pieces of aggregate %s make %s", link, a.Link())
	}
	s.put(a)
	return a, nil
}

func (s *aggregates) refuse(w http.ResponseWriter, r *http.Request, err error) {
	refuse(w, r, err, s.cfg.MissTTL, s.cfg.Log)
}

func (s *aggregates) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := onlyReads(w, r); err != nil {
		s.refuse(w, r, err)
		return
	}
	link, err := parsePiece(strings.TrimPrefix(r.URL.Path, aggregatePath))
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	a, err := s.aggregate(r.Context(), link)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	payload := &payloads{s: s, ctx: r.Context(), a: a, piece: -1}
	defer payload.close()
	file := segment.NewReader(a, payload.read)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="`+link.String()+`.bin"`)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("ETag", `"`+link.String()+`"`)
	source.Serve(w, r, s.cfg.Stall, io.NewSectionReader(file, 0, file.Size()))
	if payload.err != nil && r.Context().Err() == nil {
		s.cfg.Log.ErrorContext(r.Context(), "an aggregate cannot be read", "aggregate", link.String(), "err", payload.err)
	}
}

// payloads reads the payloads of an aggregate's pieces for one response, mostly from front to back: the piece that was
// read last stays open.
type payloads struct {
	s     *aggregates
	ctx   context.Context
	a     *segment.Aggregate
	piece int // that is open; -1: none

	body   io.ReadCloser
	length int64 // of the content
	at     int64 // where body stands
	err    error // the first failure
}

// read is a segment.ReadSegment. Payload behind the content is zero padding that the piece's CID does not state.
func (p *payloads) read(i int, off int64, b []byte) (n int, err error) {
	defer func() {
		if err != nil && p.err == nil {
			p.err = fmt.Errorf("piece %s: %w", p.a.Piece(i), err)
		}
	}()
	if i != p.piece || off != p.at && off < p.length {
		if err := p.open(i, off); err != nil {
			return 0, err
		}
	}
	if off < p.length {
		n, err = io.ReadFull(p.body, b[:min(int64(len(b)), p.length-off)])
		p.at += int64(n)
		if err != nil {
			return n, err
		}
	}
	clear(b[n:])
	return len(b), nil
}

func (p *payloads) open(i int, off int64) error {
	p.close()
	link := p.a.Piece(i)
	body, length, err := p.s.cfg.Payloads.OpenPiece(p.ctx, link, off)
	if err != nil {
		return err
	}
	if !fits(link, length) {
		body.Close()
		return fmt.Errorf("its content has %d bytes, which is not the piece's size", length)
	}
	p.piece, p.body, p.length, p.at = i, body, length, off
	return nil
}

func (p *payloads) close() {
	if p.body != nil {
		p.body.Close()
	}
	p.piece, p.body = -1, nil
}
