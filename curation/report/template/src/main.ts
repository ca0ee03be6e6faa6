/** The page: tabs and their content. */

import { Clusters } from "./clusters";
import { Compare } from "./compare";
import { Cuts } from "./cuts";
import { readData } from "./data";
import { Detail } from "./detail";
import { count, h, picker } from "./dom";
import { Duplicates } from "./duplicates";
import { funnelOf, totalsOf, yamlBox } from "./funnel";
import { Gallery } from "./gallery";
import { Histogram } from "./histogram";
import { overviewTab } from "./overview";
import { Pairs } from "./pairs";
import { onColours } from "./plot";
import { State } from "./state";

interface Tab {
  title: string;
  panel: HTMLElement;
  shown?: () => void;
}

async function start(): Promise<void> {
  const header = await readData();
  const state = new State(header);
  const detail = new Detail(state);
  const gallery = new Gallery(state, detail.open);
  const histograms = new Map<string, Histogram>();
  const list = h("div", { class: "histograms" });
  const add = (name: string) => {
    if (histograms.has(name)) return;
    const histogram = new Histogram(state, state.judge.columns.get(name)!);
    histograms.set(name, histogram);
    list.append(histogram.element);
  };
  for (const name of [...state.rules.keys(), ...state.sliders()]) if (state.judge.scores(name).length) add(name);
  const drawn = () => [...histograms.values()].map((histogram) => histogram.draw());
  const others = header.columns
    .filter((column) => column.numbers && !histograms.has(column.name) && state.judge.scores(column.name).length)
    .map((column) => column.name);
  const more = picker(
    "Add a histogram",
    [["", "choose…"], ...others.map((name): [string, string] => [name, name])],
    "",
    (name) => {
      if (name) add(name);
      drawn();
    },
  );
  const unscored = state.sliders().filter((name) => !state.judge.scores(name).length);
  const none = unscored.length ? h("p", { class: "note" }, `No scores: ${unscored.join(", ")}`) : "";
  const duplicates = new Duplicates(state, detail.open);
  const clusters = new Clusters(state, detail.open);
  const cuts = new Cuts(state, detail.open);
  const compare = new Compare(state, detail.open);
  const choose = h(
    "div",
    { class: "choose" },
    h("div", { class: "left" }, list, none, more, yamlBox(state)),
    h("div", { class: "right" }, funnelOf(state), gallery.element),
  );
  const tabs: Tab[] = [];
  const select = (tab: Tab) => {
    for (const each of tabs) {
      each.panel.hidden = each !== tab;
      const button = document.getElementById(`tab-${each.title}`)!;
      button.setAttribute("aria-selected", String(each === tab));
      button.tabIndex = each === tab ? 0 : -1;
    }
    tab.shown?.();
  };
  const chooseTab: Tab = {
    title: "Choose",
    panel: choose,
    shown: () => {
      drawn();
      gallery.update();
    },
  };
  const pairs = new Pairs(state, () => {
    select(chooseTab);
    gallery.showOnly("brushed");
  });
  tabs.push({ title: "Overview", panel: overviewTab(header) }, chooseTab);
  tabs.push({ title: "Pairs", panel: pairs.element, shown: () => pairs.draw() });
  tabs.push({ title: "Duplicates", panel: duplicates.element, shown: () => duplicates.draw() });
  tabs.push({ title: "Clusters", panel: clusters.element, shown: () => clusters.draw() });
  tabs.push({ title: "Cuts", panel: cuts.element, shown: () => cuts.draw() });
  if (header.against) tabs.push({ title: "Compare", panel: compare.element, shown: () => compare.draw() });
  const buttons = tabs.map((tab) =>
    h(
      "button",
      { role: "tab", id: `tab-${tab.title}`, "aria-controls": `panel-${tab.title}`, onclick: () => select(tab) },
      tab.title,
    ),
  );
  const tablist = h("div", { role: "tablist", "aria-label": "Sections of the report" }, ...buttons);
  tablist.addEventListener("keydown", (event) => {
    const now = buttons.indexOf(document.activeElement as HTMLButtonElement);
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (now < 0 || !by) return;
    const next = (now + by + buttons.length) % buttons.length;
    select(tabs[next]);
    buttons[next].focus();
  });
  for (const tab of tabs) {
    tab.panel.id = `panel-${tab.title}`;
    tab.panel.setAttribute("role", "tabpanel");
    tab.panel.setAttribute("aria-labelledby", `tab-${tab.title}`);
  }
  document
    .getElementById("app")!
    .replaceChildren(
      h(
        "header",
        {},
        h(
          "div",
          { class: "title" },
          h("h1", {}, header.selection?.name ?? "all clips"),
          h("span", { class: "dataset" }, header.dataset),
        ),
        totalsOf(state),
        tablist,
        marksBar(state),
      ),
      h("main", { id: "main", tabindex: -1 }, ...tabs.map((tab) => tab.panel)),
      detail.element,
    );
  select(chooseTab);
  new ResizeObserver(drawn).observe(list);
  onColours(() => {
    for (const histogram of histograms.values()) histogram.redraw();
    tabs.find((tab) => !tab.panel.hidden)?.shown?.();
  });
  Object.assign(globalThis, { clipmill: state }); // for the developer console
  document.documentElement.dataset.ready = "true";
}

/** The number of marks, and a button that exports them. */
function marksBar(state: State): HTMLElement {
  const element = h("div", { class: "marks" });
  const draw = () => {
    const { size } = state.marks;
    const save = () => {
      const marks = [...state.marks]
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([clip_id, mark]) => ({ clip_id, ...mark }));
      const content = { format: "clipmill marks", dataset_fingerprint: state.header.fingerprint, marks };
      const link = h("a", {
        download: "marks.json",
        href: URL.createObjectURL(new Blob([`${JSON.stringify(content, null, 1)}\n`], { type: "application/json" })),
      });
      link.click();
    };
    element.classList.toggle("some", size > 0);
    element.replaceChildren(
      h("span", {}, size ? `${count(size)} marked` : "Mark a focused clip: b bad cut, w wrong score, k keep, d drop"),
      size ? h("button", { id: "export-marks", onclick: save }, "Export marks") : "",
    );
  };
  state.listen(draw);
  draw();
  return element;
}

start().catch((error: unknown) => {
  document
    .getElementById("app")!
    .replaceChildren(
      h("p", { role: "alert" }, `The page cannot be shown: ${error}. It needs a browser of 2023 or later.`),
    );
  throw error;
});
