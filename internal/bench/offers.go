package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire"
)

// requests are the bodies of invocations, each different from all others, signed before anything is measured.
type requests struct {
	agent    capabilities.Signer
	audience capabilities.DID
	caveats  func(id uint64) (capabilities.Caveats, error)

	next uint64
}

// offersOf returns requests of filecoin/offer by one agent on its own DID. Contents and pieces are made up: no bytes stand behind them.
func offersOf(agent capabilities.Signer, storefront capabilities.DID) *requests {
	return &requests{agent: agent, audience: storefront, caveats: func(id uint64) (capabilities.Caveats, error) {
		content, link, err := madeUp(id, 20)
		return &filecoin.Offer{Content: content, Piece: link}, err
	}}
}

// piecesOf returns requests of piece/offer by a storefront on its own DID, for pieces of 128 KiB: 100,000 of them do not fill an aggregate.
func piecesOf(storefront capabilities.Signer, aggregator capabilities.DID) *requests {
	return &requests{agent: storefront, audience: aggregator, caveats: func(id uint64) (capabilities.Caveats, error) {
		_, link, err := madeUp(id, 12)
		return &piececap.Offer{Piece: link, Group: storefront.DID().String()}, err
	}}
}

// madeUp returns a content and a piece of a height that belong to a number.
func madeUp(id uint64, height uint8) (cid.Cid, piece.Link, error) {
	digest := sha256.Sum256(binary.BigEndian.AppendUint64(nil, id))
	hash, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		return cid.Undef, piece.Link{}, err
	}
	root := piece.Node(sha256.Sum256(digest[:]))
	root[piece.NodeSize-1] &= 0x3f
	link, err := piece.FromRootAndHeight(root, height, 0)
	return cid.NewCidV1(cid.Raw, hash), link, err
}

// sign returns the next n bodies, made on all cores.
func (r *requests) sign(n int) ([][]byte, error) {
	bodies := make([][]byte, n)
	first := r.next
	r.next += uint64(n)
	var group sync.WaitGroup
	errs := make([]error, runtime.GOMAXPROCS(0))
	for w := range errs {
		group.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				bodies[i], errs[w] = r.body(first + uint64(i))
			}
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("signing requests: %w", err)
		}
	}
	return bodies, nil
}

func (r *requests) body(id uint64) ([]byte, error) {
	c, err := r.caveats(id)
	if err != nil {
		return nil, err
	}
	task, err := capabilities.Invoke(r.agent, r.audience, r.agent.DID().String(), c, capabilities.Terms{Expiration: time.Now().Add(time.Hour)})
	if err != nil {
		return nil, err
	}
	return capabilities.Pending(task).Encode(), nil
}

// checkReply verifies that a reply acknowledges the request: a receipt, signed by the audience, that says ok.
func (r *requests) checkReply(request, reply []byte) (*capabilities.Receipt, error) {
	sent, err := wire.DecodeMessage(request, wire.Limits{})
	if err != nil {
		return nil, err
	}
	got, err := wire.DecodeMessage(reply, wire.Limits{})
	if err != nil {
		return nil, err
	}
	task := sent.Invocations()[0]
	receipt := got.Receipt(task.Link())
	if receipt == nil {
		return nil, fmt.Errorf("the reply has no receipt of %s", task.Link())
	}
	if err := capabilities.VerifyReceipt(context.Background(), receipt, task, ownKeys{}); err != nil {
		return nil, err
	}
	if receipt.Out.OK == nil {
		return nil, capabilities.ReadFailure(receipt.Out.Error)
	}
	return receipt, nil
}

// ownKeys are the keys of did:key, which are in the DID itself.
type ownKeys struct{}

// Verifier implements [capabilities.Keys].
func (ownKeys) Verifier(_ context.Context, did capabilities.DID) (capabilities.Verifier, error) {
	return wire.VerifierOf(did)
}

func newSigner() (capabilities.Signer, error) { return wire.GenerateSigner(rand.Reader) }

// signatureCost is what one offer costs in signatures alone, on this machine at this moment.
type signatureCost struct {
	Verify time.Duration `json:"verify_ns"`
	Sign   time.Duration `json:"sign_ns"`
	// Bound is how many offers a second the cores could do if there were nothing but one verification and three signatures each.
	Bound float64 `json:"bound_per_second"`
}

// measureSignatures signs and verifies on all cores at once for a moment.
func measureSignatures(d time.Duration) (signatureCost, error) {
	s, err := newSigner()
	if err != nil {
		return signatureCost{}, err
	}
	payload := make([]byte, 700) // about as long as that of an offer
	signature := s.Sign(payload)
	v := s.Verifier()
	cores := runtime.GOMAXPROCS(0)
	each := func(f func()) time.Duration {
		var group sync.WaitGroup
		total := make([]int, cores)
		began := time.Now()
		for w := range cores {
			group.Go(func() {
				for time.Since(began) < d {
					f()
					total[w]++
				}
			})
		}
		group.Wait()
		took := time.Since(began)
		n := 0
		for _, t := range total {
			n += t
		}
		return took * time.Duration(cores) / time.Duration(n)
	}
	good := v.Verify(payload, signature)
	if !good {
		return signatureCost{}, fmt.Errorf("a signature does not verify")
	}
	c := signatureCost{Sign: each(func() { s.Sign(payload) }), Verify: each(func() { v.Verify(payload, signature) })}
	c.Bound = float64(cores) / (c.Verify + 3*c.Sign).Seconds()
	return c, nil
}
