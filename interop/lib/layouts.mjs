// Who signs as whom, in two deployments of the published services.
import * as AggregatorCaps from '@storacha/capabilities/filecoin/aggregator'
import * as DealerCaps from '@storacha/capabilities/filecoin/dealer'
import { standing } from './protocol.mjs'
import { Services } from './services.mjs'
import * as world from './world.mjs'

const pipeline = world.aggregator.withDID('did:web:pipeline.test')

export const layouts = {
  /** Every role under a did:key of its own. */
  key: { storefront: world.storefront, aggregator: world.aggregator, dealer: world.dealer, tracker: world.tracker },
  /** As hosted: the storefront under one did:web, the three roles behind it under another, with one key. */
  web: { storefront: world.storefront.withDID('did:web:up.storefront.test'), aggregator: pipeline, dealer: pipeline, tracker: pipeline },
}

/** The services of a layout, with the standing delegations between them. */
export async function servicesOf(layout) {
  const ids = layouts[layout]
  const between = async (capability, executor, invoker) => (executor.did() === invoker.did() ? [] : [await standing(capability, executor, invoker)])
  return new Services({
    ids,
    proofs: {
      pieceOffer: await between(AggregatorCaps.pieceOffer, ids.aggregator, ids.storefront),
      aggregateOffer: await between(DealerCaps.aggregateOffer, ids.dealer, ids.aggregator),
    },
    keys: Object.fromEntries(Object.values(ids).map(s => [s.did(), s.toDIDKey()])),
  })
}
