package aws

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/storacha/w3filecoin/store"
)

const (
	// sendGrace is how long a writer has to send its messages before the relay does.
	sendGrace = time.Minute
	// relayPage is how many items the relay takes from a shard at a time.
	relayPage = 100
)

// envelope is a message as it rides in its row's item and then in SQS: JSON, so that an operator can read it.
type envelope struct {
	ID       string    `json:"id"` // of all its deliveries
	Queue    string    `json:"queue"`
	Body     []byte    `json:"body"` // in base64
	Enqueued time.Time `json:"enqueued"`
	Due      time.Time `json:"due,omitzero"`
	// Look is when the relay may take it, in milliseconds since 1970.
	Look int64 `json:"look,omitempty"`
}

func (e *Engine) newEnvelope(m store.Message, now time.Time) (envelope, error) {
	id := make([]byte, 15)
	if _, err := io.ReadFull(e.options.Rand, id); err != nil {
		return envelope{}, fmt.Errorf("aws: ID of a message: %w", err)
	}
	now = now.UTC().Truncate(time.Millisecond)
	v := envelope{ID: base64.RawURLEncoding.EncodeToString(id), Queue: m.Queue, Body: m.Body, Enqueued: now, Look: millis(now.Add(sendGrace))}
	if m.Due.After(now) {
		v.Due = m.Due.UTC()
	}
	if !e.soon(v, now) {
		v.Look = millis(v.Due.Add(-e.options.Ahead + time.Millisecond - 1)) // not before: SQS delays by whole seconds
	}
	return v, nil
}

// soon: SQS takes it, with a delay if need be.
func (e *Engine) soon(v envelope, now time.Time) bool { return !v.Due.After(now.Add(e.options.Ahead)) }

// delay is for how many seconds SQS shall keep it to itself.
func (v envelope) delay(now time.Time) int32 {
	return max(0, seconds(v.Due.Sub(now)))
}

// seconds rounds up, so that nothing happens before its time.
func seconds(d time.Duration) int32 {
	return int32((max(0, d) + time.Second - 1) / time.Second)
}

func (v envelope) encode() (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding message to %s: %w", v.Queue, err)
	}
	return string(b), nil
}

// decodeEnvelope reads what encode wrote; anything else that came into a queue is refused.
func decodeEnvelope(s string) (envelope, error) {
	var v envelope
	dec := json.NewDecoder(bytes.NewReader([]byte(s)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return envelope{}, err
	}
	if dec.More() || v.ID == "" || v.Queue == "" || len(v.Body) > store.MaxMessageBody || len(v.ID) > 64 || len(v.Queue) > store.MaxQueue {
		return envelope{}, errors.New("not a message of this program")
	}
	return v, nil
}

// shardOf says in which of so many partitions of the outbox a row's messages are: writers spread over them, the relay reads each.
func shardOf(k store.Key, shards int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.Partition)) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(k.Sort))
	return int(h.Sum32() % uint32(shards))
}

// sendNow sends what a commit has caused, as far as it is due soon, and what the relay could have taken from the item already, and then takes from the
// item what was sent. It returns when all was tried to be sent, so that who looks for a message after the commit finds it, but not much later than a request
// takes: the commit is durable, and a queue that does not answer is no reason to keep its caller. Whatever fails is left to the relay.
func (e *Engine) sendNow(ctx context.Context, it item, own []envelope) {
	held, err := pending(it)
	if err != nil {
		e.options.OnError(err)
		return
	}
	mine := make(map[string]bool, len(own))
	for _, m := range own {
		mine[m.ID] = true
	}
	now := e.options.Now()
	tried := make(chan struct{})
	e.calls.Add(1) // the caller is still counted
	e.tidies <- struct{}{}
	send := func() {
		defer func() {
			<-e.tidies
			e.calls.Done()
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), background)
		defer cancel()
		sent, left := e.send(ctx, held, func(m envelope) bool {
			return e.soon(m, now) && (mine[m.ID] || m.Look <= millis(now))
		})
		close(tried)
		if err := e.tidy(ctx, it, sent, left); err != nil {
			e.options.OnError(err)
		}
	}
	if e.options.Serial {
		send()
		return
	}
	go send()
	waiting, enough := context.WithTimeout(ctx, e.patience)
	defer enough()
	select {
	case <-tried:
	case <-waiting.Done():
	}
}

// send sends the messages that are chosen and divides all of them into those that were sent and those that the item still has to hold.
func (e *Engine) send(ctx context.Context, held []envelope, chosen func(envelope) bool) (sent, left []envelope) {
	var sending []envelope
	for _, m := range held {
		if chosen(m) {
			sending = append(sending, m)
		} else {
			left = append(left, m)
		}
	}
	for i, err := range e.sendAll(ctx, sending) {
		if err != nil {
			e.options.OnError(fmt.Errorf("sending message %s to %s: %w", sending[i].ID, sending[i].Queue, err))
			left = append(left, sending[i])
			continue
		}
		sent = append(sent, sending[i])
	}
	return sent, left
}

// tidy takes messages that were sent out of an item and says when to look at it again for those that are left. If more were added
// since it was read, it only takes them out: the time that is there suits the new ones, and then is found too early at worst.
func (e *Engine) tidy(ctx context.Context, it item, sent, left []envelope) error {
	key := keyOf(it)
	seq := number(numberOf(it, attrOutSeq))
	if len(left) == 0 && numberOf(it, attrVersion) == 0 {
		u := newUpdate()
		condition := u.isAtDeleted(it)
		_, err := e.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{
			TableName: &e.rows, Key: rowKey(key), ConditionExpression: &condition, ExpressionAttributeNames: u.names,
			ExpressionAttributeValues: u.values, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
		})
		if err == nil || !refused(err) {
			return wrapFault("removing what a deleted row left", err)
		}
	}
	if len(sent) == 0 && len(left) == 0 {
		return nil
	}
	u := newUpdate()
	for _, m := range sent {
		u.remove(messagePrefix + m.ID)
	}
	if len(left) == 0 {
		u.remove(attrShard)
		u.remove(attrLook)
	} else {
		look := left[0].Look
		for _, m := range left {
			look = min(look, m.Look)
		}
		if len(sent) == 0 && look == numberOf(it, attrLook) {
			return nil
		}
		u.set(attrLook, number(look))
	}
	err := e.updateItem(ctx, key, u, u.equals(attrOutSeq, seq))
	if err == nil || !refused(err) || len(sent) == 0 {
		return wrapFault("tidying row "+key.String(), ignoreRefusal(err))
	}
	u = newUpdate()
	for _, m := range sent {
		u.remove(messagePrefix + m.ID)
	}
	return wrapFault("tidying row "+key.String(), ignoreRefusal(e.updateItem(ctx, key, u, u.exists(attrPartition))))
}

// isAtDeleted is the condition that an item is what a deletion left, and that no message was added since it was read.
func (u *update) isAtDeleted(it item) string {
	condition := u.equals(attrVersion, number(0)) + " AND "
	if seq, ok := it[attrOutSeq]; ok {
		return condition + u.equals(attrOutSeq, seq)
	}
	return condition + u.absent(attrOutSeq)
}

func refused(err error) bool {
	var refused *types.ConditionalCheckFailedException
	return errors.As(err, &refused)
}

func ignoreRefusal(err error) error {
	if refused(err) {
		return nil
	}
	return err
}

func wrapFault(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fault(doing, err)
}

func (e *Engine) updateItem(ctx context.Context, key store.Key, u *update, condition string) error {
	in := &dynamodb.UpdateItemInput{
		TableName: &e.rows, Key: rowKey(key), UpdateExpression: u.expression(), ConditionExpression: &condition,
		ExpressionAttributeNames: u.names, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	}
	if len(u.values) > 0 {
		in.ExpressionAttributeValues = u.values
	}
	_, err := e.db.UpdateItem(ctx, in)
	return err
}

// runRelay sends what writers have not, and what waits for its time, until ctx is done.
func (e *Engine) runRelay(ctx context.Context) {
	for e.wait(ctx, e.options.Relay) == nil {
		if _, err := e.Relay(ctx); err != nil && ctx.Err() == nil {
			e.options.OnError(err)
		}
		if err := e.drainDead(ctx); err != nil && ctx.Err() == nil {
			e.options.OnError(err)
		}
		e.passes.Add(1)
	}
}

// Relay looks once for messages that should have been sent by now, sends them, and returns how many it sent. The engine does so by itself, see
// [Options]. Any number of processes may do it at the same time: a message that two of them send is delivered twice.
func (e *Engine) Relay(ctx context.Context) (sent int, err error) {
	var errs []error
	for shard := range e.where.shards() {
		n, err := e.relayShard(ctx, shard)
		sent += n
		if err != nil {
			errs = append(errs, err)
		}
	}
	return sent, errors.Join(errs...)
}

func (e *Engine) relayShard(ctx context.Context, shard int) (sent int, err error) {
	var errs []error
	var start item
	for {
		u := newUpdate()
		condition := u.equals(attrShard, number(shard)) + " AND " + u.name(attrLook) + " <= " + u.value(number(millis(e.options.Now())))
		out, err := e.db.Query(ctx, &dynamodb.QueryInput{
			TableName: &e.rows, IndexName: awssdk.String(outboxIndex), Limit: awssdk.Int32(relayPage), ExclusiveStartKey: start,
			KeyConditionExpression: &condition, ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
			ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
		})
		if err != nil {
			return sent, errors.Join(append(errs, fault("reading the outbox", err))...)
		}
		for _, it := range out.Items {
			n, err := e.relayItem(ctx, keyOf(it))
			sent += n
			if err != nil {
				errs = append(errs, err) // one row that cannot be sent does not stop the others
			}
		}
		if start = out.LastEvaluatedKey; len(start) == 0 || ctx.Err() != nil {
			return sent, errors.Join(errs...)
		}
	}
}

// RelayRow is [Engine.Relay] for the messages of one row, for who knows where they are.
func (e *Engine) RelayRow(ctx context.Context, key store.Key) (sent int, err error) {
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	return e.relayItem(ctx, key)
}

// relayItem does for one item what the index, which may be late, says is to be done.
func (e *Engine) relayItem(ctx context.Context, key store.Key) (int, error) {
	it, err := e.getItem(ctx, key)
	if err != nil || it == nil {
		return 0, err
	}
	held, err := pending(it)
	if err != nil {
		return 0, err
	}
	now := e.options.Now()
	if numberOf(it, attrLook) > millis(now) {
		return 0, nil // a stale entry
	}
	sent, left := e.send(ctx, held, func(m envelope) bool { return m.Look <= millis(now) })
	if len(held) == 0 && numberOf(it, attrVersion) != 0 {
		// All had been sent by writers whose tidying met each other.
		u := newUpdate()
		u.remove(attrShard)
		u.remove(attrLook)
		return 0, wrapFault("tidying row "+key.String(), ignoreRefusal(
			e.updateItem(ctx, key, u, u.equals(attrOutSeq, number(numberOf(it, attrOutSeq))))))
	}
	return len(sent), e.tidy(ctx, it, sent, left)
}
