/** What the reader has asked for, and what follows from it. Parts of the page listen for changes. */

import type { Header, Rule } from "./data";
import { isBounded, Judge, type Judged } from "./rules";

export type Verdict = "bad cut" | "wrong score" | "keep" | "drop";

/** Key -> verdict. */
export const VERDICT_KEYS: Record<string, Verdict> = { b: "bad cut", w: "wrong score", k: "keep", d: "drop" };

export interface Mark {
  verdict: Verdict;
  /** The score that is wrong, where one was being looked at. */
  score?: string;
}

export class State {
  readonly judge: Judge;
  readonly rules: Map<string, Rule>;
  useWhere: boolean;
  judged: Judged;
  /** The column whose threshold was moved last. */
  active: string;
  /** Clips inside the brush of the scatter, if there is one. */
  brushed: Set<number> | null = null;
  readonly marks: Map<string, Mark>;
  private readonly listeners: (() => void)[] = [];
  private scheduled = false;

  constructor(readonly header: Header) {
    this.judge = new Judge(header);
    this.rules = new Map(Object.entries(header.rules.rules ?? {}).map(([name, rule]) => [name, { ...rule }]));
    this.useWhere = header.where !== null;
    this.judged = this.judge.judge(this.rules, this.useWhere);
    this.active = [...this.rules.keys()].find((name) => this.judge.columns.has(name)) ?? this.sliders()[0] ?? "";
    this.marks = this.savedMarks();
  }

  /** Names of the columns that have a histogram from the start. */
  sliders(): string[] {
    return this.header.columns.filter((column) => column.slider).map((column) => column.name);
  }

  /** Call a listener after every change, at most once per frame. */
  listen(listener: () => void): void {
    this.listeners.push(listener);
  }

  /** Change the rule on a column; what comes of it is there on return, listeners run in the next frame. */
  change(name: string, change: Partial<Record<keyof Rule, string | number | undefined>>): void {
    const rule = { ...this.rules.get(name), ...change } as Rule;
    for (const key of Object.keys(rule) as (keyof Rule)[]) if (rule[key] === undefined) delete rule[key];
    if (isBounded(rule)) this.rules.set(name, rule);
    else this.rules.delete(name);
    this.active = name;
    this.rejudge();
  }

  /** Judge again, after rules were replaced. */
  rejudge(): void {
    this.judged = this.judge.judge(this.rules, this.useWhere);
    this.notify();
  }

  /** Tell the listeners. */
  notify(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      for (const listener of this.listeners) listener();
    });
  }

  /** Of the whole dataset, as far as the clips that are here tell: themselves where all are here. */
  scale(): number {
    return this.header.shown_clips ? this.header.total_clips / this.header.shown_clips : 1;
  }

  get whole(): boolean {
    return this.header.shown_clips === this.header.total_clips;
  }

  clipId(clip: number): string {
    const column = this.judge.columns.get("clip_id")!;
    return column.texts![column.codes![clip]];
  }

  /** Why a clip is dropped, in words; empty for one that stays. */
  reason(clip: number): string {
    const by = this.judged.droppedBy[clip];
    return by < 0 ? "" : this.judge.reason(this.judged.tests[by], clip);
  }

  /** Set or take back a verdict. */
  mark(clip: number, verdict: Verdict): void {
    const id = this.clipId(clip);
    if (this.marks.get(id)?.verdict === verdict) this.marks.delete(id);
    else this.marks.set(id, verdict === "wrong score" ? { verdict, score: this.active } : { verdict });
    this.saveMarks();
    this.notify();
  }

  private get key(): string {
    return `clipmill marks ${this.header.fingerprint} ${this.header.dataset}`;
  }

  private savedMarks(): Map<string, Mark> {
    try {
      return new Map(JSON.parse(localStorage.getItem(this.key) ?? "[]"));
    } catch {
      return new Map(); // no storage here, or something else in it
    }
  }

  private saveMarks(): void {
    try {
      localStorage.setItem(this.key, JSON.stringify([...this.marks]));
    } catch {
      // The marks are still in the page, to be exported.
    }
  }
}
