// Writes ../capabilities/testdata/js-uploads.json: `node vectors.mjs`. Needed only when lib/vectors.mjs or the version of a package has changed.
import { writeFile } from 'node:fs/promises'
import { file, vectors } from './lib/vectors.mjs'

await writeFile(file, await vectors())
