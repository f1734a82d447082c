package uploads

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
	"github.com/storacha/w3filecoin/wire"
)

type (
	// addMessage names a space/blob/add.
	addMessage struct {
		Add cid.Cid `cbor:"a"`
	}
	// acceptMessage names a blob/accept that succeeded, and the space/blob/add that caused it.
	acceptMessage struct {
		Accept cid.Cid `cbor:"a"`
		Cause  cid.Cid `cbor:"c"`
	}
	// removeMessage takes a blob out of a space if it has been in it since At.
	removeMessage struct {
		Key store.Key `cbor:"k"`
		At  int64     `cbor:"t"`
	}
)

var (
	deliveredQueue = store.NewQueue[tasks.Arrival]("blob-delivered")
	expireQueue    = store.NewQueue[addMessage]("blob-expired")
	acceptedQueue  = store.NewQueue[acceptMessage]("blob-accepted")
	removeQueue    = store.NewQueue[removeMessage]("blob-removed")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		deliveredQueue.Name: deliveredQueue.Handler(s.delivered),
		expireQueue.Name:    expireQueue.Handler(s.expired),
		acceptedQueue.Name:  acceptedQueue.Handler(s.accepted),
		removeQueue.Name:    removeQueue.Handler(s.removed),
	}
}

// delivered follows the receipt of http/put: worth a look. If the blob is not there, whoever signed it was wrong, and the upload goes on
// waiting.
func (s *Service) delivered(ctx context.Context, msg tasks.Arrival) error {
	text, _ := strings.CutPrefix(msg.Owner.Partition, "task/")
	add, err := cid.Decode(text)
	if err != nil {
		return fmt.Errorf("the owner of %s is no task: %w", msg.Task, err)
	}
	return s.conclude(ctx, add, false)
}

// Concluding returns the method ucan/conclude with a fast path: if the receipt is of an http/put, blob/accept is concluded by the time of the
// answer, so that clients find its receipt at once. The message that the receipt caused does the same if this fails.
func (s *Service) Concluding(conclude capabilities.Method) capabilities.Method {
	return func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		r, err := conclude(ctx, inv)
		if err != nil {
			return r, err
		}
		if err := s.hurry(ctx, inv); err != nil {
			s.Log.Warn("accepting a blob has to wait for its message", "task", inv.Link(), "err", err)
		}
		return r, nil
	}
}

// hurry does the work of the message that an attached receipt has caused.
func (s *Service) hurry(ctx context.Context, inv capabilities.Invocation) error {
	var nb ucan.Conclude
	if err := inv.Caveats(&nb); err != nil {
		return err
	}
	b, attached := inv.Message.Block(nb.Receipt)
	if !attached || len(inv.Message.Receipts()) > 0 {
		return nil // a batch of another role, which has no blobs to deliver
	}
	r, err := wire.DecodeReceipt(b)
	if err != nil {
		return err
	}
	rec, err := s.ledger.Get(ctx, r.Ran)
	if errors.Is(err, store.ErrNotFound) || err == nil && (!rec.Concluded || rec.Notify != deliveredQueue.Name) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.delivered(ctx, tasks.Arrival{Task: r.Ran, Owner: rec.Owner})
}

// expired ends an upload for good: the blob came, or it did not.
func (s *Service) expired(ctx context.Context, msg addMessage) error {
	if err := s.conclude(ctx, msg.Add, true); err != nil {
		return err
	}
	return s.forget(ctx, msg.Add)
}

// conclude looks for the blob, and concludes blob/accept if it is there, or if this is the last look.
func (s *Service) conclude(ctx context.Context, add cid.Cid, last bool) error {
	kept, err := s.ledger.Read(ctx, add)
	if errors.Is(err, store.ErrNotFound) {
		return nil // it was never acknowledged, and whoever asks again is answered by what is there then
	}
	if err != nil {
		return err
	}
	task, nb, err := acceptOf(kept)
	if err != nil {
		return err
	}
	if rec, err := s.ledger.Get(ctx, task.Link()); err == nil && rec.Concluded {
		return nil
	} else if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	stored, err := s.Bucket.Stat(ctx, nb.Blob.Digest)
	if err == nil && stored.Size == nb.Blob.Size {
		return s.accept(ctx, add, task, nb.Blob, nb.Space.DID, stored)
	}
	if err != nil && !errors.Is(err, ErrNoBlob) {
		return fmt.Errorf("looking for blob %s: %w", nb.Blob.CID(), err)
	}
	if !last {
		s.Log.Warn("a blob is said to be delivered, but is not there", "blob", nb.Blob.CID(), "task", add)
		return nil
	}
	failure := capabilities.Fail("AllocatedMemoryHadNotBeenWrittenTo", "blob %s did not come before its address expired: add it again", nb.Blob.CID())
	r, err := capabilities.IssueFailure(s.Signer, task.Link(), failure, capabilities.Effects{})
	if err != nil {
		return err
	}
	_, err = s.ledger.Accept(ctx, task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
	return err
}

// acceptOf returns the effect blob/accept of a space/blob/add.
func acceptOf(add tasks.Entry) (task capabilities.Task, nb blob.Accept, err error) {
	for _, link := range add.Receipt.Fork {
		if task, err = add.Effect(link); err != nil {
			return task, nb, err
		}
		if task.Can() == blob.AcceptAbility {
			return task, nb, task.Caveats(&nb)
		}
	}
	return task, nb, fmt.Errorf("the receipt of %s lacks blob/accept", add.Link())
}

// accept concludes blob/accept with the claim of where the blob is. If it was concluded before, that stands.
func (s *Service) accept(ctx context.Context, cause cid.Cid, task capabilities.Task, b blob.Blob, owner capabilities.DID, stored Stored) error {
	claim, err := capabilities.Invoke(s.Signer, owner, s.Signer.DID().String(), &assert.Location{
		Content: assert.Content{Digest: multihash.Multihash(b.Digest)}, Location: []string{stored.URL}, Space: owner.Bytes(),
	}, capabilities.Terms{})
	if err != nil {
		return err
	}
	fx := capabilities.Effects{Fork: []capabilities.Task{claim}}
	r, err := capabilities.Issue(s.Signer, task.Link(), &blob.AcceptOK{Site: claim.Link()}, fx)
	if err != nil {
		return err
	}
	var effects store.Effects
	acceptedQueue.Send(&effects, acceptMessage{Accept: task.Link(), Cause: cause})
	_, err = s.ledger.Accept(ctx, task, r, fx, store.Listing{}, effects)
	return err
}

// accepted lists an accepted blob in its space, and publishes where it is.
func (s *Service) accepted(ctx context.Context, msg acceptMessage) error {
	kept, err := s.ledger.Read(ctx, msg.Accept)
	if err != nil {
		return err
	}
	var nb blob.Accept
	if err := kept.Caveats(&nb); err != nil {
		return err
	}
	if s.Claims != nil {
		for _, link := range kept.Receipt.Fork {
			claim, err := kept.Effect(link)
			if err != nil {
				return err
			}
			if err := s.Claims.Keep(ctx, claim); err != nil {
				return err
			}
		}
	}
	_, err = s.items.Update(ctx, itemKey(nb.Space.String(), nb.Blob.Digest), func(rec *store.Record[Item], _ *store.Effects) error {
		item := &rec.Value
		if rec.Exists() && (item.present() || kept.At <= item.Removed) {
			return store.ErrUnchanged
		}
		item.Size, item.Cause, item.Accept, item.At = nb.Blob.Size, msg.Cause, msg.Accept, kept.At
		return nil
	})
	return err
}

// removed takes a blob out of its space.
func (s *Service) removed(ctx context.Context, msg removeMessage) error {
	_, err := s.items.Update(ctx, msg.Key, func(rec *store.Record[Item], _ *store.Effects) error {
		if !rec.Value.present() || rec.Value.At != msg.At {
			return store.ErrUnchanged
		}
		rec.Value.Removed = max(s.Now().UnixMilli(), rec.Value.At)
		return nil
	})
	return err
}
