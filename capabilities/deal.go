package capabilities

import (
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// DealMetadata is how the protocol names a deal: {dataType: 0, dataSource: {dealID}}.
type DealMetadata struct {
	// DataType is 0 for a deal of the storage market actor, the only one in the published protocol.
	DataType uint64
	DealID   uint64
}

func (m *DealMetadata) Fields() []Field {
	return []Field{{Key: "dataType", Value: &m.DataType}, {Key: "dataSource", Value: (*dataSource)(m)}}
}

type dataSource DealMetadata

func (s *dataSource) Fields() []Field { return []Field{{Key: "dealID", Value: &s.DealID}} }

// Inclusion is the proof that a piece is part of an aggregate, written as {subtree: [offset, [nodes]], index: [offset, [nodes]]}.
type Inclusion struct {
	segment.InclusionProof
}

func (p *Inclusion) AppendCBOR(b []byte) []byte { return p.InclusionProof.AppendCBOR(b) }
func (p *Inclusion) IsZero() bool               { return len(p.Subtree.Path) == 0 && len(p.Index.Path) == 0 }
func (p *Inclusion) ReadCBOR(r *cbor.Reader) {
	raw := r.Raw()
	if r.Err() != nil {
		return
	}
	if err := p.InclusionProof.UnmarshalCBOR(raw); err != nil {
		r.Failf("inclusion proof: %v", err)
	}
}
