package chaintest

import (
	"context"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/wire"
)

// Arrives returns a task with the blocks that come with it as the runtime hands it to a role: sent, and read from the message.
func Arrives(t testing.TB, task capabilities.Task, attach ...capabilities.Block) capabilities.Invocation {
	t.Helper()
	m := new(capabilities.Message)
	m.AddInvocation(task.UCAN, append(attach, task.Proofs...)...)
	m = sent(t, m)
	return capabilities.Invocation{Task: capabilities.TaskOf(m, m.Invocations()[0]), Message: m}
}

func sent(t testing.TB, m *capabilities.Message) *capabilities.Message {
	t.Helper()
	m, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Inbox is a service that takes receipts by ucan/conclude. It verifies each as of a did:key; whatever is wrong with one fails the test.
type Inbox struct {
	testing.TB
	Signer capabilities.Signer
	// Err, if set, is what every call meets.
	Err error
	// Receipts are those that came, by task: each has to be the same whenever it comes.
	Receipts map[cid.Cid]cid.Cid
	// Messages are all that came, repetitions too.
	Messages []*capabilities.Message
}

// NewInbox returns the inbox of whom signer signs for.
func NewInbox(t testing.TB, signer capabilities.Signer) *Inbox {
	return &Inbox{TB: t, Signer: signer, Receipts: map[cid.Cid]cid.Cid{}}
}

// Execute implements [capabilities.Conn].
func (i *Inbox) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	if i.Err != nil {
		return nil, i.Err
	}
	m = sent(i, m)
	task := capabilities.TaskOf(m, m.Invocations()[0])
	if task.Can() != ucan.ConcludeAbility || task.Audience != i.Signer.DID() {
		i.Errorf("%s was asked %s, for %s", i.Signer.DID(), task.Can(), task.Audience)
	}
	for _, r := range m.Receipts() {
		ran, ok := capabilities.FindTask(m, r.Ran)
		if !ok {
			i.Fatalf("receipt of %s came without its invocation", r.Ran)
		}
		if err := capabilities.VerifyReceipt(ctx, r, ran.UCAN, Keys{}); err != nil {
			i.Error(err)
		}
		if first, ok := i.Receipts[r.Ran]; ok && !first.Equals(r.Link()) {
			i.Errorf("task %s has two receipts, %s and %s", r.Ran, first, r.Link())
		}
		i.Receipts[r.Ran] = r.Link()
	}
	i.Messages = append(i.Messages, m)
	return capabilities.Conclusion(must(capabilities.Issue(i.Signer, task.Link(), &ucan.ConcludeOK{Time: 1}, capabilities.Effects{})), task, capabilities.Effects{}), nil
}

// Receipt implements [capabilities.Conn]: there is none to ask for.
func (i *Inbox) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}
