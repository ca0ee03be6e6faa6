/** The dataset as a whole: where footage went, the saved funnel, CPU time, and distributions of its columns. */

import type { Counts, Header, Overview } from "./data";
import { bar, count, duration, h, percent, table } from "./dom";

/** The first tab. */
export function overviewTab(header: Header): HTMLElement {
  const { overview } = header;
  const section = (...parts: (HTMLElement | null)[]) => h("section", {}, ...parts);
  const varied = overview.categories.filter((column) => !column.boolean && column.values.length > 1);
  const parts: (HTMLElement | null)[] = [
    section(h("h2", {}, "Dataset"), facts(header)),
    section(footage(overview)),
    header.selection && section(savedFunnel(header, header.selection)),
    section(cpuTime(overview)),
    overview.selections.length ? section(selections(overview)) : null,
    overview.rejected.length ? section(counted("Rejected sources by reason", overview.rejected)) : null,
    overview.sizes.length ? section(counted("Sizes of sources", overview.sizes)) : null,
    overview.frame_rates.length ? section(counted("Frame rates of sources", overview.frame_rates)) : null,
    ...varied.map(({ name, table: of, meaning, values }) => section(counted(`${name} of ${of}`, values, meaning))),
    shares(overview, "sources"),
    alike(overview, "sources"),
    shares(overview, "clips"),
    alike(overview, "clips"),
    ...Object.entries(overview.errors).map(([score, reasons]) => section(counted(`Clips without ${score}`, reasons))),
  ];
  return h("div", { class: "overview" }, h("div", { class: "sections" }, ...parts), rejectedList(header));
}

function facts(header: Header): HTMLElement {
  const { overview } = header;
  const rejected = overview.sources - overview.sources_ok;
  const rows: [string, string][] = [
    ["sources", `${count(overview.sources)}: ${count(overview.sources_ok)} usable, ${count(rejected)} rejected`],
    ["footage", duration(overview.duration_s)],
    ["clips", `${count(header.total_clips)}, ${duration(header.total_microseconds / 1e6)}`],
    ["files", bytes(overview.size_bytes)],
    ["in this page", shownClips(header)],
    ...(header.left_out.length ? [["left out for size", header.left_out.join(", ")] as [string, string]] : []),
    ...header.shards.map(({ name, problem }): [string, string] => [`shards/${name}`, problem ?? "can be played"]),
  ];
  return h("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function footage(overview: Overview): HTMLElement {
  const whole = Math.max(overview.duration_s, 1e-9);
  const short = (name: string) => name.replace(/^lost_(.*)_s$/, "$1");
  const losses = Object.entries(overview.lost_s);
  const lost = losses
    .filter(([, seconds]) => seconds)
    .map(([name, seconds]) => [
      label(short(name), overview.meanings[name]),
      duration(seconds),
      percent(seconds / whole),
      bar(seconds / whole, "lost"),
    ]);
  const none = losses.filter(([, seconds]) => !seconds).map(([name]) => short(name));
  const clips = ["in clips", duration(overview.clip_s), percent(overview.clip_s / whole), bar(overview.clip_s / whole)];
  return h(
    "div",
    {},
    table("Where footage went", ["part", "time", "share", ""], [clips, ...lost], "shares"),
    none.length ? h("p", { class: "note" }, `0 s: ${none.join(", ")}`) : null,
  );
}

function savedFunnel(header: Header, selection: NonNullable<Header["selection"]>): HTMLElement {
  const all = Math.max(1, selection.total_clips);
  const rows = selection.funnel.map((step) => [
    step.rule,
    step.skipped === null ? count(step.removed + step.unscored_dropped) : `skipped: ${step.skipped}`,
    count(step.clips_left),
    bar(step.clips_left / all),
  ]);
  const funnel = table(
    `Funnel of ${selection.name} as written: ${count(selection.clips)} clips, ${duration(selection.seconds)}`,
    ["rule", "removed", "clips left", ""],
    [["all clips", "", count(selection.total_clips), bar(1)], ...rows],
    "shares",
  );
  return h("div", {}, funnel, ...savedNotes(header, selection).map((text) => h("p", { class: "note" }, text)));
}

/** How the dataset has changed since a selection was written. */
function savedNotes(header: Header, selection: NonNullable<Header["selection"]>): string[] {
  const { total_clips: before, removed_clips: removed, name } = selection;
  const now = header.total_clips;
  return [
    ...(removed ? [`${count(removed)} of its clips were removed from the dataset later.`] : []),
    ...(now === before
      ? []
      : [`The dataset had ${count(before)} clips then, and has ${count(now)} now: select again.`]),
  ].map((text) => `${name}: ${text}`);
}

/** What each stage used in all runs. */
function stageCosts(overview: Overview): HTMLElement {
  const { costs } = overview;
  const total = (key: "cpu_s" | "gpu_s") => costs.reduce((sum, cost) => sum + cost[key], 0);
  const all = { stage: "all", cpu_s: total("cpu_s"), gpu_s: total("gpu_s") };
  const rows = [...costs, all].map((cost) => [
    label(cost.stage, STAGES.get(cost.stage)),
    duration(cost.cpu_s),
    ...(all.gpu_s ? [duration(cost.gpu_s)] : []),
    speed(overview, cost.cpu_s),
    cost === all ? "" : bar(all.cpu_s ? cost.cpu_s / all.cpu_s : 0),
  ]);
  const headings = ["stage", "CPU time", ...(all.gpu_s ? ["GPU time"] : []), SPEED, ""];
  return table("CPU time of all runs", headings, rows, "shares");
}

const STAGES = new Map([
  ["scan", "the rest of the scan"],
  ["driver", "the process that starts a run"],
]);
const SPEED = "s of video per CPU s";

function speed(overview: Overview, cpuSeconds: number): string {
  const ratio = overview.duration_s / cpuSeconds;
  return Number.isFinite(ratio) ? Number(ratio.toPrecision(3)).toLocaleString("en") : "–";
}

/** Every column of CPU time that the dataset has; stages of a later version appear by themselves. */
function cpuTime(overview: Overview): HTMLElement {
  if (overview.costs.length) return stageCosts(overview);
  const stages = Object.entries(overview.cpu_s);
  const whole = stages.reduce((sum, [, seconds]) => sum + seconds, 0);
  const rows = stages.map(([name, seconds]) => [
    label(name.replace(/_cpu_s$/, ""), overview.meanings[name]),
    duration(seconds),
    speed(overview, seconds),
    bar(whole ? seconds / whole : 0),
  ]);
  return table(
    "CPU time",
    ["stage", "CPU time", SPEED, ""],
    [...rows, ["all", duration(whole), speed(overview, whole), ""]],
    "shares",
  );
}

function selections(overview: Overview): HTMLElement {
  const rows = overview.selections.map((each) => [each.name, count(each.clips), duration(each.seconds)]);
  return table("Selections", ["name", "clips", "time"], rows);
}

/** Columns of yes or no, as shares of the rows that have a value. */
function shares(overview: Overview, of: string): HTMLElement | null {
  const columns = overview.categories.filter((column) => column.boolean && column.table === of);
  if (!columns.length) return null;
  const rows = columns.map(({ name, meaning, values }) => {
    const yes = values.find(([value]) => value === "yes")?.[1] ?? 0;
    const all = values.reduce((sum, [, number]) => sum + number, 0);
    return [label(name, meaning), count(yes), percent(yes / all), bar(yes / all)];
  });
  return h("section", {}, table(`Properties of ${of}`, ["column", of, "share", ""], rows, "shares"));
}

/** Columns with one value, in one table. */
function alike(overview: Overview, of: string): HTMLElement | null {
  const columns = overview.categories.filter(
    (column) => !column.boolean && column.table === of && column.values.length === 1,
  );
  if (!columns.length) return null;
  const rows = columns.map(({ name, meaning, values: [[value, number]] }) => [
    label(name, meaning),
    value ?? "",
    count(number),
  ]);
  return h("section", {}, table(`The same in all ${of}`, ["column", "value", of], rows, "shares alike"));
}

function label(name: string, meaning: string | undefined): HTMLElement {
  return h("span", {}, name, meaning ? h("span", { class: "note" }, meaning) : null);
}

function bytes(value: number): string {
  const [unit, size] = value < 1e9 ? ["MB", 1e6] : value < 1e12 ? ["GB", 1e9] : ["TB", 1e12];
  return `${Number((value / Number(size)).toPrecision(3))} ${unit}`;
}

function shownClips(header: Header): string {
  if (header.shown_clips === header.total_clips) return "all clips: counts are exact";
  return `a sample of ${count(header.shown_clips)} clips, stratified by their scores: counts are estimates`;
}

function counted(title: string, values: Counts, meaning = ""): HTMLElement {
  const all = Math.max(
    1,
    values.reduce((sum, [, number]) => sum + number, 0),
  );
  const rows = values.map(([value, number]) => [
    value ?? "others",
    count(number),
    percent(number / all),
    bar(number / all),
  ]);
  return h(
    "div",
    {},
    table(title, ["value", "count", "share", ""], rows, "shares"),
    meaning && h("p", { class: "note" }, meaning),
  );
}

function rejectedList(header: Header): HTMLElement | null {
  if (!header.rejected.length) return null;
  return h(
    "section",
    { class: "wide" },
    h(
      "details",
      { open: header.rejected.length <= 20 },
      h("summary", {}, `Rejected sources and notes (${count(header.rejected.length)})`),
      table("Rejected sources and notes", ["source", "kind", "reason"], header.rejected, "rejected"),
    ),
  );
}
