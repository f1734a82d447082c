package aggregator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// yard is an aggregator of one storefront, with deals of 1 MiB and an index that lags by an hour. Its dealer takes everything.
type yard struct {
	*aggregator.Service
	t                            *testing.T
	stage                        storetest.Stage
	self, storefront, dealerName capabilities.Signer

	// offered are the aggregates that the dealer was offered, each with its task aggregate/accept.
	offered []offered
	deps    aggregator.Deps
}

type offered struct {
	link   piece.Link
	pieces []piece.Link
	accept capabilities.Task
}

const (
	lag    = time.Hour
	budget = 10 * time.Minute
	kib    = uint64(1) << 10
)

func newYard(t *testing.T) *yard { return newYardOf(t, func(*aggregator.Deps) {}) }

// newFaultyYard returns a yard whose engine fails as choose says.
func newFaultyYard(t *testing.T, choose storetest.Chooser) *yard {
	return newYardWith(t, lag, choose, func(*aggregator.Deps) {})
}

// newYardOf returns a yard whose aggregator is made of something else in part.
func newYardOf(t *testing.T, change func(*aggregator.Deps)) *yard {
	return newYardWith(t, lag, nil, change)
}

// newYardWith returns a yard whose indexes show what was so some time before.
func newYardWith(t *testing.T, lag time.Duration, choose storetest.Chooser, change func(*aggregator.Deps)) *yard {
	t.Helper()
	clock := storetest.NewClock()
	y := &yard{t: t, self: chaintest.Key("aggregator"), storefront: chaintest.Key("storefront"), dealerName: chaintest.Key("dealer"),
		stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now, IndexLag: lag, IndexLagCommits: 1 << 40}), choose)}
	y.stage.Handlers = func() map[string]store.Handler { return y.Handlers() }
	y.stage.Observe = func(o store.Outcome) {
		if o.Err != nil && !errors.Is(o.Err, storetest.ErrInjected) && !errors.Is(o.Err, store.ErrConflict) {
			t.Errorf("message of %s: %v", o.Delivery.Queue, o.Err)
		}
	}
	deps := aggregator.Deps{
		Signer: y.self, Store: y.stage.Driver, Keys: chaintest.Keys{}, Ladder: aggregator.Ladder{1 << 20}, Timing: aggregator.Timing{Budget: budget},
		Dealer: capabilities.Peer{DID: y.dealerName.DID(), Conn: dealer{y},
			Proofs: chaintest.Standing(y.dealerName, y.self.DID(), aggregatecap.OfferAbility).Proofs},
		Storefronts: func(did string) (aggregator.Storefront, bool) {
			return aggregator.Storefront{}, did == y.storefront.DID().String()
		},
		Conn: func(string) (capabilities.Conn, bool) { return nil, false },
		Now:  y.clock, Log: slog.New(slog.DiscardHandler),
	}
	change(&deps)
	y.deps = deps
	y.restart()
	return y
}

// restart begins a new process on the same rows.
func (y *yard) restart() {
	y.t.Helper()
	var err error
	if y.Service, err = aggregator.New(y.deps); err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) clock() time.Time { return y.stage.Clock.Now() }

// pass lets time pass: everything that is due is done when it is due.
func (y *yard) pass(d time.Duration) {
	y.t.Helper()
	y.stage.Run(d)
}

// synthetic makes a piece of a padded size, told from others by n.
func synthetic(t *testing.T, n byte, size uint64) piece.Link {
	t.Helper()
	height, err := piece.HeightOf(size)
	if err != nil {
		t.Fatal(err)
	}
	l, err := piece.FromRootAndHeight(piece.Node{n, 1}, height, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// offer has somebody offer a piece in a group, on a resource.
func (y *yard) offer(by capabilities.Signer, with string, p piece.Link, group string) error {
	y.t.Helper()
	task := chaintest.Invoke(by, y.self.DID(), with, &piececap.Offer{Piece: p, Group: group}, capabilities.Terms{})
	_, err := y.Methods()[piececap.OfferAbility](y.t.Context(), capabilities.Invocation{Task: task, Message: capabilities.Pending(task)})
	return err
}

func (y *yard) take(pieces ...piece.Link) {
	y.t.Helper()
	for _, p := range pieces {
		if err := y.offer(y.storefront, y.self.DID().String(), p, y.storefront.DID().String()); err != nil {
			y.t.Fatal(err)
		}
	}
}

// rows returns the keys of rows whose partitions begin with a prefix, and which of them are in an index.
func (y *yard) rows(prefix string) (keys, listed []string) {
	y.t.Helper()
	page, err := y.stage.Engine.Walk(y.t.Context(), "", 0)
	if err != nil || page.Next != "" {
		y.t.Fatalf("reading all rows: %v", err)
	}
	for _, r := range page.Rows {
		if strings.HasPrefix(r.Partition, prefix) {
			keys = append(keys, r.Key.String())
			if r.Listing != (store.Listing{}) {
				listed = append(listed, r.Key.String())
			}
		}
	}
	slices.Sort(keys) // an engine walks in an order of its own
	slices.Sort(listed)
	return keys, listed
}

// dealer is the dealer of a yard.
type dealer struct{ y *yard }

func (d dealer) Execute(_ context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	task := capabilities.TaskOf(m, m.Invocations()[0])
	var nb aggregatecap.Offer
	if err := task.Caveats(&nb); err != nil {
		return nil, err
	}
	list, _ := m.Block(nb.Pieces)
	pieces, err := aggregatecap.ReadPieces(list.Bytes)
	if err != nil {
		return nil, err
	}
	self := d.y.dealerName
	accept := chaintest.Invoke(self, self.DID(), self.DID().String(), &aggregatecap.Accept{Aggregate: nb.Aggregate, Pieces: nb.Pieces}, capabilities.Terms{})
	fx := capabilities.Effects{Join: &accept}
	r, err := capabilities.Issue(self, task.Link(), &aggregatecap.OfferOK{Aggregate: nb.Aggregate}, fx)
	if err != nil {
		return nil, err
	}
	d.y.offered = append(d.y.offered, offered{nb.Aggregate, pieces, accept})
	return capabilities.Conclusion(r, task, fx), nil
}

func (dealer) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}

// TestCloseByAStaleIndex: the index still shows pieces that a close has claimed, so the next one takes them for candidates. It gets only what
// nobody has: too little, and what it claimed waits on for the one after.
func TestCloseByAStaleIndex(t *testing.T) {
	y := newYard(t)
	a, b, c, d := synthetic(t, 1, 512*kib), synthetic(t, 2, 128*kib), synthetic(t, 3, 64*kib), synthetic(t, 4, 512*kib)
	y.take(a, b)
	y.pass(lag / 2)
	y.take(c)
	y.pass(lag)
	if len(y.offered) != 1 {
		t.Fatalf("after the first close: %+v", y.offered)
	}
	y.pass(lag)
	if plans, _ := y.rows("plan/"); len(plans) < 2 {
		t.Fatalf("the index was not stale for any plan: %q", plans)
	}
	y.take(d)
	y.pass(3 * lag)
	var got [][]piece.Link
	for _, o := range y.offered {
		got = append(got, o.pieces)
	}
	if diff := cmp.Diff([][]piece.Link{{a, b}, {d, c}}, got, cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
		t.Errorf("aggregates (-want +got):\n%s", diff)
	}
	// What is in an aggregate is in no index, and has its proof.
	if keys, listed := y.rows("piece/"); len(keys) != 4 || len(listed) != 0 {
		t.Errorf("%d pieces, listed are %q", len(keys), listed)
	}
	for _, p := range []piece.Link{a, b, c, d} {
		status, err := y.Status(t.Context(), p.CID())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(y.offered, func(o offered) bool { return slices.Contains(o.pieces, p) })
		if s := status.Pieces[0]; s.State != "aggregated" || i < 0 || s.Aggregate != y.offered[i].link.String() {
			t.Errorf("piece %s: %+v", p, s)
		}
	}
}

// TestOfferRefusals: only storefronts that are known may offer, each in groups of its own, what an aggregate can hold.
func TestOfferRefusals(t *testing.T) {
	y := newYard(t)
	mallory := chaintest.Key("mallory")
	p, large := synthetic(t, 1, 512*kib), synthetic(t, 2, 1024*kib)
	self, known, other := y.self.DID().String(), y.storefront.DID().String(), mallory.DID().String()
	for i, tt := range []struct {
		by    capabilities.Signer
		with  string
		p     piece.Link
		group string
		want  string // name of the failure
	}{
		{y.storefront, self, p, known, ""},
		{y.storefront, self, p, known + "/a", ""},
		{y.storefront, known, p, known, ""},
		{mallory, self, p, other, capabilities.Unauthorized},
		{mallory, other, p, other, capabilities.Unauthorized},
		{mallory, self, p, known, capabilities.Unauthorized},
		{y.storefront, self, p, other, capabilities.Unauthorized},
		{y.storefront, self, p, known + "x", capabilities.Unauthorized},
		{y.storefront, self, p, "", capabilities.Unauthorized},
		{y.storefront, other, p, known, capabilities.UnsupportedCapability},
		{y.storefront, self, large, known, capabilities.PieceTooLarge},
	} {
		before, _ := y.rows("")
		err := y.offer(tt.by, tt.with, tt.p, tt.group)
		after, _ := y.rows("")
		name := ""
		if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
			name = f.Name
		}
		if name != tt.want || (err == nil) != (tt.want == "") || (len(after) > len(before)) != (tt.want == "") {
			t.Errorf("offer %d: %v, %d rows before and %d after", i, err, len(before), len(after))
		}
	}
}

// deal has the dealer report a deal of an aggregate where it was asked for that of another.
func (y *yard) deal(of offered, aggregate piece.Link) {
	y.t.Helper()
	r, err := capabilities.Issue(y.dealerName, of.accept.Link(), &aggregatecap.AcceptOK{Aggregate: aggregate,
		DealMetadata: capabilities.DealMetadata{DealID: chaintest.Deal}}, capabilities.Effects{})
	if err != nil {
		y.t.Fatal(err)
	}
	push := chaintest.Invoke(y.dealerName, y.self.DID(), y.dealerName.DID().String(), &ucan.Conclude{Receipt: r.Link()}, capabilities.Terms{})
	if _, err := y.Methods()[ucan.ConcludeAbility](y.t.Context(), capabilities.Invocation{
		Task: push, Message: capabilities.Conclusion(r, of.accept, capabilities.Effects{})}); err != nil {
		y.t.Fatal(err)
	}
}

// TestDealOfAnotherAggregate: what a dealer reports of another aggregate is no deal of this one.
func TestDealOfAnotherAggregate(t *testing.T) {
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprint(other), func(t *testing.T) {
			y := newYard(t)
			y.take(synthetic(t, 1, 512*kib))
			y.pass(2 * lag)
			if len(y.offered) != 1 {
				t.Fatalf("aggregates: %+v", y.offered)
			}
			o := y.offered[0]
			aggregate := o.link
			if other {
				aggregate = synthetic(t, 9, 1024*kib)
			}
			y.deal(o, aggregate)
			y.pass(time.Minute)
			status, err := y.Status(t.Context(), o.link.CID())
			if err != nil {
				t.Fatal(err)
			}
			want := map[bool]string{false: "dealt", true: "failed"}[other]
			if s := status.Aggregates[0]; s.State != want || (s.Deal == chaintest.Deal) == other {
				t.Errorf("%+v, want %s", s, want)
			}
		})
	}
}

// TestLostTick: a lane whose tick was lost ticks again, once its aggregator was started again and a piece comes.
func TestLostTick(t *testing.T) {
	y := newYard(t)
	a, b, c := synthetic(t, 1, 256*kib), synthetic(t, 2, 256*kib), synthetic(t, 3, 128*kib)
	y.take(a)
	y.stage.Settle()
	y.stage.Clock.Advance(time.Minute)
	ticks, err := y.stage.Engine.Receive(t.Context(), "lane", 10, time.Minute)
	if err != nil || len(ticks) != 1 {
		t.Fatalf("%d ticks, %v", len(ticks), err)
	}
	if err := y.stage.Engine.Ack(t.Context(), ticks[0]); err != nil {
		t.Fatal(err)
	}
	y.take(b)
	y.pass(3 * lag)
	if len(y.offered) != 0 {
		t.Fatalf("without a tick: %+v", y.offered)
	}
	y.restart()
	y.take(c)
	y.pass(3 * lag)
	if len(y.offered) != 1 || len(y.offered[0].pieces) < 2 || !slices.Equal(y.offered[0].pieces[:2], []piece.Link{a, b}) { // the index may show the last one later
		t.Errorf("aggregates: %+v", y.offered)
	}
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: once more, without what takes long, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "^Test(BlameFaults|LimitOfAStorefront|TinyPiecesFlood)$")
}
