package aggregator_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store/storetest"
)

// fail has the dealer fail an aggregate, blaming pieces for it.
func (y *yard) fail(o offered, f *capabilities.Failure) {
	y.t.Helper()
	r, err := capabilities.IssueFailure(y.dealerName, o.accept.Link(), f, capabilities.Effects{})
	if err != nil {
		y.t.Fatal(err)
	}
	push := chaintest.Invoke(y.dealerName, y.self.DID(), y.dealerName.DID().String(), &ucan.Conclude{Receipt: r.Link()}, capabilities.Terms{})
	for err = storetest.ErrInjected; errors.Is(err, storetest.ErrInjected); {
		_, err = y.Methods()[ucan.ConcludeAbility](y.t.Context(), capabilities.Invocation{
			Task: push, Message: capabilities.Conclusion(r, o.accept, capabilities.Effects{})})
	}
	if err != nil {
		y.t.Fatal(err)
	}
	y.pass(10 * time.Second)
}

func (y *yard) standing() standing.Standing {
	y.t.Helper()
	s, err := standing.New(y.stage.Engine, standing.Policy{}, y.clock).Of(y.t.Context(), aggregator.StorefrontSubject(y.storefront.DID().String()))
	if err != nil {
		y.t.Fatal(err)
	}
	return s
}

func (y *yard) lanes() []string {
	y.t.Helper()
	keys, _ := y.rows("lane/")
	for i := range keys {
		keys[i] = strings.TrimSuffix(strings.TrimPrefix(keys[i], "lane/"), "/")
	}
	return keys
}

func name(err error) string {
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
		return f.Name
	}
	return ""
}

// TestBadStorefront follows a storefront whose pieces spoil aggregates: served, served apart, refused.
func TestBadStorefront(t *testing.T) {
	y := newYardOf(t, func(d *aggregator.Deps) {
		d.Reputation = standing.Policy{HalfLife: 1000 * time.Hour, Quarantine: 0.9, Refuse: 1.9}
	})
	front, self := y.storefront.DID().String(), y.self.DID().String()
	for i := range 2 {
		bad := synthetic(t, byte(i+1), 512*kib)
		y.take(bad)
		y.pass(2 * lag)
		if len(y.offered) != i+1 {
			t.Fatalf("aggregates: %+v", y.offered)
		}
		want := []string{"common", "common quarantine/" + front}[i]
		if got := strings.Join(y.lanes(), " "); got != want {
			t.Errorf("lanes %q, want %q", got, want)
		}
		o := y.offered[i]
		y.fail(o, capabilities.NewInvalidPiece(o.link, []piece.Link{bad, bad}))
		if s := y.standing(); s.Wrong != uint64(i+1) || !strings.Contains(s.Cause, bad.String()) {
			t.Errorf("after %d: %+v", i+1, s)
		}
	}
	before, _ := y.rows("")
	if err := y.offer(y.storefront, self, synthetic(t, 5, 512*kib), front); name(err) != capabilities.OfferRefused {
		t.Errorf("after two aggregates were spoiled: %v", err)
	}
	if after, _ := y.rows(""); len(after) != len(before) {
		t.Errorf("a refusal left %d rows behind", len(after)-len(before))
	}
	if err := y.offer(y.storefront, self, synthetic(t, 1, 512*kib), front); err != nil {
		t.Errorf("an acknowledged offer that is repeated: %v", err)
	}
}

// TestNothingProven: failures that prove nothing against a storefront are held against nobody.
func TestNothingProven(t *testing.T) {
	for what, failure := range map[string]func(o offered) *capabilities.Failure{
		"a piece that is not in it": func(o offered) *capabilities.Failure {
			return capabilities.NewInvalidPiece(o.link, []piece.Link{synthetic(t, 99, 512*kib)})
		},
		"another aggregate": func(o offered) *capabilities.Failure {
			return capabilities.NewInvalidPiece(synthetic(t, 98, 1024*kib), o.pieces)
		},
		"no provider": func(offered) *capabilities.Failure {
			return capabilities.NewAggregationFailed(5, "no provider took it")
		},
		"no details": func(offered) *capabilities.Failure { return capabilities.Fail(capabilities.InvalidPiece, "some") },
	} {
		t.Run(what, func(t *testing.T) {
			y := newYard(t)
			y.take(synthetic(t, 1, 512*kib))
			y.pass(2 * lag)
			y.fail(y.offered[0], failure(y.offered[0]))
			if s := y.standing(); s.Wrong != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestQuarantineOfAGroup: pieces that their storefront keeps apart share no aggregate with its other ones.
func TestQuarantineOfAGroup(t *testing.T) {
	y := newYard(t)
	front := y.storefront.DID().String()
	a, b := synthetic(t, 1, 512*kib), synthetic(t, 2, 256*kib)
	y.take(a)
	for _, p := range []piece.Link{b, synthetic(t, 3, 512*kib)} {
		if err := y.offer(y.storefront, y.self.DID().String(), p, front+"/quarantine"); err != nil {
			t.Fatal(err)
		}
	}
	y.pass(3 * lag)
	if len(y.offered) != 2 {
		t.Fatalf("aggregates: %+v", y.offered)
	}
	for _, o := range y.offered {
		if len(o.pieces) > 1 && (o.pieces[0] == a || o.pieces[1] == a) {
			t.Errorf("they share an aggregate: %+v", o)
		}
	}
}

func TestLimitOfAStorefront(t *testing.T) {
	y := newYardOf(t, func(d *aggregator.Deps) {
		known := d.Storefronts
		d.Storefronts = func(did string) (aggregator.Storefront, bool) {
			f, ok := known(did)
			f.Limit = standing.Limit{Count: 3, Bytes: 256 * kib}
			return f, ok
		}
	})
	front, self := y.storefront.DID().String(), y.self.DID().String()
	for i, want := range []string{"", "", capabilities.QuotaExceeded, ""} {
		size := []uint64{64, 128, 128, 32}[i] * kib
		for range 2 {
			if err := y.offer(y.storefront, self, synthetic(t, byte(i+1), size), front); name(err) != want {
				t.Errorf("offer %d: %v, want %q", i, err, want)
			}
		}
	}
	if err := y.offer(y.storefront, self, synthetic(t, 9, kib), front); name(err) != capabilities.QuotaExceeded {
		t.Errorf("a fourth: %v", err)
	}
	y.pass(24 * time.Hour)
	if err := y.offer(y.storefront, self, synthetic(t, 9, kib), front); err != nil {
		t.Errorf("the next day: %v", err)
	}
}

// TestBlameFaults: whatever call of the engine fails after an aggregate was spoiled, each piece counts once, and the aggregate has failed.
func TestBlameFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		armed := false
		y := newFaultyYard(t, func(c storetest.Call) storetest.Fault {
			if !armed {
				return storetest.None
			}
			return choose(c)
		})
		a, b := synthetic(t, 1, 512*kib), synthetic(t, 2, 128*kib)
		y.take(a, b)
		y.pass(2 * lag)
		armed = true
		y.fail(y.offered[0], capabilities.NewInvalidPiece(y.offered[0].link, []piece.Link{a, b}))
		y.pass(15 * time.Second)
		armed = false
		y.pass(time.Minute)
		if s := y.standing(); s.Wrong != 2 {
			t.Errorf("%+v", s)
		}
		status, err := y.Status(t.Context(), y.offered[0].link.CID())
		if err != nil || status.Aggregates[0].State != "failed" {
			t.Errorf("%+v, %v", status, err)
		}
	})
}
