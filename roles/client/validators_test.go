package client_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/roles/client"
)

// validation is a further fork of filecoin/submit.
type validation struct {
	by capabilities.Signer
	nb capabilities.Caveats
	ok capabilities.Struct
	// lost: its receipt is not in the file; stray: the storefront did not ask for it.
	lost, stray bool
}

// TestValidators: the receipt of filecoin/submit may link several who computed the piece, or a storage node that vouches for it. Each of them is checked.
func TestValidators(t *testing.T) {
	a, b, node := chaintest.Key("a"), chaintest.Key("b"), chaintest.Key("node")
	for name, tt := range map[string]struct {
		alone bool // in place of compute/piececid
		add   func(c *chaintest.Chain) []validation
		want  func(p *client.Proven)
		err   string
	}{
		"three of them": {add: func(c *chaintest.Chain) []validation {
			nb, ok := &computecap.PieceCID{Content: c.Content}, &computecap.PieceCIDOK{Piece: c.Piece}
			return []validation{{by: a, nb: nb, ok: ok}, {by: b, nb: nb, ok: ok}}
		}, want: func(p *client.Proven) { p.Also = []capabilities.DID{a.DID(), b.DID()} }},
		"one computed another piece": {add: func(c *chaintest.Chain) []validation {
			return []validation{{by: a, nb: &computecap.PieceCID{Content: c.Content}, ok: &computecap.PieceCIDOK{Piece: c.Other}}}
		}, err: "another content or piece"},
		"one has no receipt": {add: func(c *chaintest.Chain) []validation {
			return []validation{{by: a, nb: &computecap.PieceCID{Content: c.Content}, ok: &computecap.PieceCIDOK{Piece: c.Piece}, lost: true}}
		}, err: "is missing"},
		"one was not asked by the storefront": {add: func(c *chaintest.Chain) []validation {
			return []validation{{by: a, nb: &computecap.PieceCID{Content: c.Content}, ok: &computecap.PieceCIDOK{Piece: c.Piece}, stray: true}}
		}, err: "another content or piece"},
		"a storage node": {alone: true, add: func(c *chaintest.Chain) []validation {
			return []validation{{by: node, nb: &pdp.Info{Blob: c.Content.Hash()}, ok: &pdp.InfoOK{Piece: c.Piece}}}
		}, want: func(p *client.Proven) { p.Compute, p.Vouched = node.DID(), true }},
		"a storage node of another piece": {alone: true, add: func(c *chaintest.Chain) []validation {
			return []validation{{by: node, nb: &pdp.Info{Blob: c.Content.Hash()}, ok: &pdp.InfoOK{Piece: c.Other}}}
		}, err: "storage node's word"},
		"a storage node of other content": {alone: true, add: func(c *chaintest.Chain) []validation {
			return []validation{{by: node, nb: &pdp.Info{Blob: c.Piece.CID().Hash()}, ok: &pdp.InfoOK{Piece: c.Piece}}}
		}, err: "storage node's word"},
		"a storage node that the storefront did not ask": {alone: true, add: func(c *chaintest.Chain) []validation {
			return []validation{{by: node, nb: &pdp.Info{Blob: c.Content.Hash()}, ok: &pdp.InfoOK{Piece: c.Piece}, stray: true}}
		}, err: "storage node's word"},
		"nobody": {alone: true, add: func(*chaintest.Chain) []validation { return nil }, err: "acknowledges something else"},
	} {
		t.Run(name, func(t *testing.T) {
			c := chaintest.New()
			submit := c.Links[filecoin.SubmitAbility]
			if tt.alone {
				submit.Effects.Fork = nil
			}
			extra := new(capabilities.Message)
			for _, v := range tt.add(c) {
				issuer := c.Storefront
				if v.stray {
					issuer = c.Agent
				}
				task := chaintest.Invoke(issuer, v.by.DID(), v.by.DID().String(), v.nb, chaintest.Standing(v.by, issuer.DID(), v.nb.Ability()))
				submit.Effects.Fork = append(slices.Clone(submit.Effects.Fork), task)
				r, err := capabilities.Issue(v.by, task.Link(), v.ok, capabilities.Effects{})
				if err != nil {
					t.Fatal(err)
				}
				if !v.lost {
					capabilities.AddConclusion(extra, r, task, capabilities.Effects{})
				}
			}
			m := c.Message()
			for _, r := range extra.Receipts() {
				m.AddReceipt(r, extra.Blocks()...)
			}
			chain, err := client.DecodeChain(m.Encode())
			if err != nil {
				t.Fatal(err)
			}
			got, err := chain.Verify(t.Context(), c.Keys())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("%+v, error %v does not say %q", got, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := proven(c)
			tt.want(want)
			if diff := cmp.Diff(want, got, compare); diff != "" {
				t.Errorf("proven (-want +got):\n%s", diff)
			}
		})
	}
}
