package aggregator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// noPlan is what the row of an ended piece holds in place of a plan: no plan can claim it.
const noPlan = "none"

// endOverdue ends the next pieces of a lane that is kept apart which have waited too long there for the volume of an aggregate, and reports whether there
// were any. Each has its receipt of piece/accept then, which says so: a pure function of the row, so that making it again makes the same one.
//
// A piece is claimed first, as by a plan, so that no plan takes it; and it stays in the index until its receipt is on the way to its storefront, so that
// whoever ticks next goes on from wherever this one stopped.
func (s *Service) endOverdue(ctx context.Context, l *Lane, oldest time.Time) (ended bool, err error) {
	before := s.Now().Add(-s.Timing.Quarantine)
	front, apart := strings.CutPrefix(l.Name, quarantineLanes)
	if !apart || l.Plan != "" || l.Waiting == "" || oldest.IsZero() || oldest.After(before) {
		return false, nil
	}
	overdue, err := s.claimOverdue(ctx, l, before)
	if err != nil || len(overdue) == 0 {
		return false, err
	}
	var (
		pack    store.PackWriter
		entries = make(map[store.Key]store.Entry, len(overdue))
	)
	for _, p := range overdue {
		conclusion, err := s.ending(ctx, &p.Value)
		if err != nil {
			return false, fmt.Errorf("ending piece %s: %w", p.Value.Piece, err)
		}
		if entries[p.Key], err = tasks.Pack(&pack, conclusion); err != nil {
			return false, err
		}
	}
	c, err := pack.Put(ctx, s.Store)
	if err != nil {
		return false, err
	}
	if err := s.courier.Enqueue(ctx, front, "ended/"+c.String(), tasks.Delivery{Packs: []cid.Cid{c}}); err != nil {
		return false, err
	}
	s.Log.Warn("pieces have waited too long in quarantine", "lane", l.Name, "count", len(overdue), "waiting", l.Waiting)
	return true, store.Each(ctx, s.Parallel, overdue, func(p store.Record[Piece]) error {
		_, err := s.pieces.UpdateFrom(ctx, p, func(r *store.Record[Piece], _ *store.Effects) error {
			if r.Value.AcceptPacked.Pack.Defined() {
				return store.ErrUnchanged
			}
			r.Value.AcceptPacked = tasks.Packed{Pack: c, Entry: entries[p.Key]}
			r.Listing = store.Listing{}
			return nil
		})
		return err
	})
}

// claimOverdue claims the oldest pieces of a lane, a page at most, that were acknowledged before a time.
func (s *Service) claimOverdue(ctx context.Context, l *Lane, before time.Time) (overdue []store.Record[Piece], err error) {
	now := s.Now().UnixMilli()
	for h := range uint8(64) {
		if l.Heights&(1<<h) == 0 {
			continue
		}
		listed, _, err := s.pieces.Scan(ctx, laneIndex(l.Name, h), "", "", page)
		if err != nil {
			return nil, err
		}
		for _, rec := range listed {
			if len(overdue) == page {
				return overdue, nil
			}
			if age(rec.Listing.Sort).After(before) {
				continue
			}
			rec, err := s.pieces.Update(ctx, rec.Key, func(p *store.Record[Piece], _ *store.Effects) error {
				if !p.Exists() || p.Value.Plan != "" {
					return store.ErrUnchanged
				}
				p.Value.Plan, p.Value.Ended = noPlan, now
				return nil
			})
			if err != nil {
				return nil, err
			}
			if rec.Value.Plan == noPlan && !rec.Value.AcceptPacked.Pack.Defined() { // the index may be stale
				overdue = append(overdue, rec)
			}
		}
	}
	return overdue, nil
}

// ending is how a piece ends in quarantine.
func (p *Piece) ending() *capabilities.Failure {
	return capabilities.NewQuarantineEnded(p.Piece, p.Group, time.UnixMilli(p.Since))
}

// ending is the conclusion of piece/accept for a piece that has ended.
func (s *Service) ending(ctx context.Context, p *Piece) (*capabilities.Message, error) {
	accept, err := s.ledger.Effect(ctx, p.Offer, p.Accept)
	if err != nil {
		return nil, err
	}
	r, err := capabilities.IssueFailure(s.Signer, accept.Link(), p.ending(), capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return capabilities.Conclusion(r, accept, capabilities.Effects{}), nil
}
