package segment

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/storacha/w3filecoin/piece"
)

// Major types of CBOR.
const (
	cborUint  = 0
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborMap   = 5
)

// maxPath is the length of the longest path there is: from an entry to the root of the largest deal.
const maxPath = piece.MaxHeight - 1

// AppendCBOR appends the proof in canonical DAG-CBOR to b, in the shape that deployed services exchange:
//
//	{index: [offset, [bytes32..]], subtree: [offset, [bytes32..]]}
func (p InclusionProof) AppendCBOR(b []byte) []byte {
	b = appendHead(b, cborMap, 2)
	b = appendData(appendText(b, "index"), p.Index)
	return appendData(appendText(b, "subtree"), p.Subtree)
}

// MarshalCBOR returns what AppendCBOR appends. It does not fail.
func (p InclusionProof) MarshalCBOR() ([]byte, error) {
	nodes := len(p.Index.Path) + len(p.Subtree.Path)
	return p.AppendCBOR(make([]byte, 0, 48+nodes*(2+piece.NodeSize))), nil
}

func appendData(b []byte, d ProofData) []byte {
	b = appendHead(b, cborArray, 2)
	b = appendHead(b, cborUint, d.Offset)
	b = appendHead(b, cborArray, uint64(len(d.Path)))
	for i := range d.Path {
		b = append(appendHead(b, cborBytes, piece.NodeSize), d.Path[i][:]...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(appendHead(b, cborText, uint64(len(s))), s...)
}

// appendHead appends a major type and its argument in the shortest form.
func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, major|27), n)
	}
}

// UnmarshalCBOR decodes a proof from b, all of it. Besides the shape that AppendCBOR writes, it reads the other ones
// that are in circulation:
//
//	{index: bytes, subtree: bytes}                     each the CBOR of [offset, path]
//	{tree: {at, path}, index: {at, path}}              as the w3-filecoin specification has it
//	[[offset, path], [offset, path]]                   subtree and index, as go-data-segment encodes it
//
// where path is a list of 32-byte strings from the bottom up. Encodings that are not canonical DAG-CBOR, nodes of more
// than 254 bits, and paths longer than any deal has are refused. What decodes need not hold: see [Verify].
func (p *InclusionProof) UnmarshalCBOR(b []byte) error {
	d := decoder{b}
	decoded, err := d.proof()
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return fmt.Errorf("decoding inclusion proof: %w", err)
	}
	*p = decoded
	return nil
}

// A decoder reads canonical CBOR from the front of b.
type decoder struct{ b []byte }

func (d *decoder) proof() (p InclusionProof, err error) {
	if d.next() == cborArray {
		err = d.both(cborArray, "", &p.Subtree, "", &p.Index, (*decoder).tuple)
		return p, err
	}
	// Keys are in canonical order, the shorter one first, so the first one tells the shape.
	if d.startsWith("\xa2\x64tree") {
		err = d.both(cborMap, "tree", &p.Subtree, "index", &p.Index, (*decoder).fields)
		return p, err
	}
	err = d.both(cborMap, "index", &p.Index, "subtree", &p.Subtree, (*decoder).tupleOrBytes)
	return p, err
}

// both reads a map or array of two proofs with the given keys.
func (d *decoder) both(major byte, key1 string, data1 *ProofData, key2 string, data2 *ProofData,
	read func(*decoder) (ProofData, error),
) (err error) {
	if err := d.expect(major, 2); err != nil {
		return err
	}
	if err := d.key(key1); err != nil {
		return err
	}
	if *data1, err = read(d); err != nil {
		return err
	}
	if err := d.key(key2); err != nil {
		return err
	}
	*data2, err = read(d)
	return err
}

// tupleOrBytes reads [offset, path], plain or wrapped in a byte string.
func (d *decoder) tupleOrBytes() (ProofData, error) {
	if d.next() != cborBytes {
		return d.tuple()
	}
	b, err := d.bytes()
	if err != nil {
		return ProofData{}, err
	}
	inner := decoder{b}
	data, err := inner.tuple()
	if err != nil {
		return ProofData{}, err
	}
	return data, inner.end()
}

// tuple reads [offset, path].
func (d *decoder) tuple() (data ProofData, err error) {
	if err := d.expect(cborArray, 2); err != nil {
		return data, err
	}
	if data.Offset, err = d.uint(); err != nil {
		return data, err
	}
	data.Path, err = d.path()
	return data, err
}

// fields reads {at, path}.
func (d *decoder) fields() (data ProofData, err error) {
	if err := d.expect(cborMap, 2); err != nil {
		return data, err
	}
	if err := d.key("at"); err != nil {
		return data, err
	}
	if data.Offset, err = d.uint(); err != nil {
		return data, err
	}
	if err := d.key("path"); err != nil {
		return data, err
	}
	data.Path, err = d.path()
	return data, err
}

func (d *decoder) path() ([]piece.Node, error) {
	major, n, err := d.head()
	if err != nil {
		return nil, err
	}
	if major != cborArray || n > maxPath {
		return nil, fmt.Errorf("path is not a list of at most %d nodes", maxPath)
	}
	path := make([]piece.Node, n)
	for i := range path {
		b, err := d.bytes()
		if err != nil {
			return nil, err
		}
		if len(b) != piece.NodeSize || b[piece.NodeSize-1]&^0x3f != 0 {
			return nil, fmt.Errorf("node %d of path is not of 254 bits: %x", i, b)
		}
		path[i] = piece.Node(b)
	}
	return path, nil
}

func (d *decoder) uint() (uint64, error) {
	major, n, err := d.head()
	if err == nil && major != cborUint {
		err = fmt.Errorf("major type %d where an offset belongs", major)
	}
	return n, err
}

// key reads the given key of a map. An empty key stands for no key at all, as in an array.
func (d *decoder) key(want string) error {
	if want == "" {
		return nil
	}
	if !d.startsWith(string(appendText(nil, want))) {
		return fmt.Errorf("no key %q where it belongs", want)
	}
	d.b = d.b[1+len(want):]
	return nil
}

func (d *decoder) startsWith(s string) bool {
	return len(d.b) >= len(s) && string(d.b[:len(s)]) == s
}

func (d *decoder) expect(major byte, n uint64) error {
	gotMajor, got, err := d.head()
	if err == nil && (gotMajor != major || got != n) {
		err = fmt.Errorf("major type %d with %d elements, want %d with %d", gotMajor, got, major, n)
	}
	return err
}

func (d *decoder) bytes() ([]byte, error) {
	major, n, err := d.head()
	if err != nil {
		return nil, err
	}
	if major != cborBytes {
		return nil, fmt.Errorf("major type %d where bytes belong", major)
	}
	if n > uint64(len(d.b)) {
		return nil, errShort
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b, nil
}

// next returns the major type of what comes next.
func (d *decoder) next() byte {
	if len(d.b) == 0 {
		return 0xff
	}
	return d.b[0] >> 5
}

var (
	errShort     = errors.New("input ends early")
	errCanonical = errors.New("not canonical DAG-CBOR")
)

// head reads a major type and its argument, which has to be in its shortest form.
func (d *decoder) head() (major byte, n uint64, err error) {
	if len(d.b) == 0 {
		return 0, 0, errShort
	}
	major, info := d.b[0]>>5, d.b[0]&31
	d.b = d.b[1:]
	if info < 24 {
		return major, uint64(info), nil
	}
	if info > 27 {
		return 0, 0, errCanonical // an indefinite length, or not CBOR
	}
	size := 1 << (info - 24)
	if len(d.b) < size {
		return 0, 0, errShort
	}
	var buf [8]byte
	copy(buf[8-size:], d.b)
	n = binary.BigEndian.Uint64(buf[:])
	d.b = d.b[size:]
	smaller := uint64(24) // the least argument that needs size bytes
	if size > 1 {
		smaller = 1 << (4 * size)
	}
	if n < smaller {
		return 0, 0, errCanonical
	}
	return major, n, nil
}

func (d *decoder) end() error {
	if len(d.b) > 0 {
		return fmt.Errorf("%d bytes after the end", len(d.b))
	}
	return nil
}
