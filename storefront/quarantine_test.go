package storefront_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
)

// TestEndedInQuarantine: a piece that the aggregator kept apart and ended has expired. Its chain ends there; the pair is as good as before.
func TestEndedInQuarantine(t *testing.T) {
	storetest.Sweep(t, []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate},
		func(t *testing.T, choose storetest.Chooser) {
			armed := false
			m := newMarket(t, func(c storetest.Call) storetest.Fault {
				if !armed {
					return storetest.None
				}
				return choose(c)
			}, nil)
			mallory, alice := chaintest.Key("mallory"), chaintest.Key("alice")
			i, _ := m.good(mallory)
			m.run(time.Second)
			was := m.state(i)
			if was.State != "offered" {
				t.Fatalf("%+v", was)
			}
			aggregator := chaintest.Key("aggregator")
			accept := chaintest.Invoke(aggregator, aggregator.DID(), aggregator.DID().String(), &piececap.Accept{Piece: i.piece, Group: was.Group}, capabilities.Terms{})
			ended := conclusion(t, aggregator, accept, capabilities.NewQuarantineEnded(i.piece, was.Group, m.clock()), nil, capabilities.Effects{})
			conclude := chaintest.Invoke(aggregator, m.self.DID(), aggregator.DID().String(), &ucan.Conclude{Receipt: ended.Receipts()[0].Link()}, capabilities.Terms{})
			armed = true
			if err := storetest.Again(func() error {
				_, err := m.Methods()[ucan.ConcludeAbility](t.Context(), capabilities.Invocation{Task: conclude, Message: ended})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			m.run(time.Minute)
			armed = false
			m.run(time.Hour)
			expired := m.state(i).Since
			check := func() {
				t.Helper()
				s := m.state(i)
				if s.State != "expired" || !strings.HasPrefix(s.Reason, "quarantine: ") || !s.Since.Equal(expired) {
					t.Errorf("%+v", s)
				}
				link, err := cid.Parse(s.Tasks[filecoin.AcceptAbility])
				if err != nil {
					t.Fatal(err)
				}
				if _, err := m.Receipt(t.Context(), link); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("filecoin/accept, which is everybody's: %v", err)
				}
			}
			check()
			// The same chain cannot be walked twice; one of its own can.
			for _, agent := range []capabilities.Signer{mallory, alice} {
				if f := m.send(m.offering(agent, i.cid, i.piece, "")); f != nil {
					t.Fatal(f)
				}
			}
			m.run(time.Hour)
			check()
			if f := m.send(m.offering(alice, i.cid, i.piece, "once more")); f != nil {
				t.Fatal(f)
			}
			m.run(time.Hour)
			status, err := m.Status(t.Context(), i.piece.CID())
			if err != nil {
				t.Fatal(err)
			}
			var states []string
			for _, p := range status.Pieces {
				states = append(states, p.State)
			}
			slices.Sort(states)
			if got := strings.Join(states, " "); got != "expired offered" {
				t.Errorf("offered with a nonce: %s", got)
			}
		})
}
