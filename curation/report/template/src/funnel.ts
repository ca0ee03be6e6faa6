/** The funnel of the rules as a table with bars, the totals, and the rules as YAML. */

import { bar, count, duration, h, redraw, table } from "./dom";
import { MARKS, type Step } from "./rules";
import type { State } from "./state";
import { yamlOf } from "./yaml";

/** The funnel; it follows every change. */
export function funnelOf(state: State): HTMLElement {
  const element = h("section", { class: "funnel", "aria-label": "Funnel" });
  const draw = () => {
    const { steps } = state.judged;
    const all = state.header.total_clips || 1;
    const about = state.whole ? "" : "≈ ";
    const clips = (value: number) => (Math.round(value) ? `${about}${count(value)}` : "0");
    const first = [
      "all clips",
      "",
      "",
      "",
      count(state.header.total_clips),
      duration(state.header.total_microseconds / 1e6),
      bar(1),
    ];
    const rows = steps.map((step) => {
      const of = (number: (step: Step) => number) => state.estimateOf(step.name, number);
      const left = of((each) => each.left);
      return [
        step.name,
        step.asked,
        clips(of((each) => each.removed + each.unscoredDropped)),
        clips(of((each) => each.removedAlone)),
        clips(left),
        `${about}${duration(of((each) => each.leftMicroseconds) / 1e6)}`,
        bar(left / all),
      ];
    });
    const skipped = [...state.skipped].map(([name, why]) => [name, `skipped: ${why}`, "", "", "", "", ""]);
    redraw(
      element,
      table(
        "Funnel",
        ["rule", "condition", "removed", "alone", "clips left", "time left", ""],
        [first, ...rows, ...skipped],
        "steps",
      ),
      ...switches(state),
    );
  };
  state.listen(draw);
  draw();
  return element;
}

/** Check boxes for the `where` condition and the marks. */
function switches(state: State): HTMLElement[] {
  const box = (name: "useWhere" | "useMarks" | "useGroups", label: string) => {
    const input = h("input", {
      type: "checkbox",
      id: name,
      onchange: () => {
        state[name] = input.checked;
        state.rejudge();
      },
    });
    input.checked = state[name];
    return h("label", { class: "switch" }, input, ` ${label}`);
  };
  const { where } = state.header;
  const { size } = state.marks;
  return [
    ...(where ? [box("useWhere", `where ${where.sql}`)] : []),
    ...(state.header.groups.length ? [box("useGroups", "apply limits and balance between groups")] : []),
    ...(size ? [box("useMarks", `apply ${count(size)} marks (select ${MARKS})`)] : []),
  ];
}

/** The number of kept clips. */
export function totalsOf(state: State): HTMLElement {
  const element = h("p", { class: "totals", role: "status", "aria-live": "polite" });
  const draw = () => {
    const clips = Math.round(state.estimate((judged) => judged.clips));
    const text = `${count(clips)} of ${count(state.header.total_clips)} clips`;
    element.replaceChildren(
      h("strong", { id: "kept-clips", "data-clips": clips }, state.whole ? text : `≈ ${text}`),
      ` · ${duration(state.estimate((judged) => judged.microseconds) / 1e6)}`,
      state.whole ? "" : ` · estimated from a sample of ${count(state.header.shown_clips)}`,
    );
  };
  state.listen(draw);
  draw();
  return element;
}

/** The rules as YAML, with a button that copies them. */
export function yamlBox(state: State): HTMLElement {
  const text = h("textarea", {
    readonly: true,
    rows: 6,
    "aria-label": "Rules as YAML",
    id: "yaml",
    spellcheck: "false",
  });
  const told = h("span", { role: "status" });
  const name = () => (/^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$/.test(state.header.name) ? state.header.name : "my-selection");
  const note = h("p", { class: "note" });
  const draw = () => {
    const { like, max_per, balance } = state.header.rules;
    const given = state.useGroups ? { like, max_per, balance } : { like };
    text.value = yamlOf(name(), state.rules, state.useWhere ? state.header.where?.sql : undefined, given);
    text.rows = Math.min(14, text.value.split("\n").length);
    told.textContent = "";
    const marks = state.useMarks && state.marks.size ? " --marks marks.json (export the marks)" : "";
    note.textContent = `Save as rules.yaml, then: clipmill select DATASET --config rules.yaml${marks}`;
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text.value);
    } catch {
      text.select();
      document.execCommand("copy");
    }
    told.textContent = "Copied.";
  };
  state.listen(draw);
  draw();
  return h(
    "section",
    { class: "yaml", "aria-label": "Rules" },
    text,
    h("div", { class: "controls" }, h("button", { id: "copy-yaml", onclick: copy }, "Copy the rules as YAML"), told),
    note,
  );
}
