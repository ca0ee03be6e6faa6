/** A histogram with both ends draggable: kept clips before all clips, thresholds by value and by percentile. */

import uPlot from "uplot";
import type { Column } from "./data";
import { count, h, percent } from "./dom";
import { colour } from "./plot";
import { isPercentage, RANK, shown } from "./rules";
import type { State } from "./state";

const BINS = 48;
const HEIGHT = 110;

/** Equal bins over the scores of a column. */
export class Bins {
  readonly low: number;
  readonly high: number;
  /** Whether bins are equal in the square root of the distance from the least score. */
  readonly root: boolean;
  readonly edges: Float64Array;
  readonly centres: number[];
  readonly of: Int16Array;
  /** Clips per bin. */
  readonly all: number[];

  constructor(
    state: State,
    readonly column: Column,
  ) {
    const scores = state.judge.scores(column.name);
    const extremes = state.header.quantiles[column.name]?.quantiles ?? scores;
    const [low, high] = extremes.length ? [extremes[0], extremes[extremes.length - 1]] : [0, 1];
    const spread = high > low ? high - low : Math.abs(low) * 0.02 || 1;
    this.low = high > low ? low : low - spread / 2;
    this.high = this.low + spread;
    const median = extremes[extremes.length >> 1] ?? low;
    this.root = low >= 0 && high > low && median - low < 0.1 * spread; // a long tail would leave everything in the first bins
    this.edges = Float64Array.from({ length: BINS + 1 }, (_, i) => this.unwarped((i / BINS) * this.warped(this.high)));
    this.centres = Array.from({ length: BINS }, (_, i) => this.unwarped(((i + 0.5) / BINS) * this.warped(this.high)));
    this.of = Int16Array.from(column.numbers!, (value) => {
      const share = this.warped(value) / this.warped(this.high);
      return Number.isNaN(value) ? -1 : Math.max(0, Math.min(BINS - 1, Math.floor(share * BINS)));
    });
    this.all = this.counts(new Uint8Array(this.of.length).fill(1));
  }

  private warped(value: number): number {
    return this.root ? Math.sqrt(Math.max(0, value - this.low)) : value - this.low;
  }

  private unwarped(place: number): number {
    return this.low + (this.root ? place ** 2 : place);
  }

  /** The horizontal scale of a plot of these bins. */
  get scale(): uPlot.Scale {
    const range = (): uPlot.Range.MinMax => [this.low, this.high];
    if (!this.root) return { time: false, range };
    return { time: false, range, distr: 100, fwd: (value) => this.warped(value), bwd: (place) => this.unwarped(place) };
  }

  /** Clips per bin, counting those with a 1 in `wanted`. */
  counts(wanted: Uint8Array): number[] {
    const found = new Array<number>(BINS).fill(0);
    for (let i = 0; i < this.of.length; i++) if (this.of[i] >= 0 && wanted[i]) found[this.of[i]]++;
    return found;
  }

  /** The step to which a dragged value is rounded. */
  get step(): number {
    return 10 ** Math.floor(Math.log10((this.high - this.low) / (this.root ? 2000 : 200)));
  }
}

type End = "min" | "max";
const PERCENT = { min: "drop_lowest", max: "drop_highest" } as const;

export class Histogram {
  readonly element: HTMLElement;
  readonly bins: Bins;
  private plot: uPlot | undefined;
  private readonly chart = h("div", { class: "chart" });
  private readonly handles: Record<End, HTMLElement>;
  private readonly shades: Record<End, HTMLElement>;
  private readonly values: Record<End, HTMLInputElement>;
  private readonly percents: Record<End, HTMLInputElement>;
  private readonly note = h("p", { class: "note" });
  private readonly unscored: HTMLInputElement;
  private readonly unscoredLabel: HTMLLabelElement;

  constructor(
    private readonly state: State,
    private readonly column: Column,
  ) {
    this.bins = new Bins(state, column);
    const name = column.name;
    this.handles = { min: this.handle("min"), max: this.handle("max") };
    this.shades = { min: h("div", { class: "shade" }), max: h("div", { class: "shade" }) };
    this.values = { min: this.valueInput("min"), max: this.valueInput("max") };
    this.percents = { min: this.percentInput("min"), max: this.percentInput("max") };
    this.unscored = h("input", {
      type: "checkbox",
      onchange: () => state.change(name, { unscored: this.unscored.checked ? "keep" : undefined }),
    });
    this.unscoredLabel = h("label", { class: "unscored" }, this.unscored, " keep unscored clips");
    const arrow = { higher: "higher is better", lower: "lower is better", "": "" }[column.better];
    this.element = h(
      "section",
      { class: "histogram", "data-column": name, "aria-label": name },
      h(
        "h2",
        { class: "small" },
        h(
          "button",
          { class: "plain", title: "show its thresholds in the gallery", onclick: () => this.activate() },
          name,
        ),
        h("span", { class: "unit" }, [column.unit, arrow].filter(Boolean).join(" · ")),
      ),
      column.meaning ? h("p", { class: "meaning" }, column.meaning) : null,
      this.chart,
      h("div", { class: "ends" }, this.end("min", "drop below"), this.end("max", "drop above")),
      this.note,
      this.unscoredLabel,
    );
    state.listen(() => this.update());
  }

  /** Draw at the available width. */
  draw(): void {
    const width = Math.max(200, this.chart.clientWidth);
    if (this.plot?.width === width) return;
    this.plot?.destroy();
    this.chart.replaceChildren();
    const bars = uPlot.paths.bars!({ size: [1, 100], gap: 1 });
    this.plot = new uPlot(
      {
        width,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        padding: [4, 14, 0, 14],
        scales: {
          x: this.bins.scale,
          y: { range: (_, __, high) => [0, Math.max(1, high * 1.05)] },
        },
        axes: [
          {
            stroke: () => colour("--text"),
            grid: { show: false },
            ticks: { stroke: () => colour("--line"), size: 4 },
            size: 26,
            font: "11px system-ui",
            ...(this.bins.root ? { splits: () => ticks(this.bins.low, this.bins.high) } : {}),
            filter: (_, splits) => splits,
            values: (_, splits) => splits.map((value) => (value === null ? "" : shown(value))),
          },
          { show: false },
        ],
        series: [
          {},
          { fill: () => colour("--dropped"), width: 0, paths: bars, points: { show: false } },
          { fill: () => colour("--kept"), width: 0, paths: bars, points: { show: false } },
        ],
      },
      [this.bins.centres, this.bins.all, this.bins.counts(this.state.judged.kept)],
      this.chart,
    );
    queueMicrotask(() => this.update()); // the scales are set by then
    this.chart.querySelector("canvas")?.setAttribute("aria-hidden", "true");
    this.plot.over.append(this.shades.min, this.shades.max, this.handles.min, this.handles.max);
  }

  /** Draw again, in the current colours. */
  redraw(): void {
    this.plot?.destroy();
    this.plot = undefined;
    this.draw();
  }

  private update(): void {
    if (!this.plot) return;
    const { state, column } = this;
    const counts = this.bins.counts(state.judged.kept);
    this.plot.setData([this.bins.centres, this.bins.all, counts], true);
    const rule = state.rules.get(column.name) ?? {};
    const bounds = this.bounds();
    const test = state.judged.tests.find((each) => each.name === column.name);
    for (const end of ["min", "max"] as const) this.updateEnd(end, bounds[end], rule[PERCENT[end]]);
    const { total_clips: total, shown_clips: here, quantiles } = state.header;
    const scored = state.judge.scores(column.name).length;
    const missing = here - scored;
    const kept = counts.reduce((sum, number) => sum + number, 0);
    const parts = [`${count(kept)} of ${count(scored)} scored clips ${state.whole ? "" : "of the sample "}kept`];
    if (test) parts.push(`this rule alone removes ${count(test.removedAlone)}`);
    if (test?.ties) parts.push(`${count(test.ties)} tied at a threshold (kept)`);
    const unscored = quantiles[column.name] ? total - quantiles[column.name].scored : missing;
    if (unscored) parts.push(`${count(unscored)} ${state.whole ? "" : "of all clips "}have no score`);
    this.note.textContent = parts.join(" · ");
    this.unscoredLabel.hidden = !unscored;
    this.unscored.checked = rule.unscored === "keep";
    this.element.classList.toggle("active", state.active === column.name);
    this.element.classList.toggle("ruled", state.rules.has(column.name));
  }

  private updateEnd(end: End, bound: number | undefined, percentage: string | undefined): void {
    const resting = end === "min" ? this.bins.low : this.bins.high;
    const value = Math.max(this.bins.low, Math.min(this.bins.high, bound ?? resting));
    const left = this.plot!.valToPos(value, "x");
    const handle = this.handles[end];
    handle.style.left = `${left}px`;
    handle.setAttribute("aria-valuenow", String(bound ?? resting));
    handle.setAttribute("aria-valuetext", bound === undefined ? "off" : `${shown(bound)} ${this.column.unit}`);
    handle.classList.toggle("off", bound === undefined);
    const shade = this.shades[end];
    shade.style.left = end === "min" ? "0" : `${left}px`;
    shade.style.width =
      end === "min" ? `${Math.max(0, left)}px` : `${Math.max(0, this.plot!.over.clientWidth - left)}px`;
    const field = this.values[end];
    if (document.activeElement !== field) field.value = bound === undefined ? "" : String(Number(bound.toPrecision(7)));
    const share = this.percents[end];
    if (document.activeElement !== share)
      share.value = percentage ?? (bound === undefined ? "" : this.removedShare(end, bound));
    share.classList.toggle("asked", percentage !== undefined);
    field.classList.toggle("asked", bound !== undefined && percentage === undefined);
  }

  private removedShare(end: End, bound: number): string {
    const { below, equal } = this.state.judge.shareBelow(this.column.name, bound);
    return percent(end === "min" ? below : 1 - below - equal);
  }

  private activate(): void {
    this.state.active = this.column.name;
    this.state.notify();
  }

  private set(end: End, value: number | undefined): void {
    this.state.change(this.column.name, { [end]: value, [PERCENT[end]]: undefined });
  }

  private end(end: End, label: string): HTMLElement {
    return h("div", { class: "end" }, h("span", {}, label), this.values[end], h("span", {}, "or"), this.percents[end]);
  }

  private valueInput(end: End): HTMLInputElement {
    const unit = this.column.unit ? ` in ${this.column.unit}` : "";
    const input: HTMLInputElement = h("input", {
      type: "text",
      inputmode: "decimal",
      class: "value",
      "aria-label": `${this.column.name}: ${end === "min" ? "least" : "greatest"} value that passes${unit}`,
      placeholder: end,
      title: this.column.bounds ? `from ${this.column.bounds[0]} to ${this.column.bounds[1]}` : undefined,
      onchange: () => {
        const text = input.value.trim();
        const value = Number(text);
        const [low, high] = this.column.bounds ?? [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
        const bad = text !== "" && !(Number.isFinite(value) && value >= low && value <= high); // `select` refuses it
        input.setAttribute("aria-invalid", String(bad));
        if (!bad) this.set(end, text === "" ? undefined : value);
      },
    });
    return input;
  }

  private percentInput(end: End): HTMLInputElement {
    const input: HTMLInputElement = h("input", {
      type: "text",
      inputmode: "decimal",
      class: "percent",
      "aria-label": `${this.column.name}: percentage with the ${end === "min" ? "lowest" : "highest"} that is dropped`,
      placeholder: "%",
      disabled: this.column.name === RANK, // a place in a group, of which `select` takes no percentage
      onchange: () => {
        const text = input.value.trim().replace(/%?$/, "%");
        const other = this.state.rules.get(this.column.name)?.[PERCENT[end === "min" ? "max" : "min"]];
        const empty = text === "%" || text === "0%";
        const bad = !empty && !(isPercentage(text) && Number.parseFloat(text) + Number.parseFloat(other ?? "0") < 100);
        input.setAttribute("aria-invalid", String(bad));
        if (!bad) this.state.change(this.column.name, { [end]: undefined, [PERCENT[end]]: empty ? undefined : text });
      },
    });
    return input;
  }

  private handle(end: End): HTMLElement {
    const handle = h("div", {
      class: `handle ${end}`,
      role: "slider",
      tabindex: 0,
      "aria-label": `${this.column.name}: ${end === "min" ? "lower" : "upper"} threshold`,
      "aria-valuemin": this.bins.low,
      "aria-valuemax": this.bins.high,
    });
    const moveTo = (clientX: number) => {
      const box = this.plot!.over.getBoundingClientRect();
      const x = Math.max(0, Math.min(box.width, clientX - box.left));
      this.moved(end, this.plot!.posToVal(x, "x"));
    };
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.focus();
      event.preventDefault();
    });
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) moveTo(event.clientX);
    });
    handle.addEventListener("keydown", (event) => {
      // Read from the rules: the handle is only updated in the next frame, and another key may come before.
      const now = this.bounds()[end] ?? (end === "min" ? this.bins.low : this.bins.high);
      const step = Math.max(this.bins.step, (this.bins.high - this.bins.low) / 200);
      const by: Record<string, number> = {
        ArrowLeft: -1,
        ArrowDown: -1,
        ArrowRight: 1,
        ArrowUp: 1,
        PageDown: -10,
        PageUp: 10,
      };
      if (event.key in by) this.moved(end, now + by[event.key] * step);
      else if (event.key === "Home" || event.key === "Delete") this.set(end, undefined);
      else return;
      event.preventDefault();
    });
    return handle;
  }

  /** The thresholds of this score as numbers. */
  private bounds() {
    return this.state.judge.thresholds(this.column.name, this.state.rules.get(this.column.name) ?? {});
  }

  /** Apply a value from a handle: rounded, not beyond the other handle, none at its own end. */
  private moved(end: End, to: number): void {
    const { low, high, step } = this.bins;
    const bounds = this.bounds();
    let value = Number((Math.round(to / step) * step).toPrecision(12));
    if (end === "min" && bounds.max !== undefined) value = Math.min(value, bounds.max);
    if (end === "max" && bounds.min !== undefined) value = Math.max(value, bounds.min);
    const off = end === "min" ? value <= low : value >= high;
    this.set(end, off ? undefined : value);
  }
}

/** Round numbers, evenly spaced on a square-root scale. */
function ticks(low: number, high: number): number[] {
  const places = [0, 0.2, 0.4, 0.6, 0.8, 1].map((place) => low + place ** 2 * (high - low));
  return [...new Set(places.map((value) => Number(value.toPrecision(value < high ? 1 : 2))))].filter((v) => v <= high);
}
