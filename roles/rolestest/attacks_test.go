package rolestest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/storefront"
)

// Attacks on a storefront that is open to everybody. Four good agents offer a piece every five minutes each, for an hour and a half, while somebody attacks at
// many times that rate. The machine is slow on purpose: each message takes 2 ms, reading content 20 ms and 1 ms per 10 KB, one thing at a time, so work
// for an attacker is time that others wait. What others see is the time from their offer to its validation, on the network's clock.

const (
	attackMinutes = 90
	goodAgents    = 4
	goodEvery     = 5 // minutes
)

// attack is somebody's plan.
type attack struct {
	name string
	// minute makes the attacker's offers of one minute; nil for none.
	minute func(a *attacked, minute int)
	// change changes the network before it is made.
	change func(o *Options, a *attacked)
	// mayRefuse are the failures by which the attacker's offers are refused.
	mayRefuse []string
}

// attacked is a network under attack, and what came of it.
type attacked struct {
	*Network
	t      *testing.T
	good   []Offered
	bad    []Offered
	tried  int
	refuse map[string]int
	lies   int
	// agents are the good ones: each has had a piece validated before.
	agents []capabilities.Signer
}

// offer has an attacker offer something.
func (a *attacked) offer(agent capabilities.Signer, content cid.Cid, link piece.Link) {
	a.t.Helper()
	a.tried++
	o, err := a.OfferBy(agent, "storefront", content, link, "")
	f := (*capabilities.Failure)(nil)
	switch {
	case err == nil:
		a.bad = append(a.bad, o)
	case errors.As(err, &f):
		a.refuse[f.Name]++
	default:
		a.t.Fatal(err)
	}
}

// wrong is a piece that some content is not, of the size that it has.
func (a *attacked) wrong(content []byte) piece.Link {
	link, err := piece.Sum(append(slices.Clone(content), 1))
	if err != nil {
		a.t.Fatal(err)
	}
	return link
}

func key(n int) capabilities.Signer { return chaintest.Key(fmt.Sprint("attacker ", n)) }

var attacks = []attack{
	{name: "none"},
	{name: "wrong piece, one agent, 30 a minute", mayRefuse: []string{capabilities.OfferRefused, capabilities.QuotaExceeded}, minute: func(a *attacked, _ int) {
		for range 30 {
			content := a.Payload(1000)
			a.offer(key(0), a.World.Put(content), a.wrong(content))
		}
	}},
	{name: "a good agent's piece with other content, 5 a minute", mayRefuse: []string{capabilities.OfferRefused, capabilities.QuotaExceeded}, minute: func(a *attacked, _ int) {
		for range 5 {
			a.offer(key(0), a.World.Put(a.Payload(1000)), a.good[len(a.good)-1].Piece)
		}
	}},
	{name: "content that never comes, 30 a minute", mayRefuse: []string{capabilities.QuotaExceeded}, minute: func(a *attacked, _ int) {
		for range 30 {
			content := a.Payload(1000)
			a.offer(key(0), cidOf(a.t, content), a.wrong(content))
		}
	}},
	{name: "many agents in turn, 10 pieces each, 30 a minute", mayRefuse: []string{capabilities.QuotaExceeded}, minute: func(a *attacked, minute int) {
		for n := range 3 {
			for range 10 {
				content := a.Payload(1000)
				a.offer(key(1+3*minute+n), a.World.Put(content), a.wrong(content))
			}
		}
	}},
	{name: "1 byte as 32 GiB, 30 a minute", mayRefuse: []string{capabilities.PieceTooLarge}, minute: func(a *attacked, minute int) { a.huge(minute, 35) }},
	{name: "1 byte as 512 MiB, the largest piece, 30 a minute", mayRefuse: []string{capabilities.OfferRefused, capabilities.QuotaExceeded},
		minute: func(a *attacked, minute int) { a.huge(minute, 29) }},
	{name: "none, three providers that are not trusted", change: func(o *Options, _ *attacked) {
		o.Untrusted = 3
		o.Lie = func(string, cid.Cid) bool { return false }
	}},
	{name: "likewise, one lies in 1 of 100 answers", change: func(o *Options, a *attacked) {
		o.Untrusted = 3
		answers := 80
		o.Lie = func(provider string, _ cid.Cid) bool {
			if provider != "compute2" {
				return false
			}
			answers++
			if answers%100 != 0 {
				return false
			}
			a.lies++
			return true
		}
	}},
}

// huge offers one byte as pieces of a height, in tree levels of 32 bytes and up.
func (a *attacked) huge(minute, log2 int) {
	for n := range 30 {
		content := []byte{byte(n)}
		root := piece.Node{byte(n), byte(minute), 1}
		link, err := piece.FromRootAndHeight(root, uint8(log2-5), 0)
		if err != nil {
			a.t.Fatal(err)
		}
		a.offer(key(0), a.World.Put(content), link)
	}
}

// outcome is a line of the table.
type outcome struct {
	attack                      string
	tried, refused, invalid     int
	waiting, aggregated         int
	good, dealt                 int
	median, worst               time.Duration
	rows, messages              int
	distrusted, lies, unfounded int
}

func run(t *testing.T, at attack) outcome {
	a := &attacked{t: t, refuse: map[string]int{}}
	o := Options{Seed: 11, Pace: 2 * time.Millisecond,
		Read: func(size int) time.Duration { return 20*time.Millisecond + time.Duration(size)*100*time.Nanosecond },
		Policy: storefront.Policy{
			Reputation: standing.DefaultPolicy(),
			Limits:     standing.Limits{Agent: standing.Limit{Count: 500, Bytes: 1 << 30}, Newcomers: standing.Limit{Count: 200, Bytes: 4 << 30}},
		}}
	if at.change != nil {
		at.change(&o, a)
	}
	a.Network = New(t, o)
	idle := func() bool { return false }
	for n := range goodAgents {
		agent := chaintest.Key(fmt.Sprint("good agent ", n))
		a.agents = append(a.agents, agent)
		a.offerGood(agent)
	}
	a.Run(10*time.Minute, idle)
	established := len(a.good)

	for minute := range attackMinutes {
		end := a.Now().Add(time.Minute)
		if minute%goodEvery == 0 {
			for _, agent := range a.agents {
				a.offerGood(agent)
			}
		}
		if at.minute != nil {
			at.minute(a, minute)
		}
		a.Run(end.Sub(a.Now()), idle)
	}
	out := outcome{attack: at.name, tried: a.tried, refused: a.tried - len(a.bad), lies: a.lies,
		rows: a.countRows("storefront", ""), messages: a.countMessages()}

	// Everything good ends in a deal; the last ones wait for company.
	for round := range 4 {
		if a.Run(2*day, a.Concluded(a.good...)) {
			break
		}
		if round == 3 {
			t.Fatalf("%s: good offers have not ended", at.name)
		}
		for range 6 {
			a.offerGood(a.agents[0])
		}
	}
	var took []time.Duration
	for i, g := range a.good {
		s, err := a.Status(g)
		if err != nil || s.State != "dealt" {
			t.Fatalf("%s: a good offer stands at %+v, %v", at.name, s, err)
		}
		out.dealt++
		if i >= established && i < established+goodAgents*attackMinutes/goodEvery {
			out.good++
			took = append(took, s.Times["validated"].Sub(s.Times["submitted"]))
		}
		if strings.HasSuffix(s.Group, "/quarantine") {
			t.Errorf("%s: a good agent is quarantined", at.name)
		}
	}
	slices.Sort(took)
	out.median, out.worst = took[len(took)/2], took[len(took)-1]

	// What became of the bad ones.
	good := map[piece.Link]bool{}
	for _, g := range a.good {
		good[g.Piece] = true
	}
	for _, b := range a.bad {
		s, err := a.Status(b)
		if err != nil {
			t.Fatal(err)
		}
		switch s.State {
		case "invalid":
			out.invalid++
		case "submitted", "expired":
			out.waiting++
		default:
			t.Errorf("%s: a bad offer stands at %+v", at.name, s)
		}
		if !good[b.Piece] && a.countRows("aggregator", "piece/"+b.Piece.String()) > 0 {
			out.aggregated++
		}
	}
	for name := range a.refuse {
		if !slices.Contains(at.mayRefuse, name) {
			t.Errorf("%s: %d were refused as %s", at.name, a.refuse[name], name)
		}
	}
	for _, name := range a.names {
		known, err := standing.New(a.Roles["storefront"].Engine, standing.Policy{}, a.Now).
			Of(context.Background(), storefront.ProviderSubject(a.Roles[name].Signer.DID().String()))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case known.Wrong == 0:
		case name == "compute2":
			out.distrusted++
		default:
			out.unfounded++
		}
	}
	a.MustCheck(a.good)
	return out
}

func (a *attacked) offerGood(agent capabilities.Signer) {
	a.t.Helper()
	content := a.Payload(50_000)
	link, err := piece.Sum(content)
	if err != nil {
		a.t.Fatal(err)
	}
	o, err := a.OfferBy(agent, "storefront", a.World.Put(content), link, "")
	if err != nil {
		a.t.Fatalf("a good agent: %v", err)
	}
	a.good = append(a.good, o)
}

// countRows counts a role's rows by the beginning of their partition.
func (n *Network) countRows(role, prefix string) (count int) {
	n.t.Helper()
	for cursor := ""; ; {
		page, err := n.Roles[role].Engine.Walk(context.Background(), cursor, store.MaxPage)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, r := range page.Rows {
			if strings.HasPrefix(r.Partition, prefix) {
				count++
			}
		}
		if cursor = page.Next; cursor == "" {
			return count
		}
	}
}

// countMessages counts the messages that wait at all roles.
func (n *Network) countMessages() (count int) {
	for _, r := range n.Roles {
		for _, waiting := range r.Engine.Waiting() {
			count += waiting
		}
	}
	return count
}

// TestAttacks: while somebody attacks, good pieces of others are validated as fast as ever and end in deals, nothing bad comes near an aggregate, and
// what is kept of the attack is bounded by what was acknowledged of it, which limits bound.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("some thousand offers")
	}
	table := make([]outcome, len(attacks))
	t.Run("attack", func(t *testing.T) {
		for i, at := range attacks {
			t.Run(at.name, func(t *testing.T) {
				t.Parallel()
				table[i] = run(t, at)
			})
		}
	})
	if t.Failed() {
		return
	}
	base := table[0]
	var b strings.Builder
	fmt.Fprintln(&b, "| attack | tried | refused at the offer | proven wrong | waits for content | in an aggregate | good pieces dealt | validated in, median | slowest | rows |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|---|---|---|---|")
	for i, o := range table {
		if i == len(table)-2 { // the last two validate in another way
			base = o
		}
		ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d of %d | %s | %s | %d |\n", o.attack, o.tried, o.refused, o.invalid, o.waiting, o.aggregated,
			o.good, goodAgents*attackMinutes/goodEvery, ms(o.median), ms(o.worst), o.rows)
		if o.lies > 0 {
			t.Logf("%s: %d lies, %d providers distrusted", o.attack, o.lies, o.distrusted)
		}
		if o.aggregated > 0 || o.unfounded > 0 || o.good != base.good {
			t.Errorf("%s: %+v", o.attack, o)
		}
		if o.median > base.median*5/4+50*time.Millisecond || o.worst > base.worst+2*time.Second {
			t.Errorf("%s: good pieces were validated in %v, %v at most; undisturbed in %v, %v at most", o.attack, o.median, o.worst, base.median, base.worst)
		}
		// An acknowledged offer of the attacker's takes at most so many rows: its tasks, its piece, what refers to it, its verdict.
		const perOffer, perAgent = 10, 4
		if most := base.rows + (o.tried-o.refused)*perOffer + perAgent*4 + 3*base.good; o.rows > most {
			t.Errorf("%s: %d rows, more than %d", o.attack, o.rows, most)
		}
		if o.messages > base.messages+o.waiting+50 {
			t.Errorf("%s: %d messages wait, undisturbed %d", o.attack, o.messages, base.messages)
		}
	}
	if last := table[len(table)-1]; last.lies == 0 || last.distrusted == 0 {
		t.Errorf("nobody lied: %+v", last)
	}
	t.Log("\n" + b.String())
}
