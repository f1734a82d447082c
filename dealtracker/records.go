package dealtracker

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// Deal is what the chain says of one deal, under `deal/{piece}` and the deal's id.
type Deal struct {
	ID       uint64     `cbor:"i"`
	Piece    piece.Link `cbor:"p"`
	Provider string     `cbor:"pr"`
	Client   string     `cbor:"c"`
	Start    int64      `cbor:"s"` // epochs
	End      int64      `cbor:"e"`
	Verified bool       `cbor:"v,omitzero"`
	Source   string     `cbor:"src"` // that told of it first
	At       int64      `cbor:"a"`   // first heard of, in milliseconds since the Unix epoch
}

// dealPartition holds the deals of a piece. The chain knows root and size of a piece, not how much of it is payload.
func dealPartition(p piece.Link) string {
	if bare, err := piece.FromRootAndHeight(p.Root(), p.Height(), 0); err == nil {
		p = bare
	}
	return "deal/" + p.String()
}

func dealKey(p piece.Link, id uint64) store.Key {
	return store.Key{Partition: dealPartition(p), Sort: fmt.Sprintf("%020d", id)}
}

// History is all that was read of one deal, under `history/{deal id}`. Events are only ever added: one that the chain took back is followed by
// a second one that says so. They are kept in an order of their own, so that equal sets are equal rows.
type History struct {
	Events []Happening `cbor:"e"`
}

// Happening is one event in a history.
type Happening struct {
	ID    string    `cbor:"i"`
	Kind  EventKind `cbor:"k"`
	Epoch int64     `cbor:"e"`
	// Piece is the deal's piece as of the reading, undefined if the source had it no more. After a reorganisation a deal id may stand for
	// another deal.
	Piece piece.Link `cbor:"p,omitzero"`
	// Reverted: this entry takes back the event of the same ID and epoch.
	Reverted bool `cbor:"r,omitzero"`
	// Final: read when its epoch could no longer change.
	Final bool `cbor:"f,omitzero"`
}

// maxHistory bounds a history. A deal has three events; the rest is room for reorganisations.
const maxHistory = 128

func historyKey(id uint64) store.Key {
	return store.Key{Partition: fmt.Sprintf("history/%020d", id)}
}

// add merges an event into the history and reports whether that changed it.
func (h *History) add(e Event, final bool) (changed bool, err error) {
	n := Happening{ID: e.ID, Kind: e.Kind, Epoch: e.Epoch, Piece: e.Deal.Piece, Reverted: e.Reverted, Final: final}
	i, there := slices.BinarySearchFunc(h.Events, n, compare)
	switch {
	case there && (h.Events[i].Final || !final):
		return false, nil
	case there:
		h.Events[i].Final = true
	case len(h.Events) >= maxHistory:
		return false, fmt.Errorf("deal %d has more than %d events", e.Deal.ID, maxHistory)
	default:
		h.Events = slices.Insert(h.Events, i, n)
	}
	return true, nil
}

// compare orders happenings by all but Final.
func compare(a, b Happening) int {
	reverted := func(h Happening) int {
		if h.Reverted {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(reverted(a), reverted(b)), a.Piece.Compare(b.Piece))
}

// Cursor is how far a source has been read, under `cursor/{source}`, and the poll's timer.
type Cursor struct {
	// Begun is set by the first successful poll, which decides where reading begins.
	Begun bool `cbor:"b,omitzero"`
	// Final is the last epoch that was read when it was final, with all before it since the beginning. Mark is the furthest that Final has
	// been: a restart moves Final back.
	Final int64 `cbor:"f"`
	Mark  int64 `cbor:"m"`
	// Seen is the last epoch that was read at all.
	Seen int64 `cbor:"s"`
	// Head and Finalized are the chain's at the last poll, at the time At in milliseconds since the Unix epoch.
	Head      int64 `cbor:"h"`
	Finalized int64 `cbor:"hf"`
	At        int64 `cbor:"a,omitzero"`

	// Round tells the present poll from late messages; Next is when it is due.
	Round uint64 `cbor:"n"`
	Next  int64  `cbor:"x"`
	// Reason is why the last poll failed, Tries how many in a row have.
	Reason string `cbor:"r,omitzero"`
	Tries  int    `cbor:"t,omitzero"`
}

func cursorKey(source string) store.Key { return store.Key{Partition: "cursor/" + source} }

// judge works out what became of a deal, by its history and by how far the chain has been read. It reports false if the chain took back all
// that was known of the deal.
func judge(d *Deal, h *History, cur *Cursor, c Confidence) (out deal.Deal, known bool) {
	var activated, activating, ended, completed bool
	out = deal.Deal{Provider: d.Provider, Expiration: d.End, Source: d.Source}
	for _, e := range h.Events {
		if e.Reverted || e.Piece.Defined() && e.Piece != d.Piece {
			continue
		}
		stands, final := h.stands(e, cur.Mark)
		if !stands {
			continue
		}
		known = true
		switch e.Kind {
		case Activated:
			activating = true
			if final || c == Seen {
				activated, out.Activation = true, e.Epoch
			}
		case Terminated:
			ended, out.Expiration = true, e.Epoch
		case Completed:
			completed = true
		}
	}
	switch {
	case ended:
		out.Status = deal.StatusTerminated
	case completed, d.End != 0 && cur.Head >= d.End:
		out.Status = deal.StatusExpired
	case activated:
		out.Status = deal.StatusActive
	case !activating && d.Start != 0 && cur.Mark >= d.Start:
		out.Status = deal.StatusExpired
	default:
		out.Status = deal.StatusPublished
	}
	return out, known
}

// stands reports whether an event is part of the chain as far as that is known, and whether it will stay so. mark is the last epoch read
// when it was final.
func (h *History) stands(e Happening, mark int64) (stands, final bool) {
	var reverted, revertedForGood bool
	for _, other := range h.Events {
		if other.ID == e.ID && other.Epoch == e.Epoch && other.Reverted {
			reverted, revertedForGood = true, revertedForGood || other.Final
		}
	}
	switch {
	case revertedForGood:
		return false, true
	case e.Final:
		return true, true
	case reverted:
		return false, false
	default:
		// Read ahead, but not there any more when the epoch became final: nobody told that it was taken back, and yet it was.
		return e.Epoch > mark, false
	}
}
