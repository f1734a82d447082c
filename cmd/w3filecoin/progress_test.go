package main

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/capabilities"
)

// watched tells when something with the text was written.
type watched struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	text string
	seen chan struct{}
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(b)
	if w.seen != nil && strings.Contains(w.buf.String(), w.text) {
		close(w.seen)
		w.seen = nil
	}
	return len(b), nil
}

func TestProgress(t *testing.T) {
	for name, tt := range map[string]struct {
		total int64
		want  string
	}{
		"known size":   {4 << 20, "1.0 MiB / 4.0 MiB"},
		"unknown size": {-1, "1.0 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &watched{text: tt.want, seen: make(chan struct{})}
			seen := out.seen
			w, done := newBar(out, tt.total, "hashing file", 0)
			if n, err := w.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
				t.Fatal(n, err)
			}
			<-seen
			done()
			done()
			if s := out.buf.String(); !strings.Contains(s, "hashing file") {
				t.Errorf("drawn: %q", s)
			}
		})
	}
}

// TestProgressBrief: what is over in a moment draws nothing.
func TestProgressBrief(t *testing.T) {
	out := new(watched)
	w, done := newBar(out, 10, "hashing file", time.Hour)
	io.WriteString(w, "0123456789")
	done()
	if out.buf.Len() > 0 {
		t.Errorf("drawn: %q", out.buf.String())
	}
}

func TestProgressOffTerminal(t *testing.T) {
	out := new(watched)
	w, done := newApp(strings.NewReader(""), out, out).progress(10, "hashing file")
	io.WriteString(w, "0123456789")
	done()
	if out.buf.Len() > 0 {
		t.Errorf("drawn: %q", out.buf.String())
	}
}

func TestScreen(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, size: func() (int, int) { return 10, 5 }}
	draw := func(want string, lines ...string) {
		t.Helper()
		out.Reset()
		if err := s.draw(lines); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("drawn (-want +got):\n%s", diff)
		}
	}
	draw("one\n", "one")
	draw("\x1b[1A\x1b[Jtwo\nthree\n", "two", "three")
	draw("\x1b[2A\x1b[J12345678…\n123456789\n", "1234567890", "123456789")
	draw("\x1b[2A\x1b[Ja\nb\nc\nand 2 mo…\n", "a", "b", "c", "d", "e")
	out.Reset()
	s.clear()
	s.clear()
	if got := out.String(); got != "\x1b[4A\x1b[J" {
		t.Errorf("cleared by %q", got)
	}
}

func TestStatusLines(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 30, 0, time.UTC)
	s := &capabilities.Status{Role: "storefront", Pieces: []capabilities.PieceStatus{
		{Piece: "bafkone", Waiting: capabilities.Waiting{State: "submitted", Since: now.Add(-90 * time.Second), Reason: "content-unavailable",
			Next: now.Add(time.Minute)}},
		{Piece: "bafktwo", Aggregate: "bafkaggregate", Deal: 7, Waiting: capabilities.Waiting{State: "dealt", Since: now}},
	}}
	want := []string{
		"bafkone  submitted for 1m30s: content-unavailable, next try 2026-08-01 12:01:30 UTC",
		"bafktwo  dealt: aggregate bafkaggregate, deal 7",
	}
	if diff := cmp.Diff(want, statusLines(s, now)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestHasEnded(t *testing.T) {
	piece := func(state string, deal uint64) capabilities.PieceStatus {
		return capabilities.PieceStatus{Deal: deal, Waiting: capabilities.Waiting{State: state}}
	}
	aggregate := func(state string) []capabilities.AggregateStatus {
		return []capabilities.AggregateStatus{{Waiting: capabilities.Waiting{State: state}}}
	}
	for name, tt := range map[string]struct {
		status capabilities.Status
		ended  bool
		failed bool
	}{
		"submitted":                {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("submitted", 0)}}, false, false},
		"aggregated":               {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("aggregated", 0)}}, false, false},
		"dealt":                    {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("dealt", 1)}}, true, false},
		"invalid":                  {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("invalid", 0)}}, true, true},
		"failed":                   {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("failed", 0)}}, true, true},
		"expired":                  {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("expired", 0)}}, true, true},
		"one dealt, one waits":     {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("dealt", 1), piece("offered", 0)}}, false, false},
		"one failed, one waits":    {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("failed", 0), piece("offered", 0)}}, false, false},
		"one failed, one dealt":    {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("failed", 0), piece("dealt", 1)}}, true, true},
		"at the aggregator":        {capabilities.Status{Role: "aggregator", Pieces: []capabilities.PieceStatus{piece("aggregated", 0)}}, false, false},
		"at the aggregator, dealt": {capabilities.Status{Role: "aggregator", Pieces: []capabilities.PieceStatus{piece("aggregated", 1)}}, true, false},
		"at a storefront, early":   {capabilities.Status{Role: "storefront", Pieces: []capabilities.PieceStatus{piece("aggregated", 1)}}, false, false},
		"aggregate published":      {capabilities.Status{Aggregates: aggregate("published")}, false, false},
		"aggregate dealt":          {capabilities.Status{Aggregates: aggregate("dealt")}, true, false},
		"aggregate failed":         {capabilities.Status{Aggregates: aggregate("failed")}, true, true},
		"a state of a later time":  {capabilities.Status{Pieces: []capabilities.PieceStatus{piece("renewed", 1)}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hasEnded(&tt.status); got != tt.ended {
				t.Errorf("ended is %v", got)
			}
			if got := verdict(&tt.status) != nil; got != tt.failed {
				t.Errorf("failed is %v", got)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nc\u009bd é…"); strings.ContainsAny(got, "\x1b\n\u009b") || !strings.Contains(got, "é…") {
		t.Errorf("%q", got)
	}
}

// TestProgressCounts: bytes of no known total beside a text that changes.
func TestProgressCounts(t *testing.T) {
	out := &watched{text: "3 items, 1 failed  3.0 MiB", seen: make(chan struct{})}
	seen := out.seen
	w, say, done := newCounter(out, "items", 0)
	say("3 items, 1 failed")
	if n, err := w.Write(make([]byte, 3<<20)); n != 3<<20 || err != nil {
		t.Fatal(n, err)
	}
	<-seen
	done()
	done()
	if s := out.buf.String(); strings.Contains(s, "%!") {
		t.Errorf("drawn: %q", s)
	}
}
