package storefront

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// validate has the piece of the content's bytes computed near where they lie, and compares. Only that comparison ends the pair; content that
// cannot be had makes it wait.
func (s *Service) validate(ctx context.Context, msg pieceMessage) error {
	p, ok, err := s.current(ctx, msg, Submitted)
	if err != nil || !ok {
		return err
	}
	settled, err := s.ledger.Read(ctx, p.Value.Submit)
	if err == nil { // what came after that is to be repeated
		_, credit, err := s.placeOf(ctx, p)
		if err != nil {
			return err
		}
		return s.follow(ctx, p, settled, ruling{credit: credit})
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	verdict, err := s.verdicts.Get(ctx, verdictKey(p.Value.Content))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	// What verified bytes gave before is a fact. A nonce asks to compute a negative verdict once more.
	if verdict.Exists() && (p.Value.Nonce == "" || verdict.Value.Piece == p.Value.Piece) {
		submit, err := s.ledger.Effect(ctx, p.Value.Offer, p.Value.Submit)
		if err != nil {
			return err
		}
		return s.judge(ctx, p, submit, ruling{Verdict: verdict.Value})
	}

	content, err := s.Custody.Stat(ctx, p.Value.Content)
	if errors.Is(err, ErrNoContent) {
		if s.Now().Sub(time.UnixMilli(p.Value.Times[Submitted])) >= s.Timing.ContentWindow {
			return s.expire(ctx, p.Key)
		}
		urls, err := s.hints(ctx, p)
		if err != nil {
			return err
		}
		if s.Importer != nil || len(urls) > 0 {
			return s.importLater(ctx, p)
		}
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, notStored)
	}
	if err != nil {
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, "content-unavailable: "+err.Error())
	}
	submit, err := s.ledger.Effect(ctx, p.Value.Offer, p.Value.Submit)
	if err != nil {
		return err
	}
	nonce := submit.EffectNonce()
	if s.Policy.Validation.Mode == Quorum {
		return s.quorum(ctx, p, submit, nonce, content)
	}
	var claims []claimed
	said, err := s.possession(ctx, p, nonce)
	if err != nil {
		return err
	}
	if said != nil {
		check, err := s.drawn(&p.Value)
		if err != nil {
			return err
		}
		if said.piece == p.Value.Piece && lengthFits(content.Length, said.piece) && !check {
			return s.judge(ctx, p, submit, ruling{vouched: true, Verdict: Verdict{
				Piece: said.piece, Task: said.task, Provider: said.provider, At: s.Now().UnixMilli()}})
		}
		claims = append(claims, *said)
	}
	q, err := s.inquire(ctx, p.Key, &p.Value, nonce, content, s.providers, 1, answered)
	if err != nil {
		return err
	}
	if len(q.answers) == 0 {
		return s.unanswered(ctx, p, q)
	}
	return s.proven(ctx, p, submit, q.answers[0], claims)
}

const notStored = "content-unavailable: it has not been stored here"

// importLater has the content looked for elsewhere. Copying may take hours, so it has a queue of its own.
func (s *Service) importLater(ctx context.Context, p store.Record[Piece]) error {
	try := p.Value.Tries
	_, err := s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != Submitted || p.Value.Tries != try {
			return store.ErrUnchanged
		}
		p.Value.Reason = "content-unavailable: it has not been stored here, and is looked for elsewhere"
		importQueue.Send(fx, pieceMessage{Key: p.Key, Try: try})
		return nil
	})
	return err
}

// importContent copies content into custody. Then it is validated as if it had been stored.
func (s *Service) importContent(ctx context.Context, msg pieceMessage) error {
	p, ok, err := s.current(ctx, msg, Submitted)
	if err != nil || !ok {
		return err
	}
	urls, err := s.hints(ctx, p)
	if err != nil {
		return err
	}
	err = s.bring(ctx, &p.Value, urls)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // asked to stop: nothing is known of the content
	case errors.Is(err, ErrNoContent):
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, notStored+", and is nowhere else")
	case err != nil:
		return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, "content-unavailable: "+err.Error())
	}
	try := p.Value.Tries
	_, err = s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], fx *store.Effects) error {
		if p.Value.State != Submitted || p.Value.Tries != try {
			return store.ErrUnchanged
		}
		validateQueue.Send(fx, pieceMessage{Key: p.Key, Try: try})
		return nil
	})
	return err
}

// checkLength returns an error if content of a length in bytes cannot have the piece: its padded size follows from it.
func checkLength(p piece.Link, length int64) error {
	size, err := piece.PaddedSizeOf(uint64(max(length, 0)))
	if err != nil {
		return err
	}
	if size != p.PaddedSize() {
		return fmt.Errorf("%d bytes there make a piece of %d, the one that was offered has %d", length, size, p.PaddedSize())
	}
	return nil
}

// verified keeps the verdict of a provider that is trusted to have read the bytes.
func (s *Service) verified(ctx context.Context, content cid.Cid, a answer) (Verdict, error) {
	fresh := Verdict{Piece: a.piece, Task: a.task, Provider: a.provider, At: s.Now().UnixMilli()}
	v := store.Record[Verdict]{Key: verdictKey(content), Value: fresh}
	created, err := s.verdicts.Create(ctx, &v, store.Effects{})
	if err == nil && !created && v.Value.Piece != a.piece {
		s.Log.Error("two verdicts differ for one content", "content", content, "piece", v.Value.Piece, "provider", v.Value.Provider,
			"other", a.piece, "by", a.provider, "task", a.task)
	}
	return fresh, err
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

// judge issues the receipt of filecoin/submit. The first one decides: what becomes of the piece follows from it.
func (s *Service) judge(ctx context.Context, p store.Record[Piece], submit capabilities.Task, v ruling) error {
	validation, err := s.ownTask(ctx, v.Task)
	if err != nil {
		return err
	}
	fx := capabilities.Effects{Fork: []capabilities.Task{validation}}
	if v.Piece != p.Value.Piece {
		if v.vouched {
			return fmt.Errorf("content %s was to be refused as piece %s without proof", p.Value.Content, p.Value.Piece)
		}
		return s.refuse(ctx, p, submit, fx, v.Verdict)
	}
	for _, link := range v.also {
		also, err := s.ownTask(ctx, link)
		if err != nil {
			return err
		}
		fx.Fork = append(fx.Fork, also)
	}
	group, credit, err := s.placeOf(ctx, p)
	if err != nil {
		return err
	}
	v.credit = credit
	offer, err := capabilities.Invoke(s.Signer, s.Aggregator.DID, s.Aggregator.DID.String(),
		&piececap.Offer{Piece: p.Value.Piece, Group: group}, s.Aggregator.Terms(s.Signer.DID(), submit.EffectNonce()))
	if err != nil {
		return err
	}
	fx.Join = &offer
	r, err := capabilities.Issue(s.Signer, submit.Link(), &filecoin.PieceOK{Piece: p.Value.Piece}, fx)
	if err != nil {
		return err
	}
	settled, err := s.ledger.Settle(ctx, submit, r, fx)
	if err != nil {
		return err
	}
	return s.follow(ctx, p, settled, v)
}

func (s *Service) refuse(ctx context.Context, p store.Record[Piece], submit capabilities.Task, fx capabilities.Effects, v Verdict) error {
	mismatch := capabilities.Mismatch{Content: p.Value.Content, Piece: p.Value.Piece, Computed: v.Piece}
	r, err := capabilities.IssueFailure(s.Signer, submit.Link(), capabilities.NewInvalidPieceCID(mismatch), fx)
	if err != nil {
		return err
	}
	settled, err := s.ledger.Settle(ctx, submit, r, fx)
	if err != nil {
		return err
	}
	return s.follow(ctx, p, settled, ruling{Verdict: v})
}

// follow moves a piece on by the receipt of its filecoin/submit, which is what counts: the ruling adds what no receipt says. If the pair is proven wrong, the
// receipt of filecoin/accept says so too.
func (s *Service) follow(ctx context.Context, p store.Record[Piece], settled tasks.Entry, v ruling) error {
	r := settled.Receipt
	if r == nil || len(r.Fork) == 0 {
		return fmt.Errorf("the record of task %s lacks its receipt", settled.Link())
	}
	validation, err := settled.Effect(r.Fork[0])
	if err != nil {
		return err
	}
	if r.Out.Error != nil {
		return s.refused(ctx, p, r, validation)
	}
	offer, err := settled.Effect(r.Join)
	if err != nil {
		return err
	}
	var nb piececap.Offer
	if err := offer.Caveats(&nb); err != nil {
		return err
	}
	_, err = s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], effects *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		p.Value.enter(Validated, s.Now())
		p.Value.Validation, p.Value.PieceOffer, p.Value.Group = validation.Link(), offer.Link(), nb.Group
		p.Value.Vouched = s.vouchedBy(validation, v)
		if v.credit {
			creditQueue.Send(effects, pieceMessage{Key: p.Key})
		}
		pieceOfferQueue.Send(effects, pieceMessage{Key: p.Key})
		equalsQueue.Send(effects, pieceMessage{Key: p.Key})
		return nil
	})
	return err
}

// refused ends a piece that is proven wrong.
func (s *Service) refused(ctx context.Context, p store.Record[Piece], r *capabilities.Receipt, validation capabilities.Task) error {
	accept, err := s.ledger.Effect(ctx, p.Value.Offer, p.Value.Accept)
	if err != nil {
		return err
	}
	var mismatch capabilities.Mismatch
	if err := capabilities.ReadFailure(r.Out.Error).ReadDetails(&mismatch); err != nil {
		return fmt.Errorf("the receipt of %s cannot be read: %w", p.Value.Submit, err)
	}
	failure := capabilities.NewInvalidContentPiece(mismatch)
	receipt, err := capabilities.IssueFailure(s.Signer, accept.Link(), failure, capabilities.Effects{})
	if err != nil {
		return err
	}
	_, err = s.pieces.UpdateFrom(ctx, p, func(p *store.Record[Piece], effects *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		blameQueue.Send(effects, blameMessage{Key: p.Key})
		p.Value.enter(Invalid, s.Now())
		p.Value.Reason = failure.Message
		p.Value.Validation = validation.Link()
		p.Value.AcceptReceipt = capabilities.Conclusion(receipt, accept, capabilities.Effects{}).Encode()
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
	if s.Claims == nil {
		return nil
	}
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
	return s.Claims.Keep(ctx, claim)
}
