// Replies of the published services, for tests that have no Node: what each ability answers, and how it fails. All keys, contents and times are
// fixed, so recording again gives the same bytes.
import { Delegation, Message, invoke } from '@ucanto/core'
import { CAR } from '@ucanto/transport'
import * as AggregatorCaps from '@storacha/capabilities/filecoin/aggregator'
import * as DealTrackerCaps from '@storacha/capabilities/filecoin/deal-tracker'
import * as DealerCaps from '@storacha/capabilities/filecoin/dealer'
import * as StorefrontCaps from '@storacha/capabilities/filecoin/storefront'
import { layouts, servicesOf } from './layouts.mjs'
import { build, list } from './protocol.mjs'
import { agent, content, MiB, payloadOf } from './world.mjs'

export const file = new URL('../testdata/replies.json', import.meta.url)

/** Everything, as it is kept in testdata/replies.json. */
export async function record() {
  // Errors are signed with their stack, and that would hold the paths of this machine.
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    const recorded = {}
    for (const layout of Object.keys(layouts)) recorded[layout] = await chain(layout)
    return `${JSON.stringify(recorded, null, 1)}\n`
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

async function chain(layout) {
  const services = await servicesOf(layout)
  await services.start()
  try {
    const { storefront, aggregator, dealer, tracker } = services.ids
    const contents = await Promise.all([content(101, payloadOf(MiB)), content(102, payloadOf(MiB) - 777)])
    const [{ cid, piece }] = contents
    const group = storefront.did()
    const replies = []

    const ask = async (role, invocation, note) => {
      const { headers, body } = await CAR.request.encode(await Message.build({ invocations: [invocation] }))
      const response = await fetch(`${services.url}/${role}`, { method: 'POST', headers, body })
      const reply = new Uint8Array(await response.arrayBuffer())
      const [receipt] = (await CAR.response.decode({ headers: {}, body: reply })).receipts.values()
      const outcome = receipt.out.ok ? 'ok' : receipt.out.error.name
      replies.push({ can: invocation.capabilities[0].can, outcome, ...(note && { note }), request: base64(body), reply: base64(reply) })
      return receipt.out
    }
    const task = (capability, issuer, audience, nb, { with: resource = audience, proofs = [], attach = [] } = {}) => {
      const invocation = capability.invoke({ issuer, audience, with: resource.did(), nb, proofs, expiration: Infinity })
      for (const block of attach) invocation.attach(block)
      return invocation.buildIPLDView()
    }
    const between = (executor, invoker, proofs) => (executor.did() === invoker.did() ? [] : proofs)
    const submit = c => task(StorefrontCaps.filecoinSubmit, storefront, storefront, { content: c.cid, piece: c.piece })
    const accept = c => task(StorefrontCaps.filecoinAccept, storefront, storefront, { content: c.cid, piece: c.piece })
    const info = task(StorefrontCaps.filecoinInfo, agent, storefront, { piece }, { with: agent })
    const pieceOffer = (c, proofs = services.proofs.pieceOffer) =>
      task(AggregatorCaps.pieceOffer, storefront, aggregator, { piece: c.piece, group }, { proofs: between(aggregator, storefront, proofs) })
    const pieceAccept = c => task(AggregatorCaps.pieceAccept, aggregator, aggregator, { piece: c.piece, group })
    const deals = p => task(DealTrackerCaps.dealInfo, agent, tracker, { piece: p }, { with: agent })

    await ask('storefront', await info, 'a piece that was never offered')
    for (const c of contents) {
      services.contents.set(`${c.cid}`, c.payload)
      await ask('storefront', await task(StorefrontCaps.filecoinOffer, agent, storefront, { content: c.cid, piece: c.piece }, { with: agent }))
    }
    await services.validate()
    await ask('storefront', await info, 'a piece on its way')
    for (const c of contents) {
      await ask('storefront', await submit(c))
      await ask('aggregator', await pieceOffer(c))
    }
    await ask('aggregator', await pieceAccept(contents[0]), 'not in an aggregate')
    await ask('storefront', await accept(contents[0]), 'not in a deal')
    if (aggregator.did() !== storefront.did()) await ask('aggregator', await pieceOffer(contents[0], []), 'without a proof')
    await ask('storefront', await task(StorefrontCaps.filecoinSubmit, agent, storefront, { content: cid, piece }, { with: agent }), 'on another resource')

    const [{ aggregate, pieces }] = await services.aggregate()
    for (const c of contents) await ask('aggregator', await pieceAccept(c))
    const block = await list(contents.map(c => c.piece))
    if (`${block.cid}` !== `${pieces}` || `${build(contents.map(c => c.piece), 4 * MiB).link}` !== `${aggregate}`) {
      throw new Error('the aggregator built something else')
    }
    const offer = attach =>
      task(DealerCaps.aggregateOffer, aggregator, dealer, { aggregate, pieces }, {
        proofs: between(dealer, aggregator, services.proofs.aggregateOffer), attach,
      })
    const aggregateAccept = task(DealerCaps.aggregateAccept, dealer, dealer, { aggregate, pieces })
    await ask('dealer', await offer([]), 'without the list of pieces')
    await ask('dealer', await offer([block]))
    await ask('dealer', await aggregateAccept, 'not in a deal')
    await ask('tracker', await deals(aggregate), 'not in a deal')
    await services.dealt(aggregate, 815, 'f01234')
    await services.dealt(aggregate, 4711, 'f05678')
    await ask('tracker', await deals(aggregate))
    await ask('dealer', await aggregateAccept)
    // The published aggregator links a task that the published dealer executes only if the two share a DID.
    if (aggregator.did() === dealer.did()) {
      for (const c of contents) await ask('storefront', await accept(c))
      await ask('storefront', await info, 'a piece in a deal')
    }
    await ask('storefront', await elsewhere(storefront), 'an ability of another role')
    await ask('storefront', await twice(storefront, piece), 'two capabilities')
    return replies
  } finally {
    await services.close()
  }
}

const elsewhere = storefront =>
  invoke({ issuer: agent, audience: storefront, capability: { can: 'upload/list', with: agent.did(), nb: {} }, expiration: Infinity }).buildIPLDView()

const twice = (storefront, piece) => {
  const capability = { can: 'filecoin/info', with: agent.did(), nb: { piece } }
  return Delegation.delegate({ issuer: agent, audience: storefront, capabilities: [capability, capability], expiration: Infinity })
}

const base64 = bytes => Buffer.from(bytes).toString('base64')
