// Pipelines of both implementations: published services stand in for some roles, `w3filecoin serve` runs the others.
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import * as AggregatorCaps from '@storacha/capabilities/filecoin/aggregator'
import * as DealerCaps from '@storacha/capabilities/filecoin/dealer'
import * as UCANCaps from '@storacha/capabilities/ucan'
import * as DealerEvents from '@storacha/filecoin-api/dealer/events'
import * as StorefrontEvents from '@storacha/filecoin-api/storefront/events'
import { Storefront } from '@storacha/filecoin-client'
import { serve } from './lib/go.mjs'
import { Inbox } from './lib/inbox.mjs'
import { Tasks, believable, connection, eventually, fetchReceipt, followedBy, includes, same, standing } from './lib/protocol.mjs'
import { Services } from './lib/services.mjs'
import { store } from './lib/uploads.mjs'
import * as world from './lib/world.mjs'

const { agent, storefront, aggregator, dealer, tracker, compute, payloadOf, MiB } = world
const tasks = new Tasks({ storefront, aggregator, dealer, compute })
const asAgent = { issuer: agent, audience: storefront, with: agent.did() }
const provider = 'f01234'

describe('mixed pipelines', { timeout: 120_000 }, () => {
  const closing = []
  after(async () => {
    for (const close of closing.reverse()) await close()
  })
  const opened = thing => {
    closing.push(() => (thing.stop ?? thing.close)())
    return thing
  }

  test('Go storefront, aggregator and compute; JavaScript dealer and deal tracker', async () => {
    const proof = await standing(DealerCaps.aggregateOffer, dealer, aggregator)
    const services = opened(await new Services({ ids: { dealer, tracker } }).start())
    const dir = await mkdtemp(join(tmpdir(), 'w3filecoin-interop-'))
    closing.push(() => rm(dir, { recursive: true, force: true }))
    const file = join(dir, 'aggregate-offer.ucan')
    await writeFile(file, (await proof.archive()).ok)
    const go = opened(
      await serve({
        keys: { storefront, aggregator, compute },
        devnet: false,
        config: {
          storefront: { dealtracker: { did: tracker.did(), url: `${services.url}/tracker` } },
          aggregator: { dealer: { did: dealer.did(), url: `${services.url}/dealer`, proof: file } },
        },
      })
    )
    const at = { connection: connection(storefront, go.urls.storefront) }
    const contents = await Promise.all([world.content(71, payloadOf(MiB)), world.content(72, payloadOf(MiB))])
    for (const { cid, piece, payload } of contents) {
      await store({ payload }, at)
      assert.ok((await Storefront.filecoinOffer(asAgent, cid, piece, at)).out.ok)
    }

    // The published dealer takes the aggregate with its list of pieces, finds the deal, and tells the aggregator.
    const offered = await eventually(() => [...services.stores.dealer.aggregateStore.items][0], 'the aggregate reaches the dealer')
    const { aggregate, pieces } = offered
    const document = [...services.stores.dealer.offerStore.items][0].value
    assert.deepEqual(document.pieces.map(p => `${p}`).toSorted(), contents.map(c => `${c.piece}`).toSorted())
    assert.equal(await services.dealerTick(), 0)
    await services.dealt(aggregate, 4711, provider)
    assert.equal(await services.dealerTick(), 1)
    const itself = { dealerService: services.service('dealer', dealer, dealer) }
    assert.ok((await DealerEvents.handleAggregateUpdatedStatus(itself, offered)).ok)
    const accept = await tasks.aggregateAccept(aggregate, pieces)
    const { ok: receipt } = await services.stores.storefront.receiptStore.get(accept.cid)
    await believable(receipt, accept, dealer)
    const concluded = await conclude(dealer, aggregator, receipt).execute(connection(aggregator, go.urls.aggregator))
    assert.ok(concluded.out.ok, concluded.out.error?.message)

    for (const content of contents) {
      const task = await tasks.accept(content)
      const end = await eventually(() => fetchReceipt(go.urls.storefront, task.cid), 'filecoin/accept')
      await believable(end, task, storefront)
      includes(end.out.ok)
      same(end.out.ok.aux, { dataType: 0, dataSource: { dealID: 4711 } })
      const info = await Storefront.filecoinInfo(asAgent, content.piece, at)
      same(info.out.ok.deals, [{ aggregate, provider, aux: end.out.ok.aux }])
      // The storefront serves the dealer's receipts on.
      for (const [link, role] of [[await tasks.aggregateOffer(aggregate, pieces), dealer], [accept, dealer]]) {
        await believable(await eventually(() => fetchReceipt(go.urls.storefront, link.cid), `receipt of ${link.cid}`), link, role)
      }
    }
    assert.deepEqual(go.logged('ERROR'), [])
  })

  test('JavaScript storefront and deal tracker; Go aggregator and dealer', async () => {
    const proof = await standing(AggregatorCaps.pieceOffer, aggregator, storefront)
    const services = new Services({ ids: { storefront, aggregator, tracker }, proofs: { pieceOffer: [proof] } })
    const inbox = opened(await new Inbox({ ids: [storefront] }).start())
    await services.start()
    opened(services)
    const go = opened(
      await serve({
        keys: { aggregator, dealer },
        devnet: false,
        config: {
          aggregator: { storefronts: [{ did: storefront.did(), url: inbox.urlOf(storefront) }] },
          dealer: { dealtracker: { did: tracker.did(), url: `${services.url}/tracker` } },
        },
      })
    )
    services.elsewhere.aggregator = go.urls.aggregator
    const at = { connection: connection(storefront, `${services.url}/storefront`) }
    const contents = await Promise.all([world.content(81, payloadOf(MiB)), world.content(82, payloadOf(MiB))])
    const itself = { storefrontService: services.service('storefront', storefront, storefront) }
    for (const { cid, piece, payload } of contents) {
      services.contents.set(`${cid}`, payload)
      assert.ok((await Storefront.filecoinOffer(asAgent, cid, piece, at)).out.ok)
    }
    await services.validate()
    for (const record of services.stores.storefront.pieceStore.items) assert.ok((await StorefrontEvents.handlePieceInsert(itself, record)).ok)
    await services.offerPieces()

    // What the Go roles answer and tell is all that the published storefront gets to see of the chain.
    const { taskStore, receiptStore } = services.stores.storefront
    const note = async receipt => {
      await taskStore.put(receipt.ran)
      await receiptStore.put(receipt)
      return receipt
    }
    let aggregate, accept
    for (const { piece } of contents) {
      const pieceOffer = await tasks.pieceOffer(piece, storefront.did())
      const offered = await note(await eventually(() => fetchReceipt(go.urls.aggregator, pieceOffer.cid), 'piece/offer'))
      followedBy(offered, { join: await tasks.pieceAccept(piece, storefront.did()) })
      const included = await note(await inbox.receipt(await tasks.pieceAccept(piece, storefront.did())))
      await believable(included, included.ran, aggregator)
      const { pieces } = included.fx.join.capabilities[0].nb
      aggregate = included.out.ok.aggregate
      accept = await tasks.aggregateAccept(aggregate, pieces)
    }
    await services.dealt(aggregate, 815, provider)
    const dealt = await note(await inbox.receipt(accept))
    await believable(dealt, accept, dealer)
    same(dealt.out.ok, { aggregate, dataType: 0, dataSource: { dealID: 815 } })
    const { cid: offerTask } = await tasks.aggregateOffer(aggregate, accept.capabilities[0].nb.pieces)
    await note(await inbox.receipt({ cid: offerTask }))

    // The published storefront finds its way from piece/offer to the deal, and answers as it always did.
    const cron = await StorefrontEvents.handleCronTick({
      ...services.stores.storefront, aggregatorInvocationConfig: services.service('aggregator', storefront).invocationConfig,
    })
    assert.deepEqual(cron.ok, { updatedCount: 2, pendingCount: 0 })
    for (const record of [...services.stores.storefront.pieceStore.items]) {
      const { ok, error } = await StorefrontEvents.handlePieceStatusUpdate(itself, record)
      assert.ok(ok, error?.message)
    }
    for (const content of contents) {
      const info = await Storefront.filecoinInfo(asAgent, content.piece, at)
      const [found] = info.out.ok?.aggregates ?? []
      assert.ok(found, info.out.error?.message)
      includes({ piece: content.piece, ...found })
      same(info.out.ok.deals, [{ aggregate, provider, aux: { dataType: 0, dataSource: { dealID: 815 } } }])
    }
    assert.deepEqual(go.logged('ERROR'), [])
  })
})

/** ucan/conclude in the published form: one receipt, its blocks attached and named in the facts. */
function conclude(issuer, audience, receipt) {
  const blocks = [...receipt.iterateIPLDBlocks()]
  const invocation = UCANCaps.conclude.invoke({
    issuer, audience, with: issuer.did(), nb: { receipt: receipt.link() }, expiration: Infinity,
    facts: [{ ...blocks.map(b => b.cid) }],
  })
  for (const block of blocks) invocation.attach(block)
  return invocation
}
