// The published services for clients in other languages: `node server.mjs key|web` says on stdout where they are, one line of JSON, and ends
// with its standard input. Beside the services, at /storefront, /aggregator, /dealer and /tracker, there are
//
//	PUT  /control/content                     bytes that the storefront finds when it validates
//	POST /control/validate                    let the storefront validate what was offered
//	POST /control/aggregate                   let the aggregator build aggregates; answers [{aggregate, pieces}]
//	POST /control/deal?piece=&id=&provider=   let the deal tracker know of a deal
import { CID } from 'multiformats/cid'
import * as Link from 'multiformats/link'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { layouts, servicesOf } from './lib/layouts.mjs'

// The published code writes to stdout, which is not its place here.
console.log = console.error

const layout = process.argv[2]
if (!layouts[layout]) {
  console.error(`usage: node server.mjs ${Object.keys(layouts).join('|')}`)
  process.exit(2)
}

const services = await servicesOf(layout)
const handle = services.handle.bind(services)
services.handle = async (request, body) => {
  const { pathname, searchParams: query } = new URL(request.url, 'http://127.0.0.1')
  switch (`${request.method} ${pathname}`) {
    case 'PUT /control/content':
      services.contents.set(`${CID.createV1(raw.code, await sha256.digest(body))}`, body)
      return { status: 204 }
    case 'POST /control/validate':
      await services.validate()
      return { status: 204 }
    case 'POST /control/aggregate': {
      const made = await services.aggregate()
      return { body: JSON.stringify(made.map(({ aggregate, pieces }) => ({ aggregate: `${aggregate}`, pieces: `${pieces}` }))) }
    }
    case 'POST /control/deal':
      await services.dealt(Link.parse(query.get('piece')), Number(query.get('id')), query.get('provider'))
      return { status: 204 }
  }
  return handle(request, body)
}
await services.start()
process.stdout.write(`${JSON.stringify({ url: services.url })}\n`)
process.stdin.resume().on('end', () => services.close())
