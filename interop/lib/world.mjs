// Who takes part in the tests, and what they store. Everything is derived, so every run signs and hashes the same bytes.
import * as ed25519 from '@ucanto/principal/ed25519'
import { Piece } from '@web3-storage/data-segment'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

/** The test key made of 32 bytes of one value; everybody knows it. The first five are those of the golden vectors. */
export const key = byte => ed25519.derive(new Uint8Array(32).fill(byte))

export const [agent, storefront, aggregator, dealer, tracker, compute, space, otherStorefront, otherAggregator, stranger] =
  await Promise.all([1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(key))

/** Pseudo-random bytes (xorshift32), the same for the same seed. */
export function bytes(seed, length) {
  const out = new Uint8Array(length)
  let x = (0x9e3779b9 ^ seed) >>> 0
  for (let i = 0; i < length; i++) {
    x ^= x << 13
    x >>>= 0
    x ^= x >>> 17
    x ^= x << 5
    x >>>= 0
    out[i] = x
  }
  return out
}

/** The most bytes that fill a piece of so many padded bytes. */
export const payloadOf = padded => (padded / 128) * 127

/** Content with its CID and its piece, both computed here. Uploads are mostly CAR files, whose CIDs say so. */
export async function content(seed, length, codec = raw.code) {
  const payload = bytes(seed, length)
  return {
    payload,
    cid: CID.createV1(codec, await sha256.digest(payload)),
    piece: Piece.fromPayload(payload).link,
  }
}

export const KiB = 1 << 10
export const MiB = 1 << 20
