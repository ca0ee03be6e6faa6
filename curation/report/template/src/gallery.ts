/** Clips as cards: sorted, around a threshold, removed by a rule, sampled per bin. */

import { append, type Header, jsonOf, stripOf, textOf } from "./data";
import { count, duration, h, picker, redraw } from "./dom";
import { Bins } from "./histogram";
import { drops, shown } from "./rules";
import { type State, VERDICT_KEYS } from "./state";

const AT_ONCE = 24;
const NEAR = 8;
const PER_BIN = 3;

interface Group {
  title: string;
  clips: number[];
}

interface Caption {
  source: string;
  text: string | null;
  error?: string | null;
}

/** Captions of a clip. */
export function captionsOf(header: Header, clip: number): Caption[] {
  const column = header.columns.find((each) => each.name === "captions");
  const found = jsonOf(column, clip);
  return Array.isArray(found) ? (found as Caption[]) : [];
}

/** The caption to show for a clip: the newest one, as in the .txt of shards; undefined without any. */
function captionOf(state: State, clip: number): string | undefined {
  const newest = textOf(state.judge.columns.get("caption"), clip);
  return newest || captionsOf(state.header, clip).find((each) => each.text)?.text || undefined;
}

/** The three pictures of a clip, or a placeholder. */
export function strip(state: State, clip: number): HTMLElement {
  const source = stripOf(clip);
  const caption = captionOf(state, clip) ?? state.clipId(clip);
  if (!source) return h("div", { class: "strip none" }, "no pictures in this page");
  return h("img", { class: "strip", src: source, alt: `first, middle and last picture: ${caption}`, loading: "lazy" });
}

/** File name of a source. */
export function shortSource(state: State, clip: number): string {
  const uri = textOf(state.judge.columns.get("uri"), clip);
  return uri.slice(uri.lastIndexOf("/") + 1);
}

/** Cards under a heading. */
export function group(title: string, cards: HTMLElement[]): HTMLElement {
  return h("section", { class: "group" }, h("h2", {}, title), h("div", { class: "cards" }, ...cards));
}

/** A clip as a card; `open` shows its details. */
export function card(state: State, clip: number, open: (clip: number) => void, extra = ""): HTMLElement {
  const { header } = state;
  const names = [...new Set([state.active, ...state.sliders()])].filter(
    (name) => state.judge.scores(name).length > 0 && name !== "duplicate_rank",
  );
  const reason = state.reason(clip);
  const mark = state.marks.get(state.clipId(clip));
  const caption = captionOf(state, clip) ?? "no caption";
  const scores = names.map((name) => {
    const column = state.judge.columns.get(name)!;
    const unit = column.unit.length <= 4 ? ` ${column.unit}` : "";
    const text = `${name} ${shown(column.numbers![clip])}${Number.isNaN(column.numbers![clip]) ? "" : unit}`;
    return h("span", { class: name === state.active ? "score active" : "score", title: column.unit }, text);
  });
  const article: HTMLElement = h(
    "article",
    { class: reason ? "card dropped" : "card kept", "data-clip": state.clipId(clip), tabindex: 0 },
    strip(state, clip),
    h("p", { class: "caption" }, caption),
    h("p", { class: "scores" }, ...scores),
    h(
      "p",
      { class: "where" },
      `${shortSource(state, clip)} · ${duration(header.microseconds[clip] / 1e6)}${extra && ` · ${extra}`}`,
    ),
    h(
      "p",
      { class: "verdict" },
      reason ? `✕ ${reason}` : "✓ kept",
      mark ? h("strong", {}, ` · marked ${mark.verdict}`) : null,
    ),
    h(
      "button",
      { class: "open", onclick: () => open(clip), "aria-label": `details of ${state.clipId(clip)}` },
      "Details",
    ),
  );
  article.addEventListener("click", (event) => {
    if (!(event.target instanceof HTMLButtonElement)) open(clip);
  });
  article.addEventListener("keydown", (event) => {
    if (event.target !== article || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      event.preventDefault(); // otherwise Enter also presses the button that receives the focus
      open(clip);
    }
    const verdict = VERDICT_KEYS[event.key];
    if (verdict) state.mark(clip, verdict);
  });
  return article;
}

export class Gallery {
  readonly element: HTMLElement;
  private readonly cards = h("div", { class: "groups" });
  private readonly controls = h("div", { class: "controls" });
  private show = "kept";
  private sort = "";
  private descending = true;
  private limit = AT_ONCE;
  private seed = 1;
  private drawn = "";

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    this.element = h("section", { class: "gallery", "aria-label": "Clips" }, this.controls, this.cards);
    state.listen(() => this.element.offsetParent && this.update());
  }

  /** Show another set of clips. */
  showOnly(what: string): void {
    this.show = what;
    this.limit = AT_ONCE;
    this.update();
  }

  update(): void {
    this.drawControls();
    const shownGroups = this.groups().map(({ title, clips }) => {
      const visible = clips.slice(0, this.limit);
      const section = group(
        title,
        visible.map((clip) => card(this.state, clip, this.open)),
      );
      if (clips.length > visible.length) {
        const label = `Show ${count(Math.min(AT_ONCE, clips.length - visible.length))} more`;
        section.append(h("button", { class: "more", onclick: () => this.more() }, label));
      }
      return section;
    });
    redraw(this.cards, ...shownGroups);
  }

  private more(): void {
    this.limit += AT_ONCE;
    this.update();
  }

  private drawControls(): void {
    const { state } = this;
    const shows: [string, string][] = [
      ["kept", "kept clips"],
      ["dropped", "dropped clips"],
      ["all", "all clips"],
      ["borderline", `borderline clips of ${state.active}`],
      ["bins", `samples per bin of ${state.active}`],
      ...state.judged.tests.map((test): [string, string] => [`alone:${test.name}`, `removed by ${test.name}`]),
      ...state.judged.tests.map((test): [string, string] => [`only:${test.name}`, `removed only by ${test.name}`]),
      ["marked", "marked clips"],
    ];
    if (state.brushed) shows.push(["brushed", "brushed clips"]);
    if (!shows.some(([key]) => key === this.show)) this.show = "kept";
    const numeric = state.header.columns.filter((column) => column.numbers).map((column) => column.name);
    const sliders = state.sliders();
    const sorts = [...sliders, ...numeric.filter((name) => !sliders.includes(name))];
    const key = JSON.stringify([shows, this.show, this.sort, this.descending]);
    if (key === this.drawn) return; // keeps the focus
    this.drawn = key;
    const direction = h(
      "button",
      { onclick: () => this.set({ descending: !this.descending }) },
      this.descending ? "↓ highest first" : "↑ lowest first",
    );
    this.controls.replaceChildren(
      picker("Show", shows, this.show, (show) => this.set({ show })),
      picker(
        "sorted by",
        [["", `the active score (${state.active})`], ...sorts.map((name): [string, string] => [name, name])],
        this.sort,
        (sort) => this.set({ sort }),
      ),
      direction,
      h("button", { onclick: () => this.set({ seed: this.seed + 1 }), hidden: this.show !== "bins" }, "Resample"),
    );
  }

  private set(change: { show?: string; sort?: string; descending?: boolean; seed?: number }): void {
    Object.assign(this, change);
    this.limit = AT_ONCE;
    this.update();
  }

  private groups(): Group[] {
    const { state, show } = this;
    const { kept, tests } = state.judged;
    const all = Array.from(kept, (_, clip) => clip);
    if (show === "borderline") return this.borderline(all);
    if (show === "bins") return this.perBin(all);
    let clips = all;
    let title = "All clips";
    if (show === "kept") [clips, title] = [all.filter((clip) => kept[clip]), "Kept"];
    if (show === "dropped") [clips, title] = [all.filter((clip) => !kept[clip]), "Dropped"];
    if (show === "brushed") [clips, title] = [all.filter((clip) => state.brushed?.has(clip)), "Brushed"];
    if (show === "marked") [clips, title] = [all.filter((clip) => state.marks.has(state.clipId(clip))), "Marked"];
    const [how, name] = [show.slice(0, show.indexOf(":")), show.slice(show.indexOf(":") + 1)];
    const place = tests.findIndex((test) => test.name === name);
    if (how === "alone" && place >= 0) {
      clips = all.filter((clip) => drops(tests[place], clip));
      title = `Removed by ${name}, regardless of other rules`;
    }
    if (how === "only" && place >= 0) {
      clips = all.filter(
        (clip) => drops(tests[place], clip) && tests.every((test, i) => i === place || !drops(test, clip)),
      );
      title = `Removed only by ${name}`;
    }
    const sort = this.sort || state.active;
    return [
      {
        title: `${title}: ${count(clips.length)}${state.whole ? "" : " of the sample"}`,
        clips: this.sorted(clips, sort, this.descending),
      },
    ];
  }

  private sorted(clips: number[], name: string, descending: boolean): number[] {
    const numbers = this.state.judge.columns.get(name)?.numbers;
    if (!numbers) return clips;
    const sign = descending ? -1 : 1;
    return [...clips].sort((a, b) => {
      const [first, second] = [numbers[a], numbers[b]];
      if (Number.isNaN(first) || Number.isNaN(second))
        return Number(Number.isNaN(first)) - Number(Number.isNaN(second));
      return sign * (first - second) || a - b;
    });
  }

  private borderline(all: number[]): Group[] {
    const { state } = this;
    const name = state.active;
    const numbers = state.judge.columns.get(name)?.numbers;
    const { min, max } = state.judge.thresholds(name, state.rules.get(name) ?? {});
    if (!numbers || (min === undefined && max === undefined)) {
      return [{ title: `${name} has no threshold: drag a handle of its histogram`, clips: [] }];
    }
    const groups: Group[] = [];
    const above = (bound: number, inclusive: boolean) =>
      this.sorted(
        all.filter((clip) => numbers[clip] > bound || (inclusive && numbers[clip] === bound)),
        name,
        false,
      ).slice(0, NEAR);
    const below = (bound: number, inclusive: boolean) =>
      this.sorted(
        all.filter((clip) => numbers[clip] < bound || (inclusive && numbers[clip] === bound)),
        name,
        true,
      ).slice(0, NEAR);
    const measured = (value: number) => withUnit(shown(value), state.judge.columns.get(name)!.unit);
    if (min !== undefined) {
      groups.push({ title: `Just passing: ${name} from ${measured(min)}`, clips: above(min, true) });
      groups.push({ title: `Just failing: ${name} below ${measured(min)}`, clips: below(min, false) });
    }
    if (max !== undefined) {
      groups.push({ title: `Just passing: ${name} up to ${measured(max)}`, clips: below(max, true) });
      groups.push({ title: `Just failing: ${name} above ${measured(max)}`, clips: above(max, false) });
    }
    return groups;
  }

  private perBin(all: number[]): Group[] {
    const column = this.state.judge.columns.get(this.state.active);
    if (!column?.numbers) return [];
    const bins = new Bins(this.state, column);
    const found = new Map<number, number[]>();
    for (const clip of all) if (bins.of[clip] >= 0) append(found, bins.of[clip], clip);
    return [...found.keys()]
      .sort((a, b) => a - b)
      .map((bin) => {
        const clips = found.get(bin)!;
        const order = [...clips].sort((a, b) => shuffled(a, this.seed) - shuffled(b, this.seed));
        const [low, high] = [bins.edges[bin], bins.edges[bin + 1]];
        return {
          title: `${withUnit(`${shown(low)} to ${shown(high)}`, column.unit)}: ${count(clips.length)} clips`,
          clips: order.slice(0, PER_BIN),
        };
      });
  }
}

/** A number with its unit; a unit of several words in parentheses. */
function withUnit(number: string, unit: string): string {
  return unit.includes(" ") ? `${number} (${unit})` : `${number} ${unit}`.trimEnd();
}

/** A pseudo-random sort key per clip. */
function shuffled(clip: number, seed: number): number {
  let value = Math.imul(clip + 1, 0x9e3779b1) ^ Math.imul(seed, 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 15), 0x2c1b3c6d);
  return (value ^ (value >>> 12)) >>> 0;
}
