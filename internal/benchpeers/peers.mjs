// The published WebAssembly hasher as a process of `make bench-peers`. It answers requests, one line of JSON each, as
// internal/benchpeers/commp does. With --peak FILE it hashes one file once and prints its peak memory.
import { readFileSync, openSync, readSync, closeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

// The package is installed for interop; this file lies elsewhere, so it goes by the path.
const [, , modules, mode, file] = process.argv
const home = modules + '/node_modules/fr32-sha2-256-trunc254-padded-binary-tree-multihash/'
const { create } = await import(pathToFileURL(home + JSON.parse(readFileSync(home + 'package.json')).main))

const hex = (bytes) => Buffer.from(bytes).toString('hex')

// The root is the end of the multihash.
const rootOf = (hasher) => {
  const bytes = new Uint8Array(hasher.multihashByteLength())
  hasher.digestInto(bytes, 0, true)
  hasher.free()
  return hex(bytes.subarray(bytes.length - 32))
}

const inMemory = (payload) => {
  const hasher = create()
  hasher.write(payload)
  return rootOf(hasher)
}

const streamed = (path) => {
  const hasher = create()
  const buffer = new Uint8Array(1 << 20)
  const fd = openSync(path, 'r')
  for (let n; (n = readSync(fd, buffer)) > 0; ) hasher.write(buffer.subarray(0, n))
  closeSync(fd)
  return rootOf(hasher)
}

if (mode === '--peak') {
  const Root = streamed(file)
  const kib = Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])
  console.log(JSON.stringify({ Root, Bytes: kib * 1024 }))
} else {
  const payload = readFileSync(mode)
  console.log('{}')
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line)
    let Root
    const cpu = process.cpuUsage()
    const start = performance.now()
    for (let i = 0; i < request.Repeat; i++) {
      Root = request.Mode === 'stream' ? streamed(mode) : inMemory(payload.subarray(0, request.Size))
    }
    const seconds = (performance.now() - start) / 1e3 / request.Repeat
    const used = process.cpuUsage(cpu)
    console.log(JSON.stringify({ Root, Seconds: seconds, CPU: (used.user + used.system) / 1e6 / request.Repeat }))
  }
}
