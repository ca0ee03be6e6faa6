/** Creates elements. All texts become text nodes, so no text from a file can become markup. */

type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | EventListener | undefined>;

/** An element. Attributes that start with "on" are listeners; true and false set or omit an attribute. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return element;
}

function asNode(child: Child): Node {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** Replace the content of an element. A focused card, or an element with an id, keeps the focus. */
export function redraw(holder: HTMLElement, ...children: (Node | string)[]): void {
  const focused = holder.contains(document.activeElement) ? document.activeElement : null;
  const [clip, id] = [focused?.getAttribute("data-clip"), focused?.id];
  holder.replaceChildren(...children);
  if (clip) holder.querySelector<HTMLElement>(`[data-clip="${CSS.escape(clip)}"]`)?.focus();
  else if (id) document.getElementById(id)?.focus();
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. */
export function svg(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

const NUMBER = /^[≈\d.,\s–-]{1,24}(%|s|min|h)?$/;
/** Names such as duplicate_rank. */
const WORD = /^[\w@-]{1,24}$/;

/** A table whose first column heads its rows. Numbers and single words stay on one line. */
export function table(caption: string, headings: string[], rows: Child[][], className = ""): HTMLTableElement {
  const head = h("tr", {}, ...headings.map((heading) => (heading ? h("th", { scope: "col" }, heading) : h("td", {}))));
  const body = rows.map((cells) =>
    h(
      "tr",
      {},
      ...cells.map((cell, i) => {
        const isText = typeof cell === "string";
        const unbroken = typeof cell === "number" || (isText && (NUMBER.test(cell) || WORD.test(cell)));
        const attributes = { class: unbroken && "unbroken" };
        return i ? h("td", attributes, cell) : h("th", { scope: "row", ...attributes }, cell);
      }),
    ),
  );
  return h("table", { class: className }, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, ...body));
}

/** A bar whose length is a share from 0 to 1. */
export function bar(share: number, className = ""): HTMLElement {
  const filled = h("span", { class: `fill ${className}` });
  filled.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** A select with its label. */
export function picker(
  label: string,
  options: [string, string][],
  value: string,
  onpick: (value: string) => void,
): HTMLLabelElement {
  const select = h("select", { onchange: () => onpick(select.value) });
  select.append(...options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", {}, `${label} `, select);
}

/** A human-readable duration. */
export function duration(seconds: number): string {
  if (seconds < 120) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 7200) return `${Number((seconds / 60).toFixed(1))} min`;
  return `${Number((seconds / 3600).toFixed(1)).toLocaleString("en")} h`;
}

/** An integer with thousands separators. */
export function count(value: number): string {
  return Math.round(value).toLocaleString("en");
}

/** A share from 0 to 1 as a percentage. */
export function percent(share: number): string {
  return Number.isFinite(share) ? `${Number((share * 100).toFixed(share < 0.001 ? 3 : 1))}%` : "–";
}
