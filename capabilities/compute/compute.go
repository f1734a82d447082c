// Package compute is the contract of a piece CID provider: compute/piececid (w3-compute draft).
package compute

import (
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
)

// PieceCIDAbility is the ability of a compute provider.
const PieceCIDAbility = "compute/piececid"

// PieceCID asks for the piece CID of content. Claims of where the content lies (assert/location) travel with the invocation.
type PieceCID struct {
	Content cid.Cid
}

func (*PieceCID) Ability() string { return PieceCIDAbility }
func (p *PieceCID) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "content", Value: &p.Content}}
}

// PieceCIDOK is the piece of exactly the bytes that hash to the content CID.
type PieceCIDOK struct {
	Piece piece.Link
}

func (o *PieceCIDOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &o.Piece}}
}
