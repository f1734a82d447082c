// Package wire is the strict byte format of the UCAN 0.9.1 / ucanto protocol.
package wire

import (
	"crypto/ed25519"
	"errors"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// The errors that callers switch on. Every decoder returns one of the first two, wrapped with the detail.
var (
	ErrMalformed = cbor.ErrMalformed                // bytes break the format
	ErrLimit     = errors.New("limit exceeded")     // bytes may be well formed but are more than the caller allows
	ErrSignature = errors.New("signature mismatch") // Verify: not signed by that key, or not by that issuer
)

// DID is a decentralised identifier; comparable; the zero DID is undefined.
type DID struct{ text string }

func ParseDID(text string) (DID, error) { panic("not yet") }
func DecodeDID(b []byte) (DID, error)   { panic("not yet") }
func (d DID) Bytes() []byte             { panic("not yet") } // multicodec form
func (d DID) String() string            { return d.text }
func (d DID) Method() string            { panic("not yet") } // "key", "web", "mailto"
func (d DID) Defined() bool             { return d.text != "" }

// MarshalText and UnmarshalText allow a DID in JSON, flags and configuration.
func (d DID) MarshalText() ([]byte, error)     { panic("not yet") }
func (d *DID) UnmarshalText(text []byte) error { panic("not yet") }

// Signer is an Ed25519 key and the DID it signs as.
type Signer struct {
	did DID
	key ed25519.PrivateKey
}

func NewSigner(key ed25519.PrivateKey) (Signer, error) { panic("not yet") }
func GenerateSigner(rand io.Reader) (Signer, error)    { panic("not yet") }
func ParseSigner(text string) (Signer, error)          { panic("not yet") } // PEM PKCS#8 or "Mg…"
func (s Signer) WithDID(d DID) (Signer, error)         { panic("not yet") }
func (s Signer) DID() DID                              { panic("not yet") }
func (s Signer) KeyDID() DID                           { panic("not yet") } // the did:key
func (s Signer) Verifier() Verifier                    { panic("not yet") } // for DID()
func (s Signer) Format() string                        { panic("not yet") } // "Mg…"
func (s Signer) PEM() []byte                           { panic("not yet") }
func (s Signer) Sign(payload []byte) Signature         { panic("not yet") }
func (s Signer) String() string                        { panic("not yet") } // the DID, never the key

// Verifier checks signatures of one DID.
type Verifier struct{ did DID }

func VerifierOf(d DID) (Verifier, error)                     { panic("not yet") } // did:key, Ed25519 and RSA
func (v Verifier) WithDID(d DID) Verifier                    { panic("not yet") } // did:web held by this key
func (v Verifier) DID() DID                                  { panic("not yet") }
func (v Verifier) Verify(payload []byte, sig Signature) bool { panic("not yet") }

// Signature is a varsig: algorithm code, length, raw signature.
type Signature []byte

func DecodeSignature(b []byte) (Signature, error) { panic("not yet") }
func AbsentSignature() Signature                  { panic("not yet") }
func (s Signature) Code() uint64                  { panic("not yet") }
func (s Signature) Algorithm() string             { panic("not yet") }
func (s Signature) Raw() []byte                   { panic("not yet") }
func (s Signature) Absent() bool                  { panic("not yet") }

// Block is bytes under their CID.
type Block struct {
	CID   cid.Cid
	Bytes []byte
}

func EncodeBlock(dagCBOR []byte) Block { panic("not yet") } // CIDv1 dag-cbor sha2-256

// Limits bound what decoders accept; a zero field means the default.
type Limits struct {
	Invocations int // per message; 100
	Receipts    int // per message; 1000
	Proofs      int // distinct UCANs and links under one invocation; 64
	ProofDepth  int // 8
	Blocks      int // per CAR; 8192
	BlockSize   int // bytes; 32 MiB
}

func ReadCAR(b []byte, l Limits) (roots []cid.Cid, blocks []Block, err error) { panic("not yet") }
func AppendCAR(dst []byte, roots []cid.Cid, blocks []Block) []byte            { panic("not yet") }

// Capability is one ability over one resource. Nb is the canonical CBOR map of the caveats, nil when absent.
type Capability struct {
	Can  string
	With string
	Nb   []byte
}

// UCAN is a delegation or an invocation.
type UCAN struct {
	Issuer       DID
	Audience     DID
	Capabilities []Capability
	Proofs       []cid.Cid
	Expiration   *int64   // seconds since 1970 UTC; nil: never
	NotBefore    int64    // seconds since 1970 UTC; 0: absent
	Nonce        string   // "": absent
	Facts        [][]byte // canonical CBOR maps; nil: absent
	Signature    Signature

	block Block
}

func DecodeUCAN(b Block) (*UCAN, error)        { panic("not yet") }
func SignUCAN(s Signer, u UCAN) (*UCAN, error) { panic("not yet") } // sets Issuer and Signature
func (u *UCAN) Encode() (Block, error)         { panic("not yet") } // from the fields
func (u *UCAN) Block() Block                   { panic("not yet") } // as decoded or signed
func (u *UCAN) Link() cid.Cid                  { panic("not yet") }
func (u *UCAN) Verify(v Verifier) error        { panic("not yet") }
func (u *UCAN) Links(yield func(cid.Cid) bool) { panic("not yet") } // links in caveats and facts

// Result is the outcome of a task: exactly one of OK and Error is set, each one canonical CBOR value.
type Result struct{ OK, Error []byte }

// Receipt is the signed outcome of a task.
type Receipt struct {
	Ran       cid.Cid
	Out       Result
	Fork      []cid.Cid
	Join      cid.Cid // cid.Undef: none
	Meta      []byte  // canonical CBOR map; nil: empty
	Issuer    DID     // undefined: absent
	Proofs    []cid.Cid
	Signature Signature

	block Block
}

func DecodeReceipt(b Block) (*Receipt, error)           { panic("not yet") }
func SignReceipt(s Signer, r Receipt) (*Receipt, error) { panic("not yet") } // sets Issuer and Signature
func (r *Receipt) Encode() (Block, error)               { panic("not yet") }
func (r *Receipt) Block() Block                         { panic("not yet") }
func (r *Receipt) Link() cid.Cid                        { panic("not yet") }
func (r *Receipt) Verify(v Verifier) error              { panic("not yet") }

// Message is an agent message, "ucanto/message@7.0.0".
type Message struct {
	execute []cid.Cid
}

// DecodeMessage decodes a CAR whose one root is the message, all invocations of `execute` and their proofs, and all
// receipts of `report`. The message aliases b.
func DecodeMessage(b []byte, l Limits) (*Message, error) { panic("not yet") }

func (m *Message) Invocations() []*UCAN          { panic("not yet") } // in the order of execute
func (m *Message) Receipts() []*Receipt          { panic("not yet") } // in the order of report
func (m *Message) Receipt(task cid.Cid) *Receipt { panic("not yet") } // nil: not reported
func (m *Message) Blocks() []Block               { panic("not yet") } // all but the root
func (m *Message) Block(c cid.Cid) (Block, bool) { panic("not yet") }
func (m *Message) UCAN(c cid.Cid) (*UCAN, error) { panic("not yet") } // (nil, nil): not included
func (m *Message) Export(u *UCAN) []Block        { panic("not yet") } // proofs, attached blocks, u: the order of JS

// AddInvocation and AddReceipt build a message; the extra blocks come before the root of the thing added, each once.
func (m *Message) AddInvocation(u *UCAN, with ...Block) { panic("not yet") }
func (m *Message) AddReceipt(r *Receipt, with ...Block) { panic("not yet") }

// Encode returns the CAR, byte for byte as the JavaScript implementation writes it.
func (m *Message) Encode() []byte { panic("not yet") }
