package storefront

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
)

// Mode says whose word a storefront takes for the piece of some content. That a piece is wrong is always computed by a provider that is trusted.
type Mode string

// Modes.
const (
	// Recompute: each provider is trusted to have read the bytes. The default.
	Recompute Mode = "recompute"
	// Possession: likewise, but a storage node of [Deps.Nodes] that keeps the content and that the offer names is taken at its word (pdp/info).
	Possession Mode = "pdp"
	// Quorum: providers are not trusted one by one. If enough of them agree that a piece is right, it is; anything else, and some of what they agree on,
	// the arbiter computes.
	Quorum Mode = "quorum"
)

// Validation says how pieces are validated. The zero value of a field means its default.
type Validation struct {
	Mode Mode
	// Agree is how many providers have to say the same under [Quorum], of at most Ask that are asked; 2 of 3.
	Agree, Ask int
	// Check computes one in so many of the pieces that are taken on somebody's word, chosen so that nobody else can tell which; 100.
	Check int
	// Distrust is for how long a provider or node is not asked again that was proven wrong once: every further time counts longer; 30 days.
	Distrust time.Duration
}

func (v Validation) withDefaults() (Validation, error) {
	v.Mode = cmp.Or(v.Mode, Recompute)
	v.Agree = cmp.Or(v.Agree, 2)
	v.Ask = cmp.Or(v.Ask, v.Agree+1)
	v.Check = cmp.Or(v.Check, 100)
	v.Distrust = cmp.Or(v.Distrust, 30*24*time.Hour)
	switch {
	case !slices.Contains([]Mode{Recompute, Possession, Quorum}, v.Mode):
		return v, fmt.Errorf("storefront: there is no mode of validation %q", v.Mode)
	case v.Agree < 1 || v.Ask < v.Agree || v.Ask > MaxAsked:
		return v, fmt.Errorf("storefront: %d of %d providers cannot agree: ask at most %d", v.Agree, v.Ask, MaxAsked)
	case v.Check < 1 || v.Distrust < 0:
		return v, fmt.Errorf("storefront: one in %d pieces cannot be checked, nor anybody distrusted for %v", v.Check, v.Distrust)
	}
	return v, nil
}

// MaxAsked bounds how many providers are asked about one piece: their tasks travel with the receipt of filecoin/submit.
const MaxAsked = 8

// distrust is the policy for those who were proven wrong: refused at the first time.
func (v Validation) distrust() standing.Policy {
	// A score of 1 is one half after one half-life.
	return standing.Policy{HalfLife: v.Distrust, Refuse: 0.5}
}

// ProviderSubject is what a compute provider is called among the standings of a storefront.
func ProviderSubject(did string) string { return "provider/" + did }

// NodeSubject is what a storage node is called among the standings of a storefront.
func NodeSubject(did string) string { return "node/" + did }

// ruling is what a piece is judged by.
type ruling struct {
	Verdict
	// also are tasks of others who computed the same.
	also []cid.Cid
	// vouched: it is the word of somebody who was not trusted to have read the bytes. It is no fact, and cannot prove anything wrong.
	vouched bool
	// credit: that the piece is right is worth noting with its agent.
	credit bool
}

// claimed is what somebody said who may be wrong.
type claimed struct {
	subject string
	answer
}

// lengthFits reports whether content of a length in bytes can be a piece at all: it has to have the size of a tree that the bytes need.
func lengthFits(length int64, p piece.Link) bool {
	if length < 0 {
		return false
	}
	padded, err := piece.PaddedSizeOf(uint64(length))
	return err == nil && padded == p.PaddedSize()
}

// drawn reports whether what is claimed of a piece is to be computed all the same. It is a function of the piece that only the storefront's key
// can compute: nobody else can tell, and trying again comes out the same.
func (s *Service) drawn(p *Piece) (bool, error) {
	self := s.Signer.DID()
	// Never sent to anybody.
	secret, err := capabilities.Invoke(s.Signer, self, self.String(), &filecoin.Accept{Content: p.Content, Piece: p.Piece},
		capabilities.Terms{Nonce: "whether to check " + p.Nonce})
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(secret.Block().Bytes)
	return binary.BigEndian.Uint64(sum[:])%uint64(s.Policy.Validation.Check) == 0, nil
}

// trusted reports whether nothing was proven against a provider or node lately.
func (s *Service) trusted(ctx context.Context, subject string) (bool, error) {
	known, err := s.distrusted.Of(ctx, subject)
	return known.Level != standing.Refused, err
}

// compare holds against those who claimed another piece what was computed from the bytes, and returns the tasks of those who claimed the same.
func (s *Service) compare(ctx context.Context, p *Piece, computed answer, claims []claimed) (same []cid.Cid, err error) {
	for _, c := range claims {
		if c.piece == computed.piece {
			same = append(same, c.task)
			continue
		}
		cause := fmt.Sprintf("it said that content %s is piece %s, the bytes are %s", p.Content, c.piece, computed.piece)
		if _, err := s.distrusted.Wrong(ctx, c.subject, c.task, cause); err != nil {
			return nil, err
		}
		s.Log.Error("somebody was proven wrong, and is not asked any more", "who", c.subject, "task", c.task, "content", p.Content, "said", c.piece,
			"computed", computed.piece, "by", computed.provider, "validation", computed.task)
	}
	return same, nil
}

// node returns the storage node that an offer names and that is to be asked, empty for none. What the offer links is a hint whom to ask: the node's answer has to
// be signed.
func (s *Service) node(inv capabilities.Invocation, nb filecoin.Offer) string {
	if len(s.nodes) == 0 || !nb.PDP.Defined() {
		return ""
	}
	task, ok := capabilities.FindTask(inv.Message, nb.PDP)
	if !ok || len(task.Capabilities) != 1 || task.Can() != pdp.AcceptAbility {
		return ""
	}
	var accept pdp.Accept
	if task.Caveats(&accept) != nil || !bytes.Equal(accept.Blob, nb.Content.Hash()) {
		return ""
	}
	name := task.Issuer.String()
	if _, known := s.nodes[name]; !known {
		return ""
	}
	return name
}

// possession asks the node that keeps the content which piece it is. Without an answer that can be used, none is returned: the piece is computed then.
func (s *Service) possession(ctx context.Context, p store.Record[Piece], nonce string) (*claimed, error) {
	node, known := s.nodes[p.Value.Node]
	if !known {
		return nil, nil
	}
	if ok, err := s.trusted(ctx, NodeSubject(p.Value.Node)); err != nil || !ok {
		return nil, err
	}
	task, err := capabilities.Invoke(s.Signer, node.DID, node.DID.String(), &pdp.Info{Blob: p.Value.Content.Hash()}, node.Terms(s.Signer.DID(), nonce))
	if err != nil {
		return nil, err
	}
	rec, err := s.ledger.Get(ctx, task.Link())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	var r *capabilities.Receipt
	if rec.Concluded {
		m, err := rec.Decode()
		if err != nil {
			return nil, err
		}
		r = m.Receipt(task.Link())
	} else {
		var conclusion *capabilities.Message
		if r, conclusion, err = s.ledger.Execute(ctx, node.Conn, task); err != nil {
			s.Log.Warn("a storage node gives no answer; the piece is computed", "node", p.Value.Node, "content", p.Value.Content, "err", err)
			return nil, ctx.Err()
		}
		if r.Out.Error == nil {
			if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
				return nil, err
			}
		}
	}
	var ok pdp.InfoOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		s.Log.Info("a storage node does not know a piece; it is computed", "node", p.Value.Node, "content", p.Value.Content, "err", err)
		return nil, nil
	}
	return &claimed{NodeSubject(p.Value.Node), answer{p.Value.Node, task.Link(), ok.Piece}}, nil
}

// quorum has a piece validated by providers that are not trusted one by one.
func (s *Service) quorum(ctx context.Context, p store.Record[Piece], submit capabilities.Task, nonce string, c Content) error {
	policy := s.Policy.Validation
	var candidates []*provider
	for _, one := range s.providers {
		ok, err := s.trusted(ctx, ProviderSubject(one.name))
		if err != nil {
			return err
		}
		if ok {
			candidates = append(candidates, one)
		}
	}
	q := &inquiry{asked: p.Value.Asked}
	var claims []claimed
	// Where the length says already that the piece is wrong, only the arbiter can prove it.
	if lengthFits(c.Length, p.Value.Piece) && len(candidates) >= policy.Agree {
		var err error
		candidates = rank(candidates, c, s.Now())
		candidates = candidates[:min(len(candidates), policy.Ask)]
		settled := func(list []answer) bool { return len(list) >= policy.Agree || !unanimous(list) }
		if q, err = s.inquire(ctx, p.Key, &p.Value, nonce, c, candidates, policy.Agree, settled); err != nil {
			return err
		}
		for _, a := range q.answers {
			claims = append(claims, claimed{ProviderSubject(a.provider), a})
		}
		agreed := unanimous(q.answers) && len(q.answers) >= policy.Agree
		if !agreed && unanimous(q.answers) && q.pending+q.busy > 0 {
			return s.unanswered(ctx, p, q)
		}
		check, err := s.drawn(&p.Value)
		if err != nil {
			return err
		}
		if first := q.answers; agreed && first[0].piece == p.Value.Piece && !check {
			v := ruling{Verdict: Verdict{Piece: first[0].piece, Task: first[0].task, Provider: first[0].provider, At: s.Now().UnixMilli()}, vouched: true}
			for _, a := range first[1:] {
				v.also = append(v.also, a.task)
			}
			return s.judge(ctx, p, submit, v)
		}
	}
	asked := p.Value
	asked.Asked = q.asked
	decided, err := s.inquire(ctx, p.Key, &asked, nonce, c, []*provider{s.arbiter}, 1, answered)
	if err != nil {
		return err
	}
	if len(decided.answers) == 0 {
		return s.unanswered(ctx, p, decided)
	}
	return s.proven(ctx, p, submit, decided.answers[0], claims)
}

// proven judges a piece by what a provider computed that is trusted to have read the bytes, and others by what they said.
func (s *Service) proven(ctx context.Context, p store.Record[Piece], submit capabilities.Task, a answer, claims []claimed) error {
	// First what it proves about others: once the verdict is kept, nobody is asked for it again.
	same, err := s.compare(ctx, &p.Value, a, claims)
	if err != nil {
		return err
	}
	v, err := s.verified(ctx, p.Value.Content, a)
	if err != nil {
		return err
	}
	return s.judge(ctx, p, submit, ruling{Verdict: v, also: same})
}

func answered(list []answer) bool { return len(list) > 0 }

// unanimous reports whether all answers are the same.
func unanimous(list []answer) bool {
	return !slices.ContainsFunc(list, func(a answer) bool { return a.piece != list[0].piece })
}

// validationAbility is the ability of the task by which a piece was validated.
func validationAbility(p *Piece) string {
	if p.Vouched == byNode {
		return pdp.InfoAbility
	}
	return computecap.PieceCIDAbility
}

// vouchedBy says whose word a piece is taken on by the first task that its receipt of filecoin/submit links. The ruling knows, if the receipt was made by it;
// one that was made before is taken for somebody's word unless its provider is trusted now.
func (s *Service) vouchedBy(validation capabilities.Task, v ruling) string {
	switch {
	case validation.Can() == pdp.InfoAbility:
		return byNode
	case validation.Link().Equals(v.Task) && v.vouched, !validation.Link().Equals(v.Task) && s.arbiter != nil && validation.Audience != s.arbiter.DID:
		return byQuorum
	}
	return ""
}

// Values of [Piece.Vouched].
const (
	byNode   = "node"
	byQuorum = "quorum"
)
