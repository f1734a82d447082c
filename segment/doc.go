// Package segment builds and verifies verifiable data aggregates, FRC-0058: many pieces placed side by side in one large
// piece, which a single Filecoin deal stores, with an index of them at its end.
//
// [Build] places pieces in the order given, each aligned to its own padded size, and computes the tree over them and
// over the index; a [Builder] gathers them one by one. An [Aggregate] hands out an [InclusionProof] for each piece;
// [Verify] checks one against nothing but the link of the piece and the link of the aggregate, [VerifyAll] any number of
// them, and [VerifyAggregate] all there is. A [Reader] presents the aggregate as the file that a storage provider
// downloads.
//
// Pieces are placed as they come, and a piece larger than the one before leaves a gap before it. Sizes are powers of
// two, so pieces in descending order of size leave none: see [SortDescending].
//
// Sizes and offsets are in padded bytes unless a name says otherwise. 127 of every 128 padded bytes are data: see
// piece.UnpaddedSize.
package segment
