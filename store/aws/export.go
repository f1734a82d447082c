package aws

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/storacha/w3filecoin/store"
)

var _ store.Exporter = (*Engine)(nil)

const (
	// exportLease is for how long a message is kept from others while it is read. If this process ends before it gives them back, they
	// come back by themselves.
	exportLease = 15 * time.Minute
	// exportPatience is for how long messages are waited for that are on lease or delayed, exportPause how long between two looks.
	exportPatience = time.Minute
	exportPause    = 5 * time.Second
	exportParallel = 16
)

// Export implements [store.Exporter]. Messages that still ride in rows are read there. SQS shows messages only to those who receive them, so
// those in queues are received, given to each, and given back when all have been seen: they stay, with one more delivery counted. A queue is done when SQS
// counts no more messages than were seen in it. What is in the queue of dead messages becomes dead letters, which are rows, first.
func (e *Engine) Export(ctx context.Context, queues []string, each func(store.Delivery) error) error {
	end, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := e.drainDead(ctx); err != nil {
		return err
	}
	if err := e.outbox(ctx, func(m envelope) error { return each(m.delivery()) }); err != nil {
		return err
	}
	var short []error
	for _, name := range queues {
		// One queue with messages on lease keeps nobody from the others.
		if err := e.exportQueue(ctx, name, each); errors.Is(err, store.ErrOnLease) {
			short = append(short, err)
		} else if err != nil {
			return err
		}
	}
	return errors.Join(short...)
}

// Backlog implements [store.Exporter]; SQS counts approximately, and is right within a minute after the last change.
func (e *Engine) Backlog(ctx context.Context, queues []string) (n int, err error) {
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := e.outbox(ctx, func(envelope) error { n++; return nil }); err != nil {
		return 0, err
	}
	for _, name := range queues {
		q, err := e.queue(ctx, name)
		if err != nil {
			return 0, err
		}
		held, err := e.countQueue(ctx, q)
		if err != nil {
			return 0, err
		}
		n += held
	}
	return n, nil
}

// delivery is the message as a consumer would get it, without a lease.
func (v envelope) delivery() store.Delivery {
	return store.Delivery{Message: store.Message{Queue: v.Queue, Body: v.Body, Due: v.Due}, ID: v.ID, Enqueued: v.Enqueued}
}

// outbox reads the messages that ride in items, in the table itself: its index may be late.
func (e *Engine) outbox(ctx context.Context, each func(envelope) error) error {
	var start item
	for {
		out, err := e.db.Scan(ctx, &dynamodb.ScanInput{
			TableName: &e.rows, ConsistentRead: awssdk.Bool(true), ExclusiveStartKey: start,
			ReturnConsumedCapacity: ddbtypes.ReturnConsumedCapacityTotal,
		})
		if err != nil {
			return fault("reading the messages of rows", err)
		}
		for _, it := range out.Items {
			held, err := pending(it)
			if err != nil {
				return err
			}
			for _, m := range held {
				if err := each(m); err != nil {
					return err
				}
			}
		}
		if start = out.LastEvaluatedKey; len(start) == 0 {
			return nil
		}
	}
}

// exportQueue shows the messages of one queue.
func (e *Engine) exportQueue(ctx context.Context, name string, each func(store.Delivery) error) error {
	q, err := e.queue(ctx, name)
	if err != nil {
		return err
	}
	held := map[string]string{} // receipt handles by SQS's own ID
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), background)
		defer cancel()
		e.giveBack(ctx, q, held)
	}()
	for waited := time.Duration(0); ; {
		out, err := e.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &q.url, MaxNumberOfMessages: batchSize, VisibilityTimeout: seconds(exportLease),
			WaitTimeSeconds: 1, // asks all servers instead of some: nothing received is then nothing there
		})
		if err != nil {
			return fault("receiving from "+name, err)
		}
		for _, m := range out.Messages {
			v, err := decodeEnvelope(awssdk.ToString(m.Body))
			if err == nil && v.Queue != name {
				err = fmt.Errorf("it is for %s", v.Queue)
			}
			if err != nil {
				return fmt.Errorf("aws: message %s in queue %s: %w", awssdk.ToString(m.MessageId), name, errors.Join(err, store.ErrCorrupt))
			}
			id := awssdk.ToString(m.MessageId)
			_, again := held[id]
			held[id] = awssdk.ToString(m.ReceiptHandle)
			if again {
				continue
			}
			if err := each(v.delivery()); err != nil {
				return err
			}
		}
		if len(out.Messages) > 0 {
			waited = 0
			continue
		}
		n, err := e.countQueue(ctx, q)
		switch {
		case err != nil:
			return err
		case n <= len(held):
			return nil
		case waited >= exportPatience:
			return fmt.Errorf("aws: queue %s has about %d messages that cannot be received now: %w", name, n-len(held), store.ErrOnLease)
		}
		if err := e.wait(ctx, exportPause); err != nil {
			return err
		}
		waited += exportPause
	}
}

// giveBack ends the leases of messages that were only looked at. Whatever fails ends by itself.
func (e *Engine) giveBack(ctx context.Context, q *queue, held map[string]string) {
	var handles []string
	for _, h := range held {
		handles = append(handles, h)
	}
	_ = store.Each(ctx, exportParallel, handles, func(handle string) error {
		_, err := e.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: &q.url, ReceiptHandle: &handle, VisibilityTimeout: 0})
		if err != nil && !lost(err) {
			e.options.OnError(fault("giving back a message of "+q.name, err))
		}
		return nil
	})
}

// countQueue is about how many messages a queue has: received, delayed and neither.
func (e *Engine) countQueue(ctx context.Context, q *queue) (n int, err error) {
	names := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages,
		types.QueueAttributeNameApproximateNumberOfMessagesDelayed, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible}
	out, err := e.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &q.url, AttributeNames: names})
	if err != nil {
		return 0, fault("counting the messages of "+q.name, err)
	}
	for _, name := range names {
		count, err := strconv.Atoi(out.Attributes[string(name)])
		if err != nil {
			return 0, fault("counting the messages of "+q.name, err)
		}
		n += count
	}
	return n, nil
}
