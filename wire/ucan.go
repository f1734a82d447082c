package wire

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// Capability is an ability over a resource.
type Capability struct {
	Can  string // ability: "filecoin/offer", or a pattern: "filecoin/*", "*"
	With string // resource, a URI: "did:key:…", "ucan:*"
	Nb   []byte // caveats, one canonical DAG-CBOR map; nil if absent, which is not the same bytes as an empty map
}

// UCAN is a signed delegation of capabilities from issuer to audience. With one capability and sent to be executed it
// is an invocation; its link then names the task.
//
// A UCAN from DecodeUCAN or SignUCAN stands for its block: do not change its fields.
type UCAN struct {
	Issuer       DID
	Audience     DID
	Capabilities []Capability // at least one
	Proofs       []cid.Cid
	Expiration   *int64   // seconds since 1970 UTC; nil: never
	NotBefore    int64    // seconds since 1970 UTC; 0: absent
	Nonce        string   // "": absent
	Facts        [][]byte // canonical DAG-CBOR maps; nil: absent
	Signature    Signature

	block Block
}

// Bounds of one UCAN, far beyond what is in use: checking a signature takes several times the size of what is signed,
// and the smallest capabilities and facts take up to 24 times their size in memory.
const (
	maxUCAN         = 256 << 10 // bytes of the block
	maxCapabilities = 100
	maxFacts        = 100
	maxProofs       = 1000 // that it cites itself; see Limits
)

// DecodeUCAN decodes the UCAN in a block whose bytes have been checked against its CID, as those from ReadCAR have.
// The error wraps ErrMalformed, or ErrLimit if the block has more than 256 KiB, 100 capabilities, 100 facts
// or 1,000 proofs.
func DecodeUCAN(b Block) (*UCAN, error) {
	if len(b.Bytes) > maxUCAN {
		return nil, fmt.Errorf("%w: UCAN %.100s of %d bytes, more than %d", ErrLimit, b.CID, len(b.Bytes), maxUCAN)
	}
	if !isDAGCBOR(b.CID) {
		return nil, fmt.Errorf("%w: UCAN %.100s: neither JWTs nor CIDs other than DAG-CBOR with SHA2-256 are supported",
			ErrMalformed, b.CID)
	}
	u := &UCAN{block: b}
	if err := u.decode(b.Bytes); err != nil {
		return nil, fmt.Errorf("UCAN %v: %w", b.CID, err)
	}
	return u, nil
}

// The fields that a UCAN must have.
const (
	ucanS = 1 << iota
	ucanV
	ucanAtt
	ucanAud
	ucanExp
	ucanIss
	ucanPrf
	ucanRequired = 1<<iota - 1
)

func (u *UCAN) decode(b []byte) error {
	var err error
	seen := 0
	r := cbor.NewReader(b)
	for range r.Map() {
		switch string(r.Key()) {
		case "s":
			seen |= ucanS
			if raw := r.Bytes(); r.Err() == nil {
				if u.Signature, err = DecodeSignature(raw); err != nil {
					return err
				}
			}
		case "v":
			seen |= ucanV
			if v := r.TextBytes(); string(v) != Version {
				r.Failf("UCAN version %.20q, want %s", v, Version)
			}
		case "att":
			seen |= ucanAtt
			if u.Capabilities, err = readCapabilities(r); err != nil {
				return err
			}
		case "aud":
			seen |= ucanAud
			if raw := r.Bytes(); r.Err() == nil {
				if u.Audience, err = DecodeDID(raw); err != nil {
					return fmt.Errorf("aud: %w", err)
				}
			}
		case "exp":
			seen |= ucanExp
			if r.Peek() == cbor.Null {
				r.Null()
			} else {
				exp := r.Int()
				u.Expiration = &exp
			}
		case "fct":
			if u.Facts, err = readFacts(r); err != nil {
				return err
			}
		case "iss":
			seen |= ucanIss
			if raw := r.Bytes(); r.Err() == nil {
				if u.Issuer, err = DecodeDID(raw); err != nil {
					return fmt.Errorf("iss: %w", err)
				}
			}
		case "nbf":
			if u.NotBefore = r.Int(); u.NotBefore == 0 {
				r.Failf("nbf is zero rather than absent")
			}
		case "nnc":
			if u.Nonce = r.Text(); u.Nonce == "" {
				r.Failf("nnc is empty rather than absent")
			}
		case "prf":
			seen |= ucanPrf
			if u.Proofs = readLinks(r); len(u.Proofs) > maxProofs {
				return fmt.Errorf("%w: %d proofs, more than %d", ErrLimit, len(u.Proofs), maxProofs)
			}
		default:
			r.Failf("unknown field")
		}
		if r.Err() != nil {
			return r.Err()
		}
	}
	if r.Err() == nil && seen != ucanRequired {
		r.Failf("a required field is missing")
	}
	return r.Done()
}

func readCapabilities(r *cbor.Reader) ([]Capability, error) {
	n := r.Array()
	if n == 0 {
		r.Failf("no capability")
	}
	if n > maxCapabilities {
		return nil, fmt.Errorf("%w: %d capabilities, more than %d", ErrLimit, n, maxCapabilities)
	}
	caps := make([]Capability, 0, min(n, 16)) // n is merely announced
	for range n {
		var c Capability
		for range r.Map() {
			switch string(r.Key()) {
			case "nb":
				c.Nb = readMap(r, "nb")
			case "can":
				c.Can = r.Text()
			case "with":
				c.With = r.Text()
			default:
				r.Failf("unknown field of a capability")
			}
		}
		if r.Err() == nil {
			if err := c.check(); err != "" {
				r.Failf("%s", err)
			}
		}
		if r.Err() != nil {
			return nil, nil
		}
		caps = append(caps, c)
	}
	return caps, nil
}

func readFacts(r *cbor.Reader) ([][]byte, error) {
	n := r.Array()
	if n == 0 {
		r.Failf("fct is empty rather than absent")
	}
	if n > maxFacts {
		return nil, fmt.Errorf("%w: %d facts, more than %d", ErrLimit, n, maxFacts)
	}
	facts := make([][]byte, 0, min(n, 16)) // n is merely announced
	for range n {
		facts = append(facts, readMap(r, "fact"))
		if r.Err() != nil {
			return nil, nil
		}
	}
	return facts, nil
}

// readMap returns the bytes of a map, which name is for the error message.
func readMap(r *cbor.Reader, name string) []byte {
	if kind := r.Peek(); kind != cbor.Map {
		r.Failf("%s is not a map but %v", name, kind)
	}
	return r.Raw()
}

// check returns what is wrong with the texts of a capability, "" if nothing is. JavaScript converts an ability to
// lower case before it checks the signature, so an upper-case one would verify on one side only.
func (c *Capability) check() string {
	if c.Can != "*" {
		slash := strings.LastIndexByte(c.Can[:max(0, len(c.Can)-1)], '/')
		if slash < 1 {
			return fmt.Sprintf("ability %.80q has no path", c.Can)
		}
		for _, b := range []byte(c.Can) {
			if b <= ' ' || b > '~' || b >= 'A' && b <= 'Z' {
				return fmt.Sprintf("ability %.80q is not lower-case ASCII", c.Can)
			}
		}
	}
	scheme, rest, ok := strings.Cut(c.With, ":")
	if !ok || scheme == "" || rest == "" {
		return fmt.Sprintf("resource %.80q is not a URI", c.With)
	}
	for i, b := range []byte(scheme) {
		letter := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
		if !letter && (i == 0 || (b < '0' || b > '9') && b != '+' && b != '-' && b != '.') {
			return fmt.Sprintf("resource %.80q is not a URI", c.With)
		}
	}
	return ""
}

// validate checks the fields that a caller has filled in as strictly as a decoder would.
func (u *UCAN) validate() error {
	if !u.Issuer.Defined() || !u.Audience.Defined() {
		return fmt.Errorf("%w: UCAN without issuer or audience", ErrMalformed)
	}
	if len(u.Capabilities) == 0 {
		return fmt.Errorf("%w: UCAN without capability", ErrMalformed)
	}
	if len(u.Capabilities) > maxCapabilities || len(u.Facts) > maxFacts || len(u.Proofs) > maxProofs {
		return fmt.Errorf("%w: UCAN of %d capabilities, %d facts and %d proofs", ErrLimit, len(u.Capabilities), len(u.Facts), len(u.Proofs))
	}
	for i := range u.Capabilities {
		c := &u.Capabilities[i]
		if err := c.check(); err != "" {
			return fmt.Errorf("%w: %s", ErrMalformed, err)
		}
		if c.Nb != nil {
			if err := checkMap(c.Nb); err != nil {
				return fmt.Errorf("nb of %s: %w", c.Can, err)
			}
		}
	}
	for _, fact := range u.Facts {
		if err := checkMap(fact); err != nil {
			return fmt.Errorf("fact: %w", err)
		}
	}
	if slices.Contains(u.Proofs, cid.Undef) {
		return fmt.Errorf("%w: undefined proof", ErrMalformed)
	}
	return nil
}

// checkMap checks that b is one canonical map.
func checkMap(b []byte) error {
	r := cbor.NewReader(b)
	readMap(r, "value")
	return r.Done()
}

// Encode returns the block of u, made from its fields. The error wraps ErrMalformed or ErrLimit: u is not complete, or
// holds what DecodeUCAN would refuse.
func (u *UCAN) Encode() (Block, error) {
	if err := u.validate(); err != nil {
		return Block{}, err
	}
	if _, err := DecodeSignature(u.Signature); err != nil {
		return Block{}, err
	}
	return u.sized()
}

// sized is encode for a UCAN that is not too large.
func (u *UCAN) sized() (Block, error) {
	b := u.encode()
	if len(b.Bytes) > maxUCAN {
		return Block{}, fmt.Errorf("%w: UCAN of %d bytes, more than %d", ErrLimit, len(b.Bytes), maxUCAN)
	}
	return b, nil
}

// encode encodes fields that have been checked.
func (u *UCAN) encode() Block {
	size := 256 + len(u.Signature) + len(u.Nonce) + 41*len(u.Proofs)
	for _, c := range u.Capabilities {
		size += 32 + len(c.Can) + len(c.With) + len(c.Nb)
	}
	b := make([]byte, 0, size)
	fields := 7
	for _, present := range []bool{len(u.Facts) > 0, u.NotBefore != 0, u.Nonce != ""} {
		if present {
			fields++
		}
	}
	b = cbor.AppendMap(b, fields)
	b = cbor.AppendText(b, "s")
	b = cbor.AppendBytes(b, u.Signature)
	b = cbor.AppendText(b, "v")
	b = cbor.AppendText(b, Version)
	b = cbor.AppendText(b, "att")
	b = cbor.AppendArray(b, len(u.Capabilities))
	for _, c := range u.Capabilities {
		if c.Nb != nil {
			b = cbor.AppendMap(b, 3)
			b = cbor.AppendText(b, "nb")
			b = append(b, c.Nb...)
		} else {
			b = cbor.AppendMap(b, 2)
		}
		b = cbor.AppendText(b, "can")
		b = cbor.AppendText(b, c.Can)
		b = cbor.AppendText(b, "with")
		b = cbor.AppendText(b, c.With)
	}
	var did [64]byte
	b = cbor.AppendText(b, "aud")
	b = cbor.AppendBytes(b, u.Audience.appendBytes(did[:0]))
	b = cbor.AppendText(b, "exp")
	if u.Expiration != nil {
		b = cbor.AppendInt(b, *u.Expiration)
	} else {
		b = cbor.AppendNull(b)
	}
	if len(u.Facts) > 0 {
		b = cbor.AppendText(b, "fct")
		b = cbor.AppendArray(b, len(u.Facts))
		for _, fact := range u.Facts {
			b = append(b, fact...)
		}
	}
	b = cbor.AppendText(b, "iss")
	b = cbor.AppendBytes(b, u.Issuer.appendBytes(did[:0]))
	if u.NotBefore != 0 {
		b = cbor.AppendText(b, "nbf")
		b = cbor.AppendInt(b, u.NotBefore)
	}
	if u.Nonce != "" {
		b = cbor.AppendText(b, "nnc")
		b = cbor.AppendText(b, u.Nonce)
	}
	b = cbor.AppendText(b, "prf")
	b = appendLinks(b, u.Proofs)
	return EncodeBlock(b)
}

// SignUCAN signs u, which needs audience and capabilities; issuer and signature are set here. Ed25519 being
// deterministic, equal fields give equal links. The error wraps ErrMalformed or ErrLimit: u holds what DecodeUCAN would
// refuse, or caveats or facts that cannot be signed since they have no JSON form of their own (cbor.ToJSON).
func SignUCAN(s Signer, u UCAN) (*UCAN, error) {
	u.Issuer = s.DID()
	if err := u.validate(); err != nil {
		return nil, fmt.Errorf("signing a UCAN: %w", err)
	}
	payload, err := u.payload("EdDSA", cbor.Go)
	if err != nil {
		return nil, fmt.Errorf("signing a UCAN: %w", err)
	}
	u.Signature = s.Sign(payload)
	if u.block, err = u.sized(); err != nil {
		return nil, fmt.Errorf("signing a UCAN: %w", err)
	}
	return &u, nil
}

// Block returns the block that u was decoded from or signed as; the zero Block if neither.
func (u *UCAN) Block() Block { return u.block }

// Link returns the CID of Block.
func (u *UCAN) Link() cid.Cid { return u.block.CID }

// Verify checks that the issuer of u is v's DID and that the signature is by v's key. The error wraps ErrSignature;
// an absent signature never verifies.
func (u *UCAN) Verify(v Verifier) error {
	if u.Issuer != v.DID() || !u.Issuer.Defined() {
		return fmt.Errorf("%w: UCAN issued by %q, key of %q", ErrSignature, u.Issuer, v.DID())
	}
	algorithm := u.Signature.Algorithm()
	if u.Signature.Code() == SigNonStandard {
		return fmt.Errorf("%w: UCAN of %v is signed by %q", ErrSignature, u.Issuer, algorithm)
	}
	payload, err := u.payload(algorithm, cbor.Go)
	if err == nil && v.Verify(payload, u.Signature) {
		return nil
	}
	// It is nearly always the same in the other spelling, and then there is nothing to try again.
	if script, err := u.payload(algorithm, cbor.JavaScript); err == nil && !bytes.Equal(script, payload) &&
		v.Verify(script, u.Signature) {
		return nil
	}
	return fmt.Errorf("%w: UCAN of %v", ErrSignature, u.Issuer)
}

// payload returns what is signed: the header and the payload of a JWT, in base64url with a dot between.
func (u *UCAN) payload(algorithm string, spelling cbor.Spelling) ([]byte, error) {
	size := 256 + 64*len(u.Proofs)
	for _, c := range u.Capabilities {
		size += 64 + len(c.Can) + len(c.With) + 2*len(c.Nb)
	}
	for _, fact := range u.Facts {
		size += 2 * len(fact)
	}
	// One allocation serves both, as long as the estimate holds.
	buf := make([]byte, size+128+size*4/3)
	scratch, out := buf[:0:size], buf[size:size]

	scratch = append(scratch, `{"alg":`...)
	scratch = cbor.AppendJSONText(scratch, algorithm, spelling)
	scratch = append(scratch, `,"typ":"JWT","ucv":"`+Version+`"}`...)
	out = base64.RawURLEncoding.AppendEncode(out, scratch)
	out = append(out, '.')

	var err error
	j := append(scratch[:0], `{"att":[`...)
	for i, c := range u.Capabilities {
		if i > 0 {
			j = append(j, ',')
		}
		j = append(j, `{"can":`...)
		j = cbor.AppendJSONText(j, c.Can, spelling)
		if c.Nb != nil {
			j = append(j, `,"nb":`...)
			if j, err = cbor.AppendJSON(j, c.Nb, spelling); err != nil {
				return nil, fmt.Errorf("nb of %s: %w", c.Can, err)
			}
		}
		j = append(j, `,"with":`...)
		j = cbor.AppendJSONText(j, c.With, spelling)
		j = append(j, '}')
	}
	j = append(j, `],"aud":`...)
	j = cbor.AppendJSONText(j, u.Audience.text, spelling)
	j = append(j, `,"exp":`...)
	if u.Expiration != nil {
		j = strconv.AppendInt(j, *u.Expiration, 10)
	} else {
		j = append(j, "null"...)
	}
	if len(u.Facts) > 0 {
		j = append(j, `,"fct":[`...)
		for i, fact := range u.Facts {
			if i > 0 {
				j = append(j, ',')
			}
			if j, err = cbor.AppendJSON(j, fact, spelling); err != nil {
				return nil, fmt.Errorf("fact: %w", err)
			}
		}
		j = append(j, ']')
	}
	j = append(j, `,"iss":`...)
	j = cbor.AppendJSONText(j, u.Issuer.text, spelling)
	if u.NotBefore != 0 {
		j = append(j, `,"nbf":`...)
		j = strconv.AppendInt(j, u.NotBefore, 10)
	}
	if u.Nonce != "" {
		j = append(j, `,"nnc":`...)
		j = cbor.AppendJSONText(j, u.Nonce, spelling)
	}
	j = append(j, `,"prf":[`...)
	for i, proof := range u.Proofs {
		if i > 0 {
			j = append(j, ',')
		}
		j = append(j, '"')
		j = cbor.AppendCIDText(j, proof.KeyString())
		j = append(j, '"')
	}
	j = append(j, "]}"...)
	return base64.RawURLEncoding.AppendEncode(out, j), nil
}

// Links yields the links in the caveats, at any depth and in their order on the wire, and then those that are values
// of a fact: what a sender may attach blocks for.
func (u *UCAN) Links(yield func(cid.Cid) bool) {
	for raw := range u.linkBytes {
		c, err := cid.Cast(raw)
		if err != nil || !yield(c) {
			return
		}
	}
}

// linkBytes yields the bytes of the CIDs of Links.
func (u *UCAN) linkBytes(yield func([]byte) bool) {
	for _, c := range u.Capabilities {
		if c.Nb != nil && !eachLink(cbor.NewReader(c.Nb), yield) {
			return
		}
	}
	for _, fact := range u.Facts {
		r := cbor.NewReader(fact)
		for range r.Map() {
			r.Key()
			if r.Peek() != cbor.Link {
				r.Skip()
			} else if raw := r.LinkBytes(); raw == nil || !yield(raw) {
				return
			}
		}
	}
}

// eachLink yields the links in the value that r reads next and reports whether to go on.
func eachLink(r *cbor.Reader, yield func([]byte) bool) bool {
	switch r.Peek() {
	case cbor.Link:
		raw := r.LinkBytes()
		return raw != nil && yield(raw)
	case cbor.Array:
		for range r.Array() {
			if !eachLink(r, yield) {
				return false
			}
		}
	case cbor.Map:
		for range r.Map() {
			r.Key()
			if !eachLink(r, yield) {
				return false
			}
		}
	default:
		r.Skip()
	}
	return r.Err() == nil
}
