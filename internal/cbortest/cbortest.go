// Package cbortest takes DAG-CBOR maps apart and puts them together again, with whatever a test wants to be wrong about them.
package cbortest

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// Fields is a map with its values still encoded.
type Fields map[string][]byte

// Split takes an encoded map apart.
func Split(t testing.TB, b []byte) Fields {
	t.Helper()
	m := Fields{}
	r := cbor.NewReader(b)
	for range r.Map() {
		key := string(r.Key())
		m[key] = r.Raw()
	}
	if err := r.Done(); err != nil {
		t.Fatal(err)
	}
	return m
}

// Join encodes the map, with its keys in the order that the format wants.
func (m Fields) Join() []byte {
	b := cbor.AppendMap(nil, len(m))
	for _, key := range slices.SortedFunc(maps.Keys(m), cbor.CompareKeys) {
		b = append(cbor.AppendText(b, key), m[key]...)
	}
	return b
}

// With returns a copy in which key has the value, or is missing if that is nil.
func (m Fields) With(key string, value []byte) Fields {
	changed := maps.Clone(m)
	if changed[key] = value; value == nil {
		delete(changed, key)
	}
	return changed
}

// Array encodes an array of encoded items.
func Array(items ...[]byte) []byte {
	return append(cbor.AppendArray(nil, len(items)), bytes.Join(items, nil)...)
}
