package aggregator_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store/storetest"
)

// quarantined is a yard in which pieces may wait for six hours in quarantine, and the inbox of its storefront.
func quarantined(t *testing.T, lag time.Duration, choose storetest.Chooser) (*yard, *chaintest.Inbox) {
	t.Helper()
	var inbox *chaintest.Inbox
	y := newYardWith(t, lag, choose, func(d *aggregator.Deps) {
		d.Timing.Tick, d.Timing.Quarantine = 10*time.Minute, 6*time.Hour
		inbox = chaintest.NewInbox(t, chaintest.Key("storefront"))
		d.Conn = func(did string) (capabilities.Conn, bool) { return inbox, did == inbox.Signer.DID().String() }
	})
	return y, inbox
}

// apart offers a piece in the group that its storefront keeps apart, until it is acknowledged, and returns the task piece/accept.
func (y *yard) apart(p piece.Link) cid.Cid {
	y.t.Helper()
	group := y.storefront.DID().String() + piececap.QuarantineSuffix
	if err := storetest.Again(func() error { return y.offer(y.storefront, y.self.DID().String(), p, group) }); err != nil {
		y.t.Fatal(err)
	}
	return chaintest.Invoke(y.self, y.self.DID(), y.self.DID().String(), &piececap.Accept{Piece: p, Group: group}, capabilities.Terms{}).Link()
}

func (y *yard) stateOf(p piece.Link) capabilities.PieceStatus {
	y.t.Helper()
	var status *capabilities.Status
	err := storetest.Again(func() (err error) {
		status, err = y.Status(y.t.Context(), p.CID())
		return err
	})
	if err != nil {
		y.t.Fatal(err)
	}
	return status.Pieces[0]
}

// ended checks that a piece has ended, that its receipt says so, and that its storefront has it.
func (y *yard) ended(p piece.Link, accept cid.Cid, inbox *chaintest.Inbox) {
	y.t.Helper()
	if s := y.stateOf(p); s.State != "ended" || !strings.Contains(s.Reason, "too little came") || s.Aggregate != "" {
		y.t.Errorf("piece %s: %+v", p, s)
	}
	var m *capabilities.Message
	err := storetest.Again(func() (err error) {
		m, err = y.Receipt(y.t.Context(), accept)
		return err
	})
	if err != nil {
		y.t.Fatal(err)
	}
	r := m.Receipt(accept)
	task, _ := capabilities.FindTask(m, accept)
	if err := capabilities.VerifyReceipt(y.t.Context(), r, task.UCAN, chaintest.Keys{}); err != nil {
		y.t.Error(err)
	}
	if f := capabilities.ReadFailure(r.Out.Error); f.Name != capabilities.QuarantineEnded || !f.Terminal() || r.Join.Defined() || len(r.Fork) != 0 {
		y.t.Errorf("piece/accept states %v, joins %s, forks %v", f, r.Join, r.Fork)
	}
	if !inbox.Receipts[accept].Equals(r.Link()) {
		y.t.Errorf("the storefront has %s of piece %s, the aggregator serves %s", inbox.Receipts[accept], p, r.Link())
	}
}

// TestQuarantineEnds: a piece that is kept apart waits for volume as long as it may, and no longer; others wait for ever.
func TestQuarantineEnds(t *testing.T) {
	y, inbox := quarantined(t, lag, nil)
	old, late, common := synthetic(t, 1, 128*kib), synthetic(t, 2, 64*kib), synthetic(t, 3, 128*kib)
	y.take(common)
	oldAccept := y.apart(old)
	y.pass(3 * time.Hour)
	lateAccept := y.apart(late)
	y.pass(2*time.Hour + 30*time.Minute)
	if s := y.stateOf(old); s.State != "pending" || !strings.HasPrefix(s.Reason, "volume") {
		t.Errorf("before its time: %+v", s)
	}
	y.pass(time.Hour)
	y.ended(old, oldAccept, inbox)
	if s := y.stateOf(late); s.State != "pending" {
		t.Errorf("the later one: %+v", s)
	}
	y.pass(3 * time.Hour)
	y.ended(late, lateAccept, inbox)
	if _, listed := y.rows("piece/"); len(listed) != 1 {
		t.Errorf("still listed: %q", listed)
	}
	if s := y.stateOf(common); s.State != "pending" {
		t.Errorf("one that is not kept apart: %+v", s)
	}
	// What comes later does not find the ended ones.
	big := synthetic(t, 4, 512*kib)
	y.apart(big)
	y.pass(3 * time.Hour)
	if len(y.offered) != 1 || !slices.Equal(y.offered[0].pieces, []piece.Link{big}) {
		t.Errorf("aggregates: %+v", y.offered)
	}
	messages := len(inbox.Messages)
	y.stage.Replay()
	y.pass(3 * time.Hour)
	if len(inbox.Receipts) != 3 || len(inbox.Messages) > 2*messages {
		t.Errorf("%d receipts in %d messages, %d before all was repeated", len(inbox.Receipts), len(inbox.Messages), messages)
	}
}

// TestQuarantineIsFilled: what comes in time makes an aggregate of pieces that are kept apart too.
func TestQuarantineIsFilled(t *testing.T) {
	y, inbox := quarantined(t, lag, nil)
	old, big := synthetic(t, 1, 128*kib), synthetic(t, 2, 512*kib)
	accept := y.apart(old)
	y.pass(4 * time.Hour)
	y.apart(big)
	y.pass(12 * time.Hour)
	if len(y.offered) != 1 || !slices.Equal(y.offered[0].pieces, []piece.Link{big, old}) {
		t.Fatalf("aggregates: %+v", y.offered)
	}
	if s := y.stateOf(old); s.State != "aggregated" || !inbox.Receipts[accept].Defined() {
		t.Errorf("%+v, the storefront has %s", s, inbox.Receipts[accept])
	}
}

// TestQuarantineFaults: whatever call fails while pieces end, each ends once, by one receipt, and none is forgotten.
func TestQuarantineFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		armed := false
		y, inbox := quarantined(t, time.Second, func(c storetest.Call) storetest.Fault {
			if !armed {
				return storetest.None
			}
			return choose(c)
		})
		a, b := synthetic(t, 1, 128*kib), synthetic(t, 2, 64*kib)
		acceptA := y.apart(a)
		acceptB := y.apart(b)
		y.pass(5*time.Hour + 55*time.Minute)
		armed = true
		y.pass(30 * time.Minute)
		armed = false
		y.pass(3 * time.Hour)
		y.ended(a, acceptA, inbox)
		y.ended(b, acceptB, inbox)
		if _, listed := y.rows("piece/"); len(listed) != 0 {
			t.Errorf("still listed: %q", listed)
		}
	})
}
