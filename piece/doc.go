// Package piece computes and names Filecoin pieces.
//
// A piece is a byte string as Filecoin stores it: zero filled to 127·2^k bytes, spread into 32-byte leaves of 254
// payload bits each (fr32 padding, two zero bits on top of every leaf), and summed up by a binary tree of SHA-256
// hashes whose two top bits are cleared. The root of that tree is the piece commitment, CommP.
//
// A [Link] is the piece CID v2 of FRC-0069, which names the root together with the height of the tree and the number
// of zero bytes that filled the payload up, so it states the exact size of the payload. Older software knows the
// piece CID v1, which carries the root alone: see [FromV1] and [Link.V1].
//
// A [Hasher] computes links from bytes; [HashReader] also computes the SHA-256 of the content in the same pass. Both use
// the widest instructions that pay on the machine, found by measuring once: 16 nodes at a time with AVX-512, two with the
// SHA instructions of amd64, or crypto/sha256. The build tag purego leaves the last alone.
//
// Sizes are in bytes. A padded size counts the bytes of the tree's leaves (32 << height), an unpadded size the
// payload bytes that fit into them (127 of every 128), and a payload size the bytes that are really there.
package piece
