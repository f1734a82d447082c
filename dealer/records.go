package dealer

import (
	"context"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// State is where an aggregate stands at the dealer.
type State string

// The states of an aggregate. Dealt is terminal.
const (
	Offered   State = "offered"   // acknowledged, no broker has it yet
	Published State = "published" // a broker has it
	Dealt     State = "dealt"     // in as many active deals as the policy asks for
)

// Aggregate is one aggregate, under `aggregate/{aggregate}` and `{pieces}/{nonce}`.
type Aggregate struct {
	Aggregate piece.Link `cbor:"a"`
	Pieces    cid.Cid    `cbor:"p"` // blob of the list
	// Nonce is the CID of the offer that carried a nonce, empty for all others.
	Nonce   string `cbor:"n,omitzero"`
	Count   int    `cbor:"c"`  // pieces
	Content uint64 `cbor:"pb"` // padded bytes of pieces

	// Offer is the first offer of it, and Aggregator who made that; everybody who offered stands in by-rows.
	Offer      cid.Cid `cbor:"o"`
	Aggregator string  `cbor:"ag"`
	Accept     cid.Cid `cbor:"at"` // task aggregate/accept

	State State `cbor:"s"`
	// Why it waits, and when something is tried next.
	Reason string `cbor:"r,omitzero"`
	Next   int64  `cbor:"x,omitzero"`
	// Polls counts the questions to the deal tracker.
	Polls int `cbor:"po,omitzero"`
	// Attempts counts the providers that were seen with a deal of it, Lost those of them whose deals have all ended; as of the last poll.
	Attempts int `cbor:"pa,omitzero"`
	Lost     int `cbor:"pl,omitzero"`

	// Deal is the deal that made it a success, AcceptReceipt the conclusion of aggregate/accept; once Dealt.
	Deal          uint64 `cbor:"d,omitzero"`
	AcceptReceipt []byte `cbor:"ar,omitzero"`

	// Times of entering each state, in milliseconds since the Unix epoch.
	Times map[State]int64 `cbor:"t"`
}

func (a *Aggregate) enter(s State, now time.Time) {
	a.State, a.Reason, a.Next = s, "", 0
	if a.Times == nil {
		a.Times = map[State]int64{}
	}
	a.Times[s] = now.UnixMilli()
}

func aggregatePartition(a piece.Link) string { return "aggregate/" + a.String() }

func aggregateKey(a piece.Link, pieces cid.Cid, nonce string) store.Key {
	return store.Key{Partition: aggregatePartition(a), Sort: pieces.String() + "/" + nonce}
}

// By is one offer of an aggregate, under `by/{aggregate row}` and the offer's task. Each gets the receipt in the end.
type By struct {
	Aggregator string `cbor:"a"` // DID
	At         int64  `cbor:"t"` // acknowledged
}

func byPartition(agg store.Key) string { return "by/" + agg.Partition + "/" + agg.Sort }

// Offering is an aggregate's way to one broker, under `offer/{aggregate row}` and the broker's name. It is there before the broker is asked.
type Offering struct {
	// Name is the outside name that the broker gave; empty until it has.
	Name   string `cbor:"n,omitzero"`
	Since  int64  `cbor:"s"`           // first tried
	At     int64  `cbor:"a,omitzero"`  // published
	Tries  int    `cbor:"t,omitzero"`  // that failed
	Reason string `cbor:"r,omitzero"`  // why the last one did
	Next   int64  `cbor:"nx,omitzero"` // try
}

func offeringPartition(agg store.Key) string { return "offer/" + agg.Partition + "/" + agg.Sort }

func offeringKey(agg store.Key, broker string) store.Key {
	return store.Key{Partition: offeringPartition(agg), Sort: broker}
}

// maxList bounds the stored list of an aggregate's pieces, in bytes: no message that brings one is larger.
const maxList = 32 << 20

// pieces reads the list of an aggregate's pieces.
func (s *Service) pieces(ctx context.Context, list cid.Cid) ([]piece.Link, error) {
	b, err := store.ReadBlob(ctx, s.Store, list, maxList)
	if err != nil {
		return nil, err
	}
	links, err := aggregate.ReadPieces(b)
	if err != nil {
		return nil, fmt.Errorf("stored list %s: %w", list, err)
	}
	return links, nil
}
