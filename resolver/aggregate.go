package resolver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-cid"

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

// Opener reads content that the service answers for. *source.Custody implements it.
type Opener interface {
	// Open opens content, to be read within ctx, and returns its length in bytes. The error wraps source.ErrNoContent if
	// there is none.
	Open(ctx context.Context, content cid.Cid) (body io.ReadSeekCloser, length int64, err error)
}

// aggregates are those that were asked for last.
type aggregates struct {
	mu    sync.Mutex
	built []*segment.Aggregate // the most recently used first
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
func (s *resolver) aggregate(ctx context.Context, link piece.Link) (*segment.Aggregate, error) {
	if a := s.aggregates.get(link); a != nil {
		return a, nil
	}
	key := "\x01" + link.CID().KeyString()
	if message, ok := s.misses.get(key, s.cfg.Now()); ok {
		return nil, notFound(message)
	}
	var pieces []piece.Link
	if s.cfg.Aggregates != nil {
		var err error
		if pieces, err = s.cfg.Aggregates.PiecesOf(ctx, link); err != nil {
			return nil, fmt.Errorf("looking up pieces of aggregate %s: %w", link, err)
		}
	}
	if len(pieces) == 0 {
		message := "the aggregate " + link.String() + " was not made here"
		s.misses.put(key, message, s.cfg.Now())
		return nil, notFound(message)
	}
	s.aggregates.building.Lock()
	defer s.aggregates.building.Unlock()
	if a := s.aggregates.get(link); a != nil { // somebody else was faster
		return a, nil
	}
	a, err := segment.Build(link.PaddedSize(), pieces)
	if err != nil {
		return nil, fmt.Errorf("aggregate %s: %w", link, err)
	}
	if a.Link() != link {
		return nil, fmt.Errorf("the pieces of aggregate %s make %s", link, a.Link())
	}
	s.aggregates.put(a)
	return a, nil
}

// serveAggregate serves an aggregate as one file, the one whose piece CID is the aggregate's. The file exists nowhere:
// each part is read from where it is when it is asked for. What cannot be read ends the response; it is never zeros.
func (s *resolver) serveAggregate(w http.ResponseWriter, r *http.Request) {
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
	s     *resolver
	ctx   context.Context
	a     *segment.Aggregate
	piece int // that is open; -1: none

	body   io.ReadSeekCloser
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
	if i != p.piece {
		if err := p.open(i); err != nil {
			return 0, err
		}
	}
	if off != p.at && off < p.length {
		if p.at, err = p.body.Seek(off, io.SeekStart); err != nil {
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

func (p *payloads) open(i int) error {
	p.close()
	link := p.a.Piece(i)
	contents, err := p.s.cfg.Contents.ContentOf(p.ctx, link)
	if err != nil {
		return err
	}
	failed := fmt.Errorf("its content: %w", source.ErrNoContent)
	for _, content := range contents {
		body, length, err := p.s.cfg.Bytes.Open(p.ctx, content)
		switch {
		case err == nil && fits(link, length):
			p.piece, p.body, p.length, p.at = i, body, length, 0
			return nil
		case err == nil:
			body.Close()
			failed = fmt.Errorf("content %s has %d bytes, which is not the piece's size", content, length)
		case !errors.Is(err, source.ErrNoContent):
			failed = err
		}
	}
	return failed
}

func (p *payloads) close() {
	if p.body != nil {
		p.body.Close()
	}
	p.piece, p.body = -1, nil
}
