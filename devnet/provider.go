package devnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// Defaults of [ProviderConfig].
const (
	DefaultPoll         = 5 * time.Second
	DefaultParallel     = 4
	DefaultAttempts     = 6
	DefaultBackoff      = 2 * time.Second
	DefaultMaxBackoff   = 5 * time.Minute
	DefaultPieceTimeout = 10 * time.Minute
)

const (
	// overlap is how far below the newest offer the list is read again, because an offer may be published late and then has a key
	// below others. Spade's poller looks back as far.
	overlap = 48 * time.Hour

	maxWaiting  = 10_000 // offers that wait at the same time; the rest stays in the list
	maxRefusals = 1000   // refusals that are kept
)

// Market is where a provider makes its deals.
type Market interface {
	// Find returns the deal that the provider has for a piece.
	Find(ctx context.Context, provider string, p piece.Link) (Deal, bool, error)

	// Publish makes a deal; a provider that has one for the piece gets that one.
	Publish(ctx context.Context, p Proposal) (Deal, error)
}

var _ Market = (*Chain)(nil)

// Faults make a provider misbehave. The zero value does not.
type Faults struct {
	// FlipByte flips a bit of the first byte that is received of the pieces for which it returns true.
	FlipByte func(aggregate, p piece.Link) bool
	// Refuse refuses the aggregates for which it returns a reason, before anything is fetched.
	Refuse func(aggregate piece.Link) (reason string)
	// NeverActivate publishes the deals of the aggregates for which it returns true and lets them expire.
	NeverActivate func(aggregate piece.Link) bool
}

// ProviderConfig says which dealer a simulated provider works for and how. Address, Client, Offers, Pieces and Market are required.
type ProviderConfig struct {
	// Address is the provider's id address, Client that of the deals' client: "f01000", "f01001".
	Address string
	Client  string
	// Offers is the URL below which the dealer lists its offers: GET {Offers}/offers.
	Offers string
	// Pieces are URLs of a piece, with {piece} for the piece CID v2: "http://127.0.0.1:8001/piece/{piece}". They are tried in order until
	// one has the piece. Redirects are followed.
	Pieces []string
	Market Market
	// Path is a JSON file that keeps what the provider has seen over restarts; empty means that a restart reads all offers
	// again, which makes no further deals. Keep it together with the file of the chain: a provider that remembers an offer as
	// dealt does not deal it again on a chain that has forgotten.
	Path string
	// HTTP is the client to use; nil means one of its own.
	HTTP *http.Client
	// Parallel is how many pieces are fetched at the same time, PieceTimeout how long one may take.
	Parallel     int
	PieceTimeout time.Duration
	// Poll is the time between two looks at the offers.
	Poll time.Duration
	// Backoff is the wait after the first failure of an offer; it doubles up to MaxBackoff. A source that does not answer is
	// tried for ever. One that says that it has not got a piece is asked Attempts times; then the offer is refused.
	Backoff    time.Duration
	MaxBackoff time.Duration
	Attempts   int
	Faults     Faults
	// Log is nil for slog.Default. Now and After are the clock; nil means that of package time.
	Log   *slog.Logger
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Refusal is an offer that the provider will not store.
type Refusal struct {
	Key       string    `json:"key"`
	Aggregate string    `json:"aggregate,omitempty"` // as the document names it
	Piece     string    `json:"piece,omitempty"`     // the culprit, if there is one
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
}

// Waiting is an offer that is not dealt yet.
type Waiting struct {
	Key      string    `json:"key"`
	URL      string    `json:"url"`
	Attempts int       `json:"attempts"`         // so far
	Reason   string    `json:"reason,omitempty"` // why the last one failed
	Next     time.Time `json:"next"`             // when it is tried again

	missing  int                 // attempts that failed because something is not there
	verified map[piece.Link]bool // pieces that were fetched and are what they should be
}

// providerState is what the file holds.
type providerState struct {
	// Newest is the newest key ever seen that begins with a date, Seen the keys that were seen since some time before it.
	Newest   string     `json:"newest"`
	Seen     []string   `json:"seen"`
	Waiting  []*Waiting `json:"waiting"`
	Refusals []Refusal  `json:"refusals"`
}

// Provider is a SIMULATED storage provider. It fetches and checks what a real one would seal. Memory does not depend on the size of
// pieces and aggregates: bytes are hashed as they come, and zeros, within pieces and between them, are never hashed at all.
type Provider struct {
	cfg    ProviderConfig
	offers *url.URL
	http   *http.Client
	log    *slog.Logger

	step sync.Mutex // one step at a time

	mu    sync.Mutex
	state providerState
	seen  map[string]bool // the set of state.Seen
}

// OpenProvider returns a provider with what its file holds. It does not run yet: see [Provider.Run].
func OpenProvider(cfg ProviderConfig) (*Provider, error) {
	for _, address := range []string{cfg.Address, cfg.Client} {
		if _, err := actorID(address); err != nil {
			return nil, fmt.Errorf("devnet: opening provider: %w", err)
		}
	}
	if cfg.Market == nil {
		return nil, errors.New("devnet: opening provider: no market")
	}
	offers, err := url.Parse(strings.TrimRight(cfg.Offers, "/") + "/offers")
	if err != nil || !isHTTP(offers) {
		return nil, fmt.Errorf("devnet: opening provider: address of offers %q is not of the form http://host[/path]", cfg.Offers)
	}
	if len(cfg.Pieces) == 0 {
		return nil, errors.New("devnet: opening provider: no address of pieces")
	}
	for _, address := range cfg.Pieces {
		u, err := url.Parse(strings.ReplaceAll(address, "{piece}", "piece"))
		if err != nil || !isHTTP(u) || strings.Count(address, "{piece}") != 1 {
			return nil, fmt.Errorf("devnet: opening provider: address of pieces %q is not of the form http://host/path/{piece}", address)
		}
	}
	setDefault(&cfg.Parallel, DefaultParallel)
	setDefault(&cfg.PieceTimeout, DefaultPieceTimeout)
	setDefault(&cfg.Poll, DefaultPoll)
	setDefault(&cfg.Backoff, DefaultBackoff)
	setDefault(&cfg.MaxBackoff, DefaultMaxBackoff)
	setDefault(&cfg.Attempts, DefaultAttempts)
	if cfg.Parallel < 1 || cfg.PieceTimeout < 0 || cfg.Poll < 0 || cfg.Backoff < 0 || cfg.MaxBackoff < cfg.Backoff || cfg.Attempts < 1 {
		return nil, errors.New("devnet: opening provider: limits and times must be positive, and MaxBackoff not below Backoff")
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = time.After
	}
	p := &Provider{cfg: cfg, offers: offers, http: cfg.HTTP, log: cfg.Log.With("provider", cfg.Address), seen: map[string]bool{}}
	if cfg.Path != "" {
		if err := readJSON(cfg.Path, &p.state); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("devnet: opening provider: %w", err)
		}
	}
	p.state.Waiting = slices.DeleteFunc(p.state.Waiting, func(w *Waiting) bool { return w == nil })
	for _, key := range p.state.Seen {
		p.seen[key] = true
	}
	return p, nil
}

func isHTTP(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// Run steps until ctx ends. It returns nil.
func (p *Provider) Run(ctx context.Context) error {
	for {
		if _, err := p.Step(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "provider could not do its round", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.cfg.After(p.cfg.Poll):
		}
	}
}

// Step looks for new offers once and works on those that are due, one after the other. It returns how many offers came to an end, dealt or refused.
// The error says that the list could not be read or that the state could not be kept; offers are worked on all the same. What is
// wrong with an offer is never an error: it is refused, or it waits.
func (p *Provider) Step(ctx context.Context) (ended int, err error) {
	p.step.Lock()
	defer p.step.Unlock()
	err = p.list(ctx)
	for _, w := range p.due() {
		if ctx.Err() != nil {
			return ended, ctx.Err()
		}
		deal, workErr := p.work(ctx, w)
		if ctx.Err() != nil {
			return ended, ctx.Err() // an attempt that was interrupted is none
		}
		if p.settle(ctx, w, deal, workErr) {
			ended++
		}
		err = errors.Join(err, p.save())
	}
	return ended, err
}

// Refusals returns the offers that were refused, the newest last, at most the last thousand.
func (p *Provider) Refusals() []Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.state.Refusals)
}

// Waiting returns the offers that are neither dealt nor refused.
func (p *Provider) Waiting() []Waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := []Waiting{}
	for _, w := range p.state.Waiting {
		waiting = append(waiting, Waiting{Key: w.Key, URL: w.URL, Attempts: w.Attempts, Reason: w.Reason, Next: w.Next})
	}
	return waiting
}

// Handler serves GET /refusals: {"refusals": [[Refusal]…], "waiting": [[Waiting]…]}.
func (p *Provider) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /refusals", func(w http.ResponseWriter, _ *http.Request) {
		refusals := p.Refusals()
		if refusals == nil {
			refusals = []Refusal{}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"refusals": refusals, "waiting": p.Waiting()}) // the client may be gone
	})
	return mux
}

// due returns the offers to work on now, the oldest first.
func (p *Provider) due() []*Waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	var due []*Waiting
	for _, w := range p.state.Waiting {
		if !w.Next.After(now) {
			due = append(due, w)
		}
	}
	return due
}

// settle records how an attempt went, and reports whether the offer has come to its end.
func (p *Provider) settle(ctx context.Context, w *Waiting, deal Deal, err error) (ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused, final := errors.AsType[*refusal](err)
	missing, absent := errors.AsType[*missingError](err)
	w.Attempts++
	switch {
	case err == nil:
		p.log.InfoContext(ctx, "provider published a deal", "offer", w.Key, "aggregate", deal.Piece, "deal", deal.ID)
	case final:
		p.refuse(ctx, w.Key, refused)
	case absent && w.missing+1 >= p.cfg.Attempts:
		p.refuse(ctx, w.Key, &refusal{aggregate: missing.aggregate, piece: missing.piece, reason: missing.Error()})
	default:
		if absent {
			w.missing++
		}
		w.Reason = err.Error()
		w.Next = p.cfg.Now().Add(p.backoff(w.Attempts))
		p.log.InfoContext(ctx, "provider could not take an offer yet", "offer", w.Key, "attempt", w.Attempts, "error", err)
		return false
	}
	p.state.Waiting = slices.DeleteFunc(p.state.Waiting, func(other *Waiting) bool { return other == w })
	return true
}

func (p *Provider) refuse(ctx context.Context, key string, r *refusal) {
	p.log.WarnContext(ctx, "provider refused an offer", "offer", key, "aggregate", r.aggregate, "piece", r.piece, "reason", r.reason)
	p.state.Refusals = append(p.state.Refusals,
		Refusal{Key: key, Aggregate: r.aggregate, Piece: r.piece, Reason: r.reason, At: p.cfg.Now().UTC()})
	if n := len(p.state.Refusals); n > maxRefusals {
		p.state.Refusals = slices.Clone(p.state.Refusals[n-maxRefusals:])
	}
}

func (p *Provider) backoff(attempts int) time.Duration {
	wait := p.cfg.Backoff
	for range attempts - 1 {
		if wait *= 2; wait >= p.cfg.MaxBackoff {
			return p.cfg.MaxBackoff
		}
	}
	return wait
}

func (p *Provider) save() error {
	if p.cfg.Path == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := writeJSON(p.cfg.Path, &p.state); err != nil {
		return fmt.Errorf("devnet: keeping the provider's state: %w", err)
	}
	return nil
}

// refusal is the end of an offer that is not acceptable.
type refusal struct {
	aggregate, piece, reason string
}

func (r *refusal) Error() string { return r.reason }

// missingError says that a source answered that it has not got something.
type missingError struct {
	aggregate, piece string
	what             string
	status           int
}

func (e *missingError) Error() string {
	return fmt.Sprintf("%s is not there: HTTP %d", e.what, e.status)
}

// work does everything for an offer that a provider does before it seals, and publishes the deal.
func (p *Provider) work(ctx context.Context, w *Waiting) (Deal, error) {
	doc, err := p.document(ctx, w.URL)
	if err != nil {
		return Deal{}, err
	}
	aggregate, pieces, err := doc.check()
	if err != nil {
		return Deal{}, &refusal{aggregate: doc.Aggregate, reason: err.Error()}
	}
	if deal, ok, err := p.cfg.Market.Find(ctx, p.cfg.Address, aggregate); err != nil || ok {
		return deal, err
	}
	if p.cfg.Faults.Refuse != nil {
		if reason := p.cfg.Faults.Refuse(aggregate); reason != "" {
			return Deal{}, &refusal{aggregate: doc.Aggregate, reason: reason}
		}
	}
	// First what the document says of itself, which costs nothing, then what the bytes say.
	if err := rebuild(aggregate, pieces); err != nil {
		return Deal{}, &refusal{aggregate: doc.Aggregate, reason: "the pieces named are not those of the aggregate: " + err.Error()}
	}
	received, err := p.receive(ctx, w, aggregate, pieces)
	if err != nil {
		return Deal{}, err
	}
	if err := rebuild(aggregate, received); err != nil {
		return Deal{}, &refusal{aggregate: doc.Aggregate, reason: "the pieces received are not those of the aggregate: " + err.Error()}
	}
	return p.cfg.Market.Publish(ctx, Proposal{
		Piece: aggregate, Provider: p.cfg.Address, Client: p.cfg.Client,
		NeverActivate: p.cfg.Faults.NeverActivate != nil && p.cfg.Faults.NeverActivate(aggregate),
	})
}

// rebuild places pieces in a deal of the aggregate's size, with the index at its end, and compares the aggregates.
func rebuild(aggregate piece.Link, pieces []piece.Link) error {
	_, err := segment.Rebuild(aggregate, pieces)
	return err
}

// receive fetches all pieces, some at a time, and returns what their bytes are.
func (p *Provider) receive(ctx context.Context, w *Waiting, aggregate piece.Link, pieces []piece.Link) ([]piece.Link, error) {
	if w.verified == nil {
		w.verified = map[piece.Link]bool{}
	}
	received := make([]piece.Link, len(pieces))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(p.cfg.Parallel)
	var mu sync.Mutex // of w.verified
	for i, want := range pieces {
		mu.Lock()
		known := w.verified[want]
		mu.Unlock()
		if known { // by an earlier attempt, which another piece held up
			received[i] = want
			continue
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			got, err := p.fetch(groupCtx, aggregate, want)
			if err != nil {
				return err
			}
			if got != want {
				return &refusal{aggregate: aggregate.String(), piece: want.String(), reason: fmt.Sprintf("bytes of the piece make %s", got)}
			}
			received[i] = got
			mu.Lock()
			w.verified[want] = true
			mu.Unlock()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return received, ctx.Err() // which stops the loop without an error of anybody
}
