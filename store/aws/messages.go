package aws

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/storacha/w3filecoin/store"
)

const (
	batchSize     = 10             // messages of a request, at most
	maxVisibility = 12 * time.Hour // from reception, prolongations included
)

// queues are the SQS queues of a role, found when they are first used.
type queues struct {
	mu    sync.Mutex
	known map[string]*queue
	dead  string // URL of the queue of dead messages
}

// queue is one SQS queue.
type queue struct {
	name  string
	url   string
	sends batcher[types.SendMessageBatchRequestEntry]
	acks  batcher[string]

	mu      sync.Mutex
	arrived uint64    // messages sent by this process
	looked  uint64    // arrived when the queue was last found empty
	empty   time.Time // when that was; zero: it was not
	since   time.Time // since when nothing has been found or sent
	looking int       // requests to receive that are under way
}

// queue returns the SQS queue of one of the role's queues. The error names what to do if there is none.
func (e *Engine) queue(ctx context.Context, name string) (*queue, error) {
	e.queues.mu.Lock()
	q := e.queues.known[name]
	e.queues.mu.Unlock()
	if q != nil {
		return q, nil
	}
	if err := checkQueue(name); err != nil {
		return nil, fmt.Errorf("aws: queue %q: %w", name, err)
	}
	full := e.where.QueueName(e.options.Role, name)
	out, err := e.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &full})
	var missing *types.QueueDoesNotExist
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("aws: queue %s does not exist: it has to be created before it is used", full)
	}
	if err != nil {
		return nil, fault("looking for queue "+full, err)
	}
	q = &queue{name: name, url: awssdk.ToString(out.QueueUrl)}
	q.sends = batcher[types.SendMessageBatchRequestEntry]{max: batchSize, parallel: e.parallel(sendParallel),
		do: func(batch []types.SendMessageBatchRequestEntry) []error { return e.sendBatch(q, batch) }}
	q.acks = batcher[string]{max: batchSize, parallel: e.parallel(sendParallel),
		do: func(handles []string) []error { return e.deleteBatch(q, handles) }}
	e.queues.mu.Lock()
	defer e.queues.mu.Unlock()
	if other := e.queues.known[name]; other != nil {
		return other, nil
	}
	e.queues.known[name] = q
	return q, nil
}

// sendAll sends messages of any queues and returns an error, or nil, for each.
func (e *Engine) sendAll(ctx context.Context, messages []envelope) []error {
	errs := make([]error, len(messages))
	var order []*queue
	places := map[*queue][]int{}
	entries := map[*queue][]types.SendMessageBatchRequestEntry{}
	now := e.options.Now()
	for i, m := range messages {
		q, err := e.queue(ctx, m.Queue)
		if err != nil {
			errs[i] = err
			continue
		}
		m.Look = 0
		body, err := m.encode()
		if err != nil {
			errs[i] = err
			continue
		}
		if len(places[q]) == 0 {
			order = append(order, q)
		}
		places[q] = append(places[q], i)
		entries[q] = append(entries[q], types.SendMessageBatchRequestEntry{MessageBody: &body, DelaySeconds: m.delay(now)})
	}
	// Every queue has its turn, whatever ctx says: a message without an error counts as sent.
	_ = store.Each(context.WithoutCancel(ctx), e.parallel(len(order)), order, func(q *queue) error {
		for i, err := range q.sends.run(entries[q]) {
			errs[places[q][i]] = err
		}
		return nil
	})
	return errs
}

// sendBatch sends up to ten messages.
func (e *Engine) sendBatch(q *queue, batch []types.SendMessageBatchRequestEntry) []error {
	return e.entries(len(batch), func(ctx context.Context, places []int) (answer, error) {
		var chosen []types.SendMessageBatchRequestEntry
		for _, i := range places {
			entry := batch[i]
			entry.Id = awssdk.String(strconv.Itoa(i))
			chosen = append(chosen, entry)
		}
		out, err := e.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: chosen})
		if err != nil {
			return answer{}, err
		}
		a := answer{failed: out.Failed}
		for _, sent := range out.Successful {
			a.done = append(a.done, sent.Id)
		}
		q.mu.Lock()
		q.arrived += uint64(len(a.done))
		q.mu.Unlock()
		return a, nil
	})
}

// deleteBatch acknowledges up to ten messages.
func (e *Engine) deleteBatch(q *queue, handles []string) []error {
	return e.entries(len(handles), func(ctx context.Context, places []int) (answer, error) {
		var chosen []types.DeleteMessageBatchRequestEntry
		for _, i := range places {
			chosen = append(chosen, types.DeleteMessageBatchRequestEntry{Id: awssdk.String(strconv.Itoa(i)), ReceiptHandle: &handles[i]})
		}
		out, err := e.sqs.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &q.url, Entries: chosen})
		if err != nil {
			return answer{}, err
		}
		a := answer{failed: out.Failed}
		for _, gone := range out.Successful {
			a.done = append(a.done, gone.Id)
		}
		return a, nil
	})
}

// answer says what became of the entries of a request. The ID of an entry is its place.
type answer struct {
	done   []*string
	failed []types.BatchResultErrorEntry
}

// entries makes a request of n entries and returns an error, or nil, for each. A request that is answered may have done some of them only; what the
// service says is its own fault is asked for again, as the SDK asks again for whole requests.
func (e *Engine) entries(n int, request func(ctx context.Context, places []int) (answer, error)) []error {
	ctx, cancel := context.WithTimeout(context.Background(), background)
	defer cancel()
	errs := make([]error, n)
	places := make([]int, n)
	for i := range places {
		places[i] = i
	}
	for try := 1; ; try++ {
		a, err := request(ctx, places)
		for _, i := range places {
			if errs[i] = err; err == nil {
				errs[i] = errors.New("the answer does not say what became of it")
			}
		}
		for _, id := range a.done {
			settleEntry(errs, id, nil)
		}
		places = nil
		for _, f := range a.failed {
			i := settleEntry(errs, f.Id, &smithy.GenericAPIError{Code: awssdk.ToString(f.Code), Message: awssdk.ToString(f.Message)})
			if i >= 0 && !f.SenderFault {
				places = append(places, i)
			}
		}
		if len(places) == 0 || try == maxAttempts || e.wait(ctx, pause(try-1)) != nil {
			return errs
		}
	}
}

// settleEntry notes how an entry of a batch ended and returns its place, -1 if there is no such entry.
func settleEntry(errs []error, id *string, err error) int {
	i, convErr := strconv.Atoi(awssdk.ToString(id))
	if convErr != nil || i < 0 || i >= len(errs) {
		return -1
	}
	errs[i] = err
	return i
}

// leases are those that this process has been given.
type leases struct {
	mu   sync.Mutex
	held map[string]lease // by receipt handle
	next int              // how many may be held before those that ended are forgotten
}

type lease struct {
	until time.Time // not later than SQS ends it
	limit time.Time // it cannot be prolonged beyond
}

func (l *leases) add(handle string, v lease, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) >= max(l.next, 1024) {
		for h, old := range l.held {
			if old.until.Before(now) {
				delete(l.held, h)
			}
		}
		l.next = 2 * len(l.held)
	}
	l.held[handle] = v
}

// get returns a lease that has not ended.
func (l *leases) get(handle string, now time.Time) (lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.held[handle]
	if !ok || !now.Before(v.until) {
		delete(l.held, handle)
		return lease{}, store.ErrLeaseLost
	}
	return v, nil
}

// end forgets a lease. It is an error if it ended before.
func (l *leases) end(handle string, now time.Time) (lease, error) {
	v, err := l.get(handle, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, handle)
	return v, err
}

// A queue that has been empty for longer is looked into less often: after an eighth of that time, up to so many times as long as [Options].Poll.
const (
	seldomAfter = 8
	seldomMost  = 10
)

// again is when the queue is worth a look, having been empty.
func (q *queue) again(poll time.Duration) time.Time {
	return q.empty.Add(max(poll, min(q.empty.Sub(q.since)/seldomAfter, seldomMost*poll)))
}

// Receive implements [store.Messages]. A queue that was empty a moment ago is not looked into again, nor by several callers at a time, unless this
// process sent something to it.
func (e *Engine) Receive(ctx context.Context, name string, limit int, held time.Duration) ([]store.Delivery, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if limit < 1 {
		return nil, nil
	}
	q, err := e.queue(ctx, name)
	if err != nil {
		return nil, err
	}
	began := e.options.Now()
	q.mu.Lock()
	arrived := q.arrived
	idle := !q.empty.IsZero() && q.looked == arrived && e.options.Poll > 0 && (q.looking > 0 || began.Before(q.again(e.options.Poll)))
	if !idle {
		q.looking++
	}
	q.mu.Unlock()
	if idle {
		return nil, nil
	}
	visibility := min(max(seconds(held), 1), seconds(maxVisibility))
	out, err := e.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: int32(min(limit, batchSize)), VisibilityTimeout: visibility,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount},
	})
	q.mu.Lock()
	q.looking--
	if err == nil {
		if len(out.Messages) > 0 {
			q.empty = time.Time{}
		} else {
			if q.empty.IsZero() || q.looked != arrived {
				q.since = began
			}
			q.empty = began
		}
		q.looked = arrived
	}
	q.mu.Unlock()
	var full *types.OverLimit
	if errors.As(err, &full) {
		return nil, nil // as many are leased as may be
	}
	if err != nil {
		return nil, fault("receiving from "+name, err)
	}
	var deliveries []store.Delivery
	for _, m := range out.Messages {
		v, err := decodeEnvelope(awssdk.ToString(m.Body))
		if err == nil && v.Queue != name {
			err = fmt.Errorf("it is for %s", v.Queue)
		}
		if err != nil {
			// It comes again until it moves to the queue of dead messages.
			e.options.OnError(fmt.Errorf("aws: message %s in queue %s: %w", awssdk.ToString(m.MessageId), name, err))
			continue
		}
		attempt, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
		if err != nil || attempt < 1 {
			attempt = 1
		}
		handle := awssdk.ToString(m.ReceiptHandle)
		e.leases.add(handle, lease{until: began.Add(held), limit: began.Add(maxVisibility)}, began)
		deliveries = append(deliveries, store.Delivery{
			Message: store.Message{Queue: name, Body: v.Body, Due: v.Due}, ID: v.ID, Attempt: attempt, Enqueued: v.Enqueued, Lease: handle,
		})
	}
	return deliveries, nil
}

// Ack implements [store.Messages].
func (e *Engine) Ack(ctx context.Context, d store.Delivery) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	q, err := e.queue(ctx, d.Queue)
	if err != nil {
		return err
	}
	now := e.options.Now()
	v, err := e.leases.end(d.Lease, now)
	if err != nil {
		return err
	}
	if err := q.acks.run([]string{d.Lease})[0]; err != nil {
		if lost(err) {
			return store.ErrLeaseLost
		}
		e.leases.add(d.Lease, v, now) // it may be tried again
		return fault("acknowledging message "+d.ID, err)
	}
	return nil
}

// Extend implements [store.Messages].
func (e *Engine) Extend(ctx context.Context, d store.Delivery, held time.Duration) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	now := e.options.Now()
	v, err := e.leases.get(d.Lease, now)
	if err != nil {
		return err
	}
	held = min(held, v.limit.Sub(now))
	if err := e.changeVisibility(ctx, d, held); err != nil {
		return err
	}
	v.until = now.Add(held)
	e.leases.mu.Lock()
	defer e.leases.mu.Unlock()
	if _, ok := e.leases.held[d.Lease]; ok { // not ended meanwhile
		e.leases.held[d.Lease] = v
	}
	return nil
}

// Retry implements [store.Messages]. A message comes again after twelve hours from when it was received, whatever the delay.
func (e *Engine) Retry(ctx context.Context, d store.Delivery, after time.Duration) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	now := e.options.Now()
	v, err := e.leases.end(d.Lease, now)
	if err != nil {
		return err
	}
	if err := e.changeVisibility(ctx, d, min(after, v.limit.Sub(now))); err != nil {
		if !errors.Is(err, store.ErrLeaseLost) {
			e.leases.add(d.Lease, v, now)
		}
		return err
	}
	if after <= 0 {
		if q, err := e.queue(ctx, d.Queue); err == nil {
			q.mu.Lock()
			q.empty = time.Time{}
			q.mu.Unlock()
		}
	}
	return nil
}

func (e *Engine) changeVisibility(ctx context.Context, d store.Delivery, until time.Duration) error {
	q, err := e.queue(ctx, d.Queue)
	if err != nil {
		return err
	}
	visibility := seconds(until)
	if limit := int32(maxVisibility / time.Second); visibility >= limit {
		visibility = limit - 1
	}
	_, err = e.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &q.url, ReceiptHandle: &d.Lease, VisibilityTimeout: visibility,
	})
	switch {
	case err == nil:
		return nil
	case lost(err):
		return store.ErrLeaseLost
	}
	return fault("changing the lease of message "+d.ID, err)
}

// lost: the service says that the message is gone, or no longer ours.
func lost(err error) bool {
	var invalid *types.ReceiptHandleIsInvalid
	var idle *types.MessageNotInflight
	var api smithy.APIError
	switch {
	case errors.As(err, &invalid), errors.As(err, &idle):
		return true
	case errors.As(err, &api):
		switch api.ErrorCode() {
		case "ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue":
			return true
		}
	}
	return false
}

// drainDead moves what came into the queue of dead messages, after more deliveries than any consumer answers for, to the rows where
// dead letters are found.
func (e *Engine) drainDead(ctx context.Context) error {
	name := e.where.DeadQueueName(e.options.Role)
	url, err := e.deadQueueURL(ctx, name)
	if err != nil {
		return err
	}
	for {
		out, err := e.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &url, MaxNumberOfMessages: batchSize, VisibilityTimeout: seconds(background),
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount},
		})
		if err != nil {
			return fault("receiving from "+name, err)
		}
		for _, m := range out.Messages {
			if err := e.bury(ctx, m); err != nil {
				return err
			}
			if _, err := e.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle}); err != nil {
				return fault("removing a message from "+name, err)
			}
		}
		if len(out.Messages) == 0 {
			return nil
		}
	}
}

func (e *Engine) deadQueueURL(ctx context.Context, name string) (string, error) {
	e.queues.mu.Lock()
	url := e.queues.dead
	e.queues.mu.Unlock()
	if url != "" {
		return url, nil
	}
	out, err := e.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if err != nil {
		return "", fault("looking for queue "+name, err)
	}
	e.queues.mu.Lock()
	defer e.queues.mu.Unlock()
	e.queues.dead = awssdk.ToString(out.QueueUrl)
	return e.queues.dead, nil
}

// bury writes the dead letter of a message, unless its consumer or another replica has.
func (e *Engine) bury(ctx context.Context, m types.Message) error {
	letter := store.DeadLetter{
		Queue: "unknown", Body: []byte(awssdk.ToString(m.Body)), Died: e.options.Now().UTC(),
		Error: "received again and again, never acknowledged: whoever worked on it ended, or it could not be read",
	}
	id := awssdk.ToString(m.MessageId)
	if v, err := decodeEnvelope(awssdk.ToString(m.Body)); err == nil {
		letter.Queue, letter.Body, letter.Enqueued, id = v.Queue, v.Body, v.Enqueued, v.ID
	}
	letter.Body = letter.Body[:min(len(letter.Body), store.MaxMessageBody)]
	if n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]); err == nil {
		letter.Attempts = n
	}
	_, err := store.WriteDead(ctx, e, id, letter)
	return err
}
