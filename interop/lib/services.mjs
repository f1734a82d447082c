// The published services over HTTP, with the in-memory stores and queues of their own tests. What their deployment did with cron jobs, queues
// and database streams happens here when it is asked for.
import { createServer } from 'node:http'
import { connect } from '@ucanto/client'
import { CAR, HTTP } from '@ucanto/transport'
import * as AggregatorEvents from '@storacha/filecoin-api/aggregator/events'
import * as AggregatorService from '@storacha/filecoin-api/aggregator/service'
import * as DealTrackerService from '@storacha/filecoin-api/deal-tracker/service'
import * as DealerEvents from '@storacha/filecoin-api/dealer/events'
import * as DealerService from '@storacha/filecoin-api/dealer/service'
import * as StorefrontEvents from '@storacha/filecoin-api/storefront/events'
import * as StorefrontService from '@storacha/filecoin-api/storefront/service'
import { getStoreImplementations } from '@storacha/filecoin-api/test/context/service'

/** Listens on a port of this machine. The handler gets a request with its body read, and returns {status, headers, body}. */
export async function listen(handle) {
  const server = createServer(async (request, response) => {
    try {
      const parts = []
      for await (const part of request) parts.push(part)
      const { status = 200, headers = {}, body } = await handle(request, new Uint8Array(Buffer.concat(parts)))
      response.writeHead(status, headers)
      response.end(body)
    } catch (err) {
      console.error(err)
      response.writeHead(500).end(`${err}`)
    }
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () =>
      new Promise(resolve => {
        server.close(resolve)
        server.closeAllConnections()
      }),
  }
}

/** A queue that is emptied by whoever asks. */
class Queue {
  messages = []
  async add(message) {
    this.messages.push(message)
    return { ok: {} }
  }
  take() {
    return this.messages.splice(0)
  }
}

const must = async promise => {
  const { ok, error } = await promise
  if (error) throw error
  return ok
}

/**
 * All four services. `ids` are their signers, `proofs.pieceOffer` the standing delegations of the aggregator to the storefront and
 * `proofs.aggregateOffer` those of the dealer to the aggregator, `keys` maps DIDs to their did:key. Neighbours are these services themselves;
 * `urls` names others, by role.
 */
export class Services {
  constructor({ ids, proofs = {}, keys = {}, urls = {}, dealSize = 4 << 20 }) {
    this.ids = ids
    this.proofs = proofs
    this.elsewhere = urls
    this.stores = getStoreImplementations()
    this.queues = Object.fromEntries(
      ['filecoinSubmit', 'pieceOffer', 'piece', 'buffer', 'aggregateOffer', 'pieceAccept'].map(name => [name, new Queue()])
    )
    this.contents = new Map()
    this.shared = {
      errorReporter: { catch: err => console.error(err) },
      validateAuthorization: () => ({ ok: {} }),
      resolveDIDKey: did => (keys[did] ? { ok: [keys[did]] } : { error: { name: 'DIDKeyResolutionError', message: `no key of ${did}`, did } }),
    }
    this.config = { maxAggregateSize: dealSize, minAggregateSize: dealSize / 2, minUtilizationFactor: 4 }
  }

  async start() {
    const { url, close } = await listen((request, body) => this.handle(request, body))
    this.url = url
    this.close = close
    const { ids, stores, shared } = this
    // Whoever is not there cannot be a neighbour.
    const tracking = issuer => ids.tracker && { dealTrackerService: this.service('tracker', issuer, issuer) }
    this.servers = {
      storefront: ids.storefront && StorefrontService.createServer({
        ...shared, ...stores.storefront, ...tracking(ids.storefront), id: ids.storefront,
        filecoinSubmitQueue: this.queues.filecoinSubmit, pieceOfferQueue: this.queues.pieceOffer,
        aggregatorId: ids.aggregator, aggregatorInvocationConfig: this.service('aggregator', ids.storefront).invocationConfig,
      }),
      aggregator: ids.aggregator && AggregatorService.createServer({
        ...shared, ...stores.aggregator, id: ids.aggregator, dealerId: ids.dealer, pieceQueue: this.queues.piece,
        bufferQueue: this.queues.buffer, aggregateOfferQueue: this.queues.aggregateOffer, pieceAcceptQueue: this.queues.pieceAccept,
      }),
      dealer: ids.dealer && DealerService.createServer({ ...shared, ...stores.dealer, ...tracking(ids.dealer), id: ids.dealer }),
      tracker: ids.tracker && DealTrackerService.createServer({ ...shared, ...stores.dealTracker, id: ids.tracker }),
    }
    return this
  }

  /** How one service invokes on another: connection and invocation configuration, as the published events take them. */
  service(role, issuer, resource = this.ids[role]) {
    const audience = this.ids[role]
    const proofs = { aggregator: this.proofs.pieceOffer, dealer: this.proofs.aggregateOffer }[role] ?? []
    const url = this.elsewhere[role] ?? `${this.url}/${role}`
    return {
      connection: connect({ id: audience, codec: CAR.outbound, channel: HTTP.open({ url: new URL(url), method: 'POST' }) }),
      invocationConfig: { issuer, audience, with: resource.did(), proofs: issuer.did() === audience.did() ? [] : proofs },
    }
  }

  async handle(request, body) {
    const role = request.url.split('/')[1]
    const server = request.method === 'POST' && this.servers[role]
    if (!server) return { status: 404, body: `no ${request.url} here` }
    const incoming = { method: request.method, headers: request.headers, body }
    const response = await server.request(incoming)
    if ((response.status ?? 200) === 200) await this.record(incoming, response)
    return response
  }

  /** Every deployed service told the storefront of each message: the storefront follows chains by this log. */
  async record(request, response) {
    const { taskStore, receiptStore } = this.stores.storefront
    for (const invocation of (await CAR.request.decode(request)).invocations) await taskStore.put(invocation)
    for (const receipt of (await CAR.response.decode(response)).receipts.values()) {
      // Of several receipts of one task the last one counts.
      for (const earlier of receiptStore.items) if (earlier.ran.link().equals(receipt.ran.link())) receiptStore.items.delete(earlier)
      await receiptStore.put(receipt)
    }
  }

  /** The storefront's workers: compute the pieces of what was submitted and take note of them, as long as the content is at hand. */
  async validate() {
    const contentStore = {
      stream: async cid => {
        const content = this.contents.get(`${cid}`)
        return content ? { ok: new Blob([content]).stream() } : { error: new Error(`${cid} is not stored`) }
      },
    }
    for (const message of this.queues.filecoinSubmit.take()) {
      await must(StorefrontEvents.handleFilecoinSubmitMessage({ ...this.stores.storefront, contentStore }, message))
    }
  }

  /** The storefront's worker that hands pieces to the aggregator. */
  async offerPieces() {
    const context = { aggregatorService: this.service('aggregator', this.ids.storefront) }
    for (const message of this.queues.pieceOffer.take()) await must(StorefrontEvents.handlePieceOfferMessage(context, message))
  }

  /** The aggregator's workers: buffer what was offered and build an aggregate of it. Returns the aggregates made. */
  async aggregate() {
    const stores = this.stores.aggregator
    const context = {
      ...stores, config: this.config, bufferQueue: this.queues.buffer, aggregateOfferQueue: this.queues.aggregateOffer,
      pieceAcceptQueue: this.queues.pieceAccept,
    }
    const before = new Set(stores.pieceStore.items)
    for (const message of this.queues.piece.take()) await must(AggregatorEvents.handlePieceMessage(context, message))
    const inserted = [...stores.pieceStore.items].filter(item => !before.has(item))
    await must(AggregatorEvents.handlePiecesInsert(context, inserted))
    const buffers = this.queues.buffer.take()
    if (buffers.length) await must(AggregatorEvents.handleBufferQueueMessage(context, buffers))
    const made = this.queues.aggregateOffer.take()
    for (const message of made) {
      await must(AggregatorEvents.handleAggregateOfferMessage(context, message))
      const record = await must(stores.aggregateStore.get({ aggregate: message.aggregate }))
      await must(AggregatorEvents.handleAggregateInsertToPieceAcceptQueue(context, record))
    }
    for (const message of this.queues.pieceAccept.take()) await must(AggregatorEvents.handlePieceAcceptMessage(context, message))
    return made
  }

  /** The aggregator's worker that hands an aggregate to the dealer. */
  async offerAggregate(aggregate) {
    const record = await must(this.stores.aggregator.aggregateStore.get({ aggregate }))
    const context = { ...this.stores.aggregator, dealerService: this.service('dealer', this.ids.aggregator) }
    await must(AggregatorEvents.handleAggregateInsertToAggregateOffer(context, record))
  }

  /** The dealer's cron job, which asks the deal tracker. Returns how many aggregates it found dealt. */
  async dealerTick() {
    const context = { ...this.stores.dealer, dealTrackerService: this.service('tracker', this.ids.dealer, this.ids.dealer) }
    return (await must(DealerEvents.handleCronTick(context))).updatedCount
  }

  /** A deal that the tracker's oracle would have told of. */
  async dealt(piece, dealId, provider) {
    await must(
      this.stores.dealTracker.dealStore.put({
        piece, dealId, provider, expirationEpoch: 5_000_000, source: 'interop', insertedAt: new Date().toISOString(),
      })
    )
  }
}
