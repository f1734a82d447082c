package tasks

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/wire"
)

// testKey is a key that everybody knows.
func testKey(seed byte) capabilities.Signer {
	s, err := wire.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)))
	if err != nil {
		panic(err)
	}
	return s
}

var (
	ctx        = context.Background()
	front, agg = testKey(2), testKey(3)
	owner      = store.Key{Partition: "owner", Sort: "1"}
	epoch      = time.Unix(1_760_000_000, 0)
)

type fixture struct {
	t      *testing.T
	engine enginetest.Engine
	ledger *Ledger
	logs   bytes.Buffer
	now    time.Time
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, now: epoch}
	f.engine = enginetest.New(t, enginetest.Options{Now: func() time.Time { return f.now }})
	f.ledger = New(f.engine, chaintest.Keys{}, func() time.Time { return f.now }, slog.New(slog.NewTextHandler(&f.logs, nil)))
	return f
}

func link(t *testing.T) piece.Link {
	l, err := piece.Sum([]byte(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// acceptTask is a task of the aggregator's own, as a storefront learns of it.
func acceptTask(t *testing.T) capabilities.Task {
	task, err := capabilities.Invoke(agg, agg.DID(), agg.DID().String(), &piececap.Accept{Piece: link(t), Group: "g"}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func acceptReceipt(t *testing.T, by capabilities.Signer, task capabilities.Task, aggregate piece.Link, fx capabilities.Effects) *capabilities.Receipt {
	r, err := capabilities.Issue(by, task.Link(), &piececap.AcceptOK{Piece: link(t), Aggregate: aggregate}, fx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// arrivals are the messages of a queue that can be received now, each once: an engine may deliver one again.
func (f *fixture) arrivals(queue string) (list []Arrival) {
	seen := map[string]bool{}
	for {
		ds, err := f.engine.Receive(ctx, queue, 100, time.Minute)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(ds) == 0 {
			return list
		}
		for _, d := range ds {
			a, err := store.NewQueue[Arrival](queue).Decode(d.Body)
			if err != nil {
				f.t.Fatal(err)
			}
			if !seen[d.ID] {
				list = append(list, a)
			}
			seen[d.ID] = true
		}
	}
}

func TestAcceptOnce(t *testing.T) {
	f := newFixture(t)
	task := acceptTask(t)
	first := acceptReceipt(t, agg, task, link(t), capabilities.Effects{})
	other, err := capabilities.IssueFailure(agg, task.Link(), capabilities.Fail("X", "y"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	var fx store.Effects
	store.NewQueue[Arrival]("q").Send(&fx, Arrival{task.Link(), owner})
	for i, r := range []*capabilities.Receipt{first, other, first} {
		got, err := f.ledger.Accept(ctx, task, r, capabilities.Effects{}, store.Listing{}, fx)
		if err != nil || !got.Link().Equals(first.Link()) {
			t.Fatalf("time %d: got %v, %v, want the first receipt", i, got, err)
		}
	}
	if n := len(f.arrivals("q")); n != 1 {
		t.Errorf("%d messages, want the first one's", n)
	}
}

// TestSettle: whoever concludes a task of the role's own gets the first receipt, with what that links.
func TestSettle(t *testing.T) {
	f := newFixture(t)
	task := acceptTask(t)
	join, err := capabilities.Invoke(agg, agg.DID(), agg.DID().String(), &piececap.Accept{Piece: link(t), Group: "another"}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	fx := capabilities.Effects{Join: &join}
	first := acceptReceipt(t, agg, task, link(t), fx)
	other, err := capabilities.IssueFailure(agg, task.Link(), capabilities.Fail("X", "y"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []*capabilities.Receipt{first, other, first} {
		effects := capabilities.Effects{}
		if i == 0 {
			effects = fx
		}
		got, err := f.ledger.Settle(ctx, task, r, effects)
		if err != nil || !got.Receipt.Link().Equals(first.Link()) || got.Link() != task.Link() {
			t.Fatalf("time %d: got %+v, %v, want the first receipt", i, got, err)
		}
		if linked, err := got.Effect(first.Join); err != nil || linked.Link() != join.Link() {
			t.Errorf("time %d: its effect is %v, %v", i, linked, err)
		}
	}
	if linked, err := f.ledger.Effect(ctx, task.Link(), join.Link()); err != nil || linked.Link() != join.Link() {
		t.Errorf("the effect that is kept is %v, %v", linked, err)
	}
	if _, err := f.ledger.Effect(ctx, join.Link(), task.Link()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the effect of a task that is unknown: %v", err)
	}
}

func TestArrive(t *testing.T) {
	task := acceptTask(t)
	good := acceptReceipt(t, agg, task, link(t), capabilities.Effects{})
	for _, tt := range []struct {
		name    string
		receipt *capabilities.Receipt
		message func(r *capabilities.Receipt) *capabilities.Message
		await   bool
		want    Outcome
		invalid bool
	}{
		{"awaited", good, nil, true, Kept, false},
		{"nobody waits", good, nil, false, Unknown, false},
		{"signed by somebody else", acceptReceipt(t, front, task, link(t), capabilities.Effects{}), nil, true, Unknown, true},
		{"a failure that may pass", func() *capabilities.Receipt {
			r, err := capabilities.IssueFailure(agg, task.Link(), capabilities.Fail("StoreOperationFailed", "try again"), capabilities.Effects{})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}(), nil, true, Passing, false},
		{"a failure that is final", func() *capabilities.Receipt {
			r, err := capabilities.IssueFailure(agg, task.Link(), capabilities.NewAggregationFailed(5, "no deal"), capabilities.Effects{})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}(), nil, true, Kept, false},
		{"without its invocation", good, func(r *capabilities.Receipt) *capabilities.Message {
			m := new(capabilities.Message)
			m.AddReceipt(r)
			return m
		}, true, Unknown, true},
		{"a result of another shape", func() *capabilities.Receipt {
			r, err := capabilities.Issue(agg, task.Link(), &piececap.OfferOK{Piece: link(t)}, capabilities.Effects{})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}(), nil, true, Unknown, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			if tt.await {
				if rec, err := f.ledger.Await(ctx, task.Link(), nil, owner, "arrived", false); err != nil || rec.Concluded {
					t.Fatal(rec, err)
				}
			}
			m := capabilities.Conclusion(tt.receipt, task, capabilities.Effects{})
			if tt.message != nil {
				m = tt.message(tt.receipt)
			}
			got, err := f.ledger.Arrive(ctx, m, tt.receipt)
			if got != tt.want || errors.Is(err, capabilities.ErrInvalidReceipt) != tt.invalid || !tt.invalid && err != nil {
				t.Fatalf("got %v, %v", got, err)
			}
			arrived := f.arrivals("arrived")
			if (len(arrived) == 1) != (tt.want == Kept) {
				t.Errorf("%d arrivals were told", len(arrived))
			}
			r, err := f.ledger.Receipt(ctx, task.Link())
			if tt.want == Kept && (err != nil || !r.Link().Equals(tt.receipt.Link())) || tt.want != Kept && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("kept %v, %v", r, err)
			}
			// Once more changes nothing.
			if again, err := f.ledger.Arrive(ctx, m, tt.receipt); tt.want == Kept && (again != Known || err != nil) || len(f.arrivals("arrived")) != 0 {
				t.Errorf("the second time: %v, %v", again, err)
			}
		})
	}
}

func TestDifferentReceiptIsEvidence(t *testing.T) {
	f := newFixture(t)
	task := acceptTask(t)
	if _, err := f.ledger.Await(ctx, task.Link(), nil, owner, "arrived", false); err != nil {
		t.Fatal(err)
	}
	first := acceptReceipt(t, agg, task, link(t), capabilities.Effects{})
	second, err := capabilities.IssueFailure(agg, task.Link(), capabilities.Fail("Changed", "its mind"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := capabilities.IssueFailure(front, task.Link(), capabilities.Fail("Forged", "by another"), capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		r       *capabilities.Receipt
		want    Outcome
		invalid bool
	}{{first, Kept, false}, {second, Different, false}, {second, Different, false}, {forged, Different, true}} {
		got, err := f.ledger.Arrive(ctx, capabilities.Conclusion(step.r, task, capabilities.Effects{}), step.r)
		if got != step.want || errors.Is(err, capabilities.ErrInvalidReceipt) != step.invalid {
			t.Errorf("got %v, %v, want %v", got, err, step.want)
		}
	}
	if r, err := f.ledger.Receipt(ctx, task.Link()); err != nil || !r.Link().Equals(first.Link()) {
		t.Errorf("the receipt changed its mind: %v, %v", r, err)
	}
	page, err := f.engine.Query(ctx, "evidence/"+task.Link().String(), "", "", 10)
	if err != nil || len(page.Rows) != 1 {
		t.Errorf("%d pieces of evidence, %v, want 1", len(page.Rows), err)
	}
	if n := strings.Count(f.logs.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors logged, want 1:\n%s", n, &f.logs)
	}
}

func TestFollow(t *testing.T) {
	f := newFixture(t)
	task := acceptTask(t)
	next, err := capabilities.Invoke(agg, front.DID(), front.DID().String(), &piececap.Offer{Piece: link(t), Group: "next"}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ledger.Await(ctx, task.Link(), nil, owner, "arrived", true); err != nil {
		t.Fatal(err)
	}
	fx := capabilities.Effects{Join: &next}
	r := acceptReceipt(t, agg, task, link(t), fx)
	if got, err := f.ledger.Arrive(ctx, capabilities.Conclusion(r, task, fx), r); got != Kept || err != nil {
		t.Fatal(got, err)
	}
	nextReceipt, err := capabilities.Issue(front, next.Link(), &piececap.OfferOK{Piece: link(t)}, capabilities.Effects{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.ledger.Arrive(ctx, capabilities.Conclusion(nextReceipt, next, capabilities.Effects{}), nextReceipt); got != Kept || err != nil {
		t.Errorf("the joined task is not awaited: %v, %v", got, err)
	}
	if n := len(f.arrivals("arrived")); n != 2 {
		t.Errorf("%d arrivals, want 2", n)
	}
}

func conclude1(t *testing.T, m *capabilities.Message, first cid.Cid) capabilities.Invocation {
	inv, err := capabilities.Invoke(agg, front.DID(), agg.DID().String(), &ucan.Conclude{Receipt: first}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	m.AddInvocation(inv.UCAN)
	back, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return capabilities.Invocation{Task: inv, Message: back}
}

func TestConclude(t *testing.T) {
	f := newFixture(t)
	task := acceptTask(t)
	r := acceptReceipt(t, agg, task, link(t), capabilities.Effects{})
	method := f.ledger.Conclude(front)

	// Nobody waits: answered like any other, and nothing is left behind.
	if _, err := method(ctx, conclude1(t, capabilities.Conclusion(r, task, capabilities.Effects{}), r.Link())); err != nil {
		t.Fatal(err)
	}
	if page, err := f.engine.Walk(ctx, "", 10); err != nil || len(page.Rows) != 0 {
		t.Errorf("%d rows for a receipt that nobody waits for, %v", len(page.Rows), err)
	}

	if _, err := f.ledger.Await(ctx, task.Link(), &task, owner, "arrived", false); err != nil {
		t.Fatal(err)
	}
	forged := acceptReceipt(t, front, task, link(t), capabilities.Effects{})
	var failure *capabilities.Failure
	if _, err := method(ctx, conclude1(t, capabilities.Conclusion(forged, task, capabilities.Effects{}), forged.Link())); !errors.As(err, &failure) {
		t.Errorf("a forged receipt was answered with %v", err)
	}
	// The published form: the receipt is attached, not reported.
	m := new(capabilities.Message)
	inv, err := capabilities.Invoke(agg, front.DID(), agg.DID().String(), &ucan.Conclude{Receipt: r.Link()}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	m.AddInvocation(inv.UCAN, r.Block())
	answer, err := method(ctx, capabilities.Invocation{Task: inv, Message: m})
	if err != nil {
		t.Fatal(err)
	}
	var ok ucan.ConcludeOK
	if err := capabilities.ReadResult(answer.Out, &ok); err != nil || ok.Time != epoch.UnixMilli() {
		t.Errorf("answered %v, %v", ok, err)
	}
	if n := len(f.arrivals("arrived")); n != 1 {
		t.Errorf("%d arrivals, want 1", n)
	}
}

// TestConcludeInAnyOrder: of two receipts in one message, the task of one joins that of the other. A report is sorted by task, so either may come
// first, and both are kept.
func TestConcludeInAnyOrder(t *testing.T) {
	seen := map[bool]bool{}
	for i := 0; len(seen) < 2 && i < 64; i++ {
		f := newFixture(t)
		task := acceptTask(t)
		next, err := capabilities.Invoke(agg, agg.DID(), agg.DID().String(), &piececap.Accept{Piece: link(t), Group: strconv.Itoa(i)}, capabilities.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		fx := capabilities.Effects{Join: &next}
		r := acceptReceipt(t, agg, task, link(t), fx)
		m := capabilities.Conclusion(r, task, fx)
		capabilities.AddConclusion(m, acceptReceipt(t, agg, next, link(t), capabilities.Effects{}), next, capabilities.Effects{})
		inv := conclude1(t, m, r.Link())
		joinedFirst := inv.Message.Receipts()[0].Ran.Equals(next.Link())
		if seen[joinedFirst] {
			continue
		}
		seen[joinedFirst] = true
		if _, err := f.ledger.Await(ctx, task.Link(), nil, owner, "arrived", true); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ledger.Conclude(front)(ctx, inv); err != nil {
			t.Fatal(err)
		}
		for _, c := range []cid.Cid{task.Link(), next.Link()} {
			if _, err := f.ledger.Receipt(ctx, c); err != nil {
				t.Errorf("joined first %t: the receipt of %s is not kept: %v", joinedFirst, c, err)
			}
		}
		if n := len(f.arrivals("arrived")); n != 2 {
			t.Errorf("joined first %t: %d arrivals, want 2", joinedFirst, n)
		}
	}
	if len(seen) != 2 {
		t.Error("no message had the receipts the other way round")
	}
}

// TestConcludeChain: each task of a message joins the next, in an order that has nothing to do with that of the report. All are kept, however many
// are taken at a time.
func TestConcludeChain(t *testing.T) {
	const n = 40
	for _, parallel := range []int{0, 8} {
		f := newFixture(t)
		f.ledger.Parallel = parallel
		m := new(capabilities.Message)
		var chain []capabilities.Task
		for i := range n {
			task, err := capabilities.Invoke(agg, agg.DID(), agg.DID().String(), &piececap.Accept{Piece: link(t), Group: strconv.Itoa(i)}, capabilities.Terms{})
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, task)
		}
		for i, task := range chain {
			var fx capabilities.Effects
			if i+1 < n {
				fx.Join = &chain[i+1]
			}
			capabilities.AddConclusion(m, acceptReceipt(t, agg, task, link(t), fx), task, fx)
		}
		if _, err := f.ledger.Await(ctx, chain[0].Link(), nil, owner, "arrived", true); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ledger.Conclude(front)(ctx, conclude1(t, m, m.Receipt(chain[0].Link()).Link())); err != nil {
			t.Fatal(err)
		}
		for i, task := range chain {
			if _, err := f.ledger.Receipt(ctx, task.Link()); err != nil {
				t.Errorf("%d at a time: the receipt of task %d is not kept: %v", parallel, i, err)
			}
		}
		if got := len(f.arrivals("arrived")); got != n {
			t.Errorf("%d at a time: %d arrivals, want %d", parallel, got, n)
		}
	}
}

// taker is a role that takes, or is away.
type taker struct {
	away     bool
	messages []*capabilities.Message
}

func (k *taker) Execute(_ context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	if k.away {
		return nil, errors.New("connection refused")
	}
	m, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	k.messages = append(k.messages, m)
	return new(capabilities.Message), err
}

func (k *taker) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}

func TestCourier(t *testing.T) {
	f := newFixture(t)
	to := &taker{away: true}
	c := &Courier{
		Ledger: f.ledger, Signer: agg, Deliveries: store.NewTable[Delivery](f.engine), Blobs: f.engine, Queue: store.NewQueue[Send]("deliver"),
		Conn: func(did string) (capabilities.Conn, bool) { return to, did == front.DID().String() },
		Now:  func() time.Time { return f.now },
	}
	// More receipts than one message may carry, in packs, and one of the ledger's.
	var d Delivery
	var pack store.PackWriter
	for i := range MaxReceipts + 5 {
		task, err := capabilities.Invoke(agg, agg.DID(), agg.DID().String(), &piececap.Accept{Piece: link(t), Group: strings.Repeat("x", i)}, capabilities.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Pack(&pack, capabilities.Conclusion(acceptReceipt(t, agg, task, link(t), capabilities.Effects{}), task, capabilities.Effects{})); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := pack.Put(ctx, f.engine)
	if err != nil {
		t.Fatal(err)
	}
	d.Packs = []cid.Cid{packed}
	task := acceptTask(t)
	if _, err := f.ledger.Accept(ctx, task, acceptReceipt(t, agg, task, link(t), capabilities.Effects{}), capabilities.Effects{}, store.Listing{}, store.Effects{}); err != nil {
		t.Fatal(err)
	}
	d.Tasks = []cid.Cid{task.Link()}

	for range 2 { // twice is once
		if err := c.Enqueue(ctx, front.DID().String(), "a", d); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Enqueue(ctx, testKey(9).DID().String(), "b", d); err != nil {
		t.Errorf("a role that is not pushed to: %v", err)
	}
	drain := func() {
		ds, err := f.engine.Receive(ctx, "deliver", 10, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ds {
			if err := c.Queue.Handler(c.Deliver)(ctx, m); err != nil {
				t.Fatal(err)
			}
			if err := f.engine.Ack(ctx, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 5 {
		drain()
		f.now = f.now.Add(time.Minute)
	}
	rec, err := c.Deliveries.Get(ctx, deliveryKey(front.DID().String(), "a"))
	if err != nil || rec.Value.Tries == 0 || rec.Value.Reason == "" {
		t.Fatalf("a delivery that cannot be made shows %+v, %v", rec.Value, err)
	}
	to.away = false
	for range 20 {
		drain()
		f.now = f.now.Add(time.Minute)
	}
	total := 0
	for _, m := range to.messages {
		n := len(m.Receipts())
		total += n
		if n > MaxReceipts || len(m.Invocations()) != 1 || m.Invocations()[0].Capabilities[0].Can != ucan.ConcludeAbility {
			t.Errorf("a message of %d receipts and %d invocations", n, len(m.Invocations()))
		}
	}
	if total != MaxReceipts+6 {
		t.Errorf("%d receipts were delivered, want %d", total, MaxReceipts+6)
	}
	if _, err := c.Deliveries.Get(ctx, rec.Key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the delivery is still there: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 100: 10} {
		if got := Backoff(n, 1, 10); got != want {
			t.Errorf("try %d waits %d, want %d", n, got, want)
		}
	}
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "")
}
