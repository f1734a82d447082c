package source

import (
	"encoding/base32"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Codecs of a content CID.
const (
	// Raw says that the content is plain bytes.
	Raw = cid.Raw
	// CAR says that the content is an archive of blocks.
	CAR = 0x0202
)

var (
	// ErrUnsupported means that a CID cannot name content here: see [Check].
	ErrUnsupported = errors.New("content must be a CIDv1 with raw or CAR codec and sha2-256")
	// ErrMismatch means that bytes do not hash to the CID they were offered for.
	ErrMismatch = errors.New("content does not match its CID")
	// ErrTooLarge means that content is longer than the limit that was set for it.
	ErrTooLarge = errors.New("content is too large")
	// ErrReadOnly means that nothing can be stored in this directory or custody.
	ErrReadOnly = errors.New("read-only")
)

// maxCIDText bounds the text that is decoded as a CID. A content CID has 59 to 73 characters in the usual bases.
const maxCIDText = 128

// Check returns an error that wraps [ErrUnsupported] unless c is a content CID: CIDv1, raw or CAR codec, a whole
// sha2-256 digest.
func Check(c cid.Cid) error {
	if !c.Defined() {
		return fmt.Errorf("undefined CID: %w", ErrUnsupported)
	}
	p := c.Prefix()
	if p.Version != 1 || p.Codec != Raw && p.Codec != CAR || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		return fmt.Errorf("%s: %w", c, ErrUnsupported)
	}
	return nil
}

// ParseContent decodes the text form of a content CID, in any multibase. It fails as [Check] does, and on text that is
// no CID at all.
func ParseContent(s string) (cid.Cid, error) {
	if len(s) > maxCIDText {
		return cid.Undef, fmt.Errorf("content CID has %d characters, at most %d are read", len(s), maxCIDText)
	}
	c, err := cid.Decode(s)
	if err != nil {
		return cid.Undef, fmt.Errorf("decoding content CID: %w", err)
	}
	if err := Check(c); err != nil {
		return cid.Undef, err
	}
	return c, nil
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// MultihashName is the multihash of content as text: multibase base32, 56 characters that start with "bciq".
func MultihashName(content cid.Cid) string { return "b" + base32Lower.EncodeToString(content.Hash()) }

// parseMultihashName is the other way round, with the raw codec.
func parseMultihashName(name string) (cid.Cid, bool) {
	if len(name) == 0 || name[0] != 'b' {
		return cid.Undef, false
	}
	b, err := base32Lower.DecodeString(name[1:])
	if err != nil {
		return cid.Undef, false
	}
	hash, err := multihash.Cast(b)
	if err != nil {
		return cid.Undef, false
	}
	content := cid.NewCidV1(Raw, hash)
	return content, Check(content) == nil && MultihashName(content) == name
}
