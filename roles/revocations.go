package roles

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
)

// Failures of ucan/revoke, under the names that its published schema (@storacha/capabilities) gives them.
const (
	UCANNotFound            = "UCANNotFound"            // what is revoked, or its proof, is not in the message
	UnauthorizedRevocation  = "UnauthorizedRevocation"  // the revoker has no part in what it revokes
	RevocationsStoreFailure = "RevocationsStoreFailure" // the revocation is too large to be kept
)

// Revocations keeps what was revoked, for ever. The first revocation of a UCAN is the one; row `revocation/{its CID}`.
type Revocations struct {
	rows  store.Rows
	table store.Table[revocation]
	keys  capabilities.Keys
	now   func() time.Time
}

// revocation is the value of a row.
type revocation struct {
	// Message is an agent message with the invocation of ucan/revoke, its proofs, and the UCANs from the one revoked
	// to one that the revoker issued: all that it takes to verify the revocation.
	Message []byte `cbor:"m"`
	// At is when it was taken, in milliseconds since the Unix epoch.
	At int64 `cbor:"a"`
}

// NewRevocations returns the revocations in a role's rows.
func NewRevocations(rows store.Rows, keys capabilities.Keys, now func() time.Time) *Revocations {
	return &Revocations{rows: rows, table: store.NewTable[revocation](rows), keys: keys, now: now}
}

func revocationKey(c cid.Cid) store.Key { return store.Key{Partition: "revocation/" + c.String()} }

// Revoked reports whether a UCAN was revoked. It has the form of [Authority.Revoked].
func (r *Revocations) Revoked(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := r.rows.Get(ctx, revocationKey(c))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Get returns the message that proves the revocation of a UCAN, store.ErrNotFound if it was not revoked.
func (r *Revocations) Get(ctx context.Context, c cid.Cid) (*capabilities.Message, error) {
	rec, err := r.table.Get(ctx, revocationKey(c))
	if err != nil {
		return nil, err
	}
	m, err := wire.DecodeMessage(rec.Value.Message, wire.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading the revocation of %s: %w", c, err)
	}
	return m, nil
}

// Method returns the method that executes ucan/revoke {ucan, proof?}. It revokes nb.ucan, which must be in the
// message with those of its proofs that lead to the revoker. The revoker is the principal of the invocation's `with`;
// whoever authorised the invocation has seen that its issuer is that principal, or acts for it.
//
// Those may revoke a UCAN who had a part in it: its issuer, its audience (who gives it up), and the issuers of the
// proofs that it rests on, where each proof is delegated to the issuer of what cites it.
//
// The receipt is ok {time}, milliseconds since the Unix epoch, once the revocation is durable. A UCAN is revoked
// once; revoking it again gives the time of the first revocation, and the same invocation the same receipt.
func (r *Revocations) Method(signer capabilities.Signer) capabilities.Method {
	return func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		var nb ucan.Revoke
		if err := inv.Caveats(&nb); err != nil {
			return nil, err
		}
		rec := store.Record[revocation]{Key: revocationKey(nb.UCAN)}
		evidence, err := r.evidence(ctx, inv, nb)
		if err != nil {
			return nil, err
		}
		m := new(capabilities.Message)
		m.AddInvocation(inv.UCAN, append(evidence, inv.Proofs...)...)
		rec.Value = revocation{Message: m.Encode(), At: r.now().UnixMilli()}
		switch _, err := r.table.Create(ctx, &rec, store.Effects{}); {
		case errors.Is(err, store.ErrTooLarge):
			return nil, capabilities.Fail(RevocationsStoreFailure,
				"the revocation has %d bytes with its proofs, more than can be kept: leave out proofs that it does not need",
				len(rec.Value.Message))
		case err != nil:
			return nil, fmt.Errorf("keeping the revocation of %s: %w", nb.UCAN, err)
		}
		return capabilities.Issue(signer, inv.Link(), &revokeOK{Time: rec.Value.At}, capabilities.Effects{})
	}
}

// revokeOK says when the UCAN was revoked, in milliseconds since the Unix epoch.
type revokeOK struct{ Time int64 }

func (o *revokeOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "time", Value: &o.Time}}
}

// evidence returns the blocks that show that the revoker may revoke: from the UCAN to one in which it has a part.
// Each is looked at once.
func (r *Revocations) evidence(ctx context.Context, inv capabilities.Invocation, nb ucan.Revoke) ([]capabilities.Block, error) {
	for i, link := range nb.Proof {
		if _, ok := inv.Message.Block(link); !ok {
			return nil, notFound(fmt.Sprintf("nb.proof[%d]", i), link)
		}
	}
	target, err := inv.Message.UCAN(nb.UCAN)
	if err != nil {
		return nil, capabilities.Malformed(inv.Can(), inv.Resource(), errors.New("nb.ucan is not a well-formed UCAN"))
	}
	if target == nil {
		return nil, notFound("nb.ucan", nb.UCAN)
	}
	type node struct {
		*capabilities.UCAN
		citer  *node
		queued bool
	}
	revoker := inv.Resource()
	decoded := map[cid.Cid]*node{target.Link(): {UCAN: target, queued: true}} // nil: not there, or malformed
	queue := []*node{decoded[target.Link()]}
	for i := 0; i < len(queue); i++ {
		at := queue[i]
		if err := r.genuine(ctx, at.UCAN); err != nil {
			if f := new(capabilities.Failure); i == 0 || !errors.As(err, &f) {
				return nil, err
			}
			continue
		}
		// The audience of a proof is the issuer of what cites it, which has been looked at.
		if at.Issuer.String() == revoker || at.Audience.String() == revoker {
			var blocks []capabilities.Block
			for ; at != nil; at = at.citer {
				blocks = append(blocks, at.Block())
			}
			return blocks, nil
		}
		for _, link := range at.Proofs {
			p, known := decoded[link]
			if !known {
				if len(decoded) > maxProofs {
					break
				}
				if u, err := inv.Message.UCAN(link); err == nil && u != nil {
					p = &node{UCAN: u}
				}
				decoded[link] = p
			}
			if p != nil && !p.queued && p.Audience == at.Issuer {
				p.citer, p.queued = at, true
				queue = append(queue, p)
			}
		}
	}
	return nil, capabilities.Fail(UnauthorizedRevocation,
		"%s has no part in %s: a UCAN is revoked by its issuer, its audience, or the issuer of a proof that it rests on, "+
			"which has to be in the message",
		clip(revoker), nb.UCAN)
}

// genuine checks the signature of a UCAN that has one. One without (of a principal that has no key) is what its CID
// says: nobody else can issue it, and it is worth nothing to whoever made it up.
func (r *Revocations) genuine(ctx context.Context, u *capabilities.UCAN) error {
	if u.Signature.Absent() {
		return nil
	}
	v, err := r.keys.Verifier(ctx, u.Issuer)
	switch {
	case errors.Is(err, ErrNoKey) || errors.Is(err, wire.ErrMalformed):
		return capabilities.Fail(UnauthorizedRevocation, "%s is issued by %s, whose key is not known here",
			u.Link(), clip(u.Issuer.String()))
	case err != nil:
		return fmt.Errorf("finding the key of %s: %w", u.Issuer, err)
	}
	if u.Verify(v) != nil {
		return capabilities.Fail(UnauthorizedRevocation, "the signature of %s is not by the key of its issuer, %s",
			u.Link(), clip(u.Issuer.String()))
	}
	return nil
}

// notFound says that a UCAN has to be sent along.
func notFound(role string, c cid.Cid) *capabilities.Failure {
	return &capabilities.Failure{Name: UCANNotFound, Details: &missing{c},
		Message: fmt.Sprintf("The %s UCAN %s is not found, it MUST be included with the revocation.", role, c)}
}

type missing struct{ UCAN cid.Cid }

func (m *missing) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "ucan", Value: &m.UCAN}}
}
