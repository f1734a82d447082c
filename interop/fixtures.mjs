// Writes testdata/replies.json: `node fixtures.mjs`. Needed only when lib/record.mjs or the version of a package has changed.
import { mkdir, writeFile } from 'node:fs/promises'
import { file, record } from './lib/record.mjs'

console.log = console.error
await mkdir(new URL('.', file), { recursive: true })
await writeFile(file, await record())
