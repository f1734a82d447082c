package devnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/storacha/w3filecoin/piece"
)

// never is what an epoch is that will not come, as in Filecoin's own state.
const never = -1

// Defaults of [ChainConfig].
const (
	DefaultEpoch         = 30 * time.Second
	DefaultPublishDelay  = 1
	DefaultActivateDelay = 3
	DefaultLifetime      = 518400 // epochs: 180 days of 30 seconds, the shortest that Filecoin allows
	DefaultFinality      = 900

	maxRange   = 2880  // epochs that one query of events may span, as in Lotus
	maxResults = 10000 // events that one query returns, as in Lotus
)

// ChainConfig says how a simulated chain runs. The zero value runs in memory, at the speed of Filecoin's main network.
type ChainConfig struct {
	// Epoch is the time from one epoch to the next, a whole number of milliseconds: 200 ms in a demonstration.
	Epoch time.Duration
	// PublishDelay is how many epochs after Publish the message is included, ActivateDelay how many more until the deal is
	// active, Lifetime how many from then to the deal's end.
	PublishDelay  int64
	ActivateDelay int64
	Lifetime      int64
	// Finality is how many epochs below the head the chain is final.
	Finality int64
	// Genesis is the time of epoch 0 of a new chain, in Unix seconds; 0 means now.
	Genesis int64
	// ShowReverted lists events that a reorganisation took back as reverted when a range is queried, as Lotus once did. Without
	// it, and in Lotus today, they are simply absent.
	ShowReverted bool
	// Path is a JSON file that keeps the chain over restarts; the epochs in between have then passed as well. Empty means that
	// the chain ends with the process. One process uses a file at a time.
	Path string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Proposal is what a provider publishes.
type Proposal struct {
	Piece    piece.Link // only root and padded size reach the chain
	Provider string     // id address, "f01000"
	Client   string     // id address, "f01001"
	// NeverActivate makes the deal vanish at its start epoch.
	NeverActivate bool
}

// Deal is a deal of the simulated market. An epoch of -1 is one that will not come.
type Deal struct {
	ID         uint64     `json:"id"`
	Piece      piece.Link `json:"piece"` // padding 0
	Provider   string     `json:"provider"`
	Client     string     `json:"client"`
	StartEpoch int64      `json:"startEpoch"` // the deal must be active by then
	EndEpoch   int64      `json:"endEpoch"`
	Published  int64      `json:"published"`  // epoch of the message that publishes it
	Activated  int64      `json:"activated"`  // epoch at which it becomes active
	Terminated int64      `json:"terminated"` // epoch at which it is cut short
}

// reorg is one reorganisation: the tipsets of the epochs From..To were replaced.
type reorg struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// chainState is what the file holds.
type chainState struct {
	Genesis int64  `json:"genesis"` // Unix seconds
	Epoch   int64  `json:"epochMilliseconds"`
	NextID  uint64 `json:"nextDeal"`
	// Deals in order of id.
	Deals []Deal `json:"deals"`
	// Reorgs and Reverted record the reorganisations and the events that they took back.
	Reorgs   []reorg `json:"reorgs,omitempty"`
	Reverted []event `json:"reverted,omitempty"`
}

// Chain is a SIMULATED chain with a market actor and nothing else. Epochs pass with the clock; nothing runs in the background.
// It is safe for concurrent use.
type Chain struct {
	cfg ChainConfig

	mu     sync.Mutex
	state  chainState
	lag    int64     // epochs that the node is behind
	forget int64     // the node's index begins here
	fails  []Failure // answers to the next calls
}

// OpenChain returns the chain of the file that cfg names, or a new one whose epoch 0 is at its genesis.
func OpenChain(cfg ChainConfig) (*Chain, error) {
	setDefault(&cfg.Epoch, DefaultEpoch)
	setDefault(&cfg.PublishDelay, DefaultPublishDelay)
	setDefault(&cfg.ActivateDelay, DefaultActivateDelay)
	setDefault(&cfg.Lifetime, DefaultLifetime)
	setDefault(&cfg.Finality, DefaultFinality)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Epoch < time.Millisecond || cfg.Epoch%time.Millisecond != 0 {
		return nil, fmt.Errorf("devnet: epochs of %s: not a whole number of milliseconds", cfg.Epoch)
	}
	if cfg.Genesis < 0 || cfg.Genesis > cfg.Now().Unix() {
		return nil, fmt.Errorf("devnet: genesis %d is not in the past", cfg.Genesis)
	}
	if cfg.PublishDelay < 1 || cfg.ActivateDelay < 1 || cfg.Lifetime < 1 || cfg.Finality < 1 {
		return nil, errors.New("devnet: delays, lifetime and finality are at least one epoch")
	}
	c := &Chain{cfg: cfg}
	fresh := chainState{Genesis: cmp.Or(cfg.Genesis, cfg.Now().Unix()), Epoch: cfg.Epoch.Milliseconds(), NextID: 1}
	if cfg.Path == "" {
		c.state = fresh
		return c, nil
	}
	err := readJSON(cfg.Path, &c.state)
	if errors.Is(err, fs.ErrNotExist) {
		c.state = fresh
		err = c.save()
	}
	if err != nil {
		return nil, fmt.Errorf("devnet: opening chain: %w", err)
	}
	if c.state.Genesis <= 0 || c.state.NextID == 0 {
		return nil, fmt.Errorf("devnet: %s holds no chain", cfg.Path)
	}
	if cfg.Genesis != 0 && c.state.Genesis != cfg.Genesis {
		return nil, fmt.Errorf("devnet: chain in %s began at %d, not at %d", cfg.Path, c.state.Genesis, cfg.Genesis)
	}
	if c.state.Epoch != fresh.Epoch {
		return nil, fmt.Errorf("devnet: chain in %s has epochs of %d ms, not of %d ms", cfg.Path, c.state.Epoch, fresh.Epoch)
	}
	return c, nil
}

func setDefault[T ~int | ~int64](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Genesis returns the time of epoch 0, a whole number of seconds.
func (c *Chain) Genesis() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(c.state.Genesis, 0).UTC()
}

// EpochDuration returns the time from one epoch to the next.
func (c *Chain) EpochDuration() time.Duration { return c.cfg.Epoch }

// Finality returns how many epochs below the head the chain is final.
func (c *Chain) Finality() int64 { return c.cfg.Finality }

// Epoch returns the epoch of the chain's head.
func (c *Chain) Epoch() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head()
}

// head is the true head, which a lagging node does not know yet. The lock is held.
func (c *Chain) head() int64 {
	passed := c.cfg.Now().Sub(time.Unix(c.state.Genesis, 0))
	return max(0, int64(passed/c.cfg.Epoch))
}

// Deals returns all deals that were ever published and not taken back, in order of id.
func (c *Chain) Deals() []Deal {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.state.Deals)
}

// Find returns the deal that a provider has, or is about to have, for a piece: same root and same padded size.
func (c *Chain) Find(_ context.Context, provider string, p piece.Link) (Deal, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.find(provider, p)
	return d, ok, nil
}

func (c *Chain) find(provider string, p piece.Link) (Deal, bool) {
	head := c.head()
	for _, d := range slices.Backward(c.state.Deals) {
		if d.Provider == provider && d.Piece.Root() == p.Root() && d.Piece.Height() == p.Height() && !d.gone(head) {
			return d, true
		}
	}
	return Deal{}, false
}

// Publish makes a deal and returns once it is durable. A provider that already has a deal for the piece gets that one, so Publish
// may be repeated.
func (c *Chain) Publish(_ context.Context, p Proposal) (Deal, error) {
	if !p.Piece.Defined() {
		return Deal{}, errors.New("devnet: publishing a deal: no piece")
	}
	for _, address := range []string{p.Provider, p.Client} {
		if _, err := actorID(address); err != nil {
			return Deal{}, fmt.Errorf("devnet: publishing a deal: %w", err)
		}
	}
	link, err := piece.FromRootAndHeight(p.Piece.Root(), p.Piece.Height(), 0)
	if err != nil {
		return Deal{}, fmt.Errorf("devnet: publishing a deal: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.find(p.Provider, link); ok {
		return d, nil
	}
	published := c.head() + c.cfg.PublishDelay
	d := Deal{
		ID: c.state.NextID, Piece: link, Provider: p.Provider, Client: p.Client,
		Published: published, Activated: published + c.cfg.ActivateDelay, Terminated: never,
		// Twice the time that it takes: a deal survives being moved by reorganisations.
		StartEpoch: published + 2*c.cfg.ActivateDelay + c.cfg.Finality,
	}
	d.EndEpoch = d.StartEpoch + c.cfg.Lifetime
	if p.NeverActivate {
		d.Activated = never
	}
	err = c.change(func(s *chainState) {
		s.NextID++
		s.Deals = append(s.Deals, d)
	})
	if err != nil {
		return Deal{}, fmt.Errorf("devnet: publishing a deal: %w", err)
	}
	return d, nil
}

// Terminate cuts a deal short in the next epoch, as if its sector had been lost.
func (c *Chain) Terminate(id uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	head := c.head()
	i := slices.IndexFunc(c.state.Deals, func(d Deal) bool { return d.ID == id && d.active(head) })
	if i < 0 {
		return fmt.Errorf("devnet: terminating deal %d: no such deal is active", id)
	}
	return c.change(func(s *chainState) { s.Deals[i].Terminated = head + 1 })
}

// Reorg replaces the newest depth tipsets by others. Messages that were in them are included again in the next epoch, or are lost
// if drop is set: a deal published in them then never was, one activated in them never becomes active. It refuses to go below what
// is final.
func (c *Chain) Reorg(depth int64, drop bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	head := c.head()
	if depth < 1 || depth > c.cfg.Finality || depth > head {
		return fmt.Errorf("devnet: reorganising %d epochs of %d: final below %d", depth, head, head-c.cfg.Finality)
	}
	from := head - depth + 1
	return c.change(func(s *chainState) {
		for _, e := range c.events(from, head-1) {
			e.Reverted = true
			s.Reverted = append(s.Reverted, e)
		}
		s.Reorgs = append(s.Reorgs, reorg{From: from, To: head})
		for i := range s.Deals {
			s.Deals[i].redo(from, head, drop)
		}
		s.Deals = slices.DeleteFunc(s.Deals, func(d Deal) bool { return d.Published == never })
	})
}

// redo takes back what happened to a deal in the epochs from..head and lets it happen again right after, or not at all.
func (d *Deal) redo(from, head int64, drop bool) {
	undone := func(epoch int64) bool { return epoch >= from && epoch <= head }
	switch {
	case undone(d.Published) && drop:
		d.Published = never
	case undone(d.Published):
		shift := head + 1 - d.Published
		d.Published += shift
		if d.Activated != never {
			d.Activated += shift
		}
		d.Terminated = never
	case undone(d.Activated) && drop:
		d.Activated, d.Terminated = never, never
	case undone(d.Activated):
		d.Activated, d.Terminated = head+1, never
	case undone(d.Terminated) && drop:
		d.Terminated = never
	case undone(d.Terminated):
		d.Terminated = head + 1
	}
}

// change applies a change to the state and makes it durable, or does neither. The lock is held.
func (c *Chain) change(apply func(*chainState)) error {
	before := c.state
	c.state.Deals = slices.Clone(before.Deals)
	c.state.Reorgs = slices.Clone(before.Reorgs)
	c.state.Reverted = slices.Clone(before.Reverted)
	apply(&c.state)
	if err := c.save(); err != nil {
		c.state = before
		return err
	}
	return nil
}

func (c *Chain) save() error {
	if c.cfg.Path == "" {
		return nil
	}
	return writeJSON(c.cfg.Path, &c.state)
}

// A Failure is how the node answers a call that fails.
type Failure struct {
	// Status is the HTTP status; 200 with any Body is possible too.
	Status int
	// RetryAfter is sent in whole seconds, if it is not zero.
	RetryAfter time.Duration
	Body       string
}

// FailNext makes the next n JSON-RPC calls fail with f, after those that were to fail already.
func (c *Chain) FailNext(n int, f Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		c.fails = append(c.fails, f)
	}
}

// SetLag makes the node answer as it would have answered the given number of epochs ago, as one that has fallen behind does.
func (c *Chain) SetLag(epochs int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag = max(0, epochs)
}

// ForgetBefore makes the node's index of events begin at an epoch. Queries of what was before are answered with nothing, without
// an error, as Lotus does. The chain itself, receipts included, remains.
func (c *Chain) ForgetBefore(epoch int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget = epoch
}

// completed returns the epoch at which a deal ends as agreed.
func (d *Deal) completed() int64 {
	if d.Activated == never || d.Terminated != never {
		return never
	}
	return d.EndEpoch
}

// gone reports whether a deal has left the market's state by the given epoch.
func (d *Deal) gone(epoch int64) bool {
	switch {
	case d.Activated == never:
		return epoch > d.StartEpoch
	case d.Terminated != never:
		return epoch > d.Terminated
	default:
		return epoch > d.EndEpoch
	}
}

// active reports whether a deal is active, and still will be in the next epoch.
func (d *Deal) active(epoch int64) bool {
	return d.Activated != never && d.Activated <= epoch && d.Terminated == never && epoch < d.EndEpoch
}

// version says how often the tipset of an epoch was replaced.
func (s *chainState) version(epoch int64) int64 {
	var n int64
	for _, r := range s.Reorgs {
		if r.From <= epoch {
			n++
		}
	}
	return n
}

// eventKind is the type of an event of the market actor (FIP-0083).
type eventKind string

const (
	published  eventKind = "deal-published"
	activated  eventKind = "deal-activated"
	terminated eventKind = "deal-terminated"
	completed  eventKind = "deal-completed"
)

var eventKinds = []eventKind{published, activated, terminated, completed}

// event is an event of the market actor.
type event struct {
	Kind     eventKind `json:"kind"`
	Deal     uint64    `json:"deal"`
	Client   string    `json:"client"`
	Provider string    `json:"provider"`
	Epoch    int64     `json:"epoch"`
	Version  int64     `json:"version"` // of the tipset
	Reverted bool      `json:"reverted,omitempty"`
}

// events returns the events of the canonical chain in the epochs from..to, in order.
func (c *Chain) events(from, to int64) []event {
	var found []event
	for _, d := range c.state.Deals {
		for i, epoch := range []int64{d.Published, d.Activated, d.Terminated, d.completed()} {
			if epoch == never || epoch < from || epoch > to {
				continue
			}
			found = append(found, event{
				Kind: eventKinds[i], Deal: d.ID, Client: d.Client, Provider: d.Provider, Epoch: epoch, Version: c.state.version(epoch),
			})
		}
	}
	slices.SortStableFunc(found, func(a, b event) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return found
}

// eventsOf returns the events of one tipset, which may be one that was replaced.
func (c *Chain) eventsOf(t tipsetID) []event {
	if t.version == c.state.version(t.epoch) {
		return c.events(t.epoch, t.epoch)
	}
	var found []event
	for _, e := range c.state.Reverted {
		if e.Epoch == t.epoch && e.Version == t.version {
			found = append(found, e)
		}
	}
	return found
}

// time returns the time of an epoch in Unix seconds.
func (s *chainState) time(epoch int64) int64 {
	if epoch > math.MaxInt64/s.Epoch {
		return math.MaxInt64
	}
	return s.Genesis + epoch*s.Epoch/1000
}
