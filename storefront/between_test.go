package storefront_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

// TestReceiptComesBetween: the receipt of piece/accept comes between two commits of the step that is to wait for it, and the process ends after the
// second. The step, when it is repeated, finds the receipt; and where it is never repeated, whoever looks after pieces that wait does.
func TestReceiptComesBetween(t *testing.T) {
	for name, tt := range map[string]struct {
		repeated bool
		within   time.Duration
	}{
		"the step is repeated": {true, 10 * time.Minute},
		"the step is lost":     {false, 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var s *shop
			came := false
			s = newShop(t, storefront.Policy{}, func(c storetest.Call) storetest.Fault {
				if came || !storetest.Commits(c) || !strings.HasPrefix(c.Change.Row.Listing.Index, "offered/") {
					return storetest.None
				}
				came = true
				s.push(conclusion(t, s.Aggregator, s.accept, nil, &piececap.AcceptOK{Piece: s.Piece, Aggregate: s.Aggregate, Inclusion: s.Inclusion},
					capabilities.Effects{Join: &s.Links[aggregatecap.OfferAbility].Task}))
				return storetest.FailAfter
			})
			if err := s.offer(); err != nil {
				t.Fatal(err)
			}
			if got := s.standing(); !came || got.State != "offered" {
				t.Fatalf("after the offer: %+v", got)
			}
			if !tt.repeated {
				if err := s.Start(t.Context()); err != nil { // its ticks
					t.Fatal(err)
				}
				s.stage.Clock.Advance(10 * time.Minute)
				lost, err := s.stage.Engine.Receive(t.Context(), "piece-offer", 1, time.Minute)
				if err != nil || len(lost) != 1 {
					t.Fatalf("%d messages, %v", len(lost), err)
				}
				if err := s.stage.Engine.Ack(t.Context(), lost[0]); err != nil {
					t.Fatal(err)
				}
			}
			s.stage.Run(tt.within)
			if got := s.standing(); got.State != "aggregated" {
				t.Errorf("after %v: %+v", tt.within, got)
			}
		})
	}
}
