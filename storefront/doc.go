// Package storefront is the role that takes pieces from agents, has them validated, hands them on, and answers for them.
//
// A piece here is one row: identity (piece, content, nonce), state, and the receipts that the storefront issues for it.
//
//	           filecoin/offer                                  compute/piececid            piece/offer
//	agent ──────────────────▶ submitted ── content in custody ──────────────────▶ validated ──────────▶ offered
//	                            │   │                                │                                     │ piece/accept
//	   7 days without content   │   │ bytes of the content           │                                     ▼
//	expired ◀───────────────────┘   └─ give another piece ─▶ invalid │                                aggregated
//	   └── offered again: submitted                                  │                                     │ aggregate/accept
//	                                                      failed ◀───┴── attempts exhausted ───────────────┤
//	                                                                                                       ▼
//	                                                                                                     dealt
//
// A piece that the aggregator kept apart from those of others, and ended after 14 days as too little came with it, is expired too: its chain ends there, and
// says nothing about the pair.
//
// Every state that waits shows a reason, since when, and the next try. Only invalid, failed and dealt are terminal: the receipt of filecoin/accept
// is issued with the commit that enters them, once.
//
// service.go holds the capabilities, events.go the messages (one method each, safe to repeat, in any order), validate.go how a piece is judged, conclude.go how offers
// end, records.go the rows.
package storefront
