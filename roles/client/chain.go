package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire"
)

// Offer invokes filecoin/offer at a storefront and returns the task and its verified receipt. The error is a [*capabilities.Failure] if the storefront
// refuses. with is the space, or the agent's own DID; proofs show authority over it where it is not the agent's own. What is
// attached goes with it, claims of where the content is for instance, and is no part of the task.
func Offer(ctx context.Context, conn capabilities.Conn, agent capabilities.Signer, storefront capabilities.DID, with string,
	offer filecoin.Offer, terms capabilities.Terms, keys capabilities.Keys, attach ...capabilities.Block) (capabilities.Task, *capabilities.Receipt, error) {
	return invoke(ctx, conn, agent, storefront, with, &offer, terms, keys, new(filecoin.PieceOK), attach...)
}

// Info asks a storefront what became of a piece.
func Info(ctx context.Context, conn capabilities.Conn, agent capabilities.Signer, storefront capabilities.DID, with string,
	p piece.Link, terms capabilities.Terms, keys capabilities.Keys) (filecoin.InfoOK, error) {
	var ok filecoin.InfoOK
	_, _, err := invoke(ctx, conn, agent, storefront, with, &filecoin.Info{Piece: p}, terms, keys, &ok)
	return ok, err
}

func invoke(ctx context.Context, conn capabilities.Conn, agent capabilities.Signer, audience capabilities.DID, with string, c capabilities.Caveats,
	terms capabilities.Terms, keys capabilities.Keys, ok capabilities.Struct, attach ...capabilities.Block) (capabilities.Task, *capabilities.Receipt, error) {
	task, err := capabilities.Invoke(agent, audience, with, c, terms)
	if err != nil {
		return task, nil, err
	}
	m := new(capabilities.Message)
	m.AddInvocation(task.UCAN, append(slices.Clone(attach), task.Proofs...)...)
	reply, err := conn.Execute(ctx, m)
	if err != nil {
		return task, nil, err
	}
	r := reply.Receipt(task.Link())
	if r == nil {
		return task, nil, fmt.Errorf("%s answered without a receipt of %s", audience, c.Ability())
	}
	if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, keys); err != nil {
		return task, nil, err
	}
	return task, r, capabilities.ReadResult(r.Out, ok)
}

// Chain is the receipts that follow from one offer, as far as they are there, with their invocations. Its bytes are one agent message; see [Chain.Encode]
// and [DecodeChain].
type Chain struct {
	Offer cid.Cid
	msg   *capabilities.Message
}

// Encode returns the chain as a CAR that [DecodeChain] reads: an agent message that reports every receipt and executes nothing.
func (c *Chain) Encode() []byte { return c.msg.Encode() }

// DecodeChain reads a saved chain. Nothing is verified yet.
func DecodeChain(b []byte) (*Chain, error) {
	m, err := wire.DecodeMessage(b, wire.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading the chain: %w", err)
	}
	c := &Chain{msg: m}
	for _, r := range m.Receipts() {
		if t, ok := capabilities.FindTask(m, r.Ran); ok && t.Can() == filecoin.OfferAbility {
			if c.Offer.Defined() {
				return nil, errors.New("the file holds the chains of several offers")
			}
			c.Offer = r.Ran
		}
	}
	if !c.Offer.Defined() {
		return nil, errors.New("the file holds no receipt of filecoin/offer")
	}
	return c, nil
}

// Step is one link of a chain.
type Step struct {
	Ability string
	Task    cid.Cid
	// Receipt is nil while the task is not concluded.
	Receipt *capabilities.Receipt
}

// next returns the tasks that a receipt links, in the order in which a reader follows them.
func next(r *capabilities.Receipt) []cid.Cid {
	links := slices.Clone(r.Fork)
	if r.Join.Defined() {
		links = append(links, r.Join)
	}
	return links
}

// maxSteps bounds how many links of one chain are followed.
const maxSteps = 64

// Follow collects what a storefront serves of the chain of an offer, now. Call it again later for more.
func Follow(ctx context.Context, conn capabilities.Conn, offer cid.Cid) (*Chain, error) {
	c := &Chain{Offer: offer, msg: new(capabilities.Message)}
	seen := map[cid.Cid]bool{}
	queue := []cid.Cid{offer}
	for len(queue) > 0 && len(seen) < maxSteps {
		task := queue[0]
		queue = queue[1:]
		if seen[task] {
			continue
		}
		seen[task] = true
		m, err := conn.Receipt(ctx, task)
		if errors.Is(err, capabilities.ErrNoReceipt) && !task.Equals(offer) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("fetching the receipt of %s: %w", task, err)
		}
		r := m.Receipt(task)
		if r == nil {
			return nil, fmt.Errorf("the answer for %s holds another task's receipt", task)
		}
		var with []capabilities.Block
		for _, b := range m.Blocks() {
			if !b.CID.Equals(r.Link()) {
				with = append(with, b)
			}
		}
		c.msg.AddReceipt(r, with...)
		queue = append(queue, next(r)...)
	}
	// What was gathered goes through the strict decoder before anybody reads it.
	m, err := wire.DecodeMessage(c.msg.Encode(), wire.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading the chain: %w", err)
	}
	c.msg = m
	return c, nil
}

// Steps returns the links of the chain from the offer on.
func (c *Chain) Steps() []Step {
	var steps []Step
	seen := map[cid.Cid]bool{}
	var visit func(task cid.Cid)
	visit = func(task cid.Cid) {
		if seen[task] || len(seen) > maxSteps {
			return
		}
		seen[task] = true
		step := Step{Task: task, Receipt: c.msg.Receipt(task)}
		if t, ok := capabilities.FindTask(c.msg, task); ok {
			step.Ability = t.Can()
		}
		steps = append(steps, step)
		if step.Receipt != nil {
			for _, l := range next(step.Receipt) {
				visit(l)
			}
		}
	}
	visit(c.Offer)
	return steps
}

// Concluded reports whether the offer has ended: filecoin/accept has a receipt.
func (c *Chain) Concluded() bool {
	r := c.msg.Receipt(c.Offer)
	return r != nil && r.Join.Defined() && c.msg.Receipt(r.Join) != nil
}

// Proven is what a verified chain shows.
type Proven struct {
	Agent      capabilities.DID
	Storefront capabilities.DID
	Compute    capabilities.DID // who computed the piece, or vouches for it
	// Also are others who computed the same: providers that the storefront does not trust one by one, for instance.
	Also []capabilities.DID
	// Vouched: the piece is the word of a storage node that keeps the content (pdp/info).
	Vouched    bool
	Aggregator capabilities.DID
	Dealer     capabilities.DID

	Content   cid.Cid
	Piece     piece.Link
	Aggregate piece.Link
	Deal      capabilities.DealMetadata
	// Failure is how the offer ended if it was not a deal; what comes after the storefront is then not set.
	Failure *capabilities.Failure
}

// ErrUnproven: the chain does not prove what it claims; the wrapped text says which link and why.
var ErrUnproven = errors.New("the chain does not hold")

func unproven(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnproven, fmt.Sprintf(format, args...))
}

// Verify checks a concluded chain, offline: every signature, that each receipt was issued by the role that its task was for, that each task was linked by the
// receipt before it and asks for the same piece, that the inclusion proof leads from the piece to the aggregate, and that the deal at the end is the one the dealer
// reported. keys are only asked for DIDs that are not did:key.
func (c *Chain) Verify(ctx context.Context, keys capabilities.Keys) (*Proven, error) {
	v := verifier{ctx, c.msg, keys}
	var offer filecoin.Offer
	task, err := v.task(c.Offer, filecoin.OfferAbility, &offer)
	if err != nil {
		return nil, err
	}
	storefront := task.Audience
	p := &Proven{Agent: task.Issuer, Storefront: storefront, Content: offer.Content, Piece: offer.Piece}
	var offered filecoin.PieceOK
	offerReceipt, err := v.receipt(task, &offered)
	if err != nil {
		return nil, err
	}
	if offered.Piece != offer.Piece || len(offerReceipt.Fork) != 1 || !offerReceipt.Join.Defined() {
		return nil, unproven("the receipt of filecoin/offer acknowledges something else")
	}

	var submit filecoin.Submit
	submitTask, err := v.own(offerReceipt.Fork[0], filecoin.SubmitAbility, storefront, &submit)
	if err != nil {
		return nil, err
	}
	var accept filecoin.Accept
	acceptTask, err := v.own(offerReceipt.Join, filecoin.AcceptAbility, storefront, &accept)
	if err != nil {
		return nil, err
	}
	if submit != (filecoin.Submit{Content: offer.Content, Piece: offer.Piece}) || accept != (filecoin.Accept(submit)) {
		return nil, unproven("the effects of filecoin/offer are about another piece or content")
	}
	var accepted filecoin.AcceptOK
	_, err = v.receipt(acceptTask, &accepted)
	if failure := (*capabilities.Failure)(nil); errors.As(err, &failure) {
		p.Failure = failure
		// The receipt of filecoin/submit has to be there and to hold as well, whichever way it ended.
		if _, err := v.receipt(submitTask, new(filecoin.PieceOK)); err != nil && !errors.As(err, &failure) {
			return nil, err
		}
		return p, nil
	}
	if err != nil {
		return nil, err
	}

	var submitted filecoin.PieceOK
	submitReceipt, err := v.receipt(submitTask, &submitted)
	if err != nil {
		return nil, asUnproven(err)
	}
	if submitted.Piece != offer.Piece || len(submitReceipt.Fork) == 0 {
		return nil, unproven("the receipt of filecoin/submit acknowledges something else")
	}
	for _, link := range submitReceipt.Fork {
		by, vouched, err := v.validation(link, storefront, offer)
		if err != nil {
			return nil, err
		}
		if by == p.Compute || slices.Contains(p.Also, by) {
			return nil, unproven("the receipt of filecoin/submit acknowledges something else: it names one validator twice")
		}
		if p.Compute.Defined() {
			p.Also = append(p.Also, by)
			continue
		}
		p.Compute, p.Vouched = by, vouched
	}

	var pieceOffer piececap.Offer
	pieceOfferTask, err := v.task(submitReceipt.Join, piececap.OfferAbility, &pieceOffer)
	if err != nil {
		return nil, err
	}
	if pieceOfferTask.Issuer != storefront || pieceOffer.Piece != offer.Piece {
		return nil, unproven("piece/offer is not the storefront's, or for another piece")
	}
	p.Aggregator = pieceOfferTask.Audience
	var pieceOffered piececap.OfferOK
	pieceOfferReceipt, err := v.receipt(pieceOfferTask, &pieceOffered)
	if err != nil {
		return nil, asUnproven(err)
	}
	var pieceAccept piececap.Accept
	pieceAcceptTask, err := v.own(pieceOfferReceipt.Join, piececap.AcceptAbility, p.Aggregator, &pieceAccept)
	if err != nil {
		return nil, err
	}
	if pieceOffered.Piece != offer.Piece || pieceAccept != piececap.Accept(pieceOffer) {
		return nil, unproven("piece/accept is about another piece or group")
	}
	var included piececap.AcceptOK
	pieceAcceptReceipt, err := v.receipt(pieceAcceptTask, &included)
	if err != nil {
		return nil, asUnproven(err)
	}
	if included.Piece != offer.Piece {
		return nil, unproven("piece/accept proves the inclusion of another piece")
	}
	if err := included.Verify(); err != nil {
		return nil, unproven("the inclusion in piece/accept: %v", err)
	}
	p.Aggregate = included.Aggregate

	var aggregateOffer aggregatecap.Offer
	aggregateOfferTask, err := v.task(pieceAcceptReceipt.Join, aggregatecap.OfferAbility, &aggregateOffer)
	if err != nil {
		return nil, err
	}
	if aggregateOfferTask.Issuer != p.Aggregator || aggregateOffer.Aggregate != p.Aggregate {
		return nil, unproven("aggregate/offer is not the aggregator's, or for another aggregate")
	}
	p.Dealer = aggregateOfferTask.Audience
	var aggregateOffered aggregatecap.OfferOK
	aggregateOfferReceipt, err := v.receipt(aggregateOfferTask, &aggregateOffered)
	if err != nil {
		return nil, asUnproven(err)
	}
	var aggregateAccept aggregatecap.Accept
	aggregateAcceptTask, err := v.own(aggregateOfferReceipt.Join, aggregatecap.AcceptAbility, p.Dealer, &aggregateAccept)
	if err != nil {
		return nil, err
	}
	if aggregateOffered.Aggregate != p.Aggregate || aggregateAccept != aggregatecap.Accept(aggregateOffer) {
		return nil, unproven("aggregate/accept is about another aggregate")
	}
	var dealt aggregatecap.AcceptOK
	if _, err := v.receipt(aggregateAcceptTask, &dealt); err != nil {
		return nil, asUnproven(err)
	}
	if dealt.Aggregate != p.Aggregate {
		return nil, unproven("the deal is for another aggregate")
	}
	p.Deal = dealt.DealMetadata

	if accepted.Piece != offer.Piece || accepted.Aggregate != p.Aggregate {
		return nil, unproven("filecoin/accept is about another piece or aggregate")
	}
	if err := accepted.Verify(); err != nil {
		return nil, unproven("the inclusion in filecoin/accept: %v", err)
	}
	if accepted.Aux != p.Deal {
		return nil, unproven("filecoin/accept names deal %d, the dealer reported %d", accepted.Aux.DealID, p.Deal.DealID)
	}
	return p, nil
}

// asUnproven: a link that states a failure cannot carry a success at the end.
func asUnproven(err error) error {
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
		return unproven("filecoin/accept states success, but a link before it failed: %v", f)
	}
	return err
}

type verifier struct {
	ctx  context.Context
	msg  *capabilities.Message
	keys capabilities.Keys
}

// task returns an invocation of the ability whose signature holds.
func (v verifier) task(link cid.Cid, can string, nb capabilities.Struct) (capabilities.Task, error) {
	if !link.Defined() {
		return capabilities.Task{}, unproven("the link to %s is missing", can)
	}
	t, ok := capabilities.FindTask(v.msg, link)
	if !ok {
		return t, unproven("the invocation of %s, %s, is missing", can, link)
	}
	if len(t.Capabilities) != 1 || t.Can() != can {
		return t, unproven("task %s is not a %s", link, can)
	}
	if err := t.Caveats(nb); err != nil {
		return t, unproven("%v", err)
	}
	key, err := v.keys.Verifier(v.ctx, t.Issuer)
	if err != nil {
		return t, fmt.Errorf("finding the key of %s: %w", t.Issuer, err)
	}
	if err := t.Verify(key); err != nil {
		return t, unproven("the invocation of %s: %v", can, err)
	}
	return t, nil
}

// own returns a task that a role gave itself.
func (v verifier) own(link cid.Cid, can string, role capabilities.DID, nb capabilities.Struct) (capabilities.Task, error) {
	t, err := v.task(link, can, nb)
	if err != nil {
		return t, err
	}
	if t.Issuer != role || t.Audience != role || t.Resource() != role.String() {
		return t, unproven("%s is not %s's own task", can, role)
	}
	return t, nil
}

// receipt returns the verified receipt of a task. The error is a [*capabilities.Failure] if that is what the receipt states.
func (v verifier) receipt(t capabilities.Task, ok capabilities.Struct) (*capabilities.Receipt, error) {
	r := v.msg.Receipt(t.Link())
	if r == nil {
		return nil, unproven("the receipt of %s is missing", t.Can())
	}
	if err := capabilities.VerifyReceipt(v.ctx, r, t.UCAN, v.keys); err != nil {
		if errors.Is(err, capabilities.ErrInvalidReceipt) {
			return nil, unproven("the receipt of %s: %v", t.Can(), err)
		}
		return nil, err
	}
	err := capabilities.ReadResult(r.Out, ok)
	if f := (*capabilities.Failure)(nil); err != nil && !errors.As(err, &f) {
		return r, unproven("the receipt of %s: %v", t.Can(), err)
	}
	return r, err
}

// validation checks who computed the piece from the content.
func (v verifier) validation(link cid.Cid, storefront capabilities.DID, offer filecoin.Offer) (by capabilities.DID, vouched bool, err error) {
	if u, err := v.msg.UCAN(link); err == nil && u != nil && len(u.Capabilities) == 1 && u.Capabilities[0].Can == pdp.InfoAbility {
		by, err := v.possession(link, storefront, offer)
		return by, true, err
	}
	var nb computecap.PieceCID
	t, err := v.task(link, computecap.PieceCIDAbility, &nb)
	if err != nil {
		return by, false, err
	}
	var ok computecap.PieceCIDOK
	if _, err := v.receipt(t, &ok); err != nil {
		return by, false, asUnproven(err)
	}
	if t.Issuer != storefront || !nb.Content.Equals(offer.Content) || ok.Piece != offer.Piece {
		return by, false, unproven("the validation is of another content or piece")
	}
	return t.Audience, false, nil
}

// possession checks the word of a storage node for the piece.
func (v verifier) possession(link cid.Cid, storefront capabilities.DID, offer filecoin.Offer) (capabilities.DID, error) {
	var nb pdp.Info
	t, err := v.task(link, pdp.InfoAbility, &nb)
	if err != nil {
		return capabilities.DID{}, err
	}
	var ok pdp.InfoOK
	if _, err := v.receipt(t, &ok); err != nil {
		return capabilities.DID{}, asUnproven(err)
	}
	if t.Issuer != storefront || !bytes.Equal(nb.Blob, offer.Content.Hash()) || ok.Piece != offer.Piece {
		return capabilities.DID{}, unproven("the storage node's word is of another content or piece")
	}
	return t.Audience, nil
}
