/** The rules and marks as set on the page, and the clips they keep. Other parts of the page listen for changes. */

import type { Header, Mark, Rule, Verdict } from "./data";
import { BOUNDS, isBounded, Judge, type Judged, type Step } from "./rules";

/** Key -> verdict. */
export const VERDICT_KEYS: Record<string, Verdict> = { b: "bad cut", w: "wrong score", k: "keep", d: "drop" };

export class State {
  readonly judge: Judge;
  readonly rules: Map<string, Rule>;
  /** Rules of the selection that `clipmill select --allow-missing` skipped, and why. */
  readonly skipped: Map<string, string>;
  useWhere: boolean;
  /** Whether the counts include the marks, as with `clipmill select --marks`. */
  useMarks: boolean;
  /** Whether the rules on groups apply. */
  useGroups = true;
  judged!: Judged;
  /** The same without marks, where the page holds a sample: a mark is about one clip, not about those it stands for. */
  private unmarked: Judged | undefined;
  /** The column whose threshold was moved last. */
  active: string;
  /** Clips in the brush of the scatter plot. */
  brushed: Set<number> | null = null;
  readonly marks: Map<string, Mark>;
  private readonly places = new Map<string, number>();
  private readonly listeners: (() => void)[] = [];
  private scheduled = false;

  constructor(readonly header: Header) {
    this.judge = new Judge(header);
    const steps = header.selection?.funnel ?? [];
    this.skipped = new Map(steps.filter((step) => step.skipped !== null).map((step) => [step.rule, step.skipped!]));
    for (const rule of header.groups) {
      const why = "needs all clips, and the page has a sample or lacks a column; the selection applies it";
      if (!this.skipped.has(rule.name) && !this.judge.applies(rule)) this.skipped.set(rule.name, why);
    }
    const likes = Object.keys(header.queries).map((name, i): [string, Rule] => [name, header.rules.like![i]]);
    const rules = [...Object.entries(header.rules.rules ?? {}), ...likes].filter(([name]) => !this.skipped.has(name));
    this.rules = new Map(rules.map(([name, rule]) => [name, boundsOf(rule)]));
    this.useWhere = header.where !== null;
    this.active = [...this.rules.keys()].find((name) => this.judge.columns.has(name)) ?? this.sliders()[0] ?? "";
    const ids = this.judge.columns.get("clip_id")!;
    for (let clip = 0; clip < header.shown_clips; clip++) this.places.set(ids.texts![ids.codes![clip]], clip);
    const local = this.localMarks();
    this.marks = new Map(header.marks.map((mark) => [mark.clip_id, markOf(mark.verdict, mark.score)]));
    for (const [id, mark] of local) {
      if (mark) this.marks.set(id, mark);
      else this.marks.delete(id);
    }
    this.useMarks = local.size > 0 || (header.selection?.marked ?? 0) > 0;
    this.rejudge();
  }

  /** Names of the columns whose histograms are shown at the start. */
  sliders(): string[] {
    return this.header.columns.filter((column) => column.slider).map((column) => column.name);
  }

  /** Register a listener for changes; it is called at most once per frame. */
  listen(listener: () => void): void {
    this.listeners.push(listener);
  }

  /** Change the rule on a column. The result is available on return; listeners run in the next frame. */
  change(name: string, change: Partial<Record<keyof Rule, string | number | undefined>>): void {
    const rule = { ...this.rules.get(name), ...change } as Rule;
    for (const key of Object.keys(rule) as (keyof Rule)[]) if (rule[key] === undefined) delete rule[key];
    if (isBounded(rule)) this.rules.set(name, rule);
    else this.rules.delete(name);
    this.active = name;
    this.rejudge();
  }

  /** Judge all clips again. */
  rejudge(): void {
    const marked = new Map<number, Mark>();
    for (const [id, mark] of this.useMarks ? this.marks : []) {
      const clip = this.places.get(id);
      if (clip !== undefined) marked.set(clip, mark);
    }
    const groups = this.useGroups ? this.header.groups.filter((rule) => !this.skipped.has(rule.name)) : [];
    this.judged = this.judge.judge(this.rules, this.useWhere, marked, groups);
    const sampled = !this.whole && marked.size;
    this.unmarked = sampled ? this.judge.judge(this.rules, this.useWhere, undefined, groups) : undefined;
    this.notify();
  }

  /** Notify the listeners in the next frame. */
  notify(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      for (const listener of this.listeners) listener();
    });
  }

  /** Clips of the dataset that each clip of the page stands for. */
  get scale(): number {
    return this.header.shown_clips ? this.header.total_clips / this.header.shown_clips : 1;
  }

  /** A number of the whole dataset: exact if the page holds all clips, otherwise an estimate. */
  estimate(of: (judged: Judged) => number): number {
    const here = of(this.judged);
    if (!this.unmarked) return here * this.scale;
    const without = of(this.unmarked);
    return without * this.scale + (here - without);
  }

  /** A number of a step of the funnel over the whole dataset. */
  estimateOf(name: string, of: (step: Step) => number): number {
    return this.estimate((judged) => {
      const at = judged.steps.findIndex((step) => step.name === name);
      if (at >= 0) return of(judged.steps[at]);
      // Without marks there is no such step: it removes nothing from what the rules on scores leave.
      const before = judged.steps.filter((_, i) => !judged.tests[i].last).at(-1);
      const left = before?.left ?? this.header.shown_clips;
      const leftMicroseconds = before?.leftMicroseconds ?? sum(this.header.microseconds);
      return of({ ...NOTHING_REMOVED, name, left, leftMicroseconds });
    });
  }

  /** Whether the page holds all clips. */
  get whole(): boolean {
    return this.header.shown_clips === this.header.total_clips;
  }

  clipId(clip: number): string {
    const column = this.judge.columns.get("clip_id")!;
    return column.texts![column.codes![clip]];
  }

  /** Why a clip is dropped, in words; empty if it is kept. */
  reason(clip: number): string {
    const by = this.judged.droppedBy[clip];
    return by < 0 ? "" : this.judge.reason(this.judged.tests[by], clip, this.marks.get(this.clipId(clip)));
  }

  /** Mark a clip, or remove the mark if it has this verdict already. */
  mark(clip: number, verdict: Verdict): void {
    const id = this.clipId(clip);
    const mark = this.marks.get(id)?.verdict === verdict ? null : markOf(verdict, this.active);
    this.setMarks([[id, mark]]);
  }

  /** Mark several clips; null removes a mark. */
  setMarks(marks: [string, Mark | null][]): void {
    const local = this.localMarks();
    for (const [id, mark] of marks) {
      if (mark) this.marks.set(id, mark);
      else this.marks.delete(id);
      local.set(id, mark);
    }
    try {
      localStorage.setItem(this.key, JSON.stringify([...local]));
    } catch {
      // Without storage, marks last as long as the page is open.
    }
    this.useMarks = true;
    this.rejudge();
  }

  private get key(): string {
    return `clipmill marks ${this.header.fingerprint} ${this.header.dataset}`;
  }

  /** Marks of this browser; null for a mark of the dataset that was removed here. */
  private localMarks(): Map<string, Mark | null> {
    try {
      return new Map(JSON.parse(localStorage.getItem(this.key) ?? "[]"));
    } catch {
      return new Map(); // no storage, or its content is damaged
    }
  }
}

const NOTHING_REMOVED = { asked: "", removedAlone: 0, removed: 0, unscored: 0, unscoredDropped: 0 };

/** The bounds of a rule alone, without the query of a `like`. */
function boundsOf(rule: Rule): Rule {
  const keys = [...BOUNDS, "unscored" as const].filter((key) => rule[key] !== undefined);
  return Object.fromEntries(keys.map((key) => [key, rule[key]]));
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}

function markOf(verdict: Verdict, score: string | null): Mark {
  return verdict === "wrong score" && score ? { verdict, score } : { verdict };
}
