package storefront_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

// What a storefront believes of its neighbours, who sign whatever they like here.

// neighbour is a role that answers what a test wants.
type neighbour func(task capabilities.Task) (*capabilities.Message, error)

func (n neighbour) Execute(_ context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	return n(capabilities.TaskOf(m, m.Invocations()[0]))
}

func (neighbour) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}

// shop is a storefront with such neighbours. The piece, the content and the aggregates are those of a chain.
type shop struct {
	*storefront.Service
	*chaintest.Chain
	t     *testing.T
	stage storetest.Stage

	// computed is what the provider answers; nil: that it cannot find the content.
	computed func() capabilities.Struct
	// accept is the task that the aggregator joins to piece/offer.
	accept capabilities.Task
}

// newShop returns a shop whose storefront meets the faults that are chosen, none if choose is nil.
func newShop(t *testing.T, policy storefront.Policy, choose storetest.Chooser) *shop {
	t.Helper()
	s := &shop{t: t, Chain: chaintest.New(), stage: newStage(t, choose)}
	s.stage.Handlers = func() map[string]store.Handler { return s.Handlers() }
	s.computed = func() capabilities.Struct { return &computecap.PieceCIDOK{Piece: s.Piece} }
	s.accept = s.Links[piececap.AcceptAbility].Task
	peer := func(of capabilities.Signer, can string, n neighbour) capabilities.Peer {
		return capabilities.Peer{DID: of.DID(), Conn: n, Proofs: chaintest.Standing(of, s.Storefront.DID(), can).Proofs}
	}
	var err error
	s.Service, err = storefront.New(storefront.Deps{
		Signer: s.Storefront, Store: s.stage.Driver, Keys: s.Keys(), Custody: s, Policy: policy, Now: s.clock, Log: slog.New(slog.DiscardHandler),
		Aggregator: peer(s.Aggregator, piececap.OfferAbility, s.aggregate),
		Compute:    []storefront.Provider{{Peer: peer(s.Compute, computecap.PieceCIDAbility, s.compute)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shop) clock() time.Time { return s.stage.Clock.Now() }

// Stat implements [storefront.Custody]: the content is there.
func (s *shop) Stat(_ context.Context, c cid.Cid) (storefront.Content, error) {
	if !c.Equals(s.Content) {
		return storefront.Content{}, storefront.ErrNoContent
	}
	return storefront.Content{CID: c, Length: int64(len(s.Bytes)), URL: "https://custody.example/" + c.String()}, nil
}

func (s *shop) compute(task capabilities.Task) (*capabilities.Message, error) {
	ok := s.computed()
	if ok == nil {
		return conclusion(s.t, s.Compute, task, capabilities.NewContentNotFound(s.Content, "not today"), nil, capabilities.Effects{}), nil
	}
	return conclusion(s.t, s.Compute, task, nil, ok, capabilities.Effects{}), nil
}

func (s *shop) aggregate(task capabilities.Task) (*capabilities.Message, error) {
	return conclusion(s.t, s.Aggregator, task, nil, &piececap.OfferOK{Piece: s.Piece}, capabilities.Effects{Join: &s.accept}), nil
}

func conclusion(t *testing.T, by capabilities.Signer, task capabilities.Task, f *capabilities.Failure, ok capabilities.Struct,
	fx capabilities.Effects) *capabilities.Message {
	t.Helper()
	var r *capabilities.Receipt
	var err error
	if f != nil {
		r, err = capabilities.IssueFailure(by, task.Link(), f, fx)
	} else {
		r, err = capabilities.Issue(by, task.Link(), ok, fx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return capabilities.Conclusion(r, task, fx)
}

// settle handles messages until none is due.
func (s *shop) settle() {
	s.t.Helper()
	s.stage.Settle()
}

// offer has the agent offer the content as the piece.
func (s *shop) offer() error {
	s.t.Helper()
	task := s.Links[filecoin.OfferAbility].Task
	_, err := s.Methods()[filecoin.OfferAbility](s.t.Context(), capabilities.Invocation{Task: task, Message: capabilities.Pending(task)})
	if err == nil {
		s.settle()
	}
	return err
}

// push has the aggregator push what a message reports.
func (s *shop) push(m *capabilities.Message) {
	s.t.Helper()
	task := chaintest.Invoke(s.Aggregator, s.Storefront.DID(), s.Aggregator.DID().String(), &ucan.Conclude{Receipt: m.Receipts()[0].Link()}, capabilities.Terms{})
	if _, err := s.Methods()[ucan.ConcludeAbility](s.t.Context(), capabilities.Invocation{Task: task, Message: m}); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
}

// standing returns where the piece stands.
func (s *shop) standing() capabilities.PieceStatus {
	s.t.Helper()
	status, err := s.Status(s.t.Context(), s.Piece.CID())
	if err != nil {
		s.t.Fatal(err)
	}
	if len(status.Pieces) != 1 {
		s.t.Fatalf("%d pieces", len(status.Pieces))
	}
	return status.Pieces[0]
}

// TestInclusionIsChecked: an aggregator's receipt is believed for the proof in it, and of the task that was asked for.
func TestInclusionIsChecked(t *testing.T) {
	good := func(s *shop) *piececap.AcceptOK {
		return &piececap.AcceptOK{Piece: s.Piece, Aggregate: s.Aggregate, Inclusion: s.Inclusion}
	}
	for name, tt := range map[string]struct {
		task   func(s *shop) capabilities.Task // nil: as it should be
		result func(s *shop) *piececap.AcceptOK
		alone  bool // no join
		want   string
	}{
		"as it should be": {nil, good, false, "aggregated"},
		"the proof of another piece": {nil, func(s *shop) *piececap.AcceptOK {
			return &piececap.AcceptOK{Piece: s.Piece, Aggregate: s.Aggregate, Inclusion: s.OtherInclusion}
		}, false, "offered"},
		"the proof for another aggregate": {nil, func(s *shop) *piececap.AcceptOK {
			return &piececap.AcceptOK{Piece: s.Piece, Aggregate: s.Aggregate, Inclusion: s.ElsewhereInclusion}
		}, false, "offered"},
		"another piece, proven": {nil, func(s *shop) *piececap.AcceptOK {
			return &piececap.AcceptOK{Piece: s.Other, Aggregate: s.Aggregate, Inclusion: s.OtherInclusion}
		}, false, "offered"},
		"no aggregate/offer": {nil, good, true, "offered"},
		"a task for another piece": {func(s *shop) capabilities.Task {
			return chaintest.Invoke(s.Aggregator, s.Aggregator.DID(), s.Aggregator.DID().String(),
				&piececap.Accept{Piece: s.Other, Group: chaintest.StorefrontWeb}, capabilities.Terms{})
		}, good, false, "offered"},
		"a task for another group": {func(s *shop) capabilities.Task {
			return chaintest.Invoke(s.Aggregator, s.Aggregator.DID(), s.Aggregator.DID().String(),
				&piececap.Accept{Piece: s.Piece, Group: "did:web:other.example"}, capabilities.Terms{})
		}, good, false, "offered"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, storefront.Policy{}, nil)
			if tt.task != nil {
				s.accept = tt.task(s)
			}
			if err := s.offer(); err != nil {
				t.Fatal(err)
			}
			if got := s.standing(); got.State != "offered" {
				t.Fatalf("after the offer: %+v", got)
			}
			fx := capabilities.Effects{Join: &s.Links[aggregatecap.OfferAbility].Task}
			if tt.alone {
				fx = capabilities.Effects{}
			}
			s.push(conclusion(t, s.Aggregator, s.accept, nil, tt.result(s), fx))
			got := s.standing()
			if got.State != tt.want || (got.Reason == "") != (tt.want == "aggregated") {
				t.Errorf("%+v, want %s", got, tt.want)
			}
			if tt.want == "offered" && !strings.Contains(got.Reason, "does not hold") {
				t.Errorf("the reason is %q", got.Reason)
			}
		})
	}
}

// TestDealOfAnotherAggregate: a dealer's receipt concludes only offers whose pieces are in the aggregate that it names.
func TestDealOfAnotherAggregate(t *testing.T) {
	for _, other := range []bool{false, true} {
		s := newShop(t, storefront.Policy{}, nil)
		if err := s.offer(); err != nil {
			t.Fatal(err)
		}
		ok := &aggregatecap.AcceptOK{Aggregate: s.Aggregate, DealMetadata: capabilities.DealMetadata{DealID: chaintest.Deal}}
		if other {
			ok.Aggregate = s.Elsewhere
		}
		s.Links[aggregatecap.AcceptAbility].OK = ok
		for _, can := range []string{piececap.AcceptAbility, aggregatecap.OfferAbility, aggregatecap.AcceptAbility} {
			s.push(s.Conclusion(can))
		}
		got := s.standing()
		if want := map[bool]string{false: "dealt", true: "aggregated"}[other]; got.State != want {
			t.Errorf("with the deal of another aggregate %t: %+v, want %s", other, got, want)
		}
		if other && !strings.Contains(got.Reason, "another aggregate") {
			t.Errorf("the reason is %q", got.Reason)
		}
	}
}

// TestProviderWithoutTheContent: that a provider cannot find content at one time proves nothing about the pair; the piece waits, and goes on.
func TestProviderWithoutTheContent(t *testing.T) {
	s := newShop(t, storefront.Policy{}, nil)
	found := s.computed
	s.computed = func() capabilities.Struct { return nil }
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if got := s.standing(); got.State != "submitted" || !strings.HasPrefix(got.Reason, "content-unavailable") || got.Next.IsZero() {
			t.Fatalf("while it is not found: %+v", got)
		}
		s.stage.Clock.Advance(time.Hour)
		s.settle()
	}
	s.computed = found
	s.stage.Clock.Advance(time.Hour)
	s.settle()
	if got := s.standing(); got.State != "offered" {
		t.Errorf("once it is found: %+v", got)
	}
}

// TestPolicy: who may not offer is told so, and leaves nothing behind.
func TestPolicy(t *testing.T) {
	s := newShop(t, storefront.Policy{MayOffer: func(with string) bool { return with == chaintest.Key("somebody else").DID().String() }}, nil)
	var f *capabilities.Failure
	if err := s.offer(); !errors.As(err, &f) || f.Name != capabilities.Unauthorized {
		t.Errorf("got %v", err)
	}
	page, err := s.stage.Engine.Walk(t.Context(), "", 0)
	if err != nil || len(page.Rows) != 0 || len(s.stage.Engine.Waiting()) != 0 {
		t.Errorf("%d rows, %v are left behind, %v", len(page.Rows), s.stage.Engine.Waiting(), err)
	}
}

// TestContentOf: storage providers are sent to content only once its bytes were found to be the piece.
func TestContentOf(t *testing.T) {
	s := newShop(t, storefront.Policy{}, nil)
	found := s.computed
	contents := func() []cid.Cid {
		t.Helper()
		list, err := s.ContentOf(t.Context(), s.Piece)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	s.computed = func() capabilities.Struct { return nil }
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	if got := contents(); len(got) != 0 {
		t.Errorf("before it is validated: %v", got)
	}
	s.computed = found
	s.stage.Clock.Advance(time.Hour)
	s.settle()
	if got := contents(); !slices.Equal(got, []cid.Cid{s.Content}) {
		t.Errorf("once it is validated: %v", got)
	}

	s = newShop(t, storefront.Policy{}, nil)
	s.computed = func() capabilities.Struct { return &computecap.PieceCIDOK{Piece: s.Other} }
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	if got := s.standing(); got.State != "invalid" {
		t.Fatalf("another piece than was offered: %+v", got)
	}
	if got := contents(); len(got) != 0 {
		t.Errorf("when it is not the piece: %v", got)
	}
}
