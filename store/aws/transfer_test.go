package aws_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/transfer"
)

// exported are the messages that an engine exports, in order of their bodies.
func (b *bench) exported() []string {
	b.Helper()
	var got []string
	err := b.engine.Export(b.Context(), []string{"q", "r"}, func(d store.Delivery) error {
		got = append(got, d.Queue+" "+string(d.Body))
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	slices.Sort(got)
	return slices.Compact(got)
}

// TestExport: messages are found in rows and queues, stay there, and are received by others right after.
func TestExport(t *testing.T) {
	b := newBench(t, 3)
	late := store.Message{Queue: "r", Body: []byte("timer"), Due: b.clock.Now().Add(time.Hour)}
	b.commit(change("a", 0, message("q", "1"), message("q", "2"), message("r", "3"), late))
	b.restart() // what is sent in the background has been
	want := []string{"q 1", "q 2", "r 3", "r timer"}
	for range 2 {
		if got := b.exported(); !slices.Equal(got, want) {
			t.Errorf("exported %q, want %q", got, want)
		}
		if n, err := b.engine.Backlog(t.Context(), []string{"q", "r"}); err != nil || n != len(want) {
			t.Errorf("backlog of %d, %v", n, err)
		}
	}
	ds, err := b.engine.Receive(t.Context(), "q", 10, time.Hour)
	if err != nil || len(ds) != 2 {
		t.Fatalf("received %d, %v", len(ds), err)
	}
	// While somebody holds messages they cannot be had; those of other queues can.
	var got []string
	err = b.engine.Export(t.Context(), []string{"q", "r"}, func(d store.Delivery) error {
		got = append(got, string(d.Body))
		return nil
	})
	if !errors.Is(err, store.ErrOnLease) || !strings.Contains(err.Error(), "2 messages") || !slices.Contains(got, "3") {
		t.Errorf("exported %q, %v", got, err)
	}
	stop := errors.New("enough")
	if err := b.engine.Export(t.Context(), []string{"r"}, func(store.Delivery) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

// TestTransfer: state goes to AWS and back and is equal; timers that ride in deleted markers are sent when they are due.
func TestTransfer(t *testing.T) {
	b := newBench(t, 3)
	now := b.clock.Now
	first, last := memory.New(memory.Options{Now: now}), memory.New(memory.Options{Now: now})
	for i := range 30 {
		c := change(fmt.Sprint("row", i), 0, message("q", fmt.Sprint("m", i)))
		c.Row.Listing = store.Listing{Index: "all", Sort: fmt.Sprint(i)}
		c.Blobs = []store.Blob{store.RawBlob(bytes.Repeat([]byte{byte(i)}, 1+i*1000))}
		if i%10 == 0 {
			c.Messages = append(c.Messages, store.Message{Queue: "r", Body: []byte(fmt.Sprint("timer", i)), Due: now().Add(20 * time.Hour)})
		}
		if _, err := first.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	o := transfer.Options{Now: now, Queues: []string{"q", "r"}}
	at := func() transfer.Side { return transfer.Side{Name: "aws", Driver: b.engine, Exporter: b.engine} }
	there, err := transfer.Copy(t.Context(), transfer.Side{Name: "first", Driver: first, Exporter: first}, at(), o)
	if err != nil {
		t.Fatal(err)
	}
	b.restart()
	back, err := transfer.Copy(t.Context(), at(), transfer.Side{Name: "last", Driver: last, Exporter: last}, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(there, back); diff != "" {
		t.Errorf("back (-there +back):\n%s", diff)
	}
	if there.Rows.Count != 30 || there.Messages.Count != 33 || there.Blobs.Count != 30 {
		t.Errorf("carried %+v", there)
	}
	if got := last.Waiting(); got["q"] != 30 || got["r"] != 3 {
		t.Errorf("messages back: %v", got)
	}
	// Refused without a look at what is not there: the queues still hold the messages of the first copy.
	if _, err := transfer.Copy(t.Context(), transfer.Side{Name: "last", Driver: last, Exporter: last}, at(), o); !errors.Is(err, transfer.ErrOccupied) {
		t.Errorf("over what is there: %v", err)
	}
	b.clock.Advance(21 * time.Hour)
	if _, err := b.engine.Relay(t.Context()); err != nil {
		t.Fatal(err)
	}
	ds, err := b.engine.Receive(t.Context(), "r", 10, time.Minute)
	if err != nil || len(ds) != 3 {
		t.Errorf("%d timers, %v", len(ds), err)
	}
}

// TestTransferServices is TestTransfer with real services and their clocks.
func TestTransferServices(t *testing.T) {
	where, role := services(t), role()
	o := options(t, role)
	if err := aws.Init(t.Context(), where, aws.Layout{role: {"q", "r"}}, o, nil); err != nil {
		t.Fatal(err)
	}
	first, last := memory.New(memory.Options{Now: time.Now}), memory.New(memory.Options{Now: time.Now})
	due := time.Now().Add(20 * time.Hour)
	for i := range 12 {
		c := change(fmt.Sprint("row", i), 0, message("q", fmt.Sprint("m", i)), store.Message{Queue: "r", Body: []byte{byte(i)}, Due: due})
		c.Blobs = []store.Blob{store.RawBlob(bytes.Repeat([]byte{byte(i)}, 1+i*2000))}
		if _, err := first.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	opts := transfer.Options{Now: time.Now, Queues: []string{"q", "r"}}
	var reports [2]transfer.Report
	for i := range reports {
		e, err := aws.Open(t.Context(), where, o)
		if err != nil {
			t.Fatal(err)
		}
		at := transfer.Side{Name: "aws", Driver: e, Exporter: e}
		if i == 0 {
			reports[i], err = transfer.Copy(t.Context(), transfer.Side{Name: "first", Driver: first, Exporter: first}, at, opts)
		} else {
			reports[i], err = transfer.Copy(t.Context(), at, transfer.Side{Name: "last", Driver: last, Exporter: last}, opts)
		}
		if closeErr := e.Close(); err != nil || closeErr != nil {
			t.Fatal(err, closeErr)
		}
	}
	if diff := cmp.Diff(reports[0], reports[1]); diff != "" {
		t.Errorf("back (-there +back):\n%s", diff)
	}
	if got := last.Waiting(); got["q"] != 12 || got["r"] != 12 || reports[0].Blobs.Count != 12 {
		t.Errorf("messages back: %v, report %+v", got, reports[0])
	}
}
