// Package pdp is the contract of a storage node that proves possession of what it stores, as far as a storefront is concerned with it: pdp/accept, which an
// offer may link, and pdp/info, by which the node says which piece some content is.
package pdp

import (
	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
)

// Abilities of a storage node.
const (
	AcceptAbility = "pdp/accept"
	InfoAbility   = "pdp/info"
)

// Accept is the node's own task of taking content into its proofs. The `PDP` of filecoin/offer links it.
type Accept struct {
	Blob []byte // multihash of the content
}

func (*Accept) Ability() string { return AcceptAbility }
func (a *Accept) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &a.Blob}}
}

// Info asks a node which piece some content is.
type Info struct {
	Blob []byte // multihash of the content
}

func (*Info) Ability() string { return InfoAbility }
func (i *Info) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &i.Blob}}
}

// InfoOK is the node's word for the piece of the content. The node's own aggregates, which it names as well, are passed over.
type InfoOK struct {
	Piece piece.Link
}

func (o *InfoOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &o.Piece}}
}
