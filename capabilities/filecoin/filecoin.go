// Package filecoin is the contract of the storefront: filecoin/offer, filecoin/submit, filecoin/accept and filecoin/info
// (w3-filecoin specification).
package filecoin

import (
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities of the storefront.
const (
	OfferAbility  = "filecoin/offer"
	SubmitAbility = "filecoin/submit"
	AcceptAbility = "filecoin/accept"
	InfoAbility   = "filecoin/info"
)

// Offer asks the storefront to get content into a Filecoin deal. An agent invokes it on a space, or on its own DID.
type Offer struct {
	Content cid.Cid
	Piece   piece.Link
	// PDP links a pdp/accept invocation, for content that a storage node already proves possession of. Optional.
	PDP cid.Cid
}

func (*Offer) Ability() string { return OfferAbility }
func (o *Offer) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "content", Value: &o.Content},
		{Key: "piece", Value: &o.Piece},
		{Key: "PDP", Value: &o.PDP, Optional: true},
	}
}

// Submit is the effect of an offer: the piece has been validated and was handed to the aggregator. The storefront invokes it on itself.
type Submit struct {
	Content cid.Cid
	Piece   piece.Link
}

func (*Submit) Ability() string { return SubmitAbility }
func (s *Submit) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "content", Value: &s.Content}, {Key: "piece", Value: &s.Piece}}
}

// Accept is the effect that ends an offer: the piece is in a deal, or never will be.
type Accept struct {
	Content cid.Cid
	Piece   piece.Link
}

func (*Accept) Ability() string { return AcceptAbility }
func (a *Accept) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "content", Value: &a.Content}, {Key: "piece", Value: &a.Piece}}
}

// Info asks what became of a piece.
type Info struct {
	Piece piece.Link
}

func (*Info) Ability() string { return InfoAbility }
func (i *Info) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &i.Piece}}
}

// PieceOK is the result of filecoin/offer and of filecoin/submit.
type PieceOK struct {
	Piece piece.Link
}

func (o *PieceOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &o.Piece}}
}

// AcceptOK proves that the piece is part of an aggregate that is in a deal.
type AcceptOK struct {
	Piece     piece.Link
	Aggregate piece.Link
	Inclusion capabilities.Inclusion
	Aux       capabilities.DealMetadata
}

func (o *AcceptOK) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "piece", Value: &o.Piece},
		{Key: "aggregate", Value: &o.Aggregate},
		{Key: "inclusion", Value: &o.Inclusion},
		{Key: "aux", Value: &o.Aux},
	}
}

// InfoOK is what is known of a piece: the aggregates it is in and the deals that hold them. Both are empty while it waits.
type InfoOK struct {
	Piece      piece.Link
	Aggregates Aggregates
	Deals      Deals
}

func (o *InfoOK) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "piece", Value: &o.Piece},
		{Key: "aggregates", Value: &o.Aggregates},
		{Key: "deals", Value: &o.Deals},
	}
}

// Aggregates is a list of [InfoAggregate].
type Aggregates []InfoAggregate

// InfoAggregate is an aggregate with the proof that the piece is in it.
type InfoAggregate struct {
	Aggregate piece.Link
	Inclusion capabilities.Inclusion
}

func (a *InfoAggregate) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "aggregate", Value: &a.Aggregate}, {Key: "inclusion", Value: &a.Inclusion}}
}

func (l *Aggregates) AppendCBOR(b []byte) []byte { return capabilities.AppendList(b, *l) }
func (l *Aggregates) ReadCBOR(r *cbor.Reader)    { *l = capabilities.ReadList[InfoAggregate](r) }
func (l *Aggregates) IsZero() bool               { return len(*l) == 0 }

// Deals is a list of [InfoDeal].
type Deals []InfoDeal

// InfoDeal is one deal that holds one of the aggregates.
type InfoDeal struct {
	Aggregate piece.Link
	// Provider is the storage provider's actor address.
	Provider string
	Aux      capabilities.DealMetadata
}

func (d *InfoDeal) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "aggregate", Value: &d.Aggregate},
		{Key: "provider", Value: &d.Provider},
		{Key: "aux", Value: &d.Aux},
	}
}

func (l *Deals) AppendCBOR(b []byte) []byte { return capabilities.AppendList(b, *l) }
func (l *Deals) ReadCBOR(r *cbor.Reader)    { *l = capabilities.ReadList[InfoDeal](r) }
func (l *Deals) IsZero() bool               { return len(*l) == 0 }

// Verify checks that the inclusion proof leads from the piece to the aggregate.
func (o *AcceptOK) Verify() error {
	return segment.Verify(o.Inclusion.InclusionProof, o.Piece, o.Aggregate)
}
