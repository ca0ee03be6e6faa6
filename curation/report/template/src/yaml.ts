/** The rules as a file for `clipmill select --config`. */

import type { Rule, RuleSet } from "./data";
import { BOUNDS, isBounded } from "./rules";

/** YAML that gives back these rules exactly. `given` has the queries of `like`, and the rules on groups. */
export function yamlOf(
  name: string,
  rules: Map<string, Rule>,
  where: string | undefined,
  given: Omit<RuleSet, "name" | "rules" | "where">,
): string {
  const lines = [`name: ${quoted(name)}`];
  const likes = (given.like ?? []).map((like, i) => ({ like, rule: rules.get(likenessName(i)) }));
  const names = new Set(likes.map((_, i) => likenessName(i)));
  const asked = [...rules].filter(([column, rule]) => isBounded(rule) && !names.has(column));
  if (asked.length) lines.push("rules:");
  for (const [column, rule] of asked) {
    lines.push(`  ${quoted(column)}: {${boundsOf(rule).join(", ")}}`);
  }
  const bounded = likes.filter(({ rule }) => rule && isBounded(rule));
  if (bounded.length) lines.push("like:");
  for (const { like, rule } of bounded) {
    const query = (["text", "clip", "picture", "embedding"] as const).filter((key) => like[key] !== undefined);
    lines.push(`  - {${[...query.map((key) => `${key}: ${flow(like[key])}`), ...boundsOf(rule!)].join(", ")}}`);
  }
  if (where !== undefined) lines.push(`where: ${quoted(where)}`);
  for (const key of ["max_per", "balance"] as const) if (given[key]) lines.push(`${key}: ${flow(given[key])}`);
  return `${lines.join("\n")}\n`;
}

/** Name of the score of a `like`. */
function likenessName(i: number): string {
  return i ? `likeness_${i + 1}` : "likeness";
}

function boundsOf(rule: Rule): string[] {
  const bounds = BOUNDS.filter((bound) => rule[bound] !== undefined).map((bound) => `${bound}: ${value(rule[bound]!)}`);
  return rule.unscored === "keep" ? [...bounds, "unscored: keep"] : bounds;
}

/** A JSON value in one line. */
function flow(given: unknown): string {
  if (Array.isArray(given)) return `[${given.map(flow).join(", ")}]`;
  if (typeof given === "object" && given !== null) {
    return `{${Object.entries(given)
      .map(([key, inner]) => `${quoted(key)}: ${flow(inner)}`)
      .join(", ")}}`;
  }
  return value(given as string | number);
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
