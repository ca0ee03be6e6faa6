/** What the dataset holds, where footage went, and why sources were rejected. */

import type { Header } from "./data";
import { bar, count, duration, h, percent, table } from "./dom";

/** The first tab. */
export function overviewTab(header: Header): HTMLElement {
  const { overview } = header;
  const { totals } = overview;
  const rejected = overview.sources - overview.sources_ok;
  const facts: [string, string][] = [
    ["sources", `${count(overview.sources)}: ${count(overview.sources_ok)} usable, ${count(rejected)} rejected`],
    ["footage", duration(totals.duration_s ?? 0)],
    ["clips", `${count(header.total_clips)}, ${duration(header.total_microseconds / 1e6)}`],
    ["files", `${((totals.size_bytes ?? 0) / 1e9).toFixed(2)} GB`],
    ["scan", stage(totals.duration_s, totals.scan_cpu_s)],
    ["scores", stage(totals.duration_s, totals.score_cpu_s)],
    ["in this page", shownClips(header)],
  ];
  const footage: [string, number][] = [["in clips", totals.clip_s ?? 0], ...Object.entries(overview.lost_s)];
  const whole = Math.max(totals.duration_s ?? 0, 1e-9);
  return h(
    "div",
    { class: "overview" },
    h(
      "section",
      {},
      h("h2", {}, "Dataset"),
      h("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    ),
    h(
      "section",
      {},
      table(
        "Where footage went",
        ["part", "time", "share", ""],
        footage.map(([name, seconds]) => [
          name,
          duration(seconds),
          percent(seconds / whole),
          bar(seconds / whole, name === "in clips" ? "" : "lost"),
        ]),
      ),
    ),
    ...(
      [
        ["Rejected sources by reason", overview.rejected],
        ["Codecs", overview.codecs],
        ["Containers", overview.containers],
        ["Sizes", overview.sizes],
        ["Frame rates", overview.frame_rates],
        ["Clips by extraction", overview.extractions],
      ] as [string, [string | null, number][]][]
    )
      .filter(([, values]) => values.length)
      .map(([title, values]) => h("section", {}, counted(title, values))),
    ...Object.entries(overview.errors).map(([score, reasons]) =>
      h("section", {}, counted(`Clips without ${score}`, reasons)),
    ),
    rejectedList(header),
  );
}

function stage(video_s = 0, cpu_s = 0): string {
  if (!cpu_s) return "no CPU time on record";
  return `${duration(cpu_s)} of CPU time, ${(video_s / cpu_s).toFixed(1)} s of video per CPU second`;
}

function shownClips(header: Header): string {
  if (header.shown_clips === header.total_clips) return "all clips: counts are exact";
  return `a sample of ${count(header.shown_clips)} clips, stratified by their scores: counts are estimates`;
}

function counted(title: string, values: [string | null, number][]): HTMLElement {
  const most = Math.max(...values.map(([, number]) => number));
  return table(
    title,
    ["", "count", ""],
    values.map(([value, number]) => [value ?? "others", count(number), bar(number / most)]),
  );
}

function rejectedList(header: Header): HTMLElement | null {
  if (!header.rejected.length) return null;
  const rows = header.rejected.map(([uri, kind, text]) => [uri, kind, text]);
  return h(
    "section",
    { class: "wide" },
    h(
      "details",
      { open: rows.length <= 20 },
      h("summary", {}, `Rejected sources and notes (${count(rows.length)})`),
      table("Rejected sources and notes", ["source", "kind", "reason"], rows, "rejected"),
    ),
  );
}
