// Package upload is the contract of upload/add: a DAG that was stored in a space, listed by its root.
package upload

import (
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
)

// AddAbility lists a DAG in a space.
const AddAbility = "upload/add"

// Add lists a DAG. The shards are the CARs that hold it; more of them may be added later.
type Add struct {
	Root   cid.Cid
	Shards ucan.Links
}

// Ability implements [capabilities.Caveats].
func (*Add) Ability() string { return AddAbility }

// Fields implements [capabilities.Struct].
func (a *Add) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "root", Value: &a.Root}, {Key: "shards", Value: &a.Shards, Optional: true}}
}

// AddOK repeats what was listed.
type AddOK struct {
	Root   cid.Cid
	Shards ucan.Links
}

// Fields implements [capabilities.Struct].
func (o *AddOK) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "root", Value: &o.Root}, {Key: "shards", Value: &o.Shards, Optional: true}}
}
