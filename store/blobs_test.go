package store_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

func TestReadBlob(t *testing.T) {
	ctx := t.Context()
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	b := store.RawBlob([]byte("hello world"))
	if got, want := b.CID.String(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"; got != want {
		t.Errorf("CID of %q is %s, want %s", b.Bytes, got, want)
	}
	if err := store.PutBlob(ctx, d, b); err != nil {
		t.Fatal(err)
	}
	if got, err := store.ReadBlob(ctx, d, b.CID, 11); err != nil || !bytes.Equal(got, b.Bytes) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := store.ReadBlob(ctx, d, b.CID, 10); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	missing := store.CBORBlob(b.Bytes)
	if _, err := store.ReadBlob(ctx, d, missing.CID, 11); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := d.Put(ctx, missing.CID, strings.NewReader("hello w0rld")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.ReadBlob(ctx, d, missing.CID, 11); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("corrupt: %v", err)
	}
}

func TestPack(t *testing.T) {
	ctx := t.Context()
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	const n = 2500
	var w store.PackWriter
	var entries []store.Entry
	var contents [][]byte
	for i := range n {
		b := store.RawBlob(bytes.Repeat([]byte(fmt.Sprint(i)), i%300)) // some are empty and equal: one entry
		e, err := w.Add(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == w.Len() {
			continue
		}
		entries = append(entries, e)
		contents = append(contents, b.Bytes)
	}
	pack, err := w.Put(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := d.Has(ctx, pack); err != nil || size != w.Size() {
		t.Errorf("pack has %d bytes, %v; the writer said %d", size, err, w.Size())
	}
	if pack.Prefix().Codec != 0x0202 {
		t.Errorf("pack's codec is %x", pack.Prefix().Codec)
	}
	for i, e := range entries {
		got, err := store.ReadEntry(ctx, d, pack, e)
		if err != nil || !bytes.Equal(got, contents[i]) {
			t.Fatalf("entry %d: %d bytes, %v", i, len(got), err)
		}
	}
	var all []store.Entry
	err = store.ReadPack(ctx, d, pack, func(e store.Entry, b []byte) error {
		if !bytes.Equal(b, contents[len(all)]) {
			return fmt.Errorf("entry %d differs", len(all))
		}
		all = append(all, e)
		return nil
	})
	if diff := cmp.Diff(entries, all, links); diff != "" || err != nil {
		t.Errorf("entries (-written +read):\n%s\n%v", diff, err)
	}

	stop := errors.New("enough")
	if err := store.ReadPack(ctx, d, pack, func(store.Entry, []byte) error { return stop }); err != stop {
		t.Errorf("visit's error came back as %v", err)
	}
	for name, e := range map[string]store.Entry{
		"other bytes":     {CID: entries[0].CID, Offset: entries[1].Offset, Length: entries[1].Length},
		"beyond the end":  {CID: entries[0].CID, Offset: w.Size(), Length: 1},
		"negative":        {CID: entries[0].CID, Offset: -1, Length: 1},
		"negative length": {CID: entries[0].CID, Length: -1},
	} {
		if _, err := store.ReadEntry(ctx, d, pack, e); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := store.ReadEntry(ctx, d, entries[0].CID, entries[0]); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing pack: %v", err)
	}
}

// A pack is a CAR file: these bytes were written out from the specification by hand.
func TestPackIsCAR(t *testing.T) {
	ctx := t.Context()
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	const sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	want := "3a" + "a2" + "65" + hex.EncodeToString([]byte("roots")) + "81" + "d82a" + "5825" + "0001551220" + sha +
		"67" + hex.EncodeToString([]byte("version")) + "01" +
		"24" + "01551220" + sha
	var w store.PackWriter
	if _, err := w.Put(ctx, d); err == nil {
		t.Error("put a pack without entries")
	}
	if _, err := w.Add(store.RawBlob(nil)); err != nil {
		t.Fatal(err)
	}
	pack, err := w.Put(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.ReadBlob(ctx, d, pack, store.MaxPack)
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s\n%v", got, want, err)
	}
}

func TestPackLimits(t *testing.T) {
	var w store.PackWriter
	for i := range store.MaxPackEntries {
		if _, err := w.Add(store.RawBlob([]byte(fmt.Sprint(i)))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Add(store.RawBlob([]byte("one more"))); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("too many entries: %v", err)
	}
	if _, err := w.Add(store.RawBlob([]byte("1"))); err != nil {
		t.Errorf("an entry that is there: %v", err)
	}
	var big store.PackWriter
	if _, err := big.Add(store.RawBlob(make([]byte, store.MaxPack))); !errors.Is(err, store.ErrTooLarge) || big.Size() != 0 {
		t.Errorf("too many bytes: %v, size %d", err, big.Size())
	}
	inline, err := multihash.Sum(make([]byte, 200), multihash.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []cid.Cid{cid.Undef, cid.NewCidV1(cid.Raw, inline)} {
		if _, err := big.Add(store.Blob{CID: c}); err == nil {
			t.Errorf("added an entry named %v", c)
		}
	}
}

func FuzzReadPack(f *testing.F) {
	d := memory.New(memory.Options{Now: storetest.NewClock().Now})
	for _, contents := range [][]string{{""}, {"a", "b", strings.Repeat("c", 200)}} {
		var w store.PackWriter
		for _, s := range contents {
			if _, err := w.Add(store.RawBlob([]byte(s))); err != nil {
				f.Fatal(err)
			}
		}
		pack, err := w.Put(f.Context(), d)
		if err != nil {
			f.Fatal(err)
		}
		b, err := store.ReadBlob(f.Context(), d, pack, store.MaxPack)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx := t.Context()
		d := memory.New(memory.Options{Now: storetest.NewClock().Now})
		blob := store.RawBlob(b)
		if err := store.PutBlob(ctx, d, blob); err != nil {
			t.Fatal(err)
		}
		var w store.PackWriter
		n := 0
		err := store.ReadPack(ctx, d, blob.CID, func(e store.Entry, content []byte) error {
			n++
			got, err := store.ReadEntry(ctx, d, blob.CID, e)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("entry %+v reads as %x, %v, not %x", e, got, err, content)
			}
			_, err = w.Add(store.Blob{CID: e.CID, Bytes: content})
			return err
		})
		if err == nil && w.Len() == n && w.Size() != int64(len(b)) {
			t.Fatalf("%d bytes read as a pack, %d written from its entries", len(b), w.Size())
		}
	})
}
