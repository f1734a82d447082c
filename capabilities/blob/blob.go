// Package blob is the contract between a storage service and those who keep bytes for it: blob/allocate and blob/accept (w3-blob
// protocol). A storefront invokes both on itself, as effects of space/blob/add.
package blob

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities of whoever keeps bytes.
const (
	AllocateAbility = "blob/allocate"
	AcceptAbility   = "blob/accept"
)

// Blob names a byte string of so many bytes.
type Blob struct {
	Digest Digest
	Size   uint64 // bytes
}

// Fields implements [capabilities.Struct].
func (b *Blob) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "digest", Value: &b.Digest}, {Key: "size", Value: &b.Size}}
}

// CID returns the CID of the whole byte string: raw, version 1.
func (b Blob) CID() cid.Cid { return cid.NewCidV1(cid.Raw, multihash.Multihash(b.Digest)) }

// Digest is a multihash, as bytes on the wire.
type Digest multihash.Multihash

// IsZero implements [capabilities.Codec].
func (d *Digest) IsZero() bool { return len(*d) == 0 }

// AppendCBOR implements [capabilities.Codec].
func (d *Digest) AppendCBOR(b []byte) []byte { return cbor.AppendBytes(b, *d) }

// ReadCBOR implements [capabilities.Codec].
func (d *Digest) ReadCBOR(r *cbor.Reader) {
	raw := r.Bytes()
	if r.Err() != nil {
		return
	}
	mh, err := multihash.Cast(raw)
	if err != nil {
		r.Failf("digest is not a multihash: %v", err)
		return
	}
	*d = Digest(mh)
}

// Provider returns the principal in whose name http/put of a blob is invoked and concluded. Its key follows from the digest, so whoever
// has the bytes, or only their hash, can sign as it: its word alone proves nothing.
func (d Digest) Provider() (capabilities.Signer, error) {
	decoded, err := multihash.Decode(multihash.Multihash(d))
	if err != nil {
		return capabilities.Signer{}, fmt.Errorf("deriving the provider of a blob: %w", err)
	}
	if len(decoded.Digest) < 32 {
		return capabilities.Signer{}, fmt.Errorf("deriving the provider of a blob: the digest has %d bytes, 32 are needed", len(decoded.Digest))
	}
	return wire.SignerOfSeed(decoded.Digest[len(decoded.Digest)-32:])
}

// Allocate asks for room for a blob.
type Allocate struct {
	Blob  Blob
	Cause cid.Cid // task space/blob/add
	Space Space
}

// Ability implements [capabilities.Caveats].
func (*Allocate) Ability() string { return AllocateAbility }

// Fields implements [capabilities.Struct].
func (a *Allocate) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &a.Blob}, {Key: "cause", Value: &a.Cause}, {Key: "space", Value: &a.Space}}
}

// AllocateOK says how many bytes were set aside, and where they go: nowhere if the blob is there already, which takes no room.
type AllocateOK struct {
	Size    uint64
	Address *Address
}

// Fields implements [capabilities.Struct].
func (o *AllocateOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "size", Value: &o.Size}, {Key: "address", Value: (*optionalAddress)(o), Optional: true}}
}

// Address takes exactly the allocated blob by HTTP PUT.
type Address struct {
	URL     string
	Headers Headers // to be sent with it
	Expires uint64  // seconds since 1970 UTC
}

// Fields implements [capabilities.Struct].
func (a *Address) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "url", Value: &a.URL}, {Key: "headers", Value: &a.Headers}, {Key: "expires", Value: &a.Expires}}
}

// optionalAddress is the address of an [AllocateOK], nil where it has none.
type optionalAddress AllocateOK

func (o *optionalAddress) IsZero() bool { return o.Address == nil }

func (o *optionalAddress) AppendCBOR(b []byte) []byte {
	return append(b, capabilities.Encode(o.Address)...)
}

func (o *optionalAddress) ReadCBOR(r *cbor.Reader) {
	o.Address = new(Address)
	capabilities.ReadStruct(r, o.Address)
}

// Headers are HTTP headers, one value each.
type Headers map[string]string

// IsZero implements [capabilities.Codec].
func (h *Headers) IsZero() bool { return len(*h) == 0 }

// AppendCBOR implements [capabilities.Codec].
func (h *Headers) AppendCBOR(b []byte) []byte {
	b = cbor.AppendMap(b, len(*h))
	for _, k := range slices.SortedFunc(maps.Keys(*h), cbor.CompareKeys) {
		b = cbor.AppendText(cbor.AppendText(b, k), (*h)[k])
	}
	return b
}

// ReadCBOR implements [capabilities.Codec].
func (h *Headers) ReadCBOR(r *cbor.Reader) {
	*h = Headers{}
	for range r.Map() {
		k := string(r.Key())
		(*h)[k] = r.Text()
	}
}

// Accept asks to make a blob retrievable, once it has been delivered.
type Accept struct {
	Blob  Blob
	Space Space
	// Put awaits http/put.
	Put capabilities.Await
}

// Ability implements [capabilities.Caveats].
func (*Accept) Ability() string { return AcceptAbility }

// Fields implements [capabilities.Struct].
func (a *Accept) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &a.Blob}, {Key: "space", Value: &a.Space}, {Key: "_put", Value: &a.Put}}
}

// AcceptOK links the claim (assert/location) that says where the blob can be read. The receipt forks it.
type AcceptOK struct {
	Site cid.Cid
}

// Fields implements [capabilities.Struct].
func (o *AcceptOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "site", Value: &o.Site}}
}

// Space is the DID of a space, in its byte form on the wire.
type Space struct{ capabilities.DID }

// IsZero implements [capabilities.Codec].
func (s *Space) IsZero() bool { return !s.Defined() }

// AppendCBOR implements [capabilities.Codec].
func (s *Space) AppendCBOR(b []byte) []byte { return cbor.AppendBytes(b, s.Bytes()) }

// ReadCBOR implements [capabilities.Codec].
func (s *Space) ReadCBOR(r *cbor.Reader) {
	raw := r.Bytes()
	if r.Err() != nil {
		return
	}
	did, err := wire.DecodeDID(raw)
	if err != nil {
		r.Failf("space is not a DID: %v", err)
		return
	}
	s.DID = did
}
