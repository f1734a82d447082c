// Package deal is the contract of the deal tracker: deal/info (w3-filecoin specification).
package deal

import (
	"sort"
	"strconv"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// InfoAbility is the ability of the deal tracker.
const InfoAbility = "deal/info"

// Info asks which deals hold a piece (usually an aggregate).
type Info struct {
	Piece piece.Link
}

func (*Info) Ability() string { return InfoAbility }
func (i *Info) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "piece", Value: &i.Piece}}
}

// Status of a deal. The predecessor's tracker gave none.
const (
	StatusPublished  = "published"  // on chain, not yet proven to be stored
	StatusActive     = "active"     // the provider has proven that it stores the data
	StatusTerminated = "terminated" // ended early, by the provider or by a penalty
	StatusExpired    = "expired"    // ended at its end epoch, or never became active
)

// InfoOK lists the deals known for a piece, by deal id; none known is an empty list.
type InfoOK struct {
	Deals Deals
}

func (o *InfoOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "deals", Value: &o.Deals}}
}

// Deals maps deal ids to deals; on the wire the id is the key, in decimal.
type Deals map[uint64]Deal

// Deal is what the tracker knows of one deal. Only Provider is in the published protocol; clients pass over the rest.
type Deal struct {
	// Provider is the storage provider's actor address, "f01234".
	Provider string
	// Status is one of the Status constants; empty where the tracker does not tell.
	Status string
	// Activation and Expiration are chain epochs, 0 where unknown.
	Activation, Expiration int64
	// Source says where the facts come from.
	Source string
}

func (d *Deal) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "provider", Value: &d.Provider},
		{Key: "status", Value: &d.Status, Optional: true},
		{Key: "activation", Value: &d.Activation, Optional: true},
		{Key: "expiration", Value: &d.Expiration, Optional: true},
		{Key: "source", Value: &d.Source, Optional: true},
	}
}

func (d *Deals) IsZero() bool { return len(*d) == 0 }

func (d *Deals) AppendCBOR(b []byte) []byte {
	keys := make([]string, 0, len(*d))
	for id := range *d {
		keys = append(keys, strconv.FormatUint(id, 10))
	}
	sort.Slice(keys, func(i, j int) bool { return cbor.CompareKeys(keys[i], keys[j]) < 0 })
	b = cbor.AppendMap(b, len(keys))
	for _, k := range keys {
		id, _ := strconv.ParseUint(k, 10, 64)
		deal := (*d)[id]
		b = append(cbor.AppendText(b, k), capabilities.Encode(&deal)...)
	}
	return b
}

func (d *Deals) ReadCBOR(r *cbor.Reader) {
	*d = Deals{}
	for range r.Map() {
		id, err := strconv.ParseUint(string(r.Key()), 10, 64)
		if err != nil {
			r.Failf("deal id is not a number")
			return
		}
		var deal Deal
		capabilities.ReadStruct(r, &deal)
		(*d)[id] = deal
	}
}
