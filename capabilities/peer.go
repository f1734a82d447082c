package capabilities

// Peer is another role as this one reaches it.
type Peer struct {
	DID  DID
	Conn Conn
	// Proofs are the peer's standing delegations that allow this role to invoke on it; none where both share one DID.
	Proofs []Delegation
}

// Terms returns the terms of a task for the peer: the proofs that it needs, and a nonce where there is one.
func (p Peer) Terms(issuer DID, nonce string) Terms {
	if p.DID == issuer {
		return Terms{Nonce: nonce}
	}
	return Terms{Nonce: nonce, Proofs: p.Proofs}
}
