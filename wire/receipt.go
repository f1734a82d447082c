package wire

import (
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// Result is the outcome of a task: exactly one of its fields is set, to one canonical DAG-CBOR value.
type Result struct {
	OK    []byte
	Error []byte
}

// Receipt is the signed outcome of a task, with the tasks that follow from it.
//
// A Receipt from DecodeReceipt or SignReceipt stands for its block: do not change its fields.
type Receipt struct {
	Ran       cid.Cid // the task, that is its invocation
	Out       Result
	Fork      []cid.Cid // tasks that run besides
	Join      cid.Cid   // task that the outcome depends on further; cid.Undef: none
	Meta      []byte    // one canonical DAG-CBOR map; nil: empty
	Issuer    DID       // undefined: absent
	Proofs    []cid.Cid
	Signature Signature

	outcome []byte // what is signed: the part of the block under "ocm"
	block   Block
}

var emptyMap = []byte{0xa0}

// DecodeReceipt decodes the receipt in a block whose bytes have been checked against its CID, as those from ReadCAR
// have. The error wraps ErrMalformed.
func DecodeReceipt(b Block) (*Receipt, error) {
	if !isDAGCBOR(b.CID) {
		return nil, fmt.Errorf("%w: receipt %.100s: CID is not of DAG-CBOR with SHA2-256", ErrMalformed, b.CID)
	}
	rc := &Receipt{block: b}
	if err := rc.decode(b.Bytes); err != nil {
		return nil, fmt.Errorf("receipt %v: %w", b.CID, err)
	}
	return rc, nil
}

func (rc *Receipt) decode(b []byte) error {
	r := cbor.NewReader(b)
	for range r.Map() {
		switch string(r.Key()) {
		case "ocm":
			start := r.Offset()
			if err := rc.decodeOutcome(r); err != nil {
				return err
			}
			rc.outcome = b[start:r.Offset():r.Offset()]
		case "sig":
			raw := r.Bytes()
			if r.Err() != nil {
				return r.Err()
			}
			var err error
			if rc.Signature, err = DecodeSignature(raw); err != nil {
				return err
			}
		default:
			r.Failf("unknown field")
		}
	}
	if r.Err() == nil && (rc.outcome == nil || rc.Signature == nil) {
		r.Failf("a required field is missing")
	}
	return r.Done()
}

// The fields that an outcome must have.
const (
	outcomeFx = 1 << iota
	outcomeOut
	outcomePrf
	outcomeRan
	outcomeMeta
	outcomeRequired = 1<<iota - 1
)

func (rc *Receipt) decodeOutcome(r *cbor.Reader) error {
	seen := 0
	for range r.Map() {
		switch string(r.Key()) {
		case "fx":
			seen |= outcomeFx
			rc.decodeEffects(r)
		case "iss":
			text := r.TextBytes()
			if r.Err() != nil {
				return r.Err()
			}
			var err error
			if rc.Issuer, err = ParseDID(string(text)); err != nil {
				return fmt.Errorf("iss: %w", err)
			}
		case "out":
			seen |= outcomeOut
			rc.decodeResult(r)
		case "prf":
			seen |= outcomePrf
			rc.Proofs = readLinks(r)
		case "ran":
			seen |= outcomeRan
			rc.Ran = r.Link()
		case "meta":
			seen |= outcomeMeta
			if rc.Meta = readMap(r, "meta"); len(rc.Meta) == 1 {
				rc.Meta = nil
			}
		default:
			r.Failf("unknown field of an outcome")
		}
		if r.Err() != nil {
			return r.Err()
		}
	}
	if r.Err() == nil && seen != outcomeRequired {
		r.Failf("a required field of the outcome is missing")
	}
	return r.Err()
}

func (rc *Receipt) decodeEffects(r *cbor.Reader) {
	hasFork := false
	for range r.Map() {
		switch string(r.Key()) {
		case "fork":
			hasFork = true
			rc.Fork = readLinks(r)
		case "join":
			rc.Join = r.Link()
		default:
			r.Failf("unknown field of fx")
		}
	}
	if !hasFork {
		r.Failf("fx has no fork")
	}
}

func (rc *Receipt) decodeResult(r *cbor.Reader) {
	if r.Map() != 1 {
		r.Failf("out is not exactly one of ok and error")
	}
	switch string(r.Key()) {
	case "ok":
		rc.Out.OK = r.Raw()
	case "error":
		rc.Out.Error = r.Raw()
	default:
		r.Failf("out is neither ok nor error")
	}
}

// receiptHead is what comes before the outcome in the block of a receipt: the head of a map of two and "ocm".
const receiptHead = "\xa2\x63ocm"

// encodeHalf returns the block of rc up to the signature; what is signed is that without receiptHead. It checks the
// fields as strictly as a decoder would.
func (rc *Receipt) encodeHalf() ([]byte, error) {
	if !rc.Ran.Defined() || slices.Contains(rc.Fork, cid.Undef) || slices.Contains(rc.Proofs, cid.Undef) {
		return nil, fmt.Errorf("%w: receipt with an undefined link", ErrMalformed)
	}
	variant, value := "ok", rc.Out.OK
	if value == nil {
		variant, value = "error", rc.Out.Error
	}
	if (rc.Out.OK == nil) == (rc.Out.Error == nil) {
		return nil, fmt.Errorf("%w: receipt without exactly one result", ErrMalformed)
	}
	if err := cbor.Valid(value); err != nil {
		return nil, fmt.Errorf("out: %w", err)
	}
	meta := rc.Meta
	if meta == nil {
		meta = emptyMap
	}
	if err := checkMap(meta); err != nil {
		return nil, fmt.Errorf("meta: %w", err)
	}

	b := make([]byte, 0, 384+len(value)+len(meta)+41*(len(rc.Fork)+len(rc.Proofs)))
	fields := 5
	if rc.Issuer.Defined() {
		fields++
	}
	b = append(b, receiptHead...)
	b = cbor.AppendMap(b, fields)
	b = cbor.AppendText(b, "fx")
	if rc.Join.Defined() {
		b = cbor.AppendMap(b, 2)
	} else {
		b = cbor.AppendMap(b, 1)
	}
	b = cbor.AppendText(b, "fork")
	b = appendLinks(b, rc.Fork)
	if rc.Join.Defined() {
		b = cbor.AppendText(b, "join")
		b = cbor.AppendLink(b, rc.Join)
	}
	if rc.Issuer.Defined() {
		b = cbor.AppendText(b, "iss")
		b = cbor.AppendText(b, rc.Issuer.text)
	}
	b = cbor.AppendText(b, "out")
	b = cbor.AppendMap(b, 1)
	b = cbor.AppendText(b, variant)
	b = append(b, value...)
	b = cbor.AppendText(b, "prf")
	b = appendLinks(b, rc.Proofs)
	b = cbor.AppendText(b, "ran")
	b = cbor.AppendLink(b, rc.Ran)
	b = cbor.AppendText(b, "meta")
	return append(b, meta...), nil
}

// complete adds the signature to what encodeHalf returned.
func complete(half []byte, sig Signature) Block {
	b := cbor.AppendText(half, "sig")
	return EncodeBlock(cbor.AppendBytes(b, sig))
}

// Encode returns the block of rc, made from its fields. The error wraps ErrMalformed: rc is not complete, or holds
// what DecodeReceipt would refuse.
func (rc *Receipt) Encode() (Block, error) {
	half, err := rc.encodeHalf()
	if err != nil {
		return Block{}, err
	}
	if _, err := DecodeSignature(rc.Signature); err != nil {
		return Block{}, err
	}
	return complete(half, rc.Signature), nil
}

// SignReceipt signs rc, which needs Ran and Out; issuer and signature are set here. Ed25519 being deterministic, equal
// fields give equal links. The error wraps ErrMalformed: rc holds what DecodeReceipt would refuse.
func SignReceipt(s Signer, rc Receipt) (*Receipt, error) {
	rc.Issuer = s.DID()
	return rc.sign(s.Sign)
}

func (rc Receipt) sign(sign func([]byte) Signature) (*Receipt, error) {
	half, err := rc.encodeHalf()
	if err != nil {
		return nil, fmt.Errorf("signing a receipt: %w", err)
	}
	end := len(half)
	rc.Signature = sign(half[len(receiptHead):])
	rc.block = complete(half, rc.Signature)
	rc.outcome = rc.block.Bytes[len(receiptHead):end:end]
	return &rc, nil
}

// Block returns the block that rc was decoded from or signed as; the zero Block if neither.
func (rc *Receipt) Block() Block { return rc.block }

// Link returns the CID of Block.
func (rc *Receipt) Link() cid.Cid { return rc.block.CID }

// Verify checks that rc, decoded or signed, was issued by v's DID and that the signature is by v's key. A receipt that
// names no issuer passes by its signature alone. The error wraps ErrSignature.
//
// It does not tell whether v is the one to believe about this task, that is whether the task's audience is v's DID.
func (rc *Receipt) Verify(v Verifier) error {
	if rc.Issuer.Defined() && rc.Issuer != v.DID() {
		return fmt.Errorf("%w: receipt issued by %v, key of %q", ErrSignature, rc.Issuer, v.DID())
	}
	if rc.outcome == nil || !v.Verify(rc.outcome, rc.Signature) {
		return fmt.Errorf("%w: receipt of %v", ErrSignature, v.DID())
	}
	return nil
}
