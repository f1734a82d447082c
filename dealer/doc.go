// Package dealer is the role that checks an aggregate, gets it into deals through brokers, and reports success.
//
//	           aggregate/offer            a broker has it              the tracker knows enough active deals
//	aggregator ───────────────▶ offered ──────────────────▶ published ──────────────────────────────────────▶ dealt
//
// An aggregate here is one row: identity (aggregate, list of pieces, nonce), state, and the receipt of aggregate/accept. The list belongs to the
// identity because two lists can give one aggregate: pieces that differ in their padding alone have equal roots, and the task aggregate/accept
// names the list.
//
// Before it acknowledges an offer the dealer recomputes the aggregate from the list of pieces. A list that does not give the aggregate is refused for
// good (AggregateMismatch), which means that the aggregator is broken: it is logged as an error. That is the only refusal that is stored; any
// other one (a deal size that no broker takes) may end when an operator changes something, and has no receipt.
//
// An aggregate is published as soon as one broker has it, since one is enough for a deal; the others are tried until they have it too, or a deal is
// there. From the offer on the deal tracker is asked, less and less often, because a deal counts whoever brought it about. The
// receipt of aggregate/accept is issued with the commit that enters dealt, once; which deals there are later shows in deal/info only.
//
// What does not happen yet: an aggregate never fails. Its row counts the providers that were tried and lost, the rows of its offers to brokers
// their tries; the receipt that names culprits and forks piece/offer for the good pieces, here and for AggregateMismatch, follows
// from those.
//
// service.go holds the capabilities, events.go one method per message (each safe to repeat, in any order), policy.go what makes a success,
// records.go the rows.
package dealer
