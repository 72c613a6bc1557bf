// Writes partial-match.json: what `partialMatchKey` of @tanstack/query-core says of pairs of keys.
//   npm install --prefix DIR @tanstack/query-core@5.108.0 && node partial-match.mjs DIR > partial-match.json
// Pairs are drawn with a fixed seed from few values, so that near misses are frequent.
import { pathToFileURL } from 'node:url'

const at = `${process.argv[2]}/node_modules/@tanstack/query-core/build/modern/index.js`
const { partialMatchKey } = await import(pathToFileURL(at))

let state = 4
const below = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 2 ** 32) * n)
}
const scalars = [null, true, false, 0, 1, 1.5, '', 'a', '1', 'null']
const value = (depth) => {
  const kind = below(depth > 0 ? 10 : 5)
  if (kind < 5) return scalars[below(scalars.length)]
  if (kind < 7) return Array.from({ length: below(3) }, () => value(depth - 1))
  return Object.fromEntries(['a', 'b', '0', '1'].filter(() => below(2)).map((name) => [name, value(depth - 1)]))
}
// A filter that is a part of the key, with one thing in it changed now and then.
const part = (whole) => {
  if (below(12) === 0) return value(1)
  if (Array.isArray(whole)) return whole.slice(0, below(whole.length + 1)).map(part)
  if (whole && typeof whole === 'object')
    return Object.fromEntries(Object.entries(whole).filter(() => below(3)).map(([name, inner]) => [name, part(inner)]))
  return whole
}
const nonempty = (make) => {
  const made = make()
  return made.length ? made : nonempty(make)
}
const lines = []
for (let n = 0; n < 600; n += 1) {
  const key = nonempty(() => Array.from({ length: 1 + below(3) }, () => value(3)))
  const filter = nonempty(() => (below(5) ? part(key) : Array.from({ length: 1 + below(2) }, () => value(2))) ?? [])
  if (Array.isArray(filter)) lines.push(JSON.stringify([key, filter, partialMatchKey(key, filter)]))
}
console.log(`[\n${lines.join(',\n')}\n]`)
