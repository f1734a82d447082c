package dealer

import (
	"context"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// statusPage bounds how many rows a status lists.
const statusPage = 100

// Status tells where an aggregate stands. store.ErrNotFound if it was never offered.
func (s *Service) Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error) {
	link, err := piece.FromCID(c)
	if err != nil {
		return nil, store.ErrNotFound
	}
	rows, _, err := s.aggregates.Query(ctx, aggregatePartition(link), "", "", statusPage)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, store.ErrNotFound
	}
	status := &capabilities.Status{Role: "dealer", CID: c.String()}
	for _, rec := range rows {
		a := &rec.Value
		reason, err := s.reason(ctx, rec)
		if err != nil {
			return nil, err
		}
		status.Aggregates = append(status.Aggregates, capabilities.AggregateStatus{
			Aggregate: a.Aggregate.String(), DealSize: a.Aggregate.PaddedSize(), Content: a.Content, Count: a.Count, Deal: a.Deal,
			Waiting: capabilities.NewWaiting(a.State, a.Times, reason, a.Next),
			Tasks:   map[string]string{aggregatecap.OfferAbility: a.Offer.String(), aggregatecap.AcceptAbility: a.Accept.String()},
		})
	}
	return status, nil
}

// reason is why an aggregate waits, with the brokers that do not have it yet.
func (s *Service) reason(ctx context.Context, rec store.Record[Aggregate]) (string, error) {
	reasons := []string{rec.Value.Reason}
	if rec.Value.State == Published {
		for o, err := range s.offerings.All(ctx, offeringPartition(rec.Key), "") {
			if err != nil {
				return "", err
			}
			if o.Value.Reason != "" {
				reasons = append(reasons, fmt.Sprintf("broker %s: %s", o.Key.Sort, o.Value.Reason))
			}
		}
	}
	return strings.TrimPrefix(strings.Join(reasons, "; "), "; "), nil
}
