package segment

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/storacha/w3filecoin/piece"
)

// An Entry is one entry of the index of an aggregate: where a segment lies and what it is.
type Entry struct {
	Root   piece.Node // root of the segment's tree
	Offset uint64     // where it starts, in padded bytes from the start of the aggregate
	Size   uint64     // its padded size in bytes
}

// An encoded entry is root ‖ offset ‖ size ‖ checksum, integers little-endian. The checksum is the first 126 bits of
// the SHA-256 of the entry with a checksum of zeros. Two leaves hold it: the top bits of both are always zero.
const (
	entryOffset   = piece.NodeSize
	entrySize     = entryOffset + 8
	entryChecksum = entrySize + 8
)

type entryBytes = [EntrySize]byte

func (e *Entry) encode() entryBytes {
	var leaves [2]piece.Node
	e.put(&leaves[0], &leaves[1])
	sum := piece.HashPair(&leaves[0], &leaves[1])
	setChecksum(&leaves[1], &sum)
	return entryBytes(slices.Concat(leaves[0][:], leaves[1][:]))
}

// put sets the two leaves that hold the entry, the checksum to zeros.
func (e *Entry) put(left, right *piece.Node) {
	*left = e.Root
	*right = piece.Node{}
	binary.LittleEndian.PutUint64(right[entryOffset-piece.NodeSize:], e.Offset)
	binary.LittleEndian.PutUint64(right[entrySize-piece.NodeSize:], e.Size)
}

// setChecksum completes the second leaf of an entry. sum is the parent of both leaves without the checksum: a node is a
// SHA-256 cut to 254 bits, of which the checksum takes the first 126.
func setChecksum(leaf, sum *piece.Node) {
	copy(leaf[entryChecksum-piece.NodeSize:], sum[:])
	leaf[piece.NodeSize-1] &= 0x3f
}

// An entryBatch computes the nodes above entries, many at a time.
type entryBatch struct {
	hash   hashPairs
	leaves [2 * batchSize]piece.Node
	sums   [batchSize]piece.Node
}

func newEntryBatch(hash hashPairs) *entryBatch { return &entryBatch{hash: hash} }

// set makes e entry k of the batch.
func (b *entryBatch) set(k int, e Entry) { e.put(&b.leaves[2*k], &b.leaves[2*k+1]) }

// nodes sets dst to the nodes above the first len(dst) entries, by two hashes each.
func (b *entryBatch) nodes(dst []piece.Node) {
	leaves, sums := b.leaves[:2*len(dst)], b.sums[:len(dst)]
	b.hash(sums, leaves)
	for k := range sums {
		setChecksum(&leaves[2*k+1], &sums[k])
	}
	b.hash(dst, leaves)
}

// decodeEntry decodes an entry and reports whether it is valid: its checksum holds and it lies at whole quads.
func decodeEntry(b *entryBytes) (Entry, bool) {
	e := Entry{
		Root:   piece.Node(b[:piece.NodeSize]),
		Offset: binary.LittleEndian.Uint64(b[entryOffset:]),
		Size:   binary.LittleEndian.Uint64(b[entrySize:]),
	}
	const quad = piece.MinPaddedSize
	return e, e.encode() == *b && e.Offset%quad == 0 && e.Size%quad == 0
}

// CheckEntries checks that entries, as [ReadIndex] returns them, lie in an aggregate of dealSize padded bytes as pieces
// that were placed do: of a piece's size and root, aligned to it, one behind the other, before the index, and not more
// than it has room for. Damaged entries are left out by ReadIndex, so an index that passes may lack some.
func CheckEntries(entries []Entry, dealSize uint64) error {
	if _, err := piece.HeightOf(dealSize); err != nil {
		return fmt.Errorf("deal size: %w", err)
	}
	if len(entries) == 0 {
		return errors.New("index has no entries")
	}
	if limit := MaxEntries(dealSize); len(entries) > limit {
		return fmt.Errorf("index has %d entries, there is room for %d", len(entries), limit)
	}
	capacity := ContentCapacity(dealSize)
	var end uint64
	for i, e := range entries {
		height, err := piece.HeightOf(e.Size)
		if err == nil {
			_, err = piece.FromRootAndHeight(e.Root, height, 0)
		}
		switch {
		case err != nil:
			return fmt.Errorf("entry %d: %w", i, err)
		case e.Offset%e.Size != 0:
			return fmt.Errorf("entry %d of %d bytes is not aligned, at %d", i, e.Size, e.Offset)
		case e.Offset < end:
			return fmt.Errorf("entry %d at %d is unordered: the one before ends at %d", i, e.Offset, end)
		case e.Size > capacity || e.Offset > capacity-e.Size:
			return fmt.Errorf("entry %d of %d bytes at %d ends behind the content, at %d", i, e.Size, e.Offset, capacity)
		}
		end = e.Offset + e.Size
	}
	return nil
}

// ReadIndex reads the index of an aggregate from r, which starts where the index does, in the unpadded form in which
// the aggregate is stored, and returns the valid entries in their order. The space of unused and of damaged entries is
// passed over, as FRC-0058 has it. It reads to the end of r, at most the largest index there is, and fails only if
// reading fails, or if r ends within a pair of entries.
func ReadIndex(r io.Reader) ([]Entry, error) {
	limit := int64(piece.UnpaddedSize(uint64(MaxEntries(piece.MaxPaddedSize)) * EntrySize))
	br := bufio.NewReader(io.LimitReader(r, limit))
	var (
		entries  []Entry
		unpadded [quadSize]byte
		padded   [2 * EntrySize]byte
	)
	for {
		_, err := io.ReadFull(br, unpadded[:])
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading index: %w", err)
		}
		piece.Pad(padded[:], unpadded[:])
		for i := range 2 {
			if e, ok := decodeEntry((*entryBytes)(padded[i*EntrySize:])); ok {
				entries = append(entries, e)
			}
		}
	}
}
