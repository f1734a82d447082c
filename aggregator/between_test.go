package aggregator_test

import (
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store/storetest"
)

// TestReceiptComesBetween: the receipt of aggregate/accept comes between two commits of the step that is to wait for it, and the process ends after
// the second. The step, when it is repeated, finds the receipt; and where it is never repeated, whoever looks after aggregates that wait does.
func TestReceiptComesBetween(t *testing.T) {
	for name, tt := range map[string]struct {
		repeated bool
		within   time.Duration
	}{
		"the step is repeated": {true, 10 * time.Minute},
		"the step is lost":     {false, 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var y *yard
			came, ended := false, false
			y = newFaultyYard(t, func(c storetest.Call) storetest.Fault {
				switch {
				case came && !ended: // nothing that the step does after that
					if ended = c.Method == "Retry"; ended && tt.repeated {
						return storetest.None
					}
					return storetest.FailBefore // a message that is not given back keeps its lease
				case !came && storetest.Commits(c) && len(c.Change.Messages) == 1 && c.Change.Messages[0].Queue == "pull-aggregate":
					y.deal(y.offered[0], y.offered[0].link)
					if worked, err := y.stage.Consumer("aggregate-accepted").Step(t.Context()); !worked || err != nil {
						t.Errorf("nobody is told of the receipt: %v", err)
					}
					came = true
					return storetest.FailAfter
				}
				return storetest.None
			})
			y.take(synthetic(t, 1, 512*kib))
			for end := y.clock().Add(2 * lag); !came && y.clock().Before(end); {
				y.pass(time.Second)
			}
			if !came || !tt.repeated && y.dealt() {
				t.Fatalf("the receipt came: %t", came)
			}
			if !tt.repeated {
				lost, err := y.stage.Engine.Receive(t.Context(), "aggregate-offer", 1, time.Minute)
				for err == nil && len(lost) == 0 {
					next, _ := y.stage.Engine.NextEvent()
					y.stage.Clock.Advance(next.Sub(y.clock()))
					lost, err = y.stage.Engine.Receive(t.Context(), "aggregate-offer", 1, time.Minute)
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := y.stage.Engine.Ack(t.Context(), lost[0]); err != nil {
					t.Fatal(err)
				}
			}
			y.pass(tt.within)
			if !y.dealt() {
				t.Errorf("it is not dealt after %v", tt.within)
			}
		})
	}
}

// dealt reports whether the first aggregate has a deal.
func (y *yard) dealt() bool {
	y.t.Helper()
	status, err := y.Status(y.t.Context(), y.offered[0].link.CID())
	if err != nil {
		y.t.Fatal(err)
	}
	return status.Aggregates[0].State == "dealt"
}
