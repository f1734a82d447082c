package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
)

// MaxReceipts and MaxBatch bound one message of receipts: how many, and about how many bytes.
const (
	MaxReceipts = 1000
	MaxBatch    = 4 << 20
)

// Conclude returns the method that takes receipts which other roles push (ucan/conclude). Once it has answered, those that somebody
// waits for are kept; the others are answered alike and leave nothing behind. Receipts that are not to be believed are refused
// without hurting the others of their batch.
func (l *Ledger) Conclude(signer capabilities.Signer) capabilities.Method {
	return func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		var nb ucan.Conclude
		if err := inv.Caveats(&nb); err != nil {
			return nil, err
		}
		receipts := inv.Message.Receipts()
		if len(receipts) == 0 {
			// The published form: one receipt, attached.
			b, ok := inv.Message.Block(nb.Receipt)
			if !ok {
				return nil, &capabilities.Unavailable{Invalid: true, Reason: "the message lacks the receipt that ucan/conclude names"}
			}
			r, err := wire.DecodeReceipt(b)
			if err != nil {
				return nil, &capabilities.Unavailable{Invalid: true, Reason: "the attached receipt is malformed"}
			}
			receipts = []*capabilities.Receipt{r}
		}
		refused, err := l.arriveAll(ctx, inv, receipts)
		if err != nil {
			return nil, err
		}
		if refused == len(receipts) {
			return nil, capabilities.Fail("InvalidReceipt", "none of the %d receipts is to be believed", refused)
		}
		return capabilities.Issue(signer, inv.Link(), &ucan.ConcludeOK{Time: l.now().UnixMilli()}, capabilities.Effects{})
	}
}

// arriveAll takes the receipts of a message and returns how many are not to be believed.
func (l *Ledger) arriveAll(ctx context.Context, inv capabilities.Invocation, receipts []*capabilities.Receipt) (refused int, err error) {
	type arrival struct {
		receipt *capabilities.Receipt
		outcome Outcome
		refused bool
	}
	// A receipt may come before the one whose task joins its own and which makes it awaited.
	early := map[cid.Cid]*capabilities.Receipt{}
	for len(receipts) > 0 {
		arrivals := make([]*arrival, len(receipts))
		for i, r := range receipts {
			arrivals[i] = &arrival{receipt: r}
		}
		err := store.Each(ctx, l.Parallel, arrivals, func(a *arrival) (err error) {
			a.outcome, err = l.Arrive(ctx, inv.Message, a.receipt)
			if errors.Is(err, capabilities.ErrInvalidReceipt) {
				a.refused = true
				l.log.Warn("refused a receipt", "task", a.receipt.Ran, "from", inv.Issuer, "err", err)
				return nil
			}
			return err
		})
		if err != nil {
			return refused, err
		}
		for _, a := range arrivals {
			if a.refused {
				refused++
			} else if a.outcome == Unknown {
				early[a.receipt.Ran] = a.receipt
			}
		}
		receipts = nil
		for _, a := range arrivals {
			if joined := early[a.receipt.Join]; joined != nil && !a.refused && a.outcome == Kept {
				receipts = append(receipts, joined)
				delete(early, joined.Ran)
			}
		}
	}
	return refused, nil
}

// Delivery is a batch of conclusions on its way to another role, under `delivery/{to}`. It is repeated until it was taken.
type Delivery struct {
	// Tasks names conclusions in the ledger.
	Tasks []cid.Cid `cbor:"t,omitzero"`
	// Packs names packs of conclusions, each delivered whole.
	Packs  []cid.Cid `cbor:"p,omitzero"`
	Since  int64     `cbor:"s"` // milliseconds since the Unix epoch
	Tries  int       `cbor:"n,omitzero"`
	Reason string    `cbor:"r,omitzero"` // why the last try failed
	Next   int64     `cbor:"x,omitzero"`
}

// Send is the message that asks for one try of a delivery.
type Send struct {
	To  string `cbor:"t"`
	ID  string `cbor:"i"`
	Try int    `cbor:"n,omitzero"` // the try that this message stands for
}

// Courier brings conclusions to the roles that wait for them: the fast path. The safety net is that they can be pulled.
type Courier struct {
	Ledger     *Ledger
	Signer     capabilities.Signer
	Deliveries store.Table[Delivery]
	Blobs      store.Blobs
	Queue      store.Queue[Send]
	// Conn returns the connection to a role, false if the role is not one that is pushed to.
	Conn func(to string) (capabilities.Conn, bool)
	Now  func() time.Time
}

// Enqueue makes a delivery durable. The id makes it unique for the receiver: repeating it does nothing.
func (c *Courier) Enqueue(ctx context.Context, to, id string, d Delivery) error {
	if _, ok := c.Conn(to); !ok {
		return nil
	}
	d.Since = c.Now().UnixMilli()
	rec := store.Record[Delivery]{Key: deliveryKey(to, id), Value: d}
	var fx store.Effects
	c.Queue.Send(&fx, Send{To: to, ID: id})
	if _, err := c.Deliveries.Create(ctx, &rec, fx); err != nil {
		return fmt.Errorf("queueing receipts for %s: %w", to, err)
	}
	return nil
}

func deliveryKey(to, id string) store.Key { return store.Key{Partition: "delivery/" + to, Sort: id} }

// deliveryWindow is how long a delivery is tried. After that the receiver pulls, if it is ever there again.
const deliveryWindow = 7 * 24 * time.Hour

// Deliver tries one delivery: the handler of Queue.
func (c *Courier) Deliver(ctx context.Context, s Send) error {
	rec, err := c.Deliveries.Get(ctx, deliveryKey(s.To, s.ID))
	if errors.Is(err, store.ErrNotFound) || err == nil && rec.Value.Tries > s.Try {
		return nil // taken, or a later try is on its way
	}
	if err != nil {
		return err
	}
	conn, ok := c.Conn(s.To)
	if ok {
		err = c.send(ctx, conn, s.To, rec.Value)
	}
	now := c.Now()
	if err == nil || now.Sub(time.UnixMilli(rec.Value.Since)) > deliveryWindow {
		if err := c.Deliveries.Commit(ctx, &rec, store.Effects{Delete: true}); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
		return nil
	}
	var fx store.Effects
	rec.Value.Tries++
	rec.Value.Reason = err.Error()
	next := now.Add(Backoff(rec.Value.Tries, time.Second, 10*time.Minute))
	rec.Value.Next = next.UnixMilli()
	c.Queue.SendAt(&fx, next, Send{s.To, s.ID, rec.Value.Tries})
	if err := c.Deliveries.Commit(ctx, &rec, fx); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}

func (c *Courier) send(ctx context.Context, conn capabilities.Conn, to string, d Delivery) error {
	m, size := new(capabilities.Message), 0
	flush := func() error {
		if size == 0 {
			return nil
		}
		audience, err := wire.ParseDID(to)
		if err != nil {
			return err
		}
		inv, err := capabilities.Invoke(c.Signer, audience, c.Signer.DID().String(),
			&ucan.Conclude{Receipt: m.Receipts()[0].Link()}, capabilities.Terms{})
		if err != nil {
			return err
		}
		m.AddInvocation(inv.UCAN)
		if _, err := conn.Execute(ctx, m); err != nil {
			return err
		}
		m, size = new(capabilities.Message), 0
		return nil
	}
	add := func(b []byte) error {
		if len(m.Receipts()) == MaxReceipts || size > 0 && size+len(b) > MaxBatch {
			if err := flush(); err != nil {
				return err
			}
		}
		one, err := wire.DecodeMessage(b, wire.Limits{})
		if err != nil {
			return fmt.Errorf("reading a stored conclusion: %w", err)
		}
		for _, r := range one.Receipts() {
			m.AddReceipt(r, withoutBlock(one.Blocks(), r.Link())...)
		}
		size += len(b)
		return nil
	}
	for _, t := range d.Tasks {
		rec, err := c.Ledger.Get(ctx, t)
		if err != nil {
			return fmt.Errorf("reading the receipt of %s: %w", t, err)
		}
		if err := add(rec.Message); err != nil {
			return err
		}
	}
	for _, p := range d.Packs {
		if err := store.ReadPack(ctx, c.Blobs, p, func(_ store.Entry, b []byte) error { return add(b) }); err != nil {
			return err
		}
	}
	return flush()
}

func withoutBlock(blocks []capabilities.Block, c cid.Cid) []capabilities.Block {
	out := make([]capabilities.Block, 0, len(blocks))
	for _, b := range blocks {
		if !b.CID.Equals(c) {
			out = append(out, b)
		}
	}
	return out
}

// Backoff is how long to wait before try n+1: first, doubling, at most limit. It has no jitter of its own; what is retried
// here is spread by when it began.
func Backoff(n int, first, limit time.Duration) time.Duration {
	for range min(n-1, 30) {
		if first >= limit/2 {
			return limit
		}
		first *= 2
	}
	return min(first, limit)
}
