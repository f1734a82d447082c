package wire

import "github.com/storacha/w3filecoin/wire/cbor"

// Payload returns what is signed in u.
func (u *UCAN) Payload() ([]byte, error) { return u.payload(u.Signature.Algorithm(), cbor.Go) }

// WithSignature does what SignReceipt does, with a signature made before.
func (rc Receipt) WithSignature(sig Signature) (*Receipt, error) {
	return rc.sign(func([]byte) Signature { return sig })
}
