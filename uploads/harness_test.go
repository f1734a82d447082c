package uploads_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/blob"
	httpcap "github.com/storacha/w3filecoin/capabilities/http"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/tasks"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

var self, agent, stranger = chaintest.Key("storefront"), chaintest.Key("agent"), chaintest.Key("stranger")

// fakeBucket holds blobs by digest.
type fakeBucket struct {
	blobs map[string]uint64
	err   error
	// at is where blobs are; it may move.
	at string
}

func (b *fakeBucket) Stat(_ context.Context, d blob.Digest) (uploads.Stored, error) {
	if b.err != nil {
		return uploads.Stored{}, b.err
	}
	size, ok := b.blobs[string(d)]
	if !ok {
		return uploads.Stored{}, uploads.ErrNoBlob
	}
	return uploads.Stored{Size: size, URL: b.at + blob.Blob{Digest: d}.CID().String()}, nil
}

func (b *fakeBucket) Allocate(_ context.Context, bl blob.Blob, expires time.Time) (blob.Address, error) {
	return blob.Address{URL: "https://put.example/" + bl.CID().String(), Headers: blob.Headers{"a": "b"}, Expires: uint64(expires.Unix())}, b.err
}

func newBlob(text string) blob.Blob {
	mh, err := multihash.Sum([]byte(text), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return blob.Blob{Digest: blob.Digest(mh), Size: uint64(len(text))}
}

// world is the service with what is around it, stepped by hand.
type world struct {
	storetest.Stage
	bucket  *fakeBucket
	deps    uploads.Deps
	service *uploads.Service
	ledger  *tasks.Ledger
}

func newWorld(t *testing.T, choose storetest.Chooser) *world {
	t.Helper()
	clock := storetest.NewClock()
	w := &world{Stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), bucket: &fakeBucket{blobs: map[string]uint64{}, at: "https://custody.example/content/"}}
	w.Handlers = func() map[string]store.Handler { return w.service.Handlers() }
	w.deps = uploads.Deps{
		Signer: self, Store: w.Driver, Keys: chaintest.Keys{}, Bucket: w.bucket, Now: w.Clock.Now, Log: slog.New(slog.DiscardHandler),
		Policy: uploads.Policy{MaxSize: 1000, MayUpload: func(space string) bool { return space != stranger.DID().String() }},
	}
	w.serve()
	w.ledger = tasks.New(w.Driver, chaintest.Keys{}, w.Clock.Now, w.deps.Log)
	return w
}

// serve makes the service of what it is to be made of now.
func (w *world) serve() {
	w.Helper()
	s, err := uploads.New(w.deps)
	if err != nil {
		w.Fatal(err)
	}
	w.service = s
}

func invoke(by capabilities.Signer, c capabilities.Caveats, nonce string) capabilities.Task {
	task, err := capabilities.Invoke(by, self.DID(), by.DID().String(), c, capabilities.Terms{Nonce: nonce})
	if err != nil {
		panic(err)
	}
	return task
}

// execute executes a task with the blocks that come with it; again while the store is at fault, as clients do.
func (w *world) execute(task capabilities.Task, attach ...capabilities.Block) (r *capabilities.Receipt, err error) {
	w.Helper()
	in := chaintest.Arrives(w, task, attach...)
	method := w.service.Methods()[task.Can()]
	if task.Can() == ucan.ConcludeAbility {
		method = w.service.Concluding(w.ledger.Conclude(self))
	}
	err = storetest.Again(func() error {
		r, err = method(w.Context(), in)
		return err
	})
	return r, err
}

// ok executes a task that has to succeed.
func (w *world) ok(task capabilities.Task, ok capabilities.Struct, attach ...capabilities.Block) *capabilities.Receipt {
	w.Helper()
	r, err := w.execute(task, attach...)
	if err != nil {
		w.Fatalf("%s: %v", task.Can(), err)
	}
	if err := capabilities.VerifyReceipt(w.Context(), r, task.UCAN, chaintest.Keys{}); err != nil {
		w.Fatal(err)
	}
	if err := capabilities.ReadResult(r.Out, ok); err != nil {
		w.Fatalf("%s: %v", task.Can(), err)
	}
	return r
}

// refused executes a task that has to fail by a name, and leave nothing behind.
func (w *world) refused(name string, task capabilities.Task) {
	w.Helper()
	before := len(w.rows(""))
	_, err := w.execute(task)
	if f := (*capabilities.Failure)(nil); !errors.As(err, &f) || f.Name != name {
		w.Errorf("%s: %v, want %s", task.Can(), err, name)
	}
	if after := len(w.rows("")); after != before {
		w.Errorf("%s: the refusal left %d rows", task.Can(), after-before)
	}
}

// added is what a client has of one space/blob/add.
type added struct {
	w                     *world
	task                  capabilities.Task
	blob                  blob.Blob
	message               *capabilities.Message
	receipt               *capabilities.Receipt
	allocate, put, accept capabilities.Task
	told                  map[cid.Cid]*capabilities.Receipt // by ucan/conclude
}

// add invokes space/blob/add and reads the reply as published clients do: all they need is in it.
func (w *world) add(b blob.Blob, nonce string) *added {
	w.Helper()
	task := invoke(agent, &space.BlobAdd{Blob: b}, nonce)
	var ok space.BlobAddOK
	r := w.ok(task, &ok)
	rec := w.task(task.Link())
	a := &added{w: w, task: task, blob: b, receipt: r, told: map[cid.Cid]*capabilities.Receipt{}}
	a.message = decoded(w, rec)
	for _, link := range r.Fork {
		fork, found := capabilities.FindTask(a.message, link)
		if !found {
			w.Fatalf("effect %s did not come", link)
		}
		switch fork.Can() {
		case blob.AllocateAbility:
			a.allocate = fork
		case httpcap.PutAbility:
			a.put = fork
		case blob.AcceptAbility:
			a.accept = fork
		case ucan.ConcludeAbility:
			var nb ucan.Conclude
			if err := fork.Caveats(&nb); err != nil {
				w.Fatal(err)
			}
			b, found := a.message.Block(nb.Receipt)
			if !found {
				w.Fatalf("receipt %s did not come", nb.Receipt)
			}
			told, err := wire.DecodeReceipt(b)
			if err != nil {
				w.Fatal(err)
			}
			a.told[told.Ran] = told
		default:
			w.Errorf("effect %s", fork.Can())
		}
	}
	if ok.Site != (capabilities.Await{Selector: ".out.ok.site", Task: a.accept.Link()}) {
		w.Errorf("the site is awaited from %+v", ok.Site)
	}
	for _, task := range []capabilities.Task{a.allocate, a.put, a.accept} {
		if told := a.told[task.Link()]; told != nil {
			if err := capabilities.VerifyReceipt(w.Context(), told, task.UCAN, chaintest.Keys{}); err != nil {
				w.Error(err)
			}
		}
	}
	return a
}

func (a *added) allocated() blob.AllocateOK {
	a.w.Helper()
	var ok blob.AllocateOK
	if err := capabilities.ReadResult(a.told[a.allocate.Link()].Out, &ok); err != nil {
		a.w.Fatal(err)
	}
	return ok
}

// conclude sends the receipt of http/put, with a result of its signer's choice.
func (a *added) conclude(by capabilities.Signer) (*capabilities.Receipt, error) {
	a.w.Helper()
	r, err := capabilities.Issue(by, a.put.Link(), &httpcap.PutOK{}, capabilities.Effects{})
	if err != nil {
		a.w.Fatal(err)
	}
	return a.w.execute(invoke(agent, &ucan.Conclude{Receipt: r.Link()}, ""), r.Block())
}

func (a *added) provider() capabilities.Signer {
	p, err := a.blob.Digest.Provider()
	if err != nil {
		a.w.Fatal(err)
	}
	return p
}

// accepted returns the receipt of blob/accept with the claim, nil if it is not concluded.
func (a *added) accepted() (*capabilities.Receipt, *assert.Location) {
	a.w.Helper()
	rec, err := tasks.New(a.w.Engine, chaintest.Keys{}, a.w.Clock.Now, a.w.deps.Log).Get(a.w.Context(), a.accept.Link())
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		a.w.Fatal(err)
	}
	m := decoded(a.w, rec)
	r := m.Receipt(a.accept.Link())
	if err := capabilities.VerifyReceipt(a.w.Context(), r, a.accept.UCAN, chaintest.Keys{}); err != nil {
		a.w.Fatal(err)
	}
	var ok blob.AcceptOK
	if capabilities.ReadResult(r.Out, &ok) != nil {
		return r, nil
	}
	claim, found := capabilities.FindTask(m, ok.Site)
	if !found || len(r.Fork) != 1 || !r.Fork[0].Equals(ok.Site) {
		a.w.Fatalf("the claim %s is not with its receipt", ok.Site)
	}
	v, err := chaintest.Keys{}.Verifier(a.w.Context(), self.DID())
	if err != nil {
		a.w.Fatal(err)
	}
	if err := claim.Verify(v); err != nil {
		a.w.Error(err)
	}
	var nb assert.Location
	if err := claim.Caveats(&nb); err != nil {
		a.w.Fatal(err)
	}
	return r, &nb
}

func (w *world) task(link cid.Cid) tasks.Record {
	w.Helper()
	rec, err := tasks.New(w.Engine, chaintest.Keys{}, w.Clock.Now, w.deps.Log).Get(w.Context(), link)
	if err != nil {
		w.Fatal(err)
	}
	return rec
}

func decoded(w *world, rec tasks.Record) *capabilities.Message {
	w.Helper()
	m, err := rec.Decode()
	if err != nil {
		w.Fatal(err)
	}
	return m
}

// rows returns all rows whose partition begins with prefix, by key.
func (w *world) rows(prefix string) map[string]string {
	w.Helper()
	return w.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, prefix) })
}

// listed returns the blobs of the agent's own space, as it is told.
func (w *world) listed(nonce string) []blob.Blob {
	w.Helper()
	var blobs []blob.Blob
	for cursor, page := "", 0; ; page++ {
		var ok space.BlobListOK
		w.ok(invoke(agent, &space.BlobList{Cursor: cursor, Size: 2}, nonce+string(rune('0'+page))), &ok)
		if len(ok.Results) > 2 || ok.Size != uint64(len(ok.Results)) {
			w.Fatalf("a page of %d, said to have %d", len(ok.Results), ok.Size)
		}
		for _, item := range ok.Results {
			blobs = append(blobs, item.Blob)
		}
		if cursor = ok.Cursor; cursor == "" {
			return blobs
		}
	}
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) { enginetest.Again(t, enginetest.Double, ".", "") }
