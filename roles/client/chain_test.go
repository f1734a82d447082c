package client_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
)

// verify reads the chain as saved and verifies it.
func verify(t *testing.T, c *chaintest.Chain) (*client.Proven, error) {
	t.Helper()
	chain, err := client.DecodeChain(c.Message().Encode())
	if err != nil {
		return nil, err
	}
	return chain.Verify(t.Context(), c.Keys())
}

func proven(c *chaintest.Chain) *client.Proven {
	return &client.Proven{
		Agent: c.Agent.DID(), Storefront: c.Storefront.DID(), Compute: c.Compute.DID(), Aggregator: c.Aggregator.DID(), Dealer: c.Dealer.DID(),
		Content: c.Content, Piece: c.Piece, Aggregate: c.Aggregate, Deal: capabilities.DealMetadata{DealID: chaintest.Deal},
	}
}

// compare makes go-cmp compare DIDs, links and CIDs as the values that they are.
var compare = cmp.Options{
	cmp.Comparer(func(a, b capabilities.DID) bool { return a == b }),
	cmp.Comparer(func(a, b piece.Link) bool { return a == b }),
	cmp.Comparer(func(a, b cid.Cid) bool { return a.Equals(b) }),
}

func TestVerify(t *testing.T) {
	c := chaintest.New()
	got, err := verify(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(proven(c), got, compare); diff != "" {
		t.Errorf("proven (-want +got):\n%s", diff)
	}
}

func TestVerifyFailure(t *testing.T) {
	c := chaintest.NewInvalid()
	got, err := verify(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if got.Failure == nil || got.Failure.Name != capabilities.InvalidContentPiece {
		t.Fatalf("failure is %v, want %s", got.Failure, capabilities.InvalidContentPiece)
	}
	var m capabilities.Mismatch
	if err := got.Failure.ReadDetails(&struct{ *named }{&named{&m}}); err != nil {
		t.Fatal(err)
	}
	if m.Computed != c.Other || m.Piece != c.Piece || !m.Content.Equals(c.Content) {
		t.Errorf("the failure is about %+v", m)
	}
	if got.Agent != c.Agent.DID() || got.Storefront != c.Storefront.DID() || got.Piece != c.Piece || !got.Content.Equals(c.Content) {
		t.Errorf("proven: %+v", got)
	}
	if got.Deal.DealID != 0 || got.Aggregate.Defined() || got.Dealer.Defined() {
		t.Errorf("a failed offer proves a deal: %+v", got)
	}
}

// named are the details of a failure as they stand beside its name and message.
type named struct{ details capabilities.Struct }

func (n *named) Fields() []capabilities.Field {
	return append(n.details.Fields(), capabilities.Field{Key: "name", Value: new(string)}, capabilities.Field{Key: "message", Value: new(string)})
}

// tampering is one thing wrong with a chain that is otherwise as it should be.
type tampering struct {
	name string
	do   func(c *chaintest.Chain)
	want string // part of the error
}

// ends tells what every link of a chain that ends in a deal can suffer.
func everyLink() []tampering {
	var all []tampering
	mallory := chaintest.Key("mallory")
	for _, can := range chaintest.Abilities {
		add := func(name string, do func(c *chaintest.Chain, l *chaintest.Link), want string) {
			all = append(all, tampering{can + ": " + name, func(c *chaintest.Chain) { do(c, c.Links[can]) }, want})
		}
		add("signature", func(_ *chaintest.Chain, l *chaintest.Link) { l.Forge = chaintest.FlipSignature }, "the receipt of "+can)
		add("issued by somebody else", func(_ *chaintest.Chain, l *chaintest.Link) { l.Signer = mallory }, "the receipt of "+can)
		add("signed by somebody else in the issuer's name", func(_ *chaintest.Chain, l *chaintest.Link) {
			issuer := l.Signer.DID()
			l.Signer, l.Forge = mallory, chaintest.Claim(issuer)
		}, "the receipt of "+can)
		add("issuer renamed", func(_ *chaintest.Chain, l *chaintest.Link) { l.Forge = chaintest.Claim(mallory.DID()) }, "the receipt of "+can)
		add("ran another task", func(c *chaintest.Chain, l *chaintest.Link) {
			stranger := chaintest.Invoke(mallory, mallory.DID(), mallory.DID().String(), &filecoin.Info{Piece: c.Piece}, capabilities.Terms{})
			l.Ran = stranger.Link()
		}, missing(can, "the receipt of "))
		add("receipt missing", func(_ *chaintest.Chain, l *chaintest.Link) { l.Pending = true }, missing(can, "the receipt of "))
		add("invocation missing", func(_ *chaintest.Chain, l *chaintest.Link) { l.Lost = true }, missing(can, "the invocation of "))
		add("invocation forged", func(c *chaintest.Chain, l *chaintest.Link) {
			issuer := l.Task.Issuer
			nb := capabilities.Raw(l.Task.Capabilities[0].Nb)
			t := chaintest.Invoke(mallory, l.Task.Audience, l.Task.Resource(), raw{can, nb}, capabilities.Terms{})
			c.Replace(can, chaintest.Claimed(t, issuer))
		}, "the invocation of "+can)
		if can != filecoin.OfferAbility {
			add("invoked by somebody else", func(c *chaintest.Chain, l *chaintest.Link) {
				nb := capabilities.Raw(l.Task.Capabilities[0].Nb)
				c.Replace(can, chaintest.Invoke(mallory, l.Task.Audience, l.Task.Resource(), raw{can, nb}, capabilities.Terms{}))
			}, "")
		}
		if can != filecoin.AcceptAbility {
			add("failed, and success claimed", func(_ *chaintest.Chain, l *chaintest.Link) {
				l.Failure = capabilities.Fail("Broken", "it did not work")
			}, "Broken")
		}
		add("result of another shape", func(_ *chaintest.Chain, l *chaintest.Link) { l.OK = &filecoin.Info{} }, "")
	}
	return all
}

// missing is what is said of a missing part: without that of the offer a file is no chain at all.
func missing(can, part string) string {
	if can == filecoin.OfferAbility {
		return "no receipt of filecoin/offer"
	}
	return part + can
}

// raw is caveats as they are.
type raw struct {
	can string
	nb  capabilities.Raw
}

func (r raw) Ability() string { return r.can }
func (r raw) Fields() []capabilities.Field {
	var fields []capabilities.Field
	if err := capabilities.Decode(r.nb, collect{&fields}); err != nil {
		panic(err)
	}
	return fields
}
