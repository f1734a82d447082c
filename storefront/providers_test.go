package storefront_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

var errAway = errors.New("no route to host")

func away(item) (piece.Link, *capabilities.Failure, error) { return piece.Link{}, nil, errAway }

func accepts(item) (piece.Link, *capabilities.Failure, error) {
	return piece.Link{}, nil, &capabilities.Unavailable{Accepted: true, Reason: "the piece CID is being computed"}
}

func notFound(i item) (piece.Link, *capabilities.Failure, error) {
	return piece.Link{}, capabilities.NewContentNotFound(i.cid, "not here"), nil
}

func refuses(item) (piece.Link, *capabilities.Failure, error) {
	return piece.Link{}, capabilities.Fail(capabilities.Unauthorized, "who are you"), nil
}

// computedBy returns who computed the piece, by the fork of filecoin/submit, which every reader of the chain sees.
func (m *market) computedBy(i item) (names []string) {
	m.t.Helper()
	submit, err := cid.Parse(m.state(i).Tasks[filecoin.SubmitAbility])
	if err != nil {
		m.t.Fatal(err)
	}
	receipt := func(task cid.Cid) *capabilities.Message {
		got, err := m.Receipt(m.t.Context(), task)
		for errors.Is(err, storetest.ErrInjected) {
			got, err = m.Receipt(m.t.Context(), task)
		}
		if err != nil || got.Receipt(task) == nil {
			m.t.Fatalf("the receipt of %s is not served: %v", task, err)
		}
		return got
	}
	conclusion := receipt(submit)
	for _, link := range conclusion.Receipt(submit).Fork {
		task, ok := capabilities.FindTask(conclusion, link)
		if !ok {
			m.t.Fatalf("the receipt of filecoin/submit comes without its fork %s", link)
		}
		receipt(link) // whoever follows the chain asks for it here
		names = append(names, task.Audience.String())
	}
	return names
}

// crew is some providers of a market by name.
type crew map[string]*computing

func (c crew) name(did string) string {
	for name, p := range c {
		if p.signer.DID().String() == did {
			return name
		}
	}
	return did
}

// push has a provider push its receipt for some content.
func (c *computing) push(i item) {
	c.m.t.Helper()
	task := chaintest.Invoke(c.m.self, c.signer.DID(), c.signer.DID().String(), &computecap.PieceCID{Content: i.cid},
		chaintest.Standing(c.signer, c.m.self.DID(), computecap.PieceCIDAbility))
	message := conclusion(c.m.t, c.signer, task, nil, &computecap.PieceCIDOK{Piece: i.piece}, capabilities.Effects{})
	conclude := chaintest.Invoke(c.signer, c.m.self.DID(), c.signer.DID().String(), &ucan.Conclude{Receipt: message.Receipts()[0].Link()}, capabilities.Terms{})
	for err := storetest.ErrInjected; errors.Is(err, storetest.ErrInjected); {
		_, err = c.m.Methods()[ucan.ConcludeAbility](c.m.t.Context(), capabilities.Invocation{Task: conclude, Message: message})
		if err != nil && !errors.Is(err, storetest.ErrInjected) {
			c.m.t.Fatal(err)
		}
	}
}

func TestNearestProvider(t *testing.T) {
	for name, tt := range map[string]struct {
		near   map[string][]string
		places []string
		want   string
	}{
		"by host":            {map[string][]string{"b": {"host:custody.example"}}, nil, "b"},
		"by bucket":          {map[string][]string{"c": {"bucket:uploads"}, "a": {"bucket:other"}}, []string{"bucket:uploads"}, "c"},
		"by region":          {map[string][]string{"a": {"region:eu", "region:us"}}, []string{"bucket:x", "region:us"}, "a"},
		"not by other names": {map[string][]string{"a": {"bucket:us"}, "b": {"region:us"}}, []string{"region:us"}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			team := crew{}
			m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
				d.Compute = nil
				for _, name := range []string{"a", "b", "c"} {
					team[name] = m.provider(name)
					d.Compute = append(d.Compute, storefront.Provider{Peer: team[name].peer(), Near: tt.near[name]})
				}
				m.places = tt.places
			})
			for range 10 {
				i, f := m.good(chaintest.Key("agent"))
				if f != nil {
					t.Fatal(f)
				}
				m.run(time.Second)
				if got := m.computedBy(i); len(got) != 1 || team.name(got[0]) != tt.want {
					t.Errorf("computed by %q", got)
				}
			}
			for name, p := range team {
				if name != tt.want && len(p.asked) > 0 {
					t.Errorf("%s was asked %d times", name, len(p.asked))
				}
			}
		})
	}
}

// TestWorkSpreads: providers that are equally near share the contents, and one content asks the same one whenever it asks.
func TestWorkSpreads(t *testing.T) {
	team := crew{}
	m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
		d.Compute = nil
		for n := range 4 {
			name := fmt.Sprint("provider ", n)
			team[name] = m.provider(name)
			team[name].answer = accepts
			d.Compute = append(d.Compute, storefront.Provider{Peer: team[name].peer()})
		}
	})
	for range 100 {
		if _, f := m.good(chaintest.Key("agent")); f != nil {
			t.Fatal(f)
		}
	}
	m.run(20 * time.Minute)
	seen := map[cid.Cid]string{}
	for name, p := range team {
		distinct := map[cid.Cid]bool{}
		for _, c := range p.asked {
			distinct[c] = true
			if other := seen[c]; other != "" && other != name {
				t.Fatalf("%s asked %s and %s", c, other, name)
			}
			seen[c] = name
		}
		if len(distinct) < 12 || len(distinct) > 40 {
			t.Errorf("%s has %d of 100 contents", name, len(distinct))
		}
	}
}

// TestFallback: a provider that is away, refuses, or does not find the content, is followed by another one; only when all are does the piece wait.
func TestFallback(t *testing.T) {
	for name, answer := range map[string]func(item) (piece.Link, *capabilities.Failure, error){"away": away, "refuses": refuses, "not found": notFound} {
		t.Run(name, func(t *testing.T) {
			var near, far *computing
			m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
				near, far = m.provider("near"), m.provider("far")
				near.answer = answer
				d.Compute = []storefront.Provider{{Peer: far.peer()}, {Peer: near.peer(), Near: []string{"host:custody.example"}}}
			})
			for n := range 5 {
				i, f := m.good(chaintest.Key("agent"))
				if f != nil {
					t.Fatal(f)
				}
				m.run(10 * time.Millisecond)
				if got := m.computedBy(i); !slices.Equal(got, []string{far.signer.DID().String()}) {
					t.Fatalf("content %d was computed by %q", n, got)
				}
			}
			// One that was away a moment ago is not tried for each content.
			if want := map[string]int{"away": 1, "refuses": 5, "not found": 5}[name]; len(near.asked) != want {
				t.Errorf("the near one was asked %d times, want %d", len(near.asked), want)
			}
			far.answer = answer
			i, f := m.good(chaintest.Key("agent"))
			if f != nil {
				t.Fatal(f)
			}
			m.run(time.Minute)
			if s := m.state(i); s.State != "submitted" || s.Reason == "" || s.Next.IsZero() {
				t.Errorf("with none left: %+v", s)
			}
			near.answer = nil
			m.run(time.Hour)
			if got := m.computedBy(i); !slices.Equal(got, []string{near.signer.DID().String()}) {
				t.Errorf("computed by %q", got)
			}
		})
	}
}

// TestPatience: one that has taken the work on is waited for, then another one is asked too, and whoever answers first is used.
func TestPatience(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("late ", late), func(t *testing.T) {
			var first, second *computing
			m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
				first, second = m.provider("first"), m.provider("second")
				first.answer, second.answer = accepts, accepts
				d.Compute = []storefront.Provider{{Peer: second.peer()}, {Peer: first.peer(), Near: []string{"host:custody.example"}}}
			})
			i, f := m.good(chaintest.Key("agent"))
			if f != nil {
				t.Fatal(f)
			}
			m.run(29 * time.Minute)
			if s := m.state(i); len(second.asked) != 0 || !strings.Contains(s.Reason, "under way at "+first.signer.DID().String()) {
				t.Fatalf("the second was asked %d times, %+v", len(second.asked), s)
			}
			m.run(20 * time.Minute)
			if len(second.asked) == 0 {
				t.Fatal("the second was not asked")
			}
			want := second
			if late {
				want = first
			}
			want.push(i)
			m.run(time.Second)
			if got := m.computedBy(i); !slices.Equal(got, []string{want.signer.DID().String()}) {
				t.Errorf("computed by %q", got)
			}
		})
	}
}

// TestParallel: a provider is not asked about more contents at a time than it should be; what is over goes to others, and what is over there waits.
func TestParallel(t *testing.T) {
	const near, far = 2, 3
	type gate struct {
		mu        sync.Mutex
		now, most int
		release   chan struct{}
	}
	var gates [2]gate
	asked := make(chan struct{}, 100)
	m := newMarket(t, nil, func(m *market, d *storefront.Deps) {
		d.Compute = nil
		for n, limit := range []int{near, far} {
			g := &gates[n]
			g.release = make(chan struct{})
			p := m.provider(fmt.Sprint("provider ", n))
			var mu sync.Mutex
			p.answer = func(i item) (piece.Link, *capabilities.Failure, error) {
				g.mu.Lock()
				g.now++
				g.most = max(g.most, g.now)
				g.mu.Unlock()
				asked <- struct{}{}
				<-g.release
				mu.Lock()
				defer mu.Unlock()
				g.mu.Lock()
				g.now--
				g.mu.Unlock()
				return i.piece, nil, nil
			}
			peer := storefront.Provider{Peer: p.peer(), Parallel: limit}
			if n == 0 {
				peer.Near = []string{"host:custody.example"}
			}
			d.Compute = append(d.Compute, peer)
		}
	})
	var items []item
	for range 8 {
		i, f := m.good(chaintest.Key("agent"))
		if f != nil {
			t.Fatal(f)
		}
		items = append(items, i)
	}
	for range items {
		if _, err := m.stage.Consumer("submit").Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Eight validations at once. Three find no place and return; the others hold theirs until they are released.
	returned := make(chan error, len(items))
	for range items {
		go func() {
			_, err := m.stage.Consumer(storefront.ValidateQueue).Step(t.Context())
			returned <- err
		}()
	}
	for range len(items) - near - far {
		if err := <-returned; err != nil {
			t.Fatal(err)
		}
	}
	waiting := 0
	for _, i := range items {
		if strings.Contains(m.state(i).Reason, "enough to do") {
			waiting++
		}
	}
	if waiting != len(items)-near-far {
		t.Errorf("%d wait for a place", waiting)
	}
	for range near + far {
		<-asked
	}
	close(gates[0].release)
	close(gates[1].release)
	for range near + far {
		if err := <-returned; err != nil {
			t.Fatal(err)
		}
	}
	if gates[0].most != near || gates[1].most != far {
		t.Errorf("at most %d and %d at a time, want %d and %d", gates[0].most, gates[1].most, near, far)
	}
	m.run(time.Minute)
	for _, i := range items {
		if s := m.state(i); s.State != "offered" {
			t.Errorf("%+v", s)
		}
	}
}

// TestProviderFaults: whatever call of the engine fails, while a provider is away and another one takes its time, the piece is validated.
func TestProviderFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		var far *computing
		m := newMarket(t, choose, func(m *market, d *storefront.Deps) {
			near := m.provider("near")
			near.answer = away
			far = m.provider("far")
			far.answer = accepts
			d.Compute = []storefront.Provider{{Peer: near.peer(), Near: []string{"host:custody.example"}}, {Peer: far.peer()}}
		})
		i, f := m.good(chaintest.Key("agent"))
		if f != nil {
			t.Fatal(f)
		}
		m.run(time.Minute)
		far.push(i)
		m.run(time.Hour)
		if s := m.state(i); s.State != "offered" {
			t.Fatalf("%+v", s)
		}
		if n := m.rows("dead"); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

func TestProvidersRefused(t *testing.T) {
	for name, spoil := range map[string]func(*market, *storefront.Deps){
		"none":          func(_ *market, d *storefront.Deps) { d.Compute = nil },
		"no connection": func(_ *market, d *storefront.Deps) { d.Compute[0].Conn = nil },
		"twice":         func(_ *market, d *storefront.Deps) { d.Compute = append(d.Compute, d.Compute[0]) },
	} {
		var deps storefront.Deps
		newMarket(t, nil, func(_ *market, d *storefront.Deps) { deps = *d })
		deps.Compute = slices.Clone(deps.Compute)
		spoil(nil, &deps)
		if _, err := storefront.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
