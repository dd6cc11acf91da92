// The traces, and what is chosen at the moment. entropix/report/packing.py says how a row is packed.
"use strict";

const at = (name) => document.getElementById(name);
const { traces, texts, metrics, alignments, places } = report.data;
const metricByName = Object.fromEntries(metrics.map((metric) => [metric.name, metric]));

const state = {
  row: 0,
  colour: "strategy",
  hidden: new Set(), // strategies
  metric: "", // whose values must be from `least` to `most`
  least: -Infinity,
  most: Infinity,
  trace: 0, // of the selected token
  step: 0,
};

const rowOf = (i) => traces[i].rows[state.row]; // undefined where a trace has fewer rows
const lengthOf = (i) => rowOf(i)?.token.length ?? 0;
const strategyOf = (i, step) => traces[i].strategies[rowOf(i).strategy[step]];
const textOf = (i, step) => texts.text[rowOf(i).token[step]];
const shownOf = (i, step) => rowOf(i).shown[step] ?? textOf(i, step);

const forkAt = (i, step) => rowOf(i)?.tree?.forks.find((fork) => fork.step === step);
const returnsTo = (i, step) => rowOf(i)?.tree?.returns.filter((each) => each.step === step) ?? [];

function matches(i, step) {
  if (state.hidden.has(strategyOf(i, step))) return false;
  if (!state.metric) return true;
  const value = rowOf(i).columns[state.metric][step];
  return value !== null && value >= state.least && value <= state.most;
}

// [layer][head] of a token's attention entropies in bits, null where there is no number. Rows are decoded once.
const decodedHeads = new Map();
function headsOf(i, step) {
  const { heads } = rowOf(i);
  if (!heads) return null;
  if (!decodedHeads.has(heads)) {
    decodedHeads.set(heads, Uint8Array.from(atob(heads.levels), (letter) => letter.charCodeAt(0)));
  }
  const levels = decodedHeads.get(heads);
  return Array.from({ length: heads.layers }, (_, layer) =>
    Array.from({ length: heads.heads }, (_, head) => {
      const level = levels[(step * heads.layers + layer) * heads.heads + head];
      return level === 255 ? null : (level / 254) * heads.largest;
    }),
  );
}

// Four significant digits with a true minus sign; a dash for no number.
function format(value) {
  if (value === null || value === undefined) return "–";
  const short = Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  return short.replace("-", "−");
}

const inTokens = (n) => `${n} token${n === 1 ? "" : "s"}`;
const percent = (logprob) => (logprob === null ? "–" : `${format(100 * Math.exp(logprob))} %`);

// "‘ the’": a text in quotes, with what cannot be seen made visible.
function quoted(text) {
  const visible = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  return visible === "" ? "‘’" : `‘${visible}’`;
}

// For screen readers, which skip punctuation and blanks.
function spoken(text) {
  if (text === "") return "part of a character";
  if (text.trim() !== "") return text.trim();
  return text.includes("\n") ? "line break" : "blank";
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
