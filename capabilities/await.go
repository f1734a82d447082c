package capabilities

import (
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// Await stands for a value that another task will give: {"ucan/await": [selector, task]}.
type Await struct {
	// Selector is the path of the value in the task's receipt, like ".out.ok.site".
	Selector string
	Task     cid.Cid
}

// Fields implements [Struct].
func (a *Await) Fields() []Field {
	return []Field{{Key: "ucan/await", Value: (*awaited)(a)}}
}

// awaited is the tuple of an [Await].
type awaited Await

func (a *awaited) IsZero() bool { return a.Selector == "" && !a.Task.Defined() }

func (a *awaited) AppendCBOR(b []byte) []byte {
	b = cbor.AppendText(cbor.AppendArray(b, 2), a.Selector)
	return cbor.AppendLink(b, a.Task)
}

func (a *awaited) ReadCBOR(r *cbor.Reader) {
	if n := r.Array(); n != 2 && r.Err() == nil {
		r.Failf("ucan/await has %d elements, want a selector and a task", n)
		return
	}
	a.Selector = r.Text()
	a.Task = r.Link()
}
