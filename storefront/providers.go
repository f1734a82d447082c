package storefront

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Provider is a compute provider that a storefront may ask for the piece of some content.
type Provider struct {
	capabilities.Peer
	// Near are the places that it is near to: "bucket:NAME", "region:NAME", "host:NAME" (of the content's URL, with the port if there is one).
	Near []string
	// Parallel bounds how many contents it is asked about at a time, by this process; 0: nothing does.
	Parallel int
}

// places are where content lies, by the names of [Provider.Near].
func (c Content) places() []string {
	list := slices.Clone(c.Places)
	if u, err := url.Parse(c.URL); err == nil && u.Host != "" {
		list = append(list, "host:"+u.Host)
	}
	return list
}

// provider is a provider with what this process saw of it lately: hints, which a restart forgets.
type provider struct {
	Provider
	name string // the DID
	busy chan struct{}

	mu    sync.Mutex
	fails int
	until time.Time // asked last until then
}

func newProviders(list []Provider) ([]*provider, error) {
	var made []*provider
	for _, p := range list {
		switch {
		case p.Conn == nil || !p.DID.Defined():
			return nil, errors.New("storefront: a compute provider lacks its DID or its connection")
		case slices.ContainsFunc(made, func(o *provider) bool { return o.DID == p.DID }):
			return nil, fmt.Errorf("storefront: compute provider %s is named twice", p.DID)
		}
		one := &provider{Provider: p, name: p.DID.String()}
		if p.Parallel > 0 {
			one.busy = make(chan struct{}, p.Parallel)
		}
		made = append(made, one)
	}
	return made, nil
}

// begin takes a place at the provider if there is one left; end gives it back.
func (p *provider) begin() bool {
	if p.busy == nil {
		return true
	}
	select {
	case p.busy <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p *provider) end() {
	if p.busy != nil {
		<-p.busy
	}
}

// answered notes whether a call reached the provider, so that one that is away is asked after the others for a while.
func (p *provider) answered(reached bool, now time.Time, first time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reached {
		p.fails, p.until = 0, time.Time{}
		return
	}
	p.fails++
	p.until = now.Add(tasks.Backoff(p.fails, first, time.Minute))
}

func (p *provider) away(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.until)
}

// rank orders providers for some content: those near to where it lies first, the others behind; those that could not be reached a moment ago behind
// all. Among equals the content decides, so that work spreads, and asking again begins where it began before.
func rank(list []*provider, c Content, now time.Time) []*provider {
	type ranked struct {
		p     *provider
		class int
		order uint64
	}
	places := c.places()
	all := make([]ranked, len(list))
	for i, p := range list {
		r := ranked{p: p, class: 1}
		if slices.ContainsFunc(p.Near, func(place string) bool { return slices.Contains(places, place) }) {
			r.class = 0
		}
		if p.away(now) {
			r.class += 2
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(p.name)) // never fails
		_, _ = h.Write(c.CID.Hash())
		r.order = h.Sum64()
		all[i] = r
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.order, b.order)) })
	order := make([]*provider, len(all))
	for i, r := range all {
		order[i] = r.p
	}
	return order
}

// Asked is a provider that has taken on to compute the piece of some content.
type Asked struct {
	Provider string  `cbor:"p"`
	Task     cid.Cid `cbor:"t"`
	At       int64   `cbor:"a"` // milliseconds since the Unix epoch
}

// answer is the piece that a provider computed.
type answer struct {
	provider string
	task     cid.Cid
	piece    piece.Link
}

// inquiry is what came of asking providers about a piece.
type inquiry struct {
	answers []answer
	// asked are those that have taken the work on, before or now.
	asked []Asked
	// pending counts those of them whose answer is waited for, late those that took too long, busy those without a place left, unreached those that
	// gave no answer at all.
	pending, late, busy, unreached int
	// reasons say why there is no answer, for people.
	reasons []string
}

func (q *inquiry) has(name string) bool {
	return slices.ContainsFunc(q.answers, func(a answer) bool { return a.provider == name })
}

// inquire asks providers in their order until enough says that it has enough answers, or none is left to be asked. Those that have taken the work on
// already are asked again first, which costs nothing; while there are as many of these as answers are missing, nobody else is asked, unless they took
// too long.
func (s *Service) inquire(ctx context.Context, key store.Key, p *Piece, nonce string, c Content, list []*provider, want int,
	enough func([]answer) bool) (*inquiry, error) {
	q := &inquiry{asked: slices.Clone(p.Asked)}
	for _, a := range q.asked {
		rec, err := s.ledger.Get(ctx, a.Task)
		if errors.Is(err, store.ErrNotFound) || err == nil && !rec.Concluded {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := rec.Decode()
		if err != nil {
			return nil, err
		}
		var ok computecap.PieceCIDOK
		inList := slices.ContainsFunc(list, func(o *provider) bool { return o.name == a.Provider })
		if r := m.Receipt(a.Task); r != nil && inList && !q.has(a.Provider) && capabilities.ReadResult(r.Out, &ok) == nil {
			q.answers = append(q.answers, answer{a.Provider, a.Task, ok.Piece})
		}
	}
	now := s.Now()
	// In order: under way, not asked yet, under way for too long.
	class := func(p *provider) int {
		i := slices.IndexFunc(q.asked, func(a Asked) bool { return a.Provider == p.name })
		switch {
		case i < 0:
			return 1
		case now.Sub(time.UnixMilli(q.asked[i].At)) < s.Timing.Patience:
			return 0
		}
		return 2
	}
	order := rank(list, c, now)
	slices.SortStableFunc(order, func(a, b *provider) int { return cmp.Compare(class(a), class(b)) })
	for _, one := range order {
		if enough(q.answers) {
			break
		}
		if q.has(one.name) {
			continue
		}
		if class(one) != 0 && len(q.answers)+q.pending >= want {
			break
		}
		late, pending := class(one) == 2, q.pending
		if err := s.ask(ctx, key, p, nonce, c, one, q); err != nil {
			return nil, err
		}
		if late && q.pending > pending {
			q.pending, q.late = pending, q.late+1
		}
	}
	return q, nil
}

// ask asks one provider, and adds what it says to an inquiry. Its error is a fault of ours.
func (s *Service) ask(ctx context.Context, key store.Key, p *Piece, nonce string, c Content, one *provider, q *inquiry) error {
	self := s.Signer.DID()
	task, err := capabilities.Invoke(s.Signer, one.DID, one.name, &computecap.PieceCID{Content: p.Content}, one.Terms(self, nonce))
	if err != nil {
		return err
	}
	if !one.begin() {
		q.busy++
		return nil
	}
	defer one.end()
	claim, err := capabilities.Invoke(s.Signer, one.DID, self.String(), &assert.Location{
		Content: assert.Content{Link: p.Content}, Location: []string{c.URL},
		Range: &assert.Range{Length: uint64(c.Length)}, // compared before a byte is hashed
	}, capabilities.Terms{Expiration: s.Now().Add(time.Hour)})
	if err != nil {
		return err
	}
	r, conclusion, err := s.ledger.Execute(ctx, one.Conn, task, claim.Block())
	u, unavailable := tasks.IsUnavailable(err)
	accepted := unavailable && u.Accepted
	one.answered(err == nil || accepted, s.Now(), s.Timing.PeerRetry)
	switch {
	case accepted:
		// It will push the receipt. One that comes before this is written is not kept; the next time it is asked, it answers with it.
		waiting, err := s.ledger.Await(ctx, task.Link(), &task, key, computedQueue.Name, false)
		if err != nil {
			return err
		}
		if !waiting.Concluded {
			q.reasons = append(q.reasons, s.waitingFor("validation", one.Peer, u))
			q.pending++
			if !slices.ContainsFunc(q.asked, func(a Asked) bool { return a.Task.Equals(task.Link()) }) {
				q.asked = append(q.asked, Asked{one.name, task.Link(), s.Now().UnixMilli()})
			}
			return nil
		}
		m, err := waiting.Decode()
		if err != nil {
			return err
		}
		r = m.Receipt(task.Link())
	case err != nil:
		q.reasons = append(q.reasons, s.waitingFor("validation", one.Peer, err))
		q.unreached++
		return ctx.Err()
	case r.Out.Error == nil:
		if err := s.ledger.Keep(ctx, task.Link(), conclusion); err != nil {
			return err
		}
	}
	var computed computecap.PieceCIDOK
	if err := capabilities.ReadResult(r.Out, &computed); err != nil {
		// Not found, not supported by this provider, not allowed: nothing is proven about the pair.
		f := (*capabilities.Failure)(nil)
		if !errors.As(err, &f) || f.Name != capabilities.ContentNotFound {
			s.Log.Warn("a compute provider refuses", "provider", one.name, "content", p.Content, "task", task.Link(), "err", err)
		}
		q.reasons = append(q.reasons, "content-unavailable: "+err.Error())
		return nil
	}
	q.answers = append(q.answers, answer{one.name, task.Link(), computed.Piece})
	return nil
}

// unanswered leaves a piece waiting for want of answers, and says why.
func (s *Service) unanswered(ctx context.Context, p store.Record[Piece], q *inquiry) error {
	const reasons = 3 // of many providers; the rest is in the log
	reason := strings.Join(q.reasons[:min(len(q.reasons), reasons)], "; ")
	switch {
	case q.pending+q.late > 0:
		return s.waitAsked(ctx, p, q, s.Timing.PeerRetry, 10*time.Minute, reason)
	case q.busy > 0:
		return s.waitAsked(ctx, p, q, s.Timing.PeerRetry, 4*s.Timing.PeerRetry, "validation: every compute provider has enough to do")
	case q.unreached > 0 || len(q.reasons) == 0:
		return s.waitAsked(ctx, p, q, s.Timing.PeerRetry, 10*time.Minute, cmp.Or(reason, "validation: no compute provider is left to be asked"))
	}
	if s.Now().Sub(time.UnixMilli(p.Value.Times[Submitted])) >= s.Timing.ContentWindow {
		return s.expire(ctx, p.Key)
	}
	return s.waitAsked(ctx, p, q, s.Timing.ContentRetry, time.Hour, reason)
}

// waitAsked leaves a piece waiting for its validation, with who has taken that on.
func (s *Service) waitAsked(ctx context.Context, p store.Record[Piece], q *inquiry, first, limit time.Duration, reason string) error {
	return s.waitWith(ctx, p, validateQueue, first, limit, reason, func(row *Piece) { row.Asked = q.asked })
}
