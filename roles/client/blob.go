package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/blob"
	httpcap "github.com/storacha/w3filecoin/capabilities/http"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/wire"
)

// Upload is what [PutBlob] needs to store a blob.
type Upload struct {
	Conn       capabilities.Conn
	Agent      capabilities.Signer
	Storefront capabilities.DID
	Keys       capabilities.Keys
	// Space is the did:key that the blob is stored on: a space with proofs in Terms, or the agent's own DID.
	Space string
	// Terms are those of space/blob/add. An expiry, or a nonce, makes it a task of its own: without, it is answered as it was the first time,
	// with an address that may have expired.
	Terms capabilities.Terms
	// HTTP sends the bytes; nil: a client without a timeout.
	HTTP *http.Client
	// Patience is how long the storefront may take to accept what it was sent; 0: a minute.
	Patience time.Duration
}

// Site is a blob that a storefront keeps.
type Site struct {
	// Claim is the storefront's claim of where the blob is (assert/location), URLs its addresses.
	Claim capabilities.Task
	URLs  []string
	// Sent reports whether the bytes were sent: not if the storefront had them.
	Sent bool
}

// PutBlob stores a blob by the w3-blob protocol: space/blob/add, HTTP PUT to the address that this allocates, ucan/conclude, and the receipt of
// blob/accept. open is called for the bytes if they are wanted. The error is a [*capabilities.Failure] where the storefront refuses.
func PutBlob(ctx context.Context, u Upload, b blob.Blob, open func() (io.ReadCloser, error)) (Site, error) {
	add, err := capabilities.Invoke(u.Agent, u.Storefront, u.Space, &space.BlobAdd{Blob: b}, u.Terms)
	if err != nil {
		return Site{}, err
	}
	reply, err := u.Conn.Execute(ctx, capabilities.Pending(add))
	if err != nil {
		return Site{}, err
	}
	r := reply.Receipt(add.Link())
	if r == nil {
		return Site{}, fmt.Errorf("%s answered without a receipt of %s", u.Storefront, add.Can())
	}
	if err := capabilities.VerifyReceipt(ctx, r, add.UCAN, u.Keys); err != nil {
		return Site{}, err
	}
	var ok space.BlobAddOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		return Site{}, err
	}
	fx, err := readEffects(reply, r)
	if err != nil {
		return Site{}, err
	}
	allocated, err := fx.receipt(ctx, blob.AllocateAbility, u.Keys)
	if err != nil {
		return Site{}, err
	}
	if allocated == nil {
		return Site{}, errors.New("the storefront has not allocated the blob")
	}
	var allocation blob.AllocateOK
	if err := capabilities.ReadResult(allocated.Out, &allocation); err != nil {
		return Site{}, err
	}
	put, err := fx.receipt(ctx, httpcap.PutAbility, u.Keys)
	if err != nil {
		return Site{}, err
	}
	site := Site{}
	if put == nil || put.Out.Error != nil {
		if allocation.Address != nil {
			if err := u.send(ctx, *allocation.Address, b, open); err != nil {
				return site, err
			}
			site.Sent = true
		}
		if err := u.conclude(ctx, fx.tasks[httpcap.PutAbility], b); err != nil {
			return site, err
		}
	}
	accept := fx.tasks[blob.AcceptAbility]
	accepted, err := fx.receipt(ctx, blob.AcceptAbility, u.Keys)
	if err != nil {
		return site, err
	}
	if accepted == nil {
		if reply, err = u.await(ctx, accept.Link()); err != nil {
			return site, err
		}
		accepted = reply.Receipt(accept.Link())
		if accepted == nil {
			return site, fmt.Errorf("the answer for %s holds another task's receipt", accept.Link())
		}
		if err := capabilities.VerifyReceipt(ctx, accepted, accept.UCAN, u.Keys); err != nil {
			return site, err
		}
	}
	return u.read(ctx, site, b, reply, accepted)
}

// read checks what the storefront claims of the blob.
func (u Upload) read(ctx context.Context, site Site, b blob.Blob, m *capabilities.Message, r *capabilities.Receipt) (Site, error) {
	var ok blob.AcceptOK
	if err := capabilities.ReadResult(r.Out, &ok); err != nil {
		return site, err
	}
	claim, found := capabilities.FindTask(m, ok.Site)
	if !found {
		return site, fmt.Errorf("the claim %s of where the blob is did not come", ok.Site)
	}
	var nb assert.Location
	if len(claim.Capabilities) != 1 || claim.Can() != assert.LocationAbility {
		return site, errors.New("the site of the blob is no assert/location")
	}
	if err := claim.Caveats(&nb); err != nil {
		return site, err
	}
	if string(nb.Content.Multihash()) != string(b.Digest) {
		return site, errors.New("the storefront claims where another blob is")
	}
	v, err := u.Keys.Verifier(ctx, claim.Issuer)
	if err != nil {
		return site, err
	}
	if err := claim.Verify(v); err != nil {
		return site, err
	}
	site.Claim, site.URLs = claim, nb.Location
	return site, nil
}

// effects are the tasks that a receipt of space/blob/add forks, by ability, and the receipts that came with them, by task.
type effects struct {
	tasks    map[string]capabilities.Task
	receipts map[cid.Cid]*capabilities.Receipt
}

func readEffects(m *capabilities.Message, r *capabilities.Receipt) (effects, error) {
	fx := effects{map[string]capabilities.Task{}, map[cid.Cid]*capabilities.Receipt{}}
	for _, link := range r.Fork {
		task, ok := capabilities.FindTask(m, link)
		if !ok || len(task.Capabilities) != 1 {
			continue
		}
		if task.Can() != ucan.ConcludeAbility {
			if _, twice := fx.tasks[task.Can()]; !twice {
				fx.tasks[task.Can()] = task
			}
			continue
		}
		var nb ucan.Conclude
		if err := task.Caveats(&nb); err != nil {
			return fx, err
		}
		b, ok := m.Block(nb.Receipt)
		if !ok {
			return fx, fmt.Errorf("the reply lacks the receipt %s that it links", nb.Receipt)
		}
		told, err := wire.DecodeReceipt(b)
		if err != nil {
			return fx, err
		}
		fx.receipts[told.Ran] = told
	}
	for _, can := range []string{blob.AllocateAbility, httpcap.PutAbility, blob.AcceptAbility} {
		if _, ok := fx.tasks[can]; !ok {
			return fx, fmt.Errorf("the receipt of space/blob/add lacks its effect %s", can)
		}
	}
	return fx, nil
}

// receipt returns the receipt of an effect, verified; nil if none came.
func (fx effects) receipt(ctx context.Context, can string, keys capabilities.Keys) (*capabilities.Receipt, error) {
	task := fx.tasks[can]
	r := fx.receipts[task.Link()]
	if r == nil {
		return nil, nil
	}
	return r, capabilities.VerifyReceipt(ctx, r, task.UCAN, keys)
}

// send puts the bytes where they were allocated.
func (u Upload) send(ctx context.Context, to blob.Address, b blob.Blob, open func() (io.ReadCloser, error)) error {
	body, err := open()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.URL, body)
	if err != nil {
		body.Close()
		return fmt.Errorf("sending the blob: %w", err)
	}
	req.ContentLength = int64(b.Size)
	if b.Size == 0 {
		body.Close()
		req.Body = http.NoBody
	}
	for k, v := range to.Headers {
		req.Header.Set(k, v)
	}
	c := u.HTTP
	if c == nil {
		c = new(http.Client)
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("sending the blob: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	var refusal struct{ Name, Message string }
	if json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&refusal) == nil && refusal.Message != "" {
		return fmt.Errorf("sending the blob: %s: %s", resp.Status, refusal.Message)
	}
	return fmt.Errorf("sending the blob: %s", resp.Status)
}

// conclude tells the storefront that the bytes were sent, in the name of the blob.
func (u Upload) conclude(ctx context.Context, put capabilities.Task, b blob.Blob) error {
	provider, err := b.Digest.Provider()
	if err != nil {
		return err
	}
	if put.Audience != provider.DID() {
		return fmt.Errorf("http/put is for %s, not for whoever has the blob, %s", put.Audience, provider.DID())
	}
	r, err := capabilities.Issue(provider, put.Link(), &httpcap.PutOK{}, capabilities.Effects{})
	if err != nil {
		return err
	}
	conclude, err := capabilities.Invoke(u.Agent, u.Storefront, u.Agent.DID().String(), &ucan.Conclude{Receipt: r.Link()}, capabilities.Terms{})
	if err != nil {
		return err
	}
	m := new(capabilities.Message)
	m.AddInvocation(conclude.UCAN, put.Block(), r.Block())
	reply, err := u.Conn.Execute(ctx, m)
	if err != nil {
		return err
	}
	told := reply.Receipt(conclude.Link())
	if told == nil {
		return fmt.Errorf("%s answered without a receipt of %s", u.Storefront, conclude.Can())
	}
	if err := capabilities.VerifyReceipt(ctx, told, conclude.UCAN, u.Keys); err != nil {
		return err
	}
	return capabilities.ReadResult(told.Out, new(ucan.ConcludeOK))
}

// await asks for the receipt of a task until it is there.
func (u Upload) await(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	patience := u.Patience
	if patience == 0 {
		patience = time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the storefront did not accept the blob within %s", patience))
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		m, err := u.Conn.Receipt(ctx, task)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !errors.Is(err, capabilities.ErrNoReceipt) {
			return m, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
