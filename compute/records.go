package compute

import (
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store"
)

// State is where a job stands. A job that is done has a receipt and no row.
type State string

// The states of a job.
const (
	Running State = "running"
	Failed  State = "failed" // nothing with the content's hash was to be had
)

// Job is the work for one task, under `job/{task}`.
type Job struct {
	// Task is the encoded message with the invocation and its proofs.
	Task      []byte     `cbor:"m"`
	Content   cid.Cid    `cbor:"c"`
	Invoker   string     `cbor:"i"`
	Locations []Location `cbor:"l"`
	State     State      `cbor:"s"`
	// Try counts the attempts. A message of another one than the row's does nothing.
	Try   int   `cbor:"t"`
	Since int64 `cbor:"b"` // the state was entered, in milliseconds since the Unix epoch
	// Push: the invoker was told that the receipt comes later. Nobody else gets it pushed: they wait for it, or ask again.
	Push bool `cbor:"p,omitzero"`
	// Reason is why it failed, Told whether the invoker knows.
	Reason string `cbor:"r,omitzero"`
	Told   bool   `cbor:"d,omitzero"`
}

// Location is an address that the content may be read at.
type Location struct {
	URL string `cbor:"u"`
	// Offset and Length are the part of the bytes there that is the content; Length 0 means to their end.
	Offset uint64 `cbor:"o,omitzero"`
	Length uint64 `cbor:"l,omitzero"`
}

func jobKey(task cid.Cid) store.Key { return store.Key{Partition: "job/" + task.String()} }

// jobListing lists the jobs of a content.
func jobListing(content, task cid.Cid) store.Listing {
	return store.Listing{Index: "content/" + content.Hash().B58String(), Sort: task.String()}
}

func (j *Job) enter(s State, now time.Time) {
	j.State, j.Since, j.Reason, j.Told = s, now.UnixMilli(), "", false
}

// Result is the piece that bytes with a hash gave, under `result/{multihash}`: a fact, whoever asked.
type Result struct {
	Piece piece.Link `cbor:"p"`
	Size  int64      `cbor:"s"` // bytes of content
	Task  cid.Cid    `cbor:"t"` // that asked first
	At    int64      `cbor:"a"`
}

func resultKey(content cid.Cid) store.Key {
	return store.Key{Partition: "result/" + content.Hash().B58String()}
}
