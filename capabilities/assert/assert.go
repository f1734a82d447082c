// Package assert is the contract of content claims: assert/location, assert/equals, assert/inclusion and assert/index (content claims
// protocol).
package assert

import (
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities of claims.
const (
	LocationAbility  = "assert/location"
	EqualsAbility    = "assert/equals"
	InclusionAbility = "assert/inclusion"
	IndexAbility     = "assert/index"
)

// Location claims that content can be read at addresses.
type Location struct {
	Content  Content
	Location []string
	// Range is the part of the bytes at the address that is the content; the whole when absent.
	Range *Range
	// Space is the DID bytes of the space that the content belongs to; optional.
	Space []byte
}

func (*Location) Ability() string { return LocationAbility }
func (l *Location) Fields() []capabilities.Field {
	if l.Range == nil {
		l.Range = &Range{}
	}
	return []capabilities.Field{
		{Key: "content", Value: &l.Content},
		{Key: "location", Value: &l.Location},
		{Key: "range", Value: l.Range, Optional: true},
		{Key: "space", Value: &l.Space, Optional: true},
	}
}

// Range is a part of a byte string; Length 0 means to its end.
type Range struct {
	Offset, Length uint64
}

func (r *Range) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "offset", Value: &r.Offset}, {Key: "length", Value: &r.Length, Optional: true}}
}

// Equals claims that two CIDs stand for the same bytes: a content and its piece.
type Equals struct {
	Content Content
	Equals  cid.Cid
}

func (*Equals) Ability() string { return EqualsAbility }
func (e *Equals) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "content", Value: &e.Content}, {Key: "equals", Value: &e.Equals}}
}

// Inclusion claims that a content includes what another CID, of an index, lists.
type Inclusion struct {
	Content  Content
	Includes cid.Cid
	Proof    cid.Cid // optional
}

// Ability implements [capabilities.Caveats].
func (*Inclusion) Ability() string { return InclusionAbility }

// Fields implements [capabilities.Struct].
func (i *Inclusion) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "content", Value: &i.Content}, {Key: "includes", Value: &i.Includes}, {Key: "proof", Value: &i.Proof, Optional: true},
	}
}

// Index claims that the DAG of a content can be found by an index, which is a CAR.
type Index struct {
	Content Content
	Index   cid.Cid
}

// Ability implements [capabilities.Caveats].
func (*Index) Ability() string { return IndexAbility }

// Fields implements [capabilities.Struct].
func (i *Index) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "content", Value: &i.Content}, {Key: "index", Value: &i.Index}}
}

// OK is the result of every claim: an empty map.
type OK struct{}

// Fields implements [capabilities.Struct].
func (*OK) Fields() []capabilities.Field { return nil }

// Content names the content of a claim: by link, or by {digest: multihash}.
type Content struct {
	Link   cid.Cid
	Digest multihash.Multihash
}

// Multihash returns the hash of the content, whichever way it is named.
func (c Content) Multihash() multihash.Multihash {
	if c.Link.Defined() {
		return c.Link.Hash()
	}
	return c.Digest
}

func (c *Content) IsZero() bool { return !c.Link.Defined() && len(c.Digest) == 0 }

func (c *Content) AppendCBOR(b []byte) []byte {
	if c.Link.Defined() {
		return cbor.AppendLink(b, c.Link)
	}
	b = cbor.AppendMap(b, 1)
	return cbor.AppendBytes(cbor.AppendText(b, "digest"), c.Digest)
}

func (c *Content) ReadCBOR(r *cbor.Reader) {
	if r.Peek() == cbor.Link {
		*c = Content{Link: r.Link()}
		return
	}
	var d digest
	capabilities.ReadStruct(r, &d)
	if r.Err() != nil {
		return
	}
	mh, err := multihash.Cast(d.bytes)
	if err != nil {
		r.Failf("digest is not a multihash: %v", err)
		return
	}
	*c = Content{Digest: mh}
}

type digest struct{ bytes []byte }

func (d *digest) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "digest", Value: &d.bytes}}
}
