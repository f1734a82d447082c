package piece

import (
	"bytes"
	"encoding/base32"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/multiformats/go-varint"
)

const (
	// Code is the multihash code of a piece CID v2, fr32-sha256-trunc254-padbintree.
	Code = 0x1011
	// CodeV1 is the multihash code of a piece CID v1, sha2-256-trunc254-padded.
	CodeV1 = multihash.SHA2_256_TRUNC254_PADDED
)

var (
	// ErrV1 means that a CID is a piece CID v1, a bare commitment, where a piece CID v2 is needed.
	ErrV1 = errors.New("piece CID v1 does not state the size of the piece; use a piece CID v2")
	// ErrNotPiece means that a CID is well formed and names something other than a piece.
	ErrNotPiece = errors.New("CID does not name a piece")
)

// The binary form of a link is prefix ‖ uvarint digest length ‖ digest, where
// digest = uvarint padding ‖ height ‖ root. The length of the digest always fits one byte.
const (
	prefix       = "\x01\x55\x91\x20" // CIDv1, raw codec, multihash Code
	prefixV1     = "\x01\x81\xe2\x03\x92\x20\x20"
	maxVarint    = 9
	minDigestLen = 1 + 1 + NodeSize
	maxDigestLen = maxVarint + 1 + NodeSize
	maxBinaryLen = len(prefix) + 1 + maxDigestLen

	// maxTextLen bounds what is handed to the cid package, whose base58 decoder takes quadratic time. The text of a CID
	// with a digest of 64 bytes in binary digits, the longest of the multibases, is about 600 bytes long.
	maxTextLen = 1024
)

// base32Lower with the multibase prefix "b" is the text form of a CIDv1.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// A Link names a piece: the root and the height of its tree, and the number of zero bytes that fill its payload up to
// the tree's capacity. It is the piece CID v2 of FRC-0069 as a value: comparable, usable as a map key, and valid by
// construction unless it is the zero Link, which names nothing (see [Link.Defined]).
//
// In a valid link
//   - the height is from [MinHeight] to [MaxHeight];
//   - the padding is canonical: the payload would not fit a tree of half the size, and is not empty. A padding of 0 is
//     always canonical and is what aggregates, deals and pieces converted from v1 have;
//   - the root has its two top bits clear and is not all zero, as no tree has such a root, and a segment with such a
//     root would make an aggregate that no bytes can produce.
type Link struct {
	root    Node
	padding uint64
	height  uint8
}

// FromRootAndHeight returns the link of the tree with the given root and height, whose payload ends padding zero bytes
// before the tree's capacity.
func FromRootAndHeight(root Node, height uint8, padding uint64) (Link, error) {
	if height < MinHeight || height > MaxHeight {
		return Link{}, fmt.Errorf("piece height %d is not from %d to %d", height, MinHeight, MaxHeight)
	}
	capacity := UnpaddedSize(NodeSize << height)
	if padding == capacity {
		return Link{}, fmt.Errorf("piece padding %d fills the whole piece: %w", padding, ErrEmpty)
	}
	if padding > capacity || height > MinHeight && padding >= capacity/2 {
		return Link{}, fmt.Errorf("piece padding %d is too large for height %d", padding, height)
	}
	if root[NodeSize-1]&^truncate != 0 || root == (Node{}) {
		return Link{}, fmt.Errorf("piece root %x is not the root of any tree", root)
	}
	return Link{root: root, padding: padding, height: height}, nil
}

// FromRoot returns the link of the piece with the given root and a payload of payloadSize bytes.
// It fails with [ErrEmpty] or [ErrTooLarge] where no piece has that size.
func FromRoot(root Node, payloadSize uint64) (Link, error) {
	height, err := heightOfPayload(payloadSize)
	if err != nil {
		return Link{}, err
	}
	return FromRootAndHeight(root, height, UnpaddedSize(NodeSize<<height)-payloadSize)
}

// FromV1 returns the link of a piece that is known by its piece CID v1 and its padded size. As neither states the size
// of the payload, the link counts the whole piece as payload: its padding is 0.
func FromV1(v1 cid.Cid, paddedSize uint64) (Link, error) {
	root, err := RootOfV1(v1)
	if err != nil {
		return Link{}, err
	}
	height, err := HeightOf(paddedSize)
	if err != nil {
		return Link{}, err
	}
	return FromRootAndHeight(root, height, 0)
}

// FromCID returns the piece that c names. The error wraps [ErrV1] for a piece CID v1 and [ErrNotPiece] for any other
// CID that is not of the piece multihash.
func FromCID(c cid.Cid) (Link, error) {
	if !c.Defined() {
		return Link{}, fmt.Errorf("undefined CID: %w", ErrNotPiece)
	}
	return fromBinary(c.KeyString())
}

// FromBytes decodes the binary form of a piece CID v2, all of b. It fails as [FromCID] does, and on bytes that are no
// CID at all. A link has one binary form: what decodes encodes to the same bytes.
func FromBytes(b []byte) (Link, error) { return fromBinary(b) }

// Parse decodes the text form of a piece CID v2: lower-case base32, as [Link.String] writes it, and no other
// spelling, so equal links are equal strings. A caller that has to accept other multibases uses cid.Parse and
// [FromCID]. Parse fails as [FromCID] does, and on text that is no CID at all.
func Parse(s string) (Link, error) { return parseText(s) }

func parseText[T string | []byte](s T) (Link, error) {
	l, err := decodeText(s)
	if err != nil {
		return Link{}, err
	}
	if canonical := l.String(); canonical != string(s) {
		return Link{}, fmt.Errorf("piece CID %q is not in its canonical form, %s", s, canonical)
	}
	return l, nil
}

// decodeText decodes any spelling, the canonical one without going through the cid package.
func decodeText[T string | []byte](s T) (Link, error) {
	var buf [maxBinaryLen]byte
	if len(s) > 1 && s[0] == 'b' && base32Lower.DecodedLen(len(s)-1) <= len(buf) {
		n, err := base32Lower.Decode(buf[:], []byte(s[1:]))
		if err == nil {
			return fromBinary(buf[:n])
		}
	}
	c, err := decodeCID(string(s))
	if err != nil {
		return Link{}, fmt.Errorf("parsing piece CID: %w", err)
	}
	return FromCID(c)
}

func decodeCID(s string) (cid.Cid, error) {
	if len(s) > maxTextLen {
		return cid.Undef, fmt.Errorf("text of %d bytes is too long for a CID", len(s))
	}
	return cid.Decode(s)
}

// fromBinary decodes the binary form without allocating.
func fromBinary[T string | []byte](b T) (Link, error) {
	if len(b) < len(prefix)+1+minDigestLen || string(b[:len(prefix)]) != prefix {
		return Link{}, notPiece([]byte(b))
	}
	digest := b[len(prefix)+1:]
	if n := int(b[len(prefix)]); n > maxDigestLen || n != len(digest) {
		return Link{}, fmt.Errorf("piece digest: length byte says %d, %d bytes follow", n, len(digest))
	}
	var head [maxVarint]byte
	padding, n, err := varint.FromUvarint(head[:copy(head[:], digest)])
	if err != nil {
		return Link{}, fmt.Errorf("decoding piece padding: %w", err)
	}
	if len(digest) != n+1+NodeSize {
		return Link{}, fmt.Errorf("piece digest has %d bytes, not %d", len(digest), n+1+NodeSize)
	}
	var root Node
	copy(root[:], digest[n+1:])
	return FromRootAndHeight(root, digest[n], padding)
}

// notPiece says why the bytes of something that may be a CID are not a piece CID v2.
func notPiece(b []byte) error {
	c, err := cid.Cast(b)
	if err != nil {
		return fmt.Errorf("decoding piece CID: %w", err)
	}
	if _, err := RootOfV1(c); err == nil {
		return fmt.Errorf("%s: %w", c, ErrV1)
	}
	return fmt.Errorf("%s: %w", c, ErrNotPiece)
}

// RootOfV1 returns the root that a piece CID v1 carries. The error wraps [ErrNotPiece] if c is not such a CID.
func RootOfV1(c cid.Cid) (Node, error) {
	s := c.KeyString()
	if len(s) != len(prefixV1)+NodeSize || s[:len(prefixV1)] != prefixV1 {
		return Node{}, fmt.Errorf("%s is not a piece CID v1: %w", c, ErrNotPiece)
	}
	return Node([]byte(s[len(prefixV1):])), nil
}

// ParseV1 decodes the text form of a piece CID v1. The error wraps [ErrNotPiece] if s is the CID of something else.
func ParseV1(s string) (cid.Cid, error) {
	c, err := decodeCID(s)
	if err != nil {
		return cid.Undef, fmt.Errorf("parsing piece CID v1: %w", err)
	}
	if _, err := RootOfV1(c); err != nil {
		return cid.Undef, err
	}
	return c, nil
}

// Defined reports whether l names a piece, that is, whether it is not the zero Link.
func (l Link) Defined() bool { return l.height != 0 }

// Root returns the root of the piece's tree, its commitment.
func (l Link) Root() Node { return l.root }

// Height returns the height of the piece's tree: the tree has 1 << height leaves.
func (l Link) Height() uint8 { return l.height }

// Padding returns how many zero bytes fill the payload up to the capacity of the tree.
func (l Link) Padding() uint64 { return l.padding }

// PaddedSize returns the size of the tree's leaves in bytes, a power of two.
func (l Link) PaddedSize() uint64 { return NodeSize << l.height }

// PayloadSize returns the size of the payload in bytes.
func (l Link) PayloadSize() uint64 { return UnpaddedSize(l.PaddedSize()) - l.padding }

// CID returns the piece CID v2, or cid.Undef for the zero Link.
func (l Link) CID() cid.Cid {
	if !l.Defined() {
		return cid.Undef
	}
	return cid.NewCidV1(cid.Raw, l.appendBinary(nil)[2:])
}

// V1 returns the piece CID v1, which names the root only, or cid.Undef for the zero Link.
func (l Link) V1() cid.Cid {
	if !l.Defined() {
		return cid.Undef
	}
	mh := make([]byte, 0, 3+NodeSize)
	mh = append(mh, prefixV1[len(prefixV1)-3:]...)
	return cid.NewCidV1(cid.FilCommitmentUnsealed, append(mh, l.root[:]...))
}

// String returns the piece CID v2 in lower-case base32, or "undefined" for the zero Link.
func (l Link) String() string {
	if !l.Defined() {
		return "undefined"
	}
	return string(l.appendText(nil))
}

// Compare orders links by their binary form, as bytes.Compare orders byte strings. The zero Link is the smallest.
func (l Link) Compare(other Link) int {
	var a, b [maxBinaryLen]byte
	return bytes.Compare(l.key(a[:0]), other.key(b[:0]))
}

func (l Link) key(buf []byte) []byte {
	if !l.Defined() {
		return buf
	}
	return l.appendBinary(buf)
}

var errUndefined = errors.New("undefined piece link has no encoding")

// AppendBinary appends the bytes of the piece CID v2 to b. The zero Link is an error.
func (l Link) AppendBinary(b []byte) ([]byte, error) {
	if !l.Defined() {
		return b, errUndefined
	}
	return l.appendBinary(b), nil
}

// MarshalBinary returns the bytes of the piece CID v2. The zero Link is an error.
func (l Link) MarshalBinary() ([]byte, error) {
	return l.AppendBinary(make([]byte, 0, maxBinaryLen))
}

// UnmarshalBinary decodes what MarshalBinary returns; it fails as [FromBytes] does.
func (l *Link) UnmarshalBinary(b []byte) error { return l.set(FromBytes(b)) }

// AppendText appends the text form to b. The zero Link is an error.
func (l Link) AppendText(b []byte) ([]byte, error) {
	if !l.Defined() {
		return b, errUndefined
	}
	return l.appendText(b), nil
}

// MarshalText returns the text form, as [Link.String] does. The zero Link is an error.
func (l Link) MarshalText() ([]byte, error) { return l.AppendText(nil) }

// UnmarshalText decodes what MarshalText returns; it fails as [Parse] does.
func (l *Link) UnmarshalText(b []byte) error { return l.set(parseText(b)) }

func (l *Link) set(decoded Link, err error) error {
	if err != nil {
		return err
	}
	*l = decoded
	return nil
}

func (l Link) appendBinary(b []byte) []byte {
	b = append(b, prefix...)
	var padding [maxVarint]byte
	n := varint.PutUvarint(padding[:], l.padding)
	b = append(b, byte(n+1+NodeSize))
	b = append(b, padding[:n]...)
	b = append(b, l.height)
	return append(b, l.root[:]...)
}

func (l Link) appendText(b []byte) []byte {
	var buf [maxBinaryLen]byte
	return base32Lower.AppendEncode(append(b, 'b'), l.appendBinary(buf[:0]))
}
