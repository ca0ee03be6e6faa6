/** A source on its timeline: clips, transitions by kind, and the signals around a transition. */

import uPlot from "uplot";
import { append, ofSource, type Transition } from "./data";
import { count, duration, h, picker, svg, table } from "./dom";
import { axis, colour } from "./plot";
import { shown } from "./rules";
import type { State } from "./state";

const AROUND_FRAMES = 40;
const MOST_OPTIONS = 200;

interface Shot {
  start: number;
  end: number;
  /** Whether a clip was made of it. */
  used: boolean;
}

export class Cuts {
  readonly element = h("div", { class: "cuts" });
  private source = 0;
  private wanted = "";
  private readonly clipsOf = new Map<number, number[]>();
  private readonly signal = h("div", { class: "chart signal" });

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    state.header.sources.of_clips.forEach((source, clip) => {
      append(this.clipsOf, source, clip);
    });
    const starts = state.judge.columns.get("start_s")!.numbers!;
    for (const clips of this.clipsOf.values()) clips.sort((a, b) => starts[a] - starts[b]);
  }

  draw(): void {
    const { uris, notes } = this.state.header.sources;
    if (!uris.length) {
      this.element.replaceChildren(h("p", {}, "No usable sources."));
      return;
    }
    const clips = this.clipsOf.get(this.source) ?? [];
    const of = (name: string) => (ofSource(this.state.header, name, this.source) ?? []) as Transition[];
    const [transitions, refused] = [of("transitions"), of("refused_cuts")];
    const note = notes[this.source];
    const shots = this.shots(clips, transitions, refused);
    this.signal.replaceChildren();
    this.element.replaceChildren(
      this.controls(),
      h("h2", { class: "printed" }, uris[this.source]),
      note ? h("p", { class: "note" }, note) : "",
      this.timeline(shots, clips, transitions, refused),
      h(
        "p",
        { class: "legend" },
        clips.length ? h("span", { class: "key kind-clip" }, "clip") : null,
        shots.length ? h("span", { class: "key kind-shot" }, "shot") : null,
        ...[...new Set(transitions.map((t) => t.kind))].map((kind) =>
          h("span", { class: `key ${kindClass(kind)}` }, kind),
        ),
        refused.length ? h("span", { class: "key kind-refused" }, "refused proposal") : null,
      ),
      this.signal,
      h(
        "div",
        { class: "tables" },
        this.transitionTable(transitions),
        this.clipTable(clips),
        refused.length ? this.refusedTable(refused) : null,
      ),
    );
  }

  private controls(): HTMLElement {
    const { uris } = this.state.header.sources;
    const find = h("input", {
      type: "search",
      value: this.wanted,
      id: "find-source",
      onchange: () => {
        this.wanted = find.value;
        const matching = this.matching();
        if (matching.length && !matching.includes(this.source)) this.source = matching[0];
        this.draw();
        document.getElementById("find-source")?.focus();
      },
    });
    const matching = this.matching();
    const listed = matching.slice(0, MOST_OPTIONS);
    if (!listed.includes(this.source)) listed.unshift(this.source);
    const options = listed.map((source): [string, string] => {
      const clips = this.clipsOf.get(source)?.length ?? 0;
      return [String(source), `${uris[source]} (${clips ? `${count(clips)} clips` : "no clips"})`];
    });
    return h(
      "div",
      { class: "controls" },
      h("label", {}, "Find ", find),
      picker("Source", options, String(this.source), (source) => {
        this.source = Number(source);
        this.draw();
      }),
      matching.length > listed.length
        ? h("span", { class: "note" }, `the first ${count(listed.length)} of ${count(matching.length)}`)
        : null,
    );
  }

  private matching(): number[] {
    const wanted = this.wanted.toLowerCase();
    const { uris } = this.state.header.sources;
    return uris.map((_, source) => source).filter((source) => uris[source].toLowerCase().includes(wanted));
  }

  private transitionTable(transitions: Transition[]): HTMLElement {
    const rows = transitions.map((transition) => [
      transition.kind,
      `${shown(transition.start_s)} s`,
      duration(transition.end_s - transition.start_s),
      count(transition.start_frame),
      h("button", { onclick: () => this.around(transition) }, "Look"),
    ]);
    return table(`Transitions (${count(transitions.length)})`, ["kind", "at", "lasts", "frame", ""], rows);
  }

  private refusedTable(refused: Transition[]): HTMLElement {
    const rows = refused.map((cut) => [
      cut.kind,
      `${shown(cut.start_s)} s`,
      cut.reason ?? "",
      h("button", { onclick: () => this.around(cut) }, "Look"),
    ]);
    return table(`Refused proposals (${count(refused.length)})`, ["kind", "at", "reason", ""], rows);
  }

  private clipTable(clips: number[]): HTMLElement {
    const rows = clips.map((clip) => {
      const [start, end] = this.span(clip);
      const reason = this.state.reason(clip);
      return [
        `${shown(start)} s`,
        duration(end - start),
        reason || "kept",
        h("button", { onclick: () => this.open(clip) }, "Details"),
      ];
    });
    return table(`Clips (${count(clips.length)})`, ["from", "lasts", "", ""], rows);
  }

  private span(clip: number): [number, number] {
    const { columns } = this.state.judge;
    return [columns.get("start_s")!.numbers![clip], columns.get("end_s")!.numbers![clip]];
  }

  /** The source from its first to its last second; without those, from the first clip or transition to the last. */
  private extent(clips: number[], cuts: Transition[]): [number, number] | undefined {
    const { starts_s: starts, ends_s: ends } = this.state.header.sources;
    const spans = [...clips.map((clip) => this.span(clip)), ...cuts.map(spanOf)];
    spans.push([starts[this.source], ends[this.source]]);
    const known = spans.filter(([start, end]) => Number.isFinite(end - start));
    if (!known.length) return undefined;
    return [least(known.map(([start]) => start)), -least(known.map(([, end]) => -end))];
  }

  /** What lies between transitions, and whether a clip was made of it. */
  private shots(clips: number[], transitions: Transition[], refused: Transition[]): Shot[] {
    const extent = this.extent(clips, [...transitions, ...refused]);
    if (!extent) return [];
    const [low, high] = extent;
    const shots: Shot[] = [];
    let start = low;
    for (const cut of [...transitions.map(spanOf), [high, high]].sort(([a], [b]) => a - b)) {
      const end = cut[0];
      if (end > start) {
        const used = clips.some((clip) => this.span(clip)[0] < end && this.span(clip)[1] > start);
        shots.push({ start, end, used });
      }
      start = Math.max(start, cut[1]);
    }
    return shots;
  }

  private timeline(shots: Shot[], clips: number[], transitions: Transition[], refused: Transition[]): HTMLElement {
    const extent = this.extent(clips, [...transitions, ...refused]);
    if (!extent) return h("p", {}, "No clips and no transitions.");
    const [low, high] = extent;
    const x = (seconds: number) => ((seconds - low) / Math.max(high - low, 1e-9)) * 1000;
    const shapes = [
      ...shots.map(({ start, end, used }) => {
        const box = svg("rect", {
          x: x(start),
          y: 8,
          width: Math.max(1, x(end) - x(start) - 1),
          height: 34,
          class: "kind-shot",
        });
        const words = `shot ${shown(start)} s to ${shown(end)} s${used ? "" : ": no clip"}`;
        box.append(svg("title", {}, document.createTextNode(words)));
        return box;
      }),
      ...clips.map((clip) => {
        const [start, end] = this.span(clip);
        const width = Math.max(1, x(end) - x(start) - 1);
        const box = svg("rect", { x: x(start), y: 8, width, height: 34, class: "clip" });
        box.addEventListener("click", () => this.open(clip));
        box.append(svg("title", {}, document.createTextNode(`clip ${shown(start)} s to ${shown(end)} s`)));
        return box;
      }),
      ...transitions.map((t) => {
        const width = Math.max(3, x(t.end_s) - x(t.start_s));
        const box = svg("rect", { x: x(t.start_s) - 1, y: 0, width, height: 50, class: kindClass(t.kind) });
        box.addEventListener("click", () => this.around(t));
        box.append(svg("title", {}, document.createTextNode(`${t.kind} at ${shown(t.start_s)} s`)));
        return box;
      }),
      ...refused.map((cut) => {
        const width = Math.max(2, x(cut.end_s) - x(cut.start_s));
        const box = svg("rect", { x: x(cut.start_s) - 1, y: 43, width, height: 7, class: "kind-refused" });
        box.addEventListener("click", () => this.around(cut));
        box.append(svg("title", {}, document.createTextNode(`refused at ${shown(cut.start_s)} s: ${cut.reason}`)));
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
      `${count(shots.length)} shots, ${count(clips.length)} clips and ${count(transitions.length)} transitions from ${shown(low)} s to ${shown(high)} s`,
    );
    return h(
      "div",
      {},
      picture as unknown as HTMLElement,
      h("p", { class: "ends" }, h("span", {}, `${shown(low)} s`), h("span", {}, `${shown(high)} s`)),
    );
  }

  /** Draw the signals around a transition. */
  private around(transition: Transition): void {
    const { signals } = this.state.header.sources;
    const changes = signals.frame_changes?.[this.source];
    const brightness = signals.frame_brightness?.[this.source];
    const holder = this.signal;
    holder.replaceChildren();
    if (!changes?.length) {
      const command = "clipmill inspect VIDEO --stats OUT.csv";
      holder.append(h("p", { class: "note" }, `The page has no signals of this source. Write them with: ${command}`));
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
          { ...axis("frame"), size: 30, grid: { show: false } },
          { ...axis("change (8-bit levels)"), size: 56 },
          { ...axis("brightness (8-bit levels)"), size: 56, side: 1, scale: "brightness", grid: { show: false } },
        ],
        series: [
          {},
          { stroke: () => colour("--kept"), width: 1.5, points: { show: false } },
          {
            stroke: () => colour("--soft"),
            width: 1,
            dash: [4, 3],
            scale: "brightness",
            points: { show: false },
          },
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
        `${transition.kind} at frame ${count(transition.start_frame)} (${shown(transition.start_s)} s)${transition.reason ? `, refused: ${transition.reason}` : ""}. Solid: change from frame to frame, at most ${most} levels here; dashed: brightness. A hard cut stands out from the frames around it; a dissolve changes little from frame to frame, for many frames; a fade goes through a uniform brightness.`,
      ),
    );
  }
}

function spanOf({ start_s, end_s }: Transition): [number, number] {
  return [start_s, end_s];
}

function least(values: number[]): number {
  return values.reduce((low, value) => Math.min(low, value), Number.POSITIVE_INFINITY);
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

/** A class from a fixed set, because kinds come from files. */
function kindClass(kind: string): string {
  return ["clip", "hard", "black", "white", "dissolve", "damage"].includes(kind) ? `kind-${kind}` : "kind-other";
}
