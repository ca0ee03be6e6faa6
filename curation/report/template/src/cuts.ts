/** A source on its timeline: shots, transitions by kind, and the change from frame to frame around a cut. */

import uPlot from "uplot";
import { append, type Transition, textOf } from "./data";
import { count, duration, h, picker, svg, table } from "./dom";
import { colour } from "./histogram";
import { shown } from "./rules";
import type { State } from "./state";

const AROUND_FRAMES = 40;

export class Cuts {
  readonly element = h("div", { class: "cuts" });
  private source = "";
  private readonly clipsOf = new Map<string, number[]>();

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    const uris = state.judge.columns.get("uri");
    for (let clip = 0; clip < state.header.shown_clips; clip++) {
      const uri = textOf(uris, clip);
      append(this.clipsOf, uri, clip);
    }
    this.source = this.clipsOf.keys().next().value ?? "";
  }

  draw(): void {
    const clips = this.clipsOf.get(this.source) ?? [];
    if (!clips.length) {
      this.element.replaceChildren(h("p", {}, "There are no clips."));
      return;
    }
    const { columns } = this.state.judge;
    const { sources } = this.state.header;
    const options = [...this.clipsOf.keys()].map((uri): [string, string] => [uri, uri]);
    const transitions = (sources.values.transitions?.[sources.of_clips[clips[0]]] ?? []) as Transition[];
    const ends = [...transitions.map((t) => t.end_s), ...clips.map((clip) => columns.get("end_s")!.numbers![clip])];
    const starts = [
      ...transitions.map((t) => t.start_s),
      ...clips.map((clip) => columns.get("start_s")!.numbers![clip]),
    ];
    const [low, high] = [Math.min(...starts), Math.max(...ends)];
    const signal = h("div", { class: "chart signal" });
    const rows = transitions.map((transition) => [
      transition.kind,
      `${shown(transition.start_s)} s`,
      duration(transition.end_s - transition.start_s),
      count(transition.start_frame),
      h("button", { onclick: () => this.around(signal, clips[0], transition) }, "Look"),
    ]);
    this.element.replaceChildren(
      h(
        "div",
        { class: "controls" },
        picker("Source", options, this.source, (uri) => {
          this.source = uri;
          this.draw();
        }),
      ),
      this.timeline(clips, transitions, low, high),
      h(
        "p",
        { class: "legend" },
        ...["clip", ...new Set(transitions.map((t) => t.kind))].map((kind) =>
          h("span", { class: `key ${kindClass(kind)}` }, kind),
        ),
      ),
      signal,
      table(`Transitions (${count(transitions.length)})`, ["kind", "at", "lasts", "frame", ""], rows),
    );
  }

  private timeline(clips: number[], transitions: Transition[], low: number, high: number): HTMLElement {
    const { columns } = this.state.judge;
    const x = (seconds: number) => ((seconds - low) / Math.max(high - low, 1e-9)) * 1000;
    const shapes = [
      ...clips.map((clip) => {
        const [start, end] = [columns.get("start_s")!.numbers![clip], columns.get("end_s")!.numbers![clip]];
        const box = svg("rect", {
          x: x(start),
          y: 8,
          width: Math.max(1, x(end) - x(start) - 1),
          height: 34,
          class: "clip",
        });
        box.addEventListener("click", () => this.open(clip));
        box.append(svg("title", {}, document.createTextNode(`clip ${shown(start)} s to ${shown(end)} s`)));
        return box;
      }),
      ...transitions.map((t) => {
        const box = svg("rect", {
          x: x(t.start_s) - 1,
          y: 0,
          width: Math.max(3, x(t.end_s) - x(t.start_s)),
          height: 50,
          class: kindClass(t.kind),
        });
        box.append(svg("title", {}, document.createTextNode(`${t.kind} at ${shown(t.start_s)} s`)));
        return box;
      }),
    ];
    const picture = svg(
      "svg",
      { viewBox: "0 0 1000 50", preserveAspectRatio: "none", class: "timeline", role: "img" },
      ...shapes,
    );
    picture.setAttribute(
      "aria-label",
      `${count(clips.length)} clips and ${count(transitions.length)} transitions from ${shown(low)} s to ${shown(high)} s`,
    );
    return h(
      "div",
      {},
      picture as unknown as HTMLElement,
      h("p", { class: "ends" }, h("span", {}, `${shown(low)} s`), h("span", {}, `${shown(high)} s`)),
    );
  }

  private around(holder: HTMLElement, clip: number, transition: Transition): void {
    const { sources } = this.state.header;
    const changes = sources.signals.frame_changes?.[sources.of_clips[clip]];
    const brightness = sources.signals.frame_brightness?.[sources.of_clips[clip]];
    holder.replaceChildren();
    if (!changes?.length) {
      holder.append(
        h(
          "p",
          { class: "note" },
          "The signals of this source are not in the dataset: clipmill inspect VIDEO --stats OUT.csv writes them per frame.",
        ),
      );
      return;
    }
    const first = Math.max(0, transition.start_frame - AROUND_FRAMES);
    const last = Math.min(changes.length, transition.end_frame + AROUND_FRAMES);
    const frames = Array.from({ length: last - first }, (_, i) => first + i);
    new uPlot(
      {
        width: Math.max(260, holder.clientWidth),
        height: 200,
        legend: { show: false },
        scales: { x: { time: false }, brightness: { range: [0, 255] } },
        axes: [
          { label: "frame", stroke: () => colour("--text"), grid: { show: false } },
          {
            label: "change (8-bit levels)",
            stroke: () => colour("--text"),
            grid: { stroke: () => colour("--line") },
            size: 56,
          },
        ],
        series: [
          {},
          { stroke: () => colour("--kept"), width: 1.5 },
          { stroke: () => colour("--soft"), width: 1, dash: [4, 3], scale: "brightness" },
        ],
        hooks: { draw: [(plot) => mark(plot, transition)] },
      },
      [frames, frames.map((frame) => changes[frame]), frames.map((frame) => brightness?.[frame] ?? null)],
      holder,
    );
    const most = Math.max(...frames.map((frame) => changes[frame]));
    holder.append(
      h(
        "p",
        { class: "note" },
        `${transition.kind} at frame ${count(transition.start_frame)}. Solid: change from frame to frame, at most ${most} levels here; dashed: brightness, 0 to 255. A hard cut stands out from the frames around it; a dissolve changes little from frame to frame, for many frames; a fade goes through a uniform brightness.`,
      ),
    );
  }
}

/** Shade the frames of a transition. */
function mark(plot: uPlot, transition: Transition): void {
  const [left, right] = [
    transition.start_frame - 0.5,
    Math.max(transition.end_frame, transition.start_frame + 1) - 0.5,
  ];
  const [x, end] = [plot.valToPos(left, "x", true), plot.valToPos(right, "x", true)];
  plot.ctx.fillStyle = colour("--shade");
  plot.ctx.fillRect(x, plot.bbox.top, Math.max(2, end - x), plot.bbox.height);
}

/** A class from a fixed set: kinds come from files. */
function kindClass(kind: string): string {
  return ["clip", "hard", "black", "white", "dissolve", "damage"].includes(kind) ? `kind-${kind}` : "kind-other";
}
