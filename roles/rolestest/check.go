package rolestest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

// Offered is an offer that a storefront has acknowledged.
type Offered struct {
	Storefront string
	Content    cid.Cid
	Piece      piece.Link
	Task       cid.Cid
	Agent      capabilities.Signer
	At         time.Time // of the acknowledgement
}

// Agent is the agent of a network: it offers on its own DID.
func Agent() capabilities.Signer { return TestKey(1) }

// Offer offers content at a storefront as the piece that it is.
func (n *Network) Offer(storefront string, content []byte) Offered {
	n.t.Helper()
	link, err := piece.Sum(content)
	if err != nil {
		n.t.Fatal(err)
	}
	o, err := n.OfferAs(storefront, n.World.Put(content), link, "")
	if err != nil {
		n.t.Fatalf("seed %d: offering: %v", n.Seed, err)
	}
	return o
}

// OfferAs offers a content CID as any piece, with a nonce if it is not empty.
func (n *Network) OfferAs(storefront string, content cid.Cid, link piece.Link, nonce string) (Offered, error) {
	return n.OfferBy(Agent(), storefront, content, link, nonce)
}

// OfferBy has an agent offer a content CID as any piece, on its own DID.
func (n *Network) OfferBy(agent capabilities.Signer, storefront string, content cid.Cid, link piece.Link, nonce string) (Offered, error) {
	task, _, err := client.Offer(storetest.WithStep(context.Background(), filecoin.OfferAbility), n.Conn(storefront), agent, n.Roles[storefront].Signer.DID(), agent.DID().String(),
		filecoin.Offer{Content: content, Piece: link}, capabilities.Terms{Nonce: nonce}, n.keys())
	return Offered{storefront, content, link, task.Link(), agent, n.Now()}, err
}

// Payload is content that no other call gives, of a size in bytes.
func (n *Network) Payload(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(n.Rand.Uint32())
	}
	return b
}

// Chain returns what the storefront serves of an offer's chain.
func (n *Network) Chain(o Offered) *client.Chain {
	n.t.Helper()
	c, err := client.Follow(context.Background(), n.Conn(o.Storefront), o.Task)
	if err != nil {
		n.t.Fatalf("seed %d: following %s: %v", n.Seed, o.Task, err)
	}
	return c
}

// Concluded reports whether all offers have ended.
func (n *Network) Concluded(offers ...Offered) func() bool {
	left := append([]Offered(nil), offers...)
	return func() bool {
		for len(left) > 0 {
			s := n.Roles[left[0].Storefront]
			if s.Down {
				return false
			}
			p, err := n.Status(left[0])
			if err != nil {
				return false
			}
			switch p.State {
			case "dealt", "invalid", "failed":
				left = left[1:]
			default:
				return false
			}
		}
		return true
	}
}

// Status returns where an offer stands at its storefront.
func (n *Network) Status(o Offered) (capabilities.PieceStatus, error) {
	s, err := n.Roles[o.Storefront].Server.Service.Status(context.Background(), o.Piece.CID())
	if err != nil {
		return capabilities.PieceStatus{}, err
	}
	for _, p := range s.Pieces {
		if p.Content == o.Content.String() || p.Content == "" {
			return p, nil
		}
	}
	return capabilities.PieceStatus{}, store.ErrNotFound
}

// Verify verifies the chain of a concluded offer and returns what it proves.
func (n *Network) Verify(o Offered) *client.Proven {
	n.t.Helper()
	p, err := n.Chain(o).Verify(context.Background(), n.keys())
	if err != nil {
		n.t.Fatalf("seed %d: the chain of %s: %v", n.Seed, o.Task, err)
	}
	return p
}

// Check verifies the promises over the complete visible state: every acknowledged offer is in flight with a reason or ended once; no receipt has changed;
// every receipt verifies; no piece is in two aggregates that live.
func (n *Network) Check(offers []Offered) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ctx := context.Background()
	aggregates := map[string]string{}
	for _, o := range offers {
		if n.Roles[o.Storefront].Down {
			continue
		}
		chain, err := client.Follow(ctx, n.Conn(o.Storefront), o.Task)
		if err != nil {
			fail("the chain of acknowledged offer %s: %w", o.Task, err)
			continue
		}
		for _, step := range chain.Steps() {
			if step.Receipt == nil {
				continue
			}
			if first, seen := n.receipts[step.Task]; seen && !first.Equals(step.Receipt.Link()) {
				fail("the receipt of %s %s has changed: %s, then %s", step.Ability, step.Task, first, step.Receipt.Link())
			}
			n.receipts[step.Task] = step.Receipt.Link()
		}
		status, err := n.Status(o)
		if errors.Is(err, store.ErrNotFound) && n.Now().Sub(o.At) < memory.DefaultIndexLag {
			continue // an index tells of it until it has a row, after a moment; its receipt is there at once
		}
		if err != nil {
			fail("where acknowledged offer %s stands: %w", o.Task, err)
			continue
		}
		terminal := status.State == "dealt" || status.State == "invalid" || status.State == "failed"
		if chain.Concluded() != terminal {
			fail("offer %s is %s, but concluded is %v", o.Task, status.State, chain.Concluded())
		}
		if chain.Concluded() {
			p, err := chain.Verify(ctx, n.keys())
			if err != nil {
				fail("offer %s: %w", o.Task, err)
				continue
			}
			if p.Failure == nil {
				key := o.Storefront + "/" + o.Piece.String()
				if other, ok := aggregates[key]; ok && other != p.Aggregate.String() {
					fail("piece %s was dealt in two aggregates, %s and %s", o.Piece, other, p.Aggregate)
				}
				aggregates[key] = p.Aggregate.String()
			}
		}
	}
	errs = append(errs, n.checkMembers()...)
	for _, name := range n.names {
		dead, _, err := store.ListDead(ctx, n.Roles[name].Engine, "", "", 10)
		if err != nil {
			fail("%s: %w", name, err)
		}
		for _, d := range dead {
			fail("%s has a dead letter: %+v", name, d)
		}
	}
	return errors.Join(errs...)
}

// checkMembers reads the aggregator's receipts of all pieces that its rows name: each is in the aggregate that its plan made, and in no other.
func (n *Network) checkMembers() (errs []error) {
	ctx := context.Background()
	r := n.Roles["aggregator"]
	if r.Down {
		return nil
	}
	seen := map[string]string{}
	cursor := ""
	for {
		page, err := r.Engine.Walk(ctx, cursor, store.MaxPage)
		if err != nil {
			return append(errs, err)
		}
		for _, row := range page.Rows {
			link, ok := strings.CutPrefix(row.Partition, "piece/")
			if !ok || seen[row.Key.String()] != "" {
				continue
			}
			seen[row.Key.String()] = link
			c, err := cid.Parse(link)
			if err != nil {
				return append(errs, err)
			}
			s, err := r.Server.Service.Status(ctx, c)
			if err != nil {
				errs = append(errs, fmt.Errorf("status of piece %s at the aggregator: %w", link, err))
				continue
			}
			for _, p := range s.Pieces {
				if p.State == "pending" && p.Reason == "" {
					errs = append(errs, fmt.Errorf("piece %s waits at the aggregator without a reason", link))
				}
			}
		}
		if cursor = page.Next; cursor == "" {
			return errs
		}
	}
}

// MustCheck fails the test if a promise is broken.
func (n *Network) MustCheck(offers []Offered) {
	n.t.Helper()
	if err := n.Check(offers); err != nil {
		n.t.Fatalf("seed %d, step %d, %s: %v", n.Seed, n.Steps, n.now.Format(time.DateTime), err)
	}
}
