// Runs the Go binary: `w3filecoin serve` with a configuration file, on ports of the machine's choice, below a directory that goes away.
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { base64pad } from 'multiformats/bases/base64'

const binary = process.env.W3FILECOIN_BIN ?? fileURLToPath(new URL('../../bin/w3filecoin', import.meta.url))

// Settings come from the configuration file alone.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('W3FILECOIN_')))

// Whoever ends the tests ends the processes as well: those are killed at exit.
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))

/** How long a process may take to start, or to end when asked to. */
const patience = 20_000

/** Runs one command and returns what it printed as JSON. */
export async function run(...args) {
  const { stdout } = await promisify(execFile)(binary, ['--json', ...args], { env: environment, timeout: patience })
  return JSON.parse(stdout)
}

/** Settings for tests: small deals, short waits. Sizes and times are those of `w3filecoin demo`. */
const defaults = {
  storefront: { pull: '5s', content_retry: '100ms' },
  aggregator: { budget: '2s', pull: '5s', sizes: ['4MiB', '8MiB', '16MiB', '32MiB', '64MiB'] },
  dealer: { poll: '50ms', sizes: ['4MiB', '8MiB', '16MiB', '32MiB', '64MiB'] },
  dealtracker: { poll: '100ms' },
  compute: {},
}

/**
 * Starts roles and returns where they are. `keys` are the signers of the roles that run; a signer whose DID is not its did:key signs in that
 * other DID's name. `config` adds to the settings, section by section.
 */
export async function serve({ keys, config = {}, devnet = true }) {
  assert.ok(existsSync(binary), `${binary} is not there: \`make build\` makes it, W3FILECOIN_BIN names another`)
  const dir = await mkdtemp(join(tmpdir(), 'w3filecoin-interop-'))
  const settings = { data: 'data', roles: Object.keys(keys) }
  for (const [key, value] of Object.entries(config)) {
    if (typeof value !== 'object') settings[key] = value
  }
  for (const [role, signer] of Object.entries(keys)) {
    const file = `${role}.key`
    await writeFile(join(dir, file), secret(signer), { mode: 0o600 })
    settings[role] = { key: file, listen: '127.0.0.1:0', ...defaults[role], ...config[role] }
    if (signer.did() !== signer.toDIDKey()) settings[role].did = signer.did()
  }
  if (config.keys) settings.keys = config.keys
  if (devnet) settings.devnet = { enabled: true, listen: '127.0.0.1:0', epoch: '100ms' }
  await writeFile(join(dir, 'w3filecoin.toml'), toml(settings))

  const child = spawn(binary, ['serve', '--json', '--config', join(dir, 'w3filecoin.toml')], { env: environment, stdio: ['ignore', 'pipe', 'pipe'] })
  const kill = () => child.kill('SIGKILL')
  process.once('exit', kill)
  let log = ''
  child.stderr.setEncoding('utf8').on('data', text => (log += text))
  const ended = new Promise(resolve => child.once('close', resolve))
  /** Log entries of a level, which tell of promises broken by neighbours or by ourselves. */
  const logged = level => log.split('\n').filter(line => line.includes(`"level":"${level}"`))
  async function stop() {
    child.kill('SIGTERM')
    const late = setTimeout(kill, patience)
    const code = await ended
    clearTimeout(late)
    process.removeListener('exit', kill)
    await rm(dir, { recursive: true, force: true })
    assert.equal(code, 0, `serve ended with ${code}:\n${log.slice(-4000)}`)
  }

  try {
    const roles = await announced(child, ended, () => log)
    const urls = Object.fromEntries(roles.map(r => [r.role, r.url]))
    for (const [role, signer] of Object.entries(keys)) assert.equal(roles.find(r => r.role === role)?.did, signer.did(), `the DID of the ${role}`)
    return { urls, dir, stop, logged, log: () => log }
  } catch (err) {
    kill()
    await rm(dir, { recursive: true, force: true })
    throw err
  }
}

/** The private key in the multibase form of the JavaScript tools, "Mg…". */
export const secret = signer => base64pad.encode(Object.values(signer.toArchive().keys)[0])

/** What serve says once it listens: a JSON list of its roles. */
async function announced(child, ended, log) {
  let text = ''
  const list = new Promise(resolve => {
    child.stdout.setEncoding('utf8').on('data', part => {
      text += part
      if (text.trimEnd().endsWith(']')) resolve(JSON.parse(text))
    })
  })
  let late
  const timeout = new Promise((_, reject) => {
    late = setTimeout(() => reject(new Error(`serve did not start:\n${log()}`)), patience)
  })
  try {
    return await Promise.race([
      list,
      timeout,
      ended.then(code => Promise.reject(new Error(`serve ended with ${code}:\n${log()}`))),
    ])
  } finally {
    clearTimeout(late)
  }
}

/** Just enough TOML for our settings. */
function toml(settings) {
  const plain = v => typeof v !== 'object' || (Array.isArray(v) && v.every(e => typeof e !== 'object'))
  const lines = []
  const write = (path, table) => {
    for (const [k, v] of Object.entries(table)) if (plain(v)) lines.push(`${JSON.stringify(k)} = ${JSON.stringify(v)}`)
    for (const [k, v] of Object.entries(table)) {
      if (plain(v)) continue
      const name = [...path, JSON.stringify(k)]
      for (const part of Array.isArray(v) ? v : [v]) {
        lines.push(Array.isArray(v) ? `[[${name.join('.')}]]` : `[${name.join('.')}]`)
        write(name, part)
      }
    }
  }
  write([], settings)
  return lines.join('\n') + '\n'
}
