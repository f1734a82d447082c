package aggregator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
)

// lost is how long after its time a tick has lost its message for good, a dead letter perhaps: the lane is given another one.
const lost = time.Hour

// enterLane makes sure that the lane ticks and looks at pieces of this height.
func (s *Service) enterLane(ctx context.Context, lane string, height uint8) error {
	seen := store.Key{Partition: lane, Sort: strconv.Itoa(int(height))}
	if s.entered.Has(seen) {
		return nil // a lane keeps its heights, and ticks
	}
	_, err := s.lanes.Update(ctx, laneKey(lane), func(l *store.Record[Lane], fx *store.Effects) error {
		ticks := l.Exists() && s.Now().Sub(time.UnixMilli(l.Value.Next)) < lost
		if ticks && l.Value.Heights&(1<<height) != 0 {
			return store.ErrUnchanged
		}
		l.Value.Name = lane
		l.Value.Heights |= 1 << height
		if !ticks {
			s.arm(l, fx)
		}
		return nil
	})
	if err == nil {
		s.entered.Add(seen)
	}
	return err
}

// arm sends the lane's next tick.
func (s *Service) arm(l *store.Record[Lane], fx *store.Effects) {
	next := s.Now().Add(s.Timing.Tick)
	l.Value.Round++
	l.Value.Next = next.UnixMilli()
	tickQueue.SendAt(fx, next, tickMessage{l.Value.Name, l.Value.Round})
}

// stuck is how long a plan may take before its message is sent again: it may have become a dead letter.
const stuck = 30 * time.Minute

// tick counts what came into a lane since the last one, and closes the lane if it is full enough or its oldest piece is overdue.
func (s *Service) tick(ctx context.Context, msg tickMessage) error {
	lane, err := s.lanes.Get(ctx, laneKey(msg.Lane))
	if err != nil {
		return err
	}
	if lane.Value.Round != msg.Round {
		return nil
	}
	oldest, err := s.count(ctx, &lane.Value)
	if err != nil {
		return err
	}
	ended, err := s.endOverdue(ctx, &lane.Value, oldest)
	if err != nil {
		return err
	}
	counted := lane.Value
	if ended {
		counted.Counts, counted.Cursors = nil, nil // count again
	}
	_, err = s.lanes.Update(ctx, lane.Key, func(l *store.Record[Lane], fx *store.Effects) error {
		if l.Value.Round != msg.Round {
			return store.ErrUnchanged
		}
		if l.Value.Seq == counted.Seq && l.Value.Plan == counted.Plan { // no plan came between: the counts hold
			l.Value.Counts, l.Value.Cursors = counted.Counts, counted.Cursors
		}
		now := s.Now()
		switch {
		case l.Value.Plan != "":
			if now.Sub(time.UnixMilli(l.Value.Planned)) > stuck {
				l.Value.Planned = now.UnixMilli()
				planQueue.Send(fx, planMessage{l.Value.Name, l.Value.Plan})
			}
		case s.due(&l.Value, oldest, now):
			l.Value.Seq++
			l.Value.Plan, l.Value.Planned = planID(l.Value.Seq), now.UnixMilli()
			planQueue.Send(fx, planMessage{l.Value.Name, l.Value.Plan})
		}
		s.arm(l, fx)
		return nil
	})
	return err
}

// due decides by hints; the plan decides by rows.
func (s *Service) due(l *Lane, oldest, now time.Time) bool {
	if now.Before(time.UnixMilli(l.NotBefore)) {
		return false
	}
	content := l.content()
	if content >= s.Ladder.Full() {
		return true
	}
	if oldest.IsZero() || now.Sub(oldest) < s.Timing.Budget {
		l.Waiting, l.Since = "", 0
		return false
	}
	if least := s.Ladder.Minimum(); content < least {
		if l.Waiting == "" {
			l.Since = now.UnixMilli()
		}
		l.Waiting = fmt.Sprintf("volume: %d padded bytes are missing for the smallest aggregate", least-content)
		if now.After(time.UnixMilli(l.Recount)) { // the counts are hints, and something overdue hangs on them: count again
			l.Counts, l.Cursors = nil, nil
			l.Recount = now.Add(s.Timing.Budget / 20).UnixMilli()
		}
		return false
	}
	return true
}

const page = 1000

// count brings the counts of a lane up to date, and returns when its oldest pending piece was acknowledged. It reads what came since the last
// count, and the first entry of each height.
func (s *Service) count(ctx context.Context, l *Lane) (oldest time.Time, err error) {
	horizon := s.Now().Add(-s.Timing.settle())
	counts, cursors := map[uint8]int64{}, map[uint8]string{}
	for h := range uint8(64) {
		if l.Heights&(1<<h) == 0 {
			continue
		}
		counts[h], cursors[h] = l.Counts[h], l.Cursors[h]
		index := laneIndex(l.Name, h)
		head, _, err := s.pieces.Scan(ctx, index, "", "", 1)
		if err != nil {
			return oldest, err
		}
		if len(head) == 0 {
			counts[h] = 0
			continue
		}
		if t := age(head[0].Listing.Sort); oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
		from, cursor := cursors[h], ""
		for {
			recs, next, err := s.pieces.Scan(ctx, index, from, cursor, page)
			if err != nil {
				return oldest, err
			}
			for _, r := range recs {
				if r.Listing.Sort > cursors[h] && age(r.Listing.Sort).Before(horizon) {
					counts[h]++
				}
			}
			if len(recs) > 0 {
				last := recs[len(recs)-1].Listing.Sort
				if !age(last).Before(horizon) {
					next = ""
					last = "1/" + timestamp(horizon.UnixMilli())
				}
				from, cursor = "", next
				if next == "" {
					cursors[h] = max(cursors[h], last)
				}
			}
			if next == "" {
				break
			}
		}
	}
	l.Counts, l.Cursors = counts, cursors
	return oldest, nil
}

// lanePending reads a lane's index for the policy, checking each row before it counts.
type lanePending struct {
	ctx     context.Context
	s       *Service
	lane    Lane
	plan    string
	pages   map[uint8][]store.Record[Piece]
	cursors map[uint8]string
	started map[uint8]bool
}

func (p *lanePending) Heights() (heights []uint8) {
	for h := range uint8(64) {
		if p.lane.Heights&(1<<h) != 0 {
			heights = append(heights, h)
		}
	}
	return heights
}

func (p *lanePending) Next(h uint8) (Candidate, bool, error) {
	for {
		for len(p.pages[h]) > 0 {
			rec := p.pages[h][0]
			p.pages[h] = p.pages[h][1:]
			// The index may be stale. A row that another plan has claimed since then would only be lost later.
			if rec.Value.Plan != "" && rec.Value.Plan != p.plan {
				continue
			}
			return Candidate{ID: rec.Key.Partition + "\x00" + rec.Key.Sort, Piece: rec.Value.Piece, Order: rec.Listing.Sort}, true, nil
		}
		if p.started[h] && p.cursors[h] == "" {
			return Candidate{}, false, nil
		}
		recs, next, err := p.s.pieces.Scan(p.ctx, laneIndex(p.lane.Name, h), "", p.cursors[h], page)
		if err != nil {
			return Candidate{}, false, err
		}
		p.pages[h], p.cursors[h], p.started[h] = recs, next, true
	}
}

// plan goes on with a plan from where its row says it stands.
func (s *Service) plan(ctx context.Context, msg planMessage) error {
	lane, err := s.lanes.Get(ctx, laneKey(msg.Lane))
	if err != nil {
		return err
	}
	if lane.Value.Plan != msg.Plan {
		return nil // done before
	}
	plan, err := s.plans.Get(ctx, planKey(msg.Lane, msg.Plan))
	if errors.Is(err, store.ErrNotFound) {
		plan, err = s.draft(ctx, lane.Value, msg.Plan)
	}
	if err != nil {
		return err
	}
	if !plan.Exists() {
		return nil // nothing to claim; the lane has been freed
	}
	for !plan.Value.Done {
		if plan.Value.Claimed < plan.Value.Count {
			err = s.claim(ctx, &plan)
		} else {
			err = s.build(ctx, &plan)
		}
		if err != nil {
			return err
		}
	}
	return s.free(ctx, plan.Value)
}

// draft chooses candidates and writes the plan's row, which from then on says what the plan is.
func (s *Service) draft(ctx context.Context, lane Lane, id string) (store.Record[Plan], error) {
	pending := &lanePending{ctx: ctx, s: s, lane: lane, plan: id, pages: map[uint8][]store.Record[Piece]{},
		cursors: map[uint8]string{}, started: map[uint8]bool{}}
	selection, why, err := Select(s.Ladder, pending)
	if err != nil {
		return store.Record[Plan]{}, err
	}
	if why != "" {
		_, err := s.lanes.Update(ctx, laneKey(lane.Name), func(l *store.Record[Lane], _ *store.Effects) error {
			if l.Value.Plan != id {
				return store.ErrUnchanged
			}
			now := s.Now()
			l.Value.Plan = ""
			l.Value.Waiting, l.Value.Since = why, now.UnixMilli()
			l.Value.NotBefore = now.Add(s.Timing.Budget / 20).UnixMilli()
			l.Value.Counts, l.Value.Cursors = nil, nil // they were off: count again
			return nil
		})
		return store.Record[Plan]{}, err
	}
	var list candidates
	for _, c := range selection.Pieces {
		partition, sort, _ := strings.Cut(c.ID, "\x00")
		list.Keys = append(list.Keys, store.Key{Partition: partition, Sort: sort})
	}
	blob, err := putBlob(ctx, s.Store, list)
	if err != nil {
		return store.Record[Plan]{}, err
	}
	plan := store.Record[Plan]{Key: planKey(lane.Name, id), Value: Plan{
		Lane: lane.Name, ID: id, DealSize: selection.DealSize, Candidates: blob, Count: len(list.Keys)}}
	_, err = s.plans.Create(ctx, &plan, store.Effects{})
	return plan, err
}

// planName is what a claimed row holds: unique over all lanes.
func planName(p *Plan) string { return p.Lane + "/" + p.ID }

// claim swaps the plan into the next page of candidate rows.
func (s *Service) claim(ctx context.Context, plan *store.Record[Plan]) error {
	var list candidates
	if err := readBlob(ctx, s.Store, plan.Value.Candidates, &list); err != nil {
		return err
	}
	end := min(plan.Value.Claimed+page, len(list.Keys))
	name := planName(&plan.Value)
	err := store.Each(ctx, s.Parallel, list.Keys[plan.Value.Claimed:end], func(key store.Key) error {
		_, err := s.pieces.Update(ctx, key, func(p *store.Record[Piece], _ *store.Effects) error {
			if !p.Exists() || p.Value.Plan != "" {
				return store.ErrUnchanged
			}
			p.Value.Plan = name
			p.Listing = store.Listing{}
			return nil
		})
		return err
	})
	if err != nil {
		return err
	}
	return s.advance(ctx, plan, func(p *Plan) { p.Claimed = max(p.Claimed, end) })
}

// advance moves a plan's row on; somebody else may have moved it further.
func (s *Service) advance(ctx context.Context, plan *store.Record[Plan], step func(*Plan)) error {
	rec, err := s.plans.Update(ctx, plan.Key, func(p *store.Record[Plan], _ *store.Effects) error {
		if p.Value.Done {
			return store.ErrUnchanged
		}
		step(&p.Value)
		return nil
	})
	if err == nil {
		*plan = rec
	}
	return err
}

// build makes the aggregate of the rows that were claimed. Two builders of one plan make the same one.
func (s *Service) build(ctx context.Context, plan *store.Record[Plan]) error {
	var list candidates
	if err := readBlob(ctx, s.Store, plan.Value.Candidates, &list); err != nil {
		return err
	}
	name := planName(&plan.Value)
	var claimed []store.Record[Piece]
	for _, key := range list.Keys {
		p, err := s.pieces.Get(ctx, key)
		if err != nil {
			return err
		}
		if p.Value.Plan == name {
			claimed = append(claimed, p)
		}
	}
	agg, err := s.assemble(ctx, plan.Value, claimed)
	if err != nil {
		return err
	}
	if agg == nil { // others were faster with too many of them
		if err := s.release(ctx, name, claimed); err != nil {
			return err
		}
		return s.advance(ctx, plan, func(p *Plan) { p.Done = true })
	}
	var fx store.Effects
	walkQueue.Send(&fx, aggregateMessage{Key: agg.Key})
	offerQueue.Send(&fx, aggregateMessage{Key: agg.Key})
	if _, err := s.aggregates.Create(ctx, agg, fx); err != nil {
		return err
	}
	return s.advance(ctx, plan, func(p *Plan) { p.Done, p.Aggregate = true, agg.Key })
}

func (s *Service) assemble(ctx context.Context, plan Plan, claimed []store.Record[Piece]) (*store.Record[Aggregate], error) {
	b, err := segment.NewBuilder(plan.DealSize)
	if err != nil {
		return nil, err
	}
	var oldest int64
	fronts := map[string]bool{}
	for _, p := range claimed {
		// Equal links share a segment.
		if err := b.Add(p.Value.Piece); err != nil && !errors.Is(err, segment.ErrDuplicate) {
			return nil, fmt.Errorf("building the aggregate of plan %s: %w", planName(&plan), err)
		}
		fronts[p.Value.Storefront] = true
		if oldest == 0 || p.Value.Since < oldest {
			oldest = p.Value.Since
		}
	}
	content := b.Content()
	if content < minimum(plan.DealSize) {
		return nil, nil
	}
	tree, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("building the aggregate of plan %s: %w", planName(&plan), err)
	}
	links := make([]piece.Link, 0, tree.Len())
	for _, p := range tree.Pieces() {
		links = append(links, p)
	}
	list := members{DealSize: plan.DealSize, Pieces: links}
	for _, p := range claimed {
		entry, _ := tree.EntryOf(p.Value.Piece)
		list.Members = append(list.Members, member{p.Key, entry})
	}
	order, err := putBlob(ctx, s.Store, list)
	if err != nil {
		return nil, err
	}
	pieces := aggregatecap.Pieces(links)
	if err := store.PutBlob(ctx, s.Store, store.Blob(pieces)); err != nil {
		return nil, err
	}
	nonce, err := s.previousAccept(ctx, tree.Link(), planName(&plan))
	if err != nil {
		return nil, err
	}
	offer, err := capabilities.Invoke(s.Signer, s.Dealer.DID, s.Dealer.DID.String(),
		&aggregatecap.Offer{Aggregate: tree.Link(), Pieces: pieces.CID}, s.Dealer.Terms(s.Signer.DID(), nonce))
	if err != nil {
		return nil, err
	}
	agg := &store.Record[Aggregate]{Key: aggregateKey(tree.Link(), plan.Lane, plan.ID), Value: Aggregate{
		Aggregate: tree.Link(), Plan: planName(&plan), DealSize: plan.DealSize, Content: content, Count: len(links),
		Order: order, Pieces: pieces.CID, Offer: offer.Link(), OfferTask: capabilities.Pending(offer).Encode(), Oldest: oldest,
	}}
	for f := range fronts {
		agg.Value.Storefronts = append(agg.Value.Storefronts, f)
	}
	slices.Sort(agg.Value.Storefronts)
	agg.Value.enter(Offered, s.Now())
	return agg, nil
}

// previousAccept returns the nonce for an aggregate that was offered before: the CID of its latest aggregate/accept task. An aggregate
// offered for the first time has none.
func (s *Service) previousAccept(ctx context.Context, link piece.Link, plan string) (nonce string, err error) {
	var latest int64
	for a, err := range s.aggregates.All(ctx, aggregatePartition(link), "") {
		if err != nil {
			return "", err
		}
		if a.Value.Plan != plan && a.Value.Accept.Defined() && a.Value.Times[Offered] >= latest {
			nonce, latest = a.Value.Accept.String(), a.Value.Times[Offered]
		}
	}
	return nonce, nil
}

func (s *Service) release(ctx context.Context, plan string, claimed []store.Record[Piece]) error {
	for _, rec := range claimed {
		if _, err := s.pieces.Update(ctx, rec.Key, func(p *store.Record[Piece], _ *store.Effects) error {
			if p.Value.Plan != plan {
				return store.ErrUnchanged
			}
			p.Value.Plan = ""
			p.Listing = p.Value.listing()
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// free ends a plan: the lane may make the next one.
func (s *Service) free(ctx context.Context, plan Plan) error {
	taken := map[uint8]int64{}
	if plan.Aggregate != (store.Key{}) {
		agg, err := s.aggregates.Get(ctx, plan.Aggregate)
		if err != nil {
			return err
		}
		var list members
		if err := readBlob(ctx, s.Store, agg.Value.Order, &list); err != nil {
			return err
		}
		for _, m := range list.Members {
			taken[list.Pieces[m.Entry].Height()]++
		}
	}
	_, err := s.lanes.Update(ctx, laneKey(plan.Lane), func(l *store.Record[Lane], _ *store.Effects) error {
		if l.Value.Plan != plan.ID {
			return store.ErrUnchanged
		}
		l.Value.Plan, l.Value.Waiting, l.Value.Since, l.Value.NotBefore = "", "", 0, 0
		for h, n := range taken {
			if l.Value.Counts[h] != 0 {
				l.Value.Counts[h] -= n
			}
		}
		return nil
	})
	return err
}
