/** Groups of near-duplicates side by side, with their cosine and the one that is kept. */

import { append, textOf } from "./data";
import { count, h, redraw } from "./dom";
import { card, group } from "./gallery";
import { shown } from "./rules";
import type { State } from "./state";

const AT_ONCE = 20;

/** Groups with at least two clips in the page, largest first. */
export function groupsOf(state: State): number[][] {
  const { columns } = state.judge;
  const [of, ranks] = [columns.get("duplicate_of"), columns.get("duplicate_rank")?.numbers];
  if (!of || !ranks) return [];
  const groups = new Map<string, number[]>();
  for (let clip = 0; clip < ranks.length; clip++) {
    const best = textOf(of, clip);
    if (best) append(groups, best, clip);
  }
  for (let clip = 0; clip < ranks.length; clip++) groups.get(state.clipId(clip))?.push(clip);
  for (const members of groups.values()) members.sort((a, b) => ranks[a] - ranks[b]);
  return [...groups.values()].filter((members) => members.length > 1).sort((a, b) => b.length - a.length);
}

export class Duplicates {
  readonly element = h("div", { class: "duplicates" });
  private limit = AT_ONCE;
  private groups: number[][] | undefined;

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    state.listen(() => this.element.offsetParent && this.draw());
  }

  draw(): void {
    const { state } = this;
    this.groups ??= groupsOf(state);
    const groups = this.groups;
    const cosines = state.judge.columns.get("duplicate_cosine")?.numbers;
    const shownGroups = groups.slice(0, this.limit).map((members) => {
      const marked = members.find((clip) => state.marks.get(state.clipId(clip))?.verdict === "keep");
      return group(
        `${count(members.length)} near-duplicates`,
        members.map((clip, place) => {
          const cosine = cosines?.[clip] ?? Number.NaN;
          const note = place === 0 ? "best of the group" : `cosine ${shown(cosine)} with the best`;
          const shownCard = card(state, clip, this.open, note);
          if (clip !== (marked ?? members[0]))
            shownCard.append(h("button", { onclick: () => this.prefer(members, clip) }, "Keep this one instead"));
          return shownCard;
        }),
      );
    });
    redraw(
      this.element,
      h(
        "p",
        {},
        groups.length
          ? `${count(groups.length)} groups of near-duplicates${state.whole ? "" : " among the clips of this page"}. “Keep this one instead” marks the clips; export the marks and pass them to clipmill select --marks.`
          : "No near-duplicates. Run clipmill duplicates DATASET to search for them.",
      ),
      ...shownGroups,
      groups.length > this.limit
        ? h(
            "button",
            {
              onclick: () => {
                this.limit += AT_ONCE;
                this.draw();
              },
            },
            "Show more groups",
          )
        : "",
    );
  }

  private prefer(members: number[], chosen: number): void {
    this.state.setMarks(
      members.map((clip) => [this.state.clipId(clip), { verdict: clip === chosen ? "keep" : "drop" }]),
    );
  }
}
