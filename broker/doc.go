// Package broker holds ways from an aggregate to a deal. Each implements dealer.Broker.
//
// [Documents] is the way of Spade: the dealer drops one JSON document per aggregate under a key that begins with the date, and
// whoever stores data for a living polls the keys of the last days. The documents are kept in the dealer's store and served over HTTP.
package broker
