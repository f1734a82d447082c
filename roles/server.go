package roles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
)

// Service is a role's domain logic: storefront, aggregator, dealer, deal tracker or compute.
type Service interface {
	// Methods returns the capabilities that the role executes, by ability.
	Methods() map[string]capabilities.Method
	// Handlers returns one handler per message queue.
	Handlers() map[string]store.Handler
	// Receipt returns the conclusion of a task, store.ErrNotFound if there is none. An error that wraps capabilities.ErrSoon as well says
	// that it is worth waiting a moment.
	Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error)
	// Status tells what is known of a piece, a content or an aggregate, store.ErrNotFound if nothing is.
	Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error)
	// Start arms the timers that no message arms; repeating it does nothing.
	Start(ctx context.Context) error
}

// Server executes invocations for one role. It is the one path by which they come in, over HTTP or in process.
type Server struct {
	Name      string // storefront, aggregator, dealer, dealtracker or compute
	Signer    capabilities.Signer
	Service   Service
	Authority *Authority
	// Extra are methods of the runtime's own, such as ucan/revoke.
	Extra map[string]capabilities.Method
	// WithEffects, if set, reports whether the reply to an ability carries the blocks of the tasks that its receipt links. Others do without:
	// every party can make them anew.
	WithEffects func(ability string) bool
	// Changes tells when something was committed to the role's store; see [Watch].
	Changes *Changes
	// Patience is how long an invocation may wait for work that was accepted before the answer is "not yet"; 20 s over HTTP, 0 in simulations.
	Patience time.Duration
	// Ending, if set, is closed when the process is about to end: then nobody waits any more.
	Ending  <-chan struct{}
	After   func(time.Duration) <-chan time.Time
	Observe func(Execution)
	Log     *slog.Logger

	methods map[string]capabilities.Method
}

// NewServer returns a server; all fields but Extra, WithEffects, Ending and Observe are required.
func NewServer(s Server) *Server {
	s.methods = s.Service.Methods()
	return &s
}

// Execution is how one invocation ended, for logs and metrics.
type Execution struct {
	Role, Ability string
	Task          cid.Cid
	Issuer        string
	// Outcome is "ok", the name of a failure, "unavailable" or "fault".
	Outcome string
	Took    time.Duration
	Err     error
}

// Execute executes the invocations of a message and returns the message that answers it. Invocations without a receipt are missing in it. If
// none has one, the error says why: a [*capabilities.Unavailable].
func (s *Server) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	list := m.Invocations()
	if len(list) == 0 {
		return nil, &capabilities.Unavailable{Invalid: true, Reason: "Bad request: the message has nothing to execute"}
	}
	receipts, errs := make([]*capabilities.Receipt, len(list)), make([]error, len(list))
	indices := make([]int, len(list))
	for i := range indices {
		indices[i] = i
	}
	err := store.Each(ctx, 16, indices, func(i int) error {
		receipts[i], errs[i] = s.run(ctx, m, list[i])
		return nil
	})
	if err != nil {
		return nil, err
	}
	reply, answered := new(capabilities.Message), false
	for i, r := range receipts {
		if r != nil {
			answered = true
			blocks, err := s.effectsOf(ctx, list[i], r)
			if err != nil {
				return nil, err
			}
			reply.AddReceipt(r, append(blocks, capabilities.TaskOf(m, list[i]).Blocks()...)...)
		}
	}
	if !answered {
		return nil, errs[0]
	}
	return reply, nil
}

// effectsOf returns the blocks that belong to a receipt, as they are kept with it.
func (s *Server) effectsOf(ctx context.Context, u *capabilities.UCAN, r *capabilities.Receipt) ([]capabilities.Block, error) {
	if s.WithEffects == nil || len(r.Fork) == 0 || !s.WithEffects(u.Capabilities[0].Can) {
		return nil, nil
	}
	m, err := s.Service.Receipt(ctx, u.Link())
	if err != nil {
		s.Log.Error("reading the effects of a task", "role", s.Name, "task", u.Link(), "err", err)
		return nil, &capabilities.Unavailable{RetryAfter: time.Second, Reason: "internal fault, try again"}
	}
	var blocks []capabilities.Block
	for _, b := range m.Blocks() {
		if !b.CID.Equals(r.Link()) && !b.CID.Equals(u.Link()) {
			blocks = append(blocks, b)
		}
	}
	return blocks, nil
}

// run executes one invocation. The error is always a *capabilities.Unavailable.
func (s *Server) run(ctx context.Context, m *capabilities.Message, u *capabilities.UCAN) (*capabilities.Receipt, error) {
	can := "?"
	if len(u.Capabilities) > 0 {
		can = u.Capabilities[0].Can
	}
	began := time.Now()
	r, err := s.execute(ctx, m, u)
	e := Execution{Role: s.Name, Ability: can, Task: u.Link(), Issuer: u.Issuer.String(), Outcome: "ok", Err: err}
	var failure *capabilities.Failure
	var unavailable *capabilities.Unavailable
	switch {
	case errors.As(err, &failure):
		e.Outcome, e.Err = failure.Name, nil
		// Told to the client, stored nowhere: the same task may succeed another time.
		r, err = capabilities.IssueFailure(s.Signer, u.Link(), failure, capabilities.Effects{})
	case errors.Is(err, store.ErrTooLarge):
		e.Outcome = "too large"
		unavailable = &capabilities.Unavailable{Invalid: true, Reason: "the invocation with its proofs is larger than can be kept: send fewer proofs"}
		err = unavailable
	case errors.As(err, &unavailable):
		e.Outcome = "unavailable"
		err = unavailable
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		// Whoever asked has gone, or the process is about to end: no fault of anybody's.
		e.Outcome = "unavailable"
		unavailable = &capabilities.Unavailable{RetryAfter: time.Second, Reason: "it was interrupted, try again"}
		err = unavailable
	case err == nil && r.Out.Error != nil:
		e.Outcome = capabilities.ReadFailure(r.Out.Error).Name
	}
	if err != nil && unavailable == nil {
		e.Outcome, e.Err = "fault", err
		s.Log.Error("executing an invocation", "role", s.Name, "ability", can, "task", u.Link(), "issuer", u.Issuer, "err", err)
		err = &capabilities.Unavailable{RetryAfter: 5 * time.Second, Reason: "internal fault, try again"}
		r = nil
	}
	e.Took = time.Since(began)
	if s.Observe != nil {
		s.Observe(e)
	}
	return r, err
}

func (s *Server) execute(ctx context.Context, m *capabilities.Message, u *capabilities.UCAN) (*capabilities.Receipt, error) {
	if err := s.Authority.Authorize(ctx, m, u); err != nil {
		// An acknowledged invocation that is repeated gets its receipt, even if it has expired or lost its authority since.
		var failure *capabilities.Failure
		if errors.As(err, &failure) {
			if kept, found := s.concluded(ctx, u); found {
				return kept, nil
			}
		}
		return nil, err
	}
	inv := capabilities.Invocation{Task: capabilities.TaskOf(m, u), Message: m, Waits: s.Patience > 0}
	method, ok := s.method(inv.Can())
	if !ok {
		return nil, capabilities.NewHandlerNotFound(inv.Can(), inv.Resource())
	}
	w := s.wait(inv.Link(), s.Patience)
	defer w.end()
	for {
		r, err := s.guard(ctx, method, inv)
		var u *capabilities.Unavailable
		if !errors.As(err, &u) || !u.Accepted || !inv.Waits {
			return r, err
		}
		inv.Waits = w.again(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// waiting is somebody who looks for a task to be concluded, again and again for a while.
type waiting struct {
	s        *Server
	changed  <-chan struct{}
	end      func()
	patience time.Duration
	over     <-chan time.Time
	pause    time.Duration
}

// Pauses between looks for what another replica may have done: the first, and the longest.
const (
	firstLook  = 250 * time.Millisecond
	seldomLook = 4 * time.Second
)

// wait begins to wait for changes of a task's rows. end has to be called.
func (s *Server) wait(task cid.Cid, patience time.Duration) *waiting {
	changed, end := s.Changes.Of(task.String())
	return &waiting{s: s, changed: changed, end: end, patience: patience, pause: firstLook}
}

// again waits until it is worth looking again: something changed here, or it may have elsewhere. It returns false when patience is over, or the
// process is about to end.
func (w *waiting) again(ctx context.Context) bool {
	if w.over == nil {
		w.over = w.s.After(w.patience)
	}
	pause := w.pause
	w.pause = min(2*w.pause, seldomLook)
	select {
	case <-w.changed:
		return true
	case <-w.s.After(pause):
		select {
		case <-w.over:
			return false
		default:
			return true
		}
	case <-w.over:
	case <-w.s.Ending:
	case <-ctx.Done():
	}
	return false
}

func (s *Server) concluded(ctx context.Context, u *capabilities.UCAN) (*capabilities.Receipt, bool) {
	m, err := s.Service.Receipt(ctx, u.Link())
	if err != nil {
		return nil, false
	}
	r := m.Receipt(u.Link())
	return r, r != nil && (!r.Issuer.Defined() || r.Issuer == s.Signer.DID())
}

func (s *Server) method(can string) (capabilities.Method, bool) {
	if method, ok := s.methods[can]; ok {
		return method, ok
	}
	method, ok := s.Extra[can]
	return method, ok
}

// guard turns a panic of a method into an error: no input ends the process.
func (s *Server) guard(ctx context.Context, method capabilities.Method, inv capabilities.Invocation) (r *capabilities.Receipt, err error) {
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return method(ctx, inv)
}

// Local reaches a server in process. Messages are encoded and decoded on the way, as they are between processes: nothing is shared.
type Local struct{ Server *Server }

// Execute implements [capabilities.Conn].
func (l Local) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	in, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		return nil, &capabilities.Unavailable{Invalid: true, Reason: err.Error()}
	}
	out, err := l.Server.Execute(ctx, in)
	if err != nil {
		return nil, err
	}
	return wire.DecodeMessage(out.Encode(), wire.Limits{})
}

// Receipt implements [capabilities.Conn].
func (l Local) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	m, err := l.Server.Service.Receipt(ctx, task)
	if errors.Is(err, store.ErrNotFound) {
		return nil, capabilities.ErrNoReceipt
	}
	if err != nil {
		return nil, err
	}
	return wire.DecodeMessage(m.Encode(), wire.Limits{})
}

// Changes tells waiting calls of this process that something was committed. Commits of other replicas are not seen: whoever waits also looks by
// themselves from time to time.
type Changes struct {
	mu sync.Mutex
	of map[string][]chan struct{} // by the end of the partition
}

// Of returns a channel that receives a value after commits to rows that are named after something: whose partition is any/name. Commits that come
// while nobody receives are told once. end has to be called when nobody waits any more.
func (c *Changes) Of(name string) (changed <-chan struct{}, end func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[string][]chan struct{})
	}
	c.of[name] = append(c.of[name], ch)
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.of[name] = slices.DeleteFunc(c.of[name], func(other chan struct{}) bool { return other == ch })
		if len(c.of[name]) == 0 {
			delete(c.of, name)
		}
	}
}

func (c *Changes) notify(partition string) {
	name := partition[strings.LastIndexByte(partition, '/')+1:]
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.of[name] {
		select {
		case ch <- struct{}{}:
		default: // told already
		}
	}
}

// Watch wraps a driver so that its commits are told to c.
func (c *Changes) Watch(d store.Driver) store.Driver { return watched{d, c} }

type watched struct {
	store.Driver
	changes *Changes
}

func (w watched) Commit(ctx context.Context, c store.Change) (uint64, error) {
	v, err := w.Driver.Commit(ctx, c)
	w.changes.notify(c.Row.Partition)
	return v, err
}
