/** What each rule removed, as a picture and in numbers; and the rules as YAML. */

import { bar, count, duration, h, table } from "./dom";
import type { State } from "./state";
import { yamlOf } from "./yaml";

/** The funnel, drawn anew after every change. */
export function funnelOf(state: State): HTMLElement {
  const element = h("section", { class: "funnel", "aria-label": "Funnel" });
  const draw = () => {
    const { steps } = state.judged;
    const scale = state.scale();
    const all = state.header.shown_clips || 1;
    const about = state.whole ? "" : "≈ ";
    const clips = (value: number) => (value ? `${about}${count(value * scale)}` : "0");
    const first = [
      "all clips",
      "",
      "",
      "",
      count(state.header.total_clips),
      duration(state.header.total_microseconds / 1e6),
      bar(1),
    ];
    const rows = steps.map((step) => [
      step.name,
      step.asked,
      clips(step.removed + step.unscoredDropped),
      clips(step.removedAlone),
      clips(step.left),
      `${about}${duration((step.leftMicroseconds * scale) / 1e6)}`,
      bar(step.left / all),
    ]);
    element.replaceChildren(
      table("Funnel", ["rule", "asked", "removed", "alone", "clips left", "time left", ""], [first, ...rows], "steps"),
    );
    if (state.header.where) {
      const box = h("input", {
        type: "checkbox",
        onchange: () => {
          state.useWhere = box.checked;
          state.rejudge();
        },
      });
      box.checked = state.useWhere;
      element.append(h("label", {}, box, ` where ${state.header.where.sql}`));
    }
  };
  state.listen(draw);
  draw();
  return element;
}

/** The kept clips in large type. */
export function totalsOf(state: State): HTMLElement {
  const element = h("p", { class: "totals", role: "status", "aria-live": "polite" });
  const draw = () => {
    const { clips, microseconds } = state.judged;
    const scale = state.scale();
    const text = `${count(clips * scale)} of ${count(state.header.total_clips)} clips`;
    element.replaceChildren(
      h("strong", { id: "kept-clips", "data-clips": clips }, state.whole ? text : `≈ ${text}`),
      ` · ${duration((microseconds * scale) / 1e6)}`,
      state.whole ? "" : ` · estimated from a sample of ${count(state.header.shown_clips)}`,
    );
  };
  state.listen(draw);
  draw();
  return element;
}

/** The rules as a file, with a button that copies it. */
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
  const draw = () => {
    text.value = yamlOf(name(), state.rules, state.useWhere ? state.header.where?.sql : undefined);
    text.rows = Math.min(14, text.value.split("\n").length);
    told.textContent = "";
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
    h("p", { class: "note" }, "Save as rules.yaml, then: clipmill select DATASET --config rules.yaml"),
  );
}
