// Builds page.js and page.css, which the package carries: node build.mjs [--check]
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const script = await build({
  entryPoints: ["src/main.ts"], bundle: true, minify: true, format: "iife", target: "es2022", charset: "ascii",
  legalComments: "inline", write: false, logLevel: "error",
});
const style = await build({
  stdin: { contents: '@import "uplot/dist/uPlot.min.css"; @import "./src/page.css";', loader: "css", resolveDir: "." },
  bundle: true, minify: true, charset: "utf8", write: false, logLevel: "error",
});
const licence = readFileSync("node_modules/uplot/LICENSE", "utf8").trim();
const built = {
  "page.js": `/*! uPlot 1.6.32\n${licence}\n*/\n${script.outputFiles[0].text}`,
  "page.css": style.outputFiles[0].text,
};
for (const [name, text] of Object.entries(built)) {
  if (process.argv.includes("--check")) {
    if (readFileSync(name, "utf8") !== text) throw new Error(`${name} is not what src/ gives: run make page`);
  } else writeFileSync(name, text);
}
