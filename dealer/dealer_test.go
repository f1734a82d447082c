package dealer_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
)

func TestPathOfAnAggregate(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	task, accept := w.offer(aggregator, agg, pieces, "")

	// The effect is what anybody can compute from the offer: the dealer on itself, no expiry, no nonce, no proofs.
	want, err := capabilities.Invoke(self, self.DID(), self.DID().String(),
		&aggregatecap.Accept{Aggregate: agg, Pieces: aggregatecap.Pieces(pieces).CID}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	if !accept.Equals(want.Link()) {
		t.Errorf("the offer joins %s, want %s", accept, want.Link())
	}
	if got := w.accepted(accept); got != nil {
		t.Errorf("accepted at once: %+v", got)
	}

	w.Run(time.Second)
	if got := w.state(agg); got.State != string(dealer.Published) || got.Reason != "no provider has published a deal yet" {
		t.Errorf("after publishing: %+v", got)
	}
	for _, b := range w.brokers {
		wantOffer := dealer.Offer{Aggregate: agg, Pieces: pieces, Collection: aggregator.DID().String(), OfferedAt: w.Clock.Now().Add(-time.Second)}
		if diff := cmp.Diff(wantOffer, b.offers[agg], cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
			t.Errorf("offer at broker %s (-want +got):\n%s", b.name, diff)
		}
	}
	invoked, err := w.invoke(want)
	if u := (*capabilities.Unavailable)(nil); !errors.As(err, &u) || u.Invalid || u.Accepted || u.RetryAfter == 0 {
		t.Errorf("aggregate/accept before there is a deal: %v, %v", invoked, err)
	}

	w.tracker.deals = deal.Deals{7: {Provider: "f01", Status: deal.StatusPublished}}
	w.Run(2 * time.Minute)
	if got := w.state(agg); got.Reason != "0 of 1 providers with an active deal; deals: 1 published" || !got.Next.After(w.Clock.Now()) {
		t.Errorf("while a deal is published: %+v", got)
	}
	w.tracker.deals = active(9, 7)
	w.Run(time.Hour)
	if diff := cmp.Diff(&aggregatecap.AcceptOK{Aggregate: agg, DealMetadata: capabilities.DealMetadata{DealID: 7}}, w.accepted(accept),
		cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
		t.Fatalf("accepted (-want +got):\n%s", diff)
	}
	if got := w.state(agg); got.State != string(dealer.Dealt) || got.Deal != 7 || got.Reason != "" || got.Tasks[aggregatecap.OfferAbility] != task.Link().String() {
		t.Errorf("in a deal: %+v", got)
	}
	front := w.fronts[aggregator.DID().String()]
	invoked, err = w.invoke(want)
	if err != nil || !front.Receipts[accept].Equals(invoked.Link()) {
		t.Errorf("the aggregator was sent %s, aggregate/accept gives %v, %v", front.Receipts[accept], invoked, err)
	}
	if len(front.Messages) != 1 || len(w.Engine.Waiting()) != 0 {
		t.Errorf("%d messages to the aggregator, still waiting: %v", len(front.Messages), w.Engine.Waiting())
	}
}

// TestOfferRepeated: the same receipt, with and without the list, and after everything.
func TestOfferRepeated(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	task, accept := w.offer(aggregator, agg, pieces, "")
	first, err := w.invoke(task)
	if err != nil {
		t.Fatal(err)
	}
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	// The operator has changed his mind; what was acknowledged stays acknowledged.
	w.deps.DealSizes = []uint64{4 * mib}
	if w.service, err = dealer.New(w.deps); err != nil {
		t.Fatal(err)
	}
	again, err := w.invoke(task, aggregatecap.Pieces(pieces))
	if err != nil || !again.Link().Equals(first.Link()) || !again.Join.Equals(accept) {
		t.Errorf("repeated: %v, %v", again, err)
	}
	w.Run(time.Hour)
	if w.brokers[0].asked != 1 || len(w.fronts[aggregator.DID().String()].Messages) != 1 {
		t.Errorf("the broker was asked %d times, the aggregator told %d times", w.brokers[0].asked, len(w.fronts[aggregator.DID().String()].Messages))
	}
}

func TestRefusals(t *testing.T) {
	agg, pieces := aggregate(1)
	half, halfPieces := build(mib, []piece.Link{link(1, 256*kib, 0)})
	small, smallPieces := build(mib/2, []piece.Link{link(1, 256*kib, 0)})
	list := aggregatecap.Pieces
	offer := func(by capabilities.Signer, agg piece.Link, list capabilities.Block) capabilities.Task {
		return offerTask(by, agg, list.CID, "")
	}
	on := func(with string) capabilities.Task {
		task, err := capabilities.Invoke(aggregator, self.DID(), with, &aggregatecap.Offer{Aggregate: agg, Pieces: list(pieces).CID}, capabilities.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
	garbage := capabilities.Block(store.CBORBlob([]byte{0xa0}))
	tests := []struct {
		name   string
		task   capabilities.Task
		attach []capabilities.Block
		// name of the failure: told to the client, not stored
		failure string
		// or no receipt
		unavailable, invalid bool
		// or a terminal failure that names the computed aggregate
		mismatch bool
		computed piece.Link
	}{
		{name: "a stranger", task: offer(stranger, agg, list(pieces)), attach: []capabilities.Block{list(pieces)}, failure: capabilities.Unauthorized},
		{name: "on somebody else's DID", task: on(second.DID().String()), attach: []capabilities.Block{list(pieces)}, failure: capabilities.UnsupportedCapability},
		{name: "without the list", task: offer(aggregator, agg, list(pieces)), unavailable: true, invalid: true},
		{name: "with another list", task: offer(aggregator, agg, list(pieces)), attach: []capabilities.Block{list(halfPieces)}, unavailable: true, invalid: true},
		{name: "a list that is none", task: offer(aggregator, agg, garbage), attach: []capabilities.Block{garbage}, unavailable: true, invalid: true},
		{name: "a size that no broker takes", task: offer(aggregator, small, list(smallPieces)), attach: []capabilities.Block{list(smallPieces)}, unavailable: true},

		{name: "another order", task: offer(aggregator, agg, list([]piece.Link{pieces[1], pieces[0]})),
			attach: []capabilities.Block{list([]piece.Link{pieces[1], pieces[0]})}, mismatch: true},
		{name: "a piece less", task: offer(aggregator, agg, list(pieces[:1])), attach: []capabilities.Block{list(pieces[:1])}, mismatch: true,
			computed: func() piece.Link { l, _ := build(mib, pieces[:1]); return l }()},
		{name: "no piece", task: offer(aggregator, agg, list(nil)), attach: []capabilities.Block{list(nil)}, mismatch: true},
		{name: "a piece twice", task: offer(aggregator, agg, list([]piece.Link{pieces[1], pieces[1]})),
			attach: []capabilities.Block{list([]piece.Link{pieces[1], pieces[1]})}, mismatch: true},
		{name: "too much", task: offer(aggregator, agg, list([]piece.Link{link(1, mib, 0)})),
			attach: []capabilities.Block{list([]piece.Link{link(1, mib, 0)})}, mismatch: true},
		{name: "less than half", task: offer(aggregator, half, list(halfPieces)), attach: []capabilities.Block{list(halfPieces)}, mismatch: true, computed: half},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil, nil)
			r, err := w.invoke(tt.task, tt.attach...)
			var failure *capabilities.Failure
			var unavailable *capabilities.Unavailable
			switch {
			case tt.failure != "":
				if !errors.As(err, &failure) || failure.Name != tt.failure {
					t.Errorf("got %v, want failure %s", err, tt.failure)
				}
			case tt.unavailable:
				if !errors.As(err, &unavailable) || unavailable.Invalid != tt.invalid || unavailable.Accepted {
					t.Errorf("got %v", err)
				}
			case tt.mismatch:
				if err != nil {
					t.Fatal(err)
				}
				var ok aggregatecap.OfferOK
				if err := capabilities.ReadResult(r.Out, &ok); !errors.As(err, &failure) || failure.Name != capabilities.AggregateMismatch {
					t.Fatalf("got %v", err)
				}
				var details aggregateDetails
				if err := failure.ReadDetails(&details); err != nil {
					t.Fatal(err)
				}
				if details.Computed != tt.computed && !(tt.name == "another order" && details.Computed.Defined()) {
					t.Errorf("computed %s, want %s", details.Computed, tt.computed)
				}
				kept, err := w.service.Receipt(t.Context(), tt.task.Link())
				if err != nil || !kept.Receipt(tt.task.Link()).Link().Equals(r.Link()) {
					t.Errorf("a final refusal has to be kept: %v, %v", kept, err)
				}
				if again, err := w.invoke(tt.task); err != nil || !again.Link().Equals(r.Link()) {
					t.Errorf("repeated without the list: %v, %v", again, err)
				}
			}
			if !tt.mismatch {
				if rows := w.Rows(func(store.Key) bool { return true }); len(rows) != 0 {
					t.Errorf("a refusal that is not final has left rows: %v", rows)
				}
			}
			w.Run(time.Hour)
			if w.brokers[0].asked != 0 || w.tracker.asked != 0 {
				t.Error("work was done for a refused offer")
			}
		})
	}
}

// aggregateDetails are the details of AggregateMismatch.
type aggregateDetails struct{ Aggregate, Computed piece.Link }

func (d *aggregateDetails) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "aggregate", Value: &d.Aggregate}, {Key: "computed", Value: &d.Computed, Optional: true}}
}

// TestLongList: a list that does not ride in the commit.
func TestLongList(t *testing.T) {
	w := newWorld(t, nil, nil)
	var pieces []piece.Link
	for i := range uint64(segment.MaxEntries(128 * mib)) {
		pieces = append(pieces, link(i, 64*kib, 0))
	}
	agg, _ := build(128*mib, pieces)
	if n := len(aggregatecap.Pieces(pieces).Bytes); n <= store.MaxInlineBlob {
		t.Fatalf("the list has only %d bytes", n)
	}
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	if got := w.accepted(accept); got == nil || got.DealID != 7 {
		t.Errorf("accepted %+v", got)
	}
	if got := w.brokers[1].offers[agg]; len(got.Pieces) != len(pieces) {
		t.Errorf("published %d pieces of %d", len(got.Pieces), len(pieces))
	}
}

// TestNonce: an offer with a nonce is one of its own, and so is what follows from it.
func TestNonce(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	_, plain := w.offer(aggregator, agg, pieces, "")
	task, nonced := w.offer(aggregator, agg, pieces, "again")
	want, err := capabilities.Invoke(self, self.DID(), self.DID().String(),
		&aggregatecap.Accept{Aggregate: agg, Pieces: aggregatecap.Pieces(pieces).CID}, capabilities.Terms{Nonce: task.Link().String()})
	if err != nil {
		t.Fatal(err)
	}
	if !nonced.Equals(want.Link()) || nonced.Equals(plain) {
		t.Errorf("the effect of the nonced offer is %s, want %s", nonced, want.Link())
	}
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	front := w.fronts[aggregator.DID().String()]
	if w.accepted(plain) == nil || w.accepted(nonced) == nil || len(front.Receipts) != 2 {
		t.Errorf("concluded: %v and %v; the aggregator has %d receipts", w.accepted(plain), w.accepted(nonced), len(front.Receipts))
	}
}

// TestSharedAggregate: whoever offers the same aggregate gets the same receipt, before and after it is dealt.
func TestSharedAggregate(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWorld(t, nil, nil)
		agg, pieces := aggregate(1)
		_, first := w.offer(aggregator, agg, pieces, "")
		w.tracker.deals = active(7)
		if late {
			w.Run(time.Hour)
			w.tracker.deals = active(3, 7)
		}
		_, shared := w.offer(second, agg, pieces, "")
		w.Run(time.Hour)
		if !first.Equals(shared) {
			t.Fatalf("two tasks: %s and %s", first, shared)
		}
		a, b := w.fronts[aggregator.DID().String()].Receipts[first], w.fronts[second.DID().String()].Receipts[first]
		if !a.Defined() || !a.Equals(b) {
			t.Errorf("late %v: the aggregators have receipts %s and %s", late, a, b)
		}
		if w.brokers[0].asked != 1 {
			t.Errorf("late %v: the broker was asked %d times", late, w.brokers[0].asked)
		}
	}
}

// TestTwoListsOfOneAggregate: the tree does not know the padding of its pieces, the tasks do. Both tasks end.
func TestTwoListsOfOneAggregate(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	same, padded := build(mib, []piece.Link{link(1, 512*kib, 127), pieces[1]})
	if agg != same {
		t.Fatal("the two lists were to give one aggregate")
	}
	_, one := w.offer(aggregator, agg, pieces, "")
	_, two := w.offer(aggregator, agg, padded, "")
	if one.Equals(two) {
		t.Fatal("one task for two lists")
	}
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	if w.accepted(one) == nil || w.accepted(two) == nil {
		t.Errorf("accepted %v and %v", w.accepted(one), w.accepted(two))
	}
}

func TestBrokersThatFail(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	w.brokers[0].err, w.brokers[1].err = errors.New("out of order"), errors.New("closed today")
	w.offer(aggregator, agg, pieces, "")
	began := w.Clock.Now()
	w.Run(time.Hour)
	got := w.state(agg)
	if got.State != string(dealer.Offered) || !strings.Contains(got.Reason, "broker ") || !got.Next.After(w.Clock.Now()) {
		t.Errorf("while both fail: %+v", got)
	}
	if n := w.brokers[0].asked; n < 10 || n > 25 {
		t.Errorf("a broker that fails was asked %d times in an hour", n)
	}
	w.brokers[0].err = nil
	w.Run(10 * time.Minute)
	got = w.state(agg)
	if got.State != string(dealer.Published) || !strings.Contains(got.Reason, "broker two: closed today") || strings.Contains(got.Reason, "broker one") {
		t.Errorf("with one of two: %+v", got)
	}
	w.brokers[1].err = nil
	asked := w.brokers[0].asked
	w.Run(10 * time.Minute)
	if got := w.state(agg); got.Reason != "no provider has published a deal yet" {
		t.Errorf("with both: %+v", got)
	}
	if w.brokers[0].asked != asked {
		t.Error("a broker that has the aggregate was asked again")
	}
	if at := w.brokers[1].offers[agg].OfferedAt; !at.Equal(began) {
		t.Errorf("offered at %s, want %s", at, began)
	}
}

func TestDealWithoutBroker(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	w.brokers[0].err, w.brokers[1].err = errors.New("out of order"), errors.New("out of order")
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	if got := w.accepted(accept); got == nil || got.DealID != 7 {
		t.Errorf("accepted %+v", got)
	}
	if waiting := w.Engine.Waiting(); len(waiting) != 0 {
		t.Errorf("still trying: %v", waiting)
	}
}

func TestPolling(t *testing.T) {
	w := newWorld(t, nil, func(d *dealer.Deps) { d.Timing.Poll = time.Minute; d.Replicas = 2 })
	agg, pieces := aggregate(1)
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.Run(59 * time.Second)
	if w.tracker.asked != 0 {
		t.Error("asked before the first pause")
	}
	w.Run(24 * time.Hour)
	if n := w.tracker.asked; n < 48 || n > 55 {
		t.Errorf("asked %d times in a day, want about one in half an hour", n)
	}
	w.tracker.err = errors.New("connection refused")
	w.Run(time.Hour)
	if got := w.state(agg); !strings.Contains(got.Reason, "deal tracker gives no answer") {
		t.Errorf("without an answer: %+v", got)
	}
	w.tracker.err = nil
	w.tracker.deals = active(5)
	w.Run(time.Hour)
	if got := w.state(agg); w.accepted(accept) != nil || got.Reason != "1 of 2 providers with an active deal; deals: 1 active" {
		t.Errorf("with one replica of two: %+v", got)
	}
	w.tracker.deals = active(5, 6)
	w.Run(time.Hour)
	if got := w.accepted(accept); got == nil || got.DealID != 5 {
		t.Errorf("with two replicas: %+v", got)
	}
	asked := w.tracker.asked
	w.Run(24 * time.Hour)
	if w.tracker.asked != asked {
		t.Error("asked for an aggregate that is in a deal")
	}
}

// TestTrackerIsVerified: an answer that the tracker did not sign is no answer.
func TestTrackerIsVerified(t *testing.T) {
	w := newWorld(t, nil, func(d *dealer.Deps) { d.Tracker.DID = stranger.DID() })
	agg, pieces := aggregate(1)
	w.tracker.T = &testing.T{} // it is asked for somebody else, and need not complain here
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.tracker.deals = active(7)
	w.Run(time.Hour)
	if got := w.accepted(accept); got != nil {
		t.Errorf("accepted %+v", got)
	}
}

// TestTwoPollsAtOnce: two replicas see different deals at the same moment. There is one receipt.
func TestTwoPollsAtOnce(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.Run(time.Second)
	other, err := dealer.New(w.deps)
	if err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(time.Hour)
	polls, err := w.Engine.Receive(t.Context(), "poll", 1, time.Second)
	if err != nil || len(polls) != 1 {
		t.Fatalf("%d polls, %v", len(polls), err)
	}
	w.tracker.deals = active(9)
	w.tracker.before = func() { // between the question of the one and its answer
		w.tracker.deals = active(5)
		if err := other.Handlers()["poll"](t.Context(), polls[0]); err != nil {
			t.Error(err)
		}
	}
	if err := w.service.Handlers()["poll"](t.Context(), polls[0]); err != nil {
		t.Fatal(err)
	}
	if got := w.accepted(accept); got == nil || got.DealID != 5 {
		t.Errorf("accepted %+v, want the deal of the first to commit", got)
	}
	w.Run(time.Hour)
	if got := w.accepted(accept); got == nil || got.DealID != 5 {
		t.Errorf("later: %+v", got)
	}
}

func TestAggregatorThatIsAway(t *testing.T) {
	w := newWorld(t, nil, nil)
	front := w.fronts[aggregator.DID().String()]
	front.Err = errors.New("connection refused")
	agg, pieces := aggregate(1)
	_, accept := w.offer(aggregator, agg, pieces, "")
	w.tracker.deals = active(7)
	w.Run(6 * time.Hour)
	if w.accepted(accept) == nil {
		t.Error("the receipt can be pulled while it cannot be pushed")
	}
	front.Err = nil
	w.Run(time.Hour)
	if !front.Receipts[accept].Defined() {
		t.Error("the receipt was not pushed")
	}
}

func TestStatusOfUnknown(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, _ := aggregate(1)
	for _, c := range []cid.Cid{agg.CID(), store.RawBlob([]byte("content")).CID} {
		if _, err := w.service.Status(t.Context(), c); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("status of %s: %v", c, err)
		}
		if _, err := w.service.Receipt(t.Context(), c); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("receipt of %s: %v", c, err)
		}
	}
}

// story is an aggregate offered by two aggregators, with a broker that fails at first.
func (w *world) story() (accept cid.Cid) {
	agg, pieces := aggregate(1)
	w.brokers[1].err = errors.New("out of order")
	_, accept = w.offer(aggregator, agg, pieces, "")
	w.Run(30 * time.Second)
	w.offer(second, agg, pieces, "")
	w.brokers[1].err = nil
	w.Run(10 * time.Minute)
	w.tracker.deals = active(7)
	w.Run(2 * time.Hour)
	w.tracker.deals = active(3, 7)
	return accept
}

func (w *world) checkStory(accept cid.Cid) {
	w.Helper()
	agg, _ := aggregate(1)
	if got := w.accepted(accept); got == nil || got.DealID != 7 || got.Aggregate != agg {
		w.Errorf("accepted %+v", got)
	}
	for did, front := range w.fronts {
		if len(front.Receipts) != 1 || !front.Receipts[accept].Defined() {
			w.Errorf("aggregator %s has receipts %v", did, front.Receipts)
		}
	}
	for _, b := range w.brokers {
		if len(b.offers) != 1 {
			w.Errorf("broker %s has %d aggregates", b.name, len(b.offers))
		}
	}
	for prefix, want := range map[string]int{"aggregate/": 1, "offer/": 2, "by/": 2, "task/": 3, "delivery/": 0, "dead": 0} {
		rows := w.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, prefix) })
		if len(rows) != want {
			w.Errorf("%d rows under %s, want %d", len(rows), prefix, want)
		}
	}
	if waiting := w.Engine.Waiting(); len(waiting) != 0 {
		w.Errorf("messages that are left: %v", waiting)
	}
}

func TestReplayChangesNothing(t *testing.T) {
	w := newWorld(t, nil, nil)
	accept := w.story()
	w.checkStory(accept)
	before := w.Rows(func(store.Key) bool { return true })
	asked := w.brokers[0].asked + w.brokers[1].asked
	w.Replay()
	w.Run(time.Hour)
	w.checkStory(accept)
	if diff := cmp.Diff(before, w.Rows(func(store.Key) bool { return true })); diff != "" {
		t.Errorf("rows changed:\n%s", diff)
	}
	if again := w.brokers[0].asked + w.brokers[1].asked; again != asked {
		t.Errorf("brokers were asked %d times more", again-asked)
	}
}

// TestReplayWhileWaiting: messages of the past ask nobody again, and start nothing anew.
func TestReplayWhileWaiting(t *testing.T) {
	w := newWorld(t, nil, nil)
	agg, pieces := aggregate(1)
	w.brokers[1].err = errors.New("out of order")
	w.offer(aggregator, agg, pieces, "")
	w.Run(2 * time.Hour)
	before := w.Rows(func(store.Key) bool { return true })
	waiting := w.Engine.Waiting()
	one, two, asked := w.brokers[0].asked, w.brokers[1].asked, w.tracker.asked
	w.Replay()
	if diff := cmp.Diff(before, w.Rows(func(store.Key) bool { return true })); diff != "" {
		t.Errorf("rows changed:\n%s", diff)
	}
	if diff := cmp.Diff(waiting, w.Engine.Waiting()); diff != "" {
		t.Errorf("messages (-before +after):\n%s", diff)
	}
	if w.brokers[0].asked != one || w.brokers[1].asked != two || w.tracker.asked != asked {
		t.Errorf("asked again: broker one %d times, broker two %d, the tracker %d",
			w.brokers[0].asked-one, w.brokers[1].asked-two, w.tracker.asked-asked)
	}
}

func TestFaultsOfTheStore(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newWorld(t, choose, nil)
		w.checkStory(w.story())
	})
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, nil, nil)
	for name, spoil := range map[string]func(*dealer.Deps){
		"no signer":           func(d *dealer.Deps) { d.Signer = dealer.Deps{}.Signer },
		"no store":            func(d *dealer.Deps) { d.Store = nil },
		"no tracker":          func(d *dealer.Deps) { d.Tracker.Conn = nil },
		"no brokers":          func(d *dealer.Deps) { d.Brokers = nil },
		"a broker twice":      func(d *dealer.Deps) { d.Brokers = []dealer.Broker{w.brokers[0], w.brokers[0]} },
		"too many brokers":    func(d *dealer.Deps) { d.Brokers = make([]dealer.Broker, store.MaxMessages) },
		"no sizes":            func(d *dealer.Deps) { d.DealSizes = nil },
		"a size that is none": func(d *dealer.Deps) { d.DealSizes = []uint64{3 * mib} },
		"negative replicas":   func(d *dealer.Deps) { d.Replicas = -1 },
	} {
		deps := w.deps
		spoil(&deps)
		if _, err := dealer.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
