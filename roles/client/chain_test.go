package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

// verify reads the chain as saved and verifies it.
func verify(t *testing.T, c *chaintest.Chain) (*client.Proven, error) {
	t.Helper()
	chain, err := client.DecodeChain(c.Message().Encode())
	if err != nil {
		return nil, err
	}
	return chain.Verify(t.Context(), c.Keys())
}

func proven(c *chaintest.Chain) *client.Proven {
	return &client.Proven{
		Agent: c.Agent.DID(), Storefront: c.Storefront.DID(), Compute: c.Compute.DID(), Aggregator: c.Aggregator.DID(), Dealer: c.Dealer.DID(),
		Content: c.Content, Piece: c.Piece, Aggregate: c.Aggregate, Deal: capabilities.DealMetadata{DealID: chaintest.Deal},
	}
}

// compare makes go-cmp compare DIDs, links and CIDs as the values that they are.
var compare = cmp.Options{
	cmp.Comparer(func(a, b capabilities.DID) bool { return a == b }),
	cmp.Comparer(func(a, b piece.Link) bool { return a == b }),
	cmp.Comparer(func(a, b cid.Cid) bool { return a.Equals(b) }),
}

func TestVerify(t *testing.T) {
	c := chaintest.New()
	got, err := verify(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(proven(c), got, compare); diff != "" {
		t.Errorf("proven (-want +got):\n%s", diff)
	}
}

func TestVerifyFailure(t *testing.T) {
	c := chaintest.NewInvalid()
	got, err := verify(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if got.Failure == nil || got.Failure.Name != capabilities.InvalidContentPiece {
		t.Fatalf("failure is %v, want %s", got.Failure, capabilities.InvalidContentPiece)
	}
	var m capabilities.Mismatch
	if err := got.Failure.ReadDetails(&m); err != nil {
		t.Fatal(err)
	}
	if m.Computed != c.Other || m.Piece != c.Piece || !m.Content.Equals(c.Content) {
		t.Errorf("the failure is about %+v", m)
	}
	if got.Agent != c.Agent.DID() || got.Storefront != c.Storefront.DID() || got.Piece != c.Piece || !got.Content.Equals(c.Content) {
		t.Errorf("proven: %+v", got)
	}
	if got.Deal.DealID != 0 || got.Aggregate.Defined() || got.Dealer.Defined() {
		t.Errorf("a failed offer proves a deal: %+v", got)
	}
}

// tampering is one thing wrong with a chain that is otherwise as it should be.
type tampering struct {
	name string
	do   func(c *chaintest.Chain)
	want string // part of the error
}

// everyLink is what each link of a chain that ends in a deal can suffer.
func everyLink() []tampering {
	var all []tampering
	mallory := chaintest.Key("mallory")
	for _, can := range chaintest.Abilities {
		add := func(name string, do func(c *chaintest.Chain, l *chaintest.Link), want string) {
			all = append(all, tampering{can + ": " + name, func(c *chaintest.Chain) { do(c, c.Links[can]) }, want})
		}
		add("signature", func(_ *chaintest.Chain, l *chaintest.Link) { l.Forge = chaintest.FlipSignature }, "the receipt of "+can)
		add("issued by somebody else", func(_ *chaintest.Chain, l *chaintest.Link) { l.Signer = mallory }, "the receipt of "+can)
		add("signed by somebody else in the issuer's name", func(_ *chaintest.Chain, l *chaintest.Link) {
			issuer := l.Signer.DID()
			l.Signer, l.Forge = mallory, chaintest.Claim(issuer)
		}, "the receipt of "+can)
		add("issuer renamed", func(_ *chaintest.Chain, l *chaintest.Link) { l.Forge = chaintest.Claim(mallory.DID()) }, "the receipt of "+can)
		add("ran another task", func(c *chaintest.Chain, l *chaintest.Link) {
			stranger := chaintest.Invoke(mallory, mallory.DID(), mallory.DID().String(), &filecoin.Info{Piece: c.Piece}, capabilities.Terms{})
			l.Ran = stranger.Link()
		}, missing(can, "the receipt of "))
		add("receipt missing", func(_ *chaintest.Chain, l *chaintest.Link) { l.Pending = true }, missing(can, "the receipt of "))
		add("invocation missing", func(_ *chaintest.Chain, l *chaintest.Link) { l.Lost = true }, missing(can, "the invocation of "))
		add("invocation forged", func(c *chaintest.Chain, l *chaintest.Link) {
			issuer := l.Task.Issuer
			c.Replace(can, chaintest.Claimed(chaintest.By(mallory, l.Task), issuer))
		}, "the invocation of "+can)
		if can != filecoin.OfferAbility {
			add("invoked by somebody else", func(c *chaintest.Chain, l *chaintest.Link) {
				c.Replace(can, chaintest.By(mallory, l.Task))
			}, "")
		}
		if can != filecoin.AcceptAbility {
			add("failed, and success claimed", func(_ *chaintest.Chain, l *chaintest.Link) {
				l.Failure = capabilities.Fail("Broken", "it did not work")
			}, "Broken")
		}
		add("result of another shape", func(_ *chaintest.Chain, l *chaintest.Link) { l.OK = new(capabilities.DealMetadata) }, "")
	}
	return all
}

// missing is what is said of a missing part: without that of the offer a file is no chain at all.
func missing(can, part string) string {
	if can == filecoin.OfferAbility {
		return "no receipt of filecoin/offer"
	}
	return part + can
}

// oneLink is what the parties could state, in their own names, that does not fit together.
func oneLink() []tampering {
	mallory := chaintest.Key("mallory")
	none := capabilities.Terms{}
	with := func(can string, do func(c *chaintest.Chain, l *chaintest.Link)) func(*chaintest.Chain) {
		return func(c *chaintest.Chain) { do(c, c.Links[can]) }
	}
	// instead has a role link a task of its own about something else.
	instead := func(can string, nb func(c *chaintest.Chain) capabilities.Caveats) func(*chaintest.Chain) {
		return with(can, func(c *chaintest.Chain, l *chaintest.Link) {
			signers := []capabilities.Signer{c.Agent, c.Storefront, c.Compute, c.Aggregator, c.Dealer}
			issuer := signers[slices.IndexFunc(signers, func(s capabilities.Signer) bool { return s.DID() == l.Task.Issuer })]
			c.Replace(can, chaintest.Invoke(issuer, l.Task.Audience, l.Task.Resource(), nb(c), none))
		})
	}
	all := []tampering{
		{"offer acknowledges another piece", with(filecoin.OfferAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &filecoin.PieceOK{Piece: c.Other}
		}), "acknowledges something else"},
		{"offer forks nothing", with(filecoin.OfferAbility, func(_ *chaintest.Chain, l *chaintest.Link) { l.Effects.Fork = nil }),
			"acknowledges something else"},
		{"submit of another piece", instead(filecoin.SubmitAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &filecoin.Submit{Content: c.Content, Piece: c.Other}
		}), "another piece or content"},
		{"accept of another piece", instead(filecoin.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &filecoin.Accept{Content: c.Content, Piece: c.Other}
		}), "another piece or content"},
		{"accept of another content", instead(filecoin.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &filecoin.Accept{Content: c.Piece.CID(), Piece: c.Piece}
		}), "another piece or content"},
		{"submit and accept of another content", func(c *chaintest.Chain) {
			instead(filecoin.SubmitAbility, func(c *chaintest.Chain) capabilities.Caveats {
				return &filecoin.Submit{Content: c.Piece.CID(), Piece: c.Piece}
			})(c)
			instead(filecoin.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
				return &filecoin.Accept{Content: c.Piece.CID(), Piece: c.Piece}
			})(c)
		}, "another piece or content"},
		{"submit acknowledges another piece", with(filecoin.SubmitAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &filecoin.PieceOK{Piece: c.Other}
		}), "acknowledges something else"},
		{"submit without validation", with(filecoin.SubmitAbility, func(_ *chaintest.Chain, l *chaintest.Link) { l.Effects.Fork = nil }),
			"acknowledges something else"},
		{"validation of another content", instead(computecap.PieceCIDAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &computecap.PieceCID{Content: c.Piece.CID()}
		}), "validation"},
		{"validation finds another piece", with(computecap.PieceCIDAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &computecap.PieceCIDOK{Piece: c.Other}
		}), "validation"},
		{"another piece goes to the aggregator", instead(piececap.OfferAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &piececap.Offer{Piece: c.Other, Group: chaintest.StorefrontWeb}
		}), "piece/offer is not"},
		{"the aggregator acknowledges another piece", with(piececap.OfferAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &piececap.OfferOK{Piece: c.Other}
		}), "piece/accept is about"},
		{"the aggregator accepts another piece", instead(piececap.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &piececap.Accept{Piece: c.Other, Group: chaintest.StorefrontWeb}
		}), "piece/accept is about"},
		{"the aggregator accepts for another group", instead(piececap.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &piececap.Accept{Piece: c.Piece, Group: "did:web:other.example"}
		}), "piece/accept is about"},
		{"inclusion of another piece in piece/accept", with(piececap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*piececap.AcceptOK).Inclusion = c.OtherInclusion
		}), "the inclusion in piece/accept"},
		{"inclusion in another aggregate in piece/accept", with(piececap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*piececap.AcceptOK).Inclusion = c.ElsewhereInclusion
		}), "the inclusion in piece/accept"},
		{"no inclusion in piece/accept", with(piececap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*piececap.AcceptOK).Inclusion = capabilities.Inclusion{}
		}), "the inclusion in piece/accept"},
		{"another piece proven included", with(piececap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &piececap.AcceptOK{Piece: c.Other, Aggregate: c.Aggregate, Inclusion: c.OtherInclusion}
		}), "inclusion of another piece"},
		{"included in another aggregate than is dealt", with(piececap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &piececap.AcceptOK{Piece: c.Piece, Aggregate: c.Elsewhere, Inclusion: c.ElsewhereInclusion}
		}), "aggregate/offer is not"},
		{"another aggregate is offered", instead(aggregatecap.OfferAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &aggregatecap.Offer{Aggregate: c.Elsewhere, Pieces: c.Content}
		}), "aggregate/offer is not"},
		{"the dealer acknowledges another aggregate", with(aggregatecap.OfferAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK = &aggregatecap.OfferOK{Aggregate: c.Elsewhere}
		}), "aggregate/accept is about"},
		{"the dealer accepts another aggregate", instead(aggregatecap.AcceptAbility, func(c *chaintest.Chain) capabilities.Caveats {
			return &aggregatecap.Accept{Aggregate: c.Elsewhere, Pieces: c.Content}
		}), "aggregate/accept is about"},
		{"another aggregate is in the deal", with(aggregatecap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*aggregatecap.AcceptOK).Aggregate = c.Elsewhere
		}), "the deal is for another aggregate"},
		{"the dealer reported another deal", with(aggregatecap.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*aggregatecap.AcceptOK).DealID++
		}), "the dealer reported 4243"},
		{"filecoin/accept names another deal", with(filecoin.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*filecoin.AcceptOK).Aux.DealID++
		}), "names deal 4243"},
		{"filecoin/accept names another kind of deal", with(filecoin.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*filecoin.AcceptOK).Aux.DataType++
		}), "the dealer reported"},
		{"filecoin/accept names another piece", with(filecoin.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			ok := l.OK.(*filecoin.AcceptOK)
			ok.Piece, ok.Inclusion = c.Other, c.OtherInclusion
		}), "filecoin/accept is about another"},
		{"filecoin/accept names another aggregate", with(filecoin.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			ok := l.OK.(*filecoin.AcceptOK)
			ok.Aggregate, ok.Inclusion = c.Elsewhere, c.ElsewhereInclusion
		}), "filecoin/accept is about another"},
		{"inclusion of another piece in filecoin/accept", with(filecoin.AcceptAbility, func(c *chaintest.Chain, l *chaintest.Link) {
			l.OK.(*filecoin.AcceptOK).Inclusion = c.OtherInclusion
		}), "the inclusion in filecoin/accept"},
	}
	// What a role states of itself it states to itself, on itself: not through others, who then sign the receipt.
	for _, can := range []string{filecoin.SubmitAbility, filecoin.AcceptAbility, piececap.AcceptAbility, aggregatecap.AcceptAbility} {
		another := func(audience capabilities.DID, resource string) func(*chaintest.Chain, *chaintest.Link) {
			return func(c *chaintest.Chain, l *chaintest.Link) {
				cap := l.Task.Capabilities[0]
				if resource != "" {
					cap.With = resource
				}
				u, err := wire.SignUCAN(l.Signer, wire.UCAN{Audience: audience, Capabilities: []wire.Capability{cap}})
				if err != nil {
					panic(err)
				}
				if audience == mallory.DID() {
					l.Signer = mallory
				}
				c.Replace(can, capabilities.Task{UCAN: u})
			}
		}
		all = append(all,
			tampering{can + ": for somebody else", with(can, another(mallory.DID(), "")), "own task"},
			tampering{can + ": on another resource", with(can, func(c *chaintest.Chain, l *chaintest.Link) {
				another(l.Task.Audience, mallory.DID().String())(c, l)
			}), "own task"})
	}
	// A join that is missing, leads to a stranger, or leads to some other link of the same chain.
	for _, can := range []string{filecoin.OfferAbility, filecoin.SubmitAbility, piececap.OfferAbility, piececap.AcceptAbility, aggregatecap.OfferAbility} {
		all = append(all,
			tampering{can + ": join missing", with(can, func(_ *chaintest.Chain, l *chaintest.Link) { l.Effects.Join = nil }), ""},
			tampering{can + ": join to a stranger", with(can, func(_ *chaintest.Chain, l *chaintest.Link) {
				l.Effects.Join = new(chaintest.By(mallory, *l.Effects.Join))
			}), " is not "},
			tampering{can + ": join to itself", with(can, func(_ *chaintest.Chain, l *chaintest.Link) { l.Effects.Join = &l.Task }), "is not a "})
	}
	for _, can := range []string{filecoin.OfferAbility, filecoin.SubmitAbility} {
		all = append(all,
			tampering{can + ": fork to another task", with(can, func(c *chaintest.Chain, l *chaintest.Link) {
				l.Effects.Fork = []capabilities.Task{c.Links[aggregatecap.AcceptAbility].Task}
			}), "is not a "},
			tampering{can + ": two forks", with(can, func(_ *chaintest.Chain, l *chaintest.Link) {
				l.Effects.Fork = append(l.Effects.Fork, l.Effects.Fork[0])
			}), "acknowledges something else"})
	}
	return all
}

// TestVerifyRejects spoils one thing at a time. What the parties sign that does not fit, and what others sign in their place, is equally unproven.
func TestVerifyRejects(t *testing.T) {
	for _, tt := range append(everyLink(), oneLink()...) {
		t.Run(tt.name, func(t *testing.T) {
			c := chaintest.New()
			tt.do(c)
			got, err := verify(t, c)
			if err == nil {
				t.Fatalf("proven: %+v", got)
			}
			if got != nil {
				t.Errorf("beside the error it claims %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			// Without a receipt of the offer a file is not a chain; that of a refused offer states the refusal itself. A failure further on, with
			// success claimed at the end, is a contradiction.
			f := (*capabilities.Failure)(nil)
			refused := errors.As(err, &f) && strings.HasPrefix(tt.name, filecoin.OfferAbility)
			if !errors.Is(err, client.ErrUnproven) && !refused && !strings.Contains(err.Error(), "no receipt of") {
				t.Errorf("error %q is not ErrUnproven", err)
			}
		})
	}
}

// TestVerifyFailureRejects: that an offer failed has to be proven as well.
func TestVerifyFailureRejects(t *testing.T) {
	mallory := chaintest.Key("mallory")
	for _, can := range []string{filecoin.OfferAbility, filecoin.SubmitAbility, filecoin.AcceptAbility} {
		for name, spoil := range map[string]func(*chaintest.Link){
			"signature":              func(l *chaintest.Link) { l.Forge = chaintest.FlipSignature },
			"issued by another":      func(l *chaintest.Link) { l.Signer = mallory },
			"receipt not there":      func(l *chaintest.Link) { l.Pending = true },
			"invocation not there":   func(l *chaintest.Link) { l.Lost = true },
			"ran a task of no chain": func(l *chaintest.Link) { l.Ran = chaintest.By(mallory, l.Task).Link() },
		} {
			t.Run(can+"/"+name, func(t *testing.T) {
				c := chaintest.NewInvalid()
				spoil(c.Links[can])
				if got, err := verify(t, c); err == nil {
					t.Errorf("proven: %+v", got)
				}
			})
		}
	}
}

func TestVerifyUnknownKey(t *testing.T) {
	c := chaintest.New()
	chain, err := client.DecodeChain(c.Message().Encode())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := chain.Verify(t.Context(), chaintest.Keys{}); err == nil || !strings.Contains(err.Error(), chaintest.StorefrontWeb) {
		t.Errorf("without the storefront's key: %+v, %v", got, err)
	}
	wrong := chaintest.Keys{c.Storefront.DID(): c.Dealer.KeyDID()}
	if got, err := chain.Verify(t.Context(), wrong); !errors.Is(err, client.ErrUnproven) {
		t.Errorf("with another key: %+v, %v", got, err)
	}
}

// TestVerifyEveryByte changes the saved chain byte by byte: each is noticed, or does not matter to what is proven.
func TestVerifyEveryByte(t *testing.T) {
	c := chaintest.New()
	good := c.Message().Encode()
	want, keys := proven(c), c.Keys()
	step := 1
	if testing.Short() {
		step = 17
	}
	for i := 0; i < len(good); i += step {
		b := bytes.Clone(good)
		b[i] ^= 0x20
		chain, err := client.DecodeChain(b)
		if err != nil {
			continue
		}
		if got, err := chain.Verify(t.Context(), keys); err == nil && !cmp.Equal(want, got, compare) {
			t.Fatalf("with byte %d changed it proves %+v", i, got)
		}
	}
}

// relink changes one block of a saved chain and then redoes every hash and every link, as somebody would who has no keys. It returns nil if the
// block is unchanged, or is the message itself, which nobody signs.
func relink(t *testing.T, saved []byte, block int, change func(b []byte) []byte) []byte {
	t.Helper()
	roots, blocks, err := wire.ReadCAR(saved, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if block >= len(blocks) || blocks[block].CID.Equals(roots[0]) {
		return nil
	}
	changed := change(bytes.Clone(blocks[block].Bytes))
	if bytes.Equal(changed, blocks[block].Bytes) {
		return nil
	}
	renamed := [][2][]byte{}
	for i, blk := range blocks {
		b := blk.Bytes
		if i == block {
			b = changed
		}
		// Blocks stand after those that they link.
		for _, r := range renamed {
			b = bytes.ReplaceAll(b, r[0], r[1])
		}
		blocks[i] = wire.EncodeBlock(b)
		renamed = append(renamed, [2][]byte{blk.CID.Bytes(), blocks[i].CID.Bytes()})
	}
	return wire.AppendCAR(nil, []cid.Cid{blocks[len(blocks)-1].CID}, blocks)
}

func mustNotHold(t *testing.T, b []byte, keys capabilities.Keys, format string, args ...any) {
	t.Helper()
	chain, err := client.DecodeChain(b)
	if err != nil {
		return
	}
	if got, err := chain.Verify(t.Context(), keys); err == nil {
		t.Fatalf("%s: proven: %+v", fmt.Sprintf(format, args...), got)
	}
}

// TestVerifyWithoutKeys changes each block of a chain and makes all hashes and links fit again: what is left are the signatures.
func TestVerifyWithoutKeys(t *testing.T) {
	c := chaintest.New()
	saved, keys := c.Message().Encode(), c.Keys()
	_, blocks, err := wire.ReadCAR(saved, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	// Untouched it holds, so that it is the change that is noticed.
	if _, err := verify(t, c); err != nil {
		t.Fatal(err)
	}
	decoded := 0
	for i, blk := range blocks {
		for at := 0; at < len(blk.Bytes); at += 5 {
			b := relink(t, saved, i, func(b []byte) []byte { b[at] ^= 1; return b })
			if b == nil {
				continue
			}
			if _, err := client.DecodeChain(b); err == nil {
				decoded++
			}
			mustNotHold(t, b, keys, "block %d, byte %d", i, at)
		}
	}
	if decoded < 100 {
		t.Errorf("only %d of the changed chains were well formed: the test shows too little", decoded)
	}
}

func FuzzVerify(f *testing.F) {
	c := chaintest.New()
	saved, keys := c.Message().Encode(), c.Keys()
	f.Add(uint8(0), uint16(100), []byte{1})
	f.Add(uint8(9), uint16(20), []byte("did:key:"))
	f.Add(uint8(21), uint16(3), []byte{0xa0})
	f.Fuzz(func(t *testing.T, block uint8, at uint16, with []byte) {
		b := relink(t, saved, int(block), func(b []byte) []byte {
			copy(b[min(int(at), len(b)):], with)
			return b
		})
		if b != nil {
			mustNotHold(t, b, keys, "block %d, %q at %d", block, with, at)
		}
	})
}

func TestDecodeChain(t *testing.T) {
	c := chaintest.New()
	saved := c.Message().Encode()
	chain, err := client.DecodeChain(saved)
	if err != nil {
		t.Fatal(err)
	}
	if !chain.Offer.Equals(c.Links[filecoin.OfferAbility].Task.Link()) {
		t.Errorf("the offer is %s", chain.Offer)
	}
	if !chain.Concluded() {
		t.Error("the chain is not concluded")
	}
	again, err := client.DecodeChain(chain.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Verify(t.Context(), c.Keys()); err != nil {
		t.Errorf("saved again: %v", err)
	}
	var got []string
	for _, s := range chain.Steps() {
		if s.Receipt == nil {
			t.Errorf("%s has no receipt", s.Ability)
		}
		got = append(got, s.Ability)
	}
	if diff := cmp.Diff(chaintest.Abilities, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}

	two := c.Message()
	other := chaintest.New()
	offer := other.Links[filecoin.OfferAbility]
	other.Replace(filecoin.OfferAbility, chaintest.By(chaintest.Key("mallory"), offer.Task))
	m := other.Conclusion(filecoin.OfferAbility)
	two.AddReceipt(m.Receipt(offer.Task.Link()), m.Blocks()...)
	for name, b := range map[string][]byte{
		"empty":      nil,
		"no CAR":     []byte("a chain"),
		"cut off":    saved[:len(saved)-1],
		"no offer":   c.Conclusion(piececap.OfferAbility).Encode(),
		"no receipt": capabilities.Pending(c.Links[filecoin.OfferAbility].Task).Encode(),
		"two offers": two.Encode(),
	} {
		if _, err := client.DecodeChain(b); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// served is a storefront that answers for the receipts that it has.
type served map[cid.Cid]*capabilities.Message

func (s served) Execute(context.Context, *capabilities.Message) (*capabilities.Message, error) {
	return nil, errors.New("nothing is to be executed")
}

func (s served) Receipt(_ context.Context, task cid.Cid) (*capabilities.Message, error) {
	if m := s[task]; m != nil {
		return m, nil
	}
	return nil, capabilities.ErrNoReceipt
}

func serve(c *chaintest.Chain) served {
	s := served{}
	for can, l := range c.Links {
		if m := c.Conclusion(can); m != nil {
			s[l.Task.Link()] = m
		}
	}
	return s
}

func TestFollow(t *testing.T) {
	c := chaintest.New()
	offer := c.Links[filecoin.OfferAbility].Task.Link()
	chain, err := client.Follow(t.Context(), serve(c), offer)
	if err != nil {
		t.Fatal(err)
	}
	if !chain.Concluded() {
		t.Error("not concluded")
	}
	got, err := chain.Verify(t.Context(), c.Keys())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(proven(c), got, compare); diff != "" {
		t.Errorf("proven (-want +got):\n%s", diff)
	}
}

func TestFollowUnfinished(t *testing.T) {
	c := chaintest.New()
	offer := c.Links[filecoin.OfferAbility].Task.Link()
	// Receipts come one by one, from the offer on.
	for _, can := range chaintest.Abilities {
		c.Links[can].Pending = true
	}
	if _, err := client.Follow(t.Context(), serve(c), offer); !errors.Is(err, capabilities.ErrNoReceipt) {
		t.Errorf("following an unknown offer: %v", err)
	}
	for i, can := range chaintest.Abilities {
		c.Links[can].Pending = false
		chain, err := client.Follow(t.Context(), serve(c), offer)
		if err != nil {
			t.Fatal(err)
		}
		var concluded []string
		for _, s := range chain.Steps() {
			if s.Receipt != nil {
				concluded = append(concluded, s.Ability)
			} else if s.Ability == "" {
				t.Errorf("after %s: a step without its invocation", can)
			}
		}
		if diff := cmp.Diff(chaintest.Abilities[:i+1], concluded); diff != "" {
			t.Errorf("concluded after %s (-want +got):\n%s", can, diff)
		}
		last := i == len(chaintest.Abilities)-1
		if chain.Concluded() != last {
			t.Errorf("after %s: concluded is %v", can, chain.Concluded())
		}
		if _, err := chain.Verify(t.Context(), c.Keys()); (err == nil) != last {
			t.Errorf("after %s: %v", can, err)
		}
	}
}

func TestFollowBadAnswers(t *testing.T) {
	c := chaintest.New()
	offer := c.Links[filecoin.OfferAbility].Task.Link()
	s := serve(c)
	accept := c.Links[filecoin.AcceptAbility].Task.Link()
	s[accept] = c.Conclusion(filecoin.SubmitAbility)
	if _, err := client.Follow(t.Context(), s, offer); err == nil {
		t.Error("another task's receipt was taken")
	}

	// A chain that leads back to its start ends all the same.
	c = chaintest.New()
	l := c.Links[aggregatecap.AcceptAbility]
	l.Effects.Join = &c.Links[filecoin.OfferAbility].Task
	chain, err := client.Follow(t.Context(), serve(c), offer)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain.Steps()) != len(chaintest.Abilities) {
		t.Errorf("%d steps", len(chain.Steps()))
	}
}
