package enginetest

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// role is whose state the state is, below a prefix that no other engine has.
const role = "suite"

// services is an engine on real services whose clock the test moves. Rows, blobs and messages are where they are in production, and a message is sent, received
// and acknowledged there. But the services have a clock of their own: timers stay in their rows until the test's clock says that they are due, and a message
// that was received is kept from others for hours, while this engine hands it out, and again, by the test's clock.
type services struct {
	*aws.Engine // on the test's clock: commits, sends
	*messages
}

var _ storetest.Simulated = services{}

// place is tables, queues and a prefix that one engine has at a time. Tables take seconds to be created: places are emptied and used again.
type place struct {
	where aws.Location
	awstest.Clients
	queues map[string]string // URLs of queues that were created, by name
}

// places are those of this process.
var places struct {
	mu        sync.Mutex
	all, free []*place
}

// Main runs the tests of a package, as its TestMain, and removes what engines have created at services. What cannot be removed costs somebody money: it
// panics.
func Main(m *testing.M) {
	m.Run()
	for _, p := range places.all {
		if err := awstest.Remove(context.Background(), p.where); err != nil {
			panic(fmt.Sprintf("removing %s: %v", p.where, err))
		}
	}
}

// messages is what outlives an opening.
type messages struct {
	*place
	t        testing.TB
	now      func() time.Time
	rand     *mathrand.Rand
	receiver *aws.Engine // on the services' clock

	mu     sync.Mutex
	timers []timer
	sent   map[string]int // messages that are in a queue and were not received yet
	held   []*held        // received, in order
	fired  int
	serial int
}

// timer is a message that waits in its row.
type timer struct {
	key   store.Key
	queue string
	due   time.Time
}

// held is a message that was received from its queue.
type held struct {
	store.Delivery
	real    store.Delivery
	visible time.Time
}

const (
	// realLease is for how long the services keep messages from others: as long as any test takes.
	realLease = 11 * time.Hour
	// looks is how often a queue is looked into for messages that were sent to it.
	looks = 200
)

// takePlace returns a place that nobody uses.
func takePlace(ctx context.Context) (*place, error) {
	places.mu.Lock()
	defer places.mu.Unlock()
	if n := len(places.free); n > 0 {
		p := places.free[n-1]
		places.free = places.free[:n-1]
		return p, nil
	}
	where, err := awstest.Place()
	if err != nil {
		return nil, err
	}
	c, err := awstest.Dial(ctx, where)
	if err != nil {
		return nil, err
	}
	p := &place{where: where, Clients: c, queues: map[string]string{}}
	places.all = append(places.all, p)
	return p, aws.Init(ctx, where, aws.Layout{role: nil}, aws.Options{Role: role, Now: time.Now, After: time.After}, nil)
}

func newServices(t testing.TB, o Options) services {
	t.Helper()
	p, err := takePlace(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	m := &messages{place: p, t: t, now: o.Now, rand: o.Rand, sent: map[string]int{}}
	m.receiver = m.open(time.Now)
	e := services{m.open(m.now), m}
	t.Cleanup(func() {
		if err := e.giveBack(context.Background()); err != nil {
			t.Errorf("emptying %s: %v", p.where, err)
		}
	})
	return e
}

// giveBack empties the place for the next engine.
func (e services) giveBack(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.receive(ctx); err != nil {
		return err
	}
	for _, h := range e.held {
		if err := e.receiver.Ack(ctx, h.real); err != nil {
			return err
		}
	}
	if err := errors.Join(e.empty(ctx), e.receiver.Close(), e.Close()); err != nil {
		return err
	}
	places.mu.Lock()
	defer places.mu.Unlock()
	places.free = append(places.free, e.place)
	return nil
}

// empty removes rows and blobs.
func (p *place) empty(ctx context.Context) error {
	for name, keys := range map[string]string{p.where.RowTable(role): "p, s", p.where.BlobTable(role): "c"} {
		pages := dynamodb.NewScanPaginator(p.DB, &dynamodb.ScanInput{TableName: &name, ProjectionExpression: &keys, ConsistentRead: awssdk.Bool(true)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return err
			}
			for batch := range slices.Chunk(page.Items, 25) {
				var deletes []types.WriteRequest
				for _, key := range batch {
					deletes = append(deletes, types.WriteRequest{DeleteRequest: &types.DeleteRequest{Key: key}})
				}
				for requests := map[string][]types.WriteRequest{name: deletes}; len(requests) > 0; {
					out, err := p.DB.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{RequestItems: requests})
					if err != nil {
						return err
					}
					requests = out.UnprocessedItems
				}
			}
		}
	}
	return p.RemoveObjects(ctx, p.where.BucketName(), p.where.Prefix+"/")
}

func (m *messages) options(now func() time.Time) aws.Options {
	return aws.Options{Role: role, Now: now, After: time.After, Relay: -1, Poll: -1, Ahead: -1, Serial: true,
		OnError: func(err error) { m.t.Logf("beside a call: %v", err) }}
}

func (m *messages) open(now func() time.Time) *aws.Engine {
	e, err := aws.Open(context.Background(), m.where, m.options(now))
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

// Reopen implements [Engine].
func (e services) Reopen() Engine {
	if err := e.Close(); err != nil {
		e.t.Fatal(err)
	}
	return services{e.open(e.now), e.messages}
}

// Interrupt implements [Engine]: requests to real services are not for the test to stop.
func (services) Interrupt(int) bool { return false }

// need creates a queue before it is used.
func (p *place) need(ctx context.Context, queue string) error {
	if p.queues[queue] != "" {
		return nil
	}
	name := p.where.QueueName(role, queue)
	out, err := p.SQS.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name})
	if err == nil {
		p.queues[queue] = awssdk.ToString(out.QueueUrl)
	}
	return err
}

// Commit implements [store.Rows].
func (e services) Commit(ctx context.Context, c store.Change) (uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.fire(ctx); err != nil {
		return 0, err
	}
	if c.Check() == nil {
		for _, m := range c.Messages {
			if err := e.need(ctx, m.Queue); err != nil {
				return 0, err
			}
		}
	}
	version, err := e.Engine.Commit(ctx, c)
	if err != nil {
		return version, err
	}
	for _, m := range c.Messages {
		if m.Due.After(e.now()) {
			due := m.Due.Add(time.Millisecond - 1).Truncate(time.Millisecond) // as rows say it
			e.timers = append(e.timers, timer{c.Row.Key, m.Queue, due})
		} else {
			e.sent[m.Queue]++
		}
	}
	return version, nil
}

// fire sends the messages whose time has come. Now and then the relay finds them by itself; else it is told where they are, which is 31 requests less.
func (e services) fire(ctx context.Context) error {
	var rows []store.Key
	left := e.timers[:0:0]
	due := map[string]int{}
	for _, t := range e.timers {
		if t.due.After(e.now()) {
			left = append(left, t)
			continue
		}
		due[t.queue]++
		if !slices.Contains(rows, t.key) {
			rows = append(rows, t.key)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if e.fired++; e.fired%16 == 0 {
		if _, err := e.Relay(ctx); err != nil {
			return err
		}
	}
	for _, key := range rows {
		if _, err := e.RelayRow(ctx, key); err != nil {
			return err
		}
	}
	for queue, n := range due {
		e.sent[queue] += n
	}
	e.timers = left
	return nil
}

// pump sends what is due and receives what was sent.
func (e services) pump(ctx context.Context) error {
	if err := e.fire(ctx); err != nil {
		return err
	}
	return e.receive(ctx)
}

// receive receives what was sent. Services that answer from some of their servers only are asked again.
func (e services) receive(ctx context.Context) error {
	for queue := range e.sent {
		for look := 0; e.sent[queue] > 0; look++ {
			if look == looks {
				e.t.Errorf("%d messages that were sent to %s do not come", e.sent[queue], queue)
				break
			}
			ds, err := e.receiver.Receive(ctx, queue, 10, realLease)
			if err != nil {
				return err
			}
			for _, d := range ds {
				e.held = append(e.held, &held{Delivery: store.Delivery{Message: d.Message, ID: d.ID, Enqueued: d.Enqueued}, real: d, visible: e.now()})
			}
			e.sent[queue] -= min(len(ds), e.sent[queue])
		}
		delete(e.sent, queue)
	}
	return nil
}

// Receive implements [store.Messages].
func (e services) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.Engine.Receive(ctx, queue, 0, lease); err != nil { // closed?
		return nil, err
	}
	if err := e.pump(ctx); err != nil {
		return nil, err
	}
	var due []*held
	for _, h := range e.held {
		if h.Queue == queue && !h.visible.After(e.now()) {
			due = append(due, h)
		}
	}
	slices.SortStableFunc(due, func(a, b *held) int { return a.visible.Compare(b.visible) })
	if e.rand != nil {
		e.rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	var out []store.Delivery
	for _, h := range due[:min(limit, len(due))] {
		e.serial++
		h.Attempt++
		h.Lease, h.visible = strconv.Itoa(e.serial), e.now().Add(lease)
		out = append(out, h.Delivery)
	}
	return out, nil
}

// leased returns the message if the delivery's lease is still the current one.
func (e services) leased(d store.Delivery) (int, error) {
	i := slices.IndexFunc(e.held, func(h *held) bool { return h.Lease == d.Lease && h.ID == d.ID && h.Lease != "" })
	if i < 0 || !e.now().Before(e.held[i].visible) {
		return 0, store.ErrLeaseLost
	}
	return i, nil
}

// Ack implements [store.Messages].
func (e services) Ack(ctx context.Context, d store.Delivery) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, err := e.leased(d)
	if err != nil {
		return err
	}
	if err := e.receiver.Ack(ctx, e.held[i].real); err != nil {
		return err
	}
	e.held = slices.Delete(e.held, i, i+1)
	return nil
}

// Extend implements [store.Messages].
func (e services) Extend(_ context.Context, d store.Delivery, lease time.Duration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, err := e.leased(d)
	if err != nil {
		return err
	}
	e.held[i].visible = e.now().Add(lease)
	return nil
}

// Retry implements [store.Messages].
func (e services) Retry(_ context.Context, d store.Delivery, after time.Duration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, err := e.leased(d)
	if err != nil {
		return err
	}
	e.held[i].Lease, e.held[i].visible = "", e.now().Add(max(0, after))
	return nil
}

// Receivable implements [storetest.Simulated].
func (e services) Receivable() (queues []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.pump(context.Background()); err != nil {
		e.t.Errorf("looking for messages: %v", err)
	}
	for _, h := range e.held {
		if !h.visible.After(e.now()) && !slices.Contains(queues, h.Queue) {
			queues = append(queues, h.Queue)
		}
	}
	slices.Sort(queues)
	return queues
}

// NextEvent implements [storetest.Simulated].
func (e services) NextEvent() (at time.Time, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	earliest := func(t time.Time) {
		if t.After(e.now()) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	for _, t := range e.timers {
		earliest(t.due)
	}
	for _, h := range e.held {
		earliest(h.visible)
	}
	return at, ok
}

// Waiting implements [storetest.Simulated].
func (e services) Waiting() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := map[string]int{}
	for _, t := range e.timers {
		n[t.queue]++
	}
	for queue, sent := range e.sent {
		n[queue] += sent
	}
	for _, h := range e.held {
		n[h.Queue]++
	}
	return n
}
