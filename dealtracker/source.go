package dealtracker

import (
	"context"

	"github.com/storacha/w3filecoin/piece"
)

// EventKind says what happened to a deal. The names are the chain's own (FIP-0083).
type EventKind string

// What can happen to a deal of the storage market actor.
const (
	Published  EventKind = "deal-published"
	Activated  EventKind = "deal-activated"
	Terminated EventKind = "deal-terminated"
	Completed  EventKind = "deal-completed"
)

// Event is one thing that happened to one deal on chain.
type Event struct {
	// ID is the same for the same event however often it is read: message CID and index of the event in it.
	ID   string
	Kind EventKind
	// Epoch at which it happened.
	Epoch int64
	// Reverted: the chain took it back in a reorganisation.
	Reverted bool
	Deal     Proposal
}

// Proposal is what the chain says of a deal, whatever became of it.
type Proposal struct {
	ID uint64
	// Piece is the deal's piece: root and padded size as proposed, padding zero (the chain knows no payload size).
	Piece      piece.Link
	Provider   string // actor address, "f01234"
	Client     string // actor address
	StartEpoch int64  // the deal must be active by then
	EndEpoch   int64
	Verified   bool
}

// Head is how far the chain is, and how much of it can no longer change.
type Head struct {
	Epoch     int64
	Finalized int64
}

// Source reads deals from Filecoin. It holds no state: the tracker keeps the cursor.
type Source interface {
	// Name says where the facts come from, for the evidence kept with each deal.
	Name() string

	// Head returns the chain's head.
	Head(ctx context.Context) (Head, error)

	// Events returns what happened in the epochs from..to, both included, in order of epoch. The same event may be returned
	// by any number of calls. An error means that the range was not read completely and has to be read again; a source that
	// finds the node lacking a part of the range returns an error too, never a silently shorter answer. Unreadable single
	// deals are skipped with an entry in the log, so that one bad deal cannot hold up the others.
	Events(ctx context.Context, from, to int64) ([]Event, error)

	// EpochTime returns the time of an epoch in Unix seconds.
	EpochTime(epoch int64) int64
}
