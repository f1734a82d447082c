// Package client is the library of those who use the roles from outside: agents that offer content, and everyone who follows and verifies what
// became of it. It links no server.
//
// [Dial] reaches a role, [Offer] offers a piece, [Follow] collects the chain of signed receipts from an offer to its end, and [Chain.Verify] checks
// such a chain offline: signatures, issuers, links, the inclusion of the piece in its aggregate, and the deal.
package client
