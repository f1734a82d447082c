package chain_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/chain"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/devnet"
	"github.com/storacha/w3filecoin/piece"
)

// simulated is a source that reads a simulated chain over HTTP.
type simulated struct {
	*chain.Lotus
	t     *testing.T
	chain *devnet.Chain

	mu  sync.Mutex
	now time.Time
}

func (s *simulated) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *simulated) to(epoch int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.chain.Genesis().Add(time.Duration(epoch) * s.chain.EpochDuration())
}

func (s *simulated) publish(n byte) devnet.Deal {
	s.t.Helper()
	link, err := piece.FromRootAndHeight(piece.Node{n, 1}, 20, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := s.chain.Publish(s.t.Context(), devnet.Proposal{Piece: link, Provider: "f01000", Client: "f01001"})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// events returns the events of epochs as "type deal@epoch", with "!" for reverted ones.
func (s *simulated) events(from, to int64) []string {
	s.t.Helper()
	events, err := s.Events(s.t.Context(), from, to)
	if err != nil {
		s.t.Fatal(err)
	}
	got := []string{}
	for _, e := range events {
		mark := ""
		if e.Reverted {
			mark = "!"
		}
		got = append(got, fmt.Sprintf("%s%s %d@%d", mark, e.Kind, e.Deal.ID, e.Epoch))
	}
	return got
}

func simulate(t *testing.T, showReverted bool) *simulated {
	t.Helper()
	s := &simulated{t: t, now: time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)}
	var err error
	s.chain, err = devnet.OpenChain(devnet.ChainConfig{
		Epoch: 200 * time.Millisecond, PublishDelay: 2, ActivateDelay: 5, Lifetime: 4000, Finality: 20, ShowReverted: showReverted, Now: s.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.chain.Handler())
	t.Cleanup(server.Close)
	s.Lotus, err = chain.NewLotus(chain.Config{
		URL:     server.URL,
		Network: chain.Network{Name: "devnet", Genesis: s.chain.Genesis().Unix(), Epoch: s.chain.EpochDuration(), Finality: s.chain.Finality()},
		Clients: []string{"f01001"},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSimulatedChain(t *testing.T) {
	s := simulate(t, false)
	if head, err := s.Head(t.Context()); head.Epoch != -1 || err != nil {
		t.Errorf("head of a chain that begins is %+v, %v", head, err)
	}
	s.to(1)
	d := s.publish(1)
	s.to(30)
	if head, err := s.Head(t.Context()); head != (dealtracker.Head{Epoch: 29, Finalized: 10}) || err != nil {
		t.Errorf("head is %+v, %v", head, err)
	}
	events, err := s.Events(t.Context(), 0, 29)
	if err != nil {
		t.Fatal(err)
	}
	want := dealtracker.Proposal{
		ID: d.ID, Piece: d.Piece, Provider: "f01000", Client: "f01001", StartEpoch: d.StartEpoch, EndEpoch: d.EndEpoch,
	}
	for _, e := range events {
		if diff := cmp.Diff(want, e.Deal, cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", e.Kind, diff)
		}
	}
	if got := s.events(0, 29); cmp.Diff([]string{"deal-published 1@3", "deal-activated 1@8"}, got) != "" {
		t.Errorf("events are %v", got)
	}
	if got, want := s.EpochTime(29), s.chain.Genesis().Unix()+5; got != want {
		t.Errorf("epoch 29 is at %d, want %d", got, want)
	}
	s.to(d.EndEpoch + 10) // over several ranges; the deal has left the state
	want2 := []string{"deal-published 1@3", "deal-activated 1@8", fmt.Sprintf("deal-completed 1@%d", d.EndEpoch)}
	if got := s.events(0, d.EndEpoch+9); cmp.Diff(want2, got) != "" {
		t.Errorf("events are %v, want %v", got, want2)
	}
}

func TestSimulatedReorg(t *testing.T) {
	for _, show := range []bool{false, true} {
		t.Run(fmt.Sprintf("shown=%t", show), func(t *testing.T) {
			s := simulate(t, show)
			s.publish(1) // at 2, active at 7
			s.to(6)
			s.publish(2) // at 8, active at 13
			s.to(10)
			before := s.events(0, 9)
			if err := s.chain.Reorg(3, true); err != nil { // 8..10
				t.Fatal(err)
			}
			s.to(12)
			want := []string{"deal-published 1@2", "deal-activated 1@7"}
			if show {
				want = append(want, "!deal-published 2@8")
			}
			if got := s.events(0, 11); cmp.Diff(want, got) != "" {
				t.Errorf("events were %v and are %v, want %v", before, got, want)
			}
			if err := s.chain.Reorg(11, false); err != nil { // all of it
				t.Fatal(err)
			}
			s.to(25)
			want = []string{"deal-published 1@13", "deal-activated 1@18"}
			if show {
				want = append([]string{"!deal-published 2@8"}, want...)
			}
			if got := s.events(0, 24); cmp.Diff(want, got) != "" {
				t.Errorf("events are %v, want %v", got, want)
			}
		})
	}
}

func TestSimulatedFaults(t *testing.T) {
	s := simulate(t, false)
	s.publish(1)
	s.publish(2)
	s.to(20)
	whole := s.events(0, 19)

	s.chain.FailNext(1, devnet.Failure{Status: 429, RetryAfter: 4 * time.Second})
	_, err := s.Events(t.Context(), 0, 19)
	if busy, ok := errors.AsType[*chain.BusyError](err); !ok || busy.RetryAfter() != 4*time.Second {
		t.Errorf("error is %v", err)
	}
	s.chain.FailNext(1, devnet.Failure{Status: 200, Body: "<html>"})
	if _, err := s.Head(t.Context()); err == nil {
		t.Error("a page was taken for a head")
	}

	s.chain.SetLag(10)
	if head, err := s.Head(t.Context()); head.Epoch != 9 || err != nil {
		t.Errorf("head is %+v, %v", head, err)
	}
	if events, err := s.Events(t.Context(), 0, 19); err == nil {
		t.Errorf("a node that is at 10 knows of %v up to 19", events)
	}
	s.chain.SetLag(0)

	s.chain.ForgetBefore(5)
	if events, err := s.Events(t.Context(), 0, 19); !errors.Is(err, chain.ErrHistory) {
		t.Errorf("of a node with an index from epoch 5 got %v, %v", events, err)
	}
	if got := s.events(5, 19); cmp.Diff(whole[2:], got) != "" {
		t.Errorf("events are %v", got)
	}
	s.chain.ForgetBefore(0)

	if err := s.chain.Terminate(1); err != nil {
		t.Fatal(err)
	}
	s.to(25)
	got := s.events(0, 24)
	if want := append(whole, "deal-terminated 1@21"); cmp.Diff(want, got) != "" {
		t.Errorf("events are %v, want %v", got, want)
	}
	if !strings.HasPrefix(s.Name(), "lotus 127.0.0.1") {
		t.Errorf("name is %s", s.Name())
	}
}
