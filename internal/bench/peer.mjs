// The published storefront over HTTP with its in-memory stores and queues: what `make bench` compares with. Nobody works off its queue, and nothing
// survives the process. Prints one line, {"url", "did"}, once it listens. The packages are those that interop/ pins.
import { Services } from '../../interop/lib/services.mjs'
import { aggregator, storefront } from '../../interop/lib/world.mjs'

class Peer extends Services {
  // The log of all messages, which followers of chains need, would have each of them decoded once more.
  async record() {}
}

const peer = await new Peer({ ids: { storefront, aggregator } }).start()
console.log(JSON.stringify({ url: `${peer.url}/storefront`, did: storefront.did() }))
