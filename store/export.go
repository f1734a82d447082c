package store

import (
	"context"
	"errors"
)

// ErrOnLease: some messages cannot be had for now, because they are on lease or delayed; later they can.
var ErrOnLease = errors.New("messages are on lease or delayed")

// Exporter is what an engine offers beside [Driver] to carry a role's messages to another engine. It is for administration of a role that no process
// runs: a consumer sees each message when it is due, who moves house needs all of them at once.
type Exporter interface {
	// Export calls each with every message, whenever it is due, and stops at its first error. Due is when the message can be received, zero or past if
	// that is now; there is no lease. A message may come more than once, under one ID. Engines that know their queues by themselves ignore
	// queues, the names of those that the role has. ErrOnLease if some messages could not be had.
	Export(ctx context.Context, queues []string, each func(Delivery) error) error

	// Backlog returns how many messages there are, due or not. Engines that cannot know exactly say about how many.
	Backlog(ctx context.Context, queues []string) (int, error)
}
