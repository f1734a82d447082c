package store

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// The encoding of values and message bodies: CBOR, core deterministic (RFC 8949, 4.2), read back strictly.
//
// Struct fields are named by tags, `cbor:"1,keyasint"` or a short text. CIDs, and other types that marshal themselves to
// binary, are byte strings. An optional CID needs `omitzero`: an undefined one has no encoding. Times keep their
// nanoseconds; write UTC. A field may be added to a struct, and is zero in rows written before; an unknown field is an error, so that an
// older program refuses a newer row rather than drop what it does not know.
var (
	encoding = must(encodingOptions().EncMode())
	decoding = must(decodingOptions().DecMode())
)

func encodingOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeRFC3339Nano
	o.TagsMd = cbor.TagsForbidden
	return o
}

func decodingOptions() cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   16,
		MaxArrayElements:  MaxValue, // an element takes a byte at least
		MaxMapPairs:       MaxValue / 2,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}
}

// must is for options that are constants of this file.
func must[M any](mode M, err error) M {
	if err != nil {
		panic(err)
	}
	return mode
}

// Encode returns the deterministic encoding of a value or a message body.
func Encode(v any) ([]byte, error) {
	b, err := encoding.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return b, nil
}

// Decode reads what [Encode] wrote into the value that v points to. It refuses trailing bytes, unknown and repeated fields.
func Decode(b []byte, v any) error {
	if err := decoding.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decoding %T: %w", v, err)
	}
	return nil
}
