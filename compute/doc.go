// Package compute is the role that fetches content near where it lies and computes its piece CID: the validator of pieces.
//
//	           compute/piececid             bytes with the content's hash
//	storefront ────────────────▶ running ────────────────────────────────▶ done: the receipt is issued, once
//	                              │   ▲
//	   no address has such bytes  ▼   │ asked again: later, or with other addresses
//	                             failed
//
// Where content lies is said by claims (assert/location) of whoever asks, which come with the invocation. They are hints for fetching: what is fetched
// counts only if it hashes to the content CID, and content and piece are computed from the same pass over the bytes.
//
// The work outlives the connection that asked for it: the invocation is answered when the piece is there, or with "accepted" when that takes long, and
// the receipt is pushed once it is there. Asking again costs nothing. Only the piece of proven bytes, and content that no piece can be computed
// for whatever its bytes are (UnsupportedContent), have receipts that are kept. That nothing could be fetched is told
// (ContentNotFoundError) and not kept: it is true of a moment.
//
// service.go holds the capability, events.go one method per message (each safe to repeat, in any order), claims.go what is believed of
// claims, records.go the rows.
package compute
