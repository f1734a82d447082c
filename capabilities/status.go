package capabilities

import "time"

// Status is what a role knows about a CID: a piece, a content or an aggregate. It is for people and their tools; what it says is proven by
// the receipts whose tasks it names. It holds nothing of spaces and agents.
type Status struct {
	Role       string            `json:"role"`
	CID        string            `json:"cid"`
	Pieces     []PieceStatus     `json:"pieces,omitempty"`
	Aggregates []AggregateStatus `json:"aggregates,omitempty"`
}

// PieceStatus is where one piece stands. A piece that was offered with several contents, or in several groups, has several.
type PieceStatus struct {
	Piece   string `json:"piece"`
	Content string `json:"content,omitempty"`
	Group   string `json:"group,omitempty"`
	Waiting
	// Tasks maps abilities to task CIDs: GET /receipt/{task} has the receipt of each that is concluded.
	Tasks     map[string]string `json:"tasks,omitempty"`
	Aggregate string            `json:"aggregate,omitempty"`
	Deal      uint64            `json:"deal,omitempty"`
	Attempts  uint64            `json:"attempts,omitempty"` // aggregates it has been in
}

// AggregateStatus is where one aggregate stands.
type AggregateStatus struct {
	Aggregate string `json:"aggregate"`
	DealSize  uint64 `json:"dealSize"`          // padded bytes
	Content   uint64 `json:"content,omitempty"` // padded bytes of its pieces
	Count     int    `json:"pieces,omitempty"`
	Waiting
	Tasks map[string]string `json:"tasks,omitempty"`
	Deal  uint64            `json:"deal,omitempty"`
}

// Waiting is a state, and why it is not yet the next one.
type Waiting struct {
	State  string               `json:"state"`
	Since  time.Time            `json:"since,omitzero"` // in this state
	Reason string               `json:"reason,omitempty"`
	Next   time.Time            `json:"nextTry,omitzero"`
	Times  map[string]time.Time `json:"times,omitempty"` // when each state was entered
}

// NewWaiting makes the common part of a status from a row's fields; times are milliseconds since the Unix epoch.
func NewWaiting[S ~string](state S, times map[S]int64, reason string, next int64) Waiting {
	w := Waiting{State: string(state), Reason: reason, Times: map[string]time.Time{}}
	for s, ms := range times {
		w.Times[string(s)] = time.UnixMilli(ms).UTC()
	}
	w.Since = w.Times[string(state)]
	if next != 0 {
		w.Next = time.UnixMilli(next).UTC()
	}
	return w
}
