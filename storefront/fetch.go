package storefront

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/store"
)

// Fetcher brings content into custody from addresses that outsiders may have chosen.
type Fetcher interface {
	// Fetch puts the content into custody from the first of the addresses that gives it, in at most maxBytes bytes. What it takes is hashed on
	// its way in. The error is shown to whoever asks why a piece waits.
	Fetch(ctx context.Context, content cid.Cid, urls []string, maxBytes int64) error
}

// Bounds on the claims that come with an offer, and on what is made of them.
const (
	maxClaimBlocks = 64      // of a message that are looked at
	maxAttached    = 8       // claims that are kept with an offer
	maxClaimSize   = 4 << 10 // bytes of one
	maxHints       = 16      // addresses that are tried
	maxHintedBy    = 16      // offers of one piece whose claims are looked at
	maxURL         = 2048    // bytes of an address
)

// attached returns the claims of where the content is that came with an offer: hints, of whomever, but signed. They are kept with the offer.
// If the message holds several invocations, a claim belongs to those that link it.
func (s *Service) attached(ctx context.Context, inv capabilities.Invocation, content cid.Cid) []capabilities.Block {
	if s.Fetcher == nil {
		return nil
	}
	blocks := inv.Message.Blocks()
	if len(inv.Message.Invocations()) != 1 {
		blocks = inv.Message.Export(inv.UCAN)
	}
	var claims []capabilities.Block
	for _, b := range blocks[:min(len(blocks), maxClaimBlocks)] {
		if len(b.Bytes) > maxClaimSize || len(claims) == maxAttached {
			continue
		}
		claim, err := inv.Message.UCAN(b.CID)
		if err != nil || claim == nil || len(s.locationsIn(claim, content)) == 0 {
			continue
		}
		// Only keys that need not be looked up: nobody shall have this service ask others while it acknowledges.
		if claim.Issuer.Method() != "key" {
			continue
		}
		if v, err := s.Keys.Verifier(ctx, claim.Issuer); err == nil && claim.Verify(v) == nil {
			claims = append(claims, b)
		}
	}
	return claims
}

// locationsIn returns the addresses that a UCAN, signature aside, claims for the whole content now.
func (s *Service) locationsIn(claim *capabilities.UCAN, content cid.Cid) (urls []string) {
	now := s.Now().Unix()
	if claim.Expiration != nil && *claim.Expiration <= now || claim.NotBefore > now {
		return nil
	}
	for _, c := range claim.Capabilities {
		// On another resource than its own DID the issuer would have to prove its authority.
		if c.Can != assert.LocationAbility || c.With != claim.Issuer.String() || c.Nb == nil {
			continue
		}
		var l assert.Location
		if capabilities.Decode(c.Nb, &l) != nil || !bytes.Equal(l.Content.Multihash(), content.Hash()) || *l.Range != (assert.Range{}) {
			continue
		}
		for _, u := range l.Location {
			if u != "" && len(u) <= maxURL {
				urls = append(urls, u)
			}
		}
	}
	return urls
}

// hints returns where the content of a piece is claimed to be: by claims that came with its offers, then by those that are kept.
func (s *Service) hints(ctx context.Context, p store.Record[Piece]) ([]string, error) {
	if s.Fetcher == nil {
		return nil, nil
	}
	var urls []string
	add := func(more []string) {
		for _, u := range more {
			if len(urls) < maxHints && !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	offers := []cid.Cid{p.Value.Offer}
	others, _, err := s.by.Query(ctx, byKey(p.Key, p.Value.Offer).Partition, "", "", maxHintedBy)
	if err != nil {
		return nil, err
	}
	for _, by := range others {
		if offer, err := cid.Decode(by.Key.Sort); err == nil {
			offers = append(offers, offer)
		}
	}
	for _, offer := range offers {
		kept, err := s.ledger.Read(ctx, offer)
		if err != nil {
			return nil, err
		}
		for _, b := range kept.Message.Blocks() {
			if claim, err := kept.Message.UCAN(b.CID); err == nil && claim != nil && claim.Capabilities[0].Can != filecoin.OfferAbility {
				add(s.locationsIn(claim, p.Value.Content))
			}
		}
	}
	if s.Claims != nil {
		claimed, err := s.Claims.Locations(ctx, p.Value.Content)
		if err != nil {
			return nil, err
		}
		add(claimed)
	}
	return urls, nil
}

// bring copies the content of a piece into custody: from the operator's sources, or else from where it is claimed to be.
func (s *Service) bring(ctx context.Context, p *Piece, urls []string) error {
	err := fmt.Errorf("nobody knows where it is: %w", ErrNoContent)
	if s.Importer != nil {
		err = s.Importer.Import(ctx, p.Content, func(length int64) error { return checkLength(p.Piece, length) })
	}
	if err == nil || ctx.Err() != nil || s.Fetcher == nil || len(urls) == 0 {
		return err
	}
	failed := s.Fetcher.Fetch(ctx, p.Content, urls, int64(p.Piece.PaddedSize()/128*127))
	if failed != nil && !errors.Is(err, ErrNoContent) {
		return fmt.Errorf("%w; %w", err, failed)
	}
	return failed
}
