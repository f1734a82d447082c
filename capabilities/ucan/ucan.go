// Package ucan is the contract of the protocol's own abilities: ucan/conclude, ucan/revoke and ucan/attest.
package ucan

import (
	"slices"
	"strconv"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities of the protocol itself.
const (
	ConcludeAbility = "ucan/conclude"
	RevokeAbility   = "ucan/revoke"
	AttestAbility   = "ucan/attest"
)

// Conclude hands over receipts: Receipt links the first of those in the message's report. It authenticates itself: a receipt is
// believed for its own signature, whoever brings it.
type Conclude struct {
	Receipt cid.Cid
}

func (*Conclude) Ability() string { return ConcludeAbility }
func (c *Conclude) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "receipt", Value: &c.Receipt}}
}

// LinksFact is the fact by which an invocation keeps blocks with it that its caveats do not link, in the form of the JavaScript
// packages: the links by their position.
func LinksFact(links ...cid.Cid) []byte {
	keys := make([]string, len(links))
	at := map[string]cid.Cid{}
	for i, c := range links {
		keys[i] = strconv.Itoa(i)
		at[keys[i]] = c
	}
	slices.SortFunc(keys, cbor.CompareKeys)
	b := cbor.AppendMap(nil, len(keys))
	for _, k := range keys {
		b = cbor.AppendLink(cbor.AppendText(b, k), at[k])
	}
	return b
}

// ConcludeOK says when the receipts were taken, in milliseconds since the Unix epoch.
type ConcludeOK struct {
	Time int64
}

func (o *ConcludeOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "time", Value: &o.Time}}
}

// Revoke ends the authority that a delegation gave.
type Revoke struct {
	UCAN cid.Cid
	// Proof is the chain that shows the revoker's authority over the delegation; optional.
	Proof Links
}

func (*Revoke) Ability() string { return RevokeAbility }
func (r *Revoke) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "ucan", Value: &r.UCAN}, {Key: "proof", Value: &r.Proof, Optional: true}}
}

// Attest is an authority's word that it authenticated the issuer of a delegation that carries no signature of its own (sessions).
type Attest struct {
	Proof cid.Cid
}

func (*Attest) Ability() string { return AttestAbility }
func (a *Attest) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "proof", Value: &a.Proof}}
}

// Links is a list of links.
type Links []cid.Cid

func (l *Links) IsZero() bool { return len(*l) == 0 }

func (l *Links) AppendCBOR(b []byte) []byte {
	b = cbor.AppendArray(b, len(*l))
	for _, c := range *l {
		b = cbor.AppendLink(b, c)
	}
	return b
}

func (l *Links) ReadCBOR(r *cbor.Reader) {
	*l = nil
	for range r.Array() {
		*l = append(*l, r.Link())
	}
}
