// Package piece is the contract of the aggregator: piece/offer and piece/accept (w3-filecoin specification).
package piece

import (
	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// Abilities of the aggregator.
const (
	OfferAbility  = "piece/offer"
	AcceptAbility = "piece/accept"
)

// QuarantineSuffix ends the groups of pieces that a storefront wants apart from its other ones, because of who offered them: the aggregator gives
// them a lane, and so aggregates, of their own.
const QuarantineSuffix = "/quarantine"

// Offer asks the aggregator to put a piece into an aggregate.
type Offer struct {
	Piece piece.Link
	// Group is whose piece this is: the DID of a storefront, or that DID + "/" + a suffix of the storefront's choice.
	// Pieces of one group may share an aggregate.
	Group string
}

func (*Offer) Ability() string { return OfferAbility }
func (o *Offer) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &o.Piece}, {Key: "group", Value: &o.Group}}
}

// Accept is the effect of an offer: the piece is in an aggregate.
type Accept struct {
	Piece piece.Link
	Group string
}

func (*Accept) Ability() string { return AcceptAbility }
func (a *Accept) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &a.Piece}, {Key: "group", Value: &a.Group}}
}

// OfferOK acknowledges the piece.
type OfferOK struct {
	Piece piece.Link
}

func (o *OfferOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &o.Piece}}
}

// AcceptOK proves that the piece is part of the aggregate.
type AcceptOK struct {
	Piece     piece.Link
	Aggregate piece.Link
	Inclusion capabilities.Inclusion
}

func (o *AcceptOK) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "piece", Value: &o.Piece},
		{Key: "aggregate", Value: &o.Aggregate},
		{Key: "inclusion", Value: &o.Inclusion},
	}
}

// Verify checks that the inclusion proof leads from the piece to the aggregate.
func (o *AcceptOK) Verify() error {
	return segment.Verify(o.Inclusion.InclusionProof, o.Piece, o.Aggregate)
}
