// What the published packages make of uploads and claims, with keys that everybody knows; package capabilities has to make the same bytes.
import { DID, Receipt } from '@ucanto/core'
import * as ed25519 from '@ucanto/principal/ed25519'
import * as Assert from '@storacha/capabilities/assert'
import * as Blob from '@storacha/capabilities/blob'
import * as HTTP from '@storacha/capabilities/http'
import * as SpaceBlob from '@storacha/capabilities/space/blob'
import * as Index from '@storacha/capabilities/space/index'
import * as UCAN from '@storacha/capabilities/ucan'
import * as Upload from '@storacha/capabilities/upload'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { agent, space, storefront } from './world.mjs'

const CAR = 0x0202

export const file = new URL('../../capabilities/testdata/js-uploads.json', import.meta.url)

/** The text of the file. */
export async function vectors() {
  const owner = DID.parse(space.did())
  const digest = await sha256.digest(new TextEncoder().encode('a blob'))
  const blob = { digest: digest.bytes, size: 6 }
  const content = CID.createV1(raw.code, digest)
  const car = CID.createV1(CAR, digest)
  const forever = { expiration: Infinity }
  const ucans = {}
  const note = async (name, invocation) => {
    const made = await invocation.delegate()
    ucans[name] = { cid: `${made.cid}`, hex: Buffer.from(made.root.bytes).toString('hex') }
    return made
  }

  const proof = await SpaceBlob.blob.delegate({ issuer: space, audience: agent, with: space.did(), ...forever })
  ucans['delegation of space/blob/*'] = { cid: `${proof.cid}`, hex: Buffer.from(proof.root.bytes).toString('hex') }
  const onSpace = { issuer: agent, audience: storefront, with: space.did(), ...forever }
  const own = { issuer: storefront, audience: storefront, with: storefront.did(), ...forever }

  const add = await note('space/blob/add', SpaceBlob.add.invoke({ ...onSpace, proofs: [proof], nb: { blob } }))
  await note('space/blob/get/0/1', SpaceBlob.get.invoke({ ...onSpace, nb: { digest: digest.bytes } }))
  await note('space/blob/list', SpaceBlob.list.invoke({ ...onSpace, nb: { cursor: 'next', size: 7 } }))
  await note('space/blob/remove', SpaceBlob.remove.invoke({ ...onSpace, nb: { digest: digest.bytes } }))
  await note('space/index/add', Index.add.invoke({ ...onSpace, nb: { index: car } }))
  await note('upload/add', Upload.add.invoke({ ...onSpace, nb: { root: content, shards: [car] } }))

  const allocate = await note('blob/allocate', Blob.allocate.invoke({ ...own, nb: { blob, cause: add.cid, space: owner } }))
  const provider = await ed25519.derive(digest.bytes.subarray(-32))
  const put = await note('http/put', HTTP.put.invoke({
    issuer: provider, audience: provider, with: provider.did(), ...forever, facts: [{ keys: provider.toArchive() }],
    nb: {
      body: blob,
      url: { 'ucan/await': ['.out.ok.address.url', allocate.cid] },
      headers: { 'ucan/await': ['.out.ok.address.headers', allocate.cid] },
    },
  }))
  await note('blob/accept', Blob.accept.invoke({ ...own, nb: { blob, space: owner, _put: { 'ucan/await': ['.out.ok', put.cid] } } }))

  const address = { url: 'http://storefront.test/blob/x', headers: { authorization: 'Bearer x', b: 'c' }, expires: 1785578400 }
  const receipt = await Receipt.issue({ issuer: storefront, ran: allocate.cid, result: { ok: { size: 6, address } } })
  const there = await Receipt.issue({ issuer: storefront, ran: allocate.cid, result: { ok: { size: 0 } } })
  const links = [receipt.root.cid, allocate.cid]
  await note('ucan/conclude', UCAN.conclude.invoke({ ...own, nb: { receipt: receipt.link() }, facts: [{ ...links }] }))

  const claims = { issuer: storefront, audience: space, with: storefront.did(), ...forever }
  const location = ['http://storefront.test/content/x']
  await note('assert/location', Assert.location.invoke({ ...claims, nb: { content: { digest: digest.bytes }, location, space: owner } }))
  await note('assert/location of a range', Assert.location.invoke({ ...claims, nb: { content, location, range: { offset: 3, length: 4 } } }))
  await note('assert/equals', Assert.equals.invoke({ ...claims, nb: { content, equals: car } }))
  await note('assert/inclusion', Assert.inclusion.invoke({ ...claims, nb: { content: car, includes: content, proof: car } }))
  await note('assert/index', Assert.index.invoke({ ...claims, nb: { content, index: car } }))

  const receipts = { allocated: receipt, there }
  for (const [name, r] of Object.entries(receipts)) {
    receipts[name] = { cid: `${r.root.cid}`, hex: Buffer.from(r.root.bytes).toString('hex') }
  }
  return JSON.stringify({ address, ucans, receipts }, null, 1) + '\n'
}
