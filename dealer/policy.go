package dealer

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

// recompute checks that a list of pieces gives the aggregate. The answer is a fact of the two, so the failure is final.
//
// Half the deal at least has to be content: a provider's software sizes a deal by what is in it, and would make a smaller one of less.
func recompute(offer aggregatecap.Offer, pieces []piece.Link) *capabilities.Failure {
	size := offer.Aggregate.PaddedSize()
	tree, err := segment.Build(size, pieces)
	if err != nil {
		return capabilities.NewAggregateMismatch(offer.Aggregate, piece.Link{},
			fmt.Sprintf("the list of %d pieces makes no aggregate of %d padded bytes: %v", len(pieces), size, err))
	}
	if tree.Link() != offer.Aggregate {
		return capabilities.NewAggregateMismatch(offer.Aggregate, tree.Link(),
			fmt.Sprintf("the list of %d pieces makes the aggregate %s, not %s", len(pieces), tree.Link(), offer.Aggregate))
	}
	if content := contentOf(pieces); content < size/2 {
		return capabilities.NewAggregateMismatch(offer.Aggregate, tree.Link(),
			fmt.Sprintf("the pieces have %d padded bytes, less than half of the aggregate's %d: build a smaller aggregate", content, size))
	}
	return nil
}

func contentOf(pieces []piece.Link) (sum uint64) {
	for _, p := range pieces {
		sum += p.PaddedSize()
	}
	return sum
}

// verdict is what the deals of an aggregate mean.
type verdict struct {
	// success: there are enough replicas, and deal names them in the receipt.
	success bool
	deal    uint64
	// attempts counts the providers with deals, lost those whose deals have all ended.
	attempts, lost int
	// reason says why it is no success yet.
	reason string
}

// judge applies the policy: a success is when deals with enough distinct providers are active. Of a tracker that does not tell the status
// of deals (the predecessor's) any deal counts. The deal named is the one with the smallest id.
func judge(deals deal.Deals, replicas int) verdict {
	var v verdict
	active, alive, counts := map[string]bool{}, map[string]bool{}, map[string]int{}
	for id, d := range deals {
		counts[d.Status]++
		switch d.Status {
		case deal.StatusActive, "":
			if len(active) == 0 || id < v.deal {
				v.deal = id
			}
			active[d.Provider], alive[d.Provider] = true, true
		case deal.StatusTerminated, deal.StatusExpired:
			if !alive[d.Provider] {
				alive[d.Provider] = false
			}
		default:
			alive[d.Provider] = true
		}
	}
	for _, lives := range alive {
		v.attempts++
		if !lives {
			v.lost++
		}
	}
	if v.success = len(active) >= replicas; v.success {
		return v
	}
	v.reason = "no provider has published a deal yet"
	if len(deals) > 0 {
		var parts []string
		for _, status := range slices.Sorted(maps.Keys(counts)) {
			parts = append(parts, fmt.Sprintf("%d %s", counts[status], status))
		}
		v.reason = fmt.Sprintf("%d of %d providers with an active deal; deals: %s", len(active), replicas, strings.Join(parts, ", "))
	}
	return v
}
