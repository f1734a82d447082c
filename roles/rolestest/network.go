// Package rolestest runs whole networks of roles in one goroutine, on the engine that enginetest picks, with a clock that only moves when nothing else can: for tests and
// for simulation. A run is a pure function of its seed: which message is handled next, what is lost, repeated or struck by a fault, when a role
// crashes. A failure replays from its seed.
//
// Around the roles is a small world that behaves like the real one as far as roles can see: content in custody, an offer board, storage providers that
// fetch and check what they are offered, a chain. The devnet does the same over HTTP.
package rolestest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/claims"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/wire"
)

// Options describe a network.
type Options struct {
	// Seed decides everything that may vary.
	Seed uint64
	// Storefronts is how many there are; 0: one.
	Storefronts int
	// Ladder of deal sizes; nil: 1 MiB to 1 GiB.
	Ladder aggregator.Ladder
	// Budget of a piece at the aggregator; 0: an hour.
	Budget time.Duration
	// Chaos is the probability that a step is struck: a message lost before or after it arrived, repeated, an engine fault, a crash.
	Chaos float64
	// Policy of the storefronts; the largest piece follows from the ladder.
	Policy storefront.Policy
	// Untrusted is how many compute providers there are that storefronts do not trust: they validate by quorum then, and "compute" is the arbiter. They
	// are called "compute2" and so on.
	Untrusted int
	// Lie says whether an untrusted provider lies about a task. Its answers have to be asked for: it pushes nothing.
	Lie func(provider string, task cid.Cid) bool
	// Pace is the time that handling a message takes on the clock, Read that of reading content of a size in bytes; nil: none. With these a network is as
	// fast as one machine that does one thing at a time.
	Pace time.Duration
	Read func(size int) time.Duration
	// Log, if set, gets what the roles log.
	Log *slog.Logger
	// Count, if set, is told of each call that a role makes to its engine. The calls of an invocation have its ability as their step, those of a
	// message its queue, and those of a test none.
	Count func(role string, u storetest.Used)
	// Prompt: whoever invokes waits for work that the other role accepted, as over HTTP, where that may take 20 s. Without it the answer is always
	// "not yet".
	Prompt bool
}

// Network is a set of roles and the world around them.
type Network struct {
	Options
	Rand  *rand.Rand
	World *World
	// Roles by name: "storefront", "storefront2", "aggregator", "dealer", "dealtracker", "compute".
	Roles map[string]*Role
	names []string
	now   time.Time
	t     testing.TB
	// Accepted remembers the receipts that were seen: none may ever change.
	receipts map[cid.Cid]cid.Cid
	// cut are the pairs of roles that do not reach each other.
	cut   map[[2]string]bool
	Steps int
}

// Role is one role of a network, which may crash and come back.
type Role struct {
	Name   string
	Signer capabilities.Signer
	Engine enginetest.Engine
	Server *roles.Server
	// Storefront is the service of a storefront, without the parts that are joined to it.
	Storefront *storefront.Service
	// Down: the role answers nobody and handles nothing.
	Down      bool
	consumers map[string]*store.Consumer
	n         *Network
	faults    storetest.Chooser
}

// TestKey returns a key for tests: everybody knows it.
func TestKey(seed byte) capabilities.Signer {
	s, err := wire.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)))
	if err != nil {
		panic(err)
	}
	return s
}

// New starts a network.
func New(t testing.TB, o Options) *Network {
	t.Helper()
	if o.Storefronts == 0 {
		o.Storefronts = 1
	}
	if o.Ladder == nil {
		o.Ladder = aggregator.LadderBetween(1<<20, 1<<30)
	}
	if o.Budget == 0 {
		o.Budget = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{
		Options: o, t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Roles: map[string]*Role{}, receipts: map[cid.Cid]cid.Cid{},
		Rand: rand.New(rand.NewPCG(o.Seed, 0x5eed)),
	}
	n.World = &World{n: n, contents: map[string][]byte{}, Refuse: map[piece.Link]bool{}}
	for i := range o.Storefronts {
		name := "storefront"
		if i > 0 {
			name = fmt.Sprintf("storefront%d", i+1)
		}
		n.add(name, TestKey(byte(100+i)))
	}
	for i, name := range []string{"aggregator", "dealer", "dealtracker", "compute"} {
		n.add(name, TestKey(byte(3+i)))
	}
	for i := range o.Untrusted {
		n.add(fmt.Sprintf("compute%d", i+2), TestKey(byte(50+i)))
	}
	for _, name := range n.names {
		n.Roles[name].boot()
	}
	return n
}

func (n *Network) add(name string, signer capabilities.Signer) {
	n.names = append(n.names, name)
	n.Roles[name] = &Role{Name: name, Signer: signer, n: n, Engine: enginetest.New(n.t, enginetest.Options{
		Now: n.Now, Rand: rand.New(rand.NewPCG(n.Seed, uint64(len(n.names)))), Seed: n.Seed, Late: n.Chaos > 0})}
}

// Now is the network's clock.
func (n *Network) Now() time.Time { return n.now }

// Advance moves the clock.
func (n *Network) Advance(d time.Duration) { n.now = n.now.Add(d) }

func (n *Network) keys() capabilities.Keys { return roles.NewKeys(roles.KeysConfig{Now: n.Now}) }

// boot builds the role around its engine, as a process does at its start.
func (r *Role) boot() {
	r.n.t.Helper()
	var driver store.Driver = storetest.NewFaulty(r.Engine, func(c storetest.Call) storetest.Fault {
		if r.faults == nil {
			return storetest.None
		}
		return r.faults(c)
	})
	driver = &storetest.Counting{Driver: driver, Count: func(u storetest.Used) {
		if r.n.Count != nil {
			r.n.Count(r.Name, u)
		}
	}}
	changes := new(roles.Changes)
	waker := store.NewWaker(changes.Watch(driver))
	revocations := roles.NewRevocations(waker, r.n.keys(), r.n.Now)
	service, err := r.n.service(r, waker, revocations)
	if err != nil {
		r.n.t.Fatalf("building %s: %v", r.Name, err)
	}
	patience, after := time.Duration(0), func(time.Duration) <-chan time.Time { return nil }
	if r.n.Prompt {
		patience, after = promptly, r.promptly()
	}
	r.Server = roles.NewServer(roles.Server{
		Name: r.Name, Signer: r.Signer, Service: service, Changes: changes, Patience: patience, After: after, Log: r.n.Log.With("role", r.Name),
		Authority: &roles.Authority{Self: r.Signer.DID(), Keys: r.n.keys(), Now: r.n.Now, Revoked: revocations.Revoked},
	})
	workers := &roles.Workers{Role: r.Name, Driver: waker, Handlers: service.Handlers(), Now: r.n.Now, Rand: r.n.Rand.Float64, Log: r.n.Log}
	if r.consumers, err = workers.Consumers(); err != nil {
		r.n.t.Fatalf("building %s: %v", r.Name, err)
	}
	if err := service.Start(context.Background()); err != nil && r.faults == nil {
		r.n.t.Fatalf("starting %s: %v", r.Name, err)
	}
	r.Down = false
}

const promptly = time.Hour

// promptly returns a clock for those who wait for an answer: instead of letting time pass it has contents computed, and ends their patience when there
// is nothing left to do.
func (r *Role) promptly() func(time.Duration) <-chan time.Time {
	over := make(chan time.Time, 1)
	return func(d time.Duration) <-chan time.Time {
		if d == promptly {
			over = make(chan time.Time, 1)
			return over
		}
		worked := make(chan time.Time, 1)
		if r.handle(compute.QueueName) {
			worked <- r.n.now
		} else {
			over <- r.n.now
		}
		return worked
	}
}

// Crash ends the role as kill -9 does: what was committed is there when it boots again.
func (r *Role) Crash() {
	r.Engine = r.Engine.Reopen()
	r.Down = true
}

func (n *Network) service(r *Role, driver store.Driver, revocations *roles.Revocations) (roles.Service, error) {
	log := n.Log.With("role", r.Name)
	switch {
	case strings.HasPrefix(r.Name, "storefront"):
		arbiter := storefront.Provider{Peer: n.peer("compute", r, computecap.PieceCIDAbility)}
		providers, policy := []storefront.Provider{arbiter}, n.Policy
		policy.MaxPiece = n.Ladder.MaxPiece()
		if n.Untrusted > 0 {
			providers, policy.Validation.Mode = nil, storefront.Quorum
			for i := range n.Untrusted {
				providers = append(providers, storefront.Provider{Peer: n.peer(fmt.Sprintf("compute%d", i+2), r, computecap.PieceCIDAbility)})
			}
		}
		kept, err := claims.New(claims.Deps{Signer: r.Signer, Store: driver, Keys: n.keys(), Revoked: revocations.Revoked, Now: n.Now, Log: log})
		if err != nil {
			return nil, err
		}
		s, err := storefront.New(storefront.Deps{
			Signer: r.Signer, Store: driver, Keys: n.keys(), Aggregator: n.peer("aggregator", r, piececap.OfferAbility),
			Compute: providers, Arbiter: arbiter, Tracker: n.peer("dealtracker", r, ""), Custody: n.World, Claims: kept, Now: n.Now, Log: log,
			Policy: policy,
		})
		if err != nil {
			return nil, err
		}
		r.Storefront = s
		return roles.Join(s, kept)
	case r.Name == "aggregator":
		return aggregator.New(aggregator.Deps{
			Signer: r.Signer, Store: driver, Keys: n.keys(), Dealer: n.peer("dealer", r, aggregatecap.OfferAbility),
			Storefronts: func(did string) (aggregator.Storefront, bool) {
				return aggregator.Storefront{}, n.byDID(did, "storefront") != nil
			},
			Conn: n.conn(r), Ladder: n.Ladder, Timing: aggregator.Timing{Budget: n.Budget, Tick: n.Budget / 6}, Now: n.Now, Log: log,
		})
	case r.Name == "dealer":
		return dealer.New(dealer.Deps{
			Signer: r.Signer, Store: driver, Keys: n.keys(), Tracker: n.peer("dealtracker", r, ""),
			Aggregators: func(did string) bool { return n.byDID(did, "aggregator") != nil },
			Conn:        n.conn(r), Brokers: []dealer.Broker{n.World}, DealSizes: n.Ladder, Now: n.Now, Log: log,
		})
	case r.Name == "dealtracker":
		return dealtracker.New(dealtracker.Deps{
			Signer: r.Signer, Store: driver, Source: n.World, Timing: dealtracker.Timing{Poll: 10 * time.Minute}, Parallel: 1, Now: n.Now, Log: log,
		})
	}
	return compute.New(compute.Deps{Signer: r.Signer, Store: driver, Keys: n.keys(), Fetcher: n.World, Conn: n.conn(r), Now: n.Now, Log: log})
}

func (n *Network) byDID(did, prefix string) *Role {
	for _, name := range n.names {
		if r := n.Roles[name]; strings.HasPrefix(name, prefix) && r.Signer.DID().String() == did {
			return r
		}
	}
	return nil
}

func (n *Network) conn(from *Role) func(string) (capabilities.Conn, bool) {
	return func(did string) (capabilities.Conn, bool) {
		r := n.byDID(did, "")
		if r == nil || n.Lie != nil && from.untrusted() {
			return nil, false
		}
		return &wireTo{n, from, r}, true
	}
}

func (n *Network) peer(name string, of *Role, can string) capabilities.Peer {
	r := n.Roles[name]
	p := capabilities.Peer{DID: r.Signer.DID(), Conn: &wireTo{n, of, r}}
	if can != "" {
		d, err := capabilities.Delegate(r.Signer, of.Signer.DID(), []capabilities.Grant{{Can: can, With: p.DID.String()}}, capabilities.Terms{})
		if err != nil {
			n.t.Fatal(err)
		}
		p.Proofs = []capabilities.Delegation{d}
	}
	return p
}

// wireTo is the network between two roles: it loses and repeats.
type wireTo struct {
	n        *Network
	from, to *Role
}

var errLost = errors.New("connection lost")

func (r *Role) untrusted() bool { return strings.HasPrefix(r.Name, "compute") && r.Name != "compute" }

// lie puts a lie into the place of what a compute provider answered.
func (r *Role) lie(reply *capabilities.Message, m *capabilities.Message) (*capabilities.Message, error) {
	task := capabilities.TaskOf(m, m.Invocations()[0])
	var computed computecap.PieceCIDOK
	truth := reply.Receipt(task.Link())
	if truth == nil || capabilities.ReadResult(truth.Out, &computed) != nil || !r.n.Lie(r.Name, task.Link()) {
		return reply, nil
	}
	root := computed.Piece.Root()
	root[0] ^= 1
	link, err := piece.FromRootAndHeight(root, computed.Piece.Height(), computed.Piece.Padding())
	if err != nil {
		return nil, err
	}
	receipt, err := capabilities.Issue(r.Signer, task.Link(), &computecap.PieceCIDOK{Piece: link}, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return capabilities.Conclusion(receipt, task, capabilities.Effects{}), nil
}

func (w *wireTo) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	if w.to.Down || w.n.cut[[2]string{w.from.Name, w.to.Name}] || w.n.struck() {
		return nil, errLost
	}
	local := roles.Local{Server: w.to.Server}
	ctx = storetest.WithStep(ctx, m.Invocations()[0].Capabilities[0].Can)
	if w.n.struck() { // delivered twice; the sender sees the second answer
		if _, err := local.Execute(ctx, m); err != nil {
			return nil, err
		}
	}
	reply, err := local.Execute(ctx, m)
	if w.n.struck() {
		return nil, errLost
	}
	if err == nil && w.n.Lie != nil && w.to.untrusted() {
		return w.to.lie(reply, m)
	}
	return reply, err
}

func (w *wireTo) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	if w.to.Down || w.n.cut[[2]string{w.from.Name, w.to.Name}] || w.n.struck() {
		return nil, errLost
	}
	return roles.Local{Server: w.to.Server}.Receipt(storetest.WithStep(ctx, "receipt"), task)
}

func (n *Network) struck() bool { return n.Chaos > 0 && n.Rand.Float64() < n.Chaos }

// Cut takes away connections between pairs of roles, chosen by chance, in one direction or both. Heal brings all back.
func (n *Network) Cut(pairs int) {
	if n.cut == nil {
		n.cut = map[[2]string]bool{}
	}
	for range pairs {
		a, b := n.names[n.Rand.IntN(len(n.names))], n.names[n.Rand.IntN(len(n.names))]
		n.cut[[2]string{a, b}] = true
		if n.Rand.IntN(2) == 0 {
			n.cut[[2]string{b, a}] = true
		}
	}
}

// Heal ends every cut.
func (n *Network) Heal() { n.cut = nil }

// Conn reaches a role as an agent does: nothing is lost on the way.
func (n *Network) Conn(name string) capabilities.Conn {
	return roles.Local{Server: n.Roles[name].Server}
}

// Step handles one message of one role, chosen by chance, and reports whether there was any.
func (n *Network) Step() bool {
	type choice struct {
		role  *Role
		queue string
	}
	var choices []choice
	for _, name := range n.names {
		r := n.Roles[name]
		if r.Down {
			continue
		}
		for _, q := range r.Engine.Receivable() {
			choices = append(choices, choice{r, q})
		}
	}
	if len(choices) == 0 {
		return false
	}
	n.Steps++
	n.Advance(n.Pace)
	c := choices[n.Rand.IntN(len(choices))]
	killed := false
	if n.struck() {
		at, fault := 1+n.Rand.IntN(20), []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict}[n.Rand.IntN(3)]
		// Where a call is several requests, a process may be killed between two of them.
		if killed = at%2 == 0 && c.role.Engine.Interrupt(at); !killed {
			c.role.faults = storetest.Nth(at, fault)
		}
	}
	c.role.handle(c.queue)
	c.role.faults = nil
	if killed {
		c.role.Crash()
	}
	if n.Chaos > 0 && n.Rand.Float64() < n.Chaos/4 {
		r := n.Roles[n.names[n.Rand.IntN(len(n.names))]]
		if !r.Down {
			r.Crash()
		}
	}
	return true
}

// handle handles one message of a queue and reports whether there was any.
func (r *Role) handle(queue string) bool {
	n := r.n
	consumer := r.consumers[queue]
	if consumer == nil {
		n.t.Fatalf("seed %d: %s has a message in queue %q that nobody handles", n.Seed, r.Name, queue)
	}
	worked, err := consumer.Step(storetest.WithStep(context.Background(), queue))
	if err != nil && n.Chaos == 0 {
		n.t.Fatalf("seed %d: %s, queue %s: %v", n.Seed, r.Name, queue, err)
	}
	return worked
}

// reboot brings back roles that are down.
func (n *Network) reboot() {
	for _, name := range n.names {
		if r := n.Roles[name]; r.Down {
			r.boot()
		}
	}
}

// Run takes steps, and moves the clock where nothing is left to do, until done says so or limit has passed on the clock. It reports whether
// done said so.
func (n *Network) Run(limit time.Duration, done func() bool) bool {
	end := n.now.Add(limit)
	for steps := 0; !done(); steps++ {
		if steps%50 == 49 {
			n.reboot()
		}
		if n.Step() {
			continue
		}
		n.reboot()
		var next time.Time
		for _, name := range n.names {
			if at, ok := n.Roles[name].Engine.NextEvent(); ok && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if next.IsZero() || next.After(end) {
			n.now = end
			return done()
		}
		if next.After(n.now) {
			n.now = next
		}
	}
	return true
}

// World is what lies around the roles: content, an offer board with providers, a chain.
type World struct {
	n        *Network
	contents map[string][]byte // by multihash
	deals    []deal
	// Refuse names aggregates that no provider takes.
	Refuse map[piece.Link]bool
	// Offline makes custody and its readers fail.
	Offline bool
	// Published counts offers by name.
	Published map[string]int
}

type deal struct {
	proposal             dealtracker.Proposal
	published, activated int64
}

// Epoch is the time of one epoch in the network's world.
const Epoch = 30 * time.Second

func (w *World) epoch() int64 { return int64(w.n.now.Sub(time.Unix(genesis, 0)) / Epoch) }

const genesis = 1598306400

// Put puts content into custody and returns its CID.
func (w *World) Put(b []byte) cid.Cid {
	sum := sha256.Sum256(b)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		w.n.t.Fatal(err)
	}
	w.contents[string(hash)] = b
	return cid.NewCidV1(cid.Raw, hash)
}

// Stat implements storefront.Custody.
func (w *World) Stat(_ context.Context, c cid.Cid) (storefront.Content, error) {
	if w.Offline {
		return storefront.Content{}, errors.New("custody is away")
	}
	b, ok := w.contents[string(c.Hash())]
	if !ok {
		return storefront.Content{}, storefront.ErrNoContent
	}
	return storefront.Content{CID: c, Length: int64(len(b)), URL: "world:" + c.String()}, nil
}

// Fetch implements compute.Fetcher.
func (w *World) Fetch(_ context.Context, url string) (io.ReadCloser, int64, error) {
	if w.Offline || w.n.struck() {
		return nil, 0, errLost
	}
	c, err := cid.Parse(strings.TrimPrefix(url, "world:"))
	if err != nil {
		return nil, 0, err
	}
	b, ok := w.contents[string(c.Hash())]
	if !ok {
		return nil, 0, compute.ErrNoContent
	}
	if w.n.Read != nil {
		w.n.Advance(w.n.Read(len(b)))
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// Name implements dealer.Broker and dealtracker.Source.
func (w *World) Name() string { return "world" }

// Publish implements dealer.Broker: a provider rebuilds the aggregate and makes one deal for it, which is active a few epochs later.
func (w *World) Publish(_ context.Context, o dealer.Offer) (string, error) {
	if w.n.struck() {
		return "", errLost
	}
	name := o.Aggregate.String()
	if w.Published == nil {
		w.Published = map[string]int{}
	}
	w.Published[name]++
	built, err := segment.Build(o.Aggregate.PaddedSize(), o.Pieces)
	if err != nil || built.Link() != o.Aggregate {
		w.n.t.Fatalf("seed %d: the dealer published an aggregate that its pieces do not give: %v", w.n.Seed, err)
	}
	if w.Refuse[o.Aggregate] || slices.ContainsFunc(w.deals, func(d deal) bool { return d.proposal.Piece == o.Aggregate }) {
		return name, nil
	}
	now := w.epoch()
	w.deals = append(w.deals, deal{dealtracker.Proposal{
		ID: uint64(1000 + len(w.deals)), Piece: o.Aggregate, Provider: "f01000", Client: "f01001", StartEpoch: now + 2880, EndEpoch: now + 1_000_000,
	}, now + 2, now + 10})
	if w.n.struck() {
		return "", errLost
	}
	return name, nil
}

// Head implements dealtracker.Source.
func (w *World) Head(context.Context) (dealtracker.Head, error) {
	if w.n.struck() {
		return dealtracker.Head{}, errLost
	}
	return dealtracker.Head{Epoch: w.epoch(), Finalized: w.epoch() - 5}, nil
}

// Events implements dealtracker.Source.
func (w *World) Events(_ context.Context, from, to int64) ([]dealtracker.Event, error) {
	if w.n.struck() {
		return nil, errLost
	}
	var events []dealtracker.Event
	for _, d := range w.deals {
		if d.published >= from && d.published <= to {
			events = append(events, dealtracker.Event{ID: fmt.Sprint("p", d.proposal.ID), Kind: dealtracker.Published, Epoch: d.published, Deal: d.proposal})
		}
		if d.activated >= from && d.activated <= to {
			events = append(events, dealtracker.Event{ID: fmt.Sprint("a", d.proposal.ID), Kind: dealtracker.Activated, Epoch: d.activated, Deal: d.proposal})
		}
	}
	slices.SortFunc(events, func(a, b dealtracker.Event) int { return int(a.Epoch - b.Epoch) })
	return events, nil
}

// EpochTime implements dealtracker.Source.
func (w *World) EpochTime(epoch int64) int64 { return genesis + epoch*int64(Epoch/time.Second) }
