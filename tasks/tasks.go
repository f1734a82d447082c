// Package tasks keeps a role's tasks and their receipts: those that it executed, those that it will execute, and those of
// other roles whose receipts it waits for. Receipts travel down the chain that their tasks came up; each role keeps, serves and
// passes on every verified receipt that concerns a task it accepted.
//
// A receipt R of task T is believed if and only if T is the role's own or was linked by a receipt that is already believed, R's issuer
// is T's audience, and the signature verifies with the key that this DID has. The first receipt believed is the one; another one for the
// same task is kept as evidence and reported.
package tasks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
)

// Record is what a role keeps of one task, under `task/{task CID}`.
type Record struct {
	// Message is the encoded agent message that stands for the task: with the receipt once it is concluded (a conclusion),
	// before that the invocation alone, or nothing if only its CID is known yet.
	Message []byte `cbor:"m,omitzero"`
	// Concluded is set once Message holds the receipt.
	Concluded bool `cbor:"c,omitzero"`
	// Owner names the row that this task is about. For a task that the role itself executes later, the owner's row holds the receipt.
	Owner store.Key `cbor:"o,omitzero"`
	// Notify names the queue that gets an [Arrival] when the receipt comes; empty for the role's own tasks.
	Notify string `cbor:"n,omitzero"`
	// Follow makes the task that the receipt joins awaited as well, for the same owner and queue.
	Follow bool `cbor:"f,omitzero"`
	// At is when the receipt was issued or taken, in milliseconds since the Unix epoch.
	At int64 `cbor:"a,omitzero"`
}

// Decode returns the record's message.
func (r *Record) Decode() (*capabilities.Message, error) {
	m, err := wire.DecodeMessage(r.Message, wire.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading a stored task: %w", err)
	}
	return m, nil
}

// Packed names a conclusion in a pack.
type Packed struct {
	Pack  cid.Cid     `cbor:"p"`
	Entry store.Entry `cbor:"e"`
}

// Pack adds a conclusion to a pack; its place is complete once the pack is put.
func Pack(w *store.PackWriter, conclusion *capabilities.Message) (store.Entry, error) {
	return w.Add(store.RawBlob(conclusion.Encode()))
}

// ReadPacked returns a conclusion from a pack.
func ReadPacked(ctx context.Context, blobs store.Blobs, p Packed) (*capabilities.Message, error) {
	b, err := store.ReadEntry(ctx, blobs, p.Pack, p.Entry)
	if err != nil {
		return nil, err
	}
	m, err := wire.DecodeMessage(b, wire.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading a packed conclusion: %w", err)
	}
	return m, nil
}

// Arrival tells that the receipt of an awaited task is there.
type Arrival struct {
	Task  cid.Cid   `cbor:"t"`
	Owner store.Key `cbor:"o"`
}

// Ledger is a role's tasks.
type Ledger struct {
	// Parallel is how many receipts of a batch are taken at a time; 0 or 1: one after another.
	Parallel int

	records  store.Table[Record]
	evidence store.Table[Record]
	keys     capabilities.Keys
	now      func() time.Time
	log      *slog.Logger
}

// New returns the ledger over a role's rows.
func New(rows store.Rows, keys capabilities.Keys, now func() time.Time, log *slog.Logger) *Ledger {
	return &Ledger{records: store.NewTable[Record](rows), evidence: store.NewTable[Record](rows), keys: keys, now: now, log: log}
}

// Key returns the row of a task.
func Key(task cid.Cid) store.Key { return store.Key{Partition: "task/" + task.String()} }

// Get returns what is kept of a task, or store.ErrNotFound.
func (l *Ledger) Get(ctx context.Context, task cid.Cid) (Record, error) {
	rec, err := l.records.Get(ctx, Key(task))
	return rec.Value, err
}

// Concluded returns the conclusion of a task. Of one that the role itself concludes in another row, it returns that row's key in its place; of any
// other that is unknown or not concluded, store.ErrNotFound.
func (l *Ledger) Concluded(ctx context.Context, task cid.Cid) (*capabilities.Message, store.Key, error) {
	rec, err := l.Get(ctx, task)
	switch {
	case err != nil:
		return nil, store.Key{}, err
	case rec.Concluded:
		m, err := rec.Decode()
		return m, store.Key{}, err
	case rec.Notify != "" || rec.Owner == (store.Key{}):
		return nil, store.Key{}, store.ErrNotFound
	}
	return nil, rec.Owner, nil
}

// Entry is a task as the ledger has it. Receipt is nil while it is not concluded there.
type Entry struct {
	capabilities.Task
	Message *capabilities.Message
	Receipt *capabilities.Receipt
	At      int64 // milliseconds since the Unix epoch
}

// Read returns a task whose invocation is known, with its receipt if there is one.
func (l *Ledger) Read(ctx context.Context, link cid.Cid) (Entry, error) {
	rec, err := l.records.Get(ctx, Key(link))
	if err != nil {
		return Entry{}, err
	}
	return entryOf(rec.Value, link)
}

func entryOf(rec Record, link cid.Cid) (Entry, error) {
	m, err := rec.Decode()
	if err != nil {
		return Entry{}, err
	}
	task, ok := capabilities.FindTask(m, link)
	if !ok {
		return Entry{}, fmt.Errorf("the record of task %s lacks its invocation", link)
	}
	return Entry{task, m, m.Receipt(link), rec.At}, nil
}

// Effect returns the task that a kept receipt links.
func (k Entry) Effect(link cid.Cid) (capabilities.Task, error) {
	t, ok := capabilities.FindTask(k.Message, link)
	if !ok {
		return t, fmt.Errorf("the record of %s %s lacks its effect %s", k.Can(), k.Link(), link)
	}
	return t, nil
}

// Own returns the method that answers tasks which a role gives itself, as effects, and which its messages execute. Invoked over the wire
// with the role's own key they get the terminal receipt, or are told that there is none yet.
func Own(self capabilities.DID, receipt func(context.Context, cid.Cid) (*capabilities.Message, error), pending string) capabilities.Method {
	return func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		if inv.Issuer != self || inv.Resource() != self.String() {
			return nil, capabilities.Fail(capabilities.UnsupportedCapability,
				"%s does not have a %q capability provider", inv.Resource(), inv.Can())
		}
		m, err := receipt(ctx, inv.Link())
		if errors.Is(err, store.ErrNotFound) {
			return nil, &capabilities.Unavailable{RetryAfter: time.Minute, Reason: pending}
		}
		if err != nil {
			return nil, err
		}
		return m.Receipt(inv.Link()), nil
	}
}

// Accept acknowledges a task with its receipt, in one commit with the messages and blobs that this causes. Once it returns the
// promise of the receipt is durable. If the task was acknowledged before, nothing is written and the earlier receipt is returned, which is another
// value than r.
func (l *Ledger) Accept(ctx context.Context, task capabilities.Task, r *capabilities.Receipt, fx capabilities.Effects,
	listing store.Listing, effects store.Effects) (*capabilities.Receipt, error) {
	rec := store.Record[Record]{Key: Key(task.Link()), Listing: listing, Value: Record{
		Message: capabilities.Conclusion(r, task, fx).Encode(), Concluded: true, At: l.now().UnixMilli(),
	}}
	created, err := l.records.Create(ctx, &rec, effects)
	if err != nil {
		return nil, fmt.Errorf("acknowledging %s %s: %w", task.Can(), task.Link(), err)
	}
	if created {
		return r, nil
	}
	return receiptIn(rec.Value, task.Link())
}

// Receipt returns the receipt that is kept of a task, store.ErrNotFound if there is none (yet).
func (l *Ledger) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Receipt, error) {
	rec, err := l.records.Get(ctx, Key(task))
	if err != nil {
		return nil, err
	}
	if !rec.Value.Concluded {
		return nil, store.ErrNotFound
	}
	return receiptIn(rec.Value, task)
}

func receiptIn(rec Record, task cid.Cid) (*capabilities.Receipt, error) {
	m, err := rec.Decode()
	if err != nil {
		return nil, err
	}
	r := m.Receipt(task)
	if r == nil {
		return nil, fmt.Errorf("the record of task %s holds no receipt", task)
	}
	return r, nil
}

// Listed returns the acknowledged tasks of an index; a hint, as every scan.
func (l *Ledger) Listed(ctx context.Context, index string, limit int) ([]*capabilities.Message, error) {
	recs, _, err := l.records.Scan(ctx, index, "", "", limit)
	if err != nil {
		return nil, err
	}
	var list []*capabilities.Message
	for _, rec := range recs {
		m, err := rec.Value.Decode()
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// Own records that a task which this role executes later itself has its receipt in the owner's row, once there is one. The task stays where it was
// linked: see [Ledger.Effect]. Repeating it does nothing.
func (l *Ledger) Own(ctx context.Context, task cid.Cid, owner store.Key) error {
	rec := store.Record[Record]{Key: Key(task), Value: Record{Owner: owner}}
	if _, err := l.records.Create(ctx, &rec, store.Effects{}); err != nil {
		return fmt.Errorf("recording task %s: %w", task, err)
	}
	return nil
}

// Effect returns a task that the kept receipt of another one links, as it was signed.
func (l *Ledger) Effect(ctx context.Context, of, link cid.Cid) (capabilities.Task, error) {
	kept, err := l.Read(ctx, of)
	if err != nil {
		return capabilities.Task{}, err
	}
	return kept.Effect(link)
}

// Settle concludes a task of the role's own with a receipt, unless it has been concluded before, and returns what is kept of it: the first
// receipt is the one.
func (l *Ledger) Settle(ctx context.Context, task capabilities.Task, r *capabilities.Receipt, fx capabilities.Effects) (Entry, error) {
	m := capabilities.Conclusion(r, task, fx)
	rec := store.Record[Record]{Key: Key(task.Link()), Value: Record{Message: m.Encode(), Concluded: true, At: l.now().UnixMilli()}}
	created, err := l.records.Create(ctx, &rec, store.Effects{})
	if err != nil {
		return Entry{}, fmt.Errorf("concluding %s %s: %w", task.Can(), task.Link(), err)
	}
	if created {
		return Entry{task, m, r, rec.Value.At}, nil
	}
	return entryOf(rec.Value, task.Link())
}

// Await records that the receipt of another role's task is waited for; when it arrives, queue gets an [Arrival]. It returns what is
// kept of the task: read it, because the receipt may be there already, and its message may have been sent. The task itself may be unknown (nil):
// then the receipt has to bring it. Repeating it does nothing.
//
// The caller vouches that the task is to be believed: it is its own, or was linked by a believed receipt.
//
// With follow, the task that the receipt will join is waited for as well as soon as the receipt is here, so that both may come in one message.
func (l *Ledger) Await(ctx context.Context, link cid.Cid, task *capabilities.Task, owner store.Key, queue string, follow bool) (Record, error) {
	rec := store.Record[Record]{Key: Key(link), Value: Record{Owner: owner, Notify: queue, Follow: follow}}
	if task != nil {
		rec.Value.Message = capabilities.Pending(*task).Encode()
	}
	if _, err := l.records.Create(ctx, &rec, store.Effects{}); err != nil {
		return Record{}, fmt.Errorf("waiting for task %s: %w", link, err)
	}
	return rec.Value, nil
}

// Outcome says what became of a receipt that arrived.
type Outcome int

// What can become of a receipt.
const (
	Unknown   Outcome = iota // nobody waits for it; nothing was stored
	Kept                     // it is the first; whoever waits has been told
	Known                    // it was here before
	Different                // another one was here before; this one is kept as evidence
	Passing                  // true at the moment, but not terminal; nothing was stored
)

// Arrive takes the receipt of an awaited task out of a message. An error that wraps [capabilities.ErrInvalidReceipt] is the
// sender's fault, every other one is ours.
func (l *Ledger) Arrive(ctx context.Context, m *capabilities.Message, r *capabilities.Receipt) (Outcome, error) {
	outcome := Unknown
	_, err := l.records.Update(ctx, Key(r.Ran), func(rec *store.Record[Record], fx *store.Effects) error {
		if !rec.Exists() || rec.Value.Notify == "" {
			outcome = Unknown
			return store.ErrUnchanged
		}
		task, err := l.taskOf(rec.Value, m, r.Ran)
		if err != nil {
			return err
		}
		if rec.Value.Concluded {
			first, err := receiptIn(rec.Value, r.Ran)
			if err != nil {
				return err
			}
			if outcome = Known; !first.Link().Equals(r.Link()) {
				outcome = Different
			}
			return store.ErrUnchanged
		}
		if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, l.keys); err != nil {
			return err
		}
		terminal, err := checkResult(task.Can(), r.Out)
		if err != nil {
			return fmt.Errorf("%w: %w", capabilities.ErrInvalidReceipt, err)
		}
		if !terminal {
			outcome = Passing
			return store.ErrUnchanged
		}
		if rec.Value.Follow && r.Join.Defined() {
			if _, err := l.Await(ctx, r.Join, nil, rec.Value.Owner, rec.Value.Notify, true); err != nil {
				return err
			}
		}
		outcome = Kept
		rec.Value.Message = conclude(m, r, task).Encode()
		rec.Value.Concluded = true
		rec.Value.At = l.now().UnixMilli()
		store.NewQueue[Arrival](rec.Value.Notify).Send(fx, Arrival{r.Ran, rec.Value.Owner})
		return nil
	})
	if err != nil {
		return outcome, fmt.Errorf("taking the receipt of %s: %w", r.Ran, err)
	}
	if outcome == Different {
		return outcome, l.keepEvidence(ctx, m, r)
	}
	return outcome, nil
}

// keepEvidence stores a second, different receipt of one task: a role broke its word, and this proves it. Receipts whose
// signature does not hold prove nothing and are refused.
func (l *Ledger) keepEvidence(ctx context.Context, m *capabilities.Message, r *capabilities.Receipt) error {
	rec, err := l.records.Get(ctx, Key(r.Ran))
	if err != nil {
		return err
	}
	task, err := l.taskOf(rec.Value, m, r.Ran)
	if err != nil {
		return err
	}
	if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, l.keys); err != nil {
		return err
	}
	ev := store.Record[Record]{
		Key:   store.Key{Partition: "evidence/" + r.Ran.String(), Sort: r.Link().String()},
		Value: Record{Message: conclude(m, r, task).Encode(), Concluded: true, At: l.now().UnixMilli()},
	}
	created, err := l.evidence.Create(ctx, &ev, store.Effects{})
	if err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	if created {
		l.log.Error("second, different receipt for one task: kept as evidence",
			"task", r.Ran, "ability", task.Can(), "issuer", task.Audience, "receipt", r.Link())
	}
	return nil
}

// taskOf returns the task, from the record if it is known there, otherwise from the message that brought the receipt.
func (l *Ledger) taskOf(rec Record, m *capabilities.Message, link cid.Cid) (capabilities.Task, error) {
	if rec.Message != nil {
		kept, err := rec.Decode()
		if err != nil {
			return capabilities.Task{}, err
		}
		m = kept
	}
	task, ok := capabilities.FindTask(m, link)
	if !ok {
		return capabilities.Task{}, fmt.Errorf("%w: it came without its invocation %s", capabilities.ErrInvalidReceipt, link)
	}
	return task, nil
}

// maxEffects is how many effect invocations are kept beside a receipt. The forks of a failed aggregate may be many more: their
// receipt carries the links, the invocations come by themselves.
const maxEffects = 16

// conclude returns the conclusion of the task from what the message holds of its effects.
func conclude(m *capabilities.Message, r *capabilities.Receipt, task capabilities.Task) *capabilities.Message {
	var fx capabilities.Effects
	for _, link := range r.Fork {
		if len(fx.Fork) == maxEffects {
			break
		}
		if t, ok := capabilities.FindTask(m, link); ok {
			fx.Fork = append(fx.Fork, t)
		}
	}
	if r.Join.Defined() {
		if t, ok := capabilities.FindTask(m, r.Join); ok {
			fx.Join = &t
		}
	}
	return capabilities.Conclusion(r, task, fx)
}

// Execute sends a task over a connection and returns its receipt, verified, and its conclusion: the receipt, the task, and of its
// effects what the role sent along.
func (l *Ledger) Execute(ctx context.Context, conn capabilities.Conn, task capabilities.Task, attach ...capabilities.Block) (
	*capabilities.Receipt, *capabilities.Message, error) {
	m := new(capabilities.Message)
	m.AddInvocation(task.UCAN, append(attach, task.Proofs...)...)
	reply, err := conn.Execute(ctx, m)
	if err != nil {
		return nil, nil, err
	}
	r := reply.Receipt(task.Link())
	if r == nil {
		return nil, nil, &capabilities.Unavailable{Reason: fmt.Sprintf("%s answered %s without a receipt", task.Audience, task.Can())}
	}
	if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, l.keys); err != nil {
		return nil, nil, err
	}
	if r.Out.Error == nil {
		if _, err := checkResult(task.Can(), r.Out); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", capabilities.ErrInvalidReceipt, err)
		}
	}
	return r, conclude(reply, r, task), nil
}

// Pull asks a role for the receipt of an awaited task: the safety net under receipts that are pushed. It returns
// capabilities.ErrNoReceipt if there is none yet.
func (l *Ledger) Pull(ctx context.Context, conn capabilities.Conn, task cid.Cid) (Outcome, error) {
	m, err := conn.Receipt(ctx, task)
	if err != nil {
		return Unknown, err
	}
	r := m.Receipt(task)
	if r == nil {
		return Unknown, fmt.Errorf("%w: the answer for %s holds another task's", capabilities.ErrInvalidReceipt, task)
	}
	return l.Arrive(ctx, m, r)
}

// Keep stores the conclusion of a task that was executed for this role, so that it can be served and passed on. Repeating it does nothing.
func (l *Ledger) Keep(ctx context.Context, task cid.Cid, conclusion *capabilities.Message) error {
	msg := conclusion.Encode()
	conclude := func(rec *store.Record[Record], _ *store.Effects) error {
		if rec.Value.Concluded {
			if !bytes.Equal(rec.Value.Message, msg) {
				first, err := receiptIn(rec.Value, task)
				if err != nil {
					return err
				}
				if r := conclusion.Receipt(task); !first.Link().Equals(r.Link()) {
					l.log.Error("second, different receipt for one task", "task", task, "first", first.Link(), "second", r.Link())
				}
			}
			return store.ErrUnchanged
		}
		rec.Value.Message, rec.Value.Concluded, rec.Value.At = msg, true, l.now().UnixMilli()
		return nil
	}
	// Most tasks are not known before their receipt is.
	if _, err := l.records.UpdateFrom(ctx, store.Record[Record]{Key: Key(task)}, conclude); err != nil {
		return fmt.Errorf("keeping the receipt of %s: %w", task, err)
	}
	return nil
}

// IsUnavailable reports whether the error says that a role could not answer now, for a reason that may pass.
func IsUnavailable(err error) (*capabilities.Unavailable, bool) {
	var u *capabilities.Unavailable
	ok := errors.As(err, &u)
	return u, ok
}
