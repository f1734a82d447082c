package tasks

import (
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
)

// Step is the move of a piece or an aggregate to another state, told after it was committed: what to log and to measure. A step is told once, or not
// at all if the process ends or the engine reports the commit as lost.
type Step struct {
	Of   string     // "piece" or "aggregate"
	Link piece.Link // of it
	To   string     // the state it has now
	// Task is the invocation that brought it here: filecoin/offer, piece/offer or aggregate/offer.
	Task   cid.Cid
	Reason string        // why it is there, if that needs one
	Age    time.Duration // since its first state
}

// Age returns the time since the earliest of the moments, in milliseconds since the Unix epoch, at which states were entered.
func Age[S comparable](times map[S]int64, now time.Time) time.Duration {
	first := now.UnixMilli()
	for _, t := range times {
		first = min(first, t)
	}
	return now.Sub(time.UnixMilli(first))
}
