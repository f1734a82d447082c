package uploads_test

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/capabilities/upload"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/uploads"
)

// story is one upload from the allocation to its place in the space.
func (w *world) story() *added {
	w.Helper()
	a := w.add(newBlob("some bytes"), "story")
	ok := a.allocated()
	if ok.Size != a.blob.Size || ok.Address == nil || ok.Address.URL == "" {
		w.Fatalf("allocated %+v", ok)
	}
	w.bucket.blobs[string(a.blob.Digest)] = a.blob.Size // PUT
	if _, err := a.conclude(a.provider()); err != nil {
		w.Fatal(err)
	}
	w.Run(48 * time.Hour)
	return a
}

func (w *world) checkStory(a *added) {
	w.Helper()
	r, claim := a.accepted()
	if claim == nil {
		w.Fatalf("blob/accept: %+v", r)
	}
	if !bytes.Equal(claim.Content.Multihash(), a.blob.Digest) || !bytes.Equal(claim.Space, agent.DID().Bytes()) ||
		!slices.Equal(claim.Location, []string{"https://custody.example/content/" + a.blob.CID().String()}) {
		w.Errorf("the claim is %+v", claim)
	}
	items := w.rows("space/")
	if len(items) != 1 {
		w.Errorf("%d blobs are in spaces, want 1", len(items))
	}
	rows := w.rows("")
	w.Replay()
	w.Run(time.Minute)
	again := w.add(a.blob, "story")
	if !again.receipt.Link().Equals(a.receipt.Link()) {
		w.Error("invoked again, it has another receipt")
	}
	if _, err := again.conclude(a.provider()); err != nil {
		w.Error(err)
	}
	w.Run(time.Minute)
	if diff := cmp.Diff(rows, w.rows("")); diff != "" {
		w.Errorf("repeating all of it changes rows: %s", diff)
	}
	if second, _ := a.accepted(); !second.Link().Equals(r.Link()) {
		w.Error("blob/accept has another receipt")
	}
}

func TestUpload(t *testing.T) {
	w := newWorld(t, nil)
	w.checkStory(w.story())
}

func TestFaultsOfTheStore(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newWorld(t, choose)
		w.checkStory(w.story())
	})
	t.Run("there already", func(t *testing.T) {
		storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
			w := newWorld(t, choose)
			b := newBlob("some bytes")
			w.bucket.blobs[string(b.Digest)] = b.Size
			a := w.add(b, "there")
			w.Run(time.Minute)
			w.checkThere(a)
		})
	})
	t.Run("never came", func(t *testing.T) {
		storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
			w := newWorld(t, choose)
			a := w.add(newBlob("some bytes"), "never")
			w.Run(26 * time.Hour)
			w.checkFailed(a)
		})
	})
	t.Run("removed", func(t *testing.T) {
		storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
			w := newWorld(t, choose)
			a := w.story()
			var ok space.BlobRemoveOK
			w.ok(invoke(agent, &space.BlobRemove{Digest: a.blob.Digest}, ""), &ok)
			if ok.Size != a.blob.Size {
				t.Errorf("%d bytes were removed, want %d", ok.Size, a.blob.Size)
			}
			w.Run(time.Minute)
			if got := w.listed("once"); len(got) != 0 {
				t.Errorf("the space still lists %v", got)
			}
			w.Replay()
			if got := w.listed("again"); len(got) != 0 {
				t.Errorf("messages of the past bring back %v", got)
			}
		})
	})
}

// checkThere checks the reply to an upload of what is there already: nothing is left for the client to do.
func (w *world) checkThere(a *added) {
	w.Helper()
	if ok := a.allocated(); ok.Size != 0 || ok.Address != nil {
		w.Errorf("allocated %+v", ok)
	}
	r, claim := a.accepted()
	if told := a.told[a.accept.Link()]; told == nil || claim == nil || !told.Link().Equals(r.Link()) {
		w.Errorf("told of blob/accept is %v, kept %v", told, r)
	}
	var ok blob.AcceptOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		w.Fatal(err)
	}
	if _, found := a.message.Block(ok.Site); !found {
		w.Error("the claim did not come")
	}
	if a.told[a.put.Link()] == nil {
		w.Error("http/put is not concluded")
	}
	if got := w.listed(""); len(got) != 1 {
		w.Errorf("the space lists %v", got)
	}
}

// TestThereAlready: neither another agent nor another space has to send what is there, and where it is may have changed since.
func TestThereAlready(t *testing.T) {
	w := newWorld(t, nil)
	first := w.story()
	w.bucket.at = "https://elsewhere.example/"
	second := w.add(first.blob, "second")
	w.Run(time.Minute)
	w.checkThere(second)
	_, was := first.accepted()
	_, is := second.accepted()
	if was.Location[0] == is.Location[0] {
		t.Errorf("claimed is %s both times", is.Location[0])
	}
	wrong := first.blob
	wrong.Size++
	w.refused("BlobSizeOutsideOfSupportedRange", invoke(agent, &space.BlobAdd{Blob: wrong}, ""))
}

func (w *world) checkFailed(a *added) {
	w.Helper()
	r, claim := a.accepted()
	if r == nil || claim != nil {
		w.Fatalf("blob/accept: %v, %v; want a failure", r, claim)
	}
	if f := capabilities.ReadFailure(r.Out.Error); f.Name != "AllocatedMemoryHadNotBeenWrittenTo" {
		w.Errorf("blob/accept: %v", f)
	}
	// It stands, but says nothing about another try.
	w.bucket.blobs[string(a.blob.Digest)] = a.blob.Size
	w.Replay()
	if again, _ := a.accepted(); !again.Link().Equals(r.Link()) {
		w.Error("blob/accept has another receipt")
	}
	other := w.add(a.blob, "once more")
	w.Run(time.Minute)
	if _, claim := other.accepted(); claim == nil {
		w.Error("the next try fails as well")
	}
}

// TestNeverCame: a blob that is said to be delivered and is not waits until its address has expired, and no longer.
func TestNeverCame(t *testing.T) {
	w := newWorld(t, nil)
	a := w.add(newBlob("some bytes"), "")
	if _, err := a.conclude(a.provider()); err != nil {
		t.Fatal(err)
	}
	w.Run(uploads.DefaultWindow)
	if r, _ := a.accepted(); r != nil {
		t.Fatalf("concluded while its address was good: %v", r)
	}
	w.Run(2 * time.Hour)
	w.checkFailed(a)
}

// TestCameWithoutWord: the client sent the bytes and was not heard of again.
func TestCameWithoutWord(t *testing.T) {
	w := newWorld(t, nil)
	a := w.add(newBlob("some bytes"), "")
	w.bucket.blobs[string(a.blob.Digest)] = a.blob.Size
	w.Run(26 * time.Hour)
	if _, claim := a.accepted(); claim == nil {
		t.Error("it is not accepted")
	}
}

// TestSizeWasWrong: the bytes have the digest, but not the length that was allocated.
func TestSizeWasWrong(t *testing.T) {
	w := newWorld(t, nil)
	b := newBlob("some bytes")
	b.Size += 5
	a := w.add(b, "")
	w.bucket.blobs[string(b.Digest)] = 10
	if _, err := a.conclude(a.provider()); err != nil {
		t.Fatal(err)
	}
	w.Run(26 * time.Hour)
	if r, claim := a.accepted(); r == nil || claim != nil {
		t.Errorf("blob/accept: %v, %v; want a failure", r, claim)
	}
}

// TestConcludeIsNotBelievedOfOthers: only the key of the blob concludes http/put, and even that only makes the service look.
func TestConcludeIsNotBelievedOfOthers(t *testing.T) {
	w := newWorld(t, nil)
	a := w.add(newBlob("some bytes"), "")
	w.bucket.blobs[string(a.blob.Digest)] = a.blob.Size
	for _, by := range []capabilities.Signer{stranger, agent, self} {
		if r, err := a.conclude(by); err == nil {
			t.Errorf("believed %s: %v", by.DID(), r)
		}
	}
	w.Run(time.Minute)
	if r, _ := a.accepted(); r != nil {
		t.Error("concluded by somebody else")
	}
	// A batch of another role is none of ours.
	if _, err := w.execute(invoke(stranger, &ucan.Conclude{Receipt: a.receipt.Link()}, ""), a.receipt.Block()); err != nil {
		t.Errorf("a receipt that nobody waits for: %v", err)
	}
}

// TestBucketAway: a fault of the bucket is nobody's failure, and passes.
func TestBucketAway(t *testing.T) {
	w := newWorld(t, nil)
	a := w.add(newBlob("some bytes"), "")
	w.bucket.blobs[string(a.blob.Digest)] = a.blob.Size
	w.bucket.err = errors.New("away")
	if _, err := w.execute(invoke(agent, &space.BlobAdd{Blob: newBlob("other")}, "")); err == nil || errors.As(err, new(*capabilities.Failure)) {
		t.Errorf("add: %v, want a fault", err)
	}
	if _, err := a.conclude(a.provider()); err != nil {
		t.Errorf("ucan/conclude: %v", err)
	}
	w.Run(time.Minute)
	if r, _ := a.accepted(); r != nil {
		t.Fatal("concluded")
	}
	w.bucket.err = nil
	w.Run(2 * time.Hour)
	if _, claim := a.accepted(); claim == nil {
		t.Error("it is not accepted when the bucket is back")
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	good, large, blake := newBlob("some bytes"), newBlob("some bytes"), newBlob("some bytes")
	large.Size = 1001
	blake.Digest = append(blob.Digest{0xa0, 0xe4, 0x02, 32}, make([]byte, 32)...)
	w.refused("BlobSizeOutsideOfSupportedRange", invoke(agent, &space.BlobAdd{Blob: large}, ""))
	w.refused(capabilities.UnsupportedContent, invoke(agent, &space.BlobAdd{Blob: blake}, ""))
	w.refused(capabilities.UnsupportedContent, invoke(agent, &space.IndexAdd{Index: blake.CID()}, ""))
	w.refused("IndexNotFound", invoke(agent, &space.IndexAdd{Index: good.CID()}, ""))
	w.refused("BlobNotFound", invoke(agent, &space.BlobGet{Digest: good.Digest}, ""))
	w.refused(capabilities.MalformedCapability, invoke(agent, &space.BlobList{Cursor: "not of this list"}, ""))
	many := upload.Add{Root: good.CID(), Shards: make(ucan.Links, 1001)}
	for i := range many.Shards {
		many.Shards[i] = good.CID()
	}
	w.refused(capabilities.MalformedCapability, invoke(agent, &many, ""))
	for _, c := range []capabilities.Caveats{&space.BlobAdd{Blob: good}, &space.BlobGet{Digest: good.Digest}, &space.BlobList{},
		&space.BlobRemove{Digest: good.Digest}, &space.IndexAdd{Index: good.CID()}, &upload.Add{Root: good.CID()}} {
		w.refused(capabilities.Unauthorized, invoke(stranger, c, ""))
		task, err := capabilities.Invoke(agent, self.DID(), "did:web:space.example", c, capabilities.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		w.refused("InvalidSpace", task)
	}
	w.refused(capabilities.MalformedCapability, invoke(agent, &malformed{space.BlobAddAbility}, ""))
}

// malformed is an invocation without the caveats of its ability.
type malformed struct{ can string }

func (m *malformed) Ability() string            { return m.can }
func (*malformed) Fields() []capabilities.Field { return nil }

func TestSpace(t *testing.T) {
	w := newWorld(t, nil)
	want := map[string]blob.Blob{}
	for _, text := range []string{"one", "two", "three", "four", "five"} {
		b := newBlob(text)
		w.bucket.blobs[string(b.Digest)] = b.Size
		w.add(b, "")
		want[string(b.Digest)] = b
	}
	w.Run(time.Minute)
	got := map[string]blob.Blob{}
	for _, b := range w.listed("") {
		got[string(b.Digest)] = b
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got): %s", diff)
	}

	one := newBlob("one")
	var item space.Item
	w.ok(invoke(agent, &space.BlobGet{Digest: one.Digest}, ""), &item)
	if diff := cmp.Diff(one, item.Blob); diff != "" || !item.Cause.Equals(invoke(agent, &space.BlobAdd{Blob: one}, "").Link()) {
		t.Errorf("get: %+v", item)
	}
	if at, err := time.Parse(time.RFC3339, item.InsertedAt); err != nil || at.After(w.Clock.Now()) {
		t.Errorf("inserted at %q", item.InsertedAt)
	}

	var removed space.BlobRemoveOK
	w.Clock.Advance(time.Minute)
	w.ok(invoke(agent, &space.BlobRemove{Digest: one.Digest}, ""), &removed)
	w.Run(time.Minute)
	w.refused("BlobNotFound", invoke(agent, &space.BlobGet{Digest: one.Digest}, ""))
	// Removed twice, it is gone once; and the same invocation has the same receipt.
	w.ok(invoke(agent, &space.BlobRemove{Digest: one.Digest}, "again"), &removed)
	if removed.Size != 0 {
		t.Errorf("%d bytes were removed of nothing", removed.Size)
	}
	w.ok(invoke(agent, &space.BlobRemove{Digest: one.Digest}, ""), &removed)
	if removed.Size != one.Size {
		t.Errorf("repeated, the removal is of %d bytes", removed.Size)
	}
	// Added once more it is there, whatever comes of the past.
	w.add(one, "once more")
	w.Run(time.Minute)
	w.Replay()
	if got := w.listed("then"); len(got) != len(want) {
		t.Errorf("%d blobs, want %d", len(got), len(want))
	}
}

func TestIndexAndUpload(t *testing.T) {
	w := newWorld(t, nil)
	b := newBlob("an index")
	w.bucket.blobs[string(b.Digest)] = b.Size
	w.ok(invoke(agent, &space.IndexAdd{Index: cid.NewCidV1(0x0202, b.CID().Hash())}, ""), &space.IndexAddOK{})
	add := upload.Add{Root: b.CID(), Shards: ucan.Links{cid.NewCidV1(0x0202, b.CID().Hash())}}
	var ok upload.AddOK
	w.ok(invoke(agent, &add, ""), &ok)
	if diff := cmp.Diff(capabilities.Encode(&add), capabilities.Encode(&ok)); diff != "" {
		t.Errorf("upload/add answers %+v", ok)
	}
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, nil)
	cases := map[string]func(*uploads.Deps){
		"no signer": func(d *uploads.Deps) { d.Signer = capabilities.Signer{} },
		"no store":  func(d *uploads.Deps) { d.Store = nil },
		"no keys":   func(d *uploads.Deps) { d.Keys = nil },
		"no bucket": func(d *uploads.Deps) { d.Bucket = nil },
		"no clock":  func(d *uploads.Deps) { d.Now = nil },
		"no log":    func(d *uploads.Deps) { d.Log = nil },
		"no limit":  func(d *uploads.Deps) { d.Policy.MaxSize = 0 },
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		deps := w.deps
		cases[name](&deps)
		if _, err := uploads.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
