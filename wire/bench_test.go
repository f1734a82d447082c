package wire_test

import (
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// codecRound does for one filecoin/offer all that a server does but the signatures: decode the request, make the
// payload that is verified, make and encode two effects, encode the receipt and the reply.
func codecRound(t testing.TB, request []byte, storefront wire.DID, sig wire.Signature) []byte {
	m, err := wire.DecodeMessage(request, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	offer := m.Invocations()[0]
	if _, err := offer.Payload(); err != nil {
		t.Fatal(err)
	}
	nb := offer.Capabilities[0].Nb
	var piece cid.Cid
	r := cbor.NewReader(nb)
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
	var links [2]cid.Cid
	for i, can := range []string{"filecoin/submit", "filecoin/accept"} {
		u := wire.UCAN{
			Issuer: storefront, Audience: storefront, Signature: sig,
			Capabilities: []wire.Capability{{Can: can, With: storefront.String(), Nb: nb}},
		}
		if _, err := u.Payload(); err != nil {
			t.Fatal(err)
		}
		b, err := u.Encode()
		if err != nil {
			t.Fatal(err)
		}
		links[i] = b.CID
	}
	ok := cbor.AppendMap(make([]byte, 0, 64), 1)
	ok = cbor.AppendText(ok, "piece")
	ok = cbor.AppendLink(ok, piece)
	rc, err := wire.Receipt{
		Ran: offer.Link(), Out: wire.Result{OK: ok}, Fork: links[:1], Join: links[1], Issuer: storefront,
	}.WithSignature(sig)
	if err != nil {
		t.Fatal(err)
	}
	var reply wire.Message
	reply.AddReceipt(rc, m.Export(offer)...)
	return reply.Encode()
}

func benchmarkInput(t testing.TB) (request []byte, storefront wire.DID, sig wire.Signature) {
	v := loadVectors(t)
	request, _ = loadSamples(t).message(t, "served offer")
	s := v.signer(t, "storefront")
	return request, s.DID(), s.Sign(nil)
}

// One offer and its reply cost few allocations: the codec must not be what limits a server.
func TestAllocations(t *testing.T) {
	request, storefront, sig := benchmarkInput(t)
	const most = 40
	if got := testing.AllocsPerRun(100, func() { codecRound(t, request, storefront, sig) }); got > most {
		t.Errorf("%v allocations for an offer and its reply, want at most %d", got, most)
	}
}

func BenchmarkOfferCodec(b *testing.B) {
	request, storefront, sig := benchmarkInput(b)
	b.ReportAllocs()
	for b.Loop() {
		codecRound(b, request, storefront, sig)
	}
}

func BenchmarkOffer(b *testing.B) {
	v := loadVectors(b)
	request, _ := loadSamples(b).message(b, "served offer")
	storefront := v.signer(b, "storefront")
	b.ReportAllocs()
	for b.Loop() {
		serveOffer(b, storefront, request)
	}
}

func BenchmarkDecodeMessage(b *testing.B) {
	request, _ := loadSamples(b).message(b, "served offer")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.DecodeMessage(request, wire.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
