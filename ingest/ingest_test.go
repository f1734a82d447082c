package ingest_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/ingest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// double is a queue of events, as a store would fill it.
type double struct {
	now  func() time.Time
	list []*message
	seen int
}

type message struct {
	id, body string
	attempt  int
	visible  time.Time
	lease    string
}

func (q *double) send(body string) {
	q.seen++
	q.list = append(q.list, &message{id: fmt.Sprintf("message-%d", q.seen), body: body, visible: q.now()})
}

func (q *double) Receive(_ context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	for _, m := range q.list {
		if m.visible.After(q.now()) || limit < 1 {
			continue
		}
		m.attempt++
		m.visible, m.lease = q.now().Add(lease), fmt.Sprintf("%s/%d", m.id, m.attempt)
		return []store.Delivery{{Message: store.Message{Queue: queue, Body: []byte(m.body)}, ID: m.id, Attempt: m.attempt, Enqueued: q.now(), Lease: m.lease}}, nil
	}
	return nil, nil
}

func (q *double) held(d store.Delivery) (int, error) {
	n := slices.IndexFunc(q.list, func(m *message) bool { return m.lease == d.Lease && m.visible.After(q.now()) })
	if n < 0 {
		return n, store.ErrLeaseLost
	}
	return n, nil
}

func (q *double) Ack(_ context.Context, d store.Delivery) error {
	n, err := q.held(d)
	if err == nil {
		q.list = slices.Delete(q.list, n, n+1)
	}
	return err
}

func (q *double) Extend(_ context.Context, d store.Delivery, lease time.Duration) error {
	n, err := q.held(d)
	if err == nil {
		q.list[n].visible = q.now().Add(lease)
	}
	return err
}

func (q *double) Retry(_ context.Context, d store.Delivery, after time.Duration) error {
	n, err := q.held(d)
	if err == nil {
		q.list[n].visible, q.list[n].lease = q.now().Add(after), ""
	}
	return err
}

// fed is an engine whose messages are those of the double.
type fed struct {
	enginetest.Engine
	*double
}

func (f fed) Receive(ctx context.Context, queue string, limit int, lease time.Duration) ([]store.Delivery, error) {
	return f.double.Receive(ctx, queue, limit, lease)
}
func (f fed) Ack(ctx context.Context, d store.Delivery) error { return f.double.Ack(ctx, d) }
func (f fed) Extend(ctx context.Context, d store.Delivery, lease time.Duration) error {
	return f.double.Extend(ctx, d, lease)
}
func (f fed) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	return f.double.Retry(ctx, d, after)
}

// world is a bucket, a custody and a storefront around an ingester.
type world struct {
	*testing.T
	clock   *storetest.FakeClock
	engine  enginetest.Engine
	queue   *double
	driver  store.Driver
	choose  storetest.Chooser
	deps    ingest.Deps
	objects map[string][]byte // of bucket "b", below "in/"
	custody map[cid.Cid][]byte
	offers  map[string]int // acknowledged: content and piece
	read    int            // objects that were opened
	asked   int            // pieces that a provider was asked for
	refuse  error
}

func newWorld(t *testing.T, choose storetest.Chooser) *world {
	clock := storetest.NewClock()
	w := &world{T: t, clock: clock, engine: enginetest.New(t, enginetest.Options{Now: clock.Now}), queue: &double{now: clock.Now}, choose: choose,
		objects: map[string][]byte{}, custody: map[cid.Cid][]byte{}, offers: map[string]int{}}
	w.driver = fed{w.engine, w.queue}
	if choose == nil {
		w.choose = func(storetest.Call) storetest.Fault { return storetest.None }
	} else {
		w.driver = storetest.NewFaulty(w.driver, choose)
	}
	w.deps = ingest.Deps{Rows: w.driver, Custody: w, Copy: true, Now: clock.Now, Workers: 1, Log: slog.New(slog.DiscardHandler),
		Bucket: func(name string) (ingest.Bucket, bool) { return bucket{w}, name == "b" }, Offer: w.offer}
	return w
}

// fault makes a call of a neighbour fail as the chooser says, before or after it has done what it does.
func (w *world) fault(method string, do func() error) error {
	switch w.choose(storetest.Call{Method: method}) {
	case storetest.FailBefore:
		return storetest.ErrInjected
	case storetest.FailAfter, storetest.ReportConflict:
		if err := do(); err != nil {
			return err
		}
		return storetest.ErrInjected
	}
	return do()
}

type bucket struct{ w *world }

func (bucket) Covers(key string) bool { return strings.HasPrefix(key, "in/") }

func (bucket) ContentOf(key string) cid.Cid {
	c, err := cid.Parse(strings.TrimPrefix(key, "in/"))
	if err != nil {
		return cid.Undef
	}
	return c
}

func (b bucket) Look(_ context.Context, key string) (o ingest.Object, err error) {
	err = b.w.fault("Look", func() error {
		body, ok := b.w.objects[key]
		if !ok {
			return fmt.Errorf("looking: %w", ingest.ErrGone)
		}
		sum := md5.Sum(body)
		o = ingest.Object{ETag: hex.EncodeToString(sum[:]), Length: int64(len(body))}
		return nil
	})
	return o, err
}

func (b bucket) Open(_ context.Context, key string, _ ingest.Object) (body io.ReadCloser, err error) {
	b.w.read++
	err = b.w.fault("Open", func() error {
		body = io.NopCloser(bytes.NewReader(b.w.objects[key]))
		return nil
	})
	return body, err
}

func (w *world) Has(_ context.Context, content cid.Cid) (has bool, err error) {
	err = w.fault("Has", func() error {
		_, kept := w.custody[content]
		_, named := w.objects["in/"+content.String()]
		has = kept || named
		return nil
	})
	return has, err
}

func (w *world) Put(_ context.Context, content cid.Cid, r io.Reader, maxBytes int64) error {
	return w.fault("Custody", func() error {
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) > maxBytes || contentOf(b) != content {
			return fmt.Errorf("%d bytes, %v, for %s", len(b), err, content)
		}
		w.custody[content] = b
		return nil
	})
}

func (w *world) offer(_ context.Context, content cid.Cid, p piece.Link) (task cid.Cid, err error) {
	err = w.fault("Offer", func() error {
		if w.refuse != nil {
			return w.refuse
		}
		w.offers[content.String()+" "+p.String()]++
		return nil
	})
	if err != nil {
		return cid.Undef, err
	}
	return contentOf([]byte(content.String() + p.String())), nil // the same each time
}

func contentOf(b []byte) cid.Cid {
	hash, err := multihash.Sum(b, multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, hash)
}

func pairOf(t testing.TB, b []byte) string {
	t.Helper()
	link, err := piece.Sum(b)
	if err != nil {
		t.Fatal(err)
	}
	return contentOf(b).String() + " " + link.String()
}

// event is an S3 notification.
func event(name, bucket string, keys ...string) string {
	var records []any
	for _, key := range keys {
		records = append(records, map[string]any{"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name,
			"s3": map[string]any{"bucket": map[string]any{"name": bucket}, "object": map[string]any{"key": url.QueryEscape(key), "size": 1}}})
	}
	b, err := json.Marshal(map[string]any{"Records": records})
	if err != nil {
		panic(err)
	}
	return string(b)
}

const created = "ObjectCreated:Put"

// run handles all there is, moving the clock on while there is something to wait for.
func (w *world) run() {
	w.Helper()
	i, err := ingest.New(w.deps)
	if err != nil {
		w.Fatal(err)
	}
	consume := func(driver store.Driver) *store.Consumer {
		c, err := store.NewConsumer(store.ConsumerOptions{Driver: driver, Queue: ingest.QueueName, Handle: i.Handle, Now: w.clock.Now,
			Rand: func() float64 { return 1 }, Attempts: ingest.DefaultAttempts + 5})
		if err != nil {
			w.Fatal(err)
		}
		return c
	}
	events, retried := consume(w.driver), consume(w.engine)
	for idle := 0; idle < 30; {
		worked := false
		for _, c := range []*store.Consumer{events, retried} {
			did, err := c.Step(w.Context())
			if err != nil && !errors.Is(err, storetest.ErrInjected) {
				w.Fatal(err)
			}
			worked = worked || did
		}
		if worked {
			idle = 0
			continue
		}
		idle++
		w.clock.Advance(time.Hour)
	}
}

func (w *world) dead() []store.DeadLetter {
	w.Helper()
	letters, _, err := store.ListDead(w.Context(), w.engine, "", "", 0)
	if err != nil {
		w.Fatal(err)
	}
	return letters
}

// check compares what was offered.
func (w *world) check(want ...[]byte) {
	w.Helper()
	if len(w.offers) != len(want) {
		w.Errorf("%d pieces are offered, want %d", len(w.offers), len(want))
	}
	for n, b := range want {
		if w.offers[pairOf(w, b)] == 0 {
			w.Errorf("object %d is not offered: %v", n, w.offers)
		}
	}
	if len(w.queue.list) != 0 {
		w.Errorf("%d messages are left", len(w.queue.list))
	}
}

// fill puts objects into the bucket, one of them by the name of its content, and says so.
func (w *world) fill() [][]byte {
	a, b, c := []byte("the first object"), []byte("the second object"), []byte("an object by its name")
	w.objects["in/a b+c"], w.objects["in/z"], w.objects["in/"+contentOf(c).String()] = a, b, c
	w.queue.send(event(created, "b", "in/a b+c", "in/z"))
	w.queue.send(event("ObjectCreated:Copy", "b", "in/"+contentOf(c).String()))
	w.queue.send(event(created, "b", "in/z")) // twice
	return [][]byte{a, b, c}
}

// TestIngest: what is stored is offered, once it can be found in custody; events that come again are not worked on again.
func TestIngest(t *testing.T) {
	w := newWorld(t, nil)
	want := w.fill()
	w.run()
	w.check(want...)
	if len(w.dead()) != 0 || w.read != 5 { // two were hashed and copied, one was hashed where it is
		t.Errorf("%d dead letters, %d objects were opened", len(w.dead()), w.read)
	}
	if len(w.custody) != 2 {
		t.Errorf("%d objects were copied, want the two whose keys do not name their content", len(w.custody))
	}
	for pair, n := range w.offers {
		if n != 1 {
			t.Errorf("%s is offered %d times", pair, n)
		}
	}
	// Another object under a key that is known.
	changed := []byte("the second object, changed")
	w.objects["in/z"] = changed
	w.queue.send(event(created, "b", "in/z"))
	w.run()
	w.check(append(want, changed)...)
}

// TestIngestFaults: a fault at any call, or a message that comes twice, changes nothing about what is offered in the end, and buries nothing.
func TestIngestFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newWorld(t, choose)
		want := w.fill()
		w.run()
		w.check(want...)
		if letters := w.dead(); len(letters) != 0 {
			t.Errorf("dead letters: %+v", letters)
		}
	})
}

// TestIngestProvider: a provider is asked for what custody finds by its name, and for nothing else.
func TestIngestProvider(t *testing.T) {
	w := newWorld(t, nil)
	w.deps.Compute = func(_ context.Context, content cid.Cid, length int64) (piece.Link, error) {
		w.asked++
		if b := w.objects["in/"+content.String()]; int64(len(b)) == length {
			return piece.Sum(b)
		}
		return piece.Link{}, errors.New("there is no such content")
	}
	want := w.fill()
	w.run()
	w.check(want...)
	if w.asked != 1 || w.read != 4 {
		t.Errorf("asked for %d, opened %d", w.asked, w.read)
	}
}

// TestIngestNothingToDo: events that nothing follows from end by themselves.
func TestIngestNothingToDo(t *testing.T) {
	w := newWorld(t, nil)
	w.objects["elsewhere/x"], w.objects["in/empty"] = []byte("not ours"), nil
	for _, body := range []string{
		string(sample(t, "s3-test.json")), string(sample(t, "r2-deleted.json")), event("ObjectRemoved:Delete", "b", "in/x"),
		event("ObjectRestore:Completed", "b", "in/x"), event(created, "b", "in/gone"), event(created, "b", "elsewhere/x"), event(created, "b", "in/empty"),
	} {
		w.queue.send(body)
	}
	w.run()
	w.check()
	if letters := w.dead(); len(letters) != 0 || w.read != 0 {
		t.Errorf("%d were opened, dead letters: %+v", w.read, letters)
	}
}

// TestIngestPoison: what can never be offered is a dead letter at once, by name, and holds up nothing; the operator mends it, and retries.
func TestIngestPoison(t *testing.T) {
	w := newWorld(t, nil)
	w.deps.Copy, w.deps.MaxBytes = false, 1000
	good, other := []byte("a good object"), []byte("an object with a name that is not its own")
	wrong := "in/" + contentOf([]byte("something else")).String()
	w.objects["in/"+contentOf(good).String()], w.objects[wrong] = good, other
	w.objects["in/movie"], w.objects["in/large"] = []byte("a movie"), make([]byte, 1001)
	w.queue.send(event(created, "b", "in/movie", "in/"+contentOf(good).String(), wrong, "in/large"))
	w.queue.send(event(created, "foreign", "in/x"))
	w.queue.send("{ this is no event " + strings.Repeat("x", 5000))
	w.run()
	w.check(good)
	causes := map[string]string{}
	for _, l := range w.dead() {
		if l.Queue != ingest.QueueName || l.Attempts != 1 || len(l.Body) > store.MaxMessageBody {
			t.Errorf("dead letter %+v", l)
		}
		for _, name := range []string{ingest.NotInCustody, ingest.ContentMismatch, capabilities.PieceTooLarge, ingest.ForeignBucket, ingest.Malformed} {
			if strings.Contains(l.Error, name+": ") {
				causes[name] = l.ID
			}
		}
	}
	if len(causes) != 5 || len(w.dead()) != 5 {
		t.Fatalf("dead letters for %v: %+v", causes, w.dead())
	}

	w.deps.Copy = true
	for _, name := range []string{ingest.NotInCustody, ingest.Malformed} {
		if err := store.RetryDead(t.Context(), w.engine, causes[name]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	w.run()
	w.check(good, []byte("a movie"))
	if n := len(w.dead()); n != 4 {
		t.Errorf("%d dead letters are left, want the three that were not retried and the one that is malformed as before", n)
	}
}

// TestIngestRefused: a refusal for now is tried until the attempts are used up, one for good is not tried again.
func TestIngestRefused(t *testing.T) {
	for name, attempts := range map[string]int{capabilities.QuotaExceeded: ingest.DefaultAttempts, capabilities.UnsupportedContent: 1} {
		w := newWorld(t, nil)
		w.fill()
		w.refuse = capabilities.Fail(name, "says the storefront")
		w.run()
		w.check()
		letters := w.dead()
		if len(letters) != 4 { // one for each event, also for one that came twice
			t.Errorf("%s: %d dead letters", name, len(letters))
		}
		for _, l := range letters {
			if l.Attempts != attempts || !strings.Contains(l.Error, name) {
				t.Errorf("%s: dead letter %+v", name, l)
			}
		}
		// It passes in the end, and an operator retries.
		w.refuse = nil
		for _, l := range letters {
			if err := store.RetryDead(t.Context(), w.engine, l.ID); err != nil {
				t.Fatal(err)
			}
		}
		w.run()
		if len(w.offers) != 3 || len(w.dead()) != 0 {
			t.Errorf("%s: after the retries %d are offered, %d dead", name, len(w.offers), len(w.dead()))
		}
	}
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "")
}
