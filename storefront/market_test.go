package storefront_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

// market is a storefront with many agents and contents. Its aggregator takes everything; what providers answer is for the test to say.
type market struct {
	*storefront.Service
	t        *testing.T
	stage    storetest.Stage
	self     capabilities.Signer
	contents map[cid.Cid]item
	// groups are the groups that pieces were offered in to the aggregator.
	groups map[piece.Link][]string
	made   int
	// places are where all content lies.
	places []string
}

// item is some content with its piece.
type item struct {
	cid   cid.Cid
	bytes []byte
	piece piece.Link
}

// newMarket returns a market whose engine fails as choose says, nil for never. change may change what the storefront is made of.
func newMarket(t *testing.T, choose storetest.Chooser, change func(m *market, d *storefront.Deps)) *market {
	t.Helper()
	m := &market{t: t, stage: newStage(t, choose), self: chaintest.Key("storefront"), contents: map[cid.Cid]item{}, groups: map[piece.Link][]string{}}
	m.stage.Handlers = func() map[string]store.Handler { return m.Handlers() }
	honest := m.provider("compute")
	deps := storefront.Deps{
		Signer: m.self, Store: m.stage.Driver, Keys: chaintest.Keys{}, Custody: m, Now: m.clock, Log: slog.New(slog.DiscardHandler),
		Aggregator: m.peer(chaintest.Key("aggregator"), piececap.OfferAbility, m.aggregate),
		Compute:    []storefront.Provider{{Peer: honest.peer()}},
	}
	if change != nil {
		change(m, &deps)
	}
	var err error
	if m.Service, err = storefront.New(deps); err != nil {
		t.Fatal(err)
	}
	return m
}

// newStage returns a stage with indexes that are up to date. Only injected faults, and conflicts that follow from them, may make a message fail.
func newStage(t *testing.T, choose storetest.Chooser) storetest.Stage {
	t.Helper()
	clock := storetest.NewClock()
	s := storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now, IndexLag: -1, IndexLagCommits: -1}), choose)
	s.Observe = func(o store.Outcome) {
		if o.Err != nil && !errors.Is(o.Err, storetest.ErrInjected) && !errors.Is(o.Err, store.ErrConflict) {
			t.Errorf("message of %s: %v", o.Delivery.Queue, o.Err)
		}
	}
	return s
}

func (m *market) clock() time.Time { return m.stage.Clock.Now() }

func (m *market) peer(of capabilities.Signer, can string, n neighbour) capabilities.Peer {
	return capabilities.Peer{DID: of.DID(), Conn: n, Proofs: chaintest.Standing(of, m.self.DID(), can).Proofs}
}

// Stat implements [storefront.Custody].
func (m *market) Stat(_ context.Context, c cid.Cid) (storefront.Content, error) {
	i, ok := m.contents[c]
	if !ok {
		return storefront.Content{}, storefront.ErrNoContent
	}
	return storefront.Content{CID: c, Length: int64(len(i.bytes)), URL: "https://custody.example/" + c.String(), Places: m.places}, nil
}

// item makes content that no other call makes, in custody.
func (m *market) item() item {
	m.t.Helper()
	m.made++
	b := []byte(strings.Repeat(fmt.Sprintf("content %d of the market\n", m.made), 20))
	link, err := piece.Sum(b)
	if err != nil {
		m.t.Fatal(err)
	}
	i := item{store.RawBlob(b).CID, b, link}
	m.contents[i.cid] = i
	return i
}

func (m *market) aggregate(task capabilities.Task) (*capabilities.Message, error) {
	var nb piececap.Offer
	if err := task.Caveats(&nb); err != nil {
		return nil, err
	}
	if !slices.Contains(m.groups[nb.Piece], nb.Group) {
		m.groups[nb.Piece] = append(m.groups[nb.Piece], nb.Group)
	}
	self := chaintest.Key("aggregator")
	accept := chaintest.Invoke(self, self.DID(), self.DID().String(), &piececap.Accept{Piece: nb.Piece, Group: nb.Group},
		capabilities.Terms{Nonce: task.EffectNonce()})
	return conclusion(m.t, self, task, nil, &piececap.OfferOK{Piece: nb.Piece}, capabilities.Effects{Join: &accept}), nil
}

// computing is a compute provider of a market.
type computing struct {
	m      *market
	signer capabilities.Signer
	// answer is what it says of content: a piece, a failure, or the error of the connection. The truth if nil.
	answer func(i item) (piece.Link, *capabilities.Failure, error)
	mu     sync.Mutex
	asked  []cid.Cid
}

func (m *market) provider(name string) *computing {
	return &computing{m: m, signer: chaintest.Key(name)}
}

func (c *computing) peer() capabilities.Peer {
	return c.m.peer(c.signer, computecap.PieceCIDAbility, c.execute)
}

func (c *computing) execute(task capabilities.Task) (*capabilities.Message, error) {
	var nb computecap.PieceCID
	if err := task.Caveats(&nb); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.asked = append(c.asked, nb.Content)
	c.mu.Unlock()
	i := c.m.contents[nb.Content]
	link, failure, err := i.piece, (*capabilities.Failure)(nil), error(nil)
	if c.answer != nil {
		link, failure, err = c.answer(i)
	}
	if err != nil {
		return nil, err
	}
	return conclusion(c.m.t, c.signer, task, failure, &computecap.PieceCIDOK{Piece: link}, capabilities.Effects{}), nil
}

// run handles messages for some time, each when it is due.
func (m *market) run(d time.Duration) {
	m.t.Helper()
	m.stage.Run(d)
}

// offering is the invocation of an offer on an agent's own DID, or on a space that the agent has from its owner.
func (m *market) offering(agent capabilities.Signer, content cid.Cid, p piece.Link, nonce string) capabilities.Task {
	return chaintest.Invoke(agent, m.self.DID(), agent.DID().String(), &filecoin.Offer{Content: content, Piece: p}, capabilities.Terms{Nonce: nonce})
}

// send has an offer executed and returns the failure it was refused with, "" if it was not.
func (m *market) send(task capabilities.Task) *capabilities.Failure {
	m.t.Helper()
	r, err := m.invoke(task)
	for errors.Is(err, storetest.ErrInjected) {
		r, err = m.invoke(task)
	}
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
		return f
	}
	if err != nil || r == nil || !r.Ran.Equals(task.Link()) {
		m.t.Fatalf("offering: %v, %v", r, err)
	}
	return nil
}

func (m *market) invoke(task capabilities.Task) (*capabilities.Receipt, error) {
	return m.Methods()[filecoin.OfferAbility](m.t.Context(), capabilities.Invocation{Task: task, Message: capabilities.Pending(task)})
}

// good has an agent offer something right, bad something wrong.
func (m *market) good(agent capabilities.Signer) (item, *capabilities.Failure) {
	m.t.Helper()
	i := m.item()
	return i, m.send(m.offering(agent, i.cid, i.piece, ""))
}

func (m *market) bad(agent capabilities.Signer) (item, *capabilities.Failure) {
	m.t.Helper()
	i, other := m.item(), m.item()
	i.piece = other.piece
	return i, m.send(m.offering(agent, i.cid, i.piece, ""))
}

// state returns where a pair stands.
func (m *market) state(i item) capabilities.PieceStatus {
	m.t.Helper()
	status, err := m.Status(m.t.Context(), i.piece.CID())
	for errors.Is(err, storetest.ErrInjected) {
		status, err = m.Status(m.t.Context(), i.piece.CID())
	}
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range status.Pieces {
		if p.Content == i.cid.String() {
			return p
		}
	}
	m.t.Fatalf("nothing is known of %s as %s", i.cid, i.piece)
	return capabilities.PieceStatus{}
}

// rows counts rows by the beginning of their partition.
func (m *market) rows(prefix string) int {
	m.t.Helper()
	return len(m.stage.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, prefix) }))
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: once more, without what takes long, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "^Test(ChecksAreDrawn|OfferedByManyMore|WorkSpreads)$")
}

// slow is an aggregator that takes its time to say that it has no receipt.
type slow struct {
	neighbour
	asked func()
}

func (s slow) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	s.asked()
	return s.neighbour.Receipt(ctx, task)
}

// TestSweepInSteps: receipts that are missing are looked for in messages of some seconds each, however many they are and however slow the aggregator
// is, so that a process that dies takes little of it with it. Each is looked for in its turn.
func TestSweepInSteps(t *testing.T) {
	const pieces = 12
	asked, before, most := 0, 0, 0
	m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
		d.Timing.Pull = time.Minute
		d.Aggregator.Conn = slow{m.aggregate, func() {
			asked++
			m.stage.Clock.Advance(time.Second)
		}}
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	failures := m.stage.Observe
	m.stage.Observe = func(o store.Outcome) {
		failures(o)
		if o.Delivery.Queue == "sweep" {
			most, before = max(most, asked-before), asked
		}
	}
	var items []item
	for range pieces {
		i, _ := m.good(chaintest.Key("alice"))
		items = append(items, i)
	}
	m.run(10 * time.Minute)
	if asked < pieces || most == 0 || most > 4 {
		t.Errorf("%d pieces were looked for %d times, up to %d times in one message", pieces, asked, most)
	}
	for _, i := range items {
		if s := m.state(i); s.State != "offered" || s.Next.IsZero() || s.Reason != "waiting for an aggregate" {
			t.Errorf("%+v", s)
		}
	}
}

// TestLostSweep: a timer whose message was lost is armed again by a process that starts.
func TestLostSweep(t *testing.T) {
	asked := 0
	m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
		d.Timing.Pull = time.Minute
		d.Aggregator.Conn = slow{m.aggregate, func() { asked++ }}
	})
	start := func() {
		t.Helper()
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	start()
	m.stage.Clock.Advance(time.Minute)
	messages, err := m.stage.Engine.Receive(t.Context(), "sweep", 10, time.Minute)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	if err := m.stage.Engine.Ack(t.Context(), messages[0]); err != nil {
		t.Fatal(err)
	}
	m.good(chaintest.Key("alice"))
	m.run(30 * time.Minute)
	start()
	m.run(20 * time.Minute)
	if asked != 0 {
		t.Fatal("the timer was not lost, or is armed again too soon")
	}
	m.run(time.Hour)
	start()
	m.run(10 * time.Minute)
	if asked == 0 {
		t.Error("the receipt is not looked for any more")
	}
}
