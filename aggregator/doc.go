// Package aggregator is the role that packs pieces into one large FRC-0058 aggregate and proves each inclusion. One aggregator serves
// many storefronts.
//
//	 piece/offer                    plan, claim, build                  aggregate/offer        aggregate/accept
//	────────────▶ piece: pending ──────────────────▶ piece: aggregated
//	                        └── 14 days in quarantine ─▶ piece: ended
//	                                                aggregate: offered ─────────────▶ published ───────▶ dealt | failed
//
// A piece is one row: identity (piece, group, nonce), state, plan. While it is pending, a sparse index (lane and height, age) lists it.
// The index is a hint; the row is the truth. A lane closes in steps that any replica can resume:
//
//  1. the lane's row is swapped to name a plan; there is one plan per lane at a time;
//  2. the plan writes its candidates, chosen from the index, as a blob, and names it in its own row;
//  3. each candidate's row is claimed by compare-and-swap (no plan yet → this plan); whoever else wanted it has lost;
//  4. only claimed rows enter the aggregate, in descending size; their exact order is written as a blob;
//  5. the aggregate's row is created if it is not there, and the lane is freed.
//
// Pieces of storefronts, or agents, whose offers were proven wrong wait in lanes of their own, which may never fill an aggregate. After 14 days such a
// piece is claimed for no plan and ends: its receipt of piece/accept says so.
//
// The receipts of piece/accept are pure functions of the plan and the key: one walk over the aggregate makes them, a page at a time, and sends each
// storefront its own.
//
// service.go holds the capabilities, events.go the messages (one method each, safe to repeat, in any order), close.go how a lane closes, policy.go what goes
// into an aggregate, walk.go the receipts, quarantine.go how pieces end without an aggregate, records.go the rows.
package aggregator
