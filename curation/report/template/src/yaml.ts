/** The rules as a file for `clipmill select --config`. */

import type { Rule } from "./data";
import { BOUNDS, isBounded } from "./rules";

/** YAML that gives back these rules exactly. */
export function yamlOf(name: string, rules: Map<string, Rule>, where: string | undefined): string {
  const lines = [`name: ${quoted(name)}`];
  const asked = [...rules].filter(([, rule]) => isBounded(rule));
  if (asked.length) lines.push("rules:");
  for (const [column, rule] of asked) {
    const bounds = BOUNDS.filter((bound) => rule[bound] !== undefined).map(
      (bound) => `${bound}: ${value(rule[bound]!)}`,
    );
    if (rule.unscored === "keep") bounds.push("unscored: keep");
    lines.push(`  ${quoted(column)}: {${bounds.join(", ")}}`);
  }
  if (where !== undefined) lines.push(`where: ${quoted(where)}`);
  return `${lines.join("\n")}\n`;
}

function value(bound: string | number): string {
  if (typeof bound === "string") return quoted(bound);
  const text = String(bound);
  return text.includes("e") && !text.includes(".") ? text.replace("e", ".0e") : text; // without a dot, it is a text
}

/** A text in quotes; what is not plain ASCII is escaped. */
function quoted(text: string): string {
  if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(text) && !/^(y|n|yes|no|on|off|true|false|null)$/i.test(text)) return text;
  const escaped = Array.from(text, (character) => {
    const code = character.codePointAt(0)!;
    if (character === '"' || character === "\\") return `\\${character}`;
    if (code >= 0x20 && code < 0x7f) return character;
    return `\\U${code.toString(16).padStart(8, "0")}`;
  });
  return `"${escaped.join("")}"`;
}
