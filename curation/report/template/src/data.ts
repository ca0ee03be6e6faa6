/** Unpacks the payload of the page; curation/report/payload.py describes its layout. */

export interface Column {
  name: string;
  table: string;
  meaning: string;
  unit: string;
  better: "higher" | "lower" | "";
  bounds: [number, number] | null;
  kind: "single" | "double" | "text" | "other";
  slider: boolean;
  /** Values of numeric columns; NaN if missing. */
  numbers?: Float32Array | Float64Array;
  /** Distinct texts of text columns; `codes` has the index for each clip, -1 if missing. */
  texts?: string[];
  codes?: Int32Array;
  /** Distinct JSON values of other columns; `codes` has the index for each row. */
  values?: unknown[];
}

export interface Rule {
  drop_lowest?: string;
  drop_highest?: string;
  min?: number;
  max?: number;
  unscored?: "drop" | "keep";
}

/** A rule on the cosine to a query. */
export interface Like extends Rule {
  text?: string;
  clip?: string;
  picture?: string;
  embedding?: number[];
}

export interface RuleSet {
  name: string;
  rules?: Record<string, Rule>;
  like?: Like[];
  where?: string;
  max_per?: Record<string, unknown>;
  balance?: Record<string, unknown>;
}

/** A rule on groups of clips: a limit per group, or with `power` the balance between groups. */
export interface GroupRule {
  name: string;
  column: string;
  asked: string;
  clips: number;
  power: number | null;
  best: [string, "highest" | "lowest"][];
  unscored: "drop" | "keep";
  /** Place of each clip in the random order. */
  order: Int32Array;
}

export type Verdict = "bad cut" | "wrong score" | "keep" | "drop";

export interface Mark {
  verdict: Verdict;
  /** The wrong score. */
  score?: string;
}

/** A value and its number of rows; null stands for all rarer values. */
export type Counts = [string | null, number][];

export interface Transition {
  kind: string;
  start_s: number;
  end_s: number;
  start_frame: number;
  end_frame: number;
  /** Why a proposal was refused. */
  reason?: string;
}

export interface Overview {
  sources: number;
  sources_ok: number;
  duration_s: number;
  clip_s: number;
  size_bytes: number;
  /** Columns such as lost_transition_s and scan_cpu_s -> sum over the sources. */
  lost_s: Record<string, number>;
  cpu_s: Record<string, number>;
  /** What each stage used in all runs, as `clipmill status` lists it; empty if no run was recorded. */
  costs: { stage: string; cpu_s: number; gpu_s: number }[];
  meanings: Record<string, string>;
  rejected: Counts;
  sizes: Counts;
  frame_rates: Counts;
  categories: { name: string; table: string; boolean: boolean; meaning: string; values: Counts }[];
  errors: Record<string, Counts>;
  selections: { name: string; clips: number; seconds: number }[];
}

/** A step of the funnel as `clipmill select` wrote it. */
export interface SavedStep {
  rule: string;
  asked: string;
  removed: number;
  unscored_dropped: number;
  clips_left: number;
  seconds_left: number;
  skipped: string | null;
}

/** The tar of each clip, and where its video lies in it. */
export interface ShardFolder {
  name: string;
  problem: null;
  shards: { texts: string[]; codes: Int32Array };
  offsets: Float64Array;
  sizes: Float64Array;
}

export interface Header {
  dataset: string;
  fingerprint: string;
  name: string;
  total_clips: number;
  total_microseconds: number;
  shown_clips: number;
  columns: Column[];
  /** Columns that the page had no room for. */
  left_out: string[];
  microseconds: Float64Array;
  rules: RuleSet;
  /** Score of each `like` -> its query in words. */
  queries: Record<string, string>;
  /** Rules on groups, in the order in which they run. */
  groups: GroupRule[];
  where: { sql: string; outcomes: Int32Array } | null;
  /** The selection as written; `marked` is the number of marks that were applied to it. */
  selection: {
    name: string;
    clips: number;
    seconds: number;
    total_clips: number;
    /** Clips that were selected and whose sources were removed from the dataset later. */
    removed_clips: number;
    funnel: SavedStep[];
    marked: number;
  } | null;
  /** Captioner -> version of its captions that counts now, and of those that the similarity was computed from. */
  captions: { now: Record<string, number>; scored: Record<string, number> };
  /** Marks that earlier selections of this dataset used. */
  marks: { clip_id: string; verdict: Verdict; score: string | null }[];
  against: {
    name: string;
    rules: RuleSet;
    groups: GroupRule[];
    clips: number;
    seconds: number;
    member: Int32Array;
  } | null;
  overview: Overview;
  rejected: [string, string, string][];
  /** Folders of shards, or why they cannot be read. */
  shards: (ShardFolder | { name: string; problem: string })[];
  quantiles: Record<string, { scored: number; quantiles: Float64Array }>;
  sources: {
    /** Place of the source of each clip in the lists below; sources without clips come last. */
    of_clips: Int32Array;
    uris: string[];
    notes: (string | null)[];
    /** First and last second; NaN if unknown. */
    starts_s: Float64Array;
    ends_s: Float64Array;
    columns: Column[];
    signals: Record<string, (Int16Array | null)[]>;
  };
}

const ARRAYS = { f32: Float32Array, f64: Float64Array, i32: Int32Array, i16: Int16Array };

interface Placed {
  type: keyof typeof ARRAYS;
  offset: number;
  length: number;
}

/** Unpack the payload of the element `#data`. */
export async function readData(): Promise<Header> {
  const packed = Uint8Array.from(atob(document.getElementById("data")!.textContent!), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return unpacked(header, buffer, 4 + length) as Header;
}

/** Replaces references in the header by the arrays. */
function unpacked(value: unknown, buffer: ArrayBuffer, start: number): unknown {
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) {
      if (typeof value[i] === "object" && value[i] !== null) value[i] = unpacked(value[i], buffer, start);
    }
    return value;
  }
  const fields = value as Record<string, unknown>;
  if (isPlaced(fields)) {
    return new ARRAYS[fields.type](buffer, start + fields.offset, fields.length);
  }
  for (const [key, inner] of Object.entries(fields)) {
    if (key !== "values") {
      if (typeof inner === "object" && inner !== null) fields[key] = unpacked(inner, buffer, start);
    }
  }
  return fields;
}

function isPlaced(fields: object): fields is Placed {
  const { type, offset, length } = fields as Partial<Placed>;
  return typeof type === "string" && type in ARRAYS && typeof offset === "number" && typeof length === "number";
}

/** Add a value to the list of a key. */
export function append<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}

/** Text of a clip in a text column. */
export function textOf(column: Column | undefined, clip: number): string {
  const code = column?.codes?.[clip] ?? -1;
  return code < 0 ? "" : column!.texts![code];
}

/** JSON value of a row in a column that is neither numeric nor text. */
export function jsonOf(column: Column | undefined, row: number): unknown {
  return column?.values?.[column.codes![row]];
}

/** JSON value of a source in a column of sources. */
export function ofSource(header: Header, name: string, source: number): unknown {
  return jsonOf(
    header.sources.columns.find((column) => column.name === name),
    source,
  );
}

let pictures: { offsets: Int32Array; text: string; start: number } | undefined;

/** The element `#pictures`: see curation/report/pictures.py. */
function readPictures(): NonNullable<typeof pictures> {
  const text = document.getElementById("pictures")!.textContent!;
  const dot = text.indexOf(".");
  const packed = Uint8Array.from(atob(text.slice(0, dot)), (c) => c.charCodeAt(0));
  return { offsets: new Int32Array(packed.buffer), text, start: dot + 1 };
}

/** Data URL of the strip of a clip: first, middle and last picture side by side. Empty without pictures. */
export function stripOf(clip: number): string {
  pictures ??= readPictures();
  const { offsets, text, start } = pictures;
  const [first, last] = [offsets[clip], offsets[clip + 1]];
  return last > first ? `data:image/webp;base64,${text.slice(start + first, start + last)}` : "";
}
