package store

import "context"

// Handler does the work of one message. It is called again with the same message after an error, a crash or a lost lease, so it
// must be safe to repeat. When ctx is cancelled the work is no longer this handler's.
type Handler func(ctx context.Context, d Delivery) error
