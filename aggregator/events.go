package aggregator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Messages. Each names a row; what to do follows from the row.
type (
	pieceMessage struct {
		Offer cid.Cid `cbor:"o"`
	}
	tickMessage struct {
		Lane  string `cbor:"l"`
		Round uint64 `cbor:"r"`
	}
	planMessage struct {
		Lane string `cbor:"l"`
		Plan string `cbor:"p"`
	}
	aggregateMessage struct {
		Key store.Key `cbor:"k"`
		Try int       `cbor:"t,omitzero"`
	}
)

var (
	pieceQueue   = store.NewQueue[pieceMessage]("piece")
	tickQueue    = store.NewQueue[tickMessage]("lane")
	planQueue    = store.NewQueue[planMessage]("plan")
	walkQueue    = store.NewQueue[aggregateMessage]("walk")
	offerQueue   = store.NewQueue[aggregateMessage]("aggregate-offer")
	pullQueue    = store.NewQueue[aggregateMessage]("pull-aggregate")
	acceptQueue  = store.NewQueue[tasks.Arrival]("aggregate-accepted")
	deliverQueue = store.NewQueue[tasks.Send]("deliver")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		pieceQueue.Name:   pieceQueue.Handler(s.offered),
		tickQueue.Name:    tickQueue.Handler(s.tick),
		planQueue.Name:    planQueue.Handler(s.plan),
		walkQueue.Name:    walkQueue.Handler(s.walk),
		offerQueue.Name:   offerQueue.Handler(s.offerAggregate),
		pullQueue.Name:    pullQueue.Handler(s.pullAggregate),
		acceptQueue.Name:  acceptQueue.Handler(s.aggregateAccepted),
		deliverQueue.Name: deliverQueue.Handler(s.courier.Deliver),
	}
}

// Start arms what no message arms. The aggregator's timers begin with the first piece of a lane and never end.
func (s *Service) Start(context.Context) error { return nil }

// offered follows an acknowledged piece: its row is created, pending in its lane.
func (s *Service) offered(ctx context.Context, msg pieceMessage) error {
	rec, err := s.ledger.Get(ctx, msg.Offer)
	if err != nil {
		return err
	}
	m, err := rec.Decode()
	if err != nil {
		return err
	}
	offer, ok := capabilities.FindTask(m, msg.Offer)
	r := m.Receipt(msg.Offer)
	if !ok || r == nil {
		return fmt.Errorf("the record of offer %s is incomplete", msg.Offer)
	}
	accept, ok := capabilities.FindTask(m, r.Join)
	if !ok {
		return fmt.Errorf("the record of offer %s lacks its effect", msg.Offer)
	}
	var nb piececap.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	storefront, _, _ := strings.Cut(nb.Group, "/")
	lane := "common"
	if sf, ok := s.Storefronts(storefront); ok && sf.Lane != "" {
		lane = sf.Lane
	}
	nonce := effectNonce(offer.UCAN)
	key := pieceKey(nb.Piece, nb.Group, nonce)
	if err := s.ledger.Own(ctx, accept, key); err != nil {
		return err
	}
	p := Piece{Piece: nb.Piece, Group: nb.Group, Storefront: storefront, Nonce: nonce, Lane: lane,
		Offer: msg.Offer, Accept: r.Join, Since: rec.At}
	row := store.Record[Piece]{Key: key, Value: p, Listing: p.listing()}
	if _, err := s.pieces.Create(ctx, &row, store.Effects{}); err != nil {
		return err
	}
	return s.enterLane(ctx, lane, nb.Piece.Height())
}

// enterLane makes sure that the lane ticks and looks at pieces of this height.
func (s *Service) enterLane(ctx context.Context, lane string, height uint8) error {
	_, err := s.lanes.Update(ctx, laneKey(lane), func(l *store.Record[Lane], fx *store.Effects) error {
		if l.Exists() && l.Value.Heights&(1<<height) != 0 {
			return store.ErrUnchanged
		}
		l.Value.Heights |= 1 << height
		if !l.Exists() {
			l.Value.Name = lane
			s.arm(l, fx)
		}
		return nil
	})
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
	counted := lane.Value
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
	var (
		links    []piece.Link
		content  uint64
		distinct = map[piece.Link]bool{}
		fronts   = map[string]bool{}
		oldest   int64
	)
	for _, p := range claimed {
		if !distinct[p.Value.Piece] {
			distinct[p.Value.Piece] = true
			links = append(links, p.Value.Piece)
			content += p.Value.Piece.PaddedSize()
		}
		fronts[p.Value.Storefront] = true
		if oldest == 0 || p.Value.Since < oldest {
			oldest = p.Value.Since
		}
	}
	if content < minimum(plan.DealSize) {
		return nil, nil
	}
	segment.SortDescending(links)
	tree, err := segment.Build(plan.DealSize, links)
	if err != nil {
		return nil, fmt.Errorf("building the aggregate of plan %s: %w", planName(&plan), err)
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

// tree returns an aggregate with all its nodes, from the order that was written.
func (s *Service) tree(ctx context.Context, order cid.Cid) (builtAggregate, error) {
	s.mu.Lock()
	built := s.built
	s.mu.Unlock()
	if built.order.Defined() && built.order.Equals(order) {
		return built, nil
	}
	built = builtAggregate{order: order}
	if err := readBlob(ctx, s.Store, order, &built.members); err != nil {
		return built, err
	}
	tree, err := segment.Build(built.members.DealSize, built.members.Pieces)
	if err != nil {
		return built, fmt.Errorf("rebuilding an aggregate from its order: %w", err)
	}
	built.tree = tree
	s.mu.Lock()
	s.built = built
	s.mu.Unlock()
	return built, nil
}

// walk issues piece/accept for the next page of an aggregate's members, and sends the receipts to their storefronts.
func (s *Service) walk(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	built, err := s.tree(ctx, agg.Value.Order)
	if err != nil {
		return err
	}
	offer, err := agg.Value.offerTask()
	if err != nil {
		return err
	}
	start := agg.Value.Walked
	end := min(start+page, len(built.members.Members))
	if start >= end {
		return nil
	}
	type issued struct {
		key   store.Key
		entry store.Entry
	}
	packs, lists := map[string]*store.PackWriter{}, map[string][]issued{}
	for _, m := range built.members.Members[start:end] {
		p, err := s.pieces.Get(ctx, m.Key)
		if err != nil {
			return err
		}
		conclusion, err := s.accepted(ctx, &p.Value, built.tree, m.Entry, offer)
		if err != nil {
			return fmt.Errorf("issuing piece/accept of %s: %w", p.Value.Piece, err)
		}
		front := p.Value.Storefront
		if packs[front] == nil {
			packs[front] = new(store.PackWriter)
		}
		entry, err := tasks.Pack(packs[front], conclusion)
		if err != nil {
			return err
		}
		lists[front] = append(lists[front], issued{m.Key, entry})
	}
	for _, front := range agg.Value.Storefronts {
		if packs[front] == nil {
			continue
		}
		pack, err := packs[front].Put(ctx, s.Store)
		if err != nil {
			return err
		}
		err = store.Each(ctx, s.Parallel, lists[front], func(i issued) error {
			_, err := s.pieces.Update(ctx, i.key, func(p *store.Record[Piece], _ *store.Effects) error {
				if p.Value.AcceptPacked.Pack.Defined() {
					return store.ErrUnchanged
				}
				p.Value.Aggregate, p.Value.AcceptPacked = msg.Key, tasks.Packed{Pack: pack, Entry: i.entry}
				p.Value.Aggregated = agg.Value.Times[Offered]
				return nil
			})
			return err
		})
		if err != nil {
			return err
		}
		id := fmt.Sprintf("accepted/%s/%s/%08d", agg.Value.Aggregate, agg.Value.Plan, start)
		if err := s.courier.Enqueue(ctx, front, id, tasks.Delivery{Packs: []cid.Cid{pack}}); err != nil {
			return err
		}
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.Walked >= end {
			return store.ErrUnchanged
		}
		a.Value.Walked = end
		if end < len(built.members.Members) {
			walkQueue.Send(fx, aggregateMessage{Key: msg.Key, Try: end})
		}
		return nil
	})
	return err
}

// accepted is the conclusion of piece/accept for a member of an aggregate.
func (s *Service) accepted(ctx context.Context, p *Piece, tree *segment.Aggregate, entry int, offer capabilities.Task) (*capabilities.Message, error) {
	rec, err := s.ledger.Get(ctx, p.Accept)
	if err != nil {
		return nil, err
	}
	m, err := rec.Decode()
	if err != nil {
		return nil, err
	}
	accept, ok := capabilities.FindTask(m, p.Accept)
	if !ok {
		return nil, fmt.Errorf("the record of task %s is incomplete", p.Accept)
	}
	proof, err := tree.Proof(entry)
	if err != nil {
		return nil, err
	}
	fx := capabilities.Effects{Join: &offer}
	r, err := capabilities.Issue(s.Signer, accept.Link(), &piececap.AcceptOK{
		Piece: p.Piece, Aggregate: tree.Link(), Inclusion: capabilities.Inclusion{InclusionProof: proof},
	}, fx)
	if err != nil {
		return nil, err
	}
	return capabilities.Conclusion(r, accept, fx), nil
}

// offerAggregate hands an aggregate to the dealer, by the task that was signed when it was built.
func (s *Service) offerAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.State != Offered || agg.Value.Tries > msg.Try {
		return nil
	}
	task, err := agg.Value.offerTask()
	if err != nil {
		return err
	}
	list, err := store.ReadBlob(ctx, s.Store, agg.Value.Pieces, 32<<20)
	if err != nil {
		return err
	}
	r, conclusion, err := s.ledger.Execute(ctx, s.Dealer.Conn, task, capabilities.Block{CID: agg.Value.Pieces, Bytes: list})
	if err != nil {
		return s.waitForDealer(ctx, agg, "dealing: "+s.reason(err))
	}
	var result aggregatecap.OfferOK
	if err := capabilities.ReadResult(r.Out, &result); err != nil {
		s.Log.Error("the dealer refuses an aggregate", "aggregate", agg.Value.Aggregate, "task", task.Link(), "err", err)
		if f := (*capabilities.Failure)(nil); errors.As(err, &f) && f.Name == capabilities.AggregateMismatch {
			if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
				return err
			}
			return s.fail(ctx, msg.Key, f.Error())
		}
		return s.waitForDealer(ctx, agg, "dealing refused: "+err.Error())
	}
	if !r.Join.Defined() || result.Aggregate != agg.Value.Aggregate {
		s.Log.Error("the dealer acknowledged something else", "aggregate", agg.Value.Aggregate, "task", task.Link(), "receipt", r.Link())
		return s.waitForDealer(ctx, agg, "dealing: the dealer acknowledged something else")
	}
	if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
		return err
	}
	if _, err := s.ledger.Await(ctx, r.Join, nil, msg.Key, acceptQueue.Name, false); err != nil {
		return err
	}
	if _, err := s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Offered {
			return store.ErrUnchanged
		}
		a.Value.enter(Published, s.Now())
		a.Value.Accept = r.Join
		pullQueue.SendAt(fx, s.Now().Add(s.Timing.Pull), aggregateMessage{Key: msg.Key})
		return nil
	}); err != nil {
		return err
	}
	// The receipt may have come between the two commits, when its message found nothing to do.
	arrival := tasks.Arrival{Task: r.Join, Owner: msg.Key}
	if rec, err := s.ledger.Get(ctx, r.Join); err != nil || !rec.Concluded {
		return err
	}
	return s.aggregateAccepted(ctx, arrival)
}

func (s *Service) reason(err error) string {
	if u, ok := tasks.IsUnavailable(err); ok {
		return fmt.Sprintf("%s is not available: %s", s.Dealer.DID, u.Reason)
	}
	s.Log.Warn("the dealer could not be reached", "peer", s.Dealer.DID, "err", err)
	return fmt.Sprintf("%s cannot be reached", s.Dealer.DID)
}

func (s *Service) waitForDealer(ctx context.Context, agg store.Record[Aggregate], reason string) error {
	try := agg.Value.Tries
	_, err := s.aggregates.Update(ctx, agg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Offered || a.Value.Tries != try {
			return store.ErrUnchanged
		}
		a.Value.Tries++
		next := s.Now().Add(tasks.Backoff(a.Value.Tries, s.Timing.PeerRetry, 10*time.Minute))
		a.Value.Reason, a.Value.Next = reason, next.UnixMilli()
		offerQueue.SendAt(fx, next, aggregateMessage{Key: a.Key, Try: a.Value.Tries})
		return nil
	})
	return err
}

func (s *Service) fail(ctx context.Context, key store.Key, reason string) error {
	_, err := s.aggregates.Update(ctx, key, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State == Dealt || a.Value.State == Failed {
			return store.ErrUnchanged
		}
		a.Value.enter(Failed, s.Now())
		a.Value.Reason = reason
		return nil
	})
	return err
}

// aggregateAccepted follows the receipt of aggregate/accept: it goes to every storefront with a piece in the aggregate.
func (s *Service) aggregateAccepted(ctx context.Context, msg tasks.Arrival) error {
	agg, err := s.aggregates.Get(ctx, msg.Owner)
	if err != nil {
		return err
	}
	if agg.Value.State != Published || !agg.Value.Accept.Equals(msg.Task) {
		return nil
	}
	rec, err := s.ledger.Get(ctx, msg.Task)
	if err != nil {
		return err
	}
	m, err := rec.Decode()
	if err != nil {
		return err
	}
	var accepted aggregatecap.AcceptOK
	result := capabilities.ReadResult(m.Receipt(msg.Task).Out, &accepted)
	if result == nil && accepted.Aggregate != agg.Value.Aggregate {
		s.Log.Error("the dealer reports a deal for another aggregate", "aggregate", agg.Value.Aggregate, "other", accepted.Aggregate, "task", msg.Task)
		result = fmt.Errorf("the dealer reports a deal for another aggregate, %s", accepted.Aggregate)
	}
	for _, front := range agg.Value.Storefronts {
		id := fmt.Sprintf("concluded/%s/%s", agg.Value.Aggregate, agg.Value.Plan)
		if err := s.courier.Enqueue(ctx, front, id, tasks.Delivery{Tasks: []cid.Cid{agg.Value.Offer, msg.Task}}); err != nil {
			return err
		}
	}
	if result != nil {
		return s.fail(ctx, msg.Owner, result.Error())
	}
	_, err = s.aggregates.Update(ctx, msg.Owner, func(a *store.Record[Aggregate], _ *store.Effects) error {
		if a.Value.State != Published {
			return store.ErrUnchanged
		}
		a.Value.enter(Dealt, s.Now())
		a.Value.Deal = accepted.DealID
		return nil
	})
	return err
}

// pullAggregate asks the dealer for the receipt of an aggregate that was not pushed: the safety net, one timer per aggregate.
func (s *Service) pullAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.State != Published || agg.Value.Pulls > msg.Try {
		return nil
	}
	if _, err := s.ledger.Pull(ctx, s.Dealer.Conn, agg.Value.Accept); err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
		s.Log.Warn("pulling the receipt of an aggregate", "aggregate", agg.Value.Aggregate, "task", agg.Value.Accept, "err", err)
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.State != Published || a.Value.Pulls > msg.Try {
			return store.ErrUnchanged
		}
		a.Value.Pulls++
		next := s.Now().Add(tasks.Backoff(a.Value.Pulls, s.Timing.Pull, 6*time.Hour))
		a.Value.Next = next.UnixMilli()
		pullQueue.SendAt(fx, next, aggregateMessage{Key: a.Key, Try: a.Value.Pulls})
		return nil
	})
	return err
}
