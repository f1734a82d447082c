// Measures aggregates of @web3-storage/data-segment: node aggregates.mjs PIECES HEIGHT. One line of JSON per phase, see aggregates.go.
import { readFileSync } from 'node:fs'
import { Aggregate, Piece } from '../../interop/node_modules/@web3-storage/data-segment/src/lib.js'
import * as InclusionProof from '../../interop/node_modules/@web3-storage/data-segment/src/inclusion.js'

const [count, height] = process.argv.slice(2).map(Number)

let state = BigInt(count)
const next = () => {
  // SplitMix64
  state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n)
  let z = state
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n)
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn)
  return z ^ (z >> 31n)
}

const pieces = []
for (let i = 0; i < count; i++) {
  const root = new Uint8Array(32)
  const view = new DataView(root.buffer)
  for (let k = 0; k < 4; k++) view.setBigUint64(8 * k, next(), true)
  root[31] &= 0x3f
  pieces.push({ root, height, padding: 0n })
}

function report(phase, took, root) {
  const peak = Number(/VmHWM:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0)
  console.log(JSON.stringify({ phase, times: [took], root, peak }))
}

// Processor time, in milliseconds.
const now = () => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

let start = now()
const aggregate = Aggregate.build({ size: 32n << 30n, pieces })
report('build', now() - start, Buffer.from(aggregate.root).toString('hex'))

// A piece is looked up by searching the index, so proofs are kept to be verified: to make them again would take as long.
const links = pieces.map(piece => Piece.toLink(piece))
const proofs = []
start = now()
for (const link of links) {
  const { ok, error } = aggregate.resolveProof(link)
  if (error) throw error
  proofs.push(ok)
}
report('proofs', now() - start)

const want = aggregate.link.toString()
start = now()
for (const [i, proof] of proofs.entries()) {
  const { ok, error } = InclusionProof.resolveAggregate(proof, links[i])
  if (error) throw error
  if (ok.toString() !== want) throw new Error(`proof ${i} is for ${ok}`)
}
report('verify', now() - start)
