/** Reads what the page carries: see curation/report/payload.py for the layout. */

export interface Column {
  name: string;
  table: string;
  meaning: string;
  unit: string;
  better: "higher" | "lower" | "";
  bounds: [number, number] | null;
  kind: "single" | "double" | "text" | "other";
  slider: boolean;
  /** Columns of numbers: NaN where there is none. */
  numbers?: Float32Array | Float64Array;
  /** Columns of text: distinct texts, and in `codes` each clip's; -1 where there is none. */
  texts?: string[];
  codes?: Int32Array;
  /** All others: distinct JSON values; `codes` has each clip's. */
  values?: unknown[];
}

export interface Rule {
  drop_lowest?: string;
  drop_highest?: string;
  min?: number;
  max?: number;
  unscored?: "drop" | "keep";
}

export interface RuleSet {
  name: string;
  rules?: Record<string, Rule>;
  where?: string;
}

export interface Transition {
  kind: string;
  start_s: number;
  end_s: number;
  start_frame: number;
  end_frame: number;
}

export interface Overview {
  sources: number;
  sources_ok: number;
  totals: Record<string, number>;
  lost_s: Record<string, number>;
  rejected: [string | null, number][];
  codecs: [string | null, number][];
  containers: [string | null, number][];
  sizes: [string | null, number][];
  frame_rates: [string | null, number][];
  extractions: [string | null, number][];
  errors: Record<string, [string | null, number][]>;
}

export interface Header {
  dataset: string;
  fingerprint: string;
  name: string;
  total_clips: number;
  total_microseconds: number;
  shown_clips: number;
  columns: Column[];
  microseconds: Float64Array;
  rules: RuleSet;
  where: { sql: string; outcomes: Int32Array } | null;
  selection: { name: string; clips: number; seconds: number } | null;
  against: { name: string; rules: RuleSet; clips: number; seconds: number; member: Int32Array } | null;
  selections: string[];
  overview: Overview;
  rejected: [string, string, string][];
  quantiles: Record<string, { scored: number; quantiles: Float64Array }>;
  sources: {
    of_clips: Int32Array;
    values: Record<string, unknown[]>;
    signals: Record<string, (Int16Array | null)[]>;
  };
  pictures: { offsets: Int32Array; long_side_px: number };
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

/** Puts the arrays in the place of what the header says of them. */
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

/** Value of a clip in a column that is neither of numbers nor of text. */
export function jsonOf(column: Column | undefined, clip: number): unknown {
  return column?.values?.[column.codes![clip]];
}

let pictureText: string | undefined;

/** Address of the strip of a clip: first, middle and last picture side by side. Empty without pictures. */
export function stripOf(header: Header, clip: number): string {
  pictureText ??= document.getElementById("pictures")!.textContent!;
  const [start, end] = [header.pictures.offsets[clip], header.pictures.offsets[clip + 1]];
  return end > start ? `data:image/webp;base64,${pictureText.slice(start, end)}` : "";
}
