/** Limits per group and balance between groups, exactly as `clipmill select`: curation/selection/groups.py. */

import { append, type Column, type GroupRule } from "./data";

type Key = number | string;

/** The group of each clip; undefined where it has none. */
export function keysOf(column: Column | undefined, clips: number): (Key | undefined)[] {
  return Array.from({ length: clips }, (_, clip) => {
    if (column?.numbers) return Number.isNaN(column.numbers[clip]) ? undefined : column.numbers[clip];
    const code = column?.codes?.[clip] ?? -1;
    const value = code < 0 ? undefined : (column!.texts ?? column!.values)![code];
    return value === null || value === undefined ? undefined : (value as Key);
  });
}

/** The clips among `passing` that a rule keeps; `clips` is its limit. */
export function keptBy(
  rule: GroupRule,
  clips: number,
  passing: Uint8Array,
  columns: Map<string, Column>,
): { kept: Uint8Array; given: Map<Key, [number, number]> } {
  const keys = keysOf(columns.get(rule.column), passing.length);
  const groups = new Map<Key, number[]>();
  for (let clip = 0; clip < passing.length; clip++) {
    const key = keys[clip];
    if (passing[clip] && key !== undefined) append(groups, key, clip);
  }
  const sorted = [...groups].sort(([a], [b]) => (a < b ? -1 : 1));
  const sizes = sorted.map(([, members]) => members.length);
  const numbers = rule.power === null ? sizes.map((size) => Math.min(size, clips)) : quotas(sizes, clips, rule.power);
  const kept = new Uint8Array(passing.length);
  const given = new Map<Key, [number, number]>();
  sorted.forEach(([key, members], i) => {
    given.set(key, [numbers[i], members.length]);
    for (const clip of ordered(rule, members, columns).slice(0, numbers[i])) kept[clip] = 1;
  });
  return { kept, given };
}

/** Clips of a group, the first to be taken first. */
function ordered(rule: GroupRule, members: number[], columns: Map<string, Column>): number[] {
  const scores = rule.best.map(([name, which]) => ({
    numbers: columns.get(name)?.numbers,
    sign: which === "highest" ? -1 : 1,
  }));
  return [...members].sort((a, b) => {
    for (const { numbers, sign } of scores) {
      if (!numbers) continue;
      const [first, second] = [numbers[a], numbers[b]];
      const missing = Number(Number.isNaN(first)) - Number(Number.isNaN(second));
      if (missing) return missing;
      if (first !== second && !Number.isNaN(first)) return sign * (first - second);
    }
    return rule.order[a] - rule.order[b];
  });
}

/** Clips of each group: `quotas` in groups.py. */
export function quotas(sizes: number[], clips: number, power: number): number[] {
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0);
  if (sum(sizes) <= clips) return [...sizes];
  const weights = sizes.map((size) => (size ? size ** power : 0));
  const whole = sizes.map((size) => size === 0);
  let scale = 0;
  for (;;) {
    const rest = clips - sum(sizes.filter((_, i) => whole[i]));
    scale = rest / sum(weights.filter((_, i) => !whole[i]));
    const newly = sizes.map((size, i) => !whole[i] && scale * weights[i] >= size);
    if (!newly.some(Boolean)) break;
    newly.forEach((is, i) => {
      if (is) whole[i] = true;
    });
  }
  const exact = sizes.map((size, i) => (whole[i] ? size : scale * weights[i]));
  const found = exact.map(Math.floor);
  const fraction = exact.map((value, i) => Math.round((value - found[i]) * 1e9) / 1e9);
  const open = sizes.map((_, i) => i).filter((i) => !whole[i]);
  open.sort((a, b) => fraction[b] - fraction[a] || sizes[b] - sizes[a] || a - b);
  for (const i of open.slice(0, clips - sum(found))) found[i]++;
  return found;
}
