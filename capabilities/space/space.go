// Package space is the contract of what agents do with the content of a space: space/blob/add, space/blob/get/0/1, space/blob/list,
// space/blob/remove (w3-blob protocol) and space/index/add (w3-index protocol).
package space

import (
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Abilities over a space.
const (
	BlobAddAbility    = "space/blob/add"
	BlobGetAbility    = "space/blob/get/0/1"
	BlobListAbility   = "space/blob/list"
	BlobRemoveAbility = "space/blob/remove"
	IndexAddAbility   = "space/index/add"
)

// BlobAdd asks to store a blob in the space.
type BlobAdd struct {
	Blob blob.Blob
}

// Ability implements [capabilities.Caveats].
func (*BlobAdd) Ability() string { return BlobAddAbility }

// Fields implements [capabilities.Struct].
func (a *BlobAdd) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &a.Blob}}
}

// BlobAddOK names the task whose receipt links the claim of where the blob is. The receipt forks blob/allocate, http/put and blob/accept, and one
// ucan/conclude for each of them that is concluded already.
type BlobAddOK struct {
	Site capabilities.Await
}

// Fields implements [capabilities.Struct].
func (o *BlobAddOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "site", Value: &o.Site}}
}

// BlobGet asks for one blob of the space.
type BlobGet struct {
	Digest blob.Digest
}

// Ability implements [capabilities.Caveats].
func (*BlobGet) Ability() string { return BlobGetAbility }

// Fields implements [capabilities.Struct].
func (g *BlobGet) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "digest", Value: &g.Digest}}
}

// Item is one blob of a space.
type Item struct {
	Blob       blob.Blob
	Cause      cid.Cid // task space/blob/add
	InsertedAt string  // RFC 3339, UTC
}

// Fields implements [capabilities.Struct].
func (i *Item) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "blob", Value: &i.Blob}, {Key: "cause", Value: &i.Cause}, {Key: "insertedAt", Value: &i.InsertedAt}}
}

// BlobList asks for the blobs of the space, a page at a time.
type BlobList struct {
	Cursor string
	Size   uint64 // blobs of a page; 0: as many as the service likes
}

// Ability implements [capabilities.Caveats].
func (*BlobList) Ability() string { return BlobListAbility }

// Fields implements [capabilities.Struct].
func (l *BlobList) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "cursor", Value: &l.Cursor, Optional: true}, {Key: "size", Value: &l.Size, Optional: true}}
}

// BlobListOK is a page. Cursor is absent from the last one.
type BlobListOK struct {
	Cursor  string
	Size    uint64
	Results Items
}

// Fields implements [capabilities.Struct].
func (o *BlobListOK) Fields() []capabilities.Field {
	return []capabilities.Field{
		{Key: "cursor", Value: &o.Cursor, Optional: true}, {Key: "size", Value: &o.Size}, {Key: "results", Value: &o.Results},
	}
}

// Items is a list of [Item].
type Items []Item

// AppendCBOR implements [capabilities.Codec].
func (l *Items) AppendCBOR(b []byte) []byte { return capabilities.AppendList(b, *l) }

// ReadCBOR implements [capabilities.Codec].
func (l *Items) ReadCBOR(r *cbor.Reader) { *l = capabilities.ReadList[Item](r) }

// IsZero implements [capabilities.Codec].
func (l *Items) IsZero() bool { return len(*l) == 0 }

// BlobRemove asks to take a blob out of the space.
type BlobRemove struct {
	Digest blob.Digest
}

// Ability implements [capabilities.Caveats].
func (*BlobRemove) Ability() string { return BlobRemoveAbility }

// Fields implements [capabilities.Struct].
func (x *BlobRemove) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "digest", Value: &x.Digest}}
}

// BlobRemoveOK says how many bytes the space has less: 0 if the blob was not in it.
type BlobRemoveOK struct {
	Size uint64
}

// Fields implements [capabilities.Struct].
func (o *BlobRemoveOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "size", Value: &o.Size}}
}

// IndexAdd asks to publish an index of a DAG that was stored in the space.
type IndexAdd struct {
	Index cid.Cid // CAR that holds the index
	// Content is the root of the DAG. Optional.
	Content cid.Cid
}

// Ability implements [capabilities.Caveats].
func (*IndexAdd) Ability() string { return IndexAddAbility }

// Fields implements [capabilities.Struct].
func (a *IndexAdd) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "index", Value: &a.Index}, {Key: "content", Value: &a.Content, Optional: true}}
}

// IndexAddOK is an empty map.
type IndexAddOK struct{}

// Fields implements [capabilities.Struct].
func (*IndexAddOK) Fields() []capabilities.Field { return nil }
