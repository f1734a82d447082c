package wire

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-varint"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// archiveTag names what an archive holds.
const archiveTag = "ucan@" + Version

// codecCAR is the multicodec code of a CAR.
const codecCAR = 0x0202

// EncodeArchive returns a CAR that holds u, its proofs and its attachments, the form in which delegations are kept and
// handed around. The blocks that come with u are those of Message.Export, or as many as are at hand; u's own block
// may be among them.
func EncodeArchive(u *UCAN, with ...Block) []byte {
	var set blockSet
	for _, b := range with {
		set.add(b)
	}
	set.add(u.Block())
	root := cbor.AppendMap(nil, 1)
	root = cbor.AppendText(root, archiveTag)
	root = cbor.AppendLink(root, u.Link())
	descriptor := EncodeBlock(root)
	return appendSection(AppendCAR(nil, []cid.Cid{descriptor.CID}, set.blocks), descriptor)
}

// DecodeArchive reads what EncodeArchive writes. It returns the UCAN and all blocks of the archive but the descriptor,
// in their order; like DecodeMessage it decodes each proof that is included. The error wraps ErrMalformed or ErrLimit.
// The result aliases b.
func DecodeArchive(b []byte, limits Limits) (*UCAN, []Block, error) {
	limits = limits.withDefaults()
	m, root, err := openMessage(b, limits)
	if err != nil {
		return nil, nil, err
	}
	r := cbor.NewReader(root.Bytes)
	if r.Map() != 1 || string(r.Key()) != archiveTag {
		r.Failf("not an archive of a UCAN of version %s", Version)
	}
	c := r.LinkBytes()
	if err := r.Done(); err != nil {
		return nil, nil, fmt.Errorf("archive %v: %w", root.CID, err)
	}
	u, err := m.decodeUCAN(find(&m.set, c))
	if err != nil {
		return nil, nil, err
	}
	if u == nil {
		return nil, nil, fmt.Errorf("%w: UCAN %.64x is not in the archive", ErrMalformed, c)
	}
	if err := m.decodeProofs(u, limits); err != nil {
		return nil, nil, fmt.Errorf("UCAN %v: %w", u.Link(), err)
	}
	return u, m.set.blocks, nil
}

// FormatArchive returns an archive as text: the base64 form of a CID that holds it, identity for a hash. This is how
// the command line tools of the JavaScript and Go implementations print delegations.
func FormatArchive(archive []byte) string {
	b := make([]byte, 0, 16+len(archive))
	b = append(b, 1)
	b = appendUvarint(b, codecCAR)
	b = append(b, hashIdentity)
	b = appendUvarint(b, uint64(len(archive)))
	return "m" + base64.RawStdEncoding.EncodeToString(append(b, archive...))
}

// ParseArchive returns the archive that FormatArchive made the text of. The error wraps ErrMalformed.
func ParseArchive(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), "m")
	if !ok || strings.ContainsAny(encoded, "\r\n") {
		return nil, fmt.Errorf("%w: archive is not in multibase base64", ErrMalformed)
	}
	b, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("%w: archive is not in multibase base64: %w", ErrMalformed, err)
	}
	hash, archive, size, err := readCID(b)
	if err != nil || size != len(b) || hash != hashIdentity || b[0] != 1 {
		return nil, fmt.Errorf("%w: archive is not held by an identity CID", ErrMalformed)
	}
	if codec, _, err := varint.FromUvarint(b[1:]); err != nil || codec != codecCAR {
		return nil, fmt.Errorf("%w: archive is not a CAR but of codec 0x%x", ErrMalformed, codec)
	}
	return archive, nil
}
