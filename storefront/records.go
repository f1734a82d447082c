package storefront

import (
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// State is where a piece stands at the storefront.
type State string

// The states of a piece. Invalid, Failed and Dealt are terminal.
const (
	Submitted  State = "submitted"  // acknowledged, to be validated
	Validated  State = "validated"  // the content's bytes give this piece
	Offered    State = "offered"    // the aggregator has it
	Aggregated State = "aggregated" // in an aggregate, with proof of inclusion
	Dealt      State = "dealt"      // in a deal that is active on chain
	Invalid    State = "invalid"    // the content's bytes give another piece
	Failed     State = "failed"     // no aggregate with it found a deal
	Expired    State = "expired"    // the content never came, and offering again revives it; or it was kept apart, and too little came with it
)

// Terminal reports whether the state is final.
func (s State) Terminal() bool { return s == Dealt || s == Invalid || s == Failed }

// Piece is one piece of one content, under `piece/{piece}` and `{content}/{nonce}`.
type Piece struct {
	Piece   piece.Link `cbor:"p"`
	Content cid.Cid    `cbor:"c"`
	// Nonce is the CID of the offer that carried a nonce, empty for all others.
	Nonce string `cbor:"n,omitzero"`
	State State  `cbor:"s"`
	// Group is the group it is offered in to the aggregator, settled when it is validated.
	Group string `cbor:"g"`

	// Offer is the first offer of it, Agent who invoked it; later offerers stand in by-rows.
	Offer cid.Cid `cbor:"o"`
	Agent string  `cbor:"oa,omitzero"`
	// Node is the storage node that the offer names as keeping the content, if that is to be asked.
	Node   string  `cbor:"on,omitzero"`
	Submit cid.Cid `cbor:"st"` // task filecoin/submit
	Accept cid.Cid `cbor:"at"` // task filecoin/accept

	// AcceptReceipt is the conclusion of filecoin/accept when it failed; AcceptPacked when it succeeded.
	AcceptReceipt []byte       `cbor:"ar,omitzero"`
	AcceptPacked  tasks.Packed `cbor:"ap,omitzero"`

	// Asked are the compute providers that have taken its validation on, while it is submitted.
	Asked      []Asked `cbor:"as,omitzero"`
	Validation cid.Cid `cbor:"v,omitzero"` // task compute/piececid whose verdict was used
	// Vouched says whose word the piece is taken on, if nobody who is trusted to have read the bytes computed it: a storage node's, or that of a quorum
	// of providers. Such pieces are suspected first.
	Vouched     string    `cbor:"vo,omitzero"`
	PieceOffer  cid.Cid   `cbor:"po,omitzero"` // task piece/offer
	PieceAccept cid.Cid   `cbor:"pa,omitzero"` // task piece/accept
	Aggregate   store.Key `cbor:"ag,omitzero"` // row of the aggregate it is in
	Attempts    uint64    `cbor:"n2,omitzero"` // aggregates it has been in

	// Why it waits; empty while it moves.
	Reason string `cbor:"r,omitzero"`
	Tries  int    `cbor:"tr,omitzero"`
	Next   int64  `cbor:"nx,omitzero"` // next try
	// Times of entering each state, in milliseconds since the Unix epoch, and of the first offer.
	Times map[State]int64 `cbor:"t"`
}

func (p *Piece) enter(s State, now time.Time) {
	p.State, p.Reason, p.Tries, p.Next, p.Asked = s, "", 0, 0, nil
	if p.Times == nil {
		p.Times = map[State]int64{}
	}
	p.Times[s] = now.UnixMilli()
}

func (p *Piece) wait(reason string, next time.Time) {
	p.Reason, p.Next = reason, next.UnixMilli()
	p.Tries++
}

func piecePartition(p piece.Link) string { return "piece/" + p.String() }

func pieceKey(p piece.Link, content cid.Cid, nonce string) store.Key {
	return store.Key{Partition: piecePartition(p), Sort: content.String() + "/" + nonce}
}

// By is one more offer of a piece that was offered before, under `by/{piece}/{content}/{nonce}` and the offer's task.
type By struct {
	Agent string `cbor:"a"`
	Space string `cbor:"s"`
	At    int64  `cbor:"t"`
}

func byPartition(p store.Key) string { return "by/" + p.Partition + "/" + p.Sort }

func byKey(p store.Key, offer cid.Cid) store.Key {
	return store.Key{Partition: byPartition(p), Sort: offer.String()}
}

// Reference points from one row to another: content to its pieces, aggregate to its members.
type Reference struct {
	Key store.Key `cbor:"k"`
}

func contentKey(content cid.Cid, p store.Key) store.Key {
	return store.Key{Partition: "content/" + content.String(), Sort: p.Partition + "/" + p.Sort}
}

func memberPartition(offer cid.Cid) string { return "member/" + offer.String() }

func memberKey(offer cid.Cid, p store.Key) store.Key {
	return store.Key{Partition: memberPartition(offer), Sort: p.Partition + "/" + p.Sort}
}

// Verdict is the piece that verified bytes gave, under `verdict/{multihash}`: a fact, whoever asked for it.
type Verdict struct {
	Piece    piece.Link `cbor:"p"`
	Task     cid.Cid    `cbor:"t"` // compute/piececid
	Provider string     `cbor:"d"`
	At       int64      `cbor:"a"`
}

func verdictKey(content cid.Cid) store.Key {
	return store.Key{Partition: "verdict/" + content.Hash().B58String()}
}

// Aggregate is one aggregate offered to a dealer, as far as the storefront was told, under `aggregate/{aggregate}` and the
// CID of its aggregate/offer task. The storefront waits once per aggregate.
type Aggregate struct {
	Aggregate piece.Link                `cbor:"a"`
	Offer     cid.Cid                   `cbor:"o"`           // task aggregate/offer
	Accept    cid.Cid                   `cbor:"c,omitzero"`  // task aggregate/accept
	Deal      capabilities.DealMetadata `cbor:"d"`           // once Dealt
	Provider  string                    `cbor:"p,omitzero"`  // of that deal, if the deal tracker said so
	Dealt     bool                      `cbor:"ok,omitzero"` // aggregate/accept succeeded
	Failure   string                    `cbor:"f,omitzero"`  // aggregate/accept failed
	Tries     int                       `cbor:"n,omitzero"`  // pulls
	Since     int64                     `cbor:"s"`
}

func aggregatePartition(a piece.Link) string { return "aggregate/" + a.String() }

func aggregateKey(a piece.Link, offer cid.Cid) store.Key {
	return store.Key{Partition: aggregatePartition(a), Sort: offer.String()}
}
