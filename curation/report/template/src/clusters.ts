/** Clusters with their pictures, largest first, and how many of their clips the rules keep. */

import { append } from "./data";
import { bar, count, h, picker, redraw } from "./dom";
import { card, group } from "./gallery";
import type { State } from "./state";

const AT_ONCE = 12;
const CARDS = 6;

type Order = "size" | "kept";

export class Clusters {
  readonly element = h("div", { class: "clusters" });
  private limit = AT_ONCE;
  private order: Order = "size";
  private clusters: Map<number, number[]> | undefined;

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    state.listen(() => this.element.offsetParent && this.draw());
  }

  draw(): void {
    const { state } = this;
    this.clusters ??= this.grouped();
    if (!this.clusters.size) {
      redraw(this.element, h("p", {}, "No clusters. Run clipmill cluster DATASET to group the clips by content."));
      return;
    }
    const { kept } = state.judged;
    const all = [...this.clusters].map(([cluster, clips]) => ({
      cluster,
      clips,
      size: this.sizeOf(clips),
      kept: clips.reduce((sum, clip) => sum + kept[clip], 0),
    }));
    all.sort((a, b) => b[this.order] - a[this.order] || b.size - a.size || a.cluster - b.cluster);
    const most = Math.max(...all.map(({ size }) => size), 1);
    const about = state.whole ? "" : "≈ ";
    const sections = all.slice(0, this.limit).map(({ cluster, clips, size, kept: passing }) => {
      const section = group(
        `Cluster ${cluster}: ${count(size)} clips, ${about}${count(passing * state.scale)} kept`,
        this.examples(clips).map((clip) => card(state, clip, this.open, this.distance(clip))),
      );
      const shares = h("div", { class: "shares" }, bar(size / most, "all"), bar((passing * state.scale) / most));
      section.firstElementChild!.after(shares);
      return section;
    });
    redraw(
      this.element,
      h(
        "p",
        {},
        `${count(all.length)} clusters, each with the clips nearest to its center. Upper bar: its clips in the dataset; lower bar: those that the rules keep. The rule balance evens them out.`,
      ),
      h(
        "div",
        { class: "controls" },
        picker(
          "Sort by",
          [
            ["size", "clips in the dataset"],
            ["kept", "clips kept"],
          ],
          this.order,
          (order) => {
            this.order = order as Order;
            this.draw();
          },
        ),
      ),
      ...sections,
      all.length > this.limit
        ? h(
            "button",
            {
              onclick: () => {
                this.limit += AT_ONCE;
                this.draw();
              },
            },
            "Show more clusters",
          )
        : "",
    );
  }

  private grouped(): Map<number, number[]> {
    const clusters = new Map<number, number[]>();
    this.numbers("cluster")?.forEach((cluster, clip) => {
      if (!Number.isNaN(cluster)) append(clusters, cluster, clip);
    });
    return clusters;
  }

  private numbers(name: string): Float32Array | Float64Array | undefined {
    return this.state.judge.columns.get(name)?.numbers;
  }

  /** Clips of a cluster in the whole dataset. */
  private sizeOf(clips: number[]): number {
    return this.numbers("cluster_size")?.[clips[0]] ?? clips.length;
  }

  /** The clips nearest to the center. */
  private examples(clips: number[]): number[] {
    const distances = this.numbers("cluster_distance");
    if (!distances) return clips.slice(0, CARDS);
    return [...clips].sort((a, b) => distances[a] - distances[b] || a - b).slice(0, CARDS);
  }

  private distance(clip: number): string {
    const distance = this.numbers("cluster_distance")?.[clip];
    return distance === undefined ? "" : `distance ${distance.toFixed(3)}`;
  }
}
