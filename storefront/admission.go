package storefront

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
)

// admit says whether an offer may be acknowledged: not beyond the limits, nor from an agent with too bad a standing. An offer that has been
// acknowledged before has its receipt, whatever happened since.
func (s *Service) admit(ctx context.Context, inv capabilities.Invocation, p piece.Link) (earlier *capabilities.Receipt, err error) {
	known, err := s.standings.Of(ctx, standing.AgentSubject(inv.Issuer.String()))
	if err != nil {
		return nil, err
	}
	limits := s.Policy.Limits
	if known.Level != standing.Refused && limits == (standing.Limits{}) {
		return nil, nil
	}
	// Anybody can repeat an invocation of somebody else's. It must not take from what that one may offer.
	if earlier, err = s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {
		return earlier, err
	}
	if known.Level == standing.Refused {
		return nil, capabilities.NewOfferRefused(inv.Issuer.String(), known.Score, known.Cause, known.RetryAfter)
	}
	by := standing.Offerer{Agent: inv.Issuer.String(), Space: inv.Resource(), Newcomer: known.Right == 0}
	err = s.standings.ReserveAll(ctx, "", by, inv.Link(), p.PaddedSize(), limits)
	if over := (*standing.Exceeded)(nil); errors.As(err, &over) {
		return nil, capabilities.NewQuotaExceeded(over.Subject, capabilities.Quota{Count: over.Used.Count, MaxCount: over.Limit.Count,
			Bytes: over.Used.Bytes, MaxBytes: over.Limit.Bytes}, over.RetryAfter)
	}
	return nil, err
}

// blamePage is how many of those who offered a pair one message deals with.
const blamePage = 100

// blame notes with everybody who offered a pair that it was proven wrong.
func (s *Service) blame(ctx context.Context, msg blameMessage) error {
	p, err := s.pieces.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	if p.Value.State != Invalid {
		return nil
	}
	if msg.Cursor == "" {
		if err := s.wrong(ctx, p.Value.Agent, p.Value.Offer, &p.Value); err != nil {
			return err
		}
	}
	others, next, err := s.by.Query(ctx, byPartition(p.Key), "", msg.Cursor, blamePage)
	if err != nil {
		return err
	}
	for _, by := range others {
		offer, err := cid.Parse(by.Key.Sort)
		if err != nil {
			return fmt.Errorf("row %s: %w", by.Key, err)
		}
		if err := s.wrong(ctx, by.Value.Agent, offer, &p.Value); err != nil {
			return err
		}
	}
	if next == "" {
		return nil
	}
	// The row is rewritten as it is: only to send the message for the next page.
	_, err = s.pieces.Update(ctx, msg.Key, func(_ *store.Record[Piece], fx *store.Effects) error {
		blameQueue.Send(fx, blameMessage{Key: msg.Key, Cursor: next})
		return nil
	})
	return err
}

// wrong notes with an agent that a pair it offered was proven wrong.
func (s *Service) wrong(ctx context.Context, agent string, offer cid.Cid, p *Piece) error {
	if agent == "" {
		return nil // of a time when this was not kept
	}
	was, err := s.standings.Wrong(ctx, standing.AgentSubject(agent), offer, p.Reason)
	if err == nil {
		s.Log.Warn("an offer was proven wrong", "agent", agent, "offer", offer, "content", p.Content, "piece", p.Piece, "validation", p.Validation,
			"standing", was.Level.String(), "wrong", was.Wrong)
	}
	return err
}

// credit notes with the agent who offered a pair that it was proven right.
func (s *Service) credit(ctx context.Context, msg pieceMessage) error {
	p, err := s.pieces.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	return s.standings.Right(ctx, standing.AgentSubject(p.Value.Agent), p.Value.Offer)
}

// placeOf says in which group a piece is offered that was found right: apart from others if all who offered it so far are to be kept apart. It also says
// whether that it was right is worth noting with the agent.
func (s *Service) placeOf(ctx context.Context, p store.Record[Piece]) (group string, credit bool, err error) {
	first, err := s.standings.Of(ctx, standing.AgentSubject(p.Value.Agent))
	if err != nil {
		return "", false, err
	}
	credit = first.Score > 0 || first.Right == 0 && (s.Policy.Newcomers || !s.Policy.Limits.Newcomers.None())
	if first.Level == standing.Good {
		return s.Group, credit, nil
	}
	// Whoever has a bad standing could offer the pieces of others before they do, to have them kept apart.
	others, _, err := s.by.Query(ctx, byPartition(p.Key), "", "", blamePage)
	if err != nil {
		return "", false, err
	}
	for _, by := range others {
		other, err := s.standings.Of(ctx, standing.AgentSubject(by.Value.Agent))
		if err != nil {
			return "", false, err
		}
		if other.Level == standing.Good {
			return s.Group, credit, nil
		}
	}
	return s.Group + piececap.QuarantineSuffix, credit, nil
}
