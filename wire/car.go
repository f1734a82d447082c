package wire

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-varint"

	"github.com/storacha/w3filecoin/wire/cbor"
)

const (
	codecDAGCBOR = 0x71
	hashIdentity = 0x00
	hashSHA256   = 0x12
)

// Block is bytes together with the CID that names them.
type Block struct {
	CID   cid.Cid
	Bytes []byte
}

// EncodeBlock returns the block of a DAG-CBOR value: CID version 1, SHA2-256. The bytes are not copied.
func EncodeBlock(dagCBOR []byte) Block {
	return Block{CID: sumCID(dagCBOR), Bytes: dagCBOR}
}

func sumCID(dagCBOR []byte) cid.Cid {
	digest := sha256.Sum256(dagCBOR)
	var hash [2 + len(digest)]byte
	hash[0], hash[1] = hashSHA256, byte(len(digest))
	copy(hash[2:], digest[:])
	return cid.NewCidV1(codecDAGCBOR, hash[:])
}

// isDAGCBOR reports whether c is a CID as EncodeBlock makes it.
func isDAGCBOR(c cid.Cid) bool {
	s := c.KeyString()
	return len(s) == 36 && s[0] == 1 && s[1] == codecDAGCBOR && s[2] == hashSHA256 && s[3] == 32
}

// readCID reads the CID that b starts with and returns its hash function, its digest and its length.
func readCID(b []byte) (hash uint64, digest []byte, size int, err error) {
	rest := b
	if len(b) < 2 || b[0] != hashSHA256 || b[1] != 32 { // else it is version 0, a bare multihash
		version, n, err := varint.FromUvarint(rest)
		if err != nil {
			return 0, nil, 0, err
		}
		if version != 1 {
			return 0, nil, 0, fmt.Errorf("CID of version %d", version)
		}
		rest = rest[n:]
		if _, n, err = varint.FromUvarint(rest); err != nil { // codec
			return 0, nil, 0, err
		}
		rest = rest[n:]
	}
	hash, n, err := varint.FromUvarint(rest)
	if err != nil {
		return 0, nil, 0, err
	}
	rest = rest[n:]
	length, n, err := varint.FromUvarint(rest)
	if err != nil {
		return 0, nil, 0, err
	}
	rest = rest[n:]
	if length > uint64(len(rest)) {
		return 0, nil, 0, fmt.Errorf("digest of %d bytes, %d left", length, len(rest))
	}
	return hash, rest[:length], len(b) - len(rest) + int(length), nil
}

// ReadCAR reads a CAR of version 1 (https://ipld.io/specs/transport/car/carv1/) from the whole of b.
//
// The hash of each block is verified: SHA2-256 over the full 32 bytes, or the identity. Blocks under other hash
// functions are refused. Of a block that comes twice the first is kept. Whether the roots are among the blocks is not
// checked.
func ReadCAR(b []byte, limits Limits) (roots []cid.Cid, blocks []Block, err error) {
	roots, set, err := readCAR(b, limits.withDefaults())
	return roots, set.blocks, err
}

func readCAR(b []byte, limits Limits) (roots []cid.Cid, set blockSet, err error) {
	header, rest, err := section(b)
	if err != nil {
		return nil, blockSet{}, fmt.Errorf("CAR header: %w", err)
	}
	if roots, err = readCARHeader(header); err != nil {
		return nil, blockSet{}, fmt.Errorf("CAR header: %w", err)
	}
	for n := 0; len(rest) > 0; n++ {
		if n == limits.Blocks {
			return nil, blockSet{}, fmt.Errorf("%w: more than %d blocks", ErrLimit, limits.Blocks)
		}
		var s []byte
		if s, rest, err = section(rest); err != nil {
			return nil, blockSet{}, fmt.Errorf("CAR section: %w", err)
		}
		block, err := readBlock(s, limits.BlockSize)
		if err != nil {
			return nil, blockSet{}, err
		}
		set.add(block)
	}
	return roots, set, nil
}

// section splits off what a varint at the start of b gives the length of.
func section(b []byte) (s, rest []byte, err error) {
	size, n, err := varint.FromUvarint(b)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%w: length: %w", ErrMalformed, err)
	case size == 0:
		return nil, nil, fmt.Errorf("%w: length zero", ErrMalformed)
	case size > uint64(len(b)-n):
		return nil, nil, fmt.Errorf("%w: %d bytes announced, %d left", ErrMalformed, size, len(b)-n)
	}
	end := n + int(size)
	return b[n:end:end], b[end:], nil
}

func readCARHeader(b []byte) (roots []cid.Cid, err error) {
	var version uint64
	hasRoots := false
	r := cbor.NewReader(b)
	for range r.Map() {
		switch string(r.Key()) {
		case "roots":
			hasRoots = true
			roots = readLinks(r)
		case "version":
			version = r.Uint()
		default:
			r.Failf("unknown field")
		}
	}
	if r.Err() == nil && (!hasRoots || version != 1) {
		r.Failf("not the header of a CAR of version 1")
	}
	return roots, r.Done()
}

func readBlock(s []byte, maxSize int) (Block, error) {
	hash, digest, size, err := readCID(s)
	if err != nil {
		return Block{}, fmt.Errorf("%w: CID of a block: %w", ErrMalformed, err)
	}
	data := s[size:]
	if len(data) > maxSize {
		return Block{}, fmt.Errorf("%w: block of %d bytes, more than %d", ErrLimit, len(data), maxSize)
	}
	c, err := cid.Cast(s[:size])
	if err != nil {
		return Block{}, fmt.Errorf("%w: CID of a block: %w", ErrMalformed, err)
	}
	ok := false
	switch hash {
	case hashSHA256:
		sum := sha256.Sum256(data)
		ok = bytes.Equal(sum[:], digest)
	case hashIdentity:
		ok = bytes.Equal(data, digest)
	default:
		return Block{}, fmt.Errorf("%w: block %.100s uses hash function 0x%x", ErrMalformed, c, hash)
	}
	if !ok {
		return Block{}, fmt.Errorf("%w: block %.100s does not have the hash of its CID", ErrMalformed, c)
	}
	return Block{CID: c, Bytes: data}, nil
}

// AppendCAR appends a CAR of version 1 with these roots and blocks, in this order.
func AppendCAR(dst []byte, roots []cid.Cid, blocks []Block) []byte {
	var few [128]byte
	header := cbor.AppendMap(few[:0], 2)
	header = cbor.AppendText(header, "roots")
	header = appendLinks(header, roots)
	header = cbor.AppendText(header, "version")
	header = cbor.AppendUint(header, 1)
	dst = appendUvarint(dst, uint64(len(header)))
	dst = append(dst, header...)
	for _, b := range blocks {
		dst = appendSection(dst, b)
	}
	return dst
}

func appendSection(dst []byte, b Block) []byte {
	dst = appendUvarint(dst, uint64(b.CID.ByteLen()+len(b.Bytes)))
	dst = append(dst, b.CID.KeyString()...)
	return append(dst, b.Bytes...)
}

// blockSet is blocks in the order of their first arrival, to be found by CID.
type blockSet struct {
	blocks []Block
	index  map[string]int // by the bytes of the CID; nil while there are so few that looking at each is faster
}

const fewBlocks = 16

// find returns where the block under c is, -1 if it is not there.
func (s *blockSet) find(c cid.Cid) int {
	return find(s, c.KeyString())
}

// find is blockSet.find for the bytes of a CID.
func find[T string | []byte](s *blockSet, c T) int {
	if s.index != nil {
		if i, ok := s.index[string(c)]; ok {
			return i
		}
		return -1
	}
	for i := range s.blocks {
		if s.blocks[i].CID.KeyString() == string(c) {
			return i
		}
	}
	return -1
}

func (s *blockSet) add(b Block) {
	if s.find(b.CID) >= 0 {
		return
	}
	if s.blocks == nil {
		s.blocks = make([]Block, 0, 4)
	}
	s.blocks = append(s.blocks, b)
	switch {
	case s.index != nil:
		s.index[b.CID.KeyString()] = len(s.blocks) - 1
	case len(s.blocks) > fewBlocks:
		s.index = make(map[string]int, 4*fewBlocks)
		for i, b := range s.blocks {
			s.index[b.CID.KeyString()] = i
		}
	}
}

// remove takes out the block at i, which is nearly always the last.
func (s *blockSet) remove(i int) {
	last := i == len(s.blocks)-1
	delete(s.index, s.blocks[i].CID.KeyString())
	s.blocks = slices.Delete(s.blocks, i, i+1)
	if s.index != nil && !last {
		for j := i; j < len(s.blocks); j++ {
			s.index[s.blocks[j].CID.KeyString()] = j
		}
	}
}

// readLinks reads an array of links. Its result is nil if the array is empty.
func readLinks(r *cbor.Reader) []cid.Cid {
	n := r.Array()
	if n == 0 {
		return nil
	}
	links := make([]cid.Cid, 0, min(n, 64)) // n is merely announced
	for range n {
		if r.Err() != nil {
			return nil
		}
		links = append(links, r.Link())
	}
	return links
}

func appendLinks(dst []byte, links []cid.Cid) []byte {
	dst = cbor.AppendArray(dst, len(links))
	for _, c := range links {
		dst = cbor.AppendLink(dst, c)
	}
	return dst
}
