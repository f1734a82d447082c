package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

var start = storetest.NewClock().Now()

type pet struct {
	Name  string    `cbor:"1,keyasint"`
	Age   int       `cbor:"2,keyasint,omitempty"`
	Chip  cid.Cid   `cbor:"3,keyasint,omitzero"`
	Born  time.Time `cbor:"4,keyasint,omitzero"`
	Notes []string  `cbor:"5,keyasint,omitempty"`
}

// links compares CIDs.
var links = cmp.Comparer(cid.Cid.Equals)

var petKey = store.Key{Partition: "pet", Sort: "rex"}

// rowsFunc replaces the commit of an engine.
type rowsFunc struct {
	store.Driver
	commit func(context.Context, store.Change) (uint64, error)
}

func (r rowsFunc) Commit(ctx context.Context, c store.Change) (uint64, error) {
	return r.commit(ctx, c)
}

// readsFunc replaces the reading of rows of an engine.
type readsFunc struct {
	store.Driver
	get func(context.Context, store.Key) (store.Row, error)
}

func (r readsFunc) Get(ctx context.Context, key store.Key) (store.Row, error) { return r.get(ctx, key) }

func TestTableRoundTrip(t *testing.T) {
	ctx := t.Context()
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	pets := store.NewTable[pet](d)

	rec, err := pets.Get(ctx, petKey)
	if !errors.Is(err, store.ErrNotFound) || rec.Exists() || rec.Key != petKey {
		t.Fatalf("reading a row that is not there: %+v, %v", rec, err)
	}
	rec.Value = pet{Name: "Rex", Age: 3, Chip: store.RawBlob([]byte("chip")).CID, Born: start.Add(12345), Notes: []string{"bites"}}
	rec.Listing = store.Listing{Index: "pets", Sort: "3"}
	if err := pets.Commit(ctx, &rec, store.Effects{}); err != nil {
		t.Fatal(err)
	}
	if rec.Version != 1 || !rec.Exists() {
		t.Errorf("created record has version %d", rec.Version)
	}
	got, err := pets.Get(ctx, petKey)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rec, got, links); diff != "" {
		t.Errorf("record read back (-committed +read):\n%s", diff)
	}

	stale := rec
	rec.Value.Age++
	if err := pets.Commit(ctx, &rec, store.Effects{}); err != nil || rec.Version != 2 {
		t.Fatalf("second commit: version %d, %v", rec.Version, err)
	}
	if err := pets.Commit(ctx, &stale, store.Effects{}); !errors.Is(err, store.ErrConflict) || stale.Version != 1 {
		t.Errorf("stale commit: version %d, %v", stale.Version, err)
	}
	if err := pets.Commit(ctx, &rec, store.Effects{Delete: true}); err != nil || rec.Exists() {
		t.Errorf("deletion: version %d, %v", rec.Version, err)
	}
	if _, err := pets.Get(ctx, petKey); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
}

// Encodings are what rows on disk hold: they must not change.
func TestEncodingIsStable(t *testing.T) {
	empty := store.RawBlob(nil).CID // its digest is the well-known one of the empty string
	for _, tc := range []struct {
		name string
		v    pet
		want string
	}{
		{"zero fields are left out", pet{Name: "R"}, "a1016152"},
		{"link, time and list", pet{Name: "R", Chip: empty, Born: start, Notes: []string{""}},
			"a4" + "016152" + "03" + "5824" + "01551220" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" +
				"04" + "74" + "323032362d31312d30315431323a30303a30305a" + "05" + "8160"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := store.Encode(tc.v)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%x", got) != tc.want {
				t.Errorf("got  %x\nwant %s", got, tc.want)
			}
		})
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for name, b := range map[string]string{
		"empty":              "",
		"trailing byte":      "\xa1\x01\x61R\x00",
		"unknown field":      "\xa2\x01\x61R\x18\x63\x01",
		"repeated field":     "\xa2\x01\x61R\x01\x61S",
		"indefinite length":  "\xbf\x01\x61R\xff",
		"wrong type":         "\xa1\x01\x05",
		"not UTF-8":          "\xa1\x01\x61\xff",
		"broken link":        "\xa1\x03\x42\x01\x55",
		"empty link":         "\xa1\x03\x40",
		"tag":                "\xa1\x01\xc1\x61R",
		"huge declared list": "\xa1\x05\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			var v pet
			if err := store.Decode([]byte(b), &v); err == nil {
				t.Errorf("decoded %x as %+v", b, v)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range []pet{{}, {Name: "Rex", Age: -1, Born: start, Notes: []string{"a", "b"}}, {Chip: store.RawBlob(nil).CID}} {
		b, err := store.Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v pet
		if store.Decode(b, &v) != nil {
			return
		}
		again, err := store.Encode(v)
		if err != nil {
			t.Fatalf("decoded %+v does not encode: %v", v, err)
		}
		var back pet
		if err := store.Decode(again, &back); err != nil {
			t.Skip() // values that Commit refuses: an explicit undefined link, a time out of range
		}
		third, err := store.Encode(back)
		if err != nil || string(third) != string(again) {
			t.Fatalf("encoding is not stable: %x, then %x (%v)", again, third, err)
		}
	})
}

func TestCommitRefusesWhatCannotBeReadBack(t *testing.T) {
	type bad struct {
		Link cid.Cid // lacks omitzero
	}
	ctx := t.Context()
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	table := store.NewTable[bad](d)
	rec := store.Record[bad]{Key: petKey}
	if err := table.Commit(ctx, &rec, store.Effects{}); err == nil {
		t.Error("committed a row that no reader can decode")
	}
	var fx store.Effects
	store.NewQueue[bad]("q").Send(&fx, bad{})
	if err := store.NewTable[pet](d).Commit(ctx, &store.Record[pet]{Key: petKey}, fx); err == nil {
		t.Error("committed a message that no handler can decode")
	}
	if page, err := d.Walk(ctx, "", 0); err != nil || len(page.Rows) != 0 {
		t.Errorf("rows written: %v, %v", page.Rows, err)
	}
}

func TestUpdate(t *testing.T) {
	ctx := t.Context()
	older := func(rec *store.Record[pet], _ *store.Effects) error {
		rec.Value.Age++
		return nil
	}

	t.Run("creates, then changes", func(t *testing.T) {
		pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
		for want := 1; want <= 3; want++ {
			rec, err := pets.Update(ctx, petKey, func(rec *store.Record[pet], fx *store.Effects) error {
				if rec.Exists() != (want > 1) {
					t.Errorf("round %d: exists is %v", want, rec.Exists())
				}
				return older(rec, fx)
			})
			if err != nil || rec.Value.Age != want || rec.Version != uint64(want) {
				t.Errorf("round %d: %+v, %v", want, rec, err)
			}
		}
	})

	t.Run("loses no update to concurrent ones", func(t *testing.T) {
		pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
		const n = 100
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if _, err := pets.Update(ctx, petKey, older); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if rec, err := pets.Get(ctx, petKey); err != nil || rec.Value.Age != n {
			t.Errorf("age %d after %d updates, %v", rec.Value.Age, n, err)
		}
	})

	t.Run("unchanged returns what was read", func(t *testing.T) {
		pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
		if _, err := pets.Update(ctx, petKey, older); err != nil {
			t.Fatal(err)
		}
		rec, err := pets.Update(ctx, petKey, func(rec *store.Record[pet], fx *store.Effects) error {
			rec.Value.Age = 99
			return store.ErrUnchanged
		})
		if err != nil || rec.Value.Age != 1 || rec.Version != 1 {
			t.Errorf("got %+v, %v", rec, err)
		}
	})

	t.Run("an error of decide ends it", func(t *testing.T) {
		pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
		boom := errors.New("boom")
		_, err := pets.Update(ctx, petKey, func(*store.Record[pet], *store.Effects) error { return boom })
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
		if _, err := pets.Get(ctx, petKey); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("row after refused update: %v", err)
		}
	})

	t.Run("its own effect reported as a conflict is found by decide", func(t *testing.T) {
		d := memory.New(memory.Options{Now: storetest.NewClock().Now})
		calls := 0
		pets := store.NewTable[pet](rowsFunc{d, func(ctx context.Context, c store.Change) (uint64, error) {
			calls++
			if _, err := d.Commit(ctx, c); err != nil {
				return 0, err
			}
			return 0, store.ErrConflict
		}})
		rec, err := pets.Update(ctx, petKey, func(rec *store.Record[pet], _ *store.Effects) error {
			if rec.Value.Name == "Rex" {
				return store.ErrUnchanged
			}
			rec.Value.Name = "Rex"
			return nil
		})
		if err != nil || rec.Value.Name != "Rex" || calls != 1 {
			t.Errorf("got %+v, %v after %d commits", rec, err, calls)
		}
	})

	t.Run("gives up after a bound", func(t *testing.T) {
		d := memory.New(memory.Options{Now: storetest.NewClock().Now})
		pets := store.NewTable[pet](rowsFunc{d, func(context.Context, store.Change) (uint64, error) { return 0, store.ErrConflict }})
		if _, err := pets.Update(ctx, petKey, older); !errors.Is(err, store.ErrConflict) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("an unknown outcome is not repeated", func(t *testing.T) {
		d := memory.New(memory.Options{Now: storetest.NewClock().Now})
		lost, calls := errors.New("connection lost"), 0
		pets := store.NewTable[pet](rowsFunc{d, func(context.Context, store.Change) (uint64, error) { calls++; return 0, lost }})
		if _, err := pets.Update(ctx, petKey, older); !errors.Is(err, lost) || calls != 1 {
			t.Errorf("got %v after %d commits", err, calls)
		}
	})
}

func TestUpdateFrom(t *testing.T) {
	ctx := t.Context()
	reads := 0
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	pets := store.NewTable[pet](readsFunc{d, func(ctx context.Context, key store.Key) (store.Row, error) { reads++; return d.Get(ctx, key) }})
	older := func(rec *store.Record[pet], _ *store.Effects) error {
		rec.Value.Age++
		return nil
	}
	rec, err := pets.UpdateFrom(ctx, store.Record[pet]{Key: petKey}, older)
	if err != nil || rec.Value.Age != 1 || rec.Version != 1 || reads != 0 {
		t.Fatalf("of a row that was not there: %+v, %v, %d reads", rec, err, reads)
	}
	stale := rec
	if rec, err = pets.UpdateFrom(ctx, rec, older); err != nil || rec.Value.Age != 2 || reads != 0 {
		t.Fatalf("of a row that was read: %+v, %v, %d reads", rec, err, reads)
	}
	if rec, err = pets.UpdateFrom(ctx, stale, older); err != nil || rec.Value.Age != 3 || reads != 1 {
		t.Fatalf("of a row that has changed since: %+v, %v, %d reads", rec, err, reads)
	}
	rec, err = pets.UpdateFrom(ctx, rec, func(rec *store.Record[pet], _ *store.Effects) error {
		rec.Value.Age = 99
		return store.ErrUnchanged
	})
	if err != nil || rec.Value.Age != 3 || rec.Version != 3 || reads != 1 {
		t.Fatalf("unchanged: %+v, %v, %d reads", rec, err, reads)
	}
}

func TestSeen(t *testing.T) {
	var s store.Seen
	key := func(n int) store.Key { return store.Key{Partition: fmt.Sprint("p", n)} }
	if s.Has(key(1)) {
		t.Error("the zero Seen has seen something")
	}
	for n := range 10_000 {
		s.Add(key(n))
		if !s.Has(key(n)) || s.Len() > store.MaxSeen {
			t.Fatalf("after %d keys: has the last: %v, holds %d", n+1, s.Has(key(n)), s.Len())
		}
	}
}

func TestCreate(t *testing.T) {
	ctx := t.Context()
	pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
	first := store.Record[pet]{Key: petKey, Value: pet{Name: "Rex"}}
	if created, err := pets.Create(ctx, &first, store.Effects{}); !created || err != nil {
		t.Fatalf("first: %v, %v", created, err)
	}
	second := store.Record[pet]{Key: petKey, Value: pet{Name: "Fido"}}
	created, err := pets.Create(ctx, &second, store.Effects{})
	if created || err != nil {
		t.Fatalf("second: %v, %v", created, err)
	}
	if diff := cmp.Diff(first, second, links); diff != "" {
		t.Errorf("the second creation sees (-first +second):\n%s", diff)
	}
}

func TestAllPages(t *testing.T) {
	ctx := t.Context()
	pets := store.NewTable[pet](memory.New(memory.Options{Now: storetest.NewClock().Now}))
	const n = store.MaxPage*2 + 5
	for i := range n {
		rec := store.Record[pet]{Key: store.Key{Partition: "pet", Sort: fmt.Sprintf("a%05d", i)}, Value: pet{Age: i}}
		if err := pets.Commit(ctx, &rec, store.Effects{}); err != nil {
			t.Fatal(err)
		}
	}
	other := store.Record[pet]{Key: store.Key{Partition: "pet", Sort: "b"}}
	if err := pets.Commit(ctx, &other, store.Effects{}); err != nil {
		t.Fatal(err)
	}
	i := 0
	for rec, err := range pets.All(ctx, "pet", "a") {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Value.Age != i {
			t.Fatalf("record %d has age %d", i, rec.Value.Age)
		}
		i++
	}
	if i != n {
		t.Errorf("%d records, want %d", i, n)
	}
}

func TestChangeLimits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	blob := store.RawBlob([]byte("b"))
	for _, tc := range []struct {
		name     string
		change   store.Change
		ok       bool
		tooLarge bool
	}{
		{name: "smallest", ok: true},
		{name: "largest value", change: store.Change{Row: store.Row{Value: make([]byte, store.MaxValue)}}, ok: true},
		{name: "value", change: store.Change{Row: store.Row{Value: make([]byte, store.MaxValue+1)}}, tooLarge: true},
		{name: "key", change: store.Change{Row: store.Row{Key: store.Key{Partition: "p", Sort: long(store.MaxKey)}}}, tooLarge: true},
		{name: "key not UTF-8", change: store.Change{Row: store.Row{Key: store.Key{Partition: "\xff"}}}},
		{name: "listing", change: store.Change{Row: store.Row{Listing: store.Listing{Index: "i", Sort: long(store.MaxListing)}}}, tooLarge: true},
		{name: "listing without index", change: store.Change{Row: store.Row{Listing: store.Listing{Sort: "s"}}}},
		{name: "most messages", change: store.Change{Messages: repeat(store.Message{Queue: "q"}, store.MaxMessages)}, ok: true},
		{name: "messages", change: store.Change{Messages: repeat(store.Message{Queue: "q"}, store.MaxMessages+1)}, tooLarge: true},
		{name: "message body", change: store.Change{Messages: []store.Message{{Queue: "q", Body: make([]byte, store.MaxMessageBody+1)}}}, tooLarge: true},
		{name: "message without queue", change: store.Change{Messages: []store.Message{{}}}},
		{name: "queue name", change: store.Change{Messages: []store.Message{{Queue: long(store.MaxQueue + 1)}}}, tooLarge: true},
		{name: "due too late to count", change: store.Change{Messages: []store.Message{{Queue: "q", Due: start.AddDate(1000, 0, 0)}}}},
		{name: "largest blob", change: store.Change{Blobs: []store.Blob{{CID: blob.CID, Bytes: make([]byte, store.MaxInlineBlob)}}}, ok: true},
		{name: "blob", change: store.Change{Blobs: []store.Blob{{CID: blob.CID, Bytes: make([]byte, store.MaxInlineBlob+1)}}}, tooLarge: true},
		{name: "blobs", change: store.Change{Blobs: repeat(blob, store.MaxBlobs+1)}, tooLarge: true},
		{name: "blob without CID", change: store.Change{Blobs: []store.Blob{{}}}},
		{name: "deletion of nothing", change: store.Change{Delete: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.change.Row.Key == (store.Key{}) {
				tc.change.Row.Key.Partition = "p"
			}
			err := tc.change.Check()
			if (err == nil) != tc.ok || errors.Is(err, store.ErrTooLarge) != tc.tooLarge {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := (store.Change{}).Check(); err == nil {
		t.Error("accepted a row without a key")
	}
}

func repeat[T any](v T, n int) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(store.EncodeCursor("a", "", "\x00b"), 3)
	f.Add(store.EncodeCursor(""), 1)
	f.Add("", 0)
	f.Fuzz(func(t *testing.T, cursor string, n int) {
		if n < 0 || n > 8 {
			return
		}
		parts, err := store.DecodeCursor(cursor, n)
		if err != nil {
			return
		}
		again, err := store.DecodeCursor(store.EncodeCursor(parts...), n)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(parts, again); diff != "" {
			t.Error(diff)
		}
	})
}

// TestWatch: whoever watches a table is told of what was committed, and of nothing else.
func TestWatch(t *testing.T) {
	ctx := t.Context()
	type told struct{ Was, Is int }
	var got []told
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	pets := store.NewTable[pet](d).Watch(func(was, is pet) { got = append(got, told{was.Age, is.Age}) })
	for range 2 { // the second creation finds the first
		rec := store.Record[pet]{Key: petKey, Value: pet{Name: "Rex", Age: 1}}
		if _, err := pets.Create(ctx, &rec, store.Effects{}); err != nil {
			t.Fatal(err)
		}
	}
	age := func(n int) func(*store.Record[pet], *store.Effects) error {
		return func(rec *store.Record[pet], _ *store.Effects) error {
			if rec.Value.Age == n {
				return store.ErrUnchanged
			}
			rec.Value.Age = n
			return nil
		}
	}
	for range 2 { // the second update changes nothing
		if _, err := pets.Update(ctx, petKey, age(2)); err != nil {
			t.Fatal(err)
		}
	}
	// A conflict is decided again, and told once.
	conflicts := 1
	crowded := store.NewTable[pet](rowsFunc{d, func(ctx context.Context, c store.Change) (uint64, error) {
		if conflicts--; conflicts >= 0 {
			return 0, store.ErrConflict
		}
		return d.Commit(ctx, c)
	}}).Watch(func(was, is pet) { got = append(got, told{was.Age, is.Age}) })
	if _, err := crowded.Update(ctx, petKey, age(3)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]told{{0, 1}, {1, 2}, {2, 3}}, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}
