package wire

import "github.com/storacha/w3filecoin/wire/cbor"

// Payload returns what is signed in u.
func (u *UCAN) Payload() ([]byte, error) { return u.payload(u.Signature.Algorithm(), cbor.Go) }

// WithSignature does what SignReceipt does, with a signature made before.
func (rc Receipt) WithSignature(sig Signature) (*Receipt, error) {
	return rc.sign(func([]byte) Signature { return sig })
}

// Payloads returns what may be signed in u, in either spelling; nil where there is none.
func (u *UCAN) Payloads() (golang, script []byte) {
	golang, _ = u.payload(u.Signature.Algorithm(), cbor.Go)
	script, _ = u.payload(u.Signature.Algorithm(), cbor.JavaScript)
	return golang, script
}
