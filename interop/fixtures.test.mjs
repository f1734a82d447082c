import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { file, record } from './lib/record.mjs'
import * as uploads from './lib/vectors.mjs'

test('testdata/replies.json is what the published services answer', { timeout: 120_000 }, async () => {
  assert.equal(await record(), await readFile(file, 'utf8'), 'run `node fixtures.mjs`, and look at what has changed')
})

test('js-uploads.json is what the published packages make', async () => {
  assert.equal(await uploads.vectors(), await readFile(uploads.file, 'utf8'), 'run `node vectors.mjs`, and look at what has changed')
})
