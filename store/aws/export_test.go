package aws

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// CreateQueues creates queues before the engine looks for them: the suite of engines does not say which it will use.
func (e *Engine) CreateQueues(ctx context.Context, names ...string) error {
	for _, name := range names {
		full := e.where.QueueName(e.options.Role, name)
		if _, err := e.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &full}); err != nil {
			return err
		}
	}
	return nil
}

// Relayed is how often the relay has looked.
func (e *Engine) Relayed() uint64 { return e.passes.Load() }

// DrainDead makes dead letters of what is in the queue of dead messages.
func (e *Engine) DrainDead(ctx context.Context) error { return e.drainDead(ctx) }

// SetPartSize makes blobs of several parts smaller.
func (e *Engine) SetPartSize(n int64) { e.partSize = n }

// SetPatience is how long a commit waits for its messages to be sent.
func (e *Engine) SetPatience(d time.Duration) { e.patience = d }
