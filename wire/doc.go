// Package wire is the byte format of the UCAN 0.9.1 / ucanto protocol: principals and their keys, UCANs, receipts, the
// agent messages and archives that carry them, and the CARs beneath. It is the guard at the edge, and all of
// the hot path but the signatures.
//
// What it guarantees:
//
//   - Strictness. Every block read has the hash that its CID names. Everything is canonical DAG-CBOR (package cbor),
//     varints are in their shortest form, there are no unknown fields, and the optional fields of UCANs and receipts
//     are absent rather than empty: decoding and encoding one gives the same bytes. What is signed has one encoding
//     and one CID, and nobody but the signer can make a second one.
//   - Safety. No input makes a decoder panic, and time and memory stay in proportion to the size of the input. Counts
//     and depths are bounded by Limits; the size of the whole input is for the caller to bound.
//   - Fidelity. What the JavaScript implementation (@ucanto/core 10, @ipld/dag-ucan 3) writes decodes, and encodes to
//     the same bytes: UCANs, receipts, and the CARs of requests and replies, block order included. UCANs and receipts
//     signed here have the CIDs that the JavaScript and the Go implementation give them.
//
// It does not judge authority: that a chain of proofs grants what an invocation claims, that nothing is expired or
// revoked, is decided elsewhere. It uses neither clock nor network.
//
// Where the two implementations differ, or accept more than they write, this package sides with:
//
//   - an ability as JavaScript demands: "*", or lower case with a "/" inside; a resource that begins like a URI;
//   - caveats and facts that are maps;
//   - UCANs under CIDs of version 1, DAG-CBOR and SHA2-256 only: neither JWT blocks nor inlined ones;
//   - did:key of the types Ed25519, RSA, P-256 and secp256k1, of which the first two can be verified;
//   - signatures over either spelling of the JSON payload where the two spell differently (cbor.Spelling).
//
// Decoded values share memory with the input, which must not be changed afterwards. Decoded values may be used by many
// goroutines at once.
package wire

import (
	"cmp"
	"errors"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// The errors that callers switch on, with errors.Is. Every decoder returns one of the first two, wrapped with detail.
var (
	// ErrMalformed means that the input breaks the format.
	ErrMalformed = cbor.ErrMalformed
	// ErrLimit means that the input has more of something than Limits allow; it may be well formed.
	ErrLimit = errors.New("limit exceeded")
	// ErrSignature means that a signature was not made by the key at hand, or not in the name of that DID.
	ErrSignature = errors.New("signature does not verify")
)

// Version is the UCAN version of this package, the only one it reads and writes.
const Version = "0.9.1"

// Limits bound what a decoder accepts. A zero field means its default.
type Limits struct {
	Invocations int // in a message; default 100
	Receipts    int // in a message; default 1,000
	Proofs      int // that an invocation reaches, distinct, included or not; also in a receipt; default 64
	ProofDepth  int // of the chain below an invocation; default 8
	Blocks      int // in a CAR; default 10,000
	BlockSize   int // bytes of one block; default 32 MiB
}

func (l Limits) withDefaults() Limits {
	l.Invocations = cmp.Or(l.Invocations, 100)
	l.Receipts = cmp.Or(l.Receipts, 1000)
	l.Proofs = cmp.Or(l.Proofs, 64)
	l.ProofDepth = cmp.Or(l.ProofDepth, 8)
	l.Blocks = cmp.Or(l.Blocks, 10_000)
	l.BlockSize = cmp.Or(l.BlockSize, 32<<20)
	return l
}
