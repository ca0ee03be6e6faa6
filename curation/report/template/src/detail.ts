/** Details of a clip: pictures, text boxes, video, captions, rules, columns, marks. */

import { type Column, jsonOf, textOf } from "./data";
import { h, svg, table } from "./dom";
import { captionsOf, strip } from "./gallery";
import { Player } from "./player";
import { shown } from "./rules";
import { type State, VERDICT_KEYS } from "./state";

interface TextBox {
  frame: number;
  corners: number[];
}

export class Detail {
  readonly element = h("dialog", { "aria-label": "Clip", tabindex: -1 });
  private clip = -1;
  private readonly player: Player;

  constructor(private readonly state: State) {
    this.player = new Player(state);
    this.element.addEventListener("close", () => this.element.replaceChildren()); // stops the video
    this.element.addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLVideoElement;
      const verdict = VERDICT_KEYS[event.key];
      if (typing || !verdict || event.ctrlKey || event.metaKey || event.altKey) return;
      this.state.mark(this.clip, verdict);
      this.draw();
    });
  }

  open = (clip: number): void => {
    this.clip = clip;
    this.draw();
    if (!this.element.open) this.element.showModal();
  };

  private draw(): void {
    const { state, clip } = this;
    const id = state.clipId(clip);
    const mark = state.marks.get(id);
    const reason = state.reason(clip);
    const verdicts = Object.entries(VERDICT_KEYS).map(([key, verdict]) =>
      h(
        "button",
        {
          "aria-pressed": String(mark?.verdict === verdict),
          onclick: () => {
            state.mark(clip, verdict);
            this.draw();
          },
        },
        `${verdict} (${key})`,
      ),
    );
    const focused = this.element.contains(document.activeElement);
    this.element.replaceChildren(
      h("button", { class: "close", onclick: () => this.element.close(), "aria-label": "Close" }, "✕"),
      h("h2", {}, id),
      h("p", { class: "verdict" }, reason ? `✕ ${reason}` : "✓ kept"),
      h("div", { class: "controls", role: "group", "aria-label": "Verdict" }, ...verdicts),
      this.pictures(),
      this.player.of(clip),
      ...[this.captions(), this.tests(), this.columns()].filter((part) => part !== null),
    );
    if (focused) this.element.focus(); // what had the focus is gone, and keys are heard here
  }

  private pictures(): HTMLElement {
    const { state, clip } = this;
    const image = strip(state, clip);
    const boxes = (jsonOf(state.judge.columns.get("text_boxes"), clip) ?? []) as TextBox[];
    const areas = jsonOf(state.judge.columns.get("text_area_frames"), clip) as (number | null)[] | null | undefined;
    const frame = h("div", { class: "frame" }, image);
    const figure = h("figure", { class: "large" }, frame);
    if (boxes.length) {
      const shapes = boxes.map(({ frame, corners }) => {
        const points = corners.map((value, i) => (i % 2 ? value : frame + value) * 100);
        const pairs = points.flatMap((value, i) => (i % 2 ? [`${points[i - 1]},${value}`] : []));
        return svg("polygon", { points: pairs.join(" ") });
      });
      frame.append(
        svg("svg", { viewBox: "0 0 300 100", preserveAspectRatio: "none", "aria-hidden": "true" }, ...shapes),
      );
    }
    if (areas?.length) {
      const decides = areas.indexOf(Math.max(...areas.map((area) => area ?? 0)));
      const texts = areas.map((area, i) => {
        const name = ["first", "middle", "last"][i] ?? `frame ${i}`;
        return `${name} ${area === null ? "–" : shown(area)}${i === decides && area ? " (decides)" : ""}`;
      });
      figure.append(h("figcaption", {}, `share of the frame covered by text: ${texts.join(" · ")}`));
    }
    return figure;
  }

  private captions(): HTMLElement | null {
    const captions = captionsOf(this.state.header, this.clip);
    if (!captions.length) return null;
    const similarities = this.similarities(captions.map((caption) => caption.source));
    const rows = captions.map((caption, i) => {
      const similarity = similarities[i];
      return [
        caption.source,
        caption.text ?? `failed: ${caption.error ?? "no reason given"}`,
        typeof similarity === "number" ? shown(similarity) : "–",
      ];
    });
    return table("Captions", ["from", "text", "similarity (cosine)"], rows);
  }

  /**
   * The similarity of each caption. They are listed in the order of the captions that the score saw: those that came
   * with the video, then those of captioners. A caption that is newer than the score has none.
   */
  private similarities(sources: string[]): (number | null | undefined)[] {
    const { judge, header } = this.state;
    const listed = jsonOf(judge.columns.get("similarity_captions"), this.clip) as (number | null)[] | null | undefined;
    if (!listed) return [];
    const { now, scored } = header.captions;
    const came = (jsonOf(judge.columns.get("source_captions"), this.clip) as number[] | null | undefined)?.length ?? 0;
    const seen = sources.map((source, i) => i < came || Object.hasOwn(scored, source));
    const same = Object.entries(scored).every(([captioner, version]) => now[captioner] === version);
    const known = same && seen.filter(Boolean).length === listed.length;
    let place = came;
    return seen.map((each, i) => (i < came ? listed[i] : known && each ? listed[place++] : undefined));
  }

  private tests(): HTMLElement | null {
    const { state, clip } = this;
    if (!state.judged.tests.length) return null;
    const words = ["kept", "removed", "no score"];
    const rows = state.judged.tests.map((test) => {
      const column = state.judge.columns.get(test.name);
      const value = column?.numbers?.[clip];
      const { min, max } = test.bounds;
      const bounds = [min === undefined ? "" : `≥ ${shown(min)}`, max === undefined ? "" : `≤ ${shown(max)}`];
      return [
        h("span", {}, test.name, column?.unit ? h("span", { class: "unit" }, ` ${column.unit}`) : null),
        value === undefined ? "" : shown(value),
        bounds.filter(Boolean).join(" and ") || test.asked,
        words[test.outcomes[clip]],
      ];
    });
    return table("Rules", ["rule", "value", "condition", "outcome"], rows);
  }

  private columns(): HTMLElement {
    const { columns, sources } = this.state.header;
    const source = sources.of_clips[this.clip];
    const rows = [
      ...columns.map((column) => [column, cell(column, this.clip)] as const),
      ...sources.columns.map((column) => [column, cell(column, source)] as const),
    ]
      .filter(([column, value]) => value !== "" && !SHOWN_ELSEWHERE.has(column.name))
      .map(([column, value]) => [column.name, value, column.unit, column.meaning]);
    return h(
      "details",
      { open: true },
      h("summary", {}, "All columns"),
      table("Columns of this clip", ["column", "value", "unit", "meaning"], rows, "columns"),
    );
  }
}

/** Columns that are shown elsewhere on the page. */
const SHOWN_ELSEWHERE = new Set(["captions", "transitions", "refused_cuts"]);
const LONGEST = 600;

function cell(column: Column, row: number): string {
  if (column.numbers) {
    const value = column.numbers[row];
    if (Number.isNaN(value)) return "";
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(column.kind === "single" ? 7 : 12)));
  }
  if (column.texts) return textOf(column, row);
  const words = readable(jsonOf(column, row));
  return words.length > LONGEST ? `${words.slice(0, LONGEST)}…` : words;
}

/** A JSON value as text with few brackets and no quotes. */
function readable(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return String(Number(value.toPrecision(7)));
  if (typeof value !== "object") return String(value);
  const nested = (inner: unknown) =>
    typeof inner === "object" && inner !== null ? `(${readable(inner)})` : inner === null ? "–" : readable(inner);
  if (Array.isArray(value)) return value.map(nested).join(", ");
  return Object.entries(value)
    .map(([key, inner]) => `${key} ${nested(inner)}`)
    .join(", ");
}
