package dealer

import (
	"context"
	"time"

	"github.com/storacha/w3filecoin/piece"
)

// Offer is an aggregate that looks for storage providers.
type Offer struct {
	Aggregate piece.Link
	// Pieces in aggregate order.
	Pieces []piece.Link
	// Collection is the DID of the aggregator that offered it.
	Collection string
	// OfferedAt is when the dealer accepted the offer; it does not change over retries.
	OfferedAt time.Time
}

// Broker is one way to a deal.
type Broker interface {
	// Name is stable: the dealer keeps what it knows of an offer under it.
	Name() string

	// Publish makes the offer known and returns the name it has there, once it is durable there. Publishing an offer again
	// is a success with the same name. An error means that the outcome is unknown; the dealer publishes again.
	Publish(ctx context.Context, o Offer) (name string, err error)
}
