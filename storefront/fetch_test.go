package storefront_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/storefront"
)

// depot is a storefront whose content has to be fetched.
type depot struct {
	*storefront.Service
	*chaintest.Chain
	*testing.T
	stage storetest.Stage

	stored  bool     // the content is in custody
	away    bool     // nobody gives it
	tried   []string // addresses that were fetched from
	limit   int64    // bytes that were allowed
	claimed []string // by claims that are kept
	made    map[cid.Cid]string
}

func newDepot(t *testing.T, choose storetest.Chooser) *depot {
	t.Helper()
	clock := storetest.NewClock()
	d := &depot{T: t, Chain: chaintest.New(), stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), made: map[cid.Cid]string{}}
	d.stage.Handlers = func() map[string]store.Handler { return d.Handlers() }
	peer := func(of capabilities.Signer, can string, n neighbour) capabilities.Peer {
		return capabilities.Peer{DID: of.DID(), Conn: n, Proofs: chaintest.Standing(of, d.Storefront.DID(), can).Proofs}
	}
	accept := d.Links[piececap.AcceptAbility].Task
	var err error
	d.Service, err = storefront.New(storefront.Deps{
		Signer: d.Storefront, Store: d.stage.Driver, Keys: d.Keys(), Custody: d, Claims: d, Fetcher: d, Now: clock.Now, Log: slog.New(slog.DiscardHandler),
		Aggregator: peer(d.Aggregator, piececap.OfferAbility, func(task capabilities.Task) (*capabilities.Message, error) {
			return conclusion(t, d.Aggregator, task, nil, &piececap.OfferOK{Piece: d.Piece}, capabilities.Effects{Join: &accept}), nil
		}),
		Compute: []storefront.Provider{{Peer: peer(d.Compute, computecap.PieceCIDAbility, func(task capabilities.Task) (*capabilities.Message, error) {
			if !d.stored {
				t.Error("content is validated that is not in custody")
			}
			return conclusion(t, d.Compute, task, nil, &computecap.PieceCIDOK{Piece: d.Piece}, capabilities.Effects{}), nil
		})}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *depot) Stat(_ context.Context, c cid.Cid) (storefront.Content, error) {
	if !d.stored {
		return storefront.Content{}, storefront.ErrNoContent
	}
	return storefront.Content{CID: c, Length: int64(len(d.Bytes)), URL: "https://custody.example/" + c.String()}, nil
}

func (d *depot) Fetch(_ context.Context, c cid.Cid, urls []string, maxBytes int64) error {
	d.tried, d.limit = append(d.tried, urls...), maxBytes
	if d.away || !c.Equals(d.Content) {
		return errors.New("a.example: connection refused")
	}
	d.stored = true
	return nil
}

func (d *depot) Keep(_ context.Context, claim capabilities.Task) error {
	d.made[claim.Link()] = claim.Can()
	return nil
}

func (d *depot) Locations(context.Context, cid.Cid) ([]string, error) { return d.claimed, nil }

// location is a claim of where the content is.
func (d *depot) location(by capabilities.Signer, with string, terms capabilities.Terms, urls ...string) capabilities.Block {
	d.Helper()
	return chaintest.Invoke(by, d.Storefront.DID(), with, &assert.Location{Content: assert.Content{Digest: d.Content.Hash()}, Location: urls}, terms).Block()
}

// offer has the agent offer the content as the piece, with blocks attached.
func (d *depot) offer(attach ...capabilities.Block) {
	d.Helper()
	task := d.Links[filecoin.OfferAbility].Task
	m := new(capabilities.Message)
	m.AddInvocation(task.UCAN, attach...)
	for range 5 {
		_, err := d.Methods()[filecoin.OfferAbility](d.Context(), capabilities.Invocation{Task: task, Message: m})
		if err == nil {
			return
		}
		if !errors.Is(err, storetest.ErrInjected) {
			d.Fatal(err)
		}
	}
}

// stands returns the state of the piece and why it waits.
func (d *depot) stands() (state, reason string) {
	d.Helper()
	status, err := d.Status(d.Context(), d.Content)
	if errors.Is(err, storetest.ErrInjected) {
		status, err = d.Status(d.Context(), d.Content)
	}
	if err != nil {
		d.Fatal(err)
	}
	return status.Pieces[0].State, status.Pieces[0].Reason
}

// TestFetch: content is brought from where claims that came with the offer say it is, whatever fails on the way.
func TestFetch(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	story := func(t *testing.T, choose storetest.Chooser) {
		d := newDepot(t, choose)
		node := chaintest.Key("a storage node")
		d.offer(d.location(node, node.DID().String(), capabilities.Terms{}, "https://a.example/x", "https://b.example"))
		d.stage.Run(10 * time.Minute)
		if state, reason := d.stands(); state != "offered" {
			t.Fatalf("the piece is %s: %s", state, reason)
		}
		if !slices.Equal(d.tried[:2], []string{"https://a.example/x", "https://b.example"}) {
			t.Errorf("tried %v", d.tried)
		}
		if want := int64(d.Piece.PaddedSize() / 128 * 127); d.limit != want {
			t.Errorf("%d bytes are allowed, want %d", d.limit, want)
		}
		if len(d.made) != 1 {
			t.Errorf("claimed by itself is %v, want that the piece equals the content", d.made)
		}
	}
	t.Run("no fault", func(t *testing.T) { story(t, nil) })
	storetest.Sweep(t, faults, story)
}

// TestHints: what is no good as a hint is not tried, and the rest is, once each.
func TestHints(t *testing.T) {
	node := chaintest.Key("a storage node")
	own := node.DID().String()
	for _, tt := range []struct {
		name string
		with func(d *depot) []capabilities.Block
		kept []string
		want []string
	}{
		{name: "kept claims", kept: []string{"https://k.example"}, want: []string{"https://k.example"}},
		{name: "both, each once", kept: []string{"https://a.example", "https://k.example"}, with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{d.location(node, own, capabilities.Terms{}, "https://a.example")}
		}, want: []string{"https://a.example", "https://k.example"}},
		{name: "expired", with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{d.location(node, own, capabilities.Terms{Expiration: d.stage.Clock.Now()}, "https://a.example")}
		}},
		{name: "on another's resource", with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{d.location(node, d.Storefront.DID().String(), capabilities.Terms{}, "https://a.example")}
		}},
		{name: "signed by somebody else", with: func(d *depot) []capabilities.Block {
			task := chaintest.Invoke(chaintest.Key("mallory"), d.Storefront.DID(), own,
				&assert.Location{Content: assert.Content{Link: d.Content}, Location: []string{"https://a.example"}}, capabilities.Terms{})
			return []capabilities.Block{chaintest.Claimed(task, node.DID()).Block()}
		}},
		{name: "of other content", with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{chaintest.Invoke(node, d.Storefront.DID(), own,
				&assert.Location{Content: assert.Content{Link: d.Piece.CID()}, Location: []string{"https://a.example"}}, capabilities.Terms{}).Block()}
		}},
		{name: "of a part", with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{chaintest.Invoke(node, d.Storefront.DID(), own, &assert.Location{Content: assert.Content{Link: d.Content},
				Location: []string{"https://a.example"}, Range: &assert.Range{Offset: 1}}, capabilities.Terms{}).Block()}
		}},
		{name: "large", with: func(d *depot) []capabilities.Block {
			return []capabilities.Block{d.location(node, own, capabilities.Terms{Nonce: strings.Repeat("x", 4096)}, "https://a.example")}
		}},
		{name: "many", with: func(d *depot) (blocks []capabilities.Block) {
			for i := range 20 {
				blocks = append(blocks, d.location(node, own, capabilities.Terms{}, fmt.Sprintf("https://%d.example/1", i), fmt.Sprintf("https://%d.example/2", i),
					fmt.Sprintf("https://%d.example/3", i)))
			}
			return blocks
		}, want: []string{"https://0.example/1", "https://0.example/2", "https://0.example/3", "https://1.example/1", "https://1.example/2", "https://1.example/3",
			"https://2.example/1", "https://2.example/2", "https://2.example/3", "https://3.example/1", "https://3.example/2", "https://3.example/3",
			"https://4.example/1", "https://4.example/2", "https://4.example/3", "https://5.example/1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDepot(t, nil)
			d.claimed = tt.kept
			var attach []capabilities.Block
			if tt.with != nil {
				attach = tt.with(d)
			}
			d.offer(attach...)
			d.stage.Run(time.Second)
			if diff := cmp.Diff(tt.want, d.tried); diff != "" {
				t.Errorf("tried (-want +got): %s", diff)
			}
			if state, _ := d.stands(); (state == "offered") != (tt.want != nil) {
				t.Errorf("the piece is %s", state)
			}
		})
	}
}

// TestFetchFails: nothing is proven by it. The piece waits, says why, is helped by an upload, and expires like others.
func TestFetchFails(t *testing.T) {
	for _, stored := range []bool{true, false} {
		d := newDepot(t, nil)
		d.away, d.claimed = true, []string{"https://a.example"}
		d.offer()
		d.stage.Run(time.Hour)
		if state, reason := d.stands(); state != "submitted" || !strings.HasPrefix(reason, "content-unavailable: a.example") {
			t.Errorf("the piece is %s: %s", state, reason)
		}
		if n := len(d.tried); n < 5 || n > 20 {
			t.Errorf("tried %d times in an hour", n)
		}
		d.stored = stored
		d.stage.Run(8 * 24 * time.Hour)
		want := map[bool]string{true: "offered", false: "expired"}[stored]
		if state, reason := d.stands(); state != want {
			t.Errorf("the piece is %s: %s; want %s", state, reason, want)
		}
	}
}
