/** Two scores against each other, with a brush, and rank correlations of all. */

import uPlot from "uplot";
import { count, h, picker } from "./dom";
import { colour } from "./histogram";
import type { State } from "./state";

const HEIGHT = 420;

export class Pairs {
  readonly element: HTMLElement;
  private readonly chart = h("div", { class: "chart scatter" });
  private readonly told = h("p", { class: "note", role: "status" }, "Drag a box over the points to select clips.");
  private readonly pickers = h("div", { class: "controls" });
  private readonly heat = h("div", {});
  private readonly names: string[];
  private x: string;
  private y: string;
  private plot: uPlot | undefined;

  constructor(
    private readonly state: State,
    private readonly look: () => void,
  ) {
    this.names = state.sliders().filter((name) => state.judge.scores(name).length > 1);
    [this.x, this.y] = [this.names[0] ?? "", this.names[1] ?? this.names[0] ?? ""];
    this.element = h("div", { class: "pairs" }, h("section", {}, this.pickers, this.chart, this.told), this.heat);
    state.listen(() => this.plot && this.element.offsetParent && this.draw());
  }

  draw(): void {
    if (!this.names.length) {
      this.element.replaceChildren(h("p", {}, "No clip has a score."));
      return;
    }
    const options = this.names.map((name): [string, string] => [name, name]);
    if (!this.pickers.childElementCount) this.drawPickers(options);
    if (!this.heat.childElementCount) this.heat.append(this.correlations());
    const [x, y] = [this.state.judge.columns.get(this.x)!, this.state.judge.columns.get(this.y)!];
    const { kept } = this.state.judged;
    const order = Array.from(kept, (_, clip) => clip)
      .filter((clip) => !Number.isNaN(x.numbers![clip]) && !Number.isNaN(y.numbers![clip]))
      .sort((a, b) => x.numbers![a] - x.numbers![b]);
    const values = (wanted: number) => order.map((clip) => (kept[clip] === wanted ? y.numbers![clip] : null));
    this.plot?.destroy();
    this.chart.replaceChildren();
    const axis = (label: string): uPlot.Axis => ({
      label,
      stroke: () => colour("--text"),
      grid: { stroke: () => colour("--line"), width: 1 },
      font: "11px system-ui",
      labelFont: "12px system-ui",
    });
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
          axis(`${this.x} ${x.unit && `(${x.unit})`}`),
          { ...axis(`${this.y} ${y.unit && `(${y.unit})`}`), size: 56 },
        ],
        series: [{}, points("--dropped"), points("--kept")],
        hooks: { setSelect: [(plot) => this.brush(plot, order)] },
      },
      [order.map((clip) => x.numbers![clip]), values(0), values(1)],
      this.chart,
    );
    const canvas = this.chart.querySelector("canvas");
    canvas?.setAttribute("role", "img");
    canvas?.setAttribute("aria-label", `${this.y} over ${this.x}, ${count(order.length)} clips`);
  }

  private drawPickers(options: [string, string][]): void {
    this.pickers.replaceChildren(
      picker("across", options, this.x, (name) => this.pick(name, this.y)),
      picker("up", options, this.y, (name) => this.pick(this.x, name)),
      h("button", { onclick: this.look }, "Look at the brushed clips"),
      h("button", { onclick: () => this.asRules() }, "Use the brush as rules"),
    );
  }

  private pick(x: string, y: string): void {
    [this.x, this.y] = [x, y];
    this.box = undefined;
    this.pickers.replaceChildren();
    this.draw();
  }

  private box: { x: [number, number]; y: [number, number] } | undefined;

  private brush(plot: uPlot, order: number[]): void {
    const { left, top, width, height } = plot.select;
    if (width < 2 && height < 2) return;
    const x: [number, number] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    const y: [number, number] = [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")];
    const [xs, ys] = [this.state.judge.columns.get(this.x)!.numbers!, this.state.judge.columns.get(this.y)!.numbers!];
    const inside = order.filter((clip) => xs[clip] >= x[0] && xs[clip] <= x[1] && ys[clip] >= y[0] && ys[clip] <= y[1]);
    this.box = { x, y };
    this.state.brushed = new Set(inside);
    this.told.textContent = `${count(inside.length)} clips in the brush`;
  }

  private asRules(): void {
    if (!this.box) return;
    const bound = (value: number) => Number(value.toPrecision(4));
    this.state.change(this.x, {
      min: bound(this.box.x[0]),
      max: bound(this.box.x[1]),
      drop_lowest: undefined,
      drop_highest: undefined,
    });
    this.state.change(this.y, {
      min: bound(this.box.y[0]),
      max: bound(this.box.y[1]),
      drop_lowest: undefined,
      drop_highest: undefined,
    });
  }

  private correlations(): HTMLElement {
    const ranks = this.names.map((name) => ranksOf(this.state.judge.columns.get(name)!.numbers!));
    const head = h("tr", {}, h("td", {}), ...this.names.map((name) => h("th", { scope: "col" }, name)));
    const rows = this.names.map((name, i) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        ...this.names.map((other, j) => {
          const rho = i === j ? 1 : correlation(ranks[i], ranks[j]);
          const cell = h(
            "td",
            {},
            h(
              "button",
              {
                class: "plain",
                onclick: () => this.pick(other, name),
                "aria-label": `${name} and ${other}: ${text(rho)}`,
              },
              text(rho),
            ),
          );
          const strength = Math.min(45, Math.abs(rho || 0) * 45);
          cell.style.background = `color-mix(in srgb, var(${rho < 0 ? "--dropped-strong" : "--kept"}) ${strength}%, transparent)`;
          return cell;
        }),
      ),
    );
    return h(
      "table",
      { class: "heat" },
      h("caption", {}, "Rank correlations (Spearman): blue together, orange against each other"),
      h("thead", {}, head),
      h("tbody", {}, ...rows),
    );
  }
}

function text(rho: number): string {
  return Number.isNaN(rho) ? "–" : rho.toFixed(2);
}

/** Ranks of numbers, equal ones the mean of theirs; NaN stays. */
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
