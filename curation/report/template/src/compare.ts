/** The current rules against another selection: added and removed clips, and the deciding rules. */

import type { Rule } from "./data";
import { count, duration, h, redraw, table } from "./dom";
import { card, group } from "./gallery";
import { asWords, type Judged } from "./rules";
import type { State } from "./state";

const AT_ONCE = 48;

export class Compare {
  readonly element = h("div", { class: "compare" });

  private theirs: { rules: Map<string, Rule>; judged: Judged } | undefined;

  constructor(
    private readonly state: State,
    private readonly open: (clip: number) => void,
  ) {
    state.listen(() => this.element.offsetParent && this.draw());
  }

  draw(): void {
    const { state } = this;
    const { against } = state.header;
    if (!against) return;
    this.theirs ??= this.judgeTheirs();
    const { rules: theirs, judged: other } = this.theirs;
    const all = Array.from(state.judged.kept, (_, clip) => clip);
    const added = all.filter((clip) => state.judged.kept[clip] && !against.member[clip]);
    const removed = all.filter((clip) => !state.judged.kept[clip] && against.member[clip]);
    const both = all.filter((clip) => state.judged.kept[clip] && against.member[clip]);
    const seconds = (clips: number[]) =>
      duration(clips.reduce((sum, clip) => sum + state.header.microseconds[clip], 0) / 1e6);
    const columns = [...new Set([...state.rules.keys(), ...theirs.keys()])];
    const theirReason = (clip: number) => {
      const by = other.droppedBy[clip];
      return by < 0
        ? `not in ${against.name}`
        : `${against.name}: ${state.judge.reason(other.tests[by], clip, undefined)}`;
    };
    redraw(
      this.element,
      h("h2", {}, `Current rules against ${against.name}`),
      h(
        "div",
        { class: "tables" },
        table(
          "Clips",
          ["", "clips", "time"],
          [
            [
              "current rules",
              count(state.estimate((judged) => judged.clips)),
              duration(state.estimate((judged) => judged.microseconds) / 1e6),
            ],
            [against.name, count(against.clips), duration(against.seconds)],
            [`in both${state.whole ? "" : " (of the sample)"}`, count(both.length), seconds(both)],
            ["only with the current rules", count(added.length), seconds(added)],
            [`only in ${against.name}`, count(removed.length), seconds(removed)],
          ],
        ),
        table(
          "Rules",
          ["column", "current", against.name],
          columns.map((name) => [
            name,
            asWords(state.rules.get(name) ?? {}) || "–",
            asWords(theirs.get(name) ?? {}) || "–",
          ]),
        ),
        this.decided(
          "Removed clips by deciding rule",
          removed,
          (clip) => state.judged.tests[state.judged.droppedBy[clip]]?.name ?? "–",
        ),
        this.decided(
          "Added clips by the rule that dropped them",
          added,
          (clip) => other.tests[other.droppedBy[clip]]?.name ?? "–",
        ),
      ),
      this.cards(`Only with the current rules: ${count(added.length)}`, added, theirReason),
      this.cards(`Only in ${against.name}: ${count(removed.length)}`, removed, () => ""),
    );
  }

  private judgeTheirs(): { rules: Map<string, Rule>; judged: Judged } {
    const { judge, header } = this.state;
    const given = header.against!.rules;
    const rules = new Map<string, Rule>(Object.entries(given.rules ?? {}));
    const useWhere = given.where !== undefined && given.where === header.where?.sql;
    const groups = given.like ? [] : header.against!.groups; // what its queries left is not known here
    return { rules, judged: judge.judge(rules, useWhere, undefined, groups) };
  }

  private decided(title: string, clips: number[], by: (clip: number) => string): HTMLElement | null {
    if (!clips.length) return null;
    const counts = new Map<string, number>();
    for (const clip of clips) counts.set(by(clip), (counts.get(by(clip)) ?? 0) + 1);
    return table(
      title,
      ["rule", "clips"],
      [...counts].sort((a, b) => b[1] - a[1]).map(([name, number]) => [name, count(number)]),
    );
  }

  private cards(title: string, clips: number[], extra: (clip: number) => string): HTMLElement | string {
    if (!clips.length) return "";
    return group(
      title,
      clips.slice(0, AT_ONCE).map((clip) => card(this.state, clip, this.open, extra(clip))),
    );
  }
}
