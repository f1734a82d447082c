package roles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/storacha/go-ucanto/core/dag/blockstore"
	"github.com/storacha/go-ucanto/core/delegation"
	"github.com/storacha/go-ucanto/core/ipld/block"
	"github.com/storacha/go-ucanto/core/result/failure"
	"github.com/storacha/go-ucanto/did"
	"github.com/storacha/go-ucanto/principal"
	goucan "github.com/storacha/go-ucanto/ucan"
	"github.com/storacha/go-ucanto/ucan/crypto/signature"
	"github.com/storacha/go-ucanto/validator"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Bounds of the proofs below one invocation, the same as the decoder's: how many are looked at, and how many may
// follow one another.
const (
	maxProofs = 64
	maxDepth  = 8
)

// Authority decides who may invoke what on a role. It is safe for concurrent use; its fields do not change once it is
// used.
//
// An invocation is authorised if it is meant for this role, is within its time bounds, verifies, was not revoked, and
// its issuer has authority over the resource: it is the resource itself, or it shows a chain of proofs. In a chain
// each proof is delegated to the issuer of what cites it and grants what is invoked (see [capabilities.Covers]); the
// last one is issued by the resource itself; each is within its time bounds, verifies and was not revoked.
//
// Each proof of a chain, at whatever depth, must cover the capability that is invoked: ability, resource and every
// caveat that it sets. So a delegation for one piece never authorises another, however freely it was passed on. A
// resource of "ucan:*" stands for all that its issuer may do.
//
// A proof whose issuer has no key of its own, such as a did:mailto, is believed on the word of an authority: next to
// it stands a ucan/attest, issued by Self or an attestor on itself, that names the proof and is delegated to the same
// audience. The rules are those of https://github.com/storacha/specs/blob/main/w3-session.md#authorization-session,
// for attestations that the authority signed itself.
type Authority struct {
	// Self is the DID of the role: the audience that invocations must have, and an authority for sessions.
	Self capabilities.DID
	// Aliases are further audiences under which the role is known.
	Aliases []capabilities.DID
	// Attestors are authorities besides Self whose sessions are honoured.
	Attestors []capabilities.DID
	// Keys finds the keys of issuers. An error that wraps [ErrNoKey] or [wire.ErrMalformed] is the sender's fault,
	// any other one is ours.
	Keys capabilities.Keys
	// Now is the clock. Bounds are checked at the time of execution, in whole seconds: a UCAN is valid from its nbf
	// on, and until the second before its exp.
	Now func() time.Time
	// Revoked reports whether a UCAN was revoked. It is asked for the invocation and for each UCAN that its authority
	// rests on.
	Revoked func(ctx context.Context, ucan cid.Cid) (bool, error)
	// Disagreed, if set, is told when go-ucanto refuses a chain that was found to be good; the invocation is refused.
	// Unless the chain holds what go-ucanto cannot read (caveats with integers beyond 2^63-1, a UCAN of more than 10
	// MiB), that is a bug in one of them.
	Disagreed func(ctx context.Context, invocation *capabilities.UCAN, why error)
}

// Authorize returns nil if u, an invocation in m, may be executed. The message must come from [wire.DecodeMessage],
// which has checked that its blocks have the hashes of their CIDs.
//
// The error is a [*capabilities.Failure] that the client can be told (InvocationCapabilityError, InvalidAudience or
// Unauthorized), or an internal fault: it could not be found out whether something was revoked, or a key could not be
// looked up and no other chain did.
func (a *Authority) Authorize(ctx context.Context, m *capabilities.Message, u *capabilities.UCAN) error {
	if n := len(u.Capabilities); n != 1 {
		return capabilities.Fail(capabilities.InvocationCapability,
			"Invocation is required to have a single capability, this one has %d.", n)
	}
	if u.Audience != a.Self && !slices.Contains(a.Aliases, u.Audience) {
		return &capabilities.Failure{Name: capabilities.InvalidAudience,
			Details: &audienceDetails{Audience: a.Self.String(), Delegation: audienceOf{u.Audience.String()}},
			Message: fmt.Sprintf("the invocation is for %s, this is %s: address it to this DID, or send it there",
				clip(u.Audience.String()), a.Self)}
	}
	now := a.Now().Unix()
	if reason := outOfTime(u, now); reason != "" {
		return capabilities.Fail(capabilities.Unauthorized, "the invocation %s: sign a new one", reason)
	}
	v, reason, err := a.verify(ctx, u)
	if err != nil {
		return err
	}
	if reason != "" {
		return capabilities.Fail(capabilities.Unauthorized, "the invocation %s", reason)
	}
	if revoked, err := a.isRevoked(ctx, u.Link()); err != nil {
		return err
	} else if revoked {
		return capabilities.Fail(capabilities.Unauthorized, "the invocation was revoked: sign a new one")
	}
	if u.Capabilities[0].With == u.Issuer.String() {
		return nil
	}

	s := &search{Authority: a, message: m, claim: u.Capabilities[0], now: now, tokens: map[cid.Cid]*token{}}
	invocation := &step{token: &token{UCAN: u, verifier: v}}
	last, err := s.find(ctx, invocation)
	if err != nil {
		return err
	}
	if last == nil {
		return s.failure(u)
	}
	if err := s.judge(ctx, last); err != nil {
		if a.Disagreed != nil {
			a.Disagreed(ctx, u, err)
		}
		return capabilities.Fail(capabilities.Unauthorized,
			"the chain of proofs is accepted by one validator of this service and refused by the other: "+
				"use a simpler chain, and report this one")
	}
	return nil
}

// audienceDetails are the fields that other implementations give an InvalidAudience.
type audienceDetails struct {
	Audience   string
	Delegation audienceOf
}

type audienceOf struct{ Audience string }

func (d *audienceDetails) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "audience", Value: &d.Audience}, {Key: "delegation", Value: &d.Delegation}}
}

func (a *audienceOf) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "audience", Value: &a.Audience}}
}

// outOfTime says why u is not valid at a time, in seconds since 1970 UTC; "" if it is.
func outOfTime(u *capabilities.UCAN, now int64) string {
	if u.Expiration != nil && *u.Expiration <= now {
		return "expired at " + moment(*u.Expiration)
	}
	if u.NotBefore > now {
		return "is not valid before " + moment(u.NotBefore)
	}
	return ""
}

func moment(seconds int64) string {
	t := time.Unix(seconds, 0).UTC()
	if t.Year() < 0 || t.Year() > 9999 {
		return fmt.Sprintf("second %d", seconds)
	}
	return t.Format(time.RFC3339)
}

// verify checks the signature of u by the key of its issuer. The reason says why it does not hold; the error is a
// fault of ours.
func (a *Authority) verify(ctx context.Context, u *capabilities.UCAN) (v capabilities.Verifier, reason string, err error) {
	v, err = a.Keys.Verifier(ctx, u.Issuer)
	switch {
	case errors.Is(err, ErrNoKey) || errors.Is(err, wire.ErrMalformed):
		return v, fmt.Sprintf("is issued by %s, whose key is not known here", clip(u.Issuer.String())), nil
	case err != nil:
		return v, "", fmt.Errorf("finding the key of %s: %w", u.Issuer, err)
	}
	if err := u.Verify(v); err != nil {
		return v, fmt.Sprintf("has a signature that is not by the key of its issuer, %s", clip(u.Issuer.String())), nil
	}
	return v, "", nil
}

func (a *Authority) isRevoked(ctx context.Context, c cid.Cid) (bool, error) {
	revoked, err := a.Revoked(ctx, c)
	if err != nil {
		return false, fmt.Errorf("finding out whether %s was revoked: %w", c, err)
	}
	return revoked, nil
}

// attests reports whether sessions of a DID are honoured.
func (a *Authority) attests(d capabilities.DID) bool {
	return d == a.Self || slices.Contains(a.Attestors, d)
}

// search looks for one chain of proofs below an invocation.
//
// Since every proof has to cover the capability that is invoked, whether a proof can serve does not depend on the
// path that leads to it. So the search goes breadth first over distinct proofs: each is decoded, verified and asked
// about at most once, however many paths the message has, and the chain it finds is a shortest one.
type search struct {
	*Authority
	message *capabilities.Message
	claim   wire.Capability
	now     int64
	tokens  map[cid.Cid]*token
	reasons []string // why proofs did not serve, for the client
	dropped int      // reasons beyond maxReasons
	fault   error    // the first key that could not be looked up
}

// token is a UCAN and what has been found out about it.
type token struct {
	*capabilities.UCAN // nil if it is not in the message
	unfit              string
	accepted           bool // it is, or was, on the way

	compared  bool // its capabilities with the claim
	covers    bool
	grant     int    // which capability covers the claim
	uncovered string // why none does

	asked    bool // about the signature
	verifier capabilities.Verifier
	unsigned string // why its own signature does not hold

	askedRevoked bool
	revoked      bool
}

// step is a token on the way from the invocation.
type step struct {
	*token
	citer   *step // nil: this is the invocation
	voucher *token
	depth   int

	vouchers map[cid.Cid][]*token // attestations that this one cites, by the UCAN that they attest
}

// find returns the end of a chain, a proof issued by the resource itself; nil if there is none.
func (s *search) find(ctx context.Context, invocation *step) (*step, error) {
	queue := []*step{invocation}
	for i := 0; i < len(queue); i++ {
		at := queue[i]
		if at.citer != nil {
			if ok, err := s.accept(ctx, at); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		if at.depth == maxDepth {
			s.note("the chain through proof %s is longer than %d proofs", at.Link(), maxDepth)
			continue
		}
		for _, t := range s.cited(at) {
			next := &step{token: t, citer: at, depth: at.depth + 1}
			switch {
			case !s.fits(next):
			case t.Issuer.String() == s.claim.With:
				if ok, err := s.accept(ctx, next); err != nil {
					return nil, err
				} else if ok {
					return next, nil
				}
			case len(t.Proofs) == 0:
				s.note("proof %s is issued by %s, who is not the owner of the resource and shows no proof in turn",
					t.Link(), clip(t.Issuer.String()))
			case !t.accepted:
				queue = append(queue, next)
			}
		}
	}
	return nil, nil
}

// cited returns the proofs that at cites, each once, and notes the attestations among them.
func (s *search) cited(at *step) []*token {
	var tokens []*token
	seen := make(map[cid.Cid]bool, min(len(at.Proofs), maxProofs))
	for _, link := range at.Proofs {
		if seen[link] {
			continue
		}
		t := s.token(link)
		if t == nil {
			s.note("there are more than %d proofs", maxProofs)
			break
		}
		seen[link] = true
		if t.unfit != "" {
			s.note("proof %s %s", link, t.unfit)
			continue
		}
		if attested, ok := s.attestation(t, at); ok {
			if at.vouchers == nil {
				at.vouchers = map[cid.Cid][]*token{}
			}
			at.vouchers[attested] = append(at.vouchers[attested], t)
		}
		tokens = append(tokens, t)
	}
	return tokens
}

// token returns the UCAN under a link, nil if that would be one too many.
func (s *search) token(link cid.Cid) *token {
	t, known := s.tokens[link]
	if known {
		return t
	}
	if len(s.tokens) == maxProofs {
		return nil
	}
	t = &token{}
	s.tokens[link] = t
	u, err := s.message.UCAN(link)
	switch {
	case err != nil:
		t.unfit = "is malformed"
	case u == nil:
		t.unfit = "is not in the message: include its block"
	default:
		t.UCAN, t.unfit = u, outOfTime(u, s.now)
	}
	return t
}

// attestation returns the UCAN that t attests if t is an attestation by an authority to those that at comes from.
// Only attestations that say nothing else are taken.
func (s *search) attestation(t *token, at *step) (attested cid.Cid, ok bool) {
	if len(t.Capabilities) != 1 || t.Audience != at.Issuer || !s.attests(t.Issuer) {
		return cid.Undef, false
	}
	c := t.Capabilities[0]
	var nb ucan.Attest
	if c.Can != ucan.AttestAbility || c.With != t.Issuer.String() || c.Nb == nil || capabilities.Decode(c.Nb, &nb) != nil ||
		!bytes.Equal(c.Nb, capabilities.Encode(&nb)) {
		return cid.Undef, false
	}
	return nb.Proof, true
}

// fits reports whether a proof that is cited grants the claim to whoever cites it, going by its text.
func (s *search) fits(p *step) bool {
	if p.Audience != p.citer.Issuer {
		s.note("proof %s is delegated to %s, not to %s who cites it",
			p.Link(), clip(p.Audience.String()), clip(p.citer.Issuer.String()))
		return false
	}
	if !p.compared {
		p.compared = true
		p.compare(s.claim)
	}
	if p.covers {
		return true
	}
	if _, ok := s.attestation(p.token, p.citer); !ok {
		s.note("proof %s %s", p.Link(), p.uncovered)
	}
	return false
}

// compare finds the capability that covers a claim.
func (t *token) compare(claim wire.Capability) {
	for i := range t.Capabilities {
		err := capabilities.Covers(t.Capabilities[i], claim)
		if err == nil {
			t.covers, t.grant = true, i
			return
		}
		t.uncovered = "does not cover what is invoked: " + clip(err.Error())
	}
	if n := len(t.Capabilities); n > 1 {
		t.uncovered = fmt.Sprintf("has %d capabilities, none of which covers what is invoked", n)
	}
}

// accept reports whether a proof that fits is to be believed, and has not been accepted on another way before.
func (s *search) accept(ctx context.Context, p *step) (bool, error) {
	if p.accepted {
		return false, nil
	}
	if p.Issuer.Method() != "key" && p.Issuer != s.Self {
		for _, v := range p.citer.vouchers[p.Link()] {
			believed, err := s.believe(ctx, v)
			if err != nil {
				return false, err
			}
			if believed {
				p.voucher = v
				break
			}
		}
	}
	if p.voucher == nil {
		if reason := s.signature(ctx, p.token); reason != "" {
			s.note("proof %s %s", p.Link(), reason)
			return false, nil
		}
	}
	revoked, err := s.revocation(ctx, p.token)
	if err != nil {
		return false, err
	}
	if revoked {
		s.note("proof %s was revoked", p.Link())
		return false, nil
	}
	p.accepted = true
	return true, nil
}

// believe reports whether an attestation verifies and was not revoked.
func (s *search) believe(ctx context.Context, t *token) (bool, error) {
	if reason := s.signature(ctx, t); reason != "" {
		s.note("attestation %s %s", t.Link(), reason)
		return false, nil
	}
	revoked, err := s.revocation(ctx, t)
	if revoked {
		s.note("attestation %s was revoked", t.Link())
	}
	return err == nil && !revoked, err
}

// signature says why the signature of a token does not hold, "" if it does. That a key cannot be looked up at the
// moment does not end the search: another chain may do.
func (s *search) signature(ctx context.Context, t *token) string {
	if t.asked {
		return t.unsigned
	}
	t.asked = true
	if t.Signature.Code() == wire.SigNonStandard {
		// A principal without a key. Asking for it could cost a look-up, and such a signature never verifies.
		t.unsigned = fmt.Sprintf("carries no signature: include the session (%s) in which %s vouches for it",
			ucan.AttestAbility, s.Self)
		return t.unsigned
	}
	v, reason, err := s.verify(ctx, t.UCAN)
	if err != nil {
		if s.fault == nil {
			s.fault = err
		}
		reason = "cannot be verified at the moment"
	}
	t.verifier, t.unsigned = v, reason
	return reason
}

func (s *search) revocation(ctx context.Context, t *token) (bool, error) {
	if t.askedRevoked {
		return t.revoked, nil
	}
	revoked, err := s.isRevoked(ctx, t.Link())
	if err != nil {
		return false, err
	}
	t.askedRevoked, t.revoked = true, revoked
	return revoked, nil
}

// Bounds of what a client is told.
const (
	maxReasons = 5
	maxClip    = 200 // bytes of one name in a text
)

func (s *search) note(format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	switch {
	case slices.Contains(s.reasons, reason):
	case len(s.reasons) == maxReasons:
		s.dropped++
	default:
		s.reasons = append(s.reasons, reason)
	}
}

// failure is what the client is told, or the fault that kept the search from its end.
func (s *search) failure(u *capabilities.UCAN) error {
	if s.fault != nil {
		return s.fault
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s has no authority for %s on %s", clip(u.Issuer.String()), clip(s.claim.Can), clip(s.claim.With))
	if len(u.Proofs) == 0 {
		text.WriteString(": there is no proof. Invoke as the owner of the resource, or include a delegation from it to the issuer")
	}
	for i, reason := range s.reasons {
		text.WriteString([]string{": ", "; "}[min(i, 1)])
		text.WriteString(reason)
	}
	if s.dropped > 0 {
		fmt.Fprintf(&text, "; and %d more", s.dropped)
	}
	return &capabilities.Failure{Name: capabilities.Unauthorized, Message: text.String()}
}

// clip shortens a text from outside to what a message can hold.
func clip(text string) string {
	if len(text) <= maxClip {
		return text
	}
	return strings.ToValidUTF8(text[:maxClip], "") + "…"
}

// spelledAlike reports whether all implementations write the signed text of u alike. Where they do not, go-ucanto
// cannot tell whether the signature of a JavaScript client is good.
func spelledAlike(u *capabilities.UCAN) bool {
	same := func(write func(s cbor.Spelling) []byte) bool {
		return bytes.Equal(write(cbor.Go), write(cbor.JavaScript))
	}
	text := func(t string) bool {
		return same(func(s cbor.Spelling) []byte { return cbor.AppendJSONText(nil, t, s) })
	}
	value := func(b []byte) bool {
		return b == nil || same(func(s cbor.Spelling) []byte {
			j, _ := cbor.AppendJSON(nil, b, s) // the same error in both spellings
			return j
		})
	}
	for _, c := range u.Capabilities {
		if !text(c.Can) || !text(c.With) || !value(c.Nb) {
			return false
		}
	}
	return text(u.Nonce) && !slices.ContainsFunc(u.Facts, func(f []byte) bool { return !value(f) })
}

// judge has go-ucanto decide about the chain that ends with last. It has to agree.
//
// go-ucanto validates in goroutines of its own, where a panic cannot be recovered and ends the process; and it tries
// all paths, whose number is exponential. So it is given the chain alone, decoded beforehand, with each signature
// verified beforehand (by go-ucanto as well) in this goroutine. What is known to make it panic cannot come this far:
// package wire refuses malformed signatures, DIDs that are none, and UCANs without capabilities. DIDs whose key type
// go-ucanto does not know (it panics when it prints them) have no verifier here.
func (s *search) judge(ctx context.Context, last *step) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("go-ucanto panicked: %v", p)
		}
	}()
	c := &court{search: s, evidence: map[string]*exhibit{}, signatures: map[string]bool{}, keys: map[string]did.DID{}}
	var next []goucan.Link
	var invocation *exhibit
	for at := last; at != nil; at = at.citer {
		e, err := c.admit(at.token, next, at.voucher != nil)
		if err != nil {
			return err
		}
		next = []goucan.Link{e.Link()}
		if at.voucher != nil {
			v, err := c.admit(at.voucher, nil, false)
			if err != nil {
				return err
			}
			next = append(next, v.Link())
		}
		invocation = e
	}
	self, err := did.Parse(s.Self.String())
	if err != nil {
		return err
	}
	attestors, err := c.attestors()
	if err != nil {
		return err
	}
	anything := validator.NewCapability(s.claim.Can, asIs[string]{}, asIs[any]{}, validator.DefaultDerives[any])
	vctx := validator.NewValidationContext(witness{self, c.verified}, anything, validator.IsSelfIssued[any],
		c.validateAuthorization, c.resolveProof, c.parsePrincipal, c.resolveDIDKey, c.validateTimeBounds, attestors...)
	if _, unauthorized := validator.Access(ctx, invocation, vctx); unauthorized != nil {
		return fmt.Errorf("go-ucanto: %s", unauthorized) //nolint:errorlint // its text is all that is wanted: nobody switches on another library's failures
	}
	return nil
}

// court is what go-ucanto is told about a chain. Nothing in it changes once validation has begun.
type court struct {
	*search
	evidence   map[string]*exhibit // by link
	signatures map[string]bool     // that are known to be good
	keys       map[string]did.DID  // did:key of issuers of other methods
}

// exhibit is a UCAN of the chain: the UCAN that it was decoded from, but for the proofs and capabilities that the
// chain does not use.
type exhibit struct {
	delegation.Delegation
	proofs       []goucan.Link
	capabilities []goucan.Capability[any]
}

func (e *exhibit) Proofs() []goucan.Link                  { return e.proofs }
func (e *exhibit) Capabilities() []goucan.Capability[any] { return e.capabilities }

// admit decodes a token as go-ucanto does and verifies its signature as go-ucanto does, unless it is vouched for.
func (c *court) admit(t *token, proofs []goucan.Link, vouched bool) (*exhibit, error) {
	d, err := decodeForeign(t.Block())
	if err != nil {
		return nil, err
	}
	e := &exhibit{Delegation: d, proofs: proofs, capabilities: d.Capabilities()[t.grant : t.grant+1]}
	c.evidence[e.Link().String()] = e
	issuer := d.Issuer().DID()
	if !vouched {
		v := t.verifier
		key := witness{issuer, func(payload, sig []byte) bool { return v.Verify(payload, sig) }}
		good, err := goucan.VerifySignature(d.Data(), key)
		if err != nil {
			return nil, fmt.Errorf("verifying the signature of %s: %w", t.Link(), err)
		}
		if !good && spelledAlike(t.UCAN) {
			return nil, fmt.Errorf("the signature of %s does not verify by go-ucanto", t.Link())
		}
		c.signatures[string(t.Signature)] = true
	}
	if t.Issuer.Method() != "key" {
		// go-ucanto asks for the did:key that stands for a DID, and then for the key of that. We know the key only:
		// any did:key that is told from the others serves as a name for it.
		name := sha256.Sum256([]byte(t.Issuer.String()))
		key, err := did.Decode(append([]byte{0xed, 0x01}, name[:]...))
		if err != nil {
			return nil, err
		}
		c.keys[t.Issuer.String()] = key
	}
	return e, nil
}

// decodeForeign decodes a UCAN as go-ucanto does.
func decodeForeign(b capabilities.Block) (delegation.Delegation, error) {
	root := block.NewBlock(cidlink.Link{Cid: b.CID}, b.Bytes)
	blocks, err := blockstore.NewBlockReader(blockstore.WithBlocks([]block.Block{root}))
	if err != nil {
		return nil, err
	}
	d, err := delegation.NewDelegation(root, blocks)
	if err != nil {
		return nil, fmt.Errorf("decoding %s: %w", b.CID, err)
	}
	return d, nil
}

// attestors returns, for each attestor, what go-ucanto wants to see before it honours a session: a delegation of
// ucan/attest by the authority. It reads no more of it than the capability and the audience.
func (c *court) attestors() ([]delegation.Delegation, error) {
	list := make([]delegation.Delegation, 0, len(c.Attestors))
	for _, a := range c.Attestors {
		u := wire.UCAN{Issuer: c.Self, Audience: a, Signature: wire.AbsentSignature(),
			Capabilities: []wire.Capability{{Can: ucan.AttestAbility, With: c.Self.String()}}}
		b, err := u.Encode()
		if err != nil {
			return nil, fmt.Errorf("stating that %s is an attestor: %w", a, err)
		}
		d, err := decodeForeign(b)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

func (c *court) verified(_, sig []byte) bool { return c.signatures[string(sig)] }

func (c *court) validateAuthorization(_ context.Context, auth validator.Authorization[any]) validator.Revoked {
	// Revocation was asked for all that is in evidence; what is not must not be relied on.
	if c.evidence[auth.Delegation().Link().String()] == nil {
		return validator.NewRevokedError(auth.Delegation())
	}
	for _, more := range [][]validator.Authorization[any]{auth.Proofs(), auth.Attestations()} {
		for _, p := range more {
			if r := c.validateAuthorization(context.Background(), p); r != nil {
				return r
			}
		}
	}
	return nil
}

func (c *court) resolveProof(_ context.Context, link goucan.Link) (delegation.Delegation, validator.UnavailableProof) {
	if e := c.evidence[link.String()]; e != nil {
		return e, nil
	}
	return nil, validator.NewUnavailableProofError(link, errors.New("it is not a part of the chain"))
}

func (c *court) parsePrincipal(text string) (principal.Verifier, error) {
	d, err := did.Parse(text)
	if err != nil {
		return nil, err
	}
	return witness{d, c.verified}, nil
}

func (c *court) resolveDIDKey(_ context.Context, d did.DID) (did.DID, validator.UnresolvedDID) {
	if key, ok := c.keys[d.String()]; ok {
		return key, nil
	}
	return did.Undef, validator.NewDIDKeyResolutionError(d, ErrNoKey)
}

func (c *court) validateTimeBounds(d delegation.Delegation) validator.InvalidProof {
	if exp := d.Expiration(); exp != nil && int64(*exp) <= c.now {
		return validator.NewExpiredError(d)
	}
	if int64(d.NotBefore()) > c.now {
		return validator.NewNotValidBeforeError(d)
	}
	return nil
}

// witness is the key of a DID as go-ucanto sees it.
type witness struct {
	id     did.DID
	verify func(payload, signature []byte) bool
}

func (w witness) DID() did.DID   { return w.id }
func (w witness) Code() uint64   { return 0 }
func (w witness) Encode() []byte { return nil }
func (w witness) Raw() []byte    { return nil }
func (w witness) Verify(payload []byte, sig signature.Signature) bool {
	return w.verify(payload, sig.Bytes())
}

// asIs is the schema of anything.
type asIs[T any] struct{}

func (asIs[T]) Read(v T) (T, failure.Failure) { return v, nil }
