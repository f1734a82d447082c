package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

// peer returns a neighbour as the role in `of` reaches it: in this process with a delegation made on the spot, or remote as configured.
func (n *node) peer(name, of, can string, remote Neighbour) (capabilities.Peer, error) {
	if n.cfg.runs(name) {
		p := capabilities.Peer{DID: n.signers[name].DID(), Conn: &local{n, name}}
		if can == "" || p.DID == n.signers[of].DID() {
			return p, nil
		}
		d, err := capabilities.Delegate(n.signers[name], n.signers[of].DID(), []capabilities.Grant{{Can: can, With: p.DID.String()}}, capabilities.Terms{})
		p.Proofs = []capabilities.Delegation{d}
		return p, err
	}
	return n.remote(name, of, can, remote)
}

// remote returns a neighbour in another process, as configured.
func (n *node) remote(name, of, can string, remote Neighbour) (capabilities.Peer, error) {
	did, err := wire.ParseDID(remote.DID)
	if err != nil {
		return capabilities.Peer{}, fmt.Errorf("%s.%s.did: %w", of, name, err)
	}
	p := capabilities.Peer{DID: did, Conn: client.Dial(remote.URL, nil)}
	if remote.Proof == "" {
		return p, nil
	}
	b, err := os.ReadFile(remote.Proof)
	if err != nil {
		return p, usage("ask the operator of the "+name+" for it", "reading the delegation of the %s: %v", name, err)
	}
	d, err := capabilities.Extract(b)
	if err != nil {
		return p, fmt.Errorf("%s: %w", remote.Proof, err)
	}
	if err := n.checkProof(d, did, n.signers[of].DID(), can); err != nil {
		return p, usage("ask the operator of the "+name+" for another one", "%s: %v", remote.Proof, err)
	}
	p.Proofs = []capabilities.Delegation{d}
	return p, nil
}

// checkProof refuses a standing delegation that cannot do what it is for. One that expires is among them: tasks signed with it would become void while
// they wait.
func (n *node) checkProof(d capabilities.Delegation, from, to capabilities.DID, can string) error {
	switch {
	case d.Issuer != from:
		return fmt.Errorf("it was issued by %s, not by %s", d.Issuer, from)
	case d.Audience != to:
		return fmt.Errorf("it is for %s, this role is %s", d.Audience, to)
	case d.Expiration != nil:
		return fmt.Errorf("it expires on %s: delegations between services must not", time.Unix(*d.Expiration, 0).UTC())
	}
	claim := wire.Capability{Can: can, With: from.String()}
	for _, c := range d.Capabilities {
		if capabilities.Covers(c, claim) == nil {
			return nil
		}
	}
	return fmt.Errorf("it does not delegate %s on %s", can, from)
}

// registered returns who may invoke on a role, and how receipts are pushed to them. A role of this process is always among them.
func (n *node) registered(name string, list []Registered) (map[string]Registered, func(string) (capabilities.Conn, bool)) {
	known := map[string]Registered{}
	conns := map[string]capabilities.Conn{}
	for _, r := range list {
		known[r.DID] = r
		if r.URL != "" {
			conns[r.DID] = client.Dial(r.URL, nil)
		}
	}
	if n.cfg.runs(name) {
		did := n.signers[name].DID().String()
		known[did] = Registered{DID: did}
		conns[did] = &local{n, name}
	}
	return known, func(did string) (capabilities.Conn, bool) {
		c, ok := conns[did]
		return c, ok
	}
}

// local reaches a role of the same process. It looks the role up when it is called, because roles reach each other in circles.
type local struct {
	n    *node
	name string
}

func (l *local) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	return roles.Local{Server: l.n.roles[l.name].server}.Execute(ctx, m)
}

func (l *local) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	return roles.Local{Server: l.n.roles[l.name].server}.Receipt(ctx, task)
}
