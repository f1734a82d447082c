// Aggregates of the published package for made-up pieces. Go tests of package segment compare theirs with the digests in its testdata, so
// this proves that these digests are the package's. To write them anew: `node aggregates.test.mjs --write`.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Aggregate, Piece } from '@web3-storage/data-segment'

const file = fileURLToPath(new URL('../segment/testdata/javascript-aggregates.txt', import.meta.url))
const CASES = 2500

/** SplitMix64: a few lines in any language, so both sides make up the same pieces. */
function random(seed) {
  let state = BigInt(seed)
  const next = () => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n)
    let z = state
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n)
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn)
    return z ^ (z >> 31n)
  }
  return { next, below: n => Number(next() % BigInt(n)) }
}

/**
 * The deal size and pieces of a case: deals up to 32 GiB (for 64 GiB the package runs out of its integers), a few pieces or more than there
 * are entries, by size or not.
 */
function madeUp(number) {
  const rng = random(number)
  const dealHeight = 2 + rng.below(29)
  const tallest = Math.max(3, dealHeight - rng.below(6))
  const pieces = []
  for (let n = 1 + rng.below(number % 50 === 0 ? 60 : 12); n > 0; n--) {
    const root = new Uint8Array(32)
    const view = new DataView(root.buffer)
    for (let k = 0; k < 4; k++) view.setBigUint64(8 * k, rng.next(), true)
    root[31] &= 0x3f
    pieces.push({ root, height: 2 + rng.below(tallest - 1), padding: 0n })
  }
  const order = rng.below(3)
  if (order === 0) pieces.sort((a, b) => b.height - a.height)
  if (order === 1) pieces.sort((a, b) => a.height - b.height)
  return { size: 32n << BigInt(dealHeight), pieces }
}

/** What the package makes of a case, in 16 digits: the root, and each piece's proof. */
function digest({ size, pieces }) {
  let aggregate
  try {
    aggregate = Aggregate.build({ size, pieces })
  } catch (err) {
    if (!/^.?(Pieces are too large|Too many pieces)/.test(err.message)) throw err
    return 'refused'
  }
  const hash = createHash('sha256').update(aggregate.root)
  const number = n => hash.update(`,${n}`)
  for (const piece of pieces) {
    const { ok, error } = aggregate.resolveProof(Piece.toLink(piece))
    if (error) throw error
    for (const [offset, path] of ok) {
      number(offset)
      number(path.length)
      for (const node of path) hash.update(node)
    }
  }
  return hash.digest('hex').slice(0, 16)
}

function record() {
  let text = ''
  for (let number = 0; number < CASES; number++) text += digest(madeUp(number)) + '\n'
  return text
}

if (process.argv.includes('--write')) {
  await writeFile(file, record())
} else {
  test('segment/testdata has the aggregates of the published package', { timeout: 120_000 }, async () => {
    assert.equal(record(), await readFile(file, 'utf8'))
  })
}
