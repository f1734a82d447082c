package aggregator

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

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
		piece store.Record[Piece]
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
		lists[front] = append(lists[front], issued{p, entry})
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
			_, err := s.pieces.UpdateFrom(ctx, i.piece, func(p *store.Record[Piece], _ *store.Effects) error {
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
	accept, err := s.ledger.Effect(ctx, p.Offer, p.Accept)
	if err != nil {
		return nil, err
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
