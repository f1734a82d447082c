package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/storacha/w3filecoin/capabilities"
)

// TestDiskFull takes the room to write from a running network, by a limit on the size of its files, and gives it back. Meanwhile it promises nothing:
// it answers HTTP 503, keeps answering what it knows, and does not end. Afterwards all goes on by itself; with W3FILECOIN_SOAK=1 that is waited for.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for things to come back")
	}
	aside(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	n := newTogether(t)
	for range 8 { // on their way when it happens
		if _, err := n.promised(t.Context(), n.front, newContent(t, r, 0)); err != nil {
			t.Fatal(err)
		}
	}
	var stored []content // but not offered yet
	for range 4 {
		c := newContent(t, r, 0)
		if err := n.front.store(t.Context(), c.cid, "content", bytes.NewReader(c.bytes), int64(len(c.bytes))); err != nil {
			t.Fatal(err)
		}
		stored = append(stored, c)
	}

	room := n.limitFiles(unix.Rlimit{Cur: 1, Max: unix.RLIM_INFINITY})
	for _, c := range stored {
		_, err := n.invoke(t.Context(), n.front, c)
		var u *capabilities.Unavailable
		if !errors.As(err, &u) || u.Accepted || u.Invalid {
			t.Errorf("an offer on a full disk: %v, want HTTP 503", err)
		}
	}
	late := newContent(t, r, 0)
	if err := n.front.store(t.Context(), late.cid, "content", bytes.NewReader(late.bytes), int64(len(late.bytes))); !errors.As(err, new(*capabilities.Unavailable)) {
		t.Errorf("an upload on a full disk: %v, want HTTP 503", err)
	}
	if err := n.check(t.Context(), r, 0); err != nil {
		t.Errorf("on a full disk: %v", err)
	}
	if soak(t) {
		eventually(t, "/readyz says so", func(ctx context.Context) error {
			if answers(ctx, n.front.url+"/readyz") == nil {
				return errors.New("it says that it is ready")
			}
			return nil
		})
	}
	if !n.running() {
		t.Fatalf("it ended: %v", n.err)
	}

	n.limitFiles(room)
	for _, c := range append(stored, late) {
		if _, err := n.promised(t.Context(), n.front, c); err != nil {
			t.Fatal(err)
		}
	}
	if !soak(t) {
		// What was in hand when the disk was full comes back when its lease ends, within a minute, or with the next start.
		n.stop()
		n.start()
		n.ready()
	}
	n.settle(t, r, 2*patience)
	n.concluded(t, n.chainFile())
	n.stop()
	if n.log.healthy(t) == 0 {
		t.Error("it logged no error: was the disk full?")
	}
}

// limitFiles sets the limit on the size of files that the process writes, and returns what it was.
func (d *daemon) limitFiles(limit unix.Rlimit) (old unix.Rlimit) {
	d.t.Helper()
	if err := unix.Prlimit(d.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &old); err != nil {
		d.t.Fatal(err)
	}
	limit.Max = old.Max
	if err := unix.Prlimit(d.cmd.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		d.t.Fatal(err)
	}
	return old
}
