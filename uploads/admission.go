package uploads

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
)

// accounts begins the names of the accounts of uploads. Those of offers are beside them, without it.
const accounts = "uploads/"

// admit says whether a blob that is not there may be allocated: not beyond the limits, whether the blob comes or not. A space that was charged for it stays
// so while the address of then is good. An invocation that has been acknowledged before has its receipt, whatever happened since.
func (s *Service) admit(ctx context.Context, inv capabilities.Invocation, b blob.Blob, expires time.Time) (earlier *capabilities.Receipt, err error) {
	limits := s.Policy.Limits
	if limits == (standing.Limits{}) {
		return nil, nil
	}
	// Anybody can repeat an invocation of somebody else's. It must not take from what that one may upload.
	if earlier, err = s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {
		return earlier, err
	}
	key := allocationKey(inv.Resource(), b.Digest)
	charged, err := s.allocations.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	// Whoever states another size asks for an address that takes so many bytes.
	if charged.Exists() && charged.Value.Size == b.Size && charged.Value.good(s.Now()) {
		return nil, nil
	}
	by := standing.Offerer{Agent: inv.Issuer.String(), Space: inv.Resource()}
	if !limits.Newcomers.None() {
		known, err := s.standings.Of(ctx, standing.AgentSubject(by.Agent))
		if err != nil {
			return nil, err
		}
		by.Newcomer = known.Right == 0
	}
	name, err := chargeOf(inv.Resource(), b)
	if err != nil {
		return nil, err
	}
	err = s.standings.ReserveAll(ctx, accounts, by, name, b.Size, limits)
	if over := (*standing.Exceeded)(nil); errors.As(err, &over) {
		return nil, capabilities.NewUploadQuotaExceeded(strings.TrimPrefix(over.Subject, accounts), capabilities.Quota{Count: over.Used.Count,
			MaxCount: over.Limit.Count, Bytes: over.Used.Bytes, MaxBytes: over.Limit.Bytes}, over.RetryAfter)
	}
	if err != nil {
		return nil, err
	}
	_, err = s.allocations.Update(ctx, key, func(rec *store.Record[Allocation], _ *store.Effects) error {
		rec.Value = Allocation{Size: b.Size, Expires: expires.UnixMilli()}
		return nil
	})
	return nil, err
}

// chargeOf names what accounts are charged with: one blob in one space, by whatever invocation. So invocations that meet, and one that is repeated after a fault,
// are charged once.
func chargeOf(space string, b blob.Blob) (cid.Cid, error) {
	sum, err := multihash.Sum(fmt.Appendf(nil, "%s\n%x\n%d", space, []byte(b.Digest), b.Size), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, fmt.Errorf("naming the charge of a blob: %w", err)
	}
	return cid.NewCidV1(cid.Raw, sum), nil
}

// forget removes what a space was charged with for a blob, once the address of then has expired.
func (s *Service) forget(ctx context.Context, add cid.Cid) error {
	kept, err := s.ledger.Read(ctx, add)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, nb, err := acceptOf(kept)
	if err != nil {
		return err
	}
	_, err = s.allocations.Update(ctx, allocationKey(nb.Space.String(), nb.Blob.Digest), func(rec *store.Record[Allocation], fx *store.Effects) error {
		if !rec.Exists() || rec.Value.good(s.Now()) {
			return store.ErrUnchanged
		}
		fx.Delete = true
		return nil
	})
	return err
}
