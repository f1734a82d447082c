package capabilities

import (
	"fmt"
	"sort"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Struct is a caveat or result of the protocol: a map with known keys. Its fields are bound by pointer, so that one list serves
// reading and writing.
type Struct interface {
	Fields() []Field
}

// Field binds one key of a map to a Go value.
type Field struct {
	Key string
	// Value is a pointer to the Go value: *cid.Cid, *piece.Link, *string, *uint64, *int64, *bool, *[]byte, *[]string, *Raw,
	// a [Codec], or a [Struct] for a nested map.
	Value any
	// Optional fields may be absent, and are not written when they hold their zero value.
	Optional bool
}

// Codec is a value with a form of its own.
type Codec interface {
	AppendCBOR(b []byte) []byte
	ReadCBOR(r *cbor.Reader) // the error stays in r
	// IsZero reports whether an optional field is left out.
	IsZero() bool
}

// Raw is a value kept as its canonical DAG-CBOR bytes.
type Raw []byte

// Encode returns s as canonical DAG-CBOR.
func Encode(s Struct) []byte { return appendStruct(make([]byte, 0, 256), s) }

func appendStruct(b []byte, s Struct) []byte {
	fields := s.Fields()
	sort.Slice(fields, func(i, j int) bool { return cbor.CompareKeys(fields[i].Key, fields[j].Key) < 0 })
	n := 0
	for _, f := range fields {
		if !f.Optional || !isZero(f.Value) {
			n++
		}
	}
	b = cbor.AppendMap(b, n)
	for _, f := range fields {
		if f.Optional && isZero(f.Value) {
			continue
		}
		b = appendValue(cbor.AppendText(b, f.Key), f.Value)
	}
	return b
}

func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case *cid.Cid:
		return cbor.AppendLink(b, *v)
	case *piece.Link:
		return cbor.AppendLink(b, v.CID())
	case *string:
		return cbor.AppendText(b, *v)
	case *uint64:
		return cbor.AppendUint(b, *v)
	case *int64:
		return cbor.AppendInt(b, *v)
	case *bool:
		return cbor.AppendBool(b, *v)
	case *[]byte:
		return cbor.AppendBytes(b, *v)
	case *[]string:
		b = cbor.AppendArray(b, len(*v))
		for _, s := range *v {
			b = cbor.AppendText(b, s)
		}
		return b
	case *Raw:
		return append(b, *v...)
	case Codec:
		return v.AppendCBOR(b)
	case Struct:
		return appendStruct(b, v)
	default:
		panic(fmt.Sprintf("capabilities: no encoding for %T", v))
	}
}

func isZero(v any) bool {
	switch v := v.(type) {
	case *cid.Cid:
		return !v.Defined()
	case *piece.Link:
		return !v.Defined()
	case *string:
		return *v == ""
	case *uint64:
		return *v == 0
	case *int64:
		return *v == 0
	case *bool:
		return !*v
	case *[]byte:
		return len(*v) == 0
	case *[]string:
		return len(*v) == 0
	case *Raw:
		return len(*v) == 0
	case Codec:
		return v.IsZero()
	case Struct:
		for _, f := range v.Fields() {
			if !isZero(f.Value) {
				return false
			}
		}
		return true
	}
	return false
}

// Decode reads s from a canonical DAG-CBOR map. Keys that s does not know are passed over: later versions of the protocol may add
// some. Missing keys and values of another shape are errors that name the key.
func Decode(raw []byte, s Struct) error {
	r := cbor.NewReader(raw)
	ReadStruct(r, s)
	return r.Done()
}

// ReadStruct reads s as a part of what r reads; the error stays in r.
func ReadStruct(r *cbor.Reader, s Struct) {
	fields := s.Fields()
	seen := 0
	for range r.Map() {
		key := r.Key()
		i := 0
		for ; i < len(fields) && fields[i].Key != string(key); i++ {
		}
		if i == len(fields) {
			r.Skip()
			continue
		}
		seen |= 1 << i
		readValue(r, fields[i].Key, fields[i].Value)
	}
	if r.Err() != nil {
		return
	}
	for i, f := range fields {
		if !f.Optional && seen&(1<<i) == 0 {
			r.Failf("field %q is missing", f.Key)
		}
	}
}

func readValue(r *cbor.Reader, key string, v any) {
	switch v := v.(type) {
	case *cid.Cid:
		*v = r.Link()
	case *piece.Link:
		c := r.Link()
		if r.Err() != nil {
			return
		}
		l, err := piece.FromCID(c)
		if err != nil {
			r.Failf("field %q: %v", key, err)
			return
		}
		*v = l
	case *string:
		*v = r.Text()
	case *uint64:
		*v = r.Uint()
	case *int64:
		*v = r.Int()
	case *bool:
		*v = r.Bool()
	case *[]byte:
		*v = r.Bytes()
	case *[]string:
		*v = nil
		for range r.Array() {
			*v = append(*v, r.Text())
		}
	case *Raw:
		*v = r.Raw()
	case Codec:
		v.ReadCBOR(r)
	case Struct:
		ReadStruct(r, v)
	default:
		panic(fmt.Sprintf("capabilities: no decoding for %T", v))
	}
}

// AppendList appends a list of structs.
func AppendList[T any, P interface {
	*T
	Struct
}](b []byte, list []T) []byte {
	b = cbor.AppendArray(b, len(list))
	for i := range list {
		b = appendStruct(b, P(&list[i]))
	}
	return b
}

// ReadList reads a list of structs; the error stays in r.
func ReadList[T any, P interface {
	*T
	Struct
}](r *cbor.Reader) (list []T) {
	for range r.Array() {
		var v T
		ReadStruct(r, P(&v))
		if r.Err() != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}
