package devnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storacha/w3filecoin/piece"
)

const (
	pageSize     = 100      // offers asked for at once
	maxPages     = 1000     // pages read in one step
	maxPage      = 1 << 20  // bytes
	maxDocument  = 32 << 20 // bytes; 262,144 pieces take 18 MB
	maxKey       = 255      // bytes
	callTimeout  = time.Minute
	copyBuffer   = 128 << 10
	dateOfKey    = "2006-01-02"
	maxExcerpt   = 200
	acceptedJSON = "application/json"
)

// Document is one offer in the form that Spade reads.
type Document struct {
	Aggregate  string   `json:"aggregate"`  // piece CID v2
	Pieces     []string `json:"pieces"`     // piece CIDs v2, in the order of the aggregate
	Collection string   `json:"collection"` // DID of who offers
	OrderID    int64    `json:"orderID"`    // milliseconds since 1970
}

// decodeDocument decodes the bytes of a document. Fields that it does not know are none of its business.
func decodeDocument(b []byte) (Document, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return Document{}, fmt.Errorf("document cannot be read: %w", err)
	}
	return d, nil
}

// check returns the pieces that a document names.
func (d *Document) check() (aggregate piece.Link, pieces []piece.Link, err error) {
	aggregate, err = piece.Parse(d.Aggregate)
	if err != nil {
		return aggregate, nil, fmt.Errorf("aggregate of the document: %w", err)
	}
	if len(d.Pieces) == 0 {
		return aggregate, nil, errors.New("document names no pieces")
	}
	pieces = make([]piece.Link, len(d.Pieces))
	for i, text := range d.Pieces {
		if pieces[i], err = piece.Parse(text); err != nil {
			return aggregate, nil, fmt.Errorf("piece %d of the document: %w", i, err)
		}
	}
	return aggregate, pieces, nil
}

// page is an answer to GET /offers.
type page struct {
	Offers []struct {
		Key string `json:"key"`
		URL string `json:"url"`
	} `json:"offers"`
	Next string `json:"next"`
}

// list takes note of offers that have not been seen yet.
func (p *Provider) list(ctx context.Context) error {
	from := p.cursor()
	after := from
	changed := false
	defer func() { p.forget(from) }()
	for range maxPages {
		u := *p.offers
		u.RawQuery = url.Values{"after": {after}, "limit": {strconv.Itoa(pageSize)}}.Encode()
		body, err := p.get(ctx, u.String(), maxPage)
		if err != nil {
			return fmt.Errorf("devnet: listing offers: %w", err)
		}
		var found page
		if err := json.Unmarshal(body, &found); err != nil {
			return fmt.Errorf("devnet: listing offers: decoding page %q: %w", excerpt(body), err)
		}
		for _, o := range found.Offers {
			at, err := checkEntry(&u, o.Key, o.URL)
			if err != nil {
				// A list with an entry that nobody can read is still a list.
				p.log.WarnContext(ctx, "provider ignores an offer", "offer", excerpt([]byte(o.Key)), "error", err)
				continue
			}
			full, isNew := p.note(o.Key, at)
			if full {
				return nil
			}
			changed = changed || isNew
		}
		if changed {
			if err := p.save(); err != nil {
				return err
			}
			changed = false
		}
		if found.Next == "" {
			return nil
		}
		if found.Next <= after {
			return fmt.Errorf("devnet: listing offers: the page after %q leads back to %q", after, excerpt([]byte(found.Next)))
		}
		after = found.Next
	}
	return nil
}

// checkEntry returns the URL of an entry in the list.
func checkEntry(base *url.URL, key, ref string) (string, error) {
	if key == "" || len(key) > maxKey {
		return "", fmt.Errorf("key has %d bytes", len(key))
	}
	// The list is ordered by key, and a reader finds what is new by the date that keys begin with.
	if _, ok := dateOf(key); !ok {
		return "", errors.New("key does not begin with a date")
	}
	u, err := base.Parse(ref)
	if err != nil || !isHTTP(u) {
		return "", fmt.Errorf("URL %q", excerpt([]byte(ref)))
	}
	return u.String(), nil
}

func dateOf(key string) (time.Time, bool) {
	if len(key) < len(dateOfKey) {
		return time.Time{}, false
	}
	t, err := time.Parse(dateOfKey, key[:len(dateOfKey)])
	return t, err == nil
}

// note adds an offer to those that wait, unless it has been seen. It does not when too many wait.
func (p *Provider) note(key, at string) (full, isNew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[key] {
		return false, false
	}
	if len(p.state.Waiting) >= maxWaiting {
		return true, false
	}
	p.seen[key] = true
	p.state.Seen = append(p.state.Seen, key)
	p.state.Newest = max(p.state.Newest, key)
	p.state.Waiting = append(p.state.Waiting, &Waiting{Key: key, URL: at, Next: p.cfg.Now().UTC()})
	return false, true
}

// cursor returns where the list has to be read from to miss nothing that was published late.
func (p *Provider) cursor() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	newest, ok := dateOf(p.state.Newest)
	if !ok {
		return ""
	}
	if now := p.cfg.Now().UTC(); newest.After(now) {
		newest = now // a key from the future must not hide the present
	}
	return newest.Add(-overlap).Format(dateOfKey)
}

// forget drops the keys below the cursor, which the list is not read for any more.
func (p *Provider) forget(cursor string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Seen = slices.DeleteFunc(p.state.Seen, func(key string) bool {
		if key <= cursor {
			delete(p.seen, key)
		}
		return key <= cursor
	})
}

// document fetches the document of an offer.
func (p *Provider) document(ctx context.Context, at string) (Document, error) {
	body, err := p.get(ctx, at, maxDocument)
	if err != nil {
		return Document{}, fmt.Errorf("fetching the offer: %w", err)
	}
	d, err := decodeDocument(body)
	if err != nil {
		return Document{}, &refusal{reason: err.Error()}
	}
	return d, nil
}

// get fetches a JSON document of at most limit bytes.
func (p *Provider) get(ctx context.Context, at string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", acceptedJSON)
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := checkStatus(resp, at, piece.Link{}, piece.Link{}); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", at, err)
	}
	if int64(len(body)) > limit {
		return nil, &refusal{reason: fmt.Sprintf("%s is over %d bytes", at, limit)}
	}
	return body, nil
}

// checkStatus sorts the ways in which a source does not deliver: it says that it has not got it, or something is wrong just now.
func checkStatus(resp *http.Response, what string, aggregate, culprit piece.Link) error {
	switch s := resp.StatusCode; {
	case s == http.StatusOK:
		return nil
	case s >= 400 && s < 500 && s != http.StatusRequestTimeout && s != http.StatusTooEarly && s != http.StatusTooManyRequests:
		e := &missingError{what: what, status: s}
		if culprit.Defined() {
			e.aggregate, e.piece = aggregate.String(), culprit.String()
		}
		return e
	default:
		return fmt.Errorf("%s: HTTP %d", what, s)
	}
}

// fetch fetches the bytes of a piece from the first source that has it and returns the piece that they make. The error says that the piece
// is missing only if all sources say so.
func (p *Provider) fetch(ctx context.Context, aggregate, want piece.Link) (got piece.Link, err error) {
	var failed error
	for _, address := range p.cfg.Pieces {
		got, err = p.fetchFrom(ctx, strings.ReplaceAll(address, "{piece}", want.String()), aggregate, want)
		if err == nil {
			return got, nil
		}
		if _, final := errors.AsType[*refusal](err); final {
			return got, err
		}
		if _, absent := errors.AsType[*missingError](err); !absent {
			failed = err
		}
	}
	if failed != nil {
		return got, failed
	}
	return got, err
}

// fetchFrom fetches the bytes of a piece. Bytes that are missing at the end are zeros.
func (p *Provider) fetchFrom(ctx context.Context, at string, aggregate, want piece.Link) (piece.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.PieceTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return piece.Link{}, fmt.Errorf("fetching piece %s: %w", want, err)
	}
	req.Header.Set("Accept-Encoding", "identity") // the length that is announced is that of the piece
	resp, err := p.http.Do(req)
	if err != nil {
		return piece.Link{}, fmt.Errorf("fetching piece %s: %w", want, err)
	}
	defer resp.Body.Close()
	if err := checkStatus(resp, "piece "+want.String(), aggregate, want); err != nil {
		return piece.Link{}, err
	}
	size := int64(want.PayloadSize())
	tooLong := &refusal{aggregate: aggregate.String(), piece: want.String(), reason: fmt.Sprintf("piece is longer than its %d bytes", size)}
	if resp.ContentLength > size {
		return piece.Link{}, tooLong
	}
	var body io.Reader = resp.Body
	if p.cfg.Faults.FlipByte != nil && p.cfg.Faults.FlipByte(aggregate, want) {
		body = &flipper{r: body}
	}
	var hasher piece.Hasher
	n, err := io.CopyBuffer(&hasher, io.LimitReader(body, size), make([]byte, copyBuffer))
	if err != nil {
		return piece.Link{}, fmt.Errorf("fetching piece %s: after %d bytes: %w", want, n, err)
	}
	if n == size {
		// One byte more may be there, and its absence says that the body has ended as it should.
		switch _, err := io.ReadFull(body, make([]byte, 1)); {
		case err == nil:
			return piece.Link{}, tooLong
		case err != io.EOF:
			return piece.Link{}, fmt.Errorf("fetching piece %s: after %d bytes: %w", want, n, err)
		}
	}
	return padded(&hasher, want)
}

// padded returns the piece that the bytes of h make when zeros fill them up to the size of want.
func padded(h *piece.Hasher, want piece.Link) (piece.Link, error) {
	root, height := piece.ZeroRoot(want.Height()), want.Height()
	if h.Size() > 0 {
		sum, err := h.Sum()
		if err != nil {
			return piece.Link{}, fmt.Errorf("hashing piece %s: %w", want, err)
		}
		root, height = sum.Root(), sum.Height()
	}
	for ; height < want.Height(); height++ {
		zeros := piece.ZeroRoot(height)
		root = piece.HashPair(&root, &zeros)
	}
	return piece.FromRootAndHeight(root, want.Height(), want.Padding())
}

// flipper flips a bit of the first byte that it reads.
type flipper struct {
	r    io.Reader
	done bool
}

func (f *flipper) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if n > 0 && !f.done {
		b[0] ^= 1
		f.done = true
	}
	return n, err
}

// excerpt returns the beginning of a foreign text, short enough for an error message.
func excerpt(b []byte) string {
	if len(b) > maxExcerpt {
		return string(b[:maxExcerpt]) + "…"
	}
	return string(b)
}
