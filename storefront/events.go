package storefront

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Messages. Each names a row; what to do follows from the row.
type (
	submitMessage struct {
		Offer cid.Cid `cbor:"o"`
		Node  string  `cbor:"n,omitzero"` // see [Piece.Node]
	}
	// pieceMessage is one try at the next step of a piece. A message of an earlier try than the row's does nothing.
	pieceMessage struct {
		Key store.Key `cbor:"k"`
		Try int       `cbor:"t,omitzero"`
	}
	aggregateMessage struct {
		Key store.Key `cbor:"k"`
		Try int       `cbor:"t,omitzero"`
	}
	walkMessage struct {
		Key    store.Key `cbor:"k"` // the aggregate's row
		Cursor string    `cbor:"c,omitzero"`
	}
	blameMessage struct {
		Key    store.Key `cbor:"k"`
		Cursor string    `cbor:"c,omitzero"` // among those who offered it too
	}
	sweepMessage struct {
		Round uint64 `cbor:"r"`
	}
)

// ValidateQueue is the queue of validations: how many of its messages are handled at a time is how many contents providers are asked about.
const ValidateQueue = "validate"

// ImportQueue is the queue of copies into custody: how many of its messages are handled at a time is how many are made.
const ImportQueue = "import"

var (
	submitQueue     = store.NewQueue[submitMessage]("submit")
	validateQueue   = store.NewQueue[pieceMessage](ValidateQueue)
	importQueue     = store.NewQueue[pieceMessage](ImportQueue)
	computedQueue   = store.NewQueue[tasks.Arrival]("computed")
	pieceOfferQueue = store.NewQueue[pieceMessage]("piece-offer")
	equalsQueue     = store.NewQueue[pieceMessage]("equals")
	acceptedQueue   = store.NewQueue[tasks.Arrival]("piece-accepted")
	aggregateQueue  = store.NewQueue[tasks.Arrival]("aggregate")
	pullQueue       = store.NewQueue[aggregateMessage]("pull-aggregate")
	dealtQueue      = store.NewQueue[walkMessage]("dealt")
	sweepQueue      = store.NewQueue[sweepMessage]("sweep")
	blameQueue      = store.NewQueue[blameMessage]("blame")
	creditQueue     = store.NewQueue[pieceMessage]("credit")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		submitQueue.Name:     submitQueue.Handler(s.submitted),
		validateQueue.Name:   validateQueue.Handler(s.validate),
		importQueue.Name:     importQueue.Handler(s.importContent),
		computedQueue.Name:   computedQueue.Handler(s.computed),
		pieceOfferQueue.Name: pieceOfferQueue.Handler(s.offerPiece),
		equalsQueue.Name:     equalsQueue.Handler(s.claimEquals),
		acceptedQueue.Name:   acceptedQueue.Handler(s.pieceAccepted),
		aggregateQueue.Name:  aggregateQueue.Handler(s.aggregateConcluded),
		pullQueue.Name:       pullQueue.Handler(s.pullAggregate),
		dealtQueue.Name:      dealtQueue.Handler(s.dealt),
		sweepQueue.Name:      sweepQueue.Handler(s.sweep),
		blameQueue.Name:      blameQueue.Handler(s.blame),
		creditQueue.Name:     creditQueue.Handler(s.credit),
	}
}

// submitted follows an acknowledged offer: the piece's row is created, or shared if somebody offered the pair before.
func (s *Service) submitted(ctx context.Context, msg submitMessage) error {
	offer, err := s.ledger.Read(ctx, msg.Offer)
	if err != nil {
		return err
	}
	r := offer.Receipt
	if r == nil || len(r.Fork) != 1 {
		return fmt.Errorf("the record of offer %s is incomplete", msg.Offer)
	}
	var nb filecoin.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	nonce := offer.EffectNonce()
	key := pieceKey(nb.Piece, nb.Content, nonce)
	if err := s.ledger.Own(ctx, r.Join, key); err != nil {
		return err
	}
	ref := store.Record[Reference]{Key: contentKey(nb.Content, key), Value: Reference{key}}
	if _, err := s.references.Create(ctx, &ref, store.Effects{}); err != nil {
		return err
	}

	p := store.Record[Piece]{Key: key, Value: Piece{
		Piece: nb.Piece, Content: nb.Content, Nonce: nonce, Group: s.Group,
		Offer: msg.Offer, Agent: offer.Issuer.String(), Node: msg.Node, Submit: r.Fork[0], Accept: r.Join,
	}}
	p.Value.enter(Submitted, time.UnixMilli(offer.At))
	var fx store.Effects
	validateQueue.Send(&fx, pieceMessage{Key: key})
	created, err := s.pieces.Create(ctx, &p, fx)
	if err != nil {
		return err
	}
	if created || p.Value.Offer.Equals(msg.Offer) {
		return nil
	}
	by := store.Record[By]{Key: byKey(key, msg.Offer), Value: By{offer.Issuer.String(), offer.Resource(), offer.At}}
	if _, err := s.by.Create(ctx, &by, store.Effects{}); err != nil {
		return err
	}
	// First the offerer's row, then a look whether the pair is proven wrong: whoever proves it looks who offered after that, so one of the two
	// sees the other.
	again, err := s.pieces.Get(ctx, key)
	if err != nil {
		return err
	}
	if again.Value.State == Invalid {
		return s.wrong(ctx, by.Value.Agent, msg.Offer, &again.Value)
	}
	return s.revive(ctx, key, time.UnixMilli(offer.At))
}

// revive starts an expired piece again for an offer made since, be it the very one that was made before. Not one that the aggregator has ended: the
// receipts that lead there cannot be given again.
func (s *Service) revive(ctx context.Context, key store.Key, offered time.Time) error {
	_, err := s.pieces.Update(ctx, key, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != Expired || p.Value.PieceOffer.Defined() || offered.UnixMilli() < p.Value.Times[Expired] {
			return store.ErrUnchanged
		}
		p.Value.enter(Submitted, s.Now())
		validateQueue.Send(fx, pieceMessage{Key: key})
		return nil
	})
	return err
}

// current reads the piece of a message, and reports whether the message is of its present try in the state.
func (s *Service) current(ctx context.Context, msg pieceMessage, state State) (store.Record[Piece], bool, error) {
	p, err := s.pieces.Get(ctx, msg.Key)
	return p, err == nil && p.Value.State == state && p.Value.Tries <= msg.Try, err
}

// wait leaves a piece where it is, with the reason and a later try of the same step.
func (s *Service) wait(ctx context.Context, p store.Record[Piece], queue store.Queue[pieceMessage], first, limit time.Duration, reason string) error {
	return s.waitWith(ctx, p, queue, first, limit, reason, func(*Piece) {})
}

// waitWith is wait with a further change of the row.
func (s *Service) waitWith(ctx context.Context, p store.Record[Piece], queue store.Queue[pieceMessage], first, limit time.Duration, reason string,
	change func(*Piece)) error {
	state, try := p.Value.State, p.Value.Tries
	_, err := s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != state || p.Value.Tries != try {
			return store.ErrUnchanged
		}
		next := s.Now().Add(tasks.Backoff(try+1, first, limit))
		p.Value.wait(reason, next)
		change(&p.Value)
		queue.SendAt(fx, next, pieceMessage{Key: p.Key, Try: p.Value.Tries})
		return nil
	})
	return err
}

// waitingFor turns the error of a call into a reason that a user can read.
func (s *Service) waitingFor(what string, peer capabilities.Peer, err error) string {
	if u, ok := tasks.IsUnavailable(err); ok {
		if u.Accepted {
			return what + " is under way at " + peer.DID.String()
		}
		return fmt.Sprintf("%s: %s is not available: %s", what, peer.DID, u.Reason)
	}
	s.Log.Warn("a role could not be reached", "what", what, "peer", peer.DID, "err", err)
	return fmt.Sprintf("%s: %s cannot be reached", what, peer.DID)
}

func (s *Service) ownTask(ctx context.Context, link cid.Cid) (capabilities.Task, error) {
	kept, err := s.ledger.Read(ctx, link)
	return kept.Task, err
}

// offeredParts is how many indexes list the pieces that wait for piece/accept: all pieces enter and leave them, and a partition of an index takes only so many
// writes a second.
const offeredParts = 16

func offeredPart(part int) string { return fmt.Sprintf("offered/%02d", part) }

// offered lists a piece that waits for piece/accept, by when it is pulled.
func offered(key store.Key, pull time.Time) store.Listing {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key.Partition)) // never fails
	return store.Listing{Index: offeredPart(int(h.Sum32() % offeredParts)), Sort: at(pull)}
}

func at(t time.Time) string { return t.UTC().Format("20060102T150405.000") }

// offerPiece hands a validated piece to the aggregator, by the task that the receipt of filecoin/submit named.
func (s *Service) offerPiece(ctx context.Context, msg pieceMessage) error {
	p, ok, err := s.current(ctx, msg, Validated)
	if err == nil && p.Value.State == Offered {
		// A repetition: what came before may have ended between the commit and the look for the receipt.
		_, err = s.arrived(ctx, &p)
	}
	if err != nil || !ok {
		return err
	}
	task, err := s.ledger.Effect(ctx, p.Value.Submit, p.Value.PieceOffer)
	if err != nil {
		return err
	}
	r, conclusion, err := s.ledger.Execute(ctx, s.Aggregator.Conn, task)
	if err != nil {
		return s.wait(ctx, p, pieceOfferQueue, s.Timing.PeerRetry, 10*time.Minute, s.waitingFor("aggregation", s.Aggregator, err))
	}
	var result piececap.OfferOK
	if err := capabilities.ReadResult(r.Out, &result); err != nil {
		// A refusal that changed nothing there: it may pass when an operator has changed something.
		s.Log.Error("the aggregator refuses a piece", "piece", p.Value.Piece, "task", task.Link(), "err", err)
		return s.wait(ctx, p, pieceOfferQueue, time.Minute, time.Hour, "aggregation refused: "+err.Error())
	}
	if result.Piece != p.Value.Piece || !r.Join.Defined() {
		s.Log.Error("the aggregator acknowledged something else", "piece", p.Value.Piece, "task", task.Link(), "receipt", r.Link())
		return s.wait(ctx, p, pieceOfferQueue, time.Minute, time.Hour, "aggregation: the aggregator acknowledged something else")
	}
	if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
		return err
	}
	if _, err := s.ledger.Await(ctx, r.Join, nil, p.Key, acceptedQueue.Name, false); err != nil {
		return err
	}
	p, err = s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Validated {
			return store.ErrUnchanged
		}
		now := s.Now()
		p.Value.enter(Offered, now)
		p.Value.PieceAccept = r.Join
		p.Listing = offered(p.Key, now.Add(s.Timing.Pull))
		return nil
	})
	if err != nil {
		return err
	}
	_, err = s.arrived(ctx, &p)
	return err
}

// arrived follows the receipt of piece/accept if it is here already, and reports whether it is. Its message may have come before the piece waited
// for it, when there was nothing to do, or have failed for the last time.
func (s *Service) arrived(ctx context.Context, p *store.Record[Piece]) (bool, error) {
	rec, err := s.ledger.Get(ctx, p.Value.PieceAccept)
	if err != nil || !rec.Concluded {
		return false, err
	}
	return true, s.pieceAccepted(ctx, tasks.Arrival{Task: p.Value.PieceAccept, Owner: p.Key})
}

// pieceAccepted follows the receipt of piece/accept: the piece is in an aggregate, and the proof of it is checked before it is believed.
func (s *Service) pieceAccepted(ctx context.Context, msg tasks.Arrival) error {
	p, err := s.pieces.Get(ctx, msg.Owner)
	if err != nil {
		return err
	}
	// While the piece is still validated, offerPiece is about to look for the receipt itself. One that is aggregated already may lack what comes
	// after that: all of it can be repeated.
	if p.Value.State != Offered && p.Value.State != Aggregated || !p.Value.PieceAccept.Equals(msg.Task) {
		return nil
	}
	kept, err := s.ledger.Read(ctx, msg.Task)
	if err != nil {
		return err
	}
	r := kept.Receipt
	ok, err := checkInclusion(kept, &p.Value)
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) && f.Name == capabilities.QuarantineEnded {
		return s.endApart(ctx, p, f)
	}
	if err != nil {
		s.Log.Error("the aggregator's proof does not hold", "piece", p.Value.Piece, "task", msg.Task, "err", err)
		return s.note(ctx, p.Key, Offered, "aggregation: the aggregator's receipt does not hold: "+err.Error())
	}

	aggKey := aggregateKey(ok.Aggregate, r.Join)
	if err := s.awaitAggregate(ctx, aggKey, ok.Aggregate, kept); err != nil {
		return err
	}
	if _, err := s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Offered {
			return store.ErrUnchanged
		}
		p.Value.enter(Aggregated, s.Now())
		p.Value.Aggregate = aggKey
		p.Value.Attempts++
		p.Listing = store.Listing{}
		return nil
	}); err != nil {
		return err
	}
	// First the member's row, then a look whether the deal is there: whoever writes the deal queries the members after that, so one
	// of the two sees the other.
	member := store.Record[Reference]{Key: memberKey(r.Join, p.Key), Value: Reference{p.Key}}
	if _, err := s.references.Create(ctx, &member, store.Effects{}); err != nil {
		return err
	}
	agg, err := s.aggregates.Get(ctx, aggKey)
	if err != nil {
		return err
	}
	if agg.Value.Dealt {
		return s.finish(ctx, agg.Value, []store.Key{p.Key})
	}
	return nil
}

// awaitAggregate makes sure that an aggregate has a row and that the receipt of its aggregate/offer, which a receipt of piece/accept has joined, is waited
// for. Both stay, so this is done once for the many pieces of an aggregate, as far as this process remembers.
func (s *Service) awaitAggregate(ctx context.Context, key store.Key, link piece.Link, accept tasks.Entry) error {
	if s.awaited.Has(key) {
		return nil
	}
	join := accept.Receipt.Join
	agg := store.Record[Aggregate]{Key: key, Value: Aggregate{Aggregate: link, Offer: join, Since: s.Now().UnixMilli()}}
	var fx store.Effects
	pullQueue.SendAt(&fx, s.Now().Add(s.Timing.Pull), aggregateMessage{Key: key})
	if _, err := s.aggregates.Create(ctx, &agg, fx); err != nil {
		return err
	}
	var offer *capabilities.Task
	if t, err := accept.Effect(join); err == nil {
		offer = &t
	}
	if _, err := s.ledger.Await(ctx, join, offer, key, aggregateQueue.Name, true); err != nil {
		return err
	}
	s.awaited.Add(key)
	return nil
}

// endApart ends a piece that the aggregator has ended: it was kept apart from others, and too little came to make an aggregate. That says something about
// those who offered it, not about the pair, whose filecoin/accept is everybody's: so this is no failure of it.
func (s *Service) endApart(ctx context.Context, p store.Record[Piece], f *capabilities.Failure) error {
	_, err := s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Offered {
			return store.ErrUnchanged
		}
		p.Value.enter(Expired, s.Now())
		p.Value.Reason = "quarantine: " + f.Message + "; offer it again with a nonce"
		p.Listing = store.Listing{}
		return nil
	})
	return err
}

func checkInclusion(kept tasks.Entry, p *Piece) (ok piececap.AcceptOK, err error) {
	r := kept.Receipt
	if r == nil {
		return ok, errors.New("it is not there")
	}
	var nb piececap.Accept
	if err := kept.Caveats(&nb); err != nil {
		return ok, err
	}
	if nb.Piece != p.Piece || nb.Group != p.Group {
		return ok, fmt.Errorf("it is of piece %s in group %s", nb.Piece, nb.Group)
	}
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		return ok, err
	}
	if ok.Piece != p.Piece {
		return ok, fmt.Errorf("it proves another piece, %s", ok.Piece)
	}
	if !r.Join.Defined() {
		return ok, errors.New("it does not link aggregate/offer")
	}
	return ok, ok.Verify()
}

// note shows a reason on a piece that waits in a state without a timer of its own.
func (s *Service) note(ctx context.Context, key store.Key, state State, reason string) error {
	_, err := s.pieces.Update(ctx, key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != state || p.Value.Reason == reason {
			return store.ErrUnchanged
		}
		p.Value.Reason = reason
		return nil
	})
	return err
}

// timer is the row of a clock that the storefront keeps for itself, under `timer/{name}`.
type timer struct {
	Round uint64 `cbor:"r"`
	Next  int64  `cbor:"n"`
}

var sweepKey = store.Key{Partition: "timer/sweep"}

// Start arms the timers that no other message arms. Every replica calls it at its start; repeating it does nothing.
func (s *Service) Start(ctx context.Context) error {
	_, err := s.timers.Update(ctx, sweepKey, func(t *store.Record[timer], fx *store.Effects) error {
		// A timer long overdue has lost its message, a dead letter perhaps: arm it again.
		if t.Exists() && s.Now().Before(time.UnixMilli(t.Value.Next).Add(time.Hour)) {
			return store.ErrUnchanged
		}
		s.armSweep(t, fx, s.Timing.Pull/2)
		return nil
	})
	return err
}

func (s *Service) armSweep(t *store.Record[timer], fx *store.Effects, pause time.Duration) {
	next := s.Now().Add(pause)
	t.Value.Round++
	t.Value.Next = next.UnixMilli()
	sweepQueue.SendAt(fx, next, sweepMessage{t.Value.Round})
}

// sweepPage is how many pieces of each part a sweep looks at before the next one.
const sweepPage = 32

// sweepTime is about how long one message of a sweep works. Where the aggregator is slow, or away, and much is due, that ends the message before its pages:
// a process that dies takes little with it.
const sweepTime = 2 * time.Second

// sweep pulls the receipts of pieces that were offered long ago. It reads only those that are due, and goes on in further messages while there are more.
func (s *Service) sweep(ctx context.Context, msg sweepMessage) error {
	t, err := s.timers.Get(ctx, sweepKey)
	if err != nil {
		return err
	}
	if t.Value.Round != msg.Round {
		return nil
	}
	began := s.Now()
	due := at(began)
	more := false
	for turn := range uint64(offeredParts) {
		part := int((msg.Round + turn) % offeredParts) // each comes first in its turn
		recs, _, err := s.pieces.Scan(ctx, offeredPart(part), "", "", sweepPage)
		if err != nil {
			return err
		}
		for i, rec := range recs {
			if rec.Listing.Sort > due {
				break
			}
			if s.Now().Sub(began) > sweepTime {
				more = true
				break
			}
			if err := s.pullPiece(ctx, rec); err != nil {
				return err
			}
			more = more || i == sweepPage-1
		}
	}
	_, err = s.timers.Update(ctx, sweepKey, func(t *store.Record[timer], fx *store.Effects) error {
		if t.Value.Round != msg.Round {
			return store.ErrUnchanged
		}
		pause := s.Timing.Pull / 2
		if more {
			pause = 0
		}
		s.armSweep(t, fx, pause)
		return nil
	})
	return err
}

// pullLimit is the longest pause between two questions for the receipt of a piece.
const pullLimit = 24 * time.Hour

// pullPiece asks for the receipt of a piece that was offered long ago, as the index has it. Most pieces wait for their aggregate to fill, and their receipts
// are pushed: each pause is four times the one before.
func (s *Service) pullPiece(ctx context.Context, listed store.Record[Piece]) error {
	reason, here := "waiting for an aggregate", false
	outcome, err := s.ledger.Pull(ctx, s.Aggregator.Conn, listed.Value.PieceAccept)
	if err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
		reason = s.waitingFor("aggregation", s.Aggregator, err)
	}
	if outcome != tasks.Kept {
		if here, err = s.arrived(ctx, &listed); err != nil {
			return err
		}
	}
	_, err = s.pieces.Update(ctx, listed.Key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Offered {
			return store.ErrUnchanged
		}
		next := s.Now().Add(tasks.Backoff(2*p.Value.Tries+3, s.Timing.Pull, max(pullLimit, s.Timing.Pull)))
		if here { // and it did not help: that is the reason
			reason = p.Value.Reason
		}
		p.Value.wait(reason, next)
		p.Listing = offered(p.Key, next)
		return nil
	})
	return err
}
