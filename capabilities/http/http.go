// Package http is the contract of http/put (w3-blob protocol): whoever has the bytes of a blob sends them to where they were allocated.
package http

import (
	"encoding/base64"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// PutAbility is the ability of whoever delivers bytes.
const PutAbility = "http/put"

// Put asks the principal of a blob ([blob.Digest.Provider]) to deliver it. Where to is in the receipt of blob/allocate.
type Put struct {
	Body    blob.Blob
	URL     capabilities.Await
	Headers capabilities.Await
}

// Ability implements [capabilities.Caveats].
func (*Put) Ability() string { return PutAbility }

// Fields implements [capabilities.Struct].
func (p *Put) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "body", Value: &p.Body}, {Key: "url", Value: &p.URL}, {Key: "headers", Value: &p.Headers}}
}

// PutOK says that the bytes were sent.
type PutOK struct{}

// Fields implements [capabilities.Struct].
func (*PutOK) Fields() []capabilities.Field { return nil }

// KeysFact is the fact of an http/put that hands its principal's key to whoever executes it: {keys: {id, keys: {[id]: key}}}.
func KeysFact(provider capabilities.Signer) ([]byte, error) {
	// Format is the same bytes in base64, behind an "M".
	key, err := base64.StdEncoding.DecodeString(provider.Format()[1:])
	if err != nil {
		return nil, err
	}
	id := provider.DID().String()
	b := cbor.AppendText(cbor.AppendMap(nil, 1), "keys")
	b = cbor.AppendText(cbor.AppendText(cbor.AppendMap(b, 2), "id"), id)
	b = cbor.AppendText(cbor.AppendMap(cbor.AppendText(b, "keys"), 1), id)
	return cbor.AppendBytes(b, key), nil
}
