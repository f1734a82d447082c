// Package ingest offers what is stored in buckets because it was stored there: it follows the events of buckets, as stores send them to a queue, and
// offers the piece of each new object to the storefront that it is part of.
//
// [Decode] reads the events of S3 (notifications, and by EventBridge) and R2. An [Ingester] handles messages of them, each as often as it comes:
//
//	message ──▶ events ──▶ object looked at ──▶ bytes hashed, or ──▶ in custody? ──▶ filecoin/offer ──▶ row ──▶ message deleted
//	               │              │              a provider asked        │ no               │
//	               │              └ gone: nothing to do                  └ copied, if       └ refused for good
//	               └ of something else: nothing to do                      it is to be          or
//	                                                                                      for now: the message comes again
//
// A message is deleted when each of its events is done: acknowledged by the storefront, nothing to do, or a dead letter that an operator can list,
// read, retry and drop. The row of an object remembers what was offered, so that an event that comes twice costs one look at the object.
package ingest
