package awstest

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/storetest"
)

// Simulation describes an engine for simulations: one goroutine, on a clock that moves only when told to. Calls in one order give the same results.
type Simulation struct {
	// Options are those of its double.
	Options
	// Seed is where IDs and faults come from.
	Seed uint64
	// Faults is the probability that a request meets a fault of the services. At most two in a row do, which the SDK's repetition gets over: throttling, HTTP
	// 500 and connections that are cut before or after the request was done, answers that break off, batches that are done in part.
	Faults float64
	// Late: faults may make messages late, by a minute or two. Messages that were received by an answer that was lost come when their lease ends; those that
	// a batch left out are sent by the relay.
	Late bool
}

// Engine is an engine on a double of its own.
type Engine struct {
	*aws.Engine
	*simulation
	t testing.TB
}

var _ storetest.Simulated = (*Engine)(nil)

// simulation is what outlives an opening.
type simulation struct {
	double *Double
	Simulation
	ids    io.Reader
	random *rand.Rand
	row    int       // faults in a row
	left   int       // requests until there is no connection any more; negative: there will be one
	look   time.Time // when the relay looks next
}

// role is whose state the state is.
const role = "role"

// Open opens an engine that has nothing, until the test ends.
func Open(t testing.TB, s Simulation) *Engine {
	t.Helper()
	s.OnDemand = true
	var seed [32]byte
	r := rand.New(rand.NewPCG(s.Seed, 0xa35))
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	e := &Engine{t: t, simulation: &simulation{double: New(s.Options), Simulation: s, ids: &reader{source: rand.NewChaCha8(seed)}, random: r, left: -1}}
	if err := aws.Init(context.Background(), e.double.Location(), aws.Layout{role: nil}, e.options(), nil); err != nil {
		t.Fatal(err)
	}
	e.double.Failing(e.fault)
	e.Engine = e.open()
	return e
}

// reader reads from a source for several at a time.
type reader struct {
	mu     sync.Mutex
	source io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.source.Read(p)
}

// attempts of the SDK: more than there are faults in a row.
const attempts = 4

func (e *Engine) options() aws.Options {
	at := make(chan time.Time)
	close(at)
	return aws.Options{
		Role: role, Now: e.Now, After: func(time.Duration) <-chan time.Time { return at }, Relay: -1, Poll: -1, Serial: true, Rand: e.ids,
		Configure: e.double.Configure(attempts),
	}
}

func (e *Engine) open() *aws.Engine {
	opened, err := aws.Open(context.Background(), e.double.Location(), e.options())
	if err != nil {
		e.t.Fatal(err)
	}
	return opened
}

// fault chooses what happens to a request.
func (e *simulation) fault(_ int, op string) Fault {
	if e.left == 0 {
		return Refused
	}
	if e.left > 0 {
		e.left--
	}
	if e.row == 2 || e.random.Float64() >= e.Faults {
		e.row = 0
		return Fine
	}
	e.row++
	faults := []Fault{Throttle, Broken, Refused, Lost, Cut, Short, Partial}
	switch {
	case e.Late:
	case op == "ReceiveMessage":
		faults = faults[:3]
	case op == "SendMessageBatch":
		faults = faults[:6]
	}
	return faults[e.random.IntN(len(faults))]
}

// Interrupt lets n more requests through; then there is no connection, until the engine is opened again. A process that is killed does as much.
func (e *Engine) Interrupt(n int) { e.left = n }

// Reopen ends this opening, as a crash between two requests does, and returns a new one.
func (e *Engine) Reopen() *Engine {
	e.left = -1
	if err := e.Close(); err != nil {
		e.t.Fatal(err)
	}
	again := *e
	again.Engine = again.open()
	return &again
}

// Receivable implements [storetest.Simulated]. The relay, which an engine of its own has in the background, looks here when it is time.
func (e *Engine) Receivable() []string {
	now := e.Now()
	if at, ok := e.double.nextLook(); ok && !at.After(now) && !e.look.After(now) {
		e.look = now.Add(aws.DefaultRelay)
		_, _ = e.Relay(context.Background()) // what fails is tried again
	}
	return e.double.receivable(e.double.Location().QueueName(role, ""))
}

// NextEvent implements [storetest.Simulated].
func (e *Engine) NextEvent() (at time.Time, ok bool) {
	now := e.Now()
	earliest := func(t time.Time, there bool) {
		if there && t.After(now) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	earliest(e.double.nextVisible())
	earliest(e.double.nextIndexed())
	if look, there := e.double.nextLook(); there {
		if look.Before(e.look) {
			look = e.look
		}
		earliest(look, true)
	}
	return at, ok
}

// Waiting implements [storetest.Simulated].
func (e *Engine) Waiting() map[string]int { return e.double.waiting() }

// How the engine names what the double has to know of its items; package aws says what they are.
const (
	attrList      = "l"
	attrShard     = "q"
	attrLook      = "t"
	outboxIndex   = "outbox"
	messagePrefix = "m:"
)

// nextLook is the earliest time at which the relay has something to do for an item and the index shows it.
func (d *Double) nextLook() (at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tables {
		d.settle(t)
		for key, it := range t.holding {
			need := time.UnixMilli(it.number(attrLook)).UTC()
			found, seen := time.Time{}, false
			if shown, there := t.indexes[outboxIndex].by[it[attrShard].String()][key]; there {
				found, seen = time.UnixMilli(shown.number(attrLook)).UTC(), true
			}
			for _, w := range t.lagging {
				if late := w.at.Add(d.options.IndexLag); w.key == key && w.after[attrLook].there() && (!seen || late.Before(found)) {
					found, seen = late, true
					break
				}
			}
			if found.Before(need) {
				found = need
			}
			if !ok || found.Before(at) {
				at, ok = found, true
			}
		}
	}
	return at, ok
}

// nextIndexed is when an index next shows a listing that has changed.
func (d *Double) nextIndexed() (at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tables {
		d.settle(t)
		for _, w := range t.lagging {
			if !w.before[attrList].there() && !w.after[attrList].there() {
				continue
			}
			if shown := w.at.Add(d.options.IndexLag); !ok || shown.Before(at) {
				at, ok = shown, true
			}
			break
		}
	}
	return at, ok
}

// nextVisible is when a message next becomes receivable.
func (d *Double) nextVisible() (at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.options.Now()
	for _, q := range d.queues {
		for _, m := range q.messages {
			if m.visible.After(now) && (!ok || m.visible.Before(at)) {
				at, ok = m.visible, true
			}
		}
	}
	return at, ok
}

// receivable are the queues that have something to receive now, of those whose names begin so, by the rest of their names.
func (d *Double) receivable(prefix string) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.options.Now()
	for _, name := range slices.Sorted(maps.Keys(d.queues)) {
		short, ours := strings.CutPrefix(name, prefix)
		if ours && slices.ContainsFunc(d.queues[name].messages, func(m *message) bool { return !m.visible.After(now) }) {
			names = append(names, short)
		}
	}
	return names
}

// waiting counts messages by queue, in queues and in items, each once.
func (d *Double) waiting() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen, n := map[string]bool{}, map[string]int{}
	count := func(envelope string) {
		var m struct{ ID, Queue string }
		if json.Unmarshal([]byte(envelope), &m) == nil && !seen[m.ID] {
			seen[m.ID] = true
			n[m.Queue]++
		}
	}
	for _, q := range d.queues {
		for _, m := range q.messages {
			count(m.body)
		}
	}
	for _, t := range d.tables {
		for _, it := range t.holding {
			for name, a := range it {
				if strings.HasPrefix(name, messagePrefix) {
					count(a.String())
				}
			}
		}
	}
	return n
}
