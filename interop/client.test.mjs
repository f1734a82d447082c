// The published JavaScript client against `w3filecoin serve`: every role under a did:key of its own.
import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { invoke } from '@ucanto/client'
import { CBOR, Delegation, Message } from '@ucanto/core'
import { Absentee } from '@ucanto/principal'
import * as RSA from '@ucanto/principal/rsa'
import { CAR } from '@ucanto/transport'
import * as AggregatorCaps from '@storacha/capabilities/filecoin/aggregator'
import * as DealerCaps from '@storacha/capabilities/filecoin/dealer'
import * as DealTrackerCaps from '@storacha/capabilities/filecoin/deal-tracker'
import * as StorefrontCaps from '@storacha/capabilities/filecoin/storefront'
import * as PDP from '@storacha/capabilities/pdp'
import * as UCANCaps from '@storacha/capabilities/ucan'
import { Aggregator, Dealer, DealTracker, Storefront } from '@storacha/filecoin-client'
import { Piece } from '@web3-storage/data-segment'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'
import { run, secret, serve } from './lib/go.mjs'
import { Inbox } from './lib/inbox.mjs'
import {
  MEDIA_TYPE, Tasks, authorised, believable, build, connection, eventually, extract, fetchReceipt, followedBy, includes, list, same, standing,
} from './lib/protocol.mjs'
import { Services } from './lib/services.mjs'
import { store } from './lib/uploads.mjs'
import * as world from './lib/world.mjs'

const { KiB, MiB, agent, storefront, aggregator, dealer, tracker, compute, otherStorefront, otherAggregator, payloadOf, space, stranger } = world
const MAX_PIECE = 4 * MiB
const CAR_CODEC = 0x0202
const tasks = new Tasks({ storefront, aggregator, dealer, compute })

describe('JavaScript client, Go services', { timeout: 120_000 }, () => {
  let go, at, inbox, contents

  before(async () => {
    // Together they fill an aggregate of 4 MiB by more than half. Not all fill their piece.
    contents = await Promise.all([
      world.content(1, payloadOf(MiB)), world.content(2, payloadOf(512 * KiB)), world.content(3, payloadOf(512 * KiB) - 1000),
      world.content(4, payloadOf(256 * KiB)), world.content(5, 100_000, CAR_CODEC), world.content(6, 500),
    ])
    inbox = await new Inbox({ ids: [otherStorefront, otherAggregator] }).start()
    go = await serve({
      keys: { storefront, aggregator, dealer, dealtracker: tracker, compute },
      config: {
        storefront: { max_piece: '4MiB' },
        aggregator: { storefronts: [{ did: otherStorefront.did(), url: inbox.urlOf(otherStorefront), lane: 'other' }] },
        dealer: { aggregators: [{ did: otherAggregator.did(), url: inbox.urlOf(otherAggregator) }] },
      },
    })
    at = {
      storefront: { connection: connection(storefront, go.urls.storefront) },
      aggregator: { connection: connection(aggregator, go.urls.aggregator) },
      dealer: { connection: connection(dealer, go.urls.dealer) },
      tracker: { connection: connection(tracker, go.urls.dealtracker) },
    }
  })

  after(async () => {
    await go?.stop()
    await inbox?.close()
    // Nothing that was asked of the services is a fault of theirs or of a neighbour.
    if (go) assert.deepEqual(go.logged('ERROR').filter(line => !line.includes('an aggregate is refused for good')), [])
  })

  const upload = content => store(content, at.storefront)
  const asAgent = { issuer: agent, audience: storefront, with: agent.did() }
  const offer = ({ cid, piece }, conf = asAgent) => Storefront.filecoinOffer(conf, cid, piece, at.storefront)
  const info = piece => Storefront.filecoinInfo(asAgent, piece, at.storefront)
  const receiptAt = (role, task, seconds) => eventually(() => fetchReceipt(go.urls[role], task.cid ?? task), `receipt of ${task.cid ?? task}`, seconds)
  const failed = (receipt, name) => {
    assert.equal(receipt.out.ok, undefined)
    assert.equal(receipt.out.error.name, name, receipt.out.error.message)
    assert.equal(typeof receipt.out.error.message, 'string')
    assert.equal('stack' in receipt.out.error, false, 'a stack trace is signed')
    return receipt.out.error
  }

  test('an offered piece is followed to its deal', async t => {
    const [first] = contents

    await t.test('filecoin/info of a piece that was never offered', async () => {
      const receipt = await info(first.piece)
      await believable(receipt, receipt.ran, storefront)
      failed(receipt, 'RecordNotFound')
    })

    await t.test('upload', async () => {
      for (const content of contents) await upload(content)
    })

    await t.test('filecoin/offer', async () => {
      for (const content of contents) {
        const receipt = await offer(content)
        await believable(receipt, receipt.ran, storefront)
        assert.equal(`${receipt.out.ok?.piece}`, `${content.piece}`)
        assert.deepEqual(Object.keys(receipt.out.ok), ['piece'])
        followedBy(receipt, { fork: [await tasks.submit(content)], join: await tasks.accept(content) })
      }
      // Offered again it is the same task, and that has one receipt.
      const [one, two] = [await offer(first), await offer(first)]
      assert.equal(`${one.link()}`, `${two.link()}`)
    })

    await t.test('filecoin/info of a piece on its way', async () => {
      const receipt = await info(contents[5].piece)
      assert.equal(`${receipt.out.ok?.piece}`, `${contents[5].piece}`)
      assert.deepEqual([receipt.out.ok.aggregates, receipt.out.ok.deals], [[], []])
    })

    const group = storefront.did()
    let accepted

    await t.test('filecoin/accept', async () => {
      for (const content of contents) {
        const task = await tasks.accept(content)
        const receipt = await receiptAt('storefront', task)
        await believable(receipt, task, storefront)
        followedBy(receipt, {})
        accepted = receipt.out.ok
        assert.equal(`${accepted?.piece}`, `${content.piece}`, receipt.out.error?.message)
        includes(accepted)
        assert.equal(accepted.aux.dataType, 0)
        assert.ok(Number.isInteger(accepted.aux.dataSource.dealID))
        assert.deepEqual(Object.keys(accepted).sort(), ['aggregate', 'aux', 'inclusion', 'piece'])
      }
    })

    await t.test('every link between', async () => {
      for (const content of contents) {
        const submit = await tasks.submit(content)
        const pieceOffer = await tasks.pieceOffer(content.piece, group)
        const pieceAccept = await tasks.pieceAccept(content.piece, group)

        const submitted = await receiptAt('storefront', submit)
        await believable(submitted, submit, storefront)
        assert.equal(`${submitted.out.ok?.piece}`, `${content.piece}`)
        const computed = await tasks.pieceCid(content)
        followedBy(submitted, { fork: [computed], join: pieceOffer })
        // The invocation travels with the receipt that links it, and the published services would execute it.
        assert.ok(Delegation.isDelegation(submitted.fx.join))
        await authorised(submitted.fx.join, AggregatorCaps.pieceOffer, aggregator)

        const verdict = await receiptAt('storefront', computed)
        await believable(verdict, computed, compute)
        assert.equal(`${verdict.out.ok?.piece}`, `${content.piece}`)

        for (const role of ['storefront', 'aggregator']) {
          const offered = await receiptAt(role, pieceOffer)
          await believable(offered, pieceOffer, aggregator)
          assert.equal(`${offered.out.ok?.piece}`, `${content.piece}`)
          followedBy(offered, { join: pieceAccept })

          const included = await receiptAt(role, pieceAccept)
          await believable(included, pieceAccept, aggregator)
          assert.equal(`${included.out.ok.piece}`, `${content.piece}`)
          includes(included.out.ok)
          assert.equal(included.fx.fork.length, 0)
          const aggregateOffer = included.fx.join
          assert.ok(Delegation.isDelegation(aggregateOffer))
          await authorised(aggregateOffer, DealerCaps.aggregateOffer, dealer)
          const { aggregate, pieces } = aggregateOffer.capabilities[0].nb
          assert.equal(`${aggregate}`, `${included.out.ok.aggregate}`)
          followedBy(included, { join: await tasks.aggregateOffer(aggregate, pieces) })
        }
      }
    })

    await t.test('the aggregate', async () => {
      const { aggregate, aux } = accepted
      const documents = await (await fetch(`${go.urls.dealer}/offers`)).json()
      const name = documents.offers.map(o => o.key ?? o).find(k => k.includes(`${aggregate}`))
      assert.match(name, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z_bafkzci[a-z0-9]+\.json$/)
      const document = await (await fetch(`${go.urls.dealer}/offers/${name}`)).json()
      assert.equal(document.aggregate, `${aggregate}`)
      assert.equal(document.collection, aggregator.did())
      const pieces = document.pieces.map(p => Piece.fromString(p).link)
      assert.deepEqual(document.pieces.toSorted(), contents.map(c => `${c.piece}`).toSorted())
      // Rebuilt here from the pieces in that order, it is the same.
      const rebuilt = build(pieces, 4 * MiB)
      assert.equal(`${rebuilt.link}`, `${aggregate}`)
      for (const { piece } of contents) {
        const included = (await receiptAt('storefront', await tasks.pieceAccept(piece, group))).out.ok
        const [subtree, index] = rebuilt.resolveProof(piece).ok
        assert.deepEqual(CBOR.encode(included.inclusion), CBOR.encode({ subtree, index }), 'another proof than JavaScript gives')
      }

      const block = await list(pieces)
      const offered = await tasks.aggregateOffer(aggregate, block.cid)
      const accept = await tasks.aggregateAccept(aggregate, block.cid)
      for (const role of ['storefront', 'aggregator', 'dealer']) {
        const receipt = await receiptAt(role, offered)
        await believable(receipt, offered, dealer)
        assert.equal(`${receipt.out.ok?.aggregate}`, `${aggregate}`)
        followedBy(receipt, { join: accept })
        const dealt = await receiptAt(role, accept)
        await believable(dealt, accept, dealer)
        same(dealt.out.ok, { aggregate, dataType: 0, dataSource: { dealID: aux.dataSource.dealID } })
        followedBy(dealt, {})
      }
    })

    await t.test('deal/info', async () => {
      const ask = piece => DealTracker.dealInfo({ issuer: stranger, audience: tracker, with: stranger.did() }, piece, at.tracker)
      const receipt = await ask(accepted.aggregate)
      await believable(receipt, receipt.ran, tracker)
      assert.equal(receipt.out.ok?.deals[`${accepted.aux.dataSource.dealID}`]?.provider, 'f01000')
      same((await ask(first.piece)).out.ok, { deals: {} })
    })

    await t.test('filecoin/info of a piece in a deal', async () => {
      const receipt = await info(first.piece)
      await believable(receipt, receipt.ran, storefront)
      const { piece, aggregates, deals } = receipt.out.ok
      assert.equal(aggregates.length, 1)
      includes({ piece, ...aggregates[0] })
      same(deals, [{ aggregate: accepted.aggregate, provider: 'f01000', aux: accepted.aux }])
    })

    await t.test('the chain as a file', async () => {
      const offered = (await offer(first)).ran.link()
      const file = join(go.dir, 'chain.car')
      await run('receipt', `${offered}`, '--chain', '--url', go.urls.storefront, '-o', file)
      const [proven] = await run('verify', file)
      assert.equal(proven.piece, `${first.piece}`)
      assert.equal(proven.aggregate, `${accepted.aggregate}`)
      // It is an agent message.
      const { receipts } = await CAR.request.decode({ body: new Uint8Array(await readFile(file)), headers: {} })
      assert.equal(receipts.size, 8)
      const { aggregate, pieces } = receipts.get(`${(await tasks.pieceAccept(first.piece, group)).cid}`).fx.join.capabilities[0].nb
      for (const [task, executor] of [
        [offered, storefront], [await tasks.submit(first), storefront], [await tasks.pieceCid(first), compute],
        [await tasks.pieceOffer(first.piece, group), aggregator], [await tasks.pieceAccept(first.piece, group), aggregator],
        [await tasks.aggregateOffer(aggregate, pieces), dealer], [await tasks.aggregateAccept(aggregate, pieces), dealer],
        [await tasks.accept(first), storefront],
      ]) {
        await believable(receipts.get(`${task.cid ?? task}`), task, executor)
      }
    })

    await t.test('the storefront’s own tasks, asked for by itself', async () => {
      const itself = { issuer: storefront, audience: storefront, with: storefront.did() }
      const submitted = await Storefront.filecoinSubmit(itself, first.cid, first.piece, at.storefront)
      await believable(submitted, await tasks.submit(first), storefront)
      assert.equal(`${submitted.link()}`, `${(await receiptAt('storefront', await tasks.submit(first))).link()}`)
      const concluded = await Storefront.filecoinAccept(itself, first.cid, first.piece, at.storefront)
      assert.equal(`${concluded.link()}`, `${(await receiptAt('storefront', await tasks.accept(first))).link()}`)
      // By others they cannot be had.
      const taken = await Storefront.filecoinSubmit({ ...itself, issuer: agent, with: agent.did() }, first.cid, first.piece, at.storefront)
      failed(taken, 'UnsupportedCapability')
      failed(await Storefront.filecoinAccept({ ...itself, issuer: agent }, first.cid, first.piece, at.storefront), 'Unauthorized')
      // What is not concluded has no receipt, so that none is cached for ever.
      const pending = await world.content(90, 2000)
      await assert.rejects(Storefront.filecoinAccept(itself, pending.cid, pending.piece, at.storefront), { name: 'HTTPError', status: 503 })
    })
  })

  test('a wrong piece ends in failures that clients can read', async () => {
    const [content, other] = await Promise.all([world.content(10, 4000), world.content(11, 4000)])
    const wrong = { ...content, piece: other.piece }
    await upload(content)
    assert.equal(`${(await offer(wrong)).out.ok?.piece}`, `${wrong.piece}`)
    const details = { content: content.cid, piece: wrong.piece, computed: content.piece }
    const accept = await tasks.accept(wrong)
    const concluded = await receiptAt('storefront', accept)
    await believable(concluded, accept, storefront)
    const { name, message, ...told } = failed(concluded, 'InvalidContentPiece')
    same(told, details)
    assert.match(message, new RegExp(`${content.piece}`))
    const submit = await tasks.submit(wrong)
    const submitted = await receiptAt('storefront', submit)
    await believable(submitted, submit, storefront)
    same(failed(submitted, 'InvalidPieceCID').computed, content.piece)
    failed(await info(wrong.piece), 'InvalidContentPiece')
  })

  test('refusals', async t => {
    const small = await world.content(20, 3000)

    await t.test('too large', async () => {
      const { root } = Piece.fromLink(small.piece)
      const piece = Piece.toLink({ root, height: Math.log2((2 * MAX_PIECE) / 32), padding: 0n })
      const { name, message, ...told } = failed(await offer({ ...small, piece }), 'PieceTooLarge')
      same(told, { piece, size: 2 * MAX_PIECE, max: MAX_PIECE })
    })

    await t.test('content that is no byte string', async () => {
      const cid = CID.createV1(0x70, await sha256.digest(small.payload))
      failed(await offer({ ...small, cid }), 'UnsupportedContent')
    })

    await t.test('a piece CID of version 1', async () => {
      const piece = Piece.toInfo(Piece.fromLink(small.piece)).link
      assert.match(`${piece}`, /^baga/)
      const capability = { can: 'filecoin/offer', with: agent.did(), nb: { content: small.cid, piece } }
      const [receipt] = await at.storefront.connection.execute(invoke({ ...asAgent, capability }))
      failed(receipt, 'MalformedCapability')
    })

    await t.test('an ability that nobody executes', async () => {
      const [receipt] = await at.storefront.connection.execute(invoke({ ...asAgent, capability: { can: 'upload/list', with: agent.did(), nb: {} } }))
      const told = failed(receipt, 'HandlerNotFound')
      assert.deepEqual(told.capability, { can: 'upload/list', with: agent.did() })
      assert.equal(told.error, true)
    })

    await t.test('two capabilities in one invocation', async () => {
      const capability = { can: 'filecoin/info', with: agent.did(), nb: { piece: small.piece } }
      const both = await Delegation.delegate({ issuer: agent, audience: storefront, capabilities: [capability, capability] })
      const [receipt] = await at.storefront.connection.execute(both)
      failed(receipt, 'InvocationCapabilityError')
    })

    await t.test('another audience', async () => {
      failed(await Storefront.filecoinInfo({ ...asAgent, audience: dealer }, small.piece, at.storefront), 'InvalidAudience')
    })

    await t.test('bodies that are no messages', async () => {
      const post = (headers, body) => fetch(`${go.urls.storefront}/`, { method: 'POST', headers, body })
      const legacy = await post({ 'content-type': 'application/car' }, new Uint8Array([1]))
      assert.deepEqual([legacy.status, legacy.headers.get('accept')], [415, MEDIA_TYPE])
      assert.equal((await post({ 'content-type': MEDIA_TYPE, accept: 'text/plain' }, new Uint8Array([1]))).status, 406)
      const malformed = await post({ 'content-type': MEDIA_TYPE }, new Uint8Array([1, 2, 3]))
      assert.equal(malformed.status, 400)
      assert.match(await malformed.text(), /^Bad request: Malformed payload - /)
    })
  })

  test('authority over a space', async t => {
    const [content, other] = await Promise.all([world.content(30, 3000), world.content(31, 3000)])
    const on = proofs => ({ issuer: agent, audience: storefront, with: space.did(), proofs })
    const grant = (options = {}) => StorefrontCaps.filecoinOffer.delegate({ issuer: space, audience: agent, with: space.did(), expiration: Infinity, ...options })

    await t.test('without a proof', async () => failed(await offer(content, on([])), 'Unauthorized'))
    await t.test('delegated', async () => assert.ok((await offer(content, on([await grant()]))).out.ok))
    await t.test('delegated with the whole namespace', async () => {
      const proof = await StorefrontCaps.filecoin.delegate({ issuer: space, audience: agent, with: space.did() })
      assert.ok((await offer(other, on([proof]))).out.ok)
    })
    await t.test('delegated twice over', async () => {
      const all = await Delegation.delegate({
        issuer: space, audience: stranger, capabilities: [{ can: '*', with: space.did() }], expiration: Infinity,
      })
      const on2 = await StorefrontCaps.filecoinOffer.delegate({ issuer: stranger, audience: agent, with: space.did(), proofs: [all] })
      assert.ok((await offer(content, on([on2]))).out.ok)
    })
    await t.test('delegated for one piece', async () => {
      const proof = await grant({ nb: { content: content.cid, piece: content.piece } })
      assert.ok((await offer(content, on([proof]))).out.ok)
      failed(await offer(other, on([proof])), 'Unauthorized')
    })
    await t.test('delegated to somebody else', async () => failed(await offer(content, { ...on([await grant()]), issuer: stranger }), 'Unauthorized'))
    await t.test('expired', async () => failed(await offer(content, on([await grant({ expiration: 1_700_000_000 })])), 'Unauthorized'))
    await t.test('not yet valid', async () => failed(await offer(content, on([await grant({ notBefore: 4_000_000_000 })])), 'Unauthorized'))

    await t.test('by an account, in a session that the storefront attests', async () => {
      const account = Absentee.from({ id: 'did:mailto:example.com:alice' })
      const toAccount = await Delegation.delegate({
        issuer: space, audience: account, capabilities: [{ can: '*', with: space.did() }], expiration: Infinity,
      })
      const login = await Delegation.delegate({
        issuer: account, audience: agent, capabilities: [{ can: 'filecoin/*', with: 'ucan:*' }], expiration: Infinity, proofs: [toAccount],
      })
      const attestation = authority =>
        UCANCaps.attest.delegate({ issuer: authority, audience: agent, with: authority.did(), nb: { proof: login.cid }, expiration: Infinity })
      assert.ok((await offer(content, on([login, await attestation(storefront)]))).out.ok)
      failed(await offer(content, on([login])), 'Unauthorized')
      failed(await offer(content, on([login, await attestation(stranger)])), 'Unauthorized')
    })

    await t.test('revoked', async () => {
      const proof = await grant({ nonce: 'to be revoked' })
      assert.ok((await offer(content, on([proof]))).out.ok)
      const revocation = await UCANCaps.revoke
        .invoke({ issuer: space, audience: storefront, with: space.did(), nb: { ucan: proof.cid }, proofs: [proof] })
        .execute(at.storefront.connection)
      assert.equal(typeof revocation.out.ok?.time, 'number', revocation.out.error?.message)
      failed(await offer(other, on([proof])), 'Unauthorized')
    })
  })

  test('agents with RSA keys, as browsers have them', async () => {
    const [content, browser] = [await world.content(35, 3000), await RSA.generate()]
    const proof = await StorefrontCaps.filecoin.delegate({ issuer: space, audience: browser, with: space.did() })
    const receipt = await offer(content, { issuer: browser, audience: storefront, with: space.did(), proofs: [proof] })
    assert.equal(`${receipt.out.ok?.piece}`, `${content.piece}`, receipt.out.error?.message)
  })

  test('nonces and facts, in all the ways of writing JSON', async () => {
    const content = await world.content(36, 3000)
    const nb = { content: content.cid, piece: content.piece }
    const facts = [{ text: '<"übung" & \u2028\u0007/>', float: 1.5, large: 1e21, negative: -7, bytes: new Uint8Array([1, 2]), list: [null, true], link: content.cid }]
    const invocation = await StorefrontCaps.filecoinOffer
      .invoke({ ...asAgent, nb, nonce: 'once <&> \u2028 more', facts, expiration: Infinity })
      .delegate()
    const [receipt] = await at.storefront.connection.execute(invocation)
    assert.equal(`${receipt.out.ok?.piece}`, `${content.piece}`, receipt.out.error?.message)
    // What follows from an offer with a nonce is apart from what follows from others: its nonce is the offer's CID.
    const effect = capability =>
      capability
        .invoke({ issuer: storefront, audience: storefront, with: storefront.did(), nb, nonce: `${invocation.cid}`, expiration: Infinity })
        .delegate()
    followedBy(receipt, { fork: [await effect(StorefrontCaps.filecoinSubmit)], join: await effect(StorefrontCaps.filecoinAccept) })
  })

  test('pieces are computed alike', async () => {
    const lengths = [65, 126, 127, 128, 253, 254, 255, 500, 1016, 1017, 2032, 65_535, 65_536, payloadOf(64 * KiB), payloadOf(64 * KiB) + 1, 200_000]
    const files = await Promise.all(
      lengths.map(async length => {
        const file = join(go.dir, `content-${length}`)
        await writeFile(file, world.bytes(length, length))
        return file
      })
    )
    const told = await run('piece', ...files)
    for (const [i, length] of lengths.entries()) {
      const { cid, piece } = await world.content(length, length)
      assert.deepEqual([told[i].content, told[i].piece], [`${cid}`, `${piece}`], `${length} bytes`)
    }
  })

  test('an offer with a PDP proof has the same effects', async () => {
    const content = await world.content(40, 3000)
    const pdp = await PDP.accept
      .invoke({ issuer: stranger, audience: stranger, with: stranger.did(), nb: { blob: content.cid.multihash.bytes } })
      .delegate()
    const receipt = await StorefrontCaps.filecoinOffer
      .invoke({ ...asAgent, nb: { content: content.cid, piece: content.piece, PDP: pdp.link() }, proofs: [pdp] })
      .execute(at.storefront.connection)
    assert.equal(`${receipt.out.ok?.piece}`, `${content.piece}`, receipt.out.error?.message)
    followedBy(receipt, { fork: [await tasks.submit(content)], join: await tasks.accept(content) })
  })

  test('one message with many invocations', async () => {
    const asked = contents.map(({ piece }) => StorefrontCaps.filecoinInfo.invoke({ ...asAgent, nb: { piece } }))
    const receipts = await at.storefront.connection.execute(...asked)
    assert.equal(receipts.length, asked.length)
    for (const [i, receipt] of receipts.entries()) {
      await believable(receipt, receipt.ran, storefront)
      assert.equal(`${receipt.out.ok?.piece}`, `${contents[i].piece}`)
    }
  })

  test('a reply has the bytes that the JavaScript services answer', async () => {
    const services = await new Services({ ids: { storefront, aggregator, dealer, tracker } }).start()
    try {
      const content = await world.content(50, 500)
      const invocation = await StorefrontCaps.filecoinOffer
        .invoke({ ...asAgent, nb: { content: content.cid, piece: content.piece }, expiration: Infinity })
        .delegate()
      const { headers, body } = await CAR.request.encode(await Message.build({ invocations: [invocation] }))
      const ask = async url => {
        const response = await fetch(url, { method: 'POST', headers, body })
        return { status: response.status, type: response.headers.get('content-type'), body: Buffer.from(await response.arrayBuffer()) }
      }
      const [ours, theirs] = [await ask(`${go.urls.storefront}/`), await ask(`${services.url}/storefront`)]
      assert.equal(theirs.body.length, 1022)
      assert.deepEqual(ours, theirs)
    } finally {
      await services.close()
    }
  })

  test('a JavaScript storefront offers pieces to the aggregator', async t => {
    const group = otherStorefront.did()
    const pieces = contents.slice(0, 4).map(c => c.piece)
    const conf = { issuer: otherStorefront, audience: aggregator, with: aggregator.did() }

    await t.test('without a proof', async () => failed(await Aggregator.pieceOffer(conf, pieces[0], group, at.aggregator), 'Unauthorized'))

    await t.test('piece/offer', async () => {
      const fromCli = await delegate({ issuer: aggregator, to: otherStorefront, can: 'piece/offer' })
      const fromJs = await standing(AggregatorCaps.pieceOffer, aggregator, otherStorefront)
      assert.equal(`${fromCli.cid}`, `${fromJs.cid}`, 'the delegation that the command line makes has another CID')
      for (const [i, piece] of pieces.entries()) {
        const receipt = await Aggregator.pieceOffer({ ...conf, proofs: [i % 2 ? fromCli : fromJs] }, piece, group, at.aggregator)
        await believable(receipt, receipt.ran, aggregator)
        assert.equal(`${receipt.out.ok?.piece}`, `${piece}`, receipt.out.error?.message)
        followedBy(receipt, { join: await tasks.pieceAccept(piece, group) })
      }
      // The `with` of the specification: the storefront itself.
      const own = await Aggregator.pieceOffer({ ...conf, with: group }, pieces[0], group, at.aggregator)
      followedBy(own, { join: await tasks.pieceAccept(pieces[0], group) })
      failed(await Aggregator.pieceOffer({ ...conf, proofs: [fromJs] }, pieces[0], storefront.did(), at.aggregator), 'Unauthorized')
      const unknown = { ...conf, issuer: stranger, proofs: [await standing(AggregatorCaps.pieceOffer, aggregator, stranger)] }
      failed(await Aggregator.pieceOffer(unknown, pieces[0], stranger.did(), at.aggregator), 'Unauthorized')
    })

    await t.test('piece/accept is told to it, and the deal', async () => {
      let offered
      for (const piece of pieces) {
        const task = await tasks.pieceAccept(piece, group)
        const receipt = await inbox.receipt(task)
        await believable(receipt, task, aggregator)
        includes(receipt.out.ok)
        offered = receipt.fx.join
      }
      const { aggregate, pieces: block } = offered.capabilities[0].nb
      assert.equal(`${offered.cid}`, `${(await tasks.aggregateOffer(aggregate, block)).cid}`)
      const accept = await tasks.aggregateAccept(aggregate, block)
      const dealt = await inbox.receipt(accept)
      await believable(dealt, accept, dealer)
      assert.equal(`${dealt.out.ok.aggregate}`, `${aggregate}`)
      // Asked for by the aggregator itself, it is the same receipt that was told.
      const itself = { issuer: aggregator, audience: aggregator, with: aggregator.did() }
      const again = await Aggregator.pieceAccept(itself, pieces[0], group, at.aggregator)
      assert.equal(`${again.link()}`, `${(await inbox.receipt(await tasks.pieceAccept(pieces[0], group))).link()}`)
    })
  })

  test('a JavaScript aggregator offers an aggregate to the dealer', async t => {
    const pieces = contents.slice(0, 5).map(c => c.piece)
    const { link: aggregate } = build(pieces, 4 * MiB)
    const conf = { issuer: otherAggregator, audience: dealer, with: dealer.did() }
    const block = await list(pieces)
    const accept = await tasks.aggregateAccept(aggregate, block.cid)

    await t.test('without a proof', async () => failed(await Dealer.aggregateOffer(conf, aggregate, pieces, at.dealer), 'Unauthorized'))

    await t.test('aggregate/offer', async () => {
      const proofs = [await delegate({ issuer: dealer, to: otherAggregator, can: 'aggregate/offer' })]
      assert.equal(`${proofs[0].cid}`, `${(await standing(DealerCaps.aggregateOffer, dealer, otherAggregator)).cid}`)
      const receipt = await Dealer.aggregateOffer({ ...conf, proofs }, aggregate, pieces, at.dealer)
      await believable(receipt, receipt.ran, dealer)
      same(receipt.out.ok, { aggregate })
      followedBy(receipt, { join: accept })
    })

    await t.test('aggregate/offer on the aggregator itself, as the published one links it', async () => {
      const receipt = await Dealer.aggregateOffer({ ...conf, with: otherAggregator.did() }, aggregate, pieces, at.dealer)
      same(receipt.out.ok, { aggregate })
      followedBy(receipt, { join: accept })
    })

    await t.test('a list that gives another aggregate', async () => {
      const proofs = [await standing(DealerCaps.aggregateOffer, dealer, otherAggregator)]
      const other = pieces.toReversed()
      const told = failed(await Dealer.aggregateOffer({ ...conf, proofs }, aggregate, other.slice(1), at.dealer), 'AggregateMismatch')
      same(told.aggregate, aggregate)
    })

    await t.test('a list that is not there', async () => {
      const proofs = [await standing(DealerCaps.aggregateOffer, dealer, otherAggregator)]
      const { cid } = await list(pieces.slice(2))
      const bare = DealerCaps.aggregateOffer.invoke({ ...conf, proofs, nb: { aggregate, pieces: cid }, expiration: Infinity })
      await assert.rejects(bare.execute(at.dealer.connection), { name: 'HTTPError', status: 400 })
    })

    await t.test('aggregate/accept is told to it', async () => {
      const receipt = await inbox.receipt(accept)
      await believable(receipt, accept, dealer)
      const { aggregate: dealt, dataType, dataSource } = receipt.out.ok
      assert.equal(`${dealt}`, `${aggregate}`)
      assert.equal(dataType, 0)
      const known = await DealTracker.dealInfo({ issuer: agent, audience: tracker, with: agent.did() }, aggregate, at.tracker)
      assert.equal(known.out.ok.deals[dataSource.dealID].provider, 'f01000')
      const itself = { issuer: dealer, audience: dealer, with: dealer.did() }
      const again = await Dealer.aggregateAccept(itself, aggregate, block.cid, at.dealer)
      assert.equal(`${again.link()}`, `${receipt.link()}`)
    })
  })

  /** A standing delegation as an operator makes it: `w3filecoin delegate`. */
  async function delegate({ issuer, to, can }) {
    const key = join(go.dir, `${issuer.did()}.key`)
    const out = join(go.dir, `${can.replace('/', '-')}.ucan`)
    await writeFile(key, secret(issuer), { mode: 0o600 })
    const told = await run('delegate', '--key', key, '--to', to.did(), '--can', can, '-o', out)
    const delegation = await extract(await readFile(out))
    assert.equal(`${delegation.cid}`, told.delegation)
    return delegation
  }
})
