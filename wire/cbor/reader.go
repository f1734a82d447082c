package cbor

import (
	"fmt"
	"math"

	"github.com/ipfs/go-cid"
)

// Reader pulls the parts of one DAG-CBOR value out of its bytes, in order. The first error sticks: from then on every
// method returns a zero value, and Err and Done return that error. So a caller reads straight through, checks once,
// and uses nothing before the check:
//
//	r := cbor.NewReader(b)
//	for range r.Map() {
//		switch string(r.Key()) {
//		case "piece":
//			piece = r.Link()
//		case "group":
//			group = r.Text()
//		default:
//			r.Failf("unknown field")
//		}
//	}
//	if err := r.Done(); err != nil {
//		return err
//	}
//
// Whether a field was present is for the caller to check: an absent link leaves piece undefined.
//
// A Reader checks what it passes, so a value that was read to Done without error is canonical. It must not be copied
// once in use.
type Reader struct {
	b     []byte
	off   int
	err   error
	depth int
	near  [nearDepth]container // the outer containers that are open
	far   []container          // those inside them: rare, so not worth room in every Reader
}

const nearDepth = 6

// container is an array or a map that has been entered.
type container struct {
	left    int // items still to come; an entry of a map counts as two
	isMap   bool
	first   bool // no key of the map has been read yet
	lastKey []byte
}

// NewReader returns a Reader of b, which must hold one value and nothing else.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Map enters a map and returns its number of entries; each is read by Key and then one value. The number never
// exceeds half the bytes left.
func (r *Reader) Map() int { return r.enter(5, 2) }

// Array enters an array and returns its number of items. The number never exceeds the bytes left.
func (r *Reader) Array() int { return r.enter(4, 1) }

func (r *Reader) enter(major byte, width int) int {
	at := r.off
	want := Array
	if major == 5 {
		want = Map
	}
	first, arg, ok := r.value()
	if !ok {
		return 0
	}
	if first>>5 != major {
		r.mismatch(at, want)
		return 0
	}
	if r.depth == MaxDepth {
		r.fail(malformed(at, "nested deeper than %d", MaxDepth))
		return 0
	}
	n, err := countAt(r.b, r.off, arg, width)
	if err != nil {
		r.fail(err)
		return 0
	}
	c := container{left: n * width, isMap: major == 5, first: true}
	if r.depth < nearDepth {
		r.near[r.depth] = c
	} else {
		r.far = append(r.far[:r.depth-nearDepth], c)
	}
	r.depth++
	return n
}

// Key returns the next key of the map entered last. The result is part of the input; switch on string(r.Key()), which
// does not allocate.
func (r *Reader) Key() []byte {
	r.leave()
	if r.err != nil {
		return nil
	}
	if r.depth == 0 || !r.top().isMap || r.top().left%2 != 0 {
		r.fail(malformed(r.off, "no map key is due"))
		return nil
	}
	m := r.top()
	key, next, err := keyAt(r.b, r.off, m.lastKey, m.first)
	if err != nil {
		r.fail(err)
		return nil
	}
	m.lastKey, m.first = key, false
	m.left--
	r.off = next
	return key
}

// Text returns a text.
func (r *Reader) Text() string { return string(r.TextBytes()) }

// TextBytes returns a text as part of the input.
func (r *Reader) TextBytes() []byte {
	at := r.off
	first, n, ok := r.value()
	if !ok {
		return nil
	}
	if first>>5 != 3 {
		r.mismatch(at, Text)
		return nil
	}
	end, err := textAt(r.b, r.off, n)
	if err != nil {
		r.fail(err)
		return nil
	}
	return r.take(end)
}

// Bytes returns a byte string as part of the input.
func (r *Reader) Bytes() []byte {
	at := r.off
	first, n, ok := r.value()
	if !ok {
		return nil
	}
	if first>>5 != 2 {
		r.mismatch(at, Bytes)
		return nil
	}
	end, err := span(r.b, r.off, n)
	if err != nil {
		r.fail(err)
		return nil
	}
	return r.take(end)
}

// Link returns a link.
func (r *Reader) Link() cid.Cid {
	at := r.off
	raw := r.LinkBytes()
	if raw == nil {
		return cid.Undef
	}
	c, err := cid.Cast(raw)
	if err != nil {
		r.fail(malformed(at, "link: %v", err))
		return cid.Undef
	}
	return c
}

// LinkBytes returns the CID of a link as part of the input.
func (r *Reader) LinkBytes() []byte {
	at := r.off
	first, _, ok := r.value()
	if !ok {
		return nil
	}
	if first>>5 != 6 {
		r.mismatch(at, Link)
		return nil
	}
	raw, next, err := linkAt(r.b, at)
	if err != nil {
		r.fail(err)
		return nil
	}
	r.off = next
	return raw
}

// Int returns an integer that fits in 64 bits with sign.
func (r *Reader) Int() int64 {
	at := r.off
	first, arg, ok := r.value()
	switch {
	case !ok:
		return 0
	case first>>5 > 1:
		r.mismatch(at, Int)
		return 0
	case arg > math.MaxInt64:
		r.fail(malformed(at, "integer out of range"))
		return 0
	case first>>5 == 1:
		return ^int64(arg)
	default:
		return int64(arg)
	}
}

// Uint returns a non-negative integer.
func (r *Reader) Uint() uint64 {
	at := r.off
	first, arg, ok := r.value()
	switch {
	case !ok:
		return 0
	case first>>5 > 1:
		r.mismatch(at, Int)
		return 0
	case first>>5 == 1:
		r.fail(malformed(at, "integer is negative"))
		return 0
	default:
		return arg
	}
}

// Float returns a float. An integer is not a float.
func (r *Reader) Float() float64 {
	at := r.off
	first, bits, ok := r.value()
	if !ok {
		return 0
	}
	if first != 0xfb {
		r.mismatch(at, Float)
		return 0
	}
	f, err := checkFloat(at, bits)
	if err != nil {
		r.fail(err)
		return 0
	}
	return f
}

// Bool returns true or false.
func (r *Reader) Bool() bool {
	at := r.off
	first, _, ok := r.value()
	if !ok {
		return false
	}
	if first != 0xf4 && first != 0xf5 {
		r.mismatch(at, Bool)
		return false
	}
	return first == 0xf5
}

// Null reads null.
func (r *Reader) Null() {
	at := r.off
	if first, _, ok := r.value(); ok && first != 0xf6 {
		r.mismatch(at, Null)
	}
}

// Skip passes over one value of any kind.
func (r *Reader) Skip() { r.Raw() }

// Raw passes over one value of any kind and returns its bytes, which are canonical. The result is part of the input.
func (r *Reader) Raw() []byte {
	if !r.due() {
		return nil
	}
	end, err := skip(r.b, r.off, r.depth)
	if err != nil {
		r.fail(err)
		return nil
	}
	r.count()
	return r.take(end)
}

// Peek returns the kind of the value that comes next without reading it; Invalid if none is due.
func (r *Reader) Peek() Kind {
	if !r.due() || r.off >= len(r.b) {
		return Invalid
	}
	return kindOf(r.b[r.off])
}

// Offset returns how many bytes have been read.
func (r *Reader) Offset() int { return r.off }

// Failf makes the Reader fail with a message of the caller's, unless it has failed before: for values that are
// canonical CBOR but not what the caller can take. The error wraps ErrMalformed.
func (r *Reader) Failf(format string, args ...any) {
	r.fail(malformed(r.off, "%s", fmt.Sprintf(format, args...)))
}

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Done returns the first error, or an error if the value was not read to its end or bytes follow it.
func (r *Reader) Done() error {
	r.leave()
	switch {
	case r.err != nil:
	case r.depth > 0 || r.off == 0:
		r.fail(malformed(r.off, "value was not read to its end"))
	case r.off != len(r.b):
		r.fail(malformed(r.off, "%d bytes after the value", len(r.b)-r.off))
	}
	return r.err
}

// top returns the innermost open container; there must be one.
func (r *Reader) top() *container {
	if r.depth <= nearDepth {
		return &r.near[r.depth-1]
	}
	return &r.far[r.depth-nearDepth-1]
}

// leave closes the containers whose items have all been read.
func (r *Reader) leave() {
	for r.depth > 0 && r.top().left == 0 {
		r.depth--
	}
}

// due reports whether a value may come next, and fails if not.
func (r *Reader) due() bool {
	r.leave()
	if r.err != nil {
		return false
	}
	switch {
	case r.depth == 0 && r.off > 0:
		r.fail(malformed(r.off, "no further value is due"))
		return false
	case r.depth > 0 && r.top().isMap && r.top().left%2 == 0:
		r.fail(malformed(r.off, "a map key is due"))
		return false
	}
	return true
}

// count notes in the container around it that a value is being read.
func (r *Reader) count() {
	if r.depth > 0 {
		r.top().left--
	}
}

// value reads the head of the next value. The content of text and bytes is left to the caller.
func (r *Reader) value() (first byte, arg uint64, ok bool) {
	if !r.due() {
		return 0, 0, false
	}
	first, arg, next, err := head(r.b, r.off)
	if err != nil {
		r.fail(err)
		return 0, 0, false
	}
	r.count()
	r.off = next
	return first, arg, true
}

func (r *Reader) take(end int) []byte {
	part := r.b[r.off:end:end]
	r.off = end
	return part
}

func (r *Reader) mismatch(at int, want Kind) {
	r.fail(malformed(at, "expected %v, got %v", want, kindOf(r.b[at])))
}

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func kindOf(first byte) Kind {
	switch first >> 5 {
	case 0, 1:
		return Int
	case 2:
		return Bytes
	case 3:
		return Text
	case 4:
		return Array
	case 5:
		return Map
	case 6:
		return Link
	}
	switch first & 0x1f {
	case 20, 21:
		return Bool
	case 22:
		return Null
	case 27:
		return Float
	default:
		return Invalid
	}
}
