// The text as a strip of tokens: colours, filtering, moving about.
"use strict";

const strips = traces.map((_, i) => document.getElementById(`strip-${i}`));
let tokens = traces.map(() => []); // the elements, by trace and step

function buildStrips() {
  const alignment = alignments[state.row];
  strips.forEach((strip, i) => {
    const n = lengthOf(i);
    tokens[i] = Array.from({ length: n }, (_, step) => tokenElement(i, step));
    const pieces = [...tokens[i]];
    if (alignment) {
      const own = alignment.differences[i];
      if (own !== null && own > alignment.shared) pieces.splice(own, 0, fork("own", "⑂"));
      if (alignment.differences.some((difference) => difference !== null)) {
        const text = `First difference: token ${alignment.shared + 1}`;
        pieces.splice(alignment.shared, 0, fork("", text));
        const start = tokens[i][alignment.shared]?.firstChild;
        if (start?.nodeType === Node.TEXT_NODE) start.remove(); // the blank, which would indent the new line
      }
    }
    strip.replaceChildren(...pieces);
    const row = rowOf(i);
    document.getElementById(`prompt-${i}`).textContent = row?.prompt ?? "";
    document.getElementById(`prompt-size-${i}`).textContent = row
      ? `Prompt, ${inTokens(row.prompt_tokens)}`
      : "No such row in this trace";
    document.getElementById(`ending-${i}`).textContent = row ? `${inTokens(n)}; ${row.reason}.` : "";
  });
}

function fork(kind, text) {
  return element("span", { class: `fork ${kind}`, role: "presentation" }, text);
}

function tokenElement(i, step) {
  const row = rowOf(i);
  const span = element("span", { role: "option", tabindex: "-1", "aria-selected": "false" });
  const isStop = row.finish === "stop_token" && step === row.token.length - 1;
  span.className = ["token", `strategy-${places[strategyOf(i, step)]}`].join(" ");
  span.classList.toggle("plain", traces[i].strategies.length === 1);
  span.classList.toggle("injected", row.injected.includes(step));
  span.classList.toggle("stop", isStop);
  span.classList.toggle("forked", forkAt(i, step) !== undefined);
  span.classList.toggle("returned", returnsTo(i, step).length > 0);
  span.dataset.step = step;
  // The blank before a word is part of its token, but is not painted: at the end of a line it would look odd.
  const text = shownOf(i, step);
  const [, blank, rest] = text.match(/^( ?)([^]*)$/);
  const ink = element("span", { class: "ink" });
  if (text === "") ink.append(mark("◦"));
  if (rest === "") ink.append(blank);
  rest.split("\n").forEach((line, k) => {
    if (k > 0) ink.append(mark("↵"), "\n");
    ink.append(line);
  });
  span.append(rest === "" ? "" : blank, ink);
  return span;
}

const mark = (text) => element("span", { class: "mark", "aria-hidden": "true" }, text);

// Colours by `state.colour`. A metric's colours go from its 2nd to its 98th percentile, over all traces.
function colourStrips() {
  const isStrategy = state.colour === "strategy";
  const values = isStrategy
    ? []
    : traces.flatMap((_, i) => (rowOf(i)?.columns[state.colour] ?? []).filter((v) => v !== null)).sort((a, b) => a - b);
  const low = values[Math.floor(0.02 * values.length)] ?? 0;
  const high = values[Math.ceil(0.98 * values.length) - 1] ?? 1;
  strips.forEach((strip, i) => {
    strip.classList.toggle("by-strategy", isStrategy);
    strip.classList.toggle("by-metric", !isStrategy);
    tokens[i].forEach((span, step) => {
      const value = isStrategy ? null : rowOf(i).columns[state.colour][step];
      const share = value === null ? 0 : Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
      span.style.setProperty("--share", share.toFixed(3));
      span.classList.toggle("nothing", !isStrategy && value === null);
      const account = isStrategy ? strategyOf(i, step) : `${metricByName[state.colour].title} ${format(value)}`;
      const inserted = span.classList.contains("injected") ? ", inserted" : "";
      span.setAttribute("aria-label", `${spoken(shownOf(i, step))}, ${account}${inserted}${triedInWords(i, step)}`);
    });
  });
  showLegend(isStrategy, low, high);
}

function showLegend(isStrategy, low, high) {
  const legend = document.getElementById("legend");
  const metric = metricByName[state.colour];
  legend.replaceChildren();
  if (!isStrategy) {
    const unit = metric.unit && ` ${metric.unit}`;
    legend.append(format(low), element("span", { class: "ramp" }), format(high) + unit, element("span", {}, metric.meaning));
  }
  if (traces.some((_, i) => rowOf(i)?.injected.length)) legend.append(element("span", { class: "inserted" }, "inserted"));
  const trees = traces.map((_, i) => rowOf(i)?.tree).filter(Boolean);
  if (trees.some((tree) => tree.forks.length)) legend.append(element("span", {}, element("span", { class: "forked" }), "forked"));
  if (trees.some((tree) => tree.returns.length)) legend.append(element("span", {}, element("span", { class: "returned" }), "tokens taken back"));
}

function filterStrips() {
  let shown = 0;
  tokens.forEach((spans, i) =>
    spans.forEach((span, step) => {
      const isIn = matches(i, step);
      shown += isIn;
      span.classList.toggle("out", !isIn);
      if (isIn) span.removeAttribute("aria-disabled");
      else span.setAttribute("aria-disabled", "true");
    }),
  );
  const all = tokens.reduce((sum, spans) => sum + spans.length, 0);
  document.getElementById("matching").textContent = shown === all ? inTokens(all) : `${shown} of ${inTokens(all)}`;
  for (const chip of document.querySelectorAll(".chip")) {
    const name = chip.dataset.strategy;
    const count = tokens.reduce((sum, spans, i) => sum + spans.filter((_, step) => strategyOf(i, step) === name).length, 0);
    chip.querySelector(".count").textContent = count;
    chip.setAttribute("aria-pressed", String(!state.hidden.has(name)));
  }
}

// The next token that is not filtered out, from `step` on in steps of `by`; null if there is none.
function nextShown(i, step, by) {
  for (; step >= 0 && step < tokens[i].length; step += by) if (matches(i, step)) return step;
  return null;
}

// The shown token of the line above (by = -1) or below (by = 1) that is nearest below or above this one.
function nextLine(i, step, by) {
  const here = tokens[i][step].getBoundingClientRect();
  let best = null;
  let line = null;
  for (let s = nextShown(i, step + by, by); s !== null; s = nextShown(i, s + by, by)) {
    const box = tokens[i][s].getClientRects()[0] ?? tokens[i][s].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < here.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > box.height / 2) break;
    const distance = Math.abs(box.left - here.left);
    if (best === null || distance < best.distance) best = { step: s, distance };
  }
  return best?.step ?? null;
}

strips.forEach((strip, i) => {
  strip.addEventListener("keydown", (event) => {
    const moves = {
      ArrowRight: () => nextShown(i, state.step + 1, 1),
      ArrowLeft: () => nextShown(i, state.step - 1, -1),
      ArrowDown: () => nextLine(i, state.step, 1),
      ArrowUp: () => nextLine(i, state.step, -1),
      Home: () => nextShown(i, 0, 1),
      End: () => nextShown(i, tokens[i].length - 1, -1),
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const step = moves[event.key]();
    if (step !== null) tokens[i][step].focus();
  });
  const stepOf = (event) => event.target.closest(".token")?.dataset.step;
  strip.addEventListener("focusin", (event) => {
    if (stepOf(event) !== undefined) select(i, Number(stepOf(event)));
  });
  strip.addEventListener("click", (event) => {
    if (stepOf(event) !== undefined) tokens[i][stepOf(event)].focus({ preventScroll: true });
  });
  strip.addEventListener("mouseover", (event) => {
    if (stepOf(event) !== undefined) preview(i, Number(stepOf(event)));
  });
  strip.addEventListener("mouseleave", () => preview(state.trace, state.step));
});
