package dealtracker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
)

const poll = 30 * time.Second

func TestLifeOfADeal(t *testing.T) {
	for _, confidence := range []dealtracker.Confidence{dealtracker.Finalized, dealtracker.Seen} {
		t.Run(string(confidence), func(t *testing.T) {
			w := newWorld(t, func(d *dealtracker.Deps) { d.Confidence = confidence })
			p := somePiece(1)
			d := proposal(7, p)
			w.Run(poll)
			expect := func(epoch int64, want string) {
				t.Helper()
				w.chain.at(epoch)
				w.Run(poll + time.Second)
				if got := w.status(p, 7); got != want {
					t.Errorf("at epoch %d the deal is %q, want %q", epoch, got, want)
				}
			}
			if got := w.deals(p); len(got) != 0 {
				t.Errorf("deals of an unknown piece: %v", got)
			}
			w.chain.happens(1001, dealtracker.Published, d)
			expect(1001, deal.StatusPublished)
			expect(1030, deal.StatusPublished)
			w.chain.happens(1040, dealtracker.Activated, d)
			early := deal.StatusPublished
			if confidence == dealtracker.Seen {
				early = deal.StatusActive
			}
			expect(1040, early)
			expect(1059, early)
			expect(1060, deal.StatusActive)
			expect(4999, deal.StatusActive)
			want := deal.Deals{7: {Provider: "f01007", Status: deal.StatusActive, Activation: 1040, Expiration: 5000, Source: "fake"}}
			if diff := cmp.Diff(want, w.deals(p)); diff != "" {
				t.Errorf("deals (-want +got):\n%s", diff)
			}
			expect(5000, deal.StatusExpired)
		})
	}
}

func TestEndsOfDeals(t *testing.T) {
	p := somePiece(1)
	tests := []struct {
		name  string
		tell  func(c *fakeChain)
		epoch int64
		want  deal.Deal
	}{
		{"terminated counts as soon as it is seen", func(c *fakeChain) {
			c.happens(1100, dealtracker.Activated, proposal(7, p))
			c.happens(1200, dealtracker.Terminated, proposal(7, p))
		}, 1201, deal.Deal{Status: deal.StatusTerminated, Activation: 1100, Expiration: 1200}},
		{"terminated without its piece", func(c *fakeChain) {
			c.happens(1100, dealtracker.Activated, proposal(7, p))
			c.happens(1200, dealtracker.Terminated, dealtracker.Proposal{ID: 7, Provider: "f01007"})
		}, 1300, deal.Deal{Status: deal.StatusTerminated, Activation: 1100, Expiration: 1200}},
		{"completed", func(c *fakeChain) {
			c.happens(1100, dealtracker.Activated, proposal(7, p))
			c.happens(1200, dealtracker.Completed, proposal(7, p))
		}, 1300, deal.Deal{Status: deal.StatusExpired, Activation: 1100, Expiration: 5000}},
		{"never activated, not final yet", func(*fakeChain) {}, 2019, deal.Deal{Status: deal.StatusPublished, Expiration: 5000}},
		{"never activated", func(*fakeChain) {}, 2020, deal.Deal{Status: deal.StatusExpired, Expiration: 5000}},
		{"activated with its last chance, not final yet", func(c *fakeChain) {
			c.happens(2000, dealtracker.Activated, proposal(7, p))
		}, 2010, deal.Deal{Status: deal.StatusPublished, Expiration: 5000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(d *dealtracker.Deps) { d.Backfill = 2000 })
			w.chain.happens(1000, dealtracker.Published, proposal(7, p))
			tt.tell(w.chain)
			w.chain.at(tt.epoch)
			w.Run(10 * poll)
			tt.want.Provider, tt.want.Source = "f01007", "fake"
			if diff := cmp.Diff(deal.Deals{7: tt.want}, w.deals(p)); diff != "" {
				t.Errorf("deals (-want +got):\n%s", diff)
			}
		})
	}
}

// TestExpiryWaitsForWhatIsNotRead: a tracker that is behind does not take a deal for one that never became active.
func TestExpiryWaitsForWhatIsNotRead(t *testing.T) {
	w := newWorld(t, func(d *dealtracker.Deps) { d.Backfill = 4000; d.Step = 1200 })
	p := somePiece(1)
	w.chain.happens(1000, dealtracker.Published, proposal(7, p))
	w.chain.happens(1900, dealtracker.Activated, proposal(7, p))
	w.chain.at(4000)
	var seen []string
	for range 6 {
		w.Step()
		seen = append(seen, w.status(p, 7))
	}
	if got := slices.Compact(seen); !slices.Equal(got, []string{"published", "active"}) {
		t.Errorf("the deal was %q while the tracker caught up", got)
	}
}

func TestReorganisation(t *testing.T) {
	p, other := somePiece(1), somePiece(2)
	d := proposal(7, p)
	published, activated := event(1001, dealtracker.Published, d), event(1005, dealtracker.Activated, d)
	reverted := func(e dealtracker.Event) dealtracker.Event { e.Reverted = true; return e }
	again := func(e dealtracker.Event, epoch int64) dealtracker.Event { e.Epoch = epoch; return e }
	tests := []struct {
		name   string
		after  []dealtracker.Event // what the chain says once it has changed
		status string              // of the deal in the end
		at     int64               // activation
	}{
		{"the activation vanishes without a word", []dealtracker.Event{published}, deal.StatusPublished, 0},
		{"the activation is taken back", []dealtracker.Event{published, reverted(activated)}, deal.StatusPublished, 0},
		{"all is taken back", []dealtracker.Event{reverted(published), reverted(activated)}, "", 0},
		{"all vanishes without a word", nil, "", 0},
		{"it happens again, later", []dealtracker.Event{again(published, 1003), again(activated, 1008)}, deal.StatusActive, 1008},
		{"it happens again in the same epoch", []dealtracker.Event{published, activated}, deal.StatusActive, 1005},
	}
	for _, confidence := range []dealtracker.Confidence{dealtracker.Finalized, dealtracker.Seen} {
		for _, tt := range tests {
			t.Run(string(confidence)+"/"+tt.name, func(t *testing.T) {
				w := newWorld(t, func(deps *dealtracker.Deps) { deps.Confidence = confidence })
				w.chain.events = []dealtracker.Event{published, activated}
				w.chain.at(1010)
				w.Run(20 * poll)
				if w.status(p, 7) == "" {
					t.Fatal("the deal was not seen")
				}
				// In between the chain says of everything that it was taken back.
				w.chain.events = []dealtracker.Event{reverted(published), reverted(activated)}
				w.Run(2 * poll)
				if got := w.status(p, 7); got != "" {
					t.Errorf("after a revert the deal is %q", got)
				}
				w.chain.events = tt.after
				w.chain.at(1200)
				w.Run(5 * poll)
				if got := w.deals(p)[7]; got.Status != tt.status || got.Activation != tt.at {
					t.Errorf("in the end the deal is %q, active from %d; want %q, %d", got.Status, got.Activation, tt.status, tt.at)
				}
			})
		}
	}

	t.Run("the deal's id goes to another piece", func(t *testing.T) {
		w := newWorld(t, nil)
		w.chain.events = []dealtracker.Event{published}
		w.chain.at(1010)
		w.Run(20 * poll)
		foreign := proposal(7, other)
		republished := event(1002, dealtracker.Published, foreign)
		republished.ID = "another message"
		w.chain.events = []dealtracker.Event{republished, event(1006, dealtracker.Activated, foreign)}
		w.chain.at(1200)
		w.Run(5 * poll)
		if got := w.status(p, 7); got != "" {
			t.Errorf("the deal of the old piece is %q", got)
		}
		if got := w.status(other, 7); got != deal.StatusActive {
			t.Errorf("the deal of the new piece is %q", got)
		}
	})
}

func TestReading(t *testing.T) {
	t.Run("begins at the backfill, in bounded steps, and then goes on", func(t *testing.T) {
		w := newWorld(t, func(d *dealtracker.Deps) { d.Backfill = 250 })
		w.Run(time.Second)
		want := [][2]int64{{750, 849}, {850, 949}, {950, 980}, {981, 1000}}
		if diff := cmp.Diff(want, w.chain.ranges); diff != "" {
			t.Errorf("first ranges (-want +got):\n%s", diff)
		}
		w.chain.ranges = nil
		w.chain.at(1015)
		w.Run(poll)
		want = [][2]int64{{981, 995}, {996, 1015}} // what became final, and from there, as all of it may have changed
		if diff := cmp.Diff(want, w.chain.ranges); diff != "" {
			t.Errorf("next ranges (-want +got):\n%s", diff)
		}
	})
	t.Run("looks again at the newest epochs only", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Run(time.Second)
		w.chain.head = dealtracker.Head{Epoch: 1500, Finalized: 980}
		w.Run(poll)
		w.chain.ranges = nil
		w.chain.head.Epoch = 1502
		w.Run(poll)
		if diff := cmp.Diff([][2]int64{{1491, 1502}}, w.chain.ranges); diff != "" {
			t.Errorf("ranges (-want +got):\n%s", diff)
		}
	})
	t.Run("a restart reads the overlap again, many restarts no more than that", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Run(time.Second)
		for range 5 {
			w.restart()
		}
		w.chain.ranges = nil
		w.Run(time.Second)
		if diff := cmp.Diff([][2]int64{{931, 980}, {981, 1000}}, w.chain.ranges); diff != "" {
			t.Errorf("ranges after restarts (-want +got):\n%s", diff)
		}
	})
	t.Run("starting twice does nothing", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Run(time.Second)
		before := w.Rows(func(store.Key) bool { return true })
		if err := w.service.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, w.Rows(func(store.Key) bool { return true })); diff != "" {
			t.Errorf("rows changed:\n%s", diff)
		}
	})
	t.Run("what was left out before is found by the overlap", func(t *testing.T) {
		w := newWorld(t, nil)
		p := somePiece(1)
		w.Run(time.Second)
		w.chain.happens(940, dealtracker.Published, proposal(7, p))
		w.chain.happens(950, dealtracker.Activated, proposal(7, p))
		w.Run(3 * poll)
		if got := w.status(p, 7); got != "" {
			t.Fatalf("the deal is %q before the restart", got)
		}
		w.restart()
		w.Run(time.Second)
		if got := w.status(p, 7); got != deal.StatusActive {
			t.Errorf("the deal is %q after the restart", got)
		}
	})
	t.Run("a chain that is shorter than before is refused", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Run(time.Second)
		w.chain.ranges = nil
		w.chain.at(300)
		w.Run(3 * poll)
		if len(w.chain.ranges) != 0 {
			t.Errorf("read %v", w.chain.ranges)
		}
	})
	t.Run("an event of another epoch is refused with its range", func(t *testing.T) {
		w := newWorld(t, func(d *dealtracker.Deps) { d.Source = &liar{d.Source.(*fakeChain)} })
		w.Run(3 * poll)
		if rows := w.Rows(func(k store.Key) bool { return strings.HasPrefix(k.Partition, "history/") }); len(rows) != 0 {
			t.Errorf("kept %v", rows)
		}
	})
}

// liar returns an event from beyond the range.
type liar struct{ *fakeChain }

func (l *liar) Events(_ context.Context, from, to int64) ([]dealtracker.Event, error) {
	return []dealtracker.Event{event(to+1, dealtracker.Published, proposal(1, somePiece(1)))}, nil
}

type busy struct{ after time.Duration }

func (b busy) Error() string             { return "node is busy" }
func (b busy) RetryAfter() time.Duration { return b.after }

func TestFailuresOfTheSource(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		// calls within an hour of failures
		least, most int
	}{
		{"backs off to ten minutes", errors.New("connection refused"), 8, 14},
		{"waits as long as the node wants", busy{20 * time.Minute}, 2, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.Run(time.Second)
			p := somePiece(1)
			w.chain.happens(1001, dealtracker.Published, proposal(7, p))
			w.chain.happens(1010, dealtracker.Activated, proposal(7, p))
			w.chain.at(1100)
			heads := 0
			w.deps.Source = &counted{w.chain, &heads}
			w.restart()
			w.chain.err = tt.err
			w.Run(time.Hour)
			if heads < tt.least || heads > tt.most {
				t.Errorf("asked %d times in an hour, want %d to %d", heads, tt.least, tt.most)
			}
			if got := w.deals(p); len(got) != 0 {
				t.Errorf("the cursor moved over what was not read: %v", got)
			}
			w.chain.err = nil
			w.Run(30 * time.Minute)
			if got := w.status(p, 7); got != deal.StatusActive {
				t.Errorf("after the failures the deal is %q", got)
			}
		})
	}
}

type counted struct {
	*fakeChain
	heads *int
}

func (c *counted) Head(ctx context.Context) (dealtracker.Head, error) {
	*c.heads++
	return c.fakeChain.Head(ctx)
}

func TestWatch(t *testing.T) {
	mine, foreign := somePiece(1), somePiece(2)
	w := newWorld(t, func(d *dealtracker.Deps) { d.Watch = func(p piece.Link) bool { return p == mine } })
	w.chain.happens(900, dealtracker.Published, proposal(7, mine))
	w.chain.happens(900, dealtracker.Published, proposal(8, foreign))
	w.chain.happens(910, dealtracker.Terminated, dealtracker.Proposal{ID: 7})
	w.chain.happens(910, dealtracker.Terminated, dealtracker.Proposal{ID: 8})
	w.Run(time.Second)
	if got := w.status(mine, 7); got != deal.StatusTerminated {
		t.Errorf("the watched deal is %q", got)
	}
	rows := w.Rows(func(k store.Key) bool { return strings.Contains(k.String(), "00000000000000000008") })
	if len(rows) != 0 {
		t.Errorf("rows of a deal that is not watched: %v", rows)
	}
}

// TestPadding: the chain knows a piece by root and size, and so do those who ask.
func TestPadding(t *testing.T) {
	bare := somePiece(1)
	padded, err := piece.FromRootAndHeight(bare.Root(), bare.Height(), 127)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil)
	w.chain.happens(900, dealtracker.Published, proposal(7, bare))
	w.Run(time.Second)
	if got := w.status(padded, 7); got != deal.StatusPublished {
		t.Errorf("asked for with its payload size, the deal is %q", got)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t, nil)
	p := somePiece(1)
	w.chain.happens(900, dealtracker.Published, proposal(7, p))
	w.chain.happens(901, dealtracker.Activated, proposal(7, p))
	w.Run(time.Second)
	got, err := w.service.Status(t.Context(), p.CID())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Aggregates) != 1 || got.Aggregates[0].State != deal.StatusActive || got.Aggregates[0].Deal != 7 ||
		got.Aggregates[0].Since.Unix() != w.chain.EpochTime(901) {
		t.Errorf("got %+v", got)
	}
	if _, err := w.service.Status(t.Context(), somePiece(2).CID()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("status of an unknown piece: %v", err)
	}
	if _, err := w.service.Receipt(t.Context(), p.CID()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("receipt: %v", err)
	}
}

// story is a chain in three acts, with a reorganisation between the second and the third.
func (w *world) story() {
	a, b := proposal(7, somePiece(1)), proposal(8, somePiece(2))
	w.chain.happens(950, dealtracker.Published, a)
	w.chain.happens(960, dealtracker.Activated, a)
	w.Run(2 * poll)
	w.chain.happens(1001, dealtracker.Published, b)
	w.chain.happens(1002, dealtracker.Activated, b)
	w.chain.at(1010)
	w.Run(4 * poll)
	w.chain.events = w.chain.events[:len(w.chain.events)-1]
	w.chain.happens(1050, dealtracker.Terminated, dealtracker.Proposal{ID: 7})
	w.chain.at(1100)
	w.Run(6 * poll)
}

func (w *world) checkStory() {
	w.Helper()
	if got := w.status(somePiece(1), 7); got != deal.StatusTerminated {
		w.Errorf("deal 7 is %q", got)
	}
	if got := w.status(somePiece(2), 8); got != deal.StatusPublished {
		w.Errorf("deal 8 is %q", got)
	}
}

func isHistory(k store.Key) bool { return strings.HasPrefix(k.Partition, "history/") }

func TestReplayChangesNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.story()
	w.checkStory()
	before := w.Rows(func(store.Key) bool { return true })
	w.Replay()
	if diff := cmp.Diff(before, w.Rows(func(store.Key) bool { return true })); diff != "" {
		t.Errorf("rows changed:\n%s", diff)
	}
}

// TestTwoPollsAtOnce: two replicas handle one message at the same moment. One timer goes on, not two.
func TestTwoPollsAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	polls, err := w.Engine.Receive(t.Context(), "poll", 1, time.Second)
	if err != nil || len(polls) != 1 {
		t.Fatalf("%d polls, %v", len(polls), err)
	}
	other := w.service
	w.deps.Source = &hooked{w.chain, func() {
		if err := other.Handlers()["poll"](t.Context(), polls[0]); err != nil {
			t.Error(err)
		}
	}}
	s, err := dealtracker.New(w.deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handlers()["poll"](t.Context(), polls[0]); err != nil {
		t.Fatal(err)
	}
	if err := w.Engine.Ack(t.Context(), polls[0]); err != nil {
		t.Fatal(err)
	}
	if got := w.Engine.Waiting()["poll"]; got != 1 {
		t.Errorf("%d polls are under way", got)
	}
}

// hooked runs a hook before it tells the head.
type hooked struct {
	*fakeChain
	hook func()
}

func (h *hooked) Head(ctx context.Context) (dealtracker.Head, error) {
	h.hook()
	return h.fakeChain.Head(ctx)
}

func TestFaultsOfTheStore(t *testing.T) {
	smooth := newWorld(t, nil)
	smooth.story()
	want := smooth.Rows(isHistory)
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newFaultyWorld(t, choose, nil)
		w.story()
		w.checkStory()
		if diff := cmp.Diff(want, w.Rows(isHistory)); diff != "" {
			t.Errorf("histories differ from those without faults:\n%s", diff)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, nil)
	for name, spoil := range map[string]func(*dealtracker.Deps){
		"no signer":      func(d *dealtracker.Deps) { d.Signer = dealtracker.Deps{}.Signer },
		"no store":       func(d *dealtracker.Deps) { d.Store = nil },
		"no source":      func(d *dealtracker.Deps) { d.Source = nil },
		"no clock":       func(d *dealtracker.Deps) { d.Now = nil },
		"no log":         func(d *dealtracker.Deps) { d.Log = nil },
		"confidence":     func(d *dealtracker.Deps) { d.Confidence = "hoped" },
		"negative steps": func(d *dealtracker.Deps) { d.Step = -1 },
	} {
		deps := w.deps
		spoil(&deps)
		if _, err := dealtracker.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
