// The published upload client against `w3filecoin serve`: an agent stores content in a space that is not its own, has it offered, and follows it to
// its deal.
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before, describe, test } from 'node:test'
import { CAR as CarCodec, Delegation } from '@ucanto/core'
import * as Assert from '@storacha/capabilities/assert'
import * as BlobCaps from '@storacha/capabilities/space/blob'
import * as IndexCaps from '@storacha/capabilities/space/index'
import * as StorefrontCaps from '@storacha/capabilities/filecoin/storefront'
import * as UploadCaps from '@storacha/capabilities/upload'
import { CAR, uploadCAR, uploadFile } from '@storacha/upload-client'
import * as Blob from '@storacha/upload-client/blob'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { serve } from './lib/go.mjs'
import { Tasks, believable, connection, eventually, fetchReceipt, includes } from './lib/protocol.mjs'
import { store } from './lib/uploads.mjs'
import * as world from './lib/world.mjs'

const { MiB, agent, storefront, aggregator, dealer, tracker, compute, payloadOf, space, stranger } = world
const tasks = new Tasks({ storefront, aggregator, dealer, compute })

describe('JavaScript upload client, Go storefront', { timeout: 120_000 }, () => {
  let go, at, conf

  before(async () => {
    go = await serve({
      keys: { storefront, aggregator, dealer, dealtracker: tracker, compute },
      config: { storefront: { allow_hosts: ['127.0.0.1'] } },
    })
    at = { connection: connection(storefront, go.urls.storefront) }
    const grant = capability => capability.delegate({ issuer: space, audience: agent, with: space.did(), expiration: Infinity })
    const proofs = await Promise.all([BlobCaps.blob, IndexCaps.index, UploadCaps.upload].map(grant))
    conf = { issuer: agent, audience: storefront, with: space.did(), proofs }
  })

  after(async () => {
    await go?.stop()
    if (go) assert.deepEqual(go.logged('ERROR'), [])
  })

  /** Checks the storefront's claim of where bytes are, and that they are there. */
  async function checkSite(site, payload) {
    assert.equal(site.issuer.did(), storefront.did())
    assert.equal(site.audience.did(), space.did())
    const [{ can, with: resource, nb }] = site.capabilities
    assert.equal(can, Assert.location.can)
    assert.equal(resource, storefront.did())
    assert.deepEqual(nb.content.digest, (await sha256.digest(payload)).bytes)
    assert.equal(nb.location.length, 1)
    const response = await fetch(nb.location[0])
    assert.equal(response.status, 200)
    assert.deepEqual(new Uint8Array(await response.arrayBuffer()), payload)
  }

  /** Follows an offer, which has been acknowledged, to its end. */
  async function checkDealt({ cid, piece }) {
    const accept = await tasks.accept({ cid, piece })
    const receipt = await eventually(() => fetchReceipt(go.urls.storefront, accept.cid), `receipt of filecoin/accept of ${piece}`)
    await believable(receipt, accept, storefront)
    assert.equal(receipt.out.error, undefined)
    includes(receipt.out.ok)
    assert.equal(`${receipt.out.ok.piece}`, `${piece}`)
  }

  test('a blob of a space', async t => {
    const { payload } = await world.content(201, 100_000)
    const digest = await sha256.digest(payload)

    await t.test('without authority over the space', async () => {
      await assert.rejects(store({ payload }, { ...at, issuer: stranger, with: space.did() }), ({ cause }) => cause.name === 'Unauthorized')
      await assert.rejects(store({ payload }, { ...at, issuer: stranger, with: space.did(), proofs: conf.proofs }), ({ cause }) => cause.name === 'Unauthorized')
    })

    await t.test('is sent once', async () => {
      const sent = []
      await checkSite(await store({ payload }, { ...at, ...conf }, sent), payload)
      assert.deepEqual(sent.map(s => s.status), [201])
      await checkSite(await store({ payload }, { ...at, ...conf }, sent), payload)
      assert.equal(sent.length, 1)
    })

    await t.test('is listed, and removed', async () => {
      const known = async () => (await Blob.list(conf, at)).results.map(r => `${r.blob.size}`)
      await eventually(async () => (await known()).length === 1 || undefined, 'the blob is listed')
      const got = await Blob.get(conf, digest, at)
      assert.deepEqual(got.ok.blob, { digest: digest.bytes, size: payload.length })
      assert.deepEqual((await Blob.remove(conf, digest, at)).ok, { size: payload.length })
      await eventually(async () => (await known()).length === 0 || undefined, 'the blob is gone')
    })

    await t.test('of no bytes', async () => checkSite(await store({ payload: new Uint8Array() }, { ...at, ...conf }), new Uint8Array()))
  })

  test('an address takes the bytes that it was allocated for', async () => {
    const { payload } = await world.content(202, 5000)
    const tamper = change => async (url, init) => {
      const response = await fetch(url, { ...init, ...change(init) })
      assert.equal(response.ok, false)
      return response
    }
    const digest = await sha256.digest(payload)
    for (const change of [
      () => ({ body: payload.map((b, i) => (i === 4000 ? b ^ 1 : b)) }),
      () => ({ body: payload.subarray(1) }),
      () => ({ body: new Uint8Array([...payload, 0]) }),
      () => ({ headers: {} }),
      ({ headers }) => ({ headers: { ...headers, authorization: headers.authorization.replace(/.$/, c => (c === 'A' ? 'Q' : 'A')) } }),
    ]) {
      await assert.rejects(Blob.add(conf, digest, payload, { ...at, fetchWithUploadProgress: tamper(change), retries: 0 }), /upload failed: 4/)
    }
    // A client that says so without having sent anything is not believed, and nothing has come of what was tampered with.
    const pretend = async () => new Response()
    await assert.rejects(Blob.add(conf, digest, payload, { ...at, fetchWithUploadProgress: pretend, retries: 0 }), { name: 'ReceiptNotFound' })
    const sent = []
    await checkSite(await store({ payload }, { ...at, ...conf }, sent), payload)
    assert.deepEqual(sent.map(s => s.status), [201])
  })

  test('uploadFile to its deal', async () => {
    const shards = []
    const file = new globalThis.Blob([world.bytes(203, payloadOf(4 * MiB) - 100_000)])
    const root = await uploadFile(conf, file, { ...at, onShardStored: shard => shards.push(shard) })
    assert.equal(root.code, 0x70)
    assert.equal(shards.length, 1)
    const [{ cid, piece }] = shards
    await checkDealt({ cid: CID.createV1(raw.code, cid.multihash), piece })
    const known = await Blob.list(conf, at)
    assert.ok(known.results.some(({ blob }) => Buffer.from(blob.digest).equals(cid.multihash.bytes)))
  })

  test('claims of what is stored, and of others', async () => {
    const content = await world.content(210, payloadOf(MiB))
    const site = await store(content, { ...at, ...conf })
    const offered = await StorefrontCaps.filecoinOffer
      .invoke({ issuer: agent, audience: storefront, with: agent.did(), nb: { content: content.cid, piece: content.piece } })
      .execute(at.connection)
    assert.ok(offered.out.ok)
    const claims = async cid => {
      const response = await fetch(`${go.urls.storefront}/claims/${cid}`, { headers: { accept: 'application/json' } })
      assert.equal(response.status, 200)
      return (await response.json()).claims
    }
    const own = await eventually(async () => {
      const list = await claims(content.cid)
      return list.some(c => c.ability === Assert.equals.can) && list.some(c => c.ability === Assert.location.can) ? list : undefined
    }, 'the storefront claims where the content is, and its piece')
    assert.ok(own.some(c => c.claim === `${site.cid}`))
    assert.equal(own.find(c => c.ability === Assert.equals.can).caveats.equals['/'], `${content.piece}`)
    assert.ok((await claims(content.piece)).some(c => c.ability === Assert.equals.can))

    // The bytes that are signed come as a CAR.
    const response = await fetch(`${go.urls.storefront}/claim/${site.cid}`)
    const { roots, blocks } = CarCodec.decode(new Uint8Array(await response.arrayBuffer()))
    const kept = Delegation.view({ root: roots[0].cid, blocks })
    assert.equal(`${kept.cid}`, `${site.cid}`)

    // A claim by the agent on the space, which has delegated.
    const proof = await Assert.assert.delegate({ issuer: space, audience: agent, with: space.did(), expiration: Infinity })
    const elsewhere = { content: { digest: content.cid.multihash.bytes }, location: ['https://elsewhere.example/x'] }
    const claim = proofs => Assert.location.invoke({ issuer: agent, audience: storefront, with: space.did(), proofs, nb: elsewhere }).execute(at.connection)
    assert.equal((await claim([])).out.error.name, 'Unauthorized')
    const receipt = await claim([proof])
    assert.deepEqual(receipt.out.ok, {})
    const theirs = await eventually(async () => (await claims(content.cid)).find(c => c.issuer === agent.did()), 'the claim of the agent is served')
    assert.deepEqual(theirs.caveats.location, elsewhere.location)
    assert.equal(theirs.claim, `${receipt.ran.link()}`)
  })

  test('content is fetched from where a claim that comes with the offer says it is', async () => {
    const content = await world.content(230, payloadOf(4 * MiB))
    const requests = []
    const node = createServer((request, response) => {
      requests.push(request.url)
      response.end(content.payload)
    })
    await new Promise(resolve => node.listen(0, '127.0.0.1', resolve))
    try {
      const claim = await Assert.location.delegate({
        issuer: stranger, audience: agent, with: stranger.did(), expiration: Infinity,
        nb: { content: { digest: content.cid.multihash.bytes }, location: [`http://127.0.0.1:${node.address().port}/blob`] },
      })
      const offer = StorefrontCaps.filecoinOffer.invoke({
        issuer: agent, audience: storefront, with: agent.did(), nb: { content: content.cid, piece: content.piece },
        facts: [{ claim: claim.cid }],
      })
      for (const block of claim.iterateIPLDBlocks()) offer.attach(block)
      const receipt = await offer.execute(at.connection)
      assert.equal(receipt.out.error, undefined)
      await checkDealt(content)
      assert.deepEqual(requests, ['/blob'])
      const stored = await fetch(`${go.urls.storefront}/content/${content.cid}`, { method: 'HEAD' })
      assert.equal(stored.status, 200)
    } finally {
      await new Promise(resolve => node.close(resolve))
    }
  })

  test('uploadCAR in shards to its deals', async () => {
    const blocks = await Promise.all(
      Array.from({ length: 6 }, async (_, i) => {
        const payload = world.bytes(204 + i, MiB)
        return { cid: CID.createV1(raw.code, await sha256.digest(payload)), bytes: payload }
      })
    )
    const shards = []
    const car = await CAR.encode(blocks, blocks.at(-1).cid)
    const root = await uploadCAR(conf, car, { ...at, shardSize: 4 * MiB, onShardStored: shard => shards.push(shard) })
    assert.equal(`${root}`, `${blocks.at(-1).cid}`)
    assert.ok(shards.length > 1, `${shards.length} shards`)
    for (const { cid, piece } of shards) await checkDealt({ cid: CID.createV1(raw.code, cid.multihash), piece })
  })

  test('an index that was not stored is not published', async () => {
    const index = CID.createV1(0x0202, await sha256.digest(new Uint8Array([1, 2, 3])))
    const receipt = await IndexCaps.add.invoke({ ...conf, nb: { index } }).execute(at.connection)
    assert.equal(receipt.out.error.name, 'IndexNotFound')
  })

  test('a space may allow a blob of a size, and no more', async () => {
    const { payload } = await world.content(220, 3000)
    const digest = await sha256.digest(payload)
    const proof = await BlobCaps.add.delegate({
      issuer: space, audience: stranger, with: space.did(), nb: { blob: { digest: digest.bytes, size: payload.length } }, expiration: Infinity,
    })
    assert.ok(Delegation.isDelegation(proof))
    const limited = { ...at, issuer: stranger, with: space.did(), proofs: [proof] }
    await checkSite(await store({ payload }, limited), payload)
    await assert.rejects(store({ payload: payload.subarray(1) }, limited), ({ cause }) => cause.name === 'Unauthorized')
  })

  test('what is uploaded is limited', async () => {
    const keys = { storefront, aggregator, dealer, dealtracker: tracker, compute }
    const limited = await serve({ keys, config: { storefront: { allow_hosts: ['127.0.0.1'], upload_limits: { agent_size: 2000 } } } })
    try {
      const { payload } = await world.content(222, 2001)
      const sent = []
      const own = { ...conf, connection: connection(storefront, limited.urls.storefront) }
      await assert.rejects(store({ payload }, own, sent), ({ message, cause }) => {
        assert.equal(message, 'failed space/blob/add invocation')
        assert.equal(cause.name, 'QuotaExceeded')
        assert.equal(cause.subject, `agent/${agent.did()}`)
        assert.equal(cause.maxBytes, 2000)
        assert.ok(cause.retryAfter > 0 && cause.retryAfter <= 86_400)
        return true
      })
      assert.deepEqual(sent, [])
      await checkSite(await store({ payload: payload.subarray(1) }, own, sent), payload.subarray(1))
      assert.deepEqual(sent.map(s => s.status), [201])
      assert.deepEqual(limited.logged('ERROR'), [])
    } finally {
      await limited.stop()
    }
  })

  test('filecoin/offer on a space needs a delegation too', async () => {
    const content = await world.content(221, 3000)
    await store(content, { ...at, ...conf })
    const offer = proofs => StorefrontCaps.filecoinOffer.invoke({ ...conf, proofs, nb: { content: content.cid, piece: content.piece } }).execute(at.connection)
    assert.equal((await offer(conf.proofs)).out.error.name, 'Unauthorized')
    const grant = await StorefrontCaps.filecoinOffer.delegate({ issuer: space, audience: agent, with: space.did(), expiration: Infinity })
    assert.equal(`${(await offer([grant])).out.ok.piece}`, `${content.piece}`)
  })
})
