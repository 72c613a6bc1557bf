// The peer of the query benches: @tanstack/query-core from DIR. Prints one JSON document, times in nanoseconds.
//   node query-core.mjs DIR SIZE...
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [dir, ...sizes] = process.argv.slice(2)
const core = `${dir}/node_modules/@tanstack/query-core`
const { QueryClient } = await import(pathToFileURL(`${core}/build/modern/index.js`))
const { version } = JSON.parse(readFileSync(`${core}/package.json`, 'utf8'))

const PER_GROUP = 10
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]
const batchOf = (calls, call) => {
  const begin = process.hrtime.bigint()
  for (let n = 0; n < calls; n += 1) call(n)
  return Number(process.hrtime.bigint() - begin) / calls
}
// The median over batches that take at least two milliseconds each, after as many to warm up.
const perCall = (call) => {
  let calls = 1
  while (batchOf(calls, call) * calls < 2e6 && calls < 1 << 20) calls *= 2
  for (let n = 0; n < 5; n += 1) batchOf(calls, call)
  return median(Array.from({ length: 15 }, () => batchOf(calls, call)))
}

const clientOf = (size) => {
  const client = new QueryClient({ defaultOptions: { queries: { gcTime: Infinity, staleTime: Infinity } } })
  for (let n = 0; n < size; n += 1) client.setQueryData(['list', Math.floor(n / PER_GROUP), n % PER_GROUP], { id: n })
  return client
}

const found = { version, node: process.version, invalidate: {}, subtree: {}, read: {} }
for (const size of sizes.map(Number)) {
  const client = clientOf(size)
  const groups = size / PER_GROUP
  // A stride through all groups, so that no call finds in a cache what the last one left there.
  const group = (n) => (n * 7919) % groups
  found.invalidate[size] = perCall((n) => {
    client.invalidateQueries({ queryKey: ['list', group(n)], refetchType: 'none' })
  })
  found.read[size] = perCall((n) => client.getQueryData(['list', group(n), n % PER_GROUP]))
  found.subtree[size] = perCall(() => {
    client.invalidateQueries({ queryKey: ['list'], refetchType: 'none' })
  })
  client.clear()
}
console.log(JSON.stringify(found))
