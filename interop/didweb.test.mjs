// Identities as the hosted deployment had them: a storefront under a did:web, and aggregator, dealer and deal tracker that share another one.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { Message } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import * as AggregatorCaps from '@storacha/capabilities/filecoin/aggregator'
import * as DealerCaps from '@storacha/capabilities/filecoin/dealer'
import * as StorefrontCaps from '@storacha/capabilities/filecoin/storefront'
import { Aggregator, DealTracker, Storefront } from '@storacha/filecoin-client'
import { serve } from './lib/go.mjs'
import { Inbox } from './lib/inbox.mjs'
import { Tasks, authorised, believable, connection, eventually, fetchReceipt, followedBy, includes, same, standing } from './lib/protocol.mjs'
import { Services } from './lib/services.mjs'
import { store } from './lib/uploads.mjs'
import * as world from './lib/world.mjs'

const storefront = world.storefront.withDID('did:web:up.storefront.test')
const pipeline = world.aggregator.withDID('did:web:pipeline.test')
const other = world.otherStorefront.withDID('did:web:other.storefront.test')
const agent = world.agent.withDID('did:web:agent.test')
const { compute, payloadOf, MiB } = world
const keys = Object.fromEntries([storefront, pipeline, other, agent].map(s => [s.did(), s.toDIDKey()]))
const tasks = new Tasks({ storefront, aggregator: pipeline, dealer: pipeline, compute })

describe('did:web, one DID for three roles', { timeout: 120_000 }, () => {
  let go, at, inbox, contents

  before(async () => {
    contents = await Promise.all([world.content(61, payloadOf(MiB)), world.content(62, payloadOf(MiB))])
    inbox = await new Inbox({ ids: [other], keys }).start()
    go = await serve({
      keys: { storefront, aggregator: pipeline, dealer: pipeline, dealtracker: pipeline, compute },
      config: {
        // Those of the roles are known in their process.
        keys: { [other.did()]: keys[other.did()], [agent.did()]: keys[agent.did()] },
        aggregator: { storefronts: [{ did: other.did(), url: inbox.urlOf(other), lane: 'other' }] },
      },
    })
    at = {
      storefront: { connection: connection(storefront, go.urls.storefront) },
      aggregator: { connection: connection(pipeline, go.urls.aggregator) },
      tracker: { connection: connection(pipeline, go.urls.dealtracker) },
    }
  })

  after(async () => {
    await go?.stop()
    await inbox?.close()
    if (go) assert.deepEqual(go.logged('ERROR'), [])
  })

  const asAgent = { issuer: agent, audience: storefront, with: agent.did() }
  const receiptAt = (role, task) => eventually(() => fetchReceipt(go.urls[role], task.cid), `receipt of ${task.cid}`)

  test('DID documents name the keys', async () => {
    for (const [role, signer] of [['storefront', storefront], ['aggregator', pipeline], ['dealer', pipeline], ['dealtracker', pipeline]]) {
      const document = await (await fetch(`${go.urls[role]}/.well-known/did.json`)).json()
      assert.equal(document.id, signer.did())
      assert.deepEqual(document.verificationMethod.map(m => `did:key:${m.publicKeyMultibase}`), [signer.toDIDKey()])
    }
  })

  test('from offer to deal', async () => {
    const group = storefront.did()
    for (const { cid, piece, payload } of contents) {
      await store({ payload }, at.storefront)
      const receipt = await Storefront.filecoinOffer(asAgent, cid, piece, at.storefront)
      await believable(receipt, receipt.ran, storefront)
      followedBy(receipt, { fork: [await tasks.submit({ cid, piece })], join: await tasks.accept({ cid, piece }) })
    }
    for (const content of contents) {
      const { piece } = content
      const accept = await tasks.accept(content)
      const concluded = await receiptAt('storefront', accept)
      await believable(concluded, accept, storefront)
      includes(concluded.out.ok)
      const { aggregate, aux } = concluded.out.ok

      const submit = await tasks.submit(content)
      const submitted = await receiptAt('storefront', submit)
      await believable(submitted, submit, storefront)
      const pieceOffer = await tasks.pieceOffer(piece, group)
      followedBy(submitted, { fork: [await tasks.pieceCid(content)], join: pieceOffer })
      await authorised(submitted.fx.join, AggregatorCaps.pieceOffer, pipeline, keys)

      const offered = await receiptAt('aggregator', pieceOffer)
      await believable(offered, pieceOffer, pipeline)
      const pieceAccept = await tasks.pieceAccept(piece, group)
      followedBy(offered, { join: pieceAccept })

      const included = await receiptAt('storefront', pieceAccept)
      await believable(included, pieceAccept, pipeline)
      const { pieces } = included.fx.join.capabilities[0].nb
      // With one DID on both sides there is no proof: these are the tasks that the published aggregator links.
      const aggregateOffer = await tasks.aggregateOffer(aggregate, pieces)
      assert.deepEqual(aggregateOffer.proofs, [])
      followedBy(included, { join: aggregateOffer })
      await authorised(included.fx.join, DealerCaps.aggregateOffer, pipeline, keys)

      const aggregateAccept = await tasks.aggregateAccept(aggregate, pieces)
      const published = await receiptAt('dealer', aggregateOffer)
      await believable(published, aggregateOffer, pipeline)
      followedBy(published, { join: aggregateAccept })
      const dealt = await receiptAt('storefront', aggregateAccept)
      await believable(dealt, aggregateAccept, pipeline)
      same(dealt.out.ok, { aggregate, ...aux })

      const info = await Storefront.filecoinInfo(asAgent, piece, at.storefront)
      same(info.out.ok.deals, [{ aggregate, provider: 'f01000', aux }])
      const deals = await DealTracker.dealInfo({ issuer: agent, audience: pipeline, with: agent.did() }, aggregate, at.tracker)
      await believable(deals, deals.ran, pipeline)
      assert.deepEqual(Object.keys(deals.out.ok.deals), [`${aux.dataSource.dealID}`])
    }
  })

  test('a storefront whose key is configured', async () => {
    const proofs = [await standing(AggregatorCaps.pieceOffer, pipeline, other)]
    const conf = { issuer: other, audience: pipeline, with: pipeline.did(), proofs }
    for (const { piece } of contents) {
      const receipt = await Aggregator.pieceOffer(conf, piece, other.did(), at.aggregator)
      await believable(receipt, receipt.ran, pipeline)
      followedBy(receipt, { join: await tasks.pieceAccept(piece, other.did()) })
    }
    for (const { piece } of contents) {
      const task = await tasks.pieceAccept(piece, other.did())
      const receipt = await inbox.receipt(task)
      await believable(receipt, task, pipeline)
      includes(receipt.out.ok)
    }
    // Whoever's key is not known has no authority.
    const unknown = world.stranger.withDID('did:web:unknown.test')
    const receipt = await Storefront.filecoinInfo({ ...asAgent, issuer: unknown, with: unknown.did() }, contents[0].piece, at.storefront)
    assert.equal(receipt.out.error?.name, 'Unauthorized')
  })

  test('a reply has the bytes that the JavaScript services answer', async () => {
    const services = await new Services({ ids: { storefront, aggregator: pipeline, dealer: pipeline, tracker: pipeline }, keys }).start()
    try {
      const { cid, piece } = await world.content(63, 500)
      const invocation = await StorefrontCaps.filecoinOffer
        .invoke({ ...asAgent, nb: { content: cid, piece }, expiration: Infinity })
        .delegate()
      const { headers, body } = await CAR.request.encode(await Message.build({ invocations: [invocation] }))
      const ask = async url => Buffer.from(await (await fetch(url, { method: 'POST', headers, body })).arrayBuffer())
      assert.deepEqual(await ask(`${go.urls.storefront}/`), await ask(`${services.url}/storefront`))
    } finally {
      await services.close()
    }
  })
})
