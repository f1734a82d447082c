package compute

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
)

// Bounds on the claims of one invocation.
const (
	maxBlocks    = 512  // of the message that are looked at
	maxLocations = 16   // addresses that are tried
	maxURL       = 2048 // bytes of an address; longer ones are passed over
)

// locations returns the addresses that the invoker claims for the content: by claims of its own that are valid now and came with the
// invocation. Anything else in the message is passed over.
func (s *Service) locations(ctx context.Context, inv capabilities.Invocation, content cid.Cid) ([]Location, error) {
	blocks := inv.Message.Blocks()
	blocks = blocks[:min(len(blocks), maxBlocks)]
	var list []Location
	for _, b := range blocks {
		claim, err := inv.Message.UCAN(b.CID)
		if err != nil || claim == nil || claim.Issuer != inv.Issuer {
			continue
		}
		claimed := locationsIn(claim, content, s.Now())
		if len(claimed) == 0 {
			continue
		}
		key, err := s.Keys.Verifier(ctx, claim.Issuer)
		if err != nil {
			return nil, fmt.Errorf("finding the key of %s: %w", claim.Issuer, err)
		}
		if claim.Verify(key) != nil {
			continue
		}
		for _, l := range claimed {
			if len(list) == maxLocations {
				return list, nil
			}
			if !slices.Contains(list, l) {
				list = append(list, l)
			}
		}
	}
	return list, nil
}

// locationsIn returns what a UCAN, signature aside, says about where the content lies.
func locationsIn(claim *capabilities.UCAN, content cid.Cid, now time.Time) (list []Location) {
	if claim.Expiration != nil && *claim.Expiration <= now.Unix() || claim.NotBefore > now.Unix() {
		return nil
	}
	for _, c := range claim.Capabilities {
		// On another resource than its own DID the issuer would have to prove its authority.
		if c.Can != assert.LocationAbility || c.With != claim.Issuer.String() || c.Nb == nil {
			continue
		}
		var l assert.Location
		if capabilities.Decode(c.Nb, &l) != nil || !bytes.Equal(l.Content.Multihash(), content.Hash()) {
			continue
		}
		for _, url := range l.Location {
			if url != "" && len(url) <= maxURL {
				list = append(list, Location{URL: url, Offset: l.Range.Offset, Length: l.Range.Length})
			}
		}
	}
	return list
}
