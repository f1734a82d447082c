package wire_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// resign makes the UCAN anew from its fields.
func resign(t testing.TB, s wire.Signer, u *wire.UCAN) *wire.UCAN {
	t.Helper()
	again, err := wire.SignUCAN(s, wire.UCAN{
		Audience: u.Audience, Capabilities: u.Capabilities, Proofs: u.Proofs, Expiration: u.Expiration,
		NotBefore: u.NotBefore, Nonce: u.Nonce, Facts: u.Facts,
	})
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestVectorUCANs(t *testing.T) {
	v := loadVectors(t)
	signers := map[wire.DID]wire.Signer{}
	for name, key := range v.Keys {
		s := v.signer(t, name)
		if got := s.DID().String(); got != key.DID {
			t.Fatalf("key %s is %s, want %s", name, got, key.DID)
		}
		signers[s.DID()] = s
	}
	for name, vector := range v.UCANs {
		t.Run(name, func(t *testing.T) {
			b := vector.block(t)
			u, err := wire.DecodeUCAN(b)
			if err != nil {
				t.Fatal(err)
			}
			encoded, err := u.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if encoded.CID != b.CID || !bytes.Equal(encoded.Bytes, b.Bytes) {
				t.Errorf("encoded differently:\n%x\n%x", encoded.Bytes, b.Bytes)
			}
			signer := signers[u.Issuer]
			if err := u.Verify(signer.Verifier()); err != nil {
				t.Error(err)
			}
			if got := resign(t, signer, u); got.Link() != b.CID || !bytes.Equal(got.Block().Bytes, b.Bytes) {
				t.Errorf("signed again it is %v, want %v", got.Link(), b.CID)
			}
		})
	}
}

func TestVectorBlocks(t *testing.T) {
	v := loadVectors(t)
	for name, vector := range v.Blocks {
		want := vector.block(t)
		if got := wire.EncodeBlock(want.Bytes); got.CID != want.CID {
			t.Errorf("%s: CID %v, want %v", name, got.CID, want.CID)
		}
		if err := cbor.Valid(want.Bytes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := cbor.NewReader(v.Blocks["pieces of an aggregate"].Hex)
	var pieces []string
	for range r.Array() {
		pieces = append(pieces, r.Link().String())
	}
	if err := r.Done(); err != nil {
		t.Fatal(err)
	}
	for _, p := range v.Pieces {
		if !slices.Contains(pieces, p.Piece) {
			t.Errorf("piece %s is not in the list %v", p.Piece, pieces)
		}
	}
	for i, inclusion := range v.Inclusions {
		if err := cbor.Valid(inclusion); err != nil {
			t.Errorf("inclusion %d: %v", i, err)
		}
	}
}

func TestSampleUCANs(t *testing.T) {
	v := loadVectors(t)
	signers := map[string]wire.Signer{}
	for name := range v.Keys {
		s := v.signer(t, name)
		signers[s.DID().String()] = s
	}
	service, err := v.signer(t, "storefront").WithDID(parseDID(t, "did:web:storefront.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	signers[service.DID().String()] = service

	for _, sample := range loadSamples(t).UCANs {
		t.Run(sample.Name, func(t *testing.T) {
			b := sample.block(t)
			u, err := wire.DecodeUCAN(b)
			if err != nil {
				t.Fatal(err)
			}
			if u.Issuer.String() != sample.Issuer {
				t.Errorf("issuer %v, want %s", u.Issuer, sample.Issuer)
			}
			encoded, err := u.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(encoded.Bytes, b.Bytes) {
				t.Errorf("encoded differently:\n%x\n%x", encoded.Bytes, b.Bytes)
			}
			if sample.Key == "" {
				if !u.Signature.Absent() {
					t.Error("signature is not absent")
				}
				v := service.Verifier().WithDID(u.Issuer)
				if err := u.Verify(v); !errors.Is(err, wire.ErrSignature) {
					t.Errorf("absent signature: %v, want ErrSignature", err)
				}
				return
			}
			key := verifier(t, sample.Issuer, sample.Key)
			if err := u.Verify(key); err != nil {
				t.Error(err)
			}
			other := v.signer(t, "tracker").Verifier().WithDID(u.Issuer)
			if err := u.Verify(other); !errors.Is(err, wire.ErrSignature) {
				t.Errorf("verified with another key: %v", err)
			}
			stranger := key.WithDID(parseDID(t, "did:web:other.example.com"))
			if err := u.Verify(stranger); !errors.Is(err, wire.ErrSignature) {
				t.Errorf("verified in another name: %v", err)
			}
			// The sample about spellings is signed over the other spelling than ours.
			if signer, ok := signers[sample.Issuer]; ok && sample.Name != "spelling" {
				if got := resign(t, signer, u); got.Link() != b.CID {
					t.Errorf("signed again it is %v, want %v", got.Link(), b.CID)
				}
			}
		})
	}
}

// Every part of a UCAN is under the signature.
func TestTamperedUCAN(t *testing.T) {
	v := loadVectors(t)
	for _, sample := range loadSamples(t).UCANs {
		if sample.Name != "chain, proof" && sample.Name != "expiration, not before, nonce, facts" {
			continue
		}
		u, err := wire.DecodeUCAN(sample.block(t))
		if err != nil {
			t.Fatal(err)
		}
		later := int64(1 << 40)
		for name, change := range map[string]func(*wire.UCAN){
			"audience":   func(u *wire.UCAN) { u.Audience = v.signer(t, "dealer").DID() },
			"ability":    func(u *wire.UCAN) { u.Capabilities = []wire.Capability{{Can: "*", With: u.Capabilities[0].With}} },
			"resource":   func(u *wire.UCAN) { u.Capabilities = []wire.Capability{{Can: u.Capabilities[0].Can, With: "ucan:*"}} },
			"caveats":    func(u *wire.UCAN) { u.Capabilities = slices.Clone(u.Capabilities); u.Capabilities[0].Nb = []byte{0xa0} },
			"more":       func(u *wire.UCAN) { u.Capabilities = append(slices.Clip(u.Capabilities), u.Capabilities[0]) },
			"proofs":     func(u *wire.UCAN) { u.Proofs = append(slices.Clip(u.Proofs), u.Link()) },
			"expiration": func(u *wire.UCAN) { u.Expiration = &later },
			"not before": func(u *wire.UCAN) { u.NotBefore++ },
			"nonce":      func(u *wire.UCAN) { u.Nonce += "x" },
			"facts":      func(u *wire.UCAN) { u.Facts = append(slices.Clip(u.Facts), []byte{0xa0}) },
			"signature":  func(u *wire.UCAN) { u.Signature = slices.Clone(u.Signature); u.Signature[20] ^= 1 },
		} {
			t.Run(sample.Name+"/"+name, func(t *testing.T) {
				changed := *u
				change(&changed)
				b, err := changed.Encode()
				if err != nil {
					t.Fatal(err)
				}
				decoded, err := wire.DecodeUCAN(b)
				if err != nil {
					t.Fatal(err)
				}
				if err := decoded.Verify(verifier(t, sample.Issuer, sample.Key)); !errors.Is(err, wire.ErrSignature) {
					t.Errorf("got %v, want ErrSignature", err)
				}
			})
		}
	}
}

func TestSampleReceipts(t *testing.T) {
	v := loadVectors(t)
	for _, sample := range loadSamples(t).Receipts {
		t.Run(sample.Name, func(t *testing.T) {
			b := sample.block(t)
			rc, err := wire.DecodeReceipt(b)
			if err != nil {
				t.Fatal(err)
			}
			if rc.Ran.String() != sample.Ran || rc.Issuer.String() != sample.Issuer {
				t.Errorf("receipt of %v by %v, want %s by %s", rc.Ran, rc.Issuer, sample.Ran, sample.Issuer)
			}
			encoded, err := rc.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if encoded.CID != b.CID || !bytes.Equal(encoded.Bytes, b.Bytes) {
				t.Errorf("encoded differently:\n%x\n%x", encoded.Bytes, b.Bytes)
			}
			key := verifier(t, sample.Issuer, sample.Key)
			if err := rc.Verify(key); err != nil {
				t.Error(err)
			}
			if err := rc.Verify(v.signer(t, "tracker").Verifier()); !errors.Is(err, wire.ErrSignature) {
				t.Errorf("verified for another issuer: %v", err)
			}
			other := v.signer(t, "tracker").Verifier().WithDID(rc.Issuer)
			if err := rc.Verify(other); !errors.Is(err, wire.ErrSignature) {
				t.Errorf("verified with another key: %v", err)
			}
			signer, err := v.signer(t, "storefront").WithDID(rc.Issuer)
			if err != nil {
				t.Fatal(err)
			}
			again, err := wire.SignReceipt(signer, wire.Receipt{
				Ran: rc.Ran, Out: rc.Out, Fork: rc.Fork, Join: rc.Join, Meta: rc.Meta, Proofs: rc.Proofs,
			})
			if err != nil {
				t.Fatal(err)
			}
			if again.Link() != b.CID {
				t.Errorf("signed again it is %v, want %v", again.Link(), b.CID)
			}
			if err := again.Verify(key); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSampleMessages(t *testing.T) {
	for _, sample := range loadSamples(t).Messages {
		t.Run(sample.Name, func(t *testing.T) {
			m, err := wire.DecodeMessage(sample.Hex, wire.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Encode(); !bytes.Equal(got, sample.Hex) {
				t.Errorf("encoded differently:\n%x\n%x", got, []byte(sample.Hex))
			}

			// The message made from its parts has the same bytes.
			var again wire.Message
			for _, u := range m.Invocations() {
				// A receipt that the caveats link to came by the report, not as an attachment.
				again.AddInvocation(u, slices.DeleteFunc(m.Export(u), func(b wire.Block) bool {
					return slices.ContainsFunc(m.Receipts(), func(rc *wire.Receipt) bool { return rc.Link() == b.CID })
				})...)
			}
			// Where there are several receipts, the order in which they were added shows in the blocks.
			receipts := slices.Clone(m.Receipts())
			place := func(rc *wire.Receipt) int {
				return slices.IndexFunc(m.Blocks(), func(b wire.Block) bool { return b.CID == rc.Link() })
			}
			slices.SortFunc(receipts, func(a, b *wire.Receipt) int { return place(a) - place(b) })
			for _, rc := range receipts {
				again.AddReceipt(rc, exportReceipt(t, m, rc)...)
			}
			if got := again.Encode(); !bytes.Equal(got, sample.Hex) {
				t.Errorf("built differently:\n%x\n%x", got, []byte(sample.Hex))
			}

			for _, b := range m.Blocks() {
				if got, ok := m.Block(b.CID); !ok || !bytes.Equal(got.Bytes, b.Bytes) {
					t.Errorf("block %v is not found", b.CID)
				}
			}
			for _, rc := range m.Receipts() {
				if m.Receipt(rc.Ran) != rc {
					t.Errorf("receipt of %v is not found", rc.Ran)
				}
			}
		})
	}
}

// exportReceipt returns the blocks that go with a receipt, as the JavaScript implementation orders them.
func exportReceipt(t testing.TB, m *wire.Message, rc *wire.Receipt) []wire.Block {
	t.Helper()
	var blocks []wire.Block
	tasks := append([]cid.Cid{rc.Ran}, rc.Fork...)
	if rc.Join.Defined() {
		tasks = append(tasks, rc.Join)
	}
	for _, task := range append(tasks, rc.Proofs...) {
		u, err := m.UCAN(task)
		if err != nil {
			t.Fatal(err)
		}
		if u != nil {
			blocks = append(blocks, m.Export(u)...)
		}
	}
	return blocks
}

// A server built on this package answers an offer with the bytes of the JavaScript server.
func TestServedOffer(t *testing.T) {
	v := loadVectors(t)
	samples := loadSamples(t)
	storefront := v.signer(t, "storefront")
	for _, name := range []string{"served offer", "served offer with proofs"} {
		t.Run(name, func(t *testing.T) {
			request, want := samples.message(t, name)
			got := serveOffer(t, storefront, request)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// serveOffer answers the one filecoin/offer in the request as a storefront does.
func serveOffer(t testing.TB, storefront wire.Signer, request []byte) []byte {
	m, err := wire.DecodeMessage(request, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	offer := m.Invocations()[0]
	issuer, err := wire.VerifierOf(offer.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	if err := offer.Verify(issuer); err != nil {
		t.Fatal(err)
	}
	var piece cid.Cid
	r := cbor.NewReader(offer.Capabilities[0].Nb)
	for range r.Map() {
		if string(r.Key()) == "piece" {
			piece = r.Link()
		} else {
			r.Skip()
		}
	}
	if err := r.Done(); err != nil {
		t.Fatal(err)
	}
	effect := func(can string) cid.Cid {
		u, err := wire.SignUCAN(storefront, wire.UCAN{
			Audience:     storefront.DID(),
			Capabilities: []wire.Capability{{Can: can, With: storefront.DID().String(), Nb: offer.Capabilities[0].Nb}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return u.Link()
	}
	ok := cbor.AppendMap(nil, 1)
	ok = cbor.AppendText(ok, "piece")
	ok = cbor.AppendLink(ok, piece)
	rc, err := wire.SignReceipt(storefront, wire.Receipt{
		Ran: offer.Link(), Out: wire.Result{OK: ok},
		Fork: []cid.Cid{effect("filecoin/submit")}, Join: effect("filecoin/accept"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var reply wire.Message
	reply.AddReceipt(rc, m.Export(offer)...)
	return reply.Encode()
}
