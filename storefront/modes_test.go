package storefront_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

const never = 1 << 40 // one in so many pieces is checked

// lies answers with another piece of the same size.
func lies(i item) (piece.Link, *capabilities.Failure, error) {
	return lie(i), nil, nil
}

func lie(i item) piece.Link {
	root := i.piece.Root()
	root[0] ^= 1
	other, err := piece.FromRootAndHeight(root, i.piece.Height(), i.piece.Padding())
	if err != nil {
		panic(err)
	}
	return other
}

// council is a market with three providers that are not trusted, and an arbiter.
type council struct {
	*market
	team    crew
	arbiter *computing
}

func newCouncil(t *testing.T, choose storetest.Chooser, check int) *council {
	c := &council{team: crew{}}
	c.market = newMarket(t, choose, func(m *market, d *storefront.Deps) {
		c.arbiter = m.provider("arbiter")
		d.Arbiter = storefront.Provider{Peer: c.arbiter.peer()}
		d.Compute = nil
		for _, name := range []string{"a", "b", "c"} {
			c.team[name] = m.provider(name)
			d.Compute = append(d.Compute, storefront.Provider{Peer: c.team[name].peer()})
		}
		d.Policy.Validation = storefront.Validation{Mode: storefront.Quorum, Check: check, Distrust: 100 * time.Hour}
	})
	return c
}

// distrusted returns who is, by name.
func (c *council) distrusted() (names []string) {
	c.t.Helper()
	list, _, err := standing.List(c.t.Context(), c.stage.Engine, c.clock(), "", 0)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, s := range list {
		for name, p := range c.team {
			if s.Subject == storefront.ProviderSubject(p.signer.DID().String()) && s.Level == standing.Refused {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

func (c *council) by(i item) (names []string) {
	for _, did := range c.computedBy(i) {
		if did == c.arbiter.signer.DID().String() {
			did = "arbiter"
		}
		names = append(names, c.team.name(did))
	}
	slices.Sort(names)
	return names
}

// TestQuorum: what is right goes on if enough agree, what is wrong is refused by the arbiter alone, and whoever was proven wrong is not asked again.
func TestQuorum(t *testing.T) {
	type answers = func(item) (piece.Link, *capabilities.Failure, error)
	for name, tt := range map[string]struct {
		answer     map[string]answers
		check      int
		wrong      bool // the agent offers another piece than the content is
		state      string
		by         int // who computed it, by the chain; 0: the arbiter alone
		arbiter    bool
		distrusted int
	}{
		"all honest":                    {check: never, state: "offered", by: 2},
		"all honest, checked":           {check: 1, state: "offered", by: 3, arbiter: true},
		"one away":                      {map[string]answers{"a": away}, never, false, "offered", 2, false, 0},
		"two away":                      {map[string]answers{"a": away, "b": away}, never, false, "offered", 2, true, 0},
		"all away":                      {map[string]answers{"a": away, "b": away, "c": away}, never, false, "offered", 1, true, 0},
		"two refuse":                    {map[string]answers{"a": refuses, "b": notFound}, never, false, "offered", 2, true, 0},
		"all lie":                       {map[string]answers{"a": lies, "b": lies, "c": lies}, never, false, "offered", 1, true, 2},
		"wrong, all honest":             {check: never, wrong: true, state: "invalid", by: 1, arbiter: true},
		"wrong, all away":               {map[string]answers{"a": away, "b": away, "c": away}, never, true, "invalid", 1, true, 0},
		"wrong, all lie":                {map[string]answers{"a": lies, "b": lies, "c": lies}, 1, true, "invalid", 1, true, 2},
		"wrong, all lie, not looked at": {map[string]answers{"a": lies, "b": lies, "c": lies}, never, true, "offered", 2, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCouncil(t, nil, tt.check)
			for name, answer := range tt.answer {
				c.team[name].answer = answer
			}
			i := c.item()
			if tt.wrong {
				i.piece = lie(i)
			}
			if f := c.send(c.offering(chaintest.Key("agent"), i.cid, i.piece, "")); f != nil {
				t.Fatal(f)
			}
			c.run(time.Minute)
			if s := c.state(i); s.State != tt.state {
				t.Fatalf("%+v", s)
			}
			if got := c.by(i); len(got) != tt.by || slices.Contains(got, "arbiter") != tt.arbiter {
				t.Errorf("computed by %q", got)
			}
			if got := len(c.arbiter.asked) > 0; got != tt.arbiter {
				t.Errorf("the arbiter was asked: %t", got)
			}
			if got := c.distrusted(); len(got) != tt.distrusted {
				t.Errorf("distrusted are %q", got)
			}
			// A quorum's word is no fact about the content: it is not kept as one.
			if kept := c.rows("verdict/") == 1; kept != tt.arbiter {
				t.Errorf("a verdict is kept: %t", kept)
			}
		})
	}
}

// TestLiar: a provider that lies once is not asked again until its time is over, and its lie stops nothing.
func TestLiar(t *testing.T) {
	c := newCouncil(t, nil, never)
	liar := c.team["b"]
	liar.answer = lies
	offers := func(n int) {
		t.Helper()
		for range n {
			i, f := c.good(chaintest.Key("agent"))
			if f != nil {
				t.Fatal(f)
			}
			c.run(time.Second)
			if s := c.state(i); s.State != "offered" {
				t.Fatalf("%+v", s)
			}
			if slices.Contains(c.by(i), "b") && liar.answer != nil {
				t.Fatalf("computed by %q", c.by(i))
			}
		}
	}
	offers(20)
	if got := c.distrusted(); !slices.Equal(got, []string{"b"}) || len(liar.asked) != 1 {
		t.Fatalf("distrusted are %q, b was asked %d times", got, len(liar.asked))
	}
	c.run(101 * time.Hour)
	offers(20)
	if got := c.distrusted(); !slices.Equal(got, []string{"b"}) || len(liar.asked) != 2 {
		t.Fatalf("after its time: distrusted are %q, b was asked %d times", got, len(liar.asked))
	}
	c.run(101 * time.Hour)
	offers(20)
	if len(liar.asked) != 2 {
		t.Errorf("the second time was no longer than the first: b was asked %d times", len(liar.asked))
	}
	liar.answer = nil
	if err := standing.Pardon(t.Context(), c.stage.Engine, c.clock(), storefront.ProviderSubject(liar.signer.DID().String())); err != nil {
		t.Fatal(err)
	}
	offers(20)
	if len(liar.asked) == 2 || len(c.distrusted()) != 0 {
		t.Errorf("pardoned: asked %d times, distrusted are %q", len(liar.asked), c.distrusted())
	}
}

// TestChecksAreDrawn: about one in so many is checked, and which one follows from the pair alone.
func TestChecksAreDrawn(t *testing.T) {
	const offers, one = 300, 10
	c := newCouncil(t, nil, one)
	drawn := map[cid.Cid]bool{}
	for range offers {
		i, f := c.good(chaintest.Key("agent"))
		if f != nil {
			t.Fatal(f)
		}
		c.run(time.Millisecond)
		drawn[i.cid] = slices.Contains(c.by(i), "arbiter")
	}
	if n := len(c.arbiter.asked); n < offers/one/2 || n > offers/one*2 {
		t.Errorf("%d of %d were checked", n, offers)
	}
	again := newCouncil(t, nil, one)
	for range offers {
		i, f := again.good(chaintest.Key("another agent"))
		if f != nil {
			t.Fatal(f)
		}
		again.run(time.Millisecond)
		if drawn[i.cid] != slices.Contains(again.by(i), "arbiter") {
			t.Fatalf("%s was checked: %t, now it is not so", i.cid, drawn[i.cid])
		}
	}
}

// TestLengthGoesFirst: where the content's length says that the piece is wrong, nobody is asked but who can prove it.
func TestLengthGoesFirst(t *testing.T) {
	c := newCouncil(t, nil, never)
	i := c.item()
	huge, err := piece.FromRootAndHeight(i.piece.Root(), 29, 0) // 16 GiB
	if err != nil {
		t.Fatal(err)
	}
	i.piece = huge
	if f := c.send(c.offering(chaintest.Key("agent"), i.cid, i.piece, "")); f != nil {
		t.Fatal(f)
	}
	c.run(time.Second)
	if s := c.state(i); s.State != "invalid" || len(c.arbiter.asked) != 1 {
		t.Errorf("%+v, the arbiter was asked %d times", s, len(c.arbiter.asked))
	}
	for name, p := range c.team {
		if len(p.asked) > 0 {
			t.Errorf("%s was asked", name)
		}
	}
}

// TestQuorumFaults: whatever call of the engine fails, liars are distrusted once, and the piece goes on.
func TestQuorumFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		c := newCouncil(t, choose, never)
		for _, p := range c.team {
			p.answer = lies
		}
		i, f := c.good(chaintest.Key("agent"))
		if f != nil {
			t.Fatal(f)
		}
		c.run(time.Hour)
		if s := c.state(i); s.State != "offered" || !slices.Equal(c.by(i), []string{"arbiter"}) {
			t.Errorf("%+v", s)
		}
		list, _, err := standing.List(t.Context(), c.stage.Engine, c.clock(), "", 0)
		// The third is asked too if the fault comes after the first of the two was found out.
		if err != nil || len(list) < 2 || slices.ContainsFunc(list, func(s standing.Standing) bool { return s.Wrong != 1 }) {
			t.Errorf("%+v, %v", list, err)
		}
		if n := c.rows("dead"); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// node is a storage node of a market.
type node struct {
	m      *market
	signer capabilities.Signer
	answer func(i item) (piece.Link, *capabilities.Failure, error)
	// by signs its receipts, if that is somebody else.
	by    capabilities.Signer
	asked int
}

func (n *node) execute(task capabilities.Task) (*capabilities.Message, error) {
	n.asked++
	var nb pdp.Info
	if err := task.Caveats(&nb); err != nil {
		return nil, err
	}
	if task.Resource() != n.signer.DID().String() || task.Expiration != nil {
		return nil, fmt.Errorf("it is invoked on %s, and expires at %v", task.Resource(), task.Expiration)
	}
	i := n.m.contents[cid.NewCidV1(cid.Raw, nb.Blob)]
	link, failure, err := i.piece, (*capabilities.Failure)(nil), error(nil)
	if n.answer != nil {
		link, failure, err = n.answer(i)
	}
	if err != nil {
		return nil, err
	}
	return conclusion(n.m.t, n.by, task, failure, &pdp.InfoOK{Piece: link}, capabilities.Effects{}), nil
}

// keeping is a market with a storage node that is trusted, and one that is not.
type keeping struct {
	*market
	node, stranger *node
	provider       *computing
}

func newKeeping(t *testing.T, choose storetest.Chooser, v storefront.Validation) *keeping {
	k := new(keeping)
	k.market = newMarket(t, choose, func(m *market, d *storefront.Deps) {
		k.provider = m.provider("compute")
		d.Compute = []storefront.Provider{{Peer: k.provider.peer()}}
		k.node = &node{m: m, signer: chaintest.Key("node"), by: chaintest.Key("node")}
		k.stranger = &node{m: m, signer: chaintest.Key("stranger"), by: chaintest.Key("stranger")}
		d.Nodes = []capabilities.Peer{m.peer(k.node.signer, pdp.InfoAbility, k.node.execute)}
		d.Policy.Validation = v
	})
	return k
}

// offer has the agent offer something that a node keeps: the offer links the node's pdp/accept, which comes along.
func (k *keeping) offer(i item, of capabilities.Signer, blob cid.Cid, along bool) {
	k.t.Helper()
	accept := chaintest.Invoke(of, of.DID(), of.DID().String(), &pdp.Accept{Blob: blob.Hash()}, capabilities.Terms{})
	agent := chaintest.Key("agent")
	task := chaintest.Invoke(agent, k.self.DID(), agent.DID().String(), &filecoin.Offer{Content: i.cid, Piece: i.piece, PDP: accept.Link()}, capabilities.Terms{})
	message := new(capabilities.Message)
	var attached []capabilities.Block
	if along {
		attached = accept.Blocks()
	}
	message.AddInvocation(task.UCAN, attached...)
	for err := storetest.ErrInjected; err != nil; {
		_, err = k.Methods()[filecoin.OfferAbility](k.t.Context(), capabilities.Invocation{Task: task, Message: message})
		if err != nil && !errors.Is(err, storetest.ErrInjected) {
			k.t.Fatal(err)
		}
	}
}

// TestPossession: the word of a node that is trusted is taken for what it keeps, if it is the piece offered; everything else is computed.
func TestPossession(t *testing.T) {
	possession := storefront.Validation{Mode: storefront.Possession, Check: never}
	type answers = func(item) (piece.Link, *capabilities.Failure, error)
	for name, tt := range map[string]struct {
		mode       storefront.Validation
		answer     answers
		change     func(k *keeping, i *item)
		stranger   bool // the offer names a node that is not trusted
		otherBlob  bool // it names other content
		alone      bool // pdp/accept does not come along
		state      string
		vouched    bool
		asked      bool // the node is
		distrusted bool
	}{
		"its word":                {mode: possession, state: "offered", vouched: true, asked: true},
		"its word, checked":       {mode: storefront.Validation{Mode: storefront.Possession, Check: 1}, state: "offered", asked: true},
		"off":                     {mode: storefront.Validation{}, state: "offered"},
		"a stranger's":            {mode: possession, stranger: true, state: "offered"},
		"of other content":        {mode: possession, otherBlob: true, state: "offered"},
		"without pdp/accept":      {mode: possession, alone: true, state: "offered"},
		"it is away":              {mode: possession, answer: away, state: "offered", asked: true},
		"it does not know":        {mode: possession, answer: notFound, state: "offered", asked: true},
		"it lies":                 {mode: possession, answer: lies, state: "offered", asked: true, distrusted: true},
		"somebody signs for it":   {mode: possession, change: func(k *keeping, _ *item) { k.node.by = chaintest.Key("mallory") }, state: "offered", asked: true},
		"it rightly disagrees":    {mode: possession, change: func(_ *keeping, i *item) { i.piece = lie(*i) }, state: "invalid", asked: true},
		"it lies with the agent":  {mode: possession, answer: lies, change: func(_ *keeping, i *item) { i.piece = lie(*i) }, state: "offered", vouched: true, asked: true},
		"and that is checked":     {mode: storefront.Validation{Mode: storefront.Possession, Check: 1}, answer: lies, change: func(_ *keeping, i *item) { i.piece = lie(*i) }, state: "invalid", asked: true, distrusted: true},
		"and the length is wrong": {mode: possession, answer: grows, change: func(_ *keeping, i *item) { i.piece, _, _ = grows(*i) }, state: "invalid", asked: true, distrusted: true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeping(t, nil, tt.mode)
			k.node.answer = tt.answer
			i, other := k.item(), k.item()
			if tt.change != nil {
				tt.change(k, &i)
			}
			by, blob := k.node.signer, i.cid
			if tt.stranger {
				by = k.stranger.signer
			}
			if tt.otherBlob {
				blob = other.cid
			}
			k.offer(i, by, blob, !tt.alone)
			k.run(time.Minute)
			s := k.state(i)
			if s.State != tt.state || (s.Tasks[pdp.InfoAbility] != "") != tt.vouched {
				t.Errorf("%+v", s)
			}
			want := k.provider.signer
			if tt.vouched {
				want = k.node.signer
			}
			if got := k.computedBy(i); len(got) == 0 || got[0] != want.DID().String() {
				t.Errorf("computed by %q", got)
			}
			if (k.node.asked > 0) != tt.asked || k.stranger.asked > 0 || (len(k.provider.asked) > 0) == tt.vouched {
				t.Errorf("the node was asked %d times, the stranger %d, the provider %d", k.node.asked, k.stranger.asked, len(k.provider.asked))
			}
			if kept := k.rows("verdict/") == 1; kept == tt.vouched {
				t.Errorf("a verdict is kept: %t", kept)
			}
			list, _, err := standing.List(t.Context(), k.stage.Engine, k.clock(), "", 0)
			if err != nil {
				t.Fatal(err)
			}
			distrusted := slices.ContainsFunc(list, func(s standing.Standing) bool {
				return s.Subject == storefront.NodeSubject(k.node.signer.DID().String())
			})
			if distrusted != tt.distrusted {
				t.Errorf("distrusted are %+v", list)
			}
			if !tt.distrusted {
				return
			}
			asked := k.node.asked
			next := k.item()
			k.offer(next, k.node.signer, next.cid, true)
			k.run(time.Minute)
			if s := k.state(next); s.State != "offered" || k.node.asked != asked {
				t.Errorf("after it was proven wrong: %+v, asked %d times more", s, k.node.asked-asked)
			}
		})
	}
}

// grows answers with a piece of a size that the content cannot have.
func grows(i item) (piece.Link, *capabilities.Failure, error) {
	link, err := piece.FromRootAndHeight(i.piece.Root(), i.piece.Height()+3, 0)
	return link, nil, err
}

// TestPossessionFaults: whatever call of the engine fails, a lying node is distrusted once, and the piece goes on.
func TestPossessionFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict}
	for name, answer := range map[string]func(item) (piece.Link, *capabilities.Failure, error){"honest": nil, "lies": lies} {
		t.Run(name, func(t *testing.T) {
			storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
				k := newKeeping(t, choose, storefront.Validation{Mode: storefront.Possession, Check: never})
				k.node.answer = answer
				i := k.item()
				k.offer(i, k.node.signer, i.cid, true)
				k.run(time.Hour)
				if s := k.state(i); s.State != "offered" || (s.Tasks[pdp.InfoAbility] != "") != (answer == nil) {
					t.Errorf("%+v", s)
				}
				list, _, err := standing.List(context.Background(), k.stage.Engine, k.clock(), "", 0)
				if err != nil || (len(list) == 1) != (answer != nil) || len(list) == 1 && list[0].Wrong != 1 {
					t.Errorf("%+v, %v", list, err)
				}
				if n := k.rows("dead"); n != 0 {
					t.Errorf("%d dead letters", n)
				}
			})
		})
	}
}

func TestValidationRefused(t *testing.T) {
	for name, spoil := range map[string]func(*storefront.Deps){
		"no such mode":                   func(d *storefront.Deps) { d.Policy.Validation.Mode = "faith" },
		"more than are asked":            func(d *storefront.Deps) { d.Policy.Validation = storefront.Validation{Agree: 4, Ask: 3} },
		"too many":                       func(d *storefront.Deps) { d.Policy.Validation.Ask = storefront.MaxAsked + 1 },
		"a quorum without an arbiter":    func(d *storefront.Deps) { d.Policy.Validation.Mode = storefront.Quorum },
		"an arbiter among the providers": func(d *storefront.Deps) { d.Policy.Validation.Mode, d.Arbiter = storefront.Quorum, d.Compute[0] },
		"a storage node without connection": func(d *storefront.Deps) {
			d.Policy.Validation.Mode, d.Nodes = storefront.Possession, make([]capabilities.Peer, 1)
		},
	} {
		var deps storefront.Deps
		newMarket(t, nil, func(_ *market, d *storefront.Deps) { deps = *d })
		spoil(&deps)
		if _, err := storefront.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
