// What follows from what: controls change `state`, and the parts that depend on it are drawn anew.
"use strict";

let pending = 0;

// Shows a token in the details and in the plots, without selecting it.
function preview(i, step) {
  showDetails(i, step);
  tokens.forEach((spans, j) => {
    const peer = tokens[j].find((span) => span.classList.contains("peer"));
    peer?.classList.remove("peer");
    if (j !== i) spans[step]?.classList.add("peer");
  });
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    drawHeads(i, step);
    markCharts(i, step);
    markTree(i, step);
  });
}

function select(i, step) {
  for (const span of document.querySelectorAll('.token[aria-selected="true"]')) span.setAttribute("aria-selected", "false");
  tokens.forEach((spans, j) => {
    for (const span of strips[j].querySelectorAll('[tabindex="0"]')) span.tabIndex = -1;
    const entry = spans[Math.min(step, spans.length - 1)];
    if (entry) entry.tabIndex = 0;
  });
  state.trace = i;
  state.step = step;
  if (step < tokens[i].length) {
    tokens[i][step].setAttribute("aria-selected", "true");
    announce(i, step);
  }
  preview(i, step);
}

function showRow() {
  buildStrips();
  colourStrips();
  filterStrips();
  drawTrees();
  drawCharts();
  const first = Math.max(0, traces.findIndex((_, i) => lengthOf(i) > 0));
  select(first, 0);
}

function showFiltered() {
  filterStrips();
  drawCharts();
  preview(state.trace, state.step);
}

function chooseRow(row) {
  state.row = row;
  if (at("row")) at("row").value = row;
  showRow();
}

at("row")?.addEventListener("change", (event) => chooseRow(Number(event.target.value)));
at("colour").addEventListener("change", (event) => {
  state.colour = event.target.value;
  colourStrips();
});
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const name = chip.dataset.strategy;
    if (!state.hidden.delete(name)) state.hidden.add(name);
    showFiltered();
  });
}
for (const name of ["metric", "least", "most"]) {
  at(name).addEventListener("input", () => {
    state.metric = at("metric").value;
    state.least = at("least").value === "" ? -Infinity : Number(at("least").value);
    state.most = at("most").value === "" ? Infinity : Number(at("most").value);
    showFiltered();
  });
}
for (const name of ["above", "below", "smoothing", "difference"]) at(name)?.addEventListener("change", drawSeries);
for (const name of ["across", "up"]) {
  at(name).addEventListener("change", () => {
    traces.forEach((_, i) => drawScatter(i));
    preview(state.trace, state.step);
  });
}

// Where there is room, nothing is folded.
const wide = matchMedia("(min-width: 62rem)");
const unfold = () => { at("filter").open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();

for (const name of ["controls", "details"]) {
  const part = document.querySelector(`.${name}`);
  new ResizeObserver(() => {
    document.documentElement.style.setProperty(`--${name}`, `${part.offsetHeight}px`);
  }).observe(part);
}

chooseRow(Math.max(0, traces[0].paths?.rows.findIndex(({ chosen }) => chosen) ?? 0));
connectCharts();
connectPaths();
