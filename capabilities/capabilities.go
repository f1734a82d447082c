// Package capabilities is the contract between the roles and with the world: what may be asked, how it is said in bytes, what is
// answered, and how it fails. It is pure data: nothing here reads state, a clock or a network.
//
// The packages below it hold one wire namespace each (filecoin, piece, aggregate, deal, compute, assert, ucan): ability names,
// caveats and results. This one holds what they share: tasks, receipts, effects, the table of named failures, and [Conn], by
// which one role reaches another.
package capabilities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire"
)

// The bytes of these are the business of package wire; roles know them by these names.
type (
	DID      = wire.DID
	Signer   = wire.Signer
	Verifier = wire.Verifier
	Block    = wire.Block
	UCAN     = wire.UCAN
	Receipt  = wire.Receipt
	Message  = wire.Message
	Link     = cid.Cid
)

// Caveats are the parameters of one ability.
type Caveats interface {
	Struct
	// Ability is the name on the wire, such as "piece/offer".
	Ability() string
}

// Task is an invocation with the proofs that another party needs to believe it. It is signed once, stored whole and sent as
// stored. Blocks that its caveats link (a list of pieces, claims) are attached to the message that carries it, not a part of it.
type Task struct {
	*UCAN
	// Proofs are the blocks of its chain of authority, each after those that it rests on.
	Proofs []Block
}

// Can returns the ability that is invoked.
func (t Task) Can() string { return t.Capabilities[0].Can }

// Resource returns the DID (or URI) that the ability is invoked on.
func (t Task) Resource() string { return t.Capabilities[0].With }

// EffectNonce is the nonce of every task that follows from this one: none if it has none, so that equal invocations share their effects,
// otherwise its CID.
func (t Task) EffectNonce() string {
	if t.Nonce == "" {
		return ""
	}
	return t.Link().String()
}

// Caveats reads the task's parameters into c. The error is a [Failure] that a client can be told.
func (t Task) Caveats(c Struct) error {
	nb := t.Capabilities[0].Nb
	if nb == nil {
		nb = []byte{0xa0}
	}
	if err := Decode(nb, c); err != nil {
		return Malformed(t.Can(), t.Resource(), err)
	}
	return nil
}

// Blocks returns every block of the task, the invocation last.
func (t Task) Blocks() []Block {
	return append(append(make([]Block, 0, len(t.Proofs)+1), t.Proofs...), t.Block())
}

// Delegation is a signed grant of authority with the proofs that it rests on.
type Delegation = Task

// Terms are the parts of a task that its ability does not fix. The zero Terms is what effect tasks have: no expiry, no nonce, no
// proof.
type Terms struct {
	Nonce      string
	Expiration time.Time // zero: never
	Proofs     []Delegation
	Facts      [][]byte // canonical DAG-CBOR maps
}

// Invoke signs a task: c invoked on resource with, to be executed by the audience. Equal arguments give equal bytes.
func Invoke(issuer Signer, audience DID, with string, c Caveats, terms Terms) (Task, error) {
	return sign(issuer, audience, []wire.Capability{{Can: c.Ability(), With: with, Nb: Encode(c)}}, terms)
}

// Grant is one ability over one resource. Caveats are optional: what they set, an invocation has to repeat.
type Grant struct {
	Can     string // an ability, "namespace/*", or "*"
	With    string
	Caveats Struct
}

// Delegate signs a delegation of grants to the audience.
func Delegate(issuer Signer, audience DID, grants []Grant, terms Terms) (Delegation, error) {
	caps := make([]wire.Capability, len(grants))
	for i, g := range grants {
		caps[i] = wire.Capability{Can: g.Can, With: g.With}
		if g.Caveats != nil {
			caps[i].Nb = Encode(g.Caveats)
		}
	}
	return sign(issuer, audience, caps, terms)
}

func sign(issuer Signer, audience DID, caps []wire.Capability, terms Terms) (Task, error) {
	u := wire.UCAN{Audience: audience, Capabilities: caps, Nonce: terms.Nonce, Facts: terms.Facts}
	if !terms.Expiration.IsZero() {
		exp := terms.Expiration.Unix()
		u.Expiration = &exp
	}
	var with []Block
	for _, p := range terms.Proofs {
		u.Proofs = append(u.Proofs, p.Link())
		with = append(with, p.Blocks()...)
	}
	signed, err := wire.SignUCAN(issuer, u)
	if err != nil {
		return Task{}, fmt.Errorf("signing %s: %w", caps[0].Can, err)
	}
	return Task{UCAN: signed, Proofs: with}, nil
}

// TaskOf returns the task of an invocation in a message, with those of its proofs that the message carries.
func TaskOf(m *Message, u *UCAN) Task {
	t := Task{UCAN: u}
	seen := map[cid.Cid]bool{}
	var visit func(u *UCAN)
	visit = func(u *UCAN) {
		for _, link := range u.Proofs {
			if seen[link] {
				continue
			}
			seen[link] = true
			if p, err := m.UCAN(link); err == nil && p != nil {
				visit(p)
				t.Proofs = append(t.Proofs, p.Block())
			}
		}
	}
	if len(u.Proofs) > 0 {
		visit(u)
	}
	return t
}

// FindTask returns the task that c names if the message carries it.
func FindTask(m *Message, c cid.Cid) (Task, bool) {
	u, err := m.UCAN(c)
	if err != nil || u == nil {
		return Task{}, false
	}
	return TaskOf(m, u), true
}

// Effects are the tasks that follow from a task: Fork beside it, Join to wait for its end result.
type Effects struct {
	Fork []Task
	Join *Task
	// Attached are blocks that effects link in caveats and facts, such as receipts that are there already.
	Attached []Block
}

// Issue signs the receipt of a task that succeeded.
func Issue(issuer Signer, task cid.Cid, ok Struct, fx Effects) (*Receipt, error) {
	return issue(issuer, task, wire.Result{OK: Encode(ok)}, fx)
}

// IssueFailure signs the receipt of a task that failed for good.
func IssueFailure(issuer Signer, task cid.Cid, f *Failure, fx Effects) (*Receipt, error) {
	return issue(issuer, task, wire.Result{Error: f.Encode()}, fx)
}

func issue(issuer Signer, task cid.Cid, out wire.Result, fx Effects) (*Receipt, error) {
	r := wire.Receipt{Ran: task, Out: out}
	for _, f := range fx.Fork {
		r.Fork = append(r.Fork, f.Link())
	}
	if fx.Join != nil {
		r.Join = fx.Join.Link()
	}
	signed, err := wire.SignReceipt(issuer, r)
	if err != nil {
		return nil, fmt.Errorf("signing the receipt of %s: %w", task, err)
	}
	return signed, nil
}

// Conclusion is the message that stands for an executed task: its receipt, its invocation with the proofs, and the invocations of
// its effects, so that whoever holds it can follow and verify the chain. It is what GET /receipt serves and what roles keep.
func Conclusion(r *Receipt, task Task, fx Effects) *Message {
	m := new(Message)
	AddConclusion(m, r, task, fx)
	return m
}

// AddConclusion adds what [Conclusion] holds to a message.
func AddConclusion(m *Message, r *Receipt, task Task, fx Effects) {
	with := slices.Clone(fx.Attached)
	for _, f := range fx.Fork {
		with = append(with, f.Blocks()...)
	}
	if fx.Join != nil {
		with = append(with, fx.Join.Blocks()...)
	}
	m.AddReceipt(r, append(with, task.Blocks()...)...)
}

// Pending is the message that stands for a task without a receipt yet.
func Pending(task Task) *Message {
	m := new(Message)
	m.AddInvocation(task.UCAN, task.Proofs...)
	return m
}

// ErrInvalidReceipt: a receipt is not what it claims to be; the wrapped text says why.
var ErrInvalidReceipt = errors.New("receipt is not to be believed")

// Keys finds the key that a DID signs with.
type Keys interface {
	// Verifier returns the key of a DID. Keys of did:key are in the DID itself; those of other methods are looked up.
	Verifier(ctx context.Context, did DID) (Verifier, error)
}

// VerifyReceipt checks that r is the receipt of the task and was signed by the task's audience. That the task itself is to be
// believed (that it is one's own, or was linked by a believed receipt) is the caller's business.
func VerifyReceipt(ctx context.Context, r *Receipt, task *UCAN, keys Keys) error {
	if !r.Ran.Equals(task.Link()) {
		return fmt.Errorf("%w: it is of task %s, not of %s", ErrInvalidReceipt, r.Ran, task.Link())
	}
	if r.Issuer.Defined() && r.Issuer != task.Audience {
		return fmt.Errorf("%w: issued by %s, the task is for %s", ErrInvalidReceipt, r.Issuer, task.Audience)
	}
	v, err := keys.Verifier(ctx, task.Audience)
	if err != nil {
		return fmt.Errorf("finding the key of %s: %w", task.Audience, err)
	}
	if err := r.Verify(v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidReceipt, err)
	}
	return nil
}

// Method executes invocations of one ability. It returns the receipt once all that the receipt promises is durable. An error
// that is a [*Failure] is told to the client in a receipt that is not stored, one that is [*Unavailable] by the HTTP status; any other is
// an internal fault: logged, and answered without detail.
type Method func(ctx context.Context, inv Invocation) (*Receipt, error)

// Invocation is a task as it was received, authorised, with the message it came in.
type Invocation struct {
	Task
	Message *Message
	// Waits: whoever invokes it waits for the answer, so "not yet" ([Unavailable].Accepted) is not told to them: the method is called again when it may
	// have another answer, and a last time without Waits.
	Waits bool
}

// Conn reaches one role, in process or over HTTP.
type Conn interface {
	// Execute sends a message and returns the one that answers it; what that reports is not verified yet. An error that is
	// [*Unavailable] says that the role answered without a receipt; after any other the outcome is unknown. Either
	// way the same message may be sent again.
	Execute(ctx context.Context, m *Message) (*Message, error)

	// Receipt asks for the conclusion of a task, however it was invoked; not verified either. ErrNoReceipt if there is none (yet).
	Receipt(ctx context.Context, task cid.Cid) (*Message, error)
}

// ErrNoReceipt: the task is unknown, or not concluded yet.
var ErrNoReceipt = errors.New("no receipt yet")

// Unavailable: no receipt now, ask again. It is never signed and never stored.
type Unavailable struct {
	// Accepted: the work is under way (HTTP 202). Overloaded: come back later (429). Neither: 503.
	Accepted, Overloaded bool
	// Invalid: the message lacks something, and repeating it unchanged cannot help (HTTP 400).
	Invalid    bool
	RetryAfter time.Duration
	// Reason is shown to the client.
	Reason string
}

func (u *Unavailable) Error() string { return u.Reason }

// ErrSoon: the task is concluded and its receipt is being written; ask again in a moment.
var ErrSoon = errors.New("receipt is being written")
