/** Evaluates rules and marks exactly as `clipmill select`: curation/selection/thresholds.py, marks.py and funnel.py. */

import { append, type Column, type GroupRule, type Header, type Mark, type Rule, textOf } from "./data";
import { keptBy, keysOf } from "./groups";

export const KEPT = 0;
export const REMOVED = 1;
export const UNSCORED = 2;
/** Name of the step of the funnel that drops marked clips. */
export const MARKS = "--marks";
export const RANK = "duplicate_rank";
const GROUP = "duplicate_of";

export interface Test {
  name: string;
  bounds: { min?: number; max?: number };
  outcomes: Uint8Array;
  keepsUnscored: boolean;
  removedAlone: number;
  unscored: number;
  ties: number;
  /** Whether it depends on what the others left, and runs after them. */
  last?: boolean;
  asked?: string;
  /** Why it drops a clip, in words. */
  why?: (clip: number) => string;
}

export interface Step {
  name: string;
  asked: string;
  removedAlone: number;
  removed: number;
  unscored: number;
  unscoredDropped: number;
  left: number;
  leftMicroseconds: number;
}

export interface Judged {
  tests: Test[];
  steps: Step[];
  kept: Uint8Array;
  /** Number of the first test in the funnel that drops the clip, -1 if it is kept. */
  droppedBy: Int16Array;
  clips: number;
  microseconds: number;
}

/** Marks by clip. */
export type Marked = ReadonlyMap<number, Mark>;

/** Bounds of a rule in the order in which they are written. */
export const BOUNDS = ["drop_lowest", "drop_highest", "min", "max"] as const;

export class Judge {
  readonly columns: Map<string, Column>;
  private readonly sorted = new Map<string, Float64Array>();

  constructor(readonly header: Header) {
    this.columns = new Map(header.columns.map((column) => [column.name, column]));
  }

  /** The scores of a column from the lowest to the highest, without those that are missing. */
  scores(name: string): Float64Array {
    let found = this.sorted.get(name);
    if (!found) {
      found = Float64Array.from(this.columns.get(name)?.numbers ?? []).filter((value) => !Number.isNaN(value));
      found.sort();
      this.sorted.set(name, found);
    }
    return found;
  }

  /** Each bound of a rule as a number, as `_test` in thresholds.py resolves them. */
  thresholds(name: string, rule: Rule): { min?: number; max?: number } {
    const single = this.columns.get(name)?.kind === "single";
    const lower: number[] = [];
    const upper: number[] = [];
    if (rule.drop_lowest !== undefined) {
      const at = this.percentile(name, rule.drop_lowest, false);
      if (at !== undefined) lower.push(single ? toSingle(at, true) : at);
    }
    if (rule.drop_highest !== undefined) {
      const at = this.percentile(name, rule.drop_highest, true);
      if (at !== undefined) upper.push(single ? toSingle(at, false) : at);
    }
    if (rule.min !== undefined) lower.push(single ? Math.fround(rule.min) : rule.min);
    if (rule.max !== undefined) upper.push(single ? Math.fround(rule.max) : rule.max);
    return {
      ...(lower.length ? { min: Math.max(...lower) } : {}),
      ...(upper.length ? { max: Math.min(...upper) } : {}),
    };
  }

  /** The value at a percentage from below, or from above: linear between neighbours, the place as an exact fraction. */
  percentile(name: string, percentage: string, fromAbove: boolean): number | undefined {
    const [numerator, denominator] = fraction(percentage, fromAbove);
    const sample = this.header.quantiles[name];
    const scores = sample ? sample.quantiles : this.scores(name);
    if (!scores.length) return undefined;
    const place = numerator * BigInt(scores.length - 1);
    const below = Number(place / denominator);
    const rest = place % denominator;
    const low = scores[below];
    const high = scores[rest ? below + 1 : below];
    return Math.min(high, low + (high - low) * (Number(rest) / Number(denominator)));
  }

  /** Share of the scored clips below a value, and share on it. */
  shareBelow(name: string, value: number): { below: number; equal: number } {
    const quantiles = this.header.quantiles[name];
    const scores = quantiles ? quantiles.quantiles : this.scores(name);
    const first = lowerBound(scores, value);
    const after = upperBound(scores, value);
    if (!quantiles) return { below: first / scores.length, equal: (after - first) / scores.length };
    const last = scores.length - 1;
    if (after > first) return { below: first / last, equal: (after - first - 1) / last };
    if (first === 0 || first > last) return { below: first === 0 ? 0 : 1, equal: 0 };
    const within = (value - scores[first - 1]) / (scores[first] - scores[first - 1]);
    return { below: (first - 1 + within) / last, equal: 0 };
  }

  /** Judge all clips by these rules, a `where` condition, marks, and rules on groups. */
  judge(rules: Map<string, Rule>, useWhere: boolean, marks: Marked = NO_MARKS, groups: GroupRule[] = []): Judged {
    const tests: Test[] = [];
    for (const [name, rule] of rules) {
      if (name !== RANK && this.columns.get(name)?.numbers && isBounded(rule)) tests.push(this.test(name, rule, marks));
    }
    const where = this.header.where;
    if (where && useWhere) tests.push(counted("where", {}, withMarks("where", where.outcomes, marks), false));
    if (marks.size) tests.push(this.marksTest(marks));
    const rank = rules.get(RANK);
    if (rank && isBounded(rank) && this.columns.get(RANK)) tests.push(this.rankTest(rank, tests, marks));
    for (const rule of groups) if (this.applies(rule)) tests.push(this.groupTest(rule, tests, marks));
    return this.funnel(tests, rules, marks);
  }

  private test(name: string, rule: Rule, marks: Marked): Test {
    const bounds = this.thresholds(name, rule);
    const numbers = this.columns.get(name)!.numbers!;
    const outcomes = withMarks(name, Uint8Array.from(numbers, outcomeWithin(bounds)), marks);
    let ties = 0;
    for (const value of numbers) ties += Number(value === bounds.min || value === bounds.max);
    return { ...counted(name, bounds, outcomes, rule.unscored === "keep"), ties };
  }

  private marksTest(marks: Marked): Test {
    const outcomes = new Uint8Array(this.header.shown_clips).fill(KEPT);
    for (const [clip, { verdict }] of marks) if (verdict === "drop" || verdict === "bad cut") outcomes[clip] = REMOVED;
    return counted(MARKS, {}, outcomes, false);
  }

  /** The best of each group of near-duplicates among those that pass the other tests. */
  private rankTest(rule: Rule, others: Test[], marks: Marked): Test {
    const bounds = this.thresholds(RANK, rule);
    const ranks = this.columns.get(RANK)!.numbers!;
    const groups = this.columns.get(GROUP);
    const ids = this.columns.get("clip_id");
    const kept = passing(others, ranks.length);
    const best = new Set<string>();
    const copies = new Map<string, number[]>();
    for (let i = 0; i < ranks.length; i++) {
      if (!kept[i] || Number.isNaN(ranks[i])) continue;
      if (ranks[i] === 0) best.add(textOf(ids, i));
      else append(copies, textOf(groups, i), i);
    }
    const places = Float64Array.from(ranks);
    for (const [group, members] of copies) {
      members.sort((a, b) => ranks[a] - ranks[b] || (textOf(ids, a) < textOf(ids, b) ? -1 : 1));
      members.forEach((clip, better) => {
        places[clip] = better + Number(best.has(group));
      });
    }
    const outcome = outcomeWithin(bounds);
    const outcomes = withMarks(RANK, Uint8Array.from(places, outcome), marks);
    const alone = withMarks(RANK, Uint8Array.from(ranks, outcome), marks);
    const test = counted(RANK, bounds, outcomes, rule.unscored === "keep");
    return { ...test, removedAlone: countOf(alone, REMOVED), last: true };
  }

  /** Whether the page can apply a rule on groups: a limit per group needs all clips, and its columns. */
  applies(rule: GroupRule): boolean {
    const whole = this.header.shown_clips === this.header.total_clips;
    return (
      (whole || rule.power !== null) &&
      [rule.column, ...rule.best.map(([name]) => name)].every((name) => this.columns.has(name))
    );
  }

  /** A limit per group, or the balance between groups, among the clips that pass the other tests. */
  private groupTest(rule: GroupRule, others: Test[], marks: Marked): Test {
    const { shown_clips: shownClips, total_clips: total } = this.header;
    const limit = rule.power === null ? rule.clips : Math.round((rule.clips * shownClips) / total);
    const keys = keysOf(this.columns.get(rule.column), shownClips);
    const outcomes = (passed: Uint8Array) => {
      const { kept, given } = keptBy(rule, limit, passed, this.columns);
      const raw = keys.map((key, clip) => (key === undefined ? UNSCORED : kept[clip] ? KEPT : REMOVED));
      return { given, outcomes: withMarks(rule.name, raw, marks) };
    };
    const { given, outcomes: found } = outcomes(passing(others, shownClips));
    const alone = outcomes(new Uint8Array(shownClips).fill(1)).outcomes;
    const why = (clip: number) => {
      const [kept, size] = given.get(keys[clip]!) ?? [0, 0];
      return `${count(kept)} of the ${count(size)} clips with ${rule.column} ${keys[clip]} are kept`;
    };
    const test = counted(rule.name, {}, found, rule.unscored === "keep");
    return { ...test, removedAlone: countOf(alone, REMOVED), last: true, asked: rule.asked, why };
  }

  private funnel(tests: Test[], rules: Map<string, Rule>, marks: Marked): Judged {
    const { microseconds, shown_clips: clips } = this.header;
    const kept = new Uint8Array(clips).fill(1);
    const droppedBy = new Int16Array(clips).fill(-1);
    const steps: Step[] = [];
    let left = clips;
    let leftMicroseconds = microseconds.reduce((sum, value) => sum + value, 0);
    tests.forEach((test, number) => {
      let removed = 0;
      let unscoredDropped = 0;
      for (let i = 0; i < clips; i++) {
        if (!kept[i] || !drops(test, i)) continue;
        if (test.outcomes[i] === REMOVED) removed++;
        else unscoredDropped++;
        kept[i] = 0;
        droppedBy[i] = number;
        leftMicroseconds -= microseconds[i];
      }
      left -= removed + unscoredDropped;
      const rule = rules.get(test.name);
      const query = this.header.queries[test.name];
      const words = rule && [...(query ? [query] : []), asWords(rule)].join(", ");
      const asked = test.name === MARKS ? marksAsWords(marks) : (test.asked ?? words ?? this.header.where?.sql ?? "");
      const { name, removedAlone, unscored } = test;
      steps.push({ name, asked, removedAlone, removed, unscored, unscoredDropped, left, leftMicroseconds });
    });
    return { tests, steps, kept, droppedBy, clips: left, microseconds: leftMicroseconds };
  }

  /** Why a test drops a clip, in words. */
  reason(test: Test, clip: number, mark: Mark | undefined): string {
    if (test.name === MARKS) return `dropped by your mark: ${mark?.verdict}`;
    if (test.outcomes[clip] === UNSCORED) {
      const wrong = mark?.verdict === "wrong score" && mark.score === test.name;
      return `dropped by ${test.name}: ${wrong ? "marked as a wrong score" : "no score"}`;
    }
    if (test.name === "where") return "dropped by where: the condition does not hold";
    if (test.why) return `dropped by ${test.name}: ${test.why(clip)}`;
    const value = this.columns.get(test.name)!.numbers![clip];
    if (test.name === RANK) return `dropped by ${RANK}: a better copy is kept`;
    const { min, max } = test.bounds;
    if (min !== undefined && value < min) return `dropped by ${test.name}: ${compared(value, min)}`;
    return `dropped by ${test.name}: ${compared(value, max!, ">")}`;
  }
}

/** Whether a test drops a clip. */
export function drops(test: Test, clip: number): boolean {
  return test.outcomes[clip] === REMOVED || (test.outcomes[clip] === UNSCORED && !test.keepsUnscored);
}

/** Outcome of a score, which is NaN where there is none. */
function outcomeWithin({ min = Number.NEGATIVE_INFINITY, max = Number.POSITIVE_INFINITY }: Test["bounds"]) {
  return (value: number) => (Number.isNaN(value) ? UNSCORED : value < min || value > max ? REMOVED : KEPT);
}

/** Whether a rule has a threshold. */
export function isBounded(rule: Rule): boolean {
  return BOUNDS.some((name) => rule[name] !== undefined);
}

/** A rule as short text. */
export function asWords(rule: Rule): string {
  const words = BOUNDS.filter((name) => rule[name] !== undefined).map((name) => `${name} ${rule[name]}`);
  return [...words, ...(rule.unscored === "keep" ? ["unscored keep"] : [])].join(", ");
}

/** A number with four significant digits. */
export function shown(value: number): string {
  if (Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(4)));
}

/** Two numbers, with enough digits to tell them apart. */
function compared(value: number, bound: number, sign = "<"): string {
  for (let digits = 3; digits < 17; digits++) {
    const [a, b] = [Number(value.toPrecision(digits)), Number(bound.toPrecision(digits))];
    if (a !== b) return `${a} ${sign} ${b}`;
  }
  return `${value} ${sign} ${bound}`;
}

/** The percentage as an exact fraction of whole numbers; from above, what is left of one. */
export function fraction(percentage: string, fromAbove: boolean): [bigint, bigint] {
  const [whole, decimals = ""] = percentage.replace("%", "").trim().split(".");
  const denominator = 100n * 10n ** BigInt(decimals.length);
  const numerator = BigInt(whole + decimals);
  return [fromAbove ? denominator - numerator : numerator, denominator];
}

/** Whether a text is a percentage that a rule takes. */
export function isPercentage(text: string): boolean {
  return /^\d+(\.\d+)?%$/.test(text) && Number.parseFloat(text) < 100;
}

/** The nearest single-precision number that is not on the wrong side of the bound. */
export function toSingle(bound: number, up: boolean): number {
  const nearest = Math.fround(bound);
  if (up ? nearest >= bound : nearest <= bound) return nearest;
  const bits = new Int32Array(new Float32Array([nearest]).buffer);
  if (nearest === 0) return up ? 2 ** -149 : -(2 ** -149);
  bits[0] += nearest > 0 === up ? 1 : -1;
  return new Float32Array(bits.buffer)[0];
}

const NO_MARKS: Marked = new Map();

/** The outcomes of a test with marks applied: `keep` passes every test, a `wrong score` counts as unscored. */
function withMarks(name: string, outcomes: ArrayLike<number>, marks: Marked): Uint8Array {
  const marked = Uint8Array.from(outcomes);
  for (const [clip, { verdict, score }] of marks) {
    if (verdict === "keep") marked[clip] = KEPT;
    if (verdict === "wrong score" && score === name) marked[clip] = UNSCORED;
  }
  return marked;
}

function marksAsWords(marks: Marked): string {
  const counts = new Map<string, number>();
  for (const { verdict } of marks.values()) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  return [...counts]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([verdict, clips]) => `${verdict} ${clips.toLocaleString("en")}`)
    .join(", ");
}

function count(value: number): string {
  return value.toLocaleString("en");
}

function countOf(outcomes: Uint8Array, wanted: number): number {
  let clips = 0;
  for (const outcome of outcomes) clips += Number(outcome === wanted);
  return clips;
}

function passing(tests: Test[], clips: number): Uint8Array {
  const kept = new Uint8Array(clips).fill(1);
  for (const test of tests) {
    for (let i = 0; i < clips; i++) {
      if (drops(test, i)) kept[i] = 0;
    }
  }
  return kept;
}

function counted(name: string, bounds: Test["bounds"], outcomes: Uint8Array, keepsUnscored: boolean): Test {
  const counts = [0, 0, 0];
  for (const outcome of outcomes) counts[outcome]++;
  return { name, bounds, outcomes, keepsUnscored, removedAlone: counts[REMOVED], unscored: counts[UNSCORED], ties: 0 };
}

function lowerBound(sorted: Float64Array, value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function upperBound(sorted: Float64Array, value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}
