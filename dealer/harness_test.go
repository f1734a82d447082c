package dealer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

const (
	kib = uint64(1) << 10
	mib = uint64(1) << 20
)

var (
	self       = chaintest.Key("dealer")
	aggregator = chaintest.Key("aggregator")
	second     = chaintest.Key("another aggregator") // another aggregator
	tracker    = chaintest.Key("deal tracker")
	stranger   = chaintest.Key("stranger")
)

// link makes a synthetic piece.
func link(n uint64, size, padding uint64) piece.Link {
	height, err := piece.HeightOf(size)
	if err != nil {
		panic(err)
	}
	root := piece.Node{byte(n), byte(n >> 8), byte(n >> 16), 1}
	l, err := piece.FromRootAndHeight(root, height, padding)
	if err != nil {
		panic(err)
	}
	return l
}

// aggregate is an aggregate of 1 MiB that keeps all the rules, told apart by n.
func aggregate(n uint64) (piece.Link, []piece.Link) {
	return build(mib, []piece.Link{link(n, 512*kib, 0), link(n+1000, 128*kib, 0)})
}

func build(size uint64, pieces []piece.Link) (piece.Link, []piece.Link) {
	tree, err := segment.Build(size, pieces)
	if err != nil {
		panic(err)
	}
	return tree.Link(), pieces
}

// fakeTracker answers deal/info.
type fakeTracker struct {
	*testing.T
	clock *storetest.FakeClock
	deals deal.Deals
	err   error
	asked int
	// before runs before the next question is answered, once.
	before func()
}

func (f *fakeTracker) Execute(_ context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	f.asked++
	if hook := f.before; hook != nil {
		f.before = nil
		deals := f.deals
		hook()
		f.deals = deals
	}
	if f.err != nil {
		return nil, f.err
	}
	task := capabilities.TaskOf(m, m.Invocations()[0])
	var nb deal.Info
	if err := task.Caveats(&nb); err != nil || task.Can() != deal.InfoAbility {
		f.Errorf("the tracker was asked %s: %v", task.Can(), err)
	}
	if task.Audience != tracker.DID() || task.Issuer != self.DID() || task.Resource() != self.DID().String() {
		f.Errorf("the tracker was asked by %s for %s on %s", task.Issuer, task.Audience, task.Resource())
	}
	if exp := task.Expiration; exp == nil || time.Unix(*exp, 0).Sub(f.clock.Now()) > 2*time.Minute {
		f.Error("a question has to expire soon")
	}
	r, err := capabilities.Issue(tracker, task.Link(), &deal.InfoOK{Deals: f.deals}, capabilities.Effects{})
	if err != nil {
		f.Fatal(err)
	}
	return capabilities.Conclusion(r, task, capabilities.Effects{}), nil
}

func (f *fakeTracker) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}

// fakeBroker is a broker that fails while err is set.
type fakeBroker struct {
	name   string
	err    error
	asked  int
	offers map[piece.Link]dealer.Offer
}

func (b *fakeBroker) Name() string { return b.name }

func (b *fakeBroker) Publish(_ context.Context, o dealer.Offer) (string, error) {
	b.asked++
	if b.err != nil {
		return "", b.err
	}
	b.offers[o.Aggregate] = o
	return "outside/" + o.Aggregate.String(), nil
}

// world is a dealer with everything around it, stepped by hand.
type world struct {
	storetest.Stage
	tracker *fakeTracker
	fronts  map[string]*chaintest.Inbox // by DID
	brokers []*fakeBroker
	deps    dealer.Deps
	service *dealer.Service
}

func newWorld(t *testing.T, choose storetest.Chooser, adjust func(*dealer.Deps)) *world {
	t.Helper()
	clock := storetest.NewClock()
	w := &world{Stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), fronts: map[string]*chaintest.Inbox{}}
	w.tracker = &fakeTracker{T: t, clock: w.Clock}
	w.Handlers = func() map[string]store.Handler { return w.service.Handlers() }
	for _, s := range []capabilities.Signer{aggregator, second} {
		w.fronts[s.DID().String()] = chaintest.NewInbox(t, s)
	}
	w.brokers = []*fakeBroker{{name: "one", offers: map[piece.Link]dealer.Offer{}}, {name: "two", offers: map[piece.Link]dealer.Offer{}}}
	w.deps = dealer.Deps{
		Signer: self, Store: w.Driver, Keys: chaintest.Keys{}, Tracker: capabilities.Peer{DID: tracker.DID(), Conn: w.tracker},
		Aggregators: func(did string) bool { return w.fronts[did] != nil },
		Conn: func(did string) (capabilities.Conn, bool) {
			front, ok := w.fronts[did]
			return front, ok
		},
		Brokers: []dealer.Broker{w.brokers[0], w.brokers[1]}, DealSizes: []uint64{mib, 128 * mib},
		Now: w.Clock.Now, Log: slog.New(slog.DiscardHandler),
	}
	if adjust != nil {
		adjust(&w.deps)
	}
	s, err := dealer.New(w.deps)
	if err != nil {
		t.Fatal(err)
	}
	w.service = s
	w.untilDone(func() error { return s.Start(t.Context()) })
	return w
}

// untilDone repeats what an injected fault made fail.
func (w *world) untilDone(do func() error) {
	w.Helper()
	if err := storetest.Again(do); err != nil {
		w.Fatal(err)
	}
}

// invoke executes a task with the blocks that come with it, as the runtime does.
func (w *world) invoke(task capabilities.Task, attach ...capabilities.Block) (r *capabilities.Receipt, err error) {
	w.Helper()
	in := chaintest.Arrives(w, task, attach...)
	err = storetest.Again(func() error {
		r, err = w.service.Methods()[task.Can()](w.Context(), in)
		return err
	})
	return r, err
}

func offerTask(by capabilities.Signer, agg piece.Link, list cid.Cid, nonce string) capabilities.Task {
	task, err := capabilities.Invoke(by, self.DID(), self.DID().String(),
		&aggregatecap.Offer{Aggregate: agg, Pieces: list}, capabilities.Terms{Nonce: nonce})
	if err != nil {
		panic(err)
	}
	return task
}

// offer offers an aggregate that has to be taken, and returns the task aggregate/accept.
func (w *world) offer(by capabilities.Signer, agg piece.Link, pieces []piece.Link, nonce string) (task capabilities.Task, accept cid.Cid) {
	w.Helper()
	list := aggregatecap.Pieces(pieces)
	task = offerTask(by, agg, list.CID, nonce)
	r, err := w.invoke(task, list)
	if err != nil {
		w.Fatal(err)
	}
	if err := capabilities.VerifyReceipt(w.Context(), r, task.UCAN, chaintest.Keys{}); err != nil {
		w.Fatal(err)
	}
	var ok aggregatecap.OfferOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		w.Fatal(err)
	}
	if ok.Aggregate != agg || !r.Join.Defined() || len(r.Fork) != 0 {
		w.Fatalf("receipt of %s joins %s, forks %v", ok.Aggregate, r.Join, r.Fork)
	}
	return task, r.Join
}

// accepted returns what the receipt of aggregate/accept states, nil if there is none.
func (w *world) accepted(accept cid.Cid) *aggregatecap.AcceptOK {
	w.Helper()
	var m *capabilities.Message
	w.untilDone(func() (err error) {
		m, err = w.service.Receipt(w.Context(), accept)
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return err
	})
	if m == nil {
		return nil
	}
	task, ok := capabilities.FindTask(m, accept)
	if !ok {
		w.Fatal("the conclusion lacks its task")
	}
	if err := capabilities.VerifyReceipt(w.Context(), m.Receipt(accept), task.UCAN, chaintest.Keys{}); err != nil {
		w.Fatal(err)
	}
	var result aggregatecap.AcceptOK
	if err := capabilities.ReadResult(m.Receipt(accept).Out, &result); err != nil {
		w.Fatal(err)
	}
	return &result
}

// state returns the status of an aggregate that was offered once.
func (w *world) state(agg piece.Link) capabilities.AggregateStatus {
	w.Helper()
	s, err := w.service.Status(w.Context(), agg.CID())
	if err != nil {
		w.Fatal(err)
	}
	if len(s.Aggregates) != 1 {
		w.Fatalf("%d aggregates, want one", len(s.Aggregates))
	}
	return s.Aggregates[0]
}

func active(ids ...uint64) deal.Deals {
	d := deal.Deals{}
	for _, id := range ids {
		d[id] = deal.Deal{Provider: fmt.Sprintf("f0%d", id), Status: deal.StatusActive}
	}
	return d
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) { enginetest.Again(t, enginetest.Double, ".", "") }
