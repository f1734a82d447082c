package dealtracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// Confidence is from when on the activation of a deal counts.
type Confidence string

// Confidences.
const (
	Finalized Confidence = "finalized" // once the chain can no longer take it back
	Seen      Confidence = "seen"      // at once
)

// Timing says how long things may take. The zero value of a field means its default.
type Timing struct {
	// Poll is the pause between two looks at the chain; 30 s. While there is more to read there is none. After a failure it doubles, up to
	// 10 minutes.
	Poll time.Duration
}

// Deps is what a deal tracker is made of. Signer, Store, Source, Now and Log are required.
type Deps struct {
	Signer capabilities.Signer
	Store  store.Driver
	Source Source
	// Watch tells which pieces' deals are kept; nil: all.
	Watch func(piece.Link) bool
	// Confidence is Finalized if it is empty.
	Confidence Confidence
	// Backfill is how many epochs before the chain's head the very first poll begins; 2,880, a day.
	Backfill int64
	// Overlap is how many final epochs a restart reads again; 900.
	Overlap int64
	// Step is how many epochs are read at a time; 2,880, what nodes answer for at once.
	Step int64
	// Parallel is how many rows are written at a time; 16. 1 where the order of things must not vary.
	Parallel int
	Timing   Timing
	Now      func() time.Time
	Log      *slog.Logger
}

// recheck is how many epochs behind the head are read again with each poll as long as they are not final: reorganisations are rarely deeper.
const recheck = 10

// Service is the deal tracker role.
type Service struct {
	Deps
	deals     store.Table[Deal]
	histories store.Table[History]
	cursors   store.Table[Cursor]

	mu      sync.Mutex
	started bool
}

// New returns a deal tracker.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("dealtracker: no signer")
	case d.Store == nil, d.Source == nil, d.Now == nil, d.Log == nil:
		return nil, errors.New("dealtracker: store, source, clock and log are required")
	case d.Source.Name() == "":
		return nil, errors.New("dealtracker: the source has no name")
	case d.Backfill < 0, d.Overlap < 0, d.Step < 0:
		return nil, errors.New("dealtracker: backfill, overlap and step are numbers of epochs, not below 0")
	}
	if err := cursorKey(d.Source.Name()).Check(); err != nil {
		return nil, fmt.Errorf("dealtracker: name of the source: %w", err)
	}
	switch d.Confidence {
	case "":
		d.Confidence = Finalized
	case Finalized, Seen:
	default:
		return nil, fmt.Errorf("dealtracker: confidence %q is neither %q nor %q", d.Confidence, Finalized, Seen)
	}
	setDefault(&d.Backfill, 2880)
	setDefault(&d.Overlap, 900)
	setDefault(&d.Step, 2880)
	setDefault(&d.Parallel, 16)
	setDefault(&d.Timing.Poll, 30*time.Second)
	return &Service{
		Deps:      d,
		deals:     store.NewTable[Deal](d.Store),
		histories: store.NewTable[History](d.Store),
		cursors:   store.NewTable[Cursor](d.Store),
	}, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Methods returns the capabilities that the deal tracker executes.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{deal.InfoAbility: s.info}
}

// info executes deal/info. Anyone may ask. A piece without deals, and one that nobody has heard of, have an empty list.
func (s *Service) info(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb deal.Info
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	ok := deal.InfoOK{Deals: deal.Deals{}}
	err := s.each(ctx, nb.Piece, func(d *Deal, known deal.Deal) { ok.Deals[d.ID] = known })
	if err != nil {
		return nil, err
	}
	return capabilities.Issue(s.Signer, inv.Link(), &ok, capabilities.Effects{})
}

// maxDeals bounds the deals of one piece that are told of: the first ones by id. Anybody may propose a deal for any piece.
const maxDeals = 1000

// each calls visit with the deals of a piece that the chain knows, in order of their ids.
func (s *Service) each(ctx context.Context, p piece.Link, visit func(*Deal, deal.Deal)) error {
	cur, err := s.cursors.Get(ctx, cursorKey(s.Source.Name()))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	deals, _, err := s.deals.Query(ctx, dealPartition(p), "", "", maxDeals)
	if err != nil {
		return err
	}
	for _, d := range deals {
		h, err := s.histories.Get(ctx, historyKey(d.Value.ID))
		if errors.Is(err, store.ErrNotFound) {
			continue // written a moment after the deal
		}
		if err != nil {
			return err
		}
		if known, ok := judge(&d.Value, &h.Value, &cur.Value, s.Confidence); ok {
			visit(&d.Value, known)
		}
	}
	return nil
}

// Receipt returns the conclusion of a task. Questions are answered and not kept, so there never is one: store.ErrNotFound.
func (s *Service) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, store.ErrNotFound
}

// Status tells which deals hold a piece, one entry per deal. store.ErrNotFound if there is none.
func (s *Service) Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error) {
	link, err := piece.FromCID(c)
	if err != nil {
		return nil, store.ErrNotFound
	}
	status := &capabilities.Status{Role: "dealtracker", CID: c.String()}
	err = s.each(ctx, link, func(d *Deal, known deal.Deal) {
		times := map[string]int64{}
		if known.Activation != 0 {
			times[deal.StatusActive] = s.Source.EpochTime(known.Activation) * 1000
		}
		if known.Status == deal.StatusTerminated || known.Status == deal.StatusExpired {
			times[known.Status] = s.Source.EpochTime(known.Expiration) * 1000
		}
		status.Aggregates = append(status.Aggregates, capabilities.AggregateStatus{
			Aggregate: d.Piece.String(), DealSize: d.Piece.PaddedSize(), Deal: d.ID,
			Waiting: capabilities.NewWaiting(known.Status, times, fmt.Sprintf("provider %s, by %s", d.Provider, d.Source), 0),
		})
	})
	if err != nil {
		return nil, err
	}
	if len(status.Aggregates) == 0 {
		return nil, store.ErrNotFound
	}
	return status, nil
}
