// A JavaScript neighbour that receipts are pushed to: it executes ucan/conclude as the published upload service does.
import { CAR } from '@ucanto/transport'
import * as Server from '@ucanto/server'
import * as UCAN from '@storacha/capabilities/ucan'
import { eventually } from './protocol.mjs'
import { listen } from './services.mjs'

export class Inbox {
  #receipts = new Map()

  #keys

  /** `ids` are the signers of the neighbours that share the inbox; `keys` maps DIDs to their did:key. */
  constructor({ ids, keys = {} }) {
    this.ids = ids
    this.#keys = keys
  }

  async start() {
    const servers = this.ids.map(id => this.#serverOf(id))
    const { url, close } = await listen(async (request, body) => {
      const server = servers[Number(request.url.split('/')[1])]
      if (!server) return { status: 404 }
      const incoming = { headers: request.headers, body }
      const response = await server.request(incoming)
      if ((response.status ?? 200) !== 200) return response
      // What is in the message is taken once the invocation that hands it over was executed.
      const executed = [...(await CAR.response.decode(response)).receipts.values()]
      if (executed.every(receipt => receipt.out.ok)) {
        for (const [task, receipt] of (await CAR.request.decode(incoming)).receipts) this.#receipts.set(task, receipt)
      }
      return response
    })
    this.url = url
    this.close = close
    return this
  }

  urlOf(id) {
    return `${this.url}/${this.ids.indexOf(id)}`
  }

  #serverOf(id) {
    return Server.create({
      id,
      codec: CAR.inbound,
      service: {
        ucan: {
          conclude: Server.provide(UCAN.conclude, async ({ capability, invocation }) => {
            const blocks = new Set([...invocation.export()].map(b => `${b.cid}`))
            if (!blocks.has(`${capability.nb.receipt}`)) return Server.error(new Server.Failure('the receipt is not attached'))
            return Server.ok({ time: Date.now() })
          }),
        },
      },
      validateAuthorization: () => ({ ok: {} }),
      resolveDIDKey: did => ({ ok: [this.#keys[did]] }),
    })
  }

  /** The receipt of a task, once it is here. */
  receipt(task) {
    return eventually(() => this.#receipts.get(`${task.cid}`), `told of ${task.cid}`)
  }
}
