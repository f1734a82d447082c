package uploads

import (
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/store"
)

// Item is a blob in a space, under `space/{space}` and the multihash in base58. It stays when the blob is removed, so that a message of the
// past does not bring the blob back.
type Item struct {
	Size   uint64  `cbor:"s"` // bytes
	Cause  cid.Cid `cbor:"c"` // task space/blob/add
	Accept cid.Cid `cbor:"a"` // task blob/accept
	// At is when blob/accept was concluded, Removed when the blob was removed from the space: milliseconds since the Unix epoch. It is in
	// the space if At is later.
	At      int64 `cbor:"t"`
	Removed int64 `cbor:"r,omitzero"`
}

func (i *Item) present() bool { return i.At > i.Removed }

func spacePartition(did string) string { return "space/" + did }

func itemKey(did string, digest blob.Digest) store.Key {
	return store.Key{Partition: spacePartition(did), Sort: multihash.Multihash(digest).B58String()}
}

// Allocation is what a space was charged with for a blob that it may send, where uploads are limited, under `allocation/{space}` and the multihash in base58.
type Allocation struct {
	Size    uint64 `cbor:"s"` // bytes
	Expires int64  `cbor:"e"` // of the address: milliseconds since the Unix epoch
}

func (a *Allocation) good(now time.Time) bool { return now.UnixMilli() < a.Expires }

func allocationKey(did string, digest blob.Digest) store.Key {
	return store.Key{Partition: "allocation/" + did, Sort: multihash.Multihash(digest).B58String()}
}

func (i *Item) item(digest blob.Digest) space.Item {
	return space.Item{Blob: blob.Blob{Digest: digest, Size: i.Size}, Cause: i.Cause, InsertedAt: moment(i.At)}
}
