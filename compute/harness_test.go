package compute_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

var (
	self       = chaintest.Key("compute")
	storefront = chaintest.Key("storefront")
	stranger   = chaintest.Key("stranger")
)

// content is some bytes with their CID and their piece.
type content struct {
	bytes []byte
	cid   cid.Cid
	piece piece.Link
}

func newContent(text string) content {
	b := bytes.Repeat([]byte(text+" "), 200)
	link, err := piece.Sum(b)
	if err != nil {
		panic(err)
	}
	return content{b, store.RawBlob(b).CID, link}
}

// page is what is at an address.
type page struct {
	body []byte
	err  error // of the fetch
	// length is stated in place of the body's, if it is not 0; -1: none is stated.
	length int64
	// readErr ends the reading after the body.
	readErr error
	// before runs before the fetch, with its context.
	before func(context.Context)
}

type fakeFetcher struct {
	pages   map[string]page
	fetched []string
	open    int
}

func (f *fakeFetcher) Fetch(ctx context.Context, url string) (io.ReadCloser, int64, error) {
	f.fetched = append(f.fetched, url)
	p, ok := f.pages[url]
	if !ok {
		return nil, 0, compute.ErrNoContent
	}
	if p.before != nil {
		p.before(ctx)
	}
	if p.err != nil {
		return nil, 0, p.err
	}
	length := int64(len(p.body))
	if p.length != 0 {
		length = p.length
	}
	var r io.Reader = bytes.NewReader(p.body)
	if p.readErr != nil {
		r = io.MultiReader(r, failing{p.readErr})
	}
	f.open++
	return &body{r, f}, length, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type body struct {
	io.Reader
	f *fakeFetcher
}

func (b *body) Close() error {
	b.f.open--
	return nil
}

// world is a provider with everything around it, stepped by hand.
type world struct {
	storetest.Stage
	fetcher *fakeFetcher
	front   *chaintest.Inbox
	deps    compute.Deps
	service *compute.Service
}

func newWorld(t *testing.T, choose storetest.Chooser) *world {
	t.Helper()
	clock := storetest.NewClock()
	w := &world{Stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), fetcher: &fakeFetcher{pages: map[string]page{}}}
	w.Handlers = func() map[string]store.Handler { return w.service.Handlers() }
	w.front = chaintest.NewInbox(t, storefront)
	w.deps = compute.Deps{
		Signer: self, Store: w.Driver, Keys: chaintest.Keys{}, Fetcher: w.fetcher,
		Conn:   func(did string) (capabilities.Conn, bool) { return w.front, did == storefront.DID().String() },
		Timing: compute.Timing{Retry: 10 * time.Second, Stuck: 2 * time.Hour}, Now: w.Clock.Now, Log: slog.New(slog.DiscardHandler),
	}
	s, err := compute.New(w.deps)
	if err != nil {
		t.Fatal(err)
	}
	w.service = s
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.fetcher.open != 0 {
			t.Errorf("%d bodies were left open", w.fetcher.open)
		}
	})
	return w
}

func newTask(by capabilities.Signer, c cid.Cid, nonce string) capabilities.Task {
	task, err := capabilities.Invoke(by, self.DID(), self.DID().String(), &computecap.PieceCID{Content: c}, capabilities.Terms{Nonce: nonce})
	if err != nil {
		panic(err)
	}
	return task
}

// claim is a location claim by the storefront, valid for an hour.
func (w *world) claim(c cid.Cid, urls ...string) capabilities.Block {
	return w.sign(storefront, storefront.DID().String(), &assert.Location{Content: assert.Content{Link: c}, Location: urls},
		capabilities.Terms{Expiration: w.Clock.Now().Add(time.Hour)})
}

func (w *world) sign(by capabilities.Signer, with string, l *assert.Location, terms capabilities.Terms) capabilities.Block {
	w.Helper()
	task, err := capabilities.Invoke(by, self.DID(), with, l, terms)
	if err != nil {
		w.Fatal(err)
	}
	return task.Block()
}

// invoke executes a task with the blocks that come with it, once.
func (w *world) invoke(task capabilities.Task, attach ...capabilities.Block) (r *capabilities.Receipt, err error) {
	w.Helper()
	return w.call(task, false, attach...)
}

// call is invoke by somebody who may wait for the answer.
func (w *world) call(task capabilities.Task, waits bool, attach ...capabilities.Block) (r *capabilities.Receipt, err error) {
	w.Helper()
	in := chaintest.Arrives(w, task, attach...)
	in.Waits = waits
	err = storetest.Again(func() error {
		r, err = w.service.Methods()[task.Can()](w.Context(), in)
		return err
	})
	return r, err
}

// accepted checks that the answer is "under way".
func (w *world) accepted(r *capabilities.Receipt, err error) {
	w.Helper()
	if u := (*capabilities.Unavailable)(nil); r != nil || !errors.As(err, &u) || !u.Accepted {
		w.Fatalf("got %v, %v, want to hear that the work is under way", r, err)
	}
}

// notFound checks that the answer is ContentNotFoundError, and returns its text.
func (w *world) notFound(r *capabilities.Receipt, err error) string {
	w.Helper()
	f := (*capabilities.Failure)(nil)
	if r != nil || !errors.As(err, &f) || f.Name != capabilities.ContentNotFound {
		w.Fatalf("got %v, %v, want %s", r, err, capabilities.ContentNotFound)
	}
	return f.Message
}

// found checks that the answer is a piece.
func (w *world) found(want piece.Link, task capabilities.Task, r *capabilities.Receipt, err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
	if err := capabilities.VerifyReceipt(w.Context(), r, task.UCAN, chaintest.Keys{}); err != nil {
		w.Fatal(err)
	}
	var ok computecap.PieceCIDOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		w.Fatal(err)
	}
	if ok.Piece != want {
		w.Fatalf("the piece is %s, want %s", ok.Piece, want)
	}
}

// receipt returns the kept receipt of a task, nil if there is none.
func (w *world) receipt(task cid.Cid) *capabilities.Receipt {
	w.Helper()
	m, err := w.service.Receipt(w.Context(), task)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.Fatal(err)
	}
	return m.Receipt(task)
}

func all(store.Key) bool { return true }

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) { enginetest.Again(t, enginetest.Double, ".", "") }
