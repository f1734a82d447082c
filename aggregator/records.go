package aggregator

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// State is where a piece or an aggregate stands.
type State string

// States of a piece.
const (
	Pending    State = "pending"
	Aggregated State = "aggregated"
	Ended      State = "ended" // waited too long in quarantine
)

// States of an aggregate. Dealt and Failed are terminal.
const (
	Offered   State = "offered"   // built, on its way to the dealer
	Published State = "published" // the dealer has it
	Dealt     State = "dealt"
	Failed    State = "failed"
)

// Piece is one piece of one group, under `piece/{piece}` and `{group}/{nonce}`.
type Piece struct {
	Piece      piece.Link `cbor:"p"`
	Group      string     `cbor:"g"`
	Storefront string     `cbor:"s"`
	Nonce      string     `cbor:"n,omitzero"`
	Lane       string     `cbor:"l"`
	Offer      cid.Cid    `cbor:"o"` // task piece/offer
	Accept     cid.Cid    `cbor:"a"` // task piece/accept
	// Plan is the plan that claimed the piece, or [noPlan]; empty while it is pending.
	Plan string `cbor:"pl,omitzero"`
	// Aggregate is the row of its aggregate and AcceptPacked the receipt of piece/accept, once the walk has come by. An ended piece has the receipt alone.
	Aggregate    store.Key    `cbor:"ag,omitzero"`
	AcceptPacked tasks.Packed `cbor:"ap,omitzero"`
	// Attempt counts the aggregates that it was in before this one.
	Attempt    uint64 `cbor:"at,omitzero"`
	Since      int64  `cbor:"t"`           // acknowledged, in milliseconds since the Unix epoch
	Aggregated int64  `cbor:"tg,omitzero"` // entered an aggregate
	Ended      int64  `cbor:"te,omitzero"` // ended in quarantine
}

// State returns where the piece stands.
func (p *Piece) State() State {
	switch {
	case p.Ended != 0:
		return Ended
	case p.AcceptPacked.Pack.Defined():
		return Aggregated
	}
	return Pending
}

func piecePartition(p piece.Link) string { return "piece/" + p.String() }

func pieceKey(p piece.Link, group, nonce string) store.Key {
	return store.Key{Partition: piecePartition(p), Sort: group + "/" + nonce}
}

// listing puts a pending piece into the index of its lane and height: retries first, then by age.
func (p *Piece) listing() store.Listing {
	class := "1"
	if p.Attempt > 0 {
		class = "0"
	}
	return store.Listing{Index: laneIndex(p.Lane, p.Piece.Height()), Sort: class + "/" + timestamp(p.Since)}
}

func laneIndex(lane string, height uint8) string { return fmt.Sprintf("lane/%s/%02d", lane, height) }

// timestamp is a time that sorts as text.
func timestamp(ms int64) string { return fmt.Sprintf("%014d", ms) }

// age reads the time back from the sort text of a listing.
func age(sort string) time.Time {
	ms, _ := strconv.ParseInt(sort[strings.LastIndexByte(sort, '/')+1:], 10, 64)
	return time.UnixMilli(ms)
}

// Lane is a queue of pieces that may share aggregates, under `lane/{name}`. Its tick goes on for ever: there are few lanes.
type Lane struct {
	Name string `cbor:"n"`
	// Heights is the set of tree heights that pieces of the lane have had, a bit each.
	Heights uint64 `cbor:"h"`
	// Counts are pending pieces by height, counted as the ticks pass over the index; a hint that may be off.
	Counts map[uint8]int64 `cbor:"c,omitzero"`
	// Cursors is how far each height has been counted.
	Cursors map[uint8]string `cbor:"k,omitzero"`
	// Round tells the present tick from late ones, Next is when it is due.
	Round uint64 `cbor:"r"`
	Next  int64  `cbor:"x"`
	// Seq counts plans; Plan is the one under way, empty if none, Planned when it began.
	Seq     uint64 `cbor:"q,omitzero"`
	Plan    string `cbor:"p,omitzero"`
	Planned int64  `cbor:"pt,omitzero"`
	// Waiting says why an overdue lane does not close, since when, and NotBefore when to try again.
	Waiting   string `cbor:"w,omitzero"`
	Since     int64  `cbor:"s,omitzero"`
	NotBefore int64  `cbor:"b,omitzero"`
	// Recount is when an overdue lane may count from the beginning again.
	Recount int64 `cbor:"rc,omitzero"`
}

func laneKey(name string) store.Key { return store.Key{Partition: "lane/" + name} }

// content is the pending content by the counts, in padded bytes.
func (l *Lane) content() (sum uint64) {
	for h, n := range l.Counts {
		if n > 0 {
			sum += uint64(n) * (piece.NodeSize << h)
		}
	}
	return sum
}

// Plan is one close of a lane, under `plan/{lane}` and its number.
type Plan struct {
	Lane       string    `cbor:"l"`
	ID         string    `cbor:"i"`
	DealSize   uint64    `cbor:"d"`
	Candidates cid.Cid   `cbor:"c"` // blob of [candidates]
	Count      int       `cbor:"n"`
	Claimed    int       `cbor:"cl,omitzero"` // candidates tried so far
	Done       bool      `cbor:"dn,omitzero"`
	Aggregate  store.Key `cbor:"a,omitzero"` // once Done, unless too little was left
}

func planKey(lane, id string) store.Key { return store.Key{Partition: "plan/" + lane, Sort: id} }

func planID(seq uint64) string { return fmt.Sprintf("%010d", seq) }

// candidates is what a plan means to claim.
type candidates struct {
	Keys []store.Key `cbor:"k"`
}

// members is what an aggregate holds: its pieces in their exact order, and whose they are.
type members struct {
	DealSize uint64       `cbor:"d"`
	Pieces   []piece.Link `cbor:"p"`
	Members  []member     `cbor:"m"`
}

// member is one piece row in an aggregate; rows with equal links share an entry.
type member struct {
	Key   store.Key `cbor:"k"`
	Entry int       `cbor:"e"`
}

// Aggregate is one aggregate, under `aggregate/{aggregate}` and the plan that made it.
type Aggregate struct {
	Aggregate   piece.Link `cbor:"a"`
	Plan        string     `cbor:"p"`
	DealSize    uint64     `cbor:"d"`
	Content     uint64     `cbor:"c"` // padded bytes of pieces
	Count       int        `cbor:"n"`
	Order       cid.Cid    `cbor:"o"`  // blob of [members]
	Pieces      cid.Cid    `cbor:"pc"` // blob of the list of pieces, as the dealer gets it
	Offer       cid.Cid    `cbor:"ot"` // task aggregate/offer
	OfferTask   []byte     `cbor:"om"` // its message
	Accept      cid.Cid    `cbor:"at,omitzero"`
	Storefronts []string   `cbor:"s"`
	Walked      int        `cbor:"w,omitzero"` // members whose receipts are made
	State       State      `cbor:"st"`
	Deal        uint64     `cbor:"dl,omitzero"`
	Reason      string     `cbor:"r,omitzero"`
	Tries       int        `cbor:"tr,omitzero"`
	Next        int64      `cbor:"nx,omitzero"`
	Pulls       int        `cbor:"pu,omitzero"`

	Oldest int64           `cbor:"ol"` // when its oldest piece was acknowledged
	Times  map[State]int64 `cbor:"t"`
}

func (a *Aggregate) enter(s State, now time.Time) {
	a.State, a.Reason, a.Tries, a.Next = s, "", 0, 0
	if a.Times == nil {
		a.Times = map[State]int64{}
	}
	a.Times[s] = now.UnixMilli()
}

func aggregatePartition(a piece.Link) string { return "aggregate/" + a.String() }

func aggregateKey(a piece.Link, lane, plan string) store.Key {
	return store.Key{Partition: aggregatePartition(a), Sort: lane + "/" + plan}
}

// readBlob reads a blob of ours into v.
func readBlob(ctx context.Context, blobs store.Blobs, c cid.Cid, v any) error {
	b, err := store.ReadBlob(ctx, blobs, c, 256<<20)
	if err != nil {
		return err
	}
	return store.Decode(b, v)
}

func putBlob(ctx context.Context, blobs store.Blobs, v any) (cid.Cid, error) {
	b, err := store.Encode(v)
	if err != nil {
		return cid.Undef, err
	}
	blob := store.RawBlob(b)
	return blob.CID, store.PutBlob(ctx, blobs, blob)
}

// offerTask returns the aggregate/offer task as it was signed.
func (a *Aggregate) offerTask() (capabilities.Task, error) {
	m, err := (&tasks.Record{Message: a.OfferTask}).Decode()
	if err != nil {
		return capabilities.Task{}, err
	}
	t, ok := capabilities.FindTask(m, a.Offer)
	if !ok {
		return capabilities.Task{}, fmt.Errorf("the row of aggregate %s lacks its task", a.Aggregate)
	}
	return t, nil
}
