package storefront_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

func withPolicy(p storefront.Policy) func(*market, *storefront.Deps) {
	return func(_ *market, d *storefront.Deps) { d.Policy = p }
}

func named(f *capabilities.Failure) string {
	if f == nil {
		return ""
	}
	return f.Name
}

// standingOf returns what the storefront has against an agent.
func (m *market) standingOf(agent capabilities.Signer) standing.Standing {
	m.t.Helper()
	list, _, err := standing.List(m.t.Context(), m.stage.Engine, m.clock(), "", 0)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range list {
		if s.Subject == standing.AgentSubject(agent.DID().String()) {
			return s
		}
	}
	return standing.Standing{}
}

// TestReputation follows an agent down: served, served apart, refused; and up again, with time.
func TestReputation(t *testing.T) {
	m := newMarket(t, nil, withPolicy(storefront.Policy{Reputation: standing.Policy{HalfLife: time.Hour, Quarantine: 2, Refuse: 4}}))
	mallory, alice := chaintest.Key("mallory"), chaintest.Key("alice")
	own, apart := m.self.DID().String(), m.self.DID().String()+"/quarantine"
	group := func(i item) string {
		t.Helper()
		m.run(time.Second)
		if got := m.groups[i.piece]; len(got) != 1 || m.state(i).Group != got[0] {
			t.Fatalf("offered in %q, state %+v", got, m.state(i))
		}
		return m.groups[i.piece][0]
	}
	for n := 1; n <= 4; n++ {
		right, refused := m.good(mallory)
		if refused != nil {
			t.Fatalf("before offer %d: %v", n, refused)
		}
		want := own
		if n > 3 { // two that were wrong count less than two as soon as time passes
			want = apart
		}
		if got := group(right); got != want {
			t.Errorf("before offer %d a right piece was offered in %s", n, got)
		}
		wrong, refused := m.bad(mallory)
		if refused != nil {
			t.Fatalf("offer %d: %v", n, refused)
		}
		m.run(time.Second)
		if s := m.state(wrong); s.State != "invalid" {
			t.Errorf("offer %d: %+v", n, s)
		}
		if s := m.standingOf(mallory); s.Wrong != uint64(n) || s.Cause != m.state(wrong).Reason {
			t.Errorf("after offer %d: %+v", n, s)
		}
	}
	m.bad(mallory)
	m.run(time.Second)
	before := m.rows("")
	_, refused := m.good(mallory)
	var details capabilities.RefusalDetails
	if named(refused) != capabilities.OfferRefused || capabilities.Decode(refused.Encode(), &details) != nil || details.Cause == "" ||
		details.Score < 4000 || details.RetryAfter == 0 {
		t.Fatalf("after five wrong ones: %v, %+v", refused, details)
	}
	if m.rows("") != before {
		t.Errorf("a refusal left %d rows behind", m.rows("")-before)
	}
	if s := m.standingOf(alice); s.Wrong != 0 {
		t.Errorf("somebody else has %+v", s)
	}
	if right, refused := m.good(alice); refused != nil || group(right) != own {
		t.Errorf("somebody else: %v, in %q", refused, m.groups[right.piece])
	}

	m.run(time.Duration(details.RetryAfter) * time.Second)
	if right, refused := m.good(mallory); refused != nil || group(right) != apart {
		t.Errorf("at the time that was told: %v, in %q", refused, m.groups[right.piece])
	}
	m.run(2 * time.Hour)
	if right, refused := m.good(mallory); refused != nil || group(right) != own {
		t.Errorf("two half-lives later: %v, in %q", refused, m.groups[right.piece])
	}
}

// TestBlame: everybody who offered a pair is blamed for it once, before it was proven wrong and after, and nobody for anything that is not proven.
func TestBlame(t *testing.T) {
	m := newMarket(t, nil, nil)
	wrong, other := m.item(), m.item()
	right := wrong
	wrong.piece = other.piece
	agents := map[string]capabilities.Signer{}
	offer := func(name string, i item, nonce string) {
		t.Helper()
		agents[name] = chaintest.Key(name)
		if f := m.send(m.offering(agents[name], i.cid, i.piece, nonce)); f != nil {
			t.Fatalf("%s: %v", name, f)
		}
	}
	absent := item{cid: m.item().cid, piece: right.piece}
	delete(m.contents, absent.cid)
	for _, name := range []string{"first", "second", "third"} {
		offer(name, wrong, "")
		offer(name, wrong, "")
	}
	offer("right", right, "")
	offer("absent", absent, "")
	m.run(time.Minute)
	offer("late", wrong, "")
	offer("nonced", wrong, "once more")
	m.run(20 * 24 * time.Hour)
	if s := m.state(absent); s.State != "expired" {
		t.Errorf("content that never came: %+v", s)
	}
	for name, want := range map[string]uint64{"first": 1, "second": 1, "third": 1, "late": 1, "nonced": 1, "right": 0, "absent": 0} {
		if s := m.standingOf(agents[name]); s.Wrong != want {
			t.Errorf("%s has %+v, want %d", name, s, want)
		}
	}
}

// TestOfferedByManyMore: those who offered a pair are more than one message deals with.
func TestOfferedByManyMore(t *testing.T) {
	m := newMarket(t, nil, nil)
	wrong, other := m.item(), m.item()
	wrong.piece = other.piece
	const agents = 230
	for n := range agents {
		if f := m.send(m.offering(chaintest.Key(fmt.Sprint("agent ", n)), wrong.cid, wrong.piece, "")); f != nil {
			t.Fatal(f)
		}
	}
	m.run(time.Minute)
	for n := range agents {
		if s := m.standingOf(chaintest.Key(fmt.Sprint("agent ", n))); s.Wrong != 1 {
			t.Fatalf("agent %d has %+v", n, s)
		}
	}
}

// TestNotDraggedAlong: whoever has a bad standing cannot have the pieces of others kept apart by offering them first.
func TestNotDraggedAlong(t *testing.T) {
	m := newMarket(t, nil, withPolicy(storefront.Policy{Reputation: standing.Policy{HalfLife: 1000 * time.Hour, Quarantine: 1, Refuse: 100}}))
	mallory, alice := chaintest.Key("mallory"), chaintest.Key("alice")
	for range 2 {
		m.bad(mallory)
	}
	m.run(time.Minute)
	late := m.item()
	delete(m.contents, late.cid)
	for _, agent := range []capabilities.Signer{mallory, alice} {
		if f := m.send(m.offering(agent, late.cid, late.piece, "")); f != nil {
			t.Fatal(f)
		}
	}
	m.run(time.Minute)
	m.contents[late.cid] = late
	m.run(2 * time.Hour)
	if got := m.groups[late.piece]; len(got) != 1 || got[0] != m.self.DID().String() {
		t.Errorf("offered in %q", got)
	}
}

func TestLimits(t *testing.T) {
	three := standing.Limit{Count: 3}
	alice, bob := chaintest.Key("alice"), chaintest.Key("bob")
	for name, tt := range map[string]struct {
		limits standing.Limits
		// alice and bob are how many of ten offers each are taken, on two days; both offer on a space of alice's if shared.
		shared     bool
		alice, bob [2]int
	}{
		"none":       {alice: [2]int{10, 10}, bob: [2]int{10, 10}},
		"each agent": {limits: standing.Limits{Agent: three}, alice: [2]int{3, 3}, bob: [2]int{3, 3}},
		"bytes of each agent": {limits: standing.Limits{Agent: standing.Limit{Bytes: 5 * 512}},
			alice: [2]int{5, 5}, bob: [2]int{5, 5}},
		"each space, their own":  {limits: standing.Limits{Space: three}, alice: [2]int{10, 10}, bob: [2]int{10, 10}},
		"each space, one":        {limits: standing.Limits{Space: three}, shared: true, alice: [2]int{3, 3}, bob: [2]int{0, 0}},
		"newcomers":              {limits: standing.Limits{Newcomers: three}, alice: [2]int{3, 10}, bob: [2]int{0, 3}},
		"newcomers and the rest": {limits: standing.Limits{Newcomers: three, Agent: standing.Limit{Count: 8}}, alice: [2]int{3, 8}, bob: [2]int{0, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMarket(t, nil, withPolicy(storefront.Policy{Limits: tt.limits}))
			space := chaintest.Key("space")
			for day := range 2 {
				for _, who := range []struct {
					agent capabilities.Signer
					want  int
				}{{alice, tt.alice[day]}, {bob, tt.bob[day]}} {
					taken := 0
					for range 10 {
						i := m.item()
						task := m.offering(who.agent, i.cid, i.piece, "")
						if tt.shared {
							task = chaintest.Invoke(who.agent, m.self.DID(), space.DID().String(), &filecoin.Offer{Content: i.cid, Piece: i.piece},
								chaintest.Standing(space, who.agent.DID(), filecoin.OfferAbility))
						}
						switch f := m.send(task); named(f) {
						case "":
							taken++
							if again := m.send(task); again != nil {
								t.Errorf("an acknowledged offer that is repeated: %v", again)
							}
						case capabilities.QuotaExceeded:
							if f.Details == nil || f.Message == "" {
								t.Errorf("%+v", f)
							}
						default:
							t.Fatal(f)
						}
					}
					if taken != who.want {
						t.Errorf("day %d: %d of %s's were taken, want %d", day, taken, who.agent.DID(), who.want)
					}
				}
				m.run(24 * time.Hour)
			}
		})
	}
}

// TestNewcomersElsewhere: where only others bound newcomers, whoever has had a piece validated ceases to be one all the same.
func TestNewcomersElsewhere(t *testing.T) {
	alice := chaintest.Key("alice")
	for _, elsewhere := range []bool{false, true} {
		m := newMarket(t, nil, withPolicy(storefront.Policy{Newcomers: elsewhere}))
		if _, f := m.good(alice); f != nil {
			t.Fatal(f)
		}
		m.run(time.Minute)
		known, err := standing.New(m.stage.Engine, standing.Policy{}, m.clock).Of(t.Context(), standing.AgentSubject(alice.DID().String()))
		if err != nil {
			t.Fatal(err)
		}
		if noted := known.Right == 1; noted != elsewhere {
			t.Errorf("noted: %t, want %t", noted, elsewhere)
		}
	}
}

// TestReplayTakesNothing: whoever repeats somebody's old invocations, on the next day too, does not use up what that agent may offer.
func TestReplayTakesNothing(t *testing.T) {
	m := newMarket(t, nil, withPolicy(storefront.Policy{Limits: standing.Limits{Agent: standing.Limit{Count: 40}}}))
	alice := chaintest.Key("alice")
	var old []capabilities.Task
	for range 40 {
		i := m.item()
		old = append(old, m.offering(alice, i.cid, i.piece, ""))
		if f := m.send(old[len(old)-1]); f != nil {
			t.Fatal(f)
		}
	}
	m.run(24 * time.Hour)
	for _, task := range old {
		if f := m.send(task); f != nil {
			t.Errorf("repeated: %v", f)
		}
	}
	for range 40 {
		if _, f := m.good(alice); f != nil {
			t.Fatalf("on the next day: %v", f)
		}
	}
}

// TestAdmissionFaults: whatever call of the engine fails, and however, each wrong offer counts once, each offer is counted once or
// not taken, and each right one goes on.
func TestAdmissionFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		m := newMarket(t, choose, withPolicy(storefront.Policy{
			Limits:     standing.Limits{Agent: standing.Limit{Count: 3}, Newcomers: standing.Limit{Count: 6}},
			Reputation: standing.Policy{HalfLife: 1000 * time.Hour, Quarantine: 0.5, Refuse: 1.5},
		}))
		mallory, alice := chaintest.Key("mallory"), chaintest.Key("alice")
		wrong, other := m.item(), m.item()
		right := wrong
		wrong.piece = other.piece
		for _, step := range []struct {
			agent capabilities.Signer
			i     item
			nonce string
		}{{mallory, wrong, ""}, {alice, wrong, ""}, {mallory, wrong, "again"}, {alice, right, ""}} {
			if f := m.send(m.offering(step.agent, step.i.cid, step.i.piece, step.nonce)); f != nil {
				t.Fatal(f)
			}
		}
		m.run(3 * time.Hour)
		if s := m.standingOf(mallory); s.Wrong != 2 {
			t.Errorf("mallory has %+v", s)
		}
		if s := m.standingOf(alice); s.Wrong != 1 || s.Right != 1 {
			t.Errorf("alice has %+v", s)
		}
		if s := m.state(right); s.State != "offered" || s.Group != m.self.DID().String() && s.Group != m.self.DID().String()+"/quarantine" ||
			len(m.groups[right.piece]) != 1 || m.groups[right.piece][0] != s.Group {
			t.Errorf("the right piece: %+v, in %q", s, m.groups[right.piece])
		}
		if _, f := m.good(mallory); named(f) != capabilities.OfferRefused {
			t.Errorf("mallory again: %v", f)
		}
		if _, f := m.good(alice); f != nil {
			t.Errorf("a third offer of alice's: %v", f)
		}
		if _, f := m.good(alice); named(f) != capabilities.QuotaExceeded {
			t.Errorf("a fourth offer of alice's: %v", f)
		}
		if n := m.rows("dead"); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}
