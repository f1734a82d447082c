// Package aggregate is the contract of the dealer: aggregate/offer and aggregate/accept (w3-filecoin specification).
package aggregate

import (
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities of the dealer.
const (
	OfferAbility  = "aggregate/offer"
	AcceptAbility = "aggregate/accept"
)

// Offer asks the dealer to get an aggregate into deals. The block that Pieces links travels with the invocation; see [Pieces].
type Offer struct {
	Aggregate piece.Link
	Pieces    cid.Cid
}

func (*Offer) Ability() string { return OfferAbility }
func (o *Offer) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "aggregate", Value: &o.Aggregate}, {Key: "pieces", Value: &o.Pieces}}
}

// Accept is the effect of an offer: the aggregate is in a deal, or failed.
type Accept struct {
	Aggregate piece.Link
	Pieces    cid.Cid
}

func (*Accept) Ability() string { return AcceptAbility }
func (a *Accept) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "aggregate", Value: &a.Aggregate}, {Key: "pieces", Value: &a.Pieces}}
}

// OfferOK acknowledges the aggregate.
type OfferOK struct {
	Aggregate piece.Link
}

func (o *OfferOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "aggregate", Value: &o.Aggregate}}
}

// AcceptOK names the deal that holds the aggregate. On the wire the deal's metadata stands beside the aggregate, not in a map of its own.
type AcceptOK struct {
	Aggregate piece.Link
	capabilities.DealMetadata
}

func (o *AcceptOK) Fields() []capabilities.Field {
	return append(o.DealMetadata.Fields(), capabilities.Field{Key: "aggregate", Value: &o.Aggregate})
}

// Pieces is the list of an aggregate's pieces in aggregate order, as a block: a DAG-CBOR array of links, about 44 bytes per piece.
func Pieces(links []piece.Link) capabilities.Block {
	b := cbor.AppendArray(make([]byte, 0, 9+48*len(links)), len(links))
	for _, l := range links {
		b = cbor.AppendLink(b, l.CID())
	}
	return wire.EncodeBlock(b)
}

// ReadPieces reads the block written by [Pieces].
func ReadPieces(b []byte) ([]piece.Link, error) {
	r := cbor.NewReader(b)
	n := r.Array()
	links := make([]piece.Link, 0, min(n, len(b)/40))
	for i := range n {
		c := r.Link()
		if r.Err() != nil {
			break
		}
		l, err := piece.FromCID(c)
		if err != nil {
			return nil, fmt.Errorf("reading piece %d of the list: %w", i, err)
		}
		links = append(links, l)
	}
	if err := r.Done(); err != nil {
		return nil, fmt.Errorf("reading the list of pieces: %w", err)
	}
	return links, nil
}
