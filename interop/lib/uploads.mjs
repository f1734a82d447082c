// Content is stored as the published client does it.
import assert from 'node:assert/strict'
import * as Blob from '@storacha/upload-client/blob'
import { sha256 } from 'multiformats/hashes/sha2'
import { space } from './world.mjs'

let stored = 0

/**
 * Stores content at a storefront, on a space by its own key if no other configuration is given, and returns the claim of where it is. `sent` notes
 * the requests that carry bytes. A nonce makes each an invocation of its own, even within one second.
 */
export async function store({ payload }, { connection, ...conf }, sent = []) {
  const digest = await sha256.digest(payload)
  const invocation = { issuer: space, with: space.did(), audience: connection.id, ...conf }
  const put = async (url, init) => {
    const response = await fetch(url, init)
    sent.push({ url, status: response.status })
    return response
  }
  const { site } = await Blob.add(invocation, digest, payload, { connection, fetchWithUploadProgress: put, retries: 0, nonce: `${++stored}` })
  const [claim] = site.capabilities
  assert.equal(claim.can, 'assert/location')
  assert.deepEqual(claim.nb.content.digest, digest.bytes)
  return site
}
