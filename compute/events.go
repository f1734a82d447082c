package compute

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// QueueName is the queue of the work itself: how many of its messages are handled at a time is how many contents are fetched and hashed.
const QueueName = "compute"

// Messages. Each names a row; what to do follows from the row.
type (
	// computeMessage is one attempt of a job.
	computeMessage struct {
		Task cid.Cid `cbor:"t"`
		Try  int     `cbor:"n"`
	}
	computedMessage struct {
		Task    cid.Cid `cbor:"t"`
		Invoker string  `cbor:"i"`
	}
)

var (
	computeQueue  = store.NewQueue[computeMessage](QueueName)
	computedQueue = store.NewQueue[computedMessage]("computed")
	deliverQueue  = store.NewQueue[tasks.Send]("deliver")
)

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		computeQueue.Name:  computeQueue.Handler(s.compute),
		computedQueue.Name: computedQueue.Handler(s.computed),
		deliverQueue.Name:  deliverQueue.Handler(s.courier.Deliver),
	}
}

// compute makes one attempt of a job.
func (s *Service) compute(ctx context.Context, msg computeMessage) error {
	j, err := s.jobs.Get(ctx, jobKey(msg.Task))
	if errors.Is(err, store.ErrNotFound) {
		return nil // done
	}
	if err != nil {
		return err
	}
	if j.Value.State != Running || j.Value.Try != msg.Try {
		return nil
	}
	task, err := taskOf(&j.Value, msg.Task)
	if err != nil {
		return err
	}
	// What verified bytes gave before is a fact. A nonce asks to compute it once more.
	result, err := s.results.Get(ctx, resultKey(j.Value.Content))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	found := result.Value.Piece
	if task.Nonce != "" && result.Exists() {
		// Unless it has been, and what came after that is to be repeated.
		if _, err := s.ledger.Receipt(ctx, msg.Task); !errors.Is(err, store.ErrNotFound) {
			if err != nil {
				return err
			}
			return s.end(ctx, j, msg.Task)
		}
	}
	if !result.Exists() || task.Nonce != "" {
		content, reason := s.fetch(ctx, &j.Value)
		if ctx.Err() != nil {
			return ctx.Err() // asked to stop: nothing is known of the content
		}
		if reason != "" {
			return s.fail(ctx, msg, reason)
		}
		if err := s.keep(ctx, &j.Value, msg.Task, content); err != nil {
			return err
		}
		found = content.Piece
	}
	r, err := capabilities.Issue(s.Signer, msg.Task, &computecap.PieceCIDOK{Piece: found}, capabilities.Effects{})
	if err != nil {
		return err
	}
	if _, err := s.ledger.Accept(ctx, task, r, capabilities.Effects{}, store.Listing{}, store.Effects{}); err != nil {
		return err
	}
	return s.end(ctx, j, msg.Task)
}

// keep writes down what the bytes of a content gave.
func (s *Service) keep(ctx context.Context, j *Job, task cid.Cid, content piece.Content) error {
	rec := store.Record[Result]{Key: resultKey(j.Content), Value: Result{
		Piece: content.Piece, Size: content.Size, Task: task, At: s.Now().UnixMilli()}}
	created, err := s.results.Create(ctx, &rec, store.Effects{})
	if err == nil && !created && rec.Value.Piece != content.Piece {
		return fmt.Errorf("bytes with the hash of %s are piece %s, and were piece %s before: this machine cannot be trusted",
			j.Content, content.Piece, rec.Value.Piece)
	}
	return err
}

// end removes a job that has its receipt, and has the receipt pushed to an invoker who was told that it comes. Whoever is told so later than this
// finds no job, and the receipt.
func (s *Service) end(ctx context.Context, job store.Record[Job], task cid.Cid) error {
	_, err := s.jobs.UpdateFrom(ctx, job, func(j *store.Record[Job], fx *store.Effects) error {
		if !j.Exists() {
			return store.ErrUnchanged
		}
		fx.Delete = true
		if j.Value.Push {
			computedQueue.Send(fx, computedMessage{task, j.Value.Invoker})
		}
		return nil
	})
	return err
}

// fail notes that an attempt found no bytes with the content's hash.
func (s *Service) fail(ctx context.Context, msg computeMessage, reason string) error {
	s.Log.Info("content is not to be had", "task", msg.Task, "try", msg.Try, "reason", reason)
	_, err := s.jobs.Update(ctx, jobKey(msg.Task), func(j *store.Record[Job], _ *store.Effects) error {
		if !j.Exists() || j.Value.State != Running || j.Value.Try != msg.Try {
			return store.ErrUnchanged
		}
		j.Value.enter(Failed, s.Now())
		j.Value.Reason = reason
		return nil
	})
	return err
}

// maxReason bounds the text of a failure, in bytes.
const maxReason = 1 << 10

// fetch tries the addresses of a job in turn until the bytes of one hash to the content. Otherwise it returns the reasons.
func (s *Service) fetch(ctx context.Context, j *Job) (content piece.Content, reason string) {
	var reasons []string
	for i, l := range j.Locations {
		content, err := Read(ctx, s.Fetcher, l, j.Content)
		if err == nil {
			return content, ""
		}
		reasons = append(reasons, fmt.Sprintf("address %d%s: %v", i+1, host(l.URL), err))
	}
	reason = strings.ToValidUTF8(strings.Join(reasons, "; "), "?")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + " …"
	}
	return piece.Content{}, reason
}

// host is as much of an address as strangers may see: the rest may be signed, and open to whoever has it.
func host(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return ""
	}
	return " (" + u.Host + ")"
}

// computed sends the receipt to an invoker who was told that it comes.
func (s *Service) computed(ctx context.Context, msg computedMessage) error {
	return s.courier.Enqueue(ctx, msg.Invoker, "computed/"+msg.Task.String(), tasks.Delivery{Tasks: []cid.Cid{msg.Task}})
}
