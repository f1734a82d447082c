// Package chain says what Filecoin says: it reads the storage market's deals from a Lotus or Forest node over JSON-RPC and
// implements dealtracker.Source with them.
//
// # What is read
//
// The market actor f05 emits an event when a deal is published, activated, terminated or completed (FIP-0083). An event names the
// deal, its client and its provider, but not its piece, so each deal found is looked up once in the market's state.
//
//	ChainHead                             how far the chain is
//	ChainGetTipSet {"tag":"finalized"}    what cannot change any more (API v2); else ChainGetFinalizedTipSet, else a fixed depth
//	GetActorEventsRaw                     events of f05, by ranges of at most 2,880 epochs
//	StateMarketStorageDeal                the proposal behind an event
//	StateLookupID                         actor ids of configured clients
//	ChainGetTipSetAfterHeight,
//	ChainGetParentReceipts                the second witness, see below
//
// # Trust, but compare
//
// A node whose event index lacks a part of a range answers with what it has, without an error: an index that was switched on late,
// one that was pruned, one that lags behind the head. What it cannot leave out is the receipts of the messages, for they are part
// of the chain. So at the start of each range, and at the end of the last, one tipset is compared: if its receipts say that events
// were emitted and the index has none, the call fails with [ErrHistory]. A tipset that the index does not know at all is an error of
// the node itself. An answer that reaches the node's limit on results may be cut off; such a range is halved and read again.
//
// An event is readable once the tipset after its own has been made, because only that tipset holds the receipts. The head that
// this package reports is therefore one epoch below the node's.
//
// # Reorganisations
//
// Current Lotus answers a range of epochs with the events of the canonical chain only: an event taken back is simply absent from
// the next answer. Older versions list it as reverted, which is passed on. When the same event is listed both ways, because a
// message was taken back and included again, only the one that stands is returned.
package chain
