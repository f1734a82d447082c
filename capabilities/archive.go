package capabilities

import (
	"fmt"

	"github.com/storacha/w3filecoin/wire"
)

// Archive returns a delegation with its proofs as one CAR file, in the form that other implementations read.
func Archive(d Delegation) []byte { return wire.EncodeArchive(d.UCAN, d.Proofs...) }

// ReadUCAN decodes the UCAN in a block whose bytes have been checked against its CID.
func ReadUCAN(b Block) (*UCAN, error) { return wire.DecodeUCAN(b) }

// Extract reads what [Archive] wrote. The delegation is well formed; whether it grants anything is not checked.
func Extract(b []byte) (Delegation, error) {
	u, blocks, err := wire.DecodeArchive(b, wire.Limits{})
	if err != nil {
		return Delegation{}, fmt.Errorf("reading a delegation: %w", err)
	}
	m := new(Message)
	m.AddInvocation(u, blocks...)
	return TaskOf(m, u), nil
}
