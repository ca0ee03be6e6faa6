/** Scatter plot of two scores with a brush, and the rank correlations of all scores. */

import uPlot from "uplot";
import { count, h, picker } from "./dom";
import { axis, colour } from "./plot";
import type { State } from "./state";

const HEIGHT = 420;

/** Low and high end on the horizontal and the vertical axis. */
interface Box {
  x: [number, number];
  y: [number, number];
}

export class Pairs {
  readonly element: HTMLElement;
  private readonly chart = h("div", { class: "chart scatter" });
  private readonly told = h("p", { class: "note", role: "status" });
  private readonly pickers = h("div", { class: "controls" });
  private readonly ranges = h("div", { class: "controls ranges" });
  private readonly heat = h("section", {});
  private readonly names: string[];
  private x: string;
  private y: string;
  private box: Box | undefined;
  private plot: uPlot | undefined;

  constructor(
    private readonly state: State,
    private readonly look: () => void,
  ) {
    const scored = state.sliders().filter((name) => state.judge.scores(name).length > 1);
    const isQuality = (name: string) => state.judge.columns.get(name)!.better !== "";
    this.names = [...scored.filter(isQuality), ...scored.filter((name) => !isQuality(name))];
    [this.x, this.y] = [this.names[0] ?? "", this.names[1] ?? this.names[0] ?? ""];
    const scatter = h("section", {}, this.pickers, this.chart, this.told, this.ranges);
    this.element = h("div", { class: "pairs" }, scatter, this.heat);
    state.listen(() => this.plot && this.element.offsetParent && this.draw());
  }

  draw(): void {
    if (!this.names.length) {
      this.element.replaceChildren(h("p", {}, "No clips are scored."));
      return;
    }
    if (!this.pickers.childElementCount) this.drawControls();
    if (!this.heat.childElementCount) this.heat.append(...this.correlations());
    const [xs, ys] = [this.numbers(this.x), this.numbers(this.y)];
    const { kept } = this.state.judged;
    const order = this.scored().sort((a, b) => xs[a] - xs[b]);
    const values = (wanted: number) => order.map((clip) => (kept[clip] === wanted ? ys[clip] : null));
    this.plot?.destroy();
    this.chart.replaceChildren();
    const points = (name: string): uPlot.Series => ({
      paths: () => null,
      points: { show: true, size: 5, width: 0, fill: () => colour(name), space: 0 },
    });
    this.plot = new uPlot(
      {
        width: Math.max(260, this.chart.clientWidth),
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: true, y: true, setScale: false }, points: { show: false } },
        scales: { x: { time: false } },
        axes: [
          { ...axis(this.labelled(this.x)), size: 30 },
          { ...axis(this.labelled(this.y)), size: 56 },
        ],
        series: [{}, points("--dropped"), points("--kept")],
        hooks: { setSelect: [(plot) => this.dragged(plot)], ready: [(plot) => this.showBox(plot)] },
      },
      [order.map((clip) => xs[clip]), values(0), values(1)],
      this.chart,
    );
    const canvas = this.chart.querySelector("canvas");
    canvas?.setAttribute("role", "img");
    canvas?.setAttribute("aria-label", `${this.y} over ${this.x}, ${count(order.length)} clips`);
    this.tell();
  }

  private numbers(name: string): Float32Array | Float64Array {
    return this.state.judge.columns.get(name)!.numbers!;
  }

  private labelled(name: string): string {
    const { unit } = this.state.judge.columns.get(name)!;
    return unit ? `${name} (${unit})` : name;
  }

  /** Clips with both scores. */
  private scored(): number[] {
    const [xs, ys] = [this.numbers(this.x), this.numbers(this.y)];
    const clips: number[] = [];
    for (let clip = 0; clip < xs.length; clip++) if (!Number.isNaN(xs[clip] + ys[clip])) clips.push(clip);
    return clips;
  }

  private drawControls(): void {
    const options = this.names.map((name): [string, string] => [name, name]);
    this.pickers.replaceChildren(
      picker("x axis", options, this.x, (name) => this.pick(name, this.y)),
      picker("y axis", options, this.y, (name) => this.pick(this.x, name)),
      h("button", { onclick: this.look }, "Show the brushed clips"),
      h("button", { onclick: () => this.asRules() }, "Use the brush as rules"),
    );
    const field = (side: "x" | "y", end: 0 | 1) => {
      const name = side === "x" ? this.x : this.y;
      const input: HTMLInputElement = h("input", {
        type: "text",
        inputmode: "decimal",
        id: `brush-${side}-${end}`,
        "aria-label": `brush: ${end ? "highest" : "lowest"} ${name}`,
        onchange: () => this.typed(side, end, input),
      });
      return input;
    };
    this.ranges.replaceChildren(
      ...(["x", "y"] as const).flatMap((side) => [
        h("span", {}, `brush ${side === "x" ? this.x : this.y} from`),
        field(side, 0),
        h("span", {}, "to"),
        field(side, 1),
      ]),
    );
  }

  private pick(x: string, y: string): void {
    [this.x, this.y] = [x, y];
    this.box = undefined;
    this.state.brushed = null;
    this.pickers.replaceChildren();
    this.draw();
  }

  /** Apply a dragged box. */
  private dragged(plot: uPlot): void {
    const { left, top, width, height } = plot.select;
    if (width < 2 && height < 2) return;
    this.brush({
      x: [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")],
      y: [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")],
    });
  }

  /** Apply a typed limit; an empty field means the limit of the scores. */
  private typed(side: "x" | "y", end: 0 | 1, input: HTMLInputElement): void {
    const text = input.value.trim();
    const bad = text !== "" && !Number.isFinite(Number(text));
    input.setAttribute("aria-invalid", String(bad));
    if (bad) return;
    const box = structuredClone(this.box ?? { x: this.extent(this.x), y: this.extent(this.y) });
    box[side][end] = text === "" ? this.extent(side === "x" ? this.x : this.y)[end] : Number(text);
    this.brush(box);
    this.showBox(this.plot!);
  }

  private extent(name: string): [number, number] {
    const scores = this.state.judge.scores(name);
    return [scores[0], scores[scores.length - 1]];
  }

  private brush(box: Box): void {
    const [xs, ys] = [this.numbers(this.x), this.numbers(this.y)];
    const within = ([low, high]: [number, number], value: number) => value >= low && value <= high;
    this.box = box;
    this.state.brushed = new Set(this.scored().filter((clip) => within(box.x, xs[clip]) && within(box.y, ys[clip])));
    this.tell();
  }

  /** Draw the box over the points, after a redraw or when a limit was typed. */
  private showBox(plot: uPlot): void {
    if (!this.box) return;
    const { x, y } = this.box;
    const clamped = (value: number, most: number) => Math.max(0, Math.min(most, value));
    const { clientWidth: across, clientHeight: down } = plot.over;
    const [left, right] = x.map((value) => clamped(plot.valToPos(value, "x"), across));
    const [bottom, top] = y.map((value) => clamped(plot.valToPos(value, "y"), down));
    plot.setSelect({ left, top, width: right - left, height: bottom - top }, false);
  }

  private tell(): void {
    const { brushed } = this.state;
    this.told.textContent = brushed
      ? `${count(brushed.size)} clips brushed. Blue clips are kept, gray ones dropped.`
      : "Brush clips: drag a box over the points, or type its limits. Blue clips are kept, gray ones dropped.";
    for (const side of ["x", "y"] as const) {
      for (const end of [0, 1] as const) {
        const input = document.getElementById(`brush-${side}-${end}`) as HTMLInputElement | null;
        if (input && input !== document.activeElement) {
          input.value = this.box ? String(rounded(this.box[side][end])) : "";
        }
      }
    }
  }

  private asRules(): void {
    if (!this.box) return;
    const percentages = { drop_lowest: undefined, drop_highest: undefined };
    for (const [name, [low, high]] of [
      [this.x, this.box.x],
      [this.y, this.box.y],
    ] as [string, [number, number]][]) {
      const [least, most] = this.state.judge.columns.get(name)!.bounds ?? [
        Number.NEGATIVE_INFINITY,
        Number.POSITIVE_INFINITY,
      ];
      this.state.change(name, {
        min: Math.max(least, rounded(low)),
        max: Math.min(most, rounded(high)),
        ...percentages,
      });
    }
  }

  private correlations(): HTMLElement[] {
    const ranks = this.names.map((name) => ranksOf(this.numbers(name)));
    const head = h("tr", {}, h("td", {}), ...this.names.map((name) => h("th", { scope: "col" }, name)));
    const rows = this.names.map((name, i) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        ...this.names.map((other, j) => this.correlation(name, other, i === j ? 1 : correlation(ranks[i], ranks[j]))),
      ),
    );
    return [
      h("h2", { class: "small" }, "Rank correlations"),
      h("p", { class: "note" }, "Spearman: blue scores rise together, orange scores pull against each other."),
      h(
        "div",
        { class: "scroll" },
        h("table", { class: "heat", "aria-label": "Rank correlations" }, h("thead", {}, head), h("tbody", {}, ...rows)),
      ),
    ];
  }

  private correlation(name: string, other: string, rho: number): HTMLElement {
    const words = Number.isNaN(rho) ? "–" : rho.toFixed(2);
    const show = h(
      "button",
      { class: "plain", onclick: () => this.pick(other, name), "aria-label": `${name} and ${other}: ${words}` },
      words,
    );
    const cell = h("td", {}, show);
    const strength = Math.min(45, Math.abs(rho || 0) * 45);
    cell.style.background = `color-mix(in srgb, var(${rho < 0 ? "--dropped-strong" : "--kept"}) ${strength}%, transparent)`;
    return cell;
  }
}

function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

/** Ranks of numbers; equal numbers get their mean rank, NaN stays NaN. */
export function ranksOf(numbers: ArrayLike<number>): Float64Array {
  const order = Array.from(numbers, (_, i) => i)
    .filter((i) => !Number.isNaN(numbers[i]))
    .sort((a, b) => numbers[a] - numbers[b]);
  const ranks = new Float64Array(numbers.length).fill(Number.NaN);
  for (let i = 0; i < order.length; ) {
    let j = i;
    while (j < order.length && numbers[order[j]] === numbers[order[i]]) j++;
    for (let k = i; k < j; k++) ranks[order[k]] = (i + j - 1) / 2;
    i = j;
  }
  return ranks;
}

/** Spearman's correlation of the clips with both scores. */
function correlation(a: Float64Array, b: Float64Array): number {
  const both = Array.from(a, (_, i) => i).filter((i) => !Number.isNaN(a[i]) && !Number.isNaN(b[i]));
  const [x, y] = [ranksOf(both.map((i) => a[i])), ranksOf(both.map((i) => b[i]))];
  const mean = (both.length - 1) / 2;
  let [xy, xx, yy] = [0, 0, 0];
  for (let i = 0; i < both.length; i++) {
    xy += (x[i] - mean) * (y[i] - mean);
    xx += (x[i] - mean) ** 2;
    yy += (y[i] - mean) ** 2;
  }
  return xx && yy ? xy / Math.sqrt(xx * yy) : Number.NaN;
}
