package capabilities

import (
	"fmt"

	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// archiveKey marks the root block of an archive, as @ucanto/core and go-ucanto write it.
const archiveKey = "ucan@" + wire.Version

// Archive returns a delegation with its proofs as one CAR file, in the form that other implementations read.
func Archive(d Delegation) []byte {
	root := wire.EncodeBlock(cbor.AppendLink(cbor.AppendText(cbor.AppendMap(nil, 1), archiveKey), d.Link()))
	return wire.AppendCAR(nil, []Link{root.CID}, append(d.Blocks(), root))
}

// Extract reads what [Archive] wrote. The delegation is well formed; whether it grants anything is not checked.
func Extract(b []byte) (Delegation, error) {
	roots, blocks, err := wire.ReadCAR(b, wire.Limits{})
	if err != nil {
		return Delegation{}, fmt.Errorf("reading a delegation: %w", err)
	}
	if len(roots) != 1 {
		return Delegation{}, fmt.Errorf("reading a delegation: %d roots, want one", len(roots))
	}
	m := new(Message)
	var link Link
	for _, blk := range blocks {
		if blk.CID.Equals(roots[0]) {
			r := cbor.NewReader(blk.Bytes)
			if r.Map() == 1 && string(r.Key()) == archiveKey {
				link = r.Link()
			}
			if err := r.Done(); err != nil {
				return Delegation{}, fmt.Errorf("reading a delegation: %w", err)
			}
		}
	}
	if !link.Defined() {
		return Delegation{}, fmt.Errorf("reading a delegation: the root block is not one of an archive")
	}
	for _, blk := range blocks {
		if blk.CID.Equals(link) {
			u, err := wire.DecodeUCAN(blk)
			if err != nil {
				return Delegation{}, fmt.Errorf("reading a delegation: %w", err)
			}
			m.AddInvocation(u, blocks...)
			return TaskOf(m, u), nil
		}
	}
	return Delegation{}, fmt.Errorf("reading a delegation: its block is missing")
}
