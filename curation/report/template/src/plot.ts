/** Colours and axes of the plots. */

import type uPlot from "uplot";

/** The current value of a colour of the style sheet. */
export const colour = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** An axis with a label and a faint grid. */
export function axis(label: string): uPlot.Axis {
  return {
    label,
    stroke: () => colour("--text"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
    font: "11px system-ui",
    labelFont: "12px system-ui",
    labelSize: 22,
  };
}

/** Call a function whenever the colours of the page change: light or dark, screen or paper. */
export function onColours(changed: () => void): void {
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", changed);
}
