/** Plays a clip: from its source by time range, or from a shard by byte range. */

import { textOf } from "./data";
import { h } from "./dom";
import { shown } from "./rules";
import type { State } from "./state";

const BLOCK = 512;

/** Where the video of a clip lies in a shard. */
interface Place {
  folder: string;
  shard: string;
  offset: number;
  size: number;
}

export class Player {
  /** Source -> URL of the file that was chosen for it. */
  private readonly sources = new Map<string, string>();
  /** Chosen shards by file name; shards of several selections can have the same. */
  private readonly shards = new Map<string, File[]>();

  constructor(private readonly state: State) {}

  /** The controls and the video of a clip. */
  of(clip: number): HTMLElement {
    const { judge } = this.state;
    const uri = textOf(judge.columns.get("uri"), clip);
    const [start, end] = ["start_s", "end_s"].map((name) => judge.columns.get(name)?.numbers?.[clip] ?? 0);
    const places = this.placesOf(clip);
    const status = h("p", { role: "status", class: "note" });
    const screen = h("div", {});
    const buttons = h("div", { class: "controls" });
    const say = (text: string) => status.replaceChildren(text);
    const show = (address: string, until: number, failed: string) => {
      const video = h("video", { controls: true, preload: "auto", src: address });
      video.addEventListener("error", () => say(failed));
      video.addEventListener("timeupdate", () => {
        if (video.currentTime >= until) video.pause();
      });
      say("");
      screen.replaceChildren(video);
      video.play().catch(() => undefined);
    };
    const fromSource = (address: string) =>
      show(`${address}#t=${start},${end}`, end, `The browser cannot open or play the source. ${advice(places)}`);
    const fromShard = async (place: Place) => {
      try {
        const content = await this.read(place, `${this.state.clipId(clip)}.mp4`);
        const failed = "The browser cannot play the codec of this clip.";
        show(URL.createObjectURL(content), Number.POSITIVE_INFINITY, failed);
      } catch (error) {
        say((error as Error).message);
      }
    };
    const draw = () => {
      const address = this.sources.get(uri) ?? playable(uri);
      buttons.replaceChildren(
        address
          ? h("button", { class: "play", onclick: () => fromSource(address) }, "Play")
          : "The browser cannot open the source.",
        ...places.map((place) =>
          h("button", { class: "play-shard", onclick: () => fromShard(place) }, `Play from shards/${place.folder}`),
        ),
        chooser,
      );
    };
    const file: HTMLInputElement = h("input", {
      type: "file",
      accept: "video/*,.tar",
      multiple: true,
      onchange: () => {
        const shard = this.take([...(file.files ?? [])], uri, places);
        const source = this.sources.get(uri);
        draw();
        if (shard) void fromShard(shard);
        else if (source) fromSource(source);
        else say("This clip is in no shard: choose its source file.");
      },
    });
    const chooser = h("label", {}, places.length ? "source file or shards: " : "source file: ", file);
    draw();
    return h(
      "section",
      { class: "video", "aria-label": "Video" },
      h("p", { class: "where" }, `${uri} · ${shown(start)} s to ${shown(end)} s`),
      buttons,
      status,
      screen,
    );
  }

  private placesOf(clip: number): Place[] {
    return this.state.header.shards
      .filter((folder) => folder.problem === null)
      .filter(({ shards }) => shards.codes[clip] >= 0)
      .map(({ name, shards, offsets, sizes }) => ({
        folder: name,
        shard: shards.texts[shards.codes[clip]],
        offset: offsets[clip],
        size: sizes[clip],
      }));
  }

  /** Keep chosen files. Returns the place of the clip if its shard is among them. */
  private take(files: File[], uri: string, places: Place[]): Place | undefined {
    for (const file of files) {
      if (!file.name.endsWith(".tar")) this.sources.set(uri, URL.createObjectURL(file));
      else this.shards.set(file.name, [...(this.shards.get(file.name) ?? []), file]);
    }
    const names = new Set(files.map((file) => file.name));
    return places.find((place) => names.has(place.shard)) ?? (this.sources.has(uri) ? undefined : places[0]);
  }

  /** The video of a clip, from a chosen shard or over the network. Throws an Error with a sentence for the reader. */
  private async read(place: Place, name: string): Promise<Blob> {
    const [first, last] = [place.offset - BLOCK, place.offset + place.size];
    const path = `shards/${place.folder}/${place.shard}`;
    for (const file of this.shards.get(place.shard) ?? []) {
      const content = file.slice(first, last);
      if (await isMember(content, name, place.size)) return content.slice(BLOCK, undefined, "video/mp4");
    }
    if (this.shards.has(place.shard)) throw new Error(`The chosen ${place.shard} is not ${path} of this dataset.`);
    if (!location.protocol.startsWith("http")) throw new Error(`Choose the file ${path} of the dataset.`);
    const address = ["..", "shards", place.folder, place.shard].map(encodeURIComponent).join("/");
    const answer = await fetch(address, { headers: { Range: `bytes=${first}-${last - 1}` } }).catch(() => null);
    if (answer?.status !== 206) {
      await answer?.body?.cancel();
      const reason = answer?.ok ? "the server does not support range requests" : `HTTP ${answer?.status ?? "error"}`;
      throw new Error(`Cannot read ${path}: ${reason}. Choose the file instead.`);
    }
    const content = await answer.blob();
    if (!(await isMember(content, name, place.size)))
      throw new Error(`${path} has been rewritten: run clipmill report again.`);
    return content.slice(BLOCK, undefined, "video/mp4");
  }
}

/** Whether this is a tar member, header first, of that name and size. */
async function isMember(content: Blob, name: string, size: number): Promise<boolean> {
  const header = new TextDecoder("latin1").decode(await content.slice(0, BLOCK).arrayBuffer());
  const stated = Number.parseInt(header.slice(124, 136), 8);
  const starts = header.slice(0, header.indexOf("\0")) === name;
  return header.slice(257, 262) === "ustar" && starts && stated === size && content.size === BLOCK + size;
}

function advice(places: Place[]): string {
  if (!places.length) return "Choose its file.";
  return `Choose its file, or play shards/${places[0].folder}/${places[0].shard}.`;
}

/** A URL that a video element can open: of local files and web addresses. */
function playable(uri: string): string {
  if (uri.startsWith("/")) return `file://${uri.split("/").map(encodeURIComponent).join("/")}`;
  return /^(file|https?):\/\//.test(uri) ? uri : "";
}
