package dealtracker_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// fakeChain is a Source whose events a test sets. It answers with what is true at the moment of the call.
type fakeChain struct {
	head   dealtracker.Head
	events []dealtracker.Event
	err    error // of the next calls, while it is set
	ranges [][2]int64
}

func (c *fakeChain) Name() string { return "fake" }

func (c *fakeChain) Head(context.Context) (dealtracker.Head, error) { return c.head, c.err }

func (c *fakeChain) Events(_ context.Context, from, to int64) ([]dealtracker.Event, error) {
	c.ranges = append(c.ranges, [2]int64{from, to})
	if c.err != nil {
		return nil, c.err
	}
	if to > c.head.Epoch {
		return nil, fmt.Errorf("epoch %d is not made yet", to)
	}
	var list []dealtracker.Event
	for _, e := range c.events {
		if e.Epoch >= from && e.Epoch <= to {
			list = append(list, e)
		}
	}
	return list, nil
}

func (c *fakeChain) EpochTime(epoch int64) int64 { return 1_000_000 + 30*epoch }

// at moves the chain's head on, with finality 20 epochs behind.
func (c *fakeChain) at(epoch int64) { c.head = dealtracker.Head{Epoch: epoch, Finalized: epoch - 20} }

func (c *fakeChain) happens(epoch int64, kind dealtracker.EventKind, d dealtracker.Proposal) {
	c.events = append(c.events, event(epoch, kind, d))
}

func event(epoch int64, kind dealtracker.EventKind, d dealtracker.Proposal) dealtracker.Event {
	return dealtracker.Event{ID: fmt.Sprintf("message/%s/%d", kind, d.ID), Kind: kind, Epoch: epoch, Deal: d}
}

func somePiece(n byte) piece.Link {
	link, err := piece.FromRootAndHeight(piece.Node{n}, 20, 0)
	if err != nil {
		panic(err)
	}
	return link
}

func proposal(id uint64, p piece.Link) dealtracker.Proposal {
	return dealtracker.Proposal{ID: id, Piece: p, Provider: fmt.Sprintf("f0%d", 1000+id), Client: "f0100", StartEpoch: 2000, EndEpoch: 5000}
}

// world is a tracker with everything around it, stepped by hand.
type world struct {
	storetest.Stage
	chain   *fakeChain
	deps    dealtracker.Deps
	service *dealtracker.Service
}

func newWorld(t *testing.T, adjust func(*dealtracker.Deps)) *world {
	return newFaultyWorld(t, nil, adjust)
}

func newFaultyWorld(t *testing.T, choose storetest.Chooser, adjust func(*dealtracker.Deps)) *world {
	t.Helper()
	clock := storetest.NewClock()
	w := &world{Stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), chain: &fakeChain{}}
	w.chain.at(1000)
	w.Handlers = func() map[string]store.Handler { return w.service.Handlers() }
	w.deps = dealtracker.Deps{Signer: chaintest.Key("deal tracker"), Store: w.Driver, Source: w.chain, Backfill: 1000, Step: 100, Overlap: 50, Parallel: 1,
		Now: w.Clock.Now, Log: slog.New(slog.DiscardHandler)}
	if adjust != nil {
		adjust(&w.deps)
	}
	w.restart()
	return w
}

// restart begins a new process on the same rows.
func (w *world) restart() {
	w.Helper()
	s, err := dealtracker.New(w.deps)
	if err != nil {
		w.Fatal(err)
	}
	w.service = s
	w.untilDone(func() error { return s.Start(w.Context()) })
}

// untilDone repeats what an injected fault made fail.
func (w *world) untilDone(do func() error) {
	w.Helper()
	if err := storetest.Again(do); err != nil {
		w.Fatal(err)
	}
}

// deals asks the tracker, as a stranger.
func (w *world) deals(p piece.Link) deal.Deals {
	w.Helper()
	stranger := chaintest.Key("stranger")
	task, err := capabilities.Invoke(stranger, w.deps.Signer.DID(), stranger.DID().String(), &deal.Info{Piece: p}, capabilities.Terms{})
	if err != nil {
		w.Fatal(err)
	}
	m := capabilities.Pending(task)
	var r *capabilities.Receipt
	w.untilDone(func() (err error) {
		r, err = w.service.Methods()[deal.InfoAbility](w.Context(), capabilities.Invocation{Task: task, Message: m})
		return err
	})
	if err := r.Verify(w.deps.Signer.Verifier()); err != nil || !r.Ran.Equals(task.Link()) {
		w.Fatalf("receipt of %s: %v", r.Ran, err)
	}
	var ok deal.InfoOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		w.Fatal(err)
	}
	return ok.Deals
}

// status returns the status of a deal, "" if it is not told of.
func (w *world) status(p piece.Link, id uint64) string {
	w.Helper()
	return w.deals(p)[id].Status
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) { enginetest.Again(t, enginetest.Double, ".", "") }
