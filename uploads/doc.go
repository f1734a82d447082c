// Package uploads takes content from agents into custody by the w3-blob protocol, as published clients speak it.
//
//	agent                         storefront                                      bucket
//	  │ space/blob/add {blob}         │                                              │
//	  ├──────────────────────────────▶│ address for exactly these bytes              │
//	  │◀── forks blob/allocate,       │                                              │
//	  │    http/put, blob/accept ─────┤                                              │
//	  │ PUT bytes                     │                                              │
//	  ├───────────────────────────────┼─────────────────────────────────────────────▶│ checks length and digest
//	  │ ucan/conclude: http/put       │                                              │
//	  ├──────────────────────────────▶│ is it there, whole? ────────────────────────▶│
//	  │◀── receipt of blob/accept ────┤ claims where it can be read (assert/location)│
//
// Anybody can conclude http/put, because its key follows from the digest: it only says that it is worth looking. What counts is what the
// bucket has verified. If the blob is there already, nothing is allocated, and the receipts of http/put and blob/accept come at once.
//
// An upload ends when blob/accept is concluded: with the claim, or, if the address expired before the bytes came, with
// AllocatedMemoryHadNotBeenWrittenTo. Every space/blob/add has tasks of its own, so that failure says nothing about another try.
//
// Limits of a day bound what is allocated, by number and bytes, for each agent and space: by the accounts of package standing, under names of their own. The
// charge comes before the address, because what has an address may come; it is not given back if nothing comes, as the account ends with the day. What
// is there already costs nothing, nor does a blob that is added to its space again while the address that was charged for is good.
//
// The rows are those of the tasks, one per blob and space, and one per blob that a space was charged with, until its address has expired. service.go
// holds the capabilities, admission.go the limits, events.go the messages (one method each, safe to repeat, in any order), records.go the rows.
package uploads
