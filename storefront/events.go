package storefront

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Messages. Each names a row; what to do follows from the row.
type (
	submitMessage struct {
		Offer cid.Cid `cbor:"o"`
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
	sweepMessage struct {
		Round uint64 `cbor:"r"`
	}
)

var (
	submitQueue     = store.NewQueue[submitMessage]("submit")
	validateQueue   = store.NewQueue[pieceMessage]("validate")
	computedQueue   = store.NewQueue[tasks.Arrival]("computed")
	pieceOfferQueue = store.NewQueue[pieceMessage]("piece-offer")
	equalsQueue     = store.NewQueue[pieceMessage]("equals")
	acceptedQueue   = store.NewQueue[tasks.Arrival]("piece-accepted")
	aggregateQueue  = store.NewQueue[tasks.Arrival]("aggregate")
	pullQueue       = store.NewQueue[aggregateMessage]("pull-aggregate")
	dealtQueue      = store.NewQueue[walkMessage]("dealt")
	sweepQueue      = store.NewQueue[sweepMessage]("sweep")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		submitQueue.Name:     submitQueue.Handler(s.submitted),
		validateQueue.Name:   validateQueue.Handler(s.validate),
		computedQueue.Name:   computedQueue.Handler(s.computed),
		pieceOfferQueue.Name: pieceOfferQueue.Handler(s.offerPiece),
		equalsQueue.Name:     equalsQueue.Handler(s.claimEquals),
		acceptedQueue.Name:   acceptedQueue.Handler(s.pieceAccepted),
		aggregateQueue.Name:  aggregateQueue.Handler(s.aggregateConcluded),
		pullQueue.Name:       pullQueue.Handler(s.pullAggregate),
		dealtQueue.Name:      dealtQueue.Handler(s.dealt),
		sweepQueue.Name:      sweepQueue.Handler(s.sweep),
	}
}

// submitted follows an acknowledged offer: the piece's row is created, or shared if somebody offered the pair before.
func (s *Service) submitted(ctx context.Context, msg submitMessage) error {
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
	if !ok || r == nil || len(r.Fork) != 1 {
		return fmt.Errorf("the record of offer %s is incomplete", msg.Offer)
	}
	var nb filecoin.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	nonce := effectNonce(offer.UCAN)
	key := pieceKey(nb.Piece, nb.Content, nonce)
	for _, link := range []cid.Cid{r.Fork[0], r.Join} {
		task, ok := capabilities.FindTask(m, link)
		if !ok {
			return fmt.Errorf("the record of offer %s lacks the effect %s", msg.Offer, link)
		}
		if err := s.ledger.Own(ctx, task, key); err != nil {
			return err
		}
	}
	ref := store.Record[Reference]{Key: contentKey(nb.Content, key), Value: Reference{key}}
	if _, err := s.references.Create(ctx, &ref, store.Effects{}); err != nil {
		return err
	}

	p := store.Record[Piece]{Key: key, Value: Piece{
		Piece: nb.Piece, Content: nb.Content, Nonce: nonce, Group: s.Group,
		Offer: msg.Offer, Submit: r.Fork[0], Accept: r.Join,
	}}
	p.Value.enter(Submitted, time.UnixMilli(rec.At))
	var fx store.Effects
	validateQueue.Send(&fx, pieceMessage{Key: key})
	created, err := s.pieces.Create(ctx, &p, fx)
	if err != nil {
		return err
	}
	if !created && !p.Value.Offer.Equals(msg.Offer) {
		by := store.Record[By]{Key: byKey(key, msg.Offer), Value: By{offer.Issuer.String(), offer.Resource(), rec.At}}
		if _, err := s.by.Create(ctx, &by, store.Effects{}); err != nil {
			return err
		}
		if err := s.revive(ctx, key, rec.At); err != nil {
			return err
		}
	}
	return s.ledger.Unlist(ctx, msg.Offer)
}

// revive starts an expired piece again for an offer made since.
func (s *Service) revive(ctx context.Context, key store.Key, offeredAt int64) error {
	_, err := s.pieces.Update(ctx, key, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != Expired || offeredAt < p.Value.Times[Expired] {
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
	state, try := p.Value.State, p.Value.Tries
	_, err := s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != state || p.Value.Tries != try {
			return store.ErrUnchanged
		}
		next := s.Now().Add(tasks.Backoff(try+1, first, limit))
		p.Value.wait(reason, next)
		queue.SendAt(fx, next, pieceMessage{Key: p.Key, Try: p.Value.Tries})
		return nil
	})
	return err
}

// validate computes the piece of the content's bytes near where they lie, and compares. Only that comparison ends the pair; content that
// cannot be had makes it wait.
func (s *Service) validate(ctx context.Context, msg pieceMessage) error {
	p, ok, err := s.current(ctx, msg, Submitted)
	if err != nil || !ok {
		return err
	}
	submit, err := s.ownTask(ctx, p.Value.Submit)
	if err != nil {
		return err
	}
	nonce := effectNonce(submit.UCAN)
	verdict, err := s.verdicts.Get(ctx, verdictKey(p.Value.Content))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	// What verified bytes gave before is a fact. A nonce asks to compute a negative verdict once more.
	if verdict.Exists() && (nonce == "" || verdict.Value.Piece == p.Value.Piece) {
		return s.judge(ctx, p, submit, verdict.Value)
	}

	content, err := s.Custody.Stat(ctx, p.Value.Content)
	if errors.Is(err, ErrNoContent) {
		if s.Now().Sub(time.UnixMilli(p.Value.Times[Submitted])) >= s.Timing.ContentWindow {
			return s.expire(ctx, p.Key)
		}
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, "content-unavailable: it has not been stored here")
	}
	if err != nil {
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, "content-unavailable: "+err.Error())
	}
	self := s.Signer.DID()
	task, err := capabilities.Invoke(s.Signer, s.Compute.DID, s.Compute.DID.String(),
		&computecap.PieceCID{Content: p.Value.Content}, s.Compute.Terms(self, nonce))
	if err != nil {
		return err
	}
	waiting, err := s.ledger.Await(ctx, task.Link(), &task, p.Key, computedQueue.Name, false)
	if err != nil {
		return err
	}
	var r *capabilities.Receipt
	if waiting.Concluded {
		m, err := waiting.Decode()
		if err != nil {
			return err
		}
		r = m.Receipt(task.Link())
	} else {
		claim, err := capabilities.Invoke(s.Signer, s.Compute.DID, self.String(), &assert.Location{
			Content: assert.Content{Link: p.Value.Content}, Location: []string{content.URL},
		}, capabilities.Terms{Expiration: s.Now().Add(time.Hour)})
		if err != nil {
			return err
		}
		var conclusion *capabilities.Message
		r, conclusion, err = s.ledger.Execute(ctx, s.Compute.Conn, task, claim.Block())
		if err != nil {
			return s.wait(ctx, p, validateQueue, s.Timing.PeerRetry, 10*time.Minute, s.waitingFor("validation", s.Compute, err))
		}
		if r.Out.Error == nil {
			if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
				return err
			}
		}
	}
	var computed computecap.PieceCIDOK
	if err := capabilities.ReadResult(r.Out, &computed); err != nil {
		// Not found, or not supported by this provider: nothing is proven about the pair.
		if s.Now().Sub(time.UnixMilli(p.Value.Times[Submitted])) >= s.Timing.ContentWindow {
			return s.expire(ctx, p.Key)
		}
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, "content-unavailable: "+err.Error())
	}
	v := store.Record[Verdict]{Key: verdictKey(p.Value.Content), Value: Verdict{
		Piece: computed.Piece, Task: task.Link(), Provider: s.Compute.DID.String(), At: s.Now().UnixMilli()}}
	fresh := v.Value
	if created, err := s.verdicts.Create(ctx, &v, store.Effects{}); err != nil {
		return err
	} else if !created && v.Value.Piece != computed.Piece {
		s.Log.Error("two verdicts differ for one content", "content", p.Value.Content, "piece", v.Value.Piece, "provider", v.Value.Provider,
			"other", computed.Piece, "by", s.Compute.DID, "task", task.Link())
	}
	return s.judge(ctx, p, submit, fresh)
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
	rec, err := s.ledger.Get(ctx, link)
	if err != nil {
		return capabilities.Task{}, err
	}
	m, err := rec.Decode()
	if err != nil {
		return capabilities.Task{}, err
	}
	t, ok := capabilities.FindTask(m, link)
	if !ok {
		return capabilities.Task{}, fmt.Errorf("task %s is not in its own record", link)
	}
	return t, nil
}

func (s *Service) expire(ctx context.Context, key store.Key) error {
	_, err := s.pieces.Update(ctx, key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		p.Value.enter(Expired, s.Now())
		p.Value.Reason = "content-unavailable: it did not come in time; store it and offer the piece again"
		return nil
	})
	return err
}

// judge issues the receipt of filecoin/submit, and that of filecoin/accept too if the pair is proven wrong, in one commit.
func (s *Service) judge(ctx context.Context, p store.Record[Piece], submit capabilities.Task, v Verdict) error {
	validation, err := s.ownTask(ctx, v.Task)
	if err != nil {
		return err
	}
	fx := capabilities.Effects{Fork: []capabilities.Task{validation}}
	if v.Piece != p.Value.Piece {
		return s.refuse(ctx, p, submit, fx, v)
	}
	offer, err := capabilities.Invoke(s.Signer, s.Aggregator.DID, s.Aggregator.DID.String(),
		&piececap.Offer{Piece: p.Value.Piece, Group: p.Value.Group}, s.Aggregator.Terms(s.Signer.DID(), effectNonce(submit.UCAN)))
	if err != nil {
		return err
	}
	fx.Join = &offer
	r, err := capabilities.Issue(s.Signer, submit.Link(), &filecoin.PieceOK{Piece: p.Value.Piece}, fx)
	if err != nil {
		return err
	}
	conclusion := capabilities.Conclusion(r, submit, fx).Encode()
	_, err = s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], effects *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		p.Value.enter(Validated, s.Now())
		p.Value.SubmitReceipt, p.Value.Validation, p.Value.PieceOffer = conclusion, v.Task, offer.Link()
		pieceOfferQueue.Send(effects, pieceMessage{Key: p.Key})
		equalsQueue.Send(effects, pieceMessage{Key: p.Key})
		return nil
	})
	return err
}

func (s *Service) refuse(ctx context.Context, p store.Record[Piece], submit capabilities.Task, fx capabilities.Effects, v Verdict) error {
	accept, err := s.ownTask(ctx, p.Value.Accept)
	if err != nil {
		return err
	}
	mismatch := capabilities.Mismatch{Content: p.Value.Content, Piece: p.Value.Piece, Computed: v.Piece}
	submitReceipt, err := capabilities.IssueFailure(s.Signer, submit.Link(), capabilities.NewInvalidPieceCID(mismatch), fx)
	if err != nil {
		return err
	}
	acceptReceipt, err := capabilities.IssueFailure(s.Signer, accept.Link(), capabilities.NewInvalidContentPiece(mismatch), capabilities.Effects{})
	if err != nil {
		return err
	}
	_, err = s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		p.Value.enter(Invalid, s.Now())
		p.Value.Reason = capabilities.NewInvalidContentPiece(mismatch).Message
		p.Value.Validation = v.Task
		p.Value.SubmitReceipt = capabilities.Conclusion(submitReceipt, submit, fx).Encode()
		p.Value.AcceptReceipt = capabilities.Conclusion(acceptReceipt, accept, capabilities.Effects{}).Encode()
		return nil
	})
	return err
}

// computed follows a verdict that was pushed: the piece that waits for it tries at once.
func (s *Service) computed(ctx context.Context, msg tasks.Arrival) error {
	p, err := s.pieces.Get(ctx, msg.Owner)
	if err != nil {
		return err
	}
	return s.validate(ctx, pieceMessage{Key: msg.Owner, Try: p.Value.Tries})
}

// claimEquals publishes that content and piece are the same bytes. Nothing waits for it.
func (s *Service) claimEquals(ctx context.Context, msg pieceMessage) error {
	p, err := s.pieces.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	self := s.Signer.DID()
	claim, err := capabilities.Invoke(s.Signer, self, self.String(),
		&assert.Equals{Content: assert.Content{Link: p.Value.Content}, Equals: p.Value.Piece.CID()}, capabilities.Terms{})
	if err != nil {
		return err
	}
	rec := store.Record[Claim]{Key: claimKey(p.Value.Content, assert.EqualsAbility, p.Value.Piece.String()), Value: Claim{claim.Block().Bytes}}
	_, err = s.claims.Create(ctx, &rec, store.Effects{})
	return err
}

// offeredIndex lists the pieces that wait for piece/accept, by when it is pulled.
const offeredIndex = "offered"

func at(t time.Time) string { return t.UTC().Format("20060102T150405.000") }

// offerPiece hands a validated piece to the aggregator, by the task that the receipt of filecoin/submit named.
func (s *Service) offerPiece(ctx context.Context, msg pieceMessage) error {
	p, ok, err := s.current(ctx, msg, Validated)
	if err != nil || !ok {
		return err
	}
	submit, err := (&tasks.Record{Message: p.Value.SubmitReceipt}).Decode()
	if err != nil {
		return err
	}
	task, ok := capabilities.FindTask(submit, p.Value.PieceOffer)
	if !ok {
		return fmt.Errorf("the receipt of %s lacks its effect piece/offer", p.Value.Submit)
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
	if _, err := s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Validated {
			return store.ErrUnchanged
		}
		now := s.Now()
		p.Value.enter(Offered, now)
		p.Value.PieceAccept = r.Join
		p.Listing = store.Listing{Index: offeredIndex, Sort: at(now.Add(s.Timing.Pull))}
		return nil
	}); err != nil {
		return err
	}
	// The receipt may have come between the two commits, when its message found nothing to do.
	arrival := tasks.Arrival{Task: r.Join, Owner: p.Key}
	if rec, err := s.ledger.Get(ctx, arrival.Task); err != nil || !rec.Concluded {
		return err
	}
	return s.pieceAccepted(ctx, arrival)
}

// pieceAccepted follows the receipt of piece/accept: the piece is in an aggregate, and the proof of it is checked before it is believed.
func (s *Service) pieceAccepted(ctx context.Context, msg tasks.Arrival) error {
	p, err := s.pieces.Get(ctx, msg.Owner)
	if err != nil {
		return err
	}
	// While the piece is still validated, offerPiece is about to look for the receipt itself.
	if p.Value.State != Offered || !p.Value.PieceAccept.Equals(msg.Task) {
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
	r := m.Receipt(msg.Task)
	ok, err := checkInclusion(m, r, &p.Value)
	if err != nil {
		s.Log.Error("the aggregator's proof does not hold", "piece", p.Value.Piece, "task", msg.Task, "err", err)
		return s.note(ctx, p.Key, Offered, "aggregation: the aggregator's receipt does not hold: "+err.Error())
	}

	aggKey := aggregateKey(ok.Aggregate, r.Join)
	agg := store.Record[Aggregate]{Key: aggKey, Value: Aggregate{Aggregate: ok.Aggregate, Offer: r.Join, Since: s.Now().UnixMilli()}}
	var fx store.Effects
	pullQueue.SendAt(&fx, s.Now().Add(s.Timing.Pull), aggregateMessage{Key: aggKey})
	if _, err := s.aggregates.Create(ctx, &agg, fx); err != nil {
		return err
	}
	var offer *capabilities.Task
	if t, ok := capabilities.FindTask(m, r.Join); ok {
		offer = &t
	}
	if _, err := s.ledger.Await(ctx, r.Join, offer, aggKey, aggregateQueue.Name, true); err != nil {
		return err
	}
	if _, err := s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], _ *store.Effects) error {
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
	agg, err = s.aggregates.Get(ctx, aggKey)
	if err != nil {
		return err
	}
	if agg.Value.Dealt {
		return s.finish(ctx, agg.Value, []store.Key{p.Key})
	}
	return nil
}

func checkInclusion(m *capabilities.Message, r *capabilities.Receipt, p *Piece) (ok piececap.AcceptOK, err error) {
	task, found := capabilities.FindTask(m, r.Ran)
	if !found {
		return ok, errors.New("it came without its invocation")
	}
	var nb piececap.Accept
	if err := task.Caveats(&nb); err != nil {
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

// aggregateConcluded follows the receipts of aggregate/offer and aggregate/accept.
func (s *Service) aggregateConcluded(ctx context.Context, msg tasks.Arrival) error {
	rec, err := s.ledger.Get(ctx, msg.Task)
	if err != nil {
		return err
	}
	m, err := rec.Decode()
	if err != nil {
		return err
	}
	task, ok := capabilities.FindTask(m, msg.Task)
	r := m.Receipt(msg.Task)
	if !ok || r == nil {
		return fmt.Errorf("the record of task %s is incomplete", msg.Task)
	}
	var accepted aggregatecap.AcceptOK
	provider := ""
	if task.Can() == aggregatecap.AcceptAbility && capabilities.ReadResult(r.Out, &accepted) == nil {
		provider = s.providerOf(ctx, accepted)
	}
	_, err = s.aggregates.Update(ctx, msg.Owner, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if !a.Exists() || a.Value.Dealt {
			return store.ErrUnchanged
		}
		if task.Can() == aggregatecap.OfferAbility && r.Out.Error == nil {
			if a.Value.Accept.Defined() || !r.Join.Defined() {
				return store.ErrUnchanged
			}
			a.Value.Accept = r.Join
			return nil
		}
		err := capabilities.ReadResult(r.Out, &accepted)
		switch {
		case err != nil:
			a.Value.Failure = err.Error()
		case accepted.Aggregate != a.Value.Aggregate:
			a.Value.Failure = fmt.Sprintf("the dealer reports a deal for another aggregate, %s", accepted.Aggregate)
		default:
			a.Value.Accept, a.Value.Deal, a.Value.Provider, a.Value.Dealt, a.Value.Failure = msg.Task, accepted.DealMetadata, provider, true, ""
		}
		dealtQueue.Send(fx, walkMessage{Key: a.Key})
		return nil
	})
	return err
}

// providerOf asks the deal tracker who the provider of a deal is: no receipt of the chain names it, but filecoin/info does. Nothing depends on the
// answer, so a tracker that has none is not asked again.
func (s *Service) providerOf(ctx context.Context, accepted aggregatecap.AcceptOK) string {
	if s.Tracker.Conn == nil {
		return ""
	}
	ask, err := capabilities.Invoke(s.Signer, s.Tracker.DID, s.Signer.DID().String(), &deal.Info{Piece: accepted.Aggregate},
		capabilities.Terms{Expiration: s.Now().Add(time.Minute)})
	if err != nil {
		return ""
	}
	r, _, err := s.ledger.Execute(ctx, s.Tracker.Conn, ask)
	if err != nil {
		s.Log.Warn("asking the deal tracker for a provider", "aggregate", accepted.Aggregate, "err", err)
		return ""
	}
	var ok deal.InfoOK
	if capabilities.ReadResult(r.Out, &ok) != nil {
		return ""
	}
	return ok.Deals[accepted.DealID].Provider
}

// walkPage is how many pieces of an aggregate one message of a walk concludes; their receipts share a pack.
const walkPage = 500

// dealt walks the members of an aggregate and concludes their offers.
func (s *Service) dealt(ctx context.Context, msg walkMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	members, next, err := s.references.Query(ctx, memberPartition(agg.Value.Offer), "", msg.Cursor, walkPage)
	if err != nil {
		return err
	}
	keys := make([]store.Key, len(members))
	for i, m := range members {
		keys[i] = m.Value.Key
	}
	if agg.Value.Dealt {
		err = s.finish(ctx, agg.Value, keys)
	} else {
		for _, k := range keys {
			err = errors.Join(err, s.note(ctx, k, Aggregated, "its aggregate failed: "+agg.Value.Failure))
		}
	}
	if err != nil || next == "" {
		return err
	}
	// The row is rewritten as it is: only to send the message for the next page.
	_, err = s.aggregates.Update(ctx, msg.Key, func(_ *store.Record[Aggregate], fx *store.Effects) error {
		dealtQueue.Send(fx, walkMessage{Key: msg.Key, Cursor: next})
		return nil
	})
	return err
}

// finish issues filecoin/accept for pieces of an aggregate that is in a deal. The receipts follow from what is stored, so making them
// again makes the same ones.
func (s *Service) finish(ctx context.Context, agg Aggregate, keys []store.Key) error {
	type concluded struct {
		key   store.Key
		entry store.Entry
	}
	var (
		pack store.PackWriter
		list []concluded
	)
	for _, key := range keys {
		p, err := s.pieces.Get(ctx, key)
		if err != nil {
			return err
		}
		if p.Value.State != Aggregated {
			continue
		}
		conclusion, err := s.accepted(ctx, &p.Value, agg)
		if err != nil {
			return fmt.Errorf("concluding piece %s: %w", p.Value.Piece, err)
		}
		entry, err := tasks.Pack(&pack, conclusion)
		if err != nil {
			return err
		}
		list = append(list, concluded{key, entry})
	}
	if len(list) == 0 {
		return nil
	}
	c, err := pack.Put(ctx, s.Store)
	if err != nil {
		return err
	}
	for _, item := range list {
		if _, err := s.pieces.Update(ctx, item.key, func(p *store.Record[Piece], _ *store.Effects) error {
			if p.Value.State != Aggregated {
				return store.ErrUnchanged
			}
			p.Value.enter(Dealt, s.Now())
			p.Value.AcceptPacked = tasks.Packed{Pack: c, Entry: item.entry}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// accepted is the conclusion of filecoin/accept for a piece in a deal.
func (s *Service) accepted(ctx context.Context, p *Piece, agg Aggregate) (*capabilities.Message, error) {
	accept, err := s.ownTask(ctx, p.Accept)
	if err != nil {
		return nil, err
	}
	rec, err := s.ledger.Get(ctx, p.PieceAccept)
	if err != nil {
		return nil, err
	}
	m, err := rec.Decode()
	if err != nil {
		return nil, err
	}
	var included piececap.AcceptOK
	if err := capabilities.ReadResult(m.Receipt(p.PieceAccept).Out, &included); err != nil {
		return nil, err
	}
	r, err := capabilities.Issue(s.Signer, accept.Link(), &filecoin.AcceptOK{
		Piece: p.Piece, Aggregate: included.Aggregate, Inclusion: included.Inclusion, Aux: agg.Deal,
	}, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return capabilities.Conclusion(r, accept, capabilities.Effects{}), nil
}

// pullAggregate asks for the receipts of an aggregate that were not pushed: the safety net, one timer per aggregate.
func (s *Service) pullAggregate(ctx context.Context, msg aggregateMessage) error {
	agg, err := s.aggregates.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if agg.Value.Dealt || agg.Value.Failure != "" || agg.Value.Tries > msg.Try {
		return nil
	}
	link := agg.Value.Offer
	if agg.Value.Accept.Defined() {
		link = agg.Value.Accept
	}
	outcome, err := s.ledger.Pull(ctx, s.Aggregator.Conn, link)
	if err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
		s.Log.Warn("pulling the receipt of an aggregate", "aggregate", agg.Value.Aggregate, "task", link, "err", err)
	}
	_, err = s.aggregates.Update(ctx, msg.Key, func(a *store.Record[Aggregate], fx *store.Effects) error {
		if a.Value.Tries > msg.Try {
			return store.ErrUnchanged
		}
		a.Value.Tries++
		pause := tasks.Backoff(a.Value.Tries, s.Timing.Pull, 6*time.Hour)
		if outcome == tasks.Kept {
			pause = s.Timing.PeerRetry // the next link of the chain may be there as well
		}
		pullQueue.SendAt(fx, s.Now().Add(pause), aggregateMessage{Key: a.Key, Try: a.Value.Tries})
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
		// A timer long overdue has lost its message (a dead letter that was dropped): arm it again.
		if t.Exists() && s.Now().Before(time.UnixMilli(t.Value.Next).Add(24*time.Hour)) {
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

// sweep pulls the receipts of pieces that were offered long ago. It reads only those that are due.
func (s *Service) sweep(ctx context.Context, msg sweepMessage) error {
	t, err := s.timers.Get(ctx, sweepKey)
	if err != nil {
		return err
	}
	if t.Value.Round != msg.Round {
		return nil
	}
	due := at(s.Now())
	recs, _, err := s.pieces.Scan(ctx, offeredIndex, "", "", walkPage)
	if err != nil {
		return err
	}
	more := len(recs) == walkPage
	for _, rec := range recs {
		if rec.Listing.Sort > due {
			more = false
			break
		}
		if err := s.pullPiece(ctx, rec.Key); err != nil {
			return err
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

func (s *Service) pullPiece(ctx context.Context, key store.Key) error {
	p, err := s.pieces.Get(ctx, key)
	if err != nil {
		return err
	}
	if p.Value.State != Offered {
		return nil
	}
	reason := "waiting for an aggregate"
	if _, err := s.ledger.Pull(ctx, s.Aggregator.Conn, p.Value.PieceAccept); err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
		reason = s.waitingFor("aggregation", s.Aggregator, err)
	}
	_, err = s.pieces.Update(ctx, key, func(p *store.Record[Piece], _ *store.Effects) error {
		if p.Value.State != Offered {
			return store.ErrUnchanged
		}
		next := s.Now().Add(tasks.Backoff(p.Value.Tries+1, s.Timing.Pull, 6*time.Hour))
		p.Value.wait(reason, next)
		p.Listing = store.Listing{Index: offeredIndex, Sort: at(next)}
		return nil
	})
	return err
}
