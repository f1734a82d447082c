package compute_test

import (
	"context"
	"crypto/sha512"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
)

const home = "https://custody.example/content"

func TestPieceOfContent(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	w.fetcher.pages[home] = page{body: c.bytes}
	task, claim := newTask(storefront, c.cid, ""), w.claim(c.cid, home)

	w.accepted(w.invoke(task, claim))
	w.accepted(w.invoke(task, claim))
	w.Clock.Advance(2 * time.Second) // the index is late
	status, err := w.service.Status(t.Context(), c.cid)
	if err != nil || len(status.Pieces) != 1 || status.Pieces[0].State != string(compute.Running) {
		t.Errorf("status while it runs: %+v, %v", status, err)
	}
	w.Run(time.Minute)
	r, err := w.invoke(task, claim)
	w.found(c.piece, task, r, err)
	if len(w.fetcher.fetched) != 1 {
		t.Errorf("fetched %v", w.fetcher.fetched)
	}
	kept := w.receipt(task.Link())
	if kept == nil || !kept.Link().Equals(r.Link()) || !w.front.Receipts[task.Link()].Equals(r.Link()) {
		t.Errorf("receipts: %v kept, %v pushed, %s answered", kept, w.front.Receipts, r.Link())
	}
	// Repeated without claims, and after the bytes are gone.
	delete(w.fetcher.pages, home)
	again, err := w.invoke(task)
	if err != nil || !again.Link().Equals(r.Link()) {
		t.Errorf("repeated: %v, %v", again, err)
	}
	if status, err = w.service.Status(t.Context(), c.cid); err != nil || len(status.Pieces) != 1 ||
		status.Pieces[0].Piece != c.piece.String() || status.Pieces[0].State != "computed" {
		t.Errorf("status: %+v, %v", status, err)
	}
	if rows := w.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, "job/") }); len(rows) != 0 {
		t.Errorf("jobs that are left: %v", rows)
	}
}

func TestContentOfAnotherCodec(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("a CAR file")
	car := cid.NewCidV1(0x0202, c.cid.Hash())
	w.fetcher.pages[home] = page{body: c.bytes}
	task := newTask(storefront, car, "")
	w.accepted(w.invoke(task, w.claim(car, home)))
	w.Run(time.Minute)
	r, err := w.invoke(task)
	w.found(c.piece, task, r, err)
}

func TestUnsupportedContent(t *testing.T) {
	b := []byte("text")
	sum512 := sha512.Sum512(b)
	mh512, err := multihash.Encode(sum512[:], multihash.SHA2_512)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := multihash.Encode(b, multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	sha256 := store.RawBlob(b).CID.Hash()
	for name, c := range map[string]cid.Cid{
		"a DAG":             cid.NewCidV1(cid.DagProtobuf, sha256),
		"a piece":           newContent("x").piece.CID(),
		"another hash":      cid.NewCidV1(cid.Raw, mh512),
		"the bytes inside":  cid.NewCidV1(cid.Raw, identity),
		"an old kind of ID": cid.NewCidV0(sha256),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			task := newTask(storefront, c, "")
			r, err := w.invoke(task, w.claim(c, home))
			if err != nil {
				t.Fatal(err)
			}
			var ok computecap.PieceCIDOK
			f := (*capabilities.Failure)(nil)
			if err := capabilities.ReadResult(r.Out, &ok); !errors.As(err, &f) || f.Name != capabilities.UnsupportedContent {
				t.Errorf("got %v", err)
			}
			if kept := w.receipt(task.Link()); kept == nil || !kept.Link().Equals(r.Link()) {
				t.Errorf("kept %v", kept)
			}
			if again, err := w.invoke(task); err != nil || !again.Link().Equals(r.Link()) {
				t.Errorf("repeated: %v, %v", again, err)
			}
			w.Run(time.Minute)
			if len(w.fetcher.fetched) != 0 {
				t.Errorf("fetched %v", w.fetcher.fetched)
			}
		})
	}
}

func TestAnotherResource(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	task, err := capabilities.Invoke(storefront, self.DID(), storefront.DID().String(), &computecap.PieceCID{Content: c.cid}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.invoke(task, w.claim(c.cid, home))
	if f := (*capabilities.Failure)(nil); !errors.As(err, &f) || f.Name != capabilities.UnsupportedCapability {
		t.Errorf("got %v", err)
	}
}

func TestClaims(t *testing.T) {
	c, other := newContent("hello"), newContent("other")
	own := storefront.DID().String()
	at := func(urls ...string) *assert.Location {
		return &assert.Location{Content: assert.Content{Link: c.cid}, Location: urls}
	}
	tests := []struct {
		name  string
		claim func(w *world) capabilities.Block
		ok    bool
	}{
		{"by link", func(w *world) capabilities.Block { return w.claim(c.cid, home) }, true},
		{"by link of another codec", func(w *world) capabilities.Block { return w.claim(cid.NewCidV1(0x0202, c.cid.Hash()), home) }, true},
		{"by digest", func(w *world) capabilities.Block {
			return w.sign(storefront, own, &assert.Location{Content: assert.Content{Digest: c.cid.Hash()}, Location: []string{home}}, capabilities.Terms{})
		}, true},
		{"without expiry", func(w *world) capabilities.Block { return w.sign(storefront, own, at(home), capabilities.Terms{}) }, true},
		{"expired", func(w *world) capabilities.Block {
			return w.sign(storefront, own, at(home), capabilities.Terms{Expiration: w.Clock.Now()})
		}, false},
		{"somebody else's", func(w *world) capabilities.Block {
			return w.sign(stranger, stranger.DID().String(), at(home), capabilities.Terms{})
		}, false},
		{"on somebody else's resource", func(w *world) capabilities.Block {
			return w.sign(storefront, stranger.DID().String(), at(home), capabilities.Terms{})
		}, false},
		{"of other content", func(w *world) capabilities.Block { return w.claim(other.cid, home) }, false},
		{"forged", func(w *world) capabilities.Block {
			forger, err := stranger.WithDID(storefrontWeb)
			if err != nil {
				t.Fatal(err)
			}
			return w.sign(forger, storefrontWeb.String(), at(home), capabilities.Terms{})
		}, false},
		{"an address that is too long", func(w *world) capabilities.Block { return w.claim(c.cid, home+strings.Repeat("/x", 1100)) }, false},
		{"no address", func(w *world) capabilities.Block { return w.claim(c.cid) }, false},
		{"not a claim", func(*world) capabilities.Block { return capabilities.Block(store.CBORBlob([]byte{0xa0})) }, false},
		{"another ability", func(w *world) capabilities.Block {
			task, err := capabilities.Invoke(storefront, self.DID(), own, &assert.Equals{Content: assert.Content{Link: c.cid}, Equals: c.cid}, capabilities.Terms{})
			if err != nil {
				t.Fatal(err)
			}
			return task.Block()
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.fetcher.pages[home] = page{body: c.bytes}
			by := storefront
			if tt.name == "forged" {
				w.deps.Keys = chaintest.Keys{storefrontWeb: storefront.DID()}
				s, err := compute.New(w.deps)
				if err != nil {
					t.Fatal(err)
				}
				w.service = s
				if by, err = storefront.WithDID(storefrontWeb); err != nil {
					t.Fatal(err)
				}
			}
			task := newTask(by, c.cid, "")
			r, err := w.invoke(task, tt.claim(w))
			if !tt.ok {
				w.notFound(r, err)
				if rows := w.Rows(all); len(rows) != 0 {
					t.Errorf("rows of a job without a claim: %v", rows)
				}
				return
			}
			w.accepted(r, err)
			w.Run(time.Minute)
			r, err = w.invoke(task)
			w.found(c.piece, task, r, err)
		})
	}
}

// storefrontWeb is a DID whose key has to be looked up, so that somebody else can put it on a claim.
var storefrontWeb = func() capabilities.DID {
	var d capabilities.DID
	if err := d.UnmarshalText([]byte("did:web:storefront.example")); err != nil {
		panic(err)
	}
	return d
}()

func TestManyClaims(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	var urls []string
	for i := range 40 {
		urls = append(urls, home+strings.Repeat("/", i))
	}
	task := newTask(storefront, c.cid, "")
	w.accepted(w.invoke(task, w.claim(c.cid, urls...)))
	w.Run(time.Minute)
	if len(w.fetcher.fetched) != 16 {
		t.Errorf("%d addresses were tried", len(w.fetcher.fetched))
	}
	if reason := w.notFound(w.invoke(task)); len(reason) > 2<<10 {
		t.Errorf("the reason has %d bytes", len(reason))
	}
}

func TestAddressesInTurn(t *testing.T) {
	c, other := newContent("hello"), newContent("other")
	long := append(slices.Clone(c.bytes), 'x')
	around := append(append([]byte("before"), c.bytes...), "after"...)
	tests := []struct {
		name string
		bad  page
		why  string
	}{
		{"nothing there", page{err: compute.ErrNoContent}, "no content at this address"},
		{"not to be reached", page{err: errors.New("connection refused")}, "connection refused"},
		{"other bytes", page{body: other.bytes}, "not this content"},
		{"more bytes", page{body: long}, "not this content"},
		{"fewer bytes", page{body: c.bytes[:100]}, "not this content"},
		{"fewer bytes than were stated", page{body: c.bytes[:100], length: int64(len(c.bytes))}, "100 bytes came"},
		{"broken off", page{body: c.bytes[:100], readErr: io.ErrUnexpectedEOF}, "unexpected EOF"},
		{"nothing at all", page{body: []byte{}, length: -1}, "empty"},
		{"too much", page{body: c.bytes, readErr: errors.New("it goes on")}, "it goes on"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const bad = "https://bad.example/secret"
			w := newWorld(t, nil)
			w.fetcher.pages[bad] = tt.bad
			task := newTask(storefront, c.cid, "")
			w.accepted(w.invoke(task, w.claim(c.cid, bad)))
			w.Run(time.Minute)
			reason := w.notFound(w.invoke(task))
			if !strings.Contains(reason, tt.why) || !strings.Contains(reason, "(bad.example)") || strings.Contains(reason, "secret") {
				t.Errorf("the reason is %q", reason)
			}
			if w.receipt(task.Link()) != nil {
				t.Error("a failure that may pass was kept as a receipt")
			}

			w = newWorld(t, nil)
			w.fetcher.pages[bad], w.fetcher.pages[home] = tt.bad, page{body: c.bytes, length: -1}
			w.accepted(w.invoke(task, w.claim(c.cid, bad, home)))
			w.Run(time.Minute)
			r, err := w.invoke(task)
			w.found(c.piece, task, r, err)
		})
	}

	for _, tt := range []struct {
		name           string
		offset, length uint64
		page           page
		ok             bool
	}{
		{"a part", 6, uint64(len(c.bytes)), page{body: around}, true},
		{"a part of who knows how much", 6, uint64(len(c.bytes)), page{body: around, length: -1}, true},
		{"the end", 6, 0, page{body: around[:6+len(c.bytes)]}, true},
		{"another part", 5, uint64(len(c.bytes)), page{body: around}, false},
		{"a part beyond the end", 6, uint64(len(around)), page{body: around}, false},
		{"a part that begins beyond the end", 1 << 60, 0, page{body: around, length: -1}, false},
		{"a part beyond the stated end", 1 << 63, 1 << 63, page{body: around}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.fetcher.pages[home] = tt.page
			task := newTask(storefront, c.cid, "")
			w.accepted(w.invoke(task, w.sign(storefront, storefront.DID().String(), &assert.Location{Content: assert.Content{Link: c.cid},
				Location: []string{home}, Range: &assert.Range{Offset: tt.offset, Length: tt.length}}, capabilities.Terms{})))
			w.Run(time.Minute)
			r, err := w.invoke(task)
			if tt.ok {
				w.found(c.piece, task, r, err)
			} else {
				w.notFound(r, err)
			}
		})
	}
}

// TestContentThatComesLate: told once, then tried again for whoever asks, until it is there.
func TestContentThatComesLate(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	task, claim := newTask(storefront, c.cid, ""), w.claim(c.cid, home)
	fetches := func(want int) {
		t.Helper()
		if got := len(w.fetcher.fetched); got != want {
			t.Fatalf("fetched %d times, want %d", got, want)
		}
	}
	w.accepted(w.invoke(task, claim))
	w.Run(time.Minute)
	fetches(1)
	w.notFound(w.invoke(task, claim)) // the failure is a minute old, and was not told yet
	w.accepted(w.invoke(task, claim)) // now it was, and is older than the pause
	w.Run(time.Second)
	fetches(2)
	for range 3 { // told as often as asked during the pause, and nothing is tried
		w.notFound(w.invoke(task, claim))
		w.Run(time.Second)
	}
	fetches(2)

	// Another address is tried at once.
	const away = "https://away.example/content"
	w.accepted(w.invoke(task, w.claim(c.cid, home, away)))
	w.Run(time.Second)
	fetches(4)
	w.notFound(w.invoke(task, claim))

	// Claims may be left out of a repetition.
	w.fetcher.pages[away] = page{body: c.bytes}
	w.Run(10 * time.Second)
	w.accepted(w.invoke(task))
	status, err := w.service.Status(t.Context(), c.cid)
	if err != nil || len(status.Pieces) != 1 || status.Pieces[0].Attempts == 0 || status.Pieces[0].Tasks[computecap.PieceCIDAbility] != task.Link().String() {
		t.Errorf("status: %+v, %v", status, err)
	}
	w.Run(time.Second)
	fetches(6)
	r, err := w.invoke(task)
	w.found(c.piece, task, r, err)
	if len(w.front.Receipts) != 1 {
		t.Errorf("pushed %v", w.front.Receipts)
	}
}

// TestInterrupted: a process that is asked to stop knows nothing of the content; the next one goes on.
func TestInterrupted(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	ctx, stop := context.WithCancel(t.Context())
	w.fetcher.pages[home] = page{before: func(context.Context) { stop() }, err: context.Canceled}
	task := newTask(storefront, c.cid, "")
	w.accepted(w.invoke(task, w.claim(c.cid, home)))
	work, err := w.Engine.Receive(t.Context(), compute.QueueName, 1, time.Minute)
	if err != nil || len(work) != 1 {
		t.Fatalf("%d messages, %v", len(work), err)
	}
	if err := w.service.Handlers()[compute.QueueName](ctx, work[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	w.accepted(w.invoke(task))
	w.fetcher.pages[home] = page{body: c.bytes}
	w.Run(2 * time.Minute) // the lease ends
	r, err := w.invoke(task)
	w.found(c.piece, task, r, err)
}

// TestLostJob: a job whose message is gone does not stay under way for ever.
func TestLostJob(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	w.fetcher.pages[home] = page{body: c.bytes}
	task := newTask(storefront, c.cid, "")
	w.accepted(w.invoke(task, w.claim(c.cid, home)))
	work, err := w.Engine.Receive(t.Context(), compute.QueueName, 1, time.Minute)
	if err != nil || len(work) != 1 {
		t.Fatalf("%d messages, %v", len(work), err)
	}
	if err := w.Engine.Ack(t.Context(), work[0]); err != nil {
		t.Fatal(err)
	}
	w.Run(time.Hour)
	w.accepted(w.invoke(task))
	w.Run(time.Hour)
	if w.receipt(task.Link()) != nil {
		t.Fatal("the job is there although its message is gone")
	}
	w.accepted(w.invoke(task))
	w.Run(time.Minute)
	r, err := w.invoke(task)
	w.found(c.piece, task, r, err)
}

// TestKnownContent: what verified bytes gave is not computed again, unless a nonce asks for it.
func TestKnownContent(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	w.fetcher.pages[home] = page{body: c.bytes}
	first := newTask(storefront, c.cid, "")
	w.accepted(w.invoke(first, w.claim(c.cid, home)))
	w.Run(time.Minute)

	foreign := newTask(stranger, c.cid, "")
	w.accepted(w.invoke(foreign, w.sign(stranger, stranger.DID().String(),
		&assert.Location{Content: assert.Content{Link: c.cid}, Location: []string{"https://elsewhere.example"}}, capabilities.Terms{})))
	w.Run(time.Minute)
	r, err := w.invoke(foreign)
	w.found(c.piece, foreign, r, err)
	if len(w.fetcher.fetched) != 1 {
		t.Errorf("fetched %v", w.fetcher.fetched)
	}

	nonced := newTask(storefront, c.cid, "again")
	w.accepted(w.invoke(nonced, w.claim(c.cid, home)))
	w.Run(time.Minute)
	r, err = w.invoke(nonced)
	w.found(c.piece, nonced, r, err)
	if len(w.fetcher.fetched) != 2 {
		t.Errorf("fetched %v", w.fetcher.fetched)
	}
}

func TestStorefrontThatIsAway(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	w.front.Err = errors.New("connection refused")
	w.fetcher.pages[home] = page{body: c.bytes}
	task := newTask(storefront, c.cid, "")
	w.accepted(w.invoke(task, w.claim(c.cid, home)))
	w.Run(time.Hour)
	if w.receipt(task.Link()) == nil {
		t.Error("there is no receipt to be pulled")
	}
	w.front.Err = nil
	w.Run(time.Hour)
	if !w.front.Receipts[task.Link()].Defined() {
		t.Error("the receipt was not pushed")
	}
}

// TestPushed: a receipt is pushed to those who were told that it comes, not to those who wait for the answer; whenever they were told.
func TestPushed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pushed bool
		tell   func(w *world, call func(waits bool))
	}{
		{"waits", false, func(w *world, call func(bool)) { call(true); call(true) }},
		{"told at once", true, func(w *world, call func(bool)) { call(false) }},
		{"told after a while", true, func(w *world, call func(bool)) { call(true); call(false) }},
		{"told by another process", true, func(w *world, call func(bool)) { call(false); call(true) }},
		{"told while it is computed", true, func(w *world, call func(bool)) {
			call(true)
			p := w.fetcher.pages[home]
			p.before = func(context.Context) { call(false) }
			w.fetcher.pages[home] = p
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := newContent("hello")
			w.fetcher.pages[home] = page{body: c.bytes}
			task := newTask(storefront, c.cid, "")
			tt.tell(w, func(waits bool) { w.accepted(w.call(task, waits, w.claim(c.cid, home))) })
			w.Run(time.Minute)
			r, err := w.call(task, true)
			w.found(c.piece, task, r, err)
			if got := w.front.Receipts[task.Link()].Defined(); got != tt.pushed {
				t.Errorf("pushed: %v", got)
			}
			if len(w.fetcher.fetched) != 1 {
				t.Errorf("fetched %v", w.fetcher.fetched)
			}
			if rows := w.Rows(func(k store.Key) bool {
				return strings.HasPrefix(k.Partition, "job/") || strings.HasPrefix(k.Partition, "delivery/")
			}); len(rows) != 0 {
				t.Errorf("rows that are left: %v", rows)
			}
		})
	}
}

func TestUnknown(t *testing.T) {
	w := newWorld(t, nil)
	c := newContent("hello")
	if _, err := w.service.Status(t.Context(), c.cid); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("status: %v", err)
	}
	if _, err := w.service.Receipt(t.Context(), c.cid); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("receipt: %v", err)
	}
}

// story is content that is missing at first, and a storefront that asks every two minutes.
func (w *world) story() (capabilities.Task, content) {
	c := newContent("hello")
	task, claim := newTask(storefront, c.cid, ""), w.claim(c.cid, home)
	for minutes := 0; minutes < 12; minutes += 2 {
		if minutes == 2 {
			w.fetcher.pages[home] = page{body: c.bytes}
		}
		r, err := w.invoke(task, claim)
		if r == nil {
			u, f := (*capabilities.Unavailable)(nil), (*capabilities.Failure)(nil)
			if !errors.As(err, &u) && !errors.As(err, &f) {
				w.Fatal(err)
			}
		}
		w.Run(2 * time.Minute)
	}
	return task, c
}

func (w *world) checkStory(task capabilities.Task, c content) {
	w.Helper()
	r, err := w.invoke(task)
	w.found(c.piece, task, r, err)
	if pushed := w.front.Receipts; len(pushed) != 1 || !pushed[task.Link()].Equals(r.Link()) {
		w.Errorf("pushed %v, answered %s", pushed, r.Link())
	}
	for prefix, want := range map[string]int{"job/": 0, "task/": 1, "result/": 1, "delivery/": 0, "dead": 0} {
		if rows := w.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, prefix) }); len(rows) != want {
			w.Errorf("%d rows under %s, want %d", len(rows), prefix, want)
		}
	}
	if waiting := w.Engine.Waiting(); len(waiting) != 0 {
		w.Errorf("messages that are left: %v", waiting)
	}
}

func TestReplayChangesNothing(t *testing.T) {
	w := newWorld(t, nil)
	task, c := w.story()
	w.checkStory(task, c)
	before, fetched := w.Rows(all), len(w.fetcher.fetched)
	w.Replay()
	w.Run(time.Hour)
	w.checkStory(task, c)
	if diff := cmp.Diff(before, w.Rows(all)); diff != "" {
		t.Errorf("rows changed:\n%s", diff)
	}
	if len(w.fetcher.fetched) != fetched {
		t.Errorf("fetched %d times more", len(w.fetcher.fetched)-fetched)
	}

	// A message of an attempt that has failed starts nothing.
	late := newContent("late")
	task = newTask(storefront, late.cid, "")
	w.accepted(w.invoke(task, w.claim(late.cid, "https://nowhere.example")))
	w.Run(time.Minute)
	fetched = len(w.fetcher.fetched)
	w.Replay()
	if len(w.fetcher.fetched) != fetched {
		t.Errorf("fetched %d times more after a failure", len(w.fetcher.fetched)-fetched)
	}

	// Nor does it while the next attempt is under way.
	w.notFound(w.invoke(task))
	w.accepted(w.invoke(task))
	w.Replay()
	if len(w.fetcher.fetched) != fetched {
		t.Errorf("fetched %d times more by messages of an earlier attempt", len(w.fetcher.fetched)-fetched)
	}
}

func TestFaultsOfTheStore(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newWorld(t, choose)
		w.checkStory(w.story())
	})
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, nil)
	for name, spoil := range map[string]func(*compute.Deps){
		"no signer":      func(d *compute.Deps) { d.Signer = compute.Deps{}.Signer },
		"no store":       func(d *compute.Deps) { d.Store = nil },
		"no keys":        func(d *compute.Deps) { d.Keys = nil },
		"no fetcher":     func(d *compute.Deps) { d.Fetcher = nil },
		"no connections": func(d *compute.Deps) { d.Conn = nil },
		"no clock":       func(d *compute.Deps) { d.Now = nil },
		"no log":         func(d *compute.Deps) { d.Log = nil },
	} {
		deps := w.deps
		spoil(&deps)
		if _, err := compute.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
