import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { file, record } from './lib/record.mjs'

test('testdata/replies.json is what the published services answer', { timeout: 120_000 }, async () => {
  assert.equal(await record(), await readFile(file, 'utf8'), 'run `node fixtures.mjs`, and look at what has changed')
})
