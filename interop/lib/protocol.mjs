// The protocol as the published packages speak it: which tasks follow from which, and what makes a receipt of them believable.
import assert from 'node:assert/strict'
import { connect, invoke } from '@ucanto/client'
import { CBOR, Delegation } from '@ucanto/core'
import { Verifier } from '@ucanto/principal'
import { CAR, HTTP } from '@ucanto/transport'
import { access } from '@ucanto/validator'
import * as Aggregator from '@storacha/capabilities/filecoin/aggregator'
import * as Dealer from '@storacha/capabilities/filecoin/dealer'
import * as Storefront from '@storacha/capabilities/filecoin/storefront'
import { Aggregate, Inclusion, Piece } from '@web3-storage/data-segment'

export const MEDIA_TYPE = 'application/vnd.ipld.car'

/** A connection as the published clients make it. */
export const connection = (id, url, codec = CAR.outbound) => connect({ id, codec, channel: HTTP.open({ url: new URL(url), method: 'POST' }) })

/** A standing delegation from the executor of an ability to its invoker, as operators make it. */
export const standing = (capability, executor, invoker) =>
  capability.delegate({ issuer: executor, audience: invoker, with: executor.did(), expiration: Infinity })

/** Reads a delegation file, which `w3filecoin delegate` and `Delegation.archive` write alike. */
export async function extract(archive) {
  const { ok, error } = await Delegation.extract(archive)
  if (error) throw error
  return ok
}

const own = (capability, role, nb) =>
  capability.invoke({ issuer: role, audience: role, with: role.did(), nb, expiration: Infinity }).delegate()

const handOn = (capability, invoker, executor, nb, proofs) =>
  capability.invoke({ issuer: invoker, audience: executor, with: executor.did(), nb, expiration: Infinity, proofs }).delegate()

/**
 * The tasks that follow from an offer, signed here with the roles' keys. Roles that share one DID need no proof between them; others have the
 * standing delegations.
 */
export class Tasks {
  constructor({ storefront, aggregator, dealer, compute }) {
    Object.assign(this, { storefront, aggregator, dealer, compute })
  }
  async #proofs(capability, executor, invoker) {
    return executor.did() === invoker.did() ? [] : [await standing(capability, executor, invoker)]
  }
  submit({ cid, piece }) {
    return own(Storefront.filecoinSubmit, this.storefront, { content: cid, piece })
  }
  accept({ cid, piece }) {
    return own(Storefront.filecoinAccept, this.storefront, { content: cid, piece })
  }
  /** compute/piececid, which is not among the published capabilities. */
  async pieceCid({ cid }) {
    const capability = { can: 'compute/piececid', with: this.compute.did() }
    const proof = await Delegation.delegate({
      issuer: this.compute, audience: this.storefront, capabilities: [capability], expiration: Infinity,
    })
    return invoke({
      issuer: this.storefront, audience: this.compute, capability: { ...capability, nb: { content: cid } }, proofs: [proof], expiration: Infinity,
    }).delegate()
  }
  async pieceOffer(piece, group) {
    const proofs = await this.#proofs(Aggregator.pieceOffer, this.aggregator, this.storefront)
    return handOn(Aggregator.pieceOffer, this.storefront, this.aggregator, { piece, group }, proofs)
  }
  pieceAccept(piece, group) {
    return own(Aggregator.pieceAccept, this.aggregator, { piece, group })
  }
  async aggregateOffer(aggregate, pieces) {
    const proofs = await this.#proofs(Dealer.aggregateOffer, this.dealer, this.aggregator)
    return handOn(Dealer.aggregateOffer, this.aggregator, this.dealer, { aggregate, pieces }, proofs)
  }
  aggregateAccept(aggregate, pieces) {
    return own(Dealer.aggregateAccept, this.dealer, { aggregate, pieces })
  }
}

/** Fetches the receipt of a task as the published upload client does; undefined while there is none. */
export async function fetchReceipt(url, task) {
  const response = await fetch(new URL(`/receipt/${task}`, url))
  if (response.status === 404) {
    await response.arrayBuffer()
    return undefined
  }
  assert.equal(response.status, 200)
  assert.equal(response.headers.get('content-type'), MEDIA_TYPE)
  const message = await CAR.request.decode({ body: new Uint8Array(await response.arrayBuffer()), headers: {} })
  const receipt = message.receipts.get(`${task}`)
  assert.ok(receipt, `the message for ${task} holds another task's receipt`)
  return receipt
}

/** Asks again until there is something, at most for so many seconds. */
export async function eventually(ask, what, seconds = 60) {
  const end = Date.now() + seconds * 1000
  for (;;) {
    const got = await ask()
    if (got !== undefined) return got
    assert.ok(Date.now() < end, `${what}: not within ${seconds} seconds`)
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}

/** The receipt is of this task, issued and signed by its executor. */
export async function believable(receipt, task, executor) {
  assert.equal(`${receipt.ran.link()}`, `${task.cid ?? task}`, 'the receipt is of another task')
  assert.equal(receipt.issuer?.did(), executor.did(), 'the receipt was issued by somebody else')
  const { ok, error } = await receipt.verifySignature(executor)
  assert.ok(ok, `the signature of the receipt does not hold: ${error?.message}`)
}

/** The effects of a receipt are these tasks, byte for byte. */
export function followedBy(receipt, { fork = [], join }) {
  assert.deepEqual(receipt.fx.fork.map(f => `${f.link()}`), fork.map(f => `${f.cid}`), 'fork')
  assert.equal(receipt.fx.join && `${receipt.fx.join.link()}`, join && `${join.cid}`, 'join')
}

/** An invocation as the published services judge it: signatures, chain of proofs, caveats. `keys` maps DIDs to the did:key that stands for them. */
export async function authorised(invocation, capability, authority, keys = {}) {
  const result = await access(invocation, {
    capability,
    authority,
    principal: Verifier,
    resolveDIDKey: did => (keys[did] ? { ok: [keys[did]] } : { error: new Error(`no key of ${did}`) }),
    validateAuthorization: () => ({ ok: {} }),
  })
  if (result.error) throw result.error
  return result.ok
}

/** Two values are the same on the wire. Links are objects of several classes, so that comparing objects would not do. */
export const same = (actual, expected) => assert.deepEqual(readable(actual), readable(expected))
const readable = value => JSON.parse(JSON.stringify(CBOR.decode(CBOR.encode(value))))

/** The proof leads from the piece to the aggregate. */
export function includes({ inclusion, piece, aggregate }) {
  const { ok, error } = Inclusion.resolveAggregate(Inclusion.from([inclusion.subtree, inclusion.index]), piece)
  assert.ok(ok, error?.message)
  assert.equal(`${ok}`, `${aggregate}`, 'the proof leads to another aggregate')
}

/** The aggregate of pieces in this order. */
export const build = (links, size) => Aggregate.build({ pieces: links.map(l => Piece.fromLink(l)), size: Aggregate.Size.from(BigInt(size)) })

/** The block that lists pieces. */
export const list = links => CBOR.write(links)
