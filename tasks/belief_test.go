package tasks

import (
	"context"
	"errors"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store"
)

// replies is a connection on which everything is answered with one message.
type replies struct{ message *capabilities.Message }

func (r replies) Execute(context.Context, *capabilities.Message) (*capabilities.Message, error) {
	return r.message, nil
}

func (r replies) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return r.message, nil
}

// TestExecute: an answer is believed for what it is, not for the connection that it came over.
func TestExecute(t *testing.T) {
	task, err := capabilities.Invoke(front, agg.DID(), agg.DID().String(), &piececap.Offer{Piece: link(t), Group: "g"}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by capabilities.Signer, ok capabilities.Struct) *capabilities.Receipt {
		r, err := capabilities.Issue(by, task.Link(), ok, capabilities.Effects{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	failed, err := capabilities.IssueFailure(agg, task.Link(), capabilities.NewAggregationFailed(5, "no deal"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	right, mallory := &piececap.OfferOK{Piece: link(t)}, testKey(9)
	for _, tt := range []struct {
		name      string
		receipt   *capabilities.Receipt
		believed  bool
		invalid   bool
		forbidden bool // to be pulled
	}{
		{"by the audience", issue(agg, right), true, false, false},
		{"a refusal", failed, true, false, false},
		{"by somebody else", issue(mallory, right), false, true, false},
		{"with a result of another shape", issue(agg, &computecap.PieceCID{Content: task.Link()}), false, true, false},
		{"of another task", acceptReceipt(t, agg, acceptTask(t), link(t), capabilities.Effects{}), false, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			conn := replies{capabilities.Conclusion(tt.receipt, task, capabilities.Effects{})}
			r, conclusion, err := f.ledger.Execute(ctx, conn, task)
			if (err == nil) != tt.believed || errors.Is(err, capabilities.ErrInvalidReceipt) != tt.invalid {
				t.Errorf("got %v", err)
			}
			if tt.believed && (!r.Link().Equals(tt.receipt.Link()) || conclusion.Receipt(task.Link()) == nil) {
				t.Errorf("the receipt is %v, its conclusion %v", r.Link(), conclusion)
			}
			// Pulled, it is judged alike; whether a refusal is kept is another question.
			if _, err := f.ledger.Await(ctx, task.Link(), &task, owner, "arrived", false); err != nil {
				t.Fatal(err)
			}
			outcome, err := f.ledger.Pull(ctx, conn, task.Link())
			if (outcome == Kept) != tt.believed && tt.receipt != failed || errors.Is(err, capabilities.ErrInvalidReceipt) != (tt.invalid || tt.forbidden) {
				t.Errorf("pulled: %v, %v", outcome, err)
			}
		})
	}
}

// TestPassingFailure: what a provider could not find at one time is no answer for good.
func TestPassingFailure(t *testing.T) {
	f := newFixture(t)
	task, err := capabilities.Invoke(front, agg.DID(), agg.DID().String(), &computecap.PieceCID{Content: acceptTask(t).Link()}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ledger.Await(ctx, task.Link(), &task, owner, "arrived", false); err != nil {
		t.Fatal(err)
	}
	missing, err := capabilities.IssueFailure(agg, task.Link(), capabilities.NewContentNotFound(task.Link(), "away"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := capabilities.Issue(agg, task.Link(), &computecap.PieceCIDOK{Piece: link(t)}, capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		r    *capabilities.Receipt
		want Outcome
	}{{missing, Passing}, {found, Kept}, {found, Known}} {
		if got, err := f.ledger.Arrive(ctx, capabilities.Conclusion(step.r, task, capabilities.Effects{}), step.r); got != step.want || err != nil {
			t.Fatalf("got %v, %v, want %v", got, err, step.want)
		}
	}
	if n := len(f.arrivals("arrived")); n != 1 {
		t.Errorf("%d arrivals, want 1", n)
	}
}

// TestConcludeMixed: receipts that are not to be believed do not hurt the others of their message, whichever comes first.
func TestConcludeMixed(t *testing.T) {
	for _, forgedFirst := range []bool{true, false} {
		f := newFixture(t)
		good := acceptTask(t)
		bad := good
		for i := 0; bad.Link().Equals(good.Link()) || (bad.Link().String() < good.Link().String()) != forgedFirst; i++ { // a report is sorted by task
			var err error
			if bad, err = capabilities.Invoke(agg, agg.DID(), agg.DID().String(),
				&piececap.Accept{Piece: link(t), Group: string(rune('a' + i))}, capabilities.Terms{}); err != nil {
				t.Fatal(err)
			}
		}
		m := new(capabilities.Message)
		r := acceptReceipt(t, agg, good, link(t), capabilities.Effects{})
		capabilities.AddConclusion(m, r, good, capabilities.Effects{})
		capabilities.AddConclusion(m, acceptReceipt(t, front, bad, link(t), capabilities.Effects{}), bad, capabilities.Effects{})
		for _, task := range []capabilities.Task{good, bad} {
			if _, err := f.ledger.Await(ctx, task.Link(), &task, owner, "arrived", false); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.ledger.Conclude(front)(ctx, conclude1(t, m, r.Link())); err != nil {
			t.Errorf("forged first %t: %v", forgedFirst, err)
		}
		if got, err := f.ledger.Receipt(ctx, good.Link()); err != nil || !got.Link().Equals(r.Link()) {
			t.Errorf("forged first %t: the good one: %v", forgedFirst, err)
		}
		if _, err := f.ledger.Receipt(ctx, bad.Link()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("forged first %t: the forged one was kept: %v", forgedFirst, err)
		}
	}
}
