package storefront

import (
	"context"
	"errors"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

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
	nonce := submit.EffectNonce()
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
	group, credit, err := s.placeOf(ctx, p)
	if err != nil {
		return err
	}
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
	conclusion := capabilities.Conclusion(r, submit, fx).Encode()
	_, err = s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], effects *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		p.Value.enter(Validated, s.Now())
		p.Value.SubmitReceipt, p.Value.Validation, p.Value.PieceOffer, p.Value.Group = conclusion, v.Task, offer.Link(), group
		if credit {
			creditQueue.Send(effects, pieceMessage{Key: p.Key})
		}
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
	_, err = s.pieces.Update(ctx, p.Key, func(p *store.Record[Piece], effects *store.Effects) error {
		if p.Value.State != Submitted {
			return store.ErrUnchanged
		}
		blameQueue.Send(effects, blameMessage{Key: p.Key})
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
