// Package cbor reads and writes canonical DAG-CBOR, the encoding of every UCAN, receipt, caveat and result, without
// reflection and without a tree of nodes in between.
//
// Exactly one encoding of each value is accepted (https://ipld.io/specs/codecs/dag-cbor/spec/):
//
//   - integers and lengths take their shortest form, and lengths are definite;
//   - map keys are text, unique, sorted by length and then bytewise;
//   - text is valid UTF-8;
//   - the only tag is 42, holding a complete CID after one zero byte;
//   - floats are 64 bits wide and finite; the only simple values are false, true and null;
//   - integers lie between -2^63 and 2^64-1, and containers nest no deeper than MaxDepth;
//   - nothing follows the value.
//
// Readers never panic, never allocate in proportion to a length that the input merely claims, and take time linear in
// the input. They return parts of the input, not copies: the input must not change while a result is in use.
package cbor

import (
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every error about bytes that are not one canonical DAG-CBOR value, or that are not the
// value the caller asked for.
var ErrMalformed = errors.New("malformed")

// MaxDepth is how deep arrays and maps may nest; a scalar has depth zero.
const MaxDepth = 64

// Kind is the kind of a value in the IPLD data model.
type Kind uint8

// The kinds of values. Invalid stands for the end of the input and for bytes that begin no value.
const (
	Invalid Kind = iota
	Null
	Bool
	Int
	Float
	Text
	Bytes
	Link
	Array
	Map
)

// String returns the name of the kind, for error messages.
func (k Kind) String() string {
	switch k {
	case Null:
		return "null"
	case Bool:
		return "bool"
	case Int:
		return "int"
	case Float:
		return "float"
	case Text:
		return "text"
	case Bytes:
		return "bytes"
	case Link:
		return "link"
	case Array:
		return "array"
	case Map:
		return "map"
	default:
		return "invalid"
	}
}

func malformed(off int, format string, args ...any) error {
	return fmt.Errorf("%w: %s (byte %d)", ErrMalformed, fmt.Sprintf(format, args...), off)
}
