package piece

import (
	"errors"
	"fmt"
	"math/bits"
)

const (
	// NodeSize is the size in bytes of a leaf and of every other node of a piece's tree.
	NodeSize = 32

	// MinHeight is the height of the smallest piece: four leaves, 128 padded bytes.
	MinHeight = 2
	// MaxHeight is the height of the largest piece that a sector holds: 64 GiB padded.
	MaxHeight = 31

	// MinPaddedSize and MaxPaddedSize bound the padded size of a piece, in bytes.
	MinPaddedSize uint64 = NodeSize << MinHeight
	MaxPaddedSize uint64 = NodeSize << MaxHeight

	// MaxPayloadSize is the size in bytes of the largest payload of a piece.
	MaxPayloadSize = MaxPaddedSize / paddedQuad * quad
)

// A quad is the unit of fr32 padding: 127 payload bytes become four leaves, 128 bytes.
const (
	quad       = 127
	paddedQuad = 128
)

var (
	// ErrEmpty means that there is no payload; the smallest piece holds one byte.
	ErrEmpty = errors.New("empty payload has no piece")
	// ErrTooLarge means that a payload does not fit into the largest piece.
	ErrTooLarge = errors.New("payload exceeds the largest piece (64 GiB padded)")
)

// PaddedSizeOf returns the padded size in bytes of the piece that holds payloadSize bytes: the smallest power of two,
// at least [MinPaddedSize], whose unpadded size is not smaller. It fails with [ErrEmpty] or [ErrTooLarge].
func PaddedSizeOf(payloadSize uint64) (uint64, error) {
	height, err := heightOfPayload(payloadSize)
	if err != nil {
		return 0, err
	}
	return NodeSize << height, nil
}

// UnpaddedSize returns how many payload bytes paddedSize bytes of leaves hold: 127 of every 128.
// It is exact for multiples of 128, which all padded sizes and segment offsets are.
func UnpaddedSize(paddedSize uint64) uint64 { return paddedSize / paddedQuad * quad }

// HeightOf returns the height of the tree with paddedSize bytes of leaves, and an error unless paddedSize is a
// power of two from [MinPaddedSize] to [MaxPaddedSize].
func HeightOf(paddedSize uint64) (uint8, error) {
	if bits.OnesCount64(paddedSize) != 1 || paddedSize < MinPaddedSize || paddedSize > MaxPaddedSize {
		return 0, fmt.Errorf("padded size %d is not a power of two from %d to %d",
			paddedSize, MinPaddedSize, MaxPaddedSize)
	}
	return uint8(bits.TrailingZeros64(paddedSize / NodeSize)), nil
}

// heightOfPayload returns the height of the smallest tree that holds payloadSize bytes.
func heightOfPayload(payloadSize uint64) (uint8, error) {
	switch {
	case payloadSize == 0:
		return 0, ErrEmpty
	case payloadSize > MaxPayloadSize:
		return 0, fmt.Errorf("%d bytes: %w", payloadSize, ErrTooLarge)
	}
	quads := (payloadSize + quad - 1) / quad
	return MinHeight + uint8(bits.Len64(quads-1)), nil
}
