// Package chaintest builds chains of receipts, from an offer to a deal, as the roles issue them: for tests of those who read chains. What tests
// of those who issue them share is here too: keys, invocations as they arrive, an [Inbox] for receipts.
//
// [New] gives a chain that holds. A test spoils one part of it, a [Link] or what is done to a finished receipt, and lets [Chain.Message] sign
// the rest, so that nothing but the one part is wrong. Keys are derived from names: equal chains have equal bytes.
package chaintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire"
)

// Abilities of the tasks of a chain, in the order in which a reader comes to them.
var Abilities = []string{
	filecoin.OfferAbility, filecoin.SubmitAbility, computecap.PieceCIDAbility, piececap.OfferAbility, piececap.AcceptAbility,
	aggregatecap.OfferAbility, aggregatecap.AcceptAbility, filecoin.AcceptAbility,
}

// DealSize is the padded size of the aggregates, in bytes.
const DealSize = 1 << 20

// Deal is the deal that a chain ends in.
const Deal = 4242

// StorefrontWeb is the DID in whose name the storefront signs.
const StorefrontWeb = "did:web:storefront.example"

// Link is one task of a chain and what its receipt will state. Tests change it before [Chain.Message].
type Link struct {
	Task capabilities.Task
	// Signer issues the receipt; Ran is the task that it is of.
	Signer capabilities.Signer
	Ran    cid.Cid
	// OK is the result, unless Failure is set.
	OK      capabilities.Struct
	Failure *capabilities.Failure
	Effects capabilities.Effects
	// Pending: there is no receipt yet. Lost: there is one, but the invocation is not in the message.
	Pending, Lost bool
	// Forge replaces the receipt once it is signed; nil to leave it.
	Forge func(*capabilities.Receipt) *capabilities.Receipt
}

// Chain is the making of a chain.
type Chain struct {
	Agent, Storefront, Compute, Aggregator, Dealer capabilities.Signer

	Content   cid.Cid
	Bytes     []byte // the content
	Piece     piece.Link
	Aggregate piece.Link
	Inclusion capabilities.Inclusion
	// Other is another piece of the same aggregate, with its proof.
	Other          piece.Link
	OtherInclusion capabilities.Inclusion
	// Elsewhere is another aggregate that holds the piece, with the proof for that one.
	Elsewhere          piece.Link
	ElsewhereInclusion capabilities.Inclusion

	// Links holds the tasks by ability.
	Links map[string]*Link
}

// Key returns the key of a name.
func Key(name string) capabilities.Signer {
	seed := sha256.Sum256([]byte("key of the " + name))
	s, err := wire.GenerateSigner(bytes.NewReader(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

// New returns a chain that holds.
func New() *Chain {
	c := &Chain{Agent: Key("agent"), Compute: Key("compute"), Aggregator: Key("aggregator"), Dealer: Key("dealer")}
	web := must(wire.ParseDID(StorefrontWeb))
	c.Storefront = must(Key("storefront").WithDID(web))

	c.Bytes = bytes.Repeat([]byte("content of the chain\n"), 300)
	sum := sha256.Sum256(c.Bytes)
	c.Content = cid.NewCidV1(cid.Raw, must(multihash.Encode(sum[:], multihash.SHA2_256)))
	c.Piece = must(piece.Sum(c.Bytes))
	c.Other = must(piece.Sum(bytes.Repeat([]byte("other content\n"), 300)))
	pieces := []piece.Link{c.Other, c.Piece}
	c.Aggregate, c.Inclusion, c.OtherInclusion = c.aggregate(pieces)
	c.Elsewhere, c.ElsewhereInclusion, _ = c.aggregate([]piece.Link{c.Piece, c.Other})

	agent, storefront, compute, aggregator, dealer := c.Agent.DID(), c.Storefront.DID(), c.Compute.DID(), c.Aggregator.DID(), c.Dealer.DID()
	none := capabilities.Terms{}
	offer := Invoke(c.Agent, storefront, agent.String(), &filecoin.Offer{Content: c.Content, Piece: c.Piece}, none)
	submit := Invoke(c.Storefront, storefront, StorefrontWeb, &filecoin.Submit{Content: c.Content, Piece: c.Piece}, none)
	accept := Invoke(c.Storefront, storefront, StorefrontWeb, &filecoin.Accept{Content: c.Content, Piece: c.Piece}, none)
	validation := Invoke(c.Storefront, compute, compute.String(), &computecap.PieceCID{Content: c.Content},
		Standing(c.Compute, storefront, computecap.PieceCIDAbility))
	pieceOffer := Invoke(c.Storefront, aggregator, aggregator.String(), &piececap.Offer{Piece: c.Piece, Group: StorefrontWeb},
		Standing(c.Aggregator, storefront, piececap.OfferAbility))
	pieceAccept := Invoke(c.Aggregator, aggregator, aggregator.String(), &piececap.Accept{Piece: c.Piece, Group: StorefrontWeb}, none)
	list := aggregatecap.Pieces(pieces).CID
	aggregateOffer := Invoke(c.Aggregator, dealer, dealer.String(), &aggregatecap.Offer{Aggregate: c.Aggregate, Pieces: list},
		Standing(c.Dealer, aggregator, aggregatecap.OfferAbility))
	aggregateAccept := Invoke(c.Dealer, dealer, dealer.String(), &aggregatecap.Accept{Aggregate: c.Aggregate, Pieces: list}, none)

	deal := capabilities.DealMetadata{DealID: Deal}
	join := func(t capabilities.Task, fork ...capabilities.Task) capabilities.Effects {
		return capabilities.Effects{Fork: fork, Join: &t}
	}
	c.Links = map[string]*Link{}
	add := func(t capabilities.Task, by capabilities.Signer, ok capabilities.Struct, fx capabilities.Effects) {
		c.Links[t.Can()] = &Link{Task: t, Signer: by, Ran: t.Link(), OK: ok, Effects: fx}
	}
	add(offer, c.Storefront, &filecoin.PieceOK{Piece: c.Piece}, join(accept, submit))
	add(submit, c.Storefront, &filecoin.PieceOK{Piece: c.Piece}, join(pieceOffer, validation))
	add(validation, c.Compute, &computecap.PieceCIDOK{Piece: c.Piece}, capabilities.Effects{})
	add(pieceOffer, c.Aggregator, &piececap.OfferOK{Piece: c.Piece}, join(pieceAccept))
	add(pieceAccept, c.Aggregator, &piececap.AcceptOK{Piece: c.Piece, Aggregate: c.Aggregate, Inclusion: c.Inclusion}, join(aggregateOffer))
	add(aggregateOffer, c.Dealer, &aggregatecap.OfferOK{Aggregate: c.Aggregate}, join(aggregateAccept))
	add(aggregateAccept, c.Dealer, &aggregatecap.AcceptOK{Aggregate: c.Aggregate, DealMetadata: deal}, capabilities.Effects{})
	add(accept, c.Storefront, &filecoin.AcceptOK{Piece: c.Piece, Aggregate: c.Aggregate, Inclusion: c.Inclusion, Aux: deal}, capabilities.Effects{})
	return c
}

// NewInvalid returns a chain that holds and ends in a failure: the content's bytes give another piece than the one that was offered.
func NewInvalid() *Chain {
	c := New()
	mismatch := capabilities.Mismatch{Content: c.Content, Piece: c.Piece, Computed: c.Other}
	c.Links[filecoin.SubmitAbility].Failure = capabilities.NewInvalidPieceCID(mismatch)
	c.Links[filecoin.SubmitAbility].Effects = capabilities.Effects{}
	c.Links[filecoin.AcceptAbility].Failure = capabilities.NewInvalidContentPiece(mismatch)
	for _, can := range Abilities[2 : len(Abilities)-1] {
		delete(c.Links, can)
	}
	return c
}

// Replace puts another task in the place of one, and links it where that one was linked.
func (c *Chain) Replace(can string, t capabilities.Task) {
	old := c.Links[can].Task.Link()
	c.Links[can].Task, c.Links[can].Ran = t, t.Link()
	for _, l := range c.Links {
		for i, f := range l.Effects.Fork {
			if f.Link().Equals(old) {
				l.Effects.Fork[i] = t
			}
		}
		if j := l.Effects.Join; j != nil && j.Link().Equals(old) {
			l.Effects.Join = &t
		}
	}
}

// aggregate builds an aggregate of two pieces and returns it with the proofs of Piece and of Other.
func (c *Chain) aggregate(pieces []piece.Link) (link piece.Link, proof, other capabilities.Inclusion) {
	a := must(segment.Build(DealSize, pieces))
	of := func(p piece.Link) capabilities.Inclusion {
		i, ok := a.EntryOf(p)
		if !ok {
			panic("piece is not in its aggregate")
		}
		return capabilities.Inclusion{InclusionProof: must(a.Proof(i))}
	}
	return a.Link(), of(c.Piece), of(c.Other)
}

// Invoke signs a task.
func Invoke(issuer capabilities.Signer, audience capabilities.DID, with string, nb capabilities.Caveats, terms capabilities.Terms) capabilities.Task {
	return must(capabilities.Invoke(issuer, audience, with, nb, terms))
}

// Standing returns the terms of a task that rests on a standing delegation of the executor's to the invoker.
func Standing(executor capabilities.Signer, invoker capabilities.DID, can string) capabilities.Terms {
	d := must(capabilities.Delegate(executor, invoker, []capabilities.Grant{{Can: can, With: executor.DID().String()}}, capabilities.Terms{}))
	return capabilities.Terms{Proofs: []capabilities.Delegation{d}}
}

// Conclusion returns what GET /receipt serves of one task, nil while it is pending.
func (c *Chain) Conclusion(can string) *capabilities.Message {
	l := c.Links[can]
	if l == nil || l.Pending {
		return nil
	}
	m := new(capabilities.Message)
	if l.Lost {
		m.AddReceipt(l.receipt())
	} else {
		capabilities.AddConclusion(m, l.receipt(), l.Task, l.Effects)
	}
	return m
}

// Message returns the whole chain.
func (c *Chain) Message() *capabilities.Message {
	m := new(capabilities.Message)
	lost := map[cid.Cid]bool{}
	for _, l := range c.Links {
		if l.Lost {
			lost[l.Task.Link()] = true
		}
	}
	for _, can := range Abilities {
		l := c.Links[can]
		if l == nil || l.Pending {
			continue
		}
		var with []capabilities.Block
		for _, b := range capabilities.Conclusion(l.receipt(), l.Task, l.Effects).Blocks() {
			if !lost[b.CID] && !b.CID.Equals(l.receipt().Link()) {
				with = append(with, b)
			}
		}
		m.AddReceipt(l.receipt(), with...)
	}
	return m
}

func (l *Link) receipt() *capabilities.Receipt {
	var r *capabilities.Receipt
	if l.Failure != nil {
		r = must(capabilities.IssueFailure(l.Signer, l.Ran, l.Failure, l.Effects))
	} else {
		r = must(capabilities.Issue(l.Signer, l.Ran, l.OK, l.Effects))
	}
	if l.Forge != nil {
		r = l.Forge(r)
	}
	return r
}

// Claim gives a receipt another issuer and leaves its signature: somebody signs in another's name.
func Claim(issuer capabilities.DID) func(*capabilities.Receipt) *capabilities.Receipt {
	return func(r *capabilities.Receipt) *capabilities.Receipt {
		return remade(r, func(f *capabilities.Receipt) { f.Issuer = issuer })
	}
}

// FlipSignature changes one bit of a receipt's signature.
func FlipSignature(r *capabilities.Receipt) *capabilities.Receipt {
	return remade(r, func(f *capabilities.Receipt) { f.Signature[len(f.Signature)-1] ^= 1 })
}

func remade(r *capabilities.Receipt, change func(*capabilities.Receipt)) *capabilities.Receipt {
	f := &capabilities.Receipt{Ran: r.Ran, Out: r.Out, Fork: r.Fork, Join: r.Join, Meta: r.Meta, Issuer: r.Issuer, Proofs: r.Proofs,
		Signature: bytes.Clone(r.Signature)}
	change(f)
	return must(wire.DecodeReceipt(must(f.Encode())))
}

// By returns the task as somebody else invokes it, without proofs.
func By(signer capabilities.Signer, t capabilities.Task) capabilities.Task {
	return capabilities.Task{UCAN: must(wire.SignUCAN(signer, wire.UCAN{Audience: t.Audience, Capabilities: t.Capabilities}))}
}

// Claimed returns the task with another issuer's name and the signature that it had: one that the issuer never gave.
func Claimed(t capabilities.Task, issuer capabilities.DID) capabilities.Task {
	u := &capabilities.UCAN{Issuer: issuer, Audience: t.Audience, Capabilities: t.Capabilities, Proofs: t.UCAN.Proofs, Expiration: t.Expiration, Nonce: t.Nonce,
		Signature: t.Signature}
	return capabilities.Task{UCAN: must(wire.DecodeUCAN(must(u.Encode()))), Proofs: t.Proofs}
}

// Keys holds the did:key of the DIDs that are of another method. It implements [capabilities.Keys] without a network.
type Keys map[capabilities.DID]capabilities.DID

// Keys returns the keys of the chain's parties.
func (c *Chain) Keys() Keys { return Keys{c.Storefront.DID(): c.Storefront.KeyDID()} }

// Verifier implements [capabilities.Keys].
func (k Keys) Verifier(_ context.Context, did capabilities.DID) (capabilities.Verifier, error) {
	key := did
	if did.Method() != "key" {
		key = k[did]
	}
	v, err := wire.VerifierOf(key)
	if err != nil {
		return v, fmt.Errorf("no key of %s: %w", did, err)
	}
	return v.WithDID(did), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
