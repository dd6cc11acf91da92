// The plots: points from the rows, on the axes and regions that entropix/report/plots.py has made.
"use strict";

const at = (name) => document.getElementById(name);
const figureOf = (name) => report.figures[name];
const regionsOf = traces.map((_, i) => figureOf(`scatter-${i}`).data);
const TRACE_COLOURS = ["var(--accent)", ...report.data.palette.slice(1).reverse()];

const paint = (strategy) => report.data.palette[places[strategy]];
const symbol = (strategy) => report.data.marks[places[strategy]];

// {strategy: [steps]} of the tokens that are not filtered out.
function stepsByStrategy(i) {
  const steps = Object.fromEntries(traces[i].strategies.map((name) => [name, []]));
  for (let step = 0; step < lengthOf(i); step++) if (matches(i, step)) steps[strategyOf(i, step)].push(step);
  return steps;
}

function drawScatter(i) {
  const figure = figureOf(`scatter-${i}`);
  const { logits_entropy = [], logits_varentropy = [] } = rowOf(i)?.columns ?? {};
  const points = Object.entries(stepsByStrategy(i)).map(([strategy, steps]) => ({
    type: "scatter",
    mode: "markers",
    name: strategy,
    x: steps.map((step) => logits_entropy[step]),
    y: steps.map((step) => logits_varentropy[step]),
    customdata: steps,
    text: steps.map((step) => plain(quoted(textOf(i, step)))),
    hovertemplate: `%{text}<br>${plain(strategy)}<br>%{x:.4g} bits, %{y:.4g} bits²<extra></extra>`,
    marker: { color: paint(strategy), symbol: symbol(strategy), size: 8, line: { width: 1, color: "var(--ground)" } },
  }));
  figure.data = [...regionsOf[i], ...points];
  at(`scatter-${i}`).setAttribute("aria-label", `Entropy and varentropy of ${lengthOf(i)} tokens by ${traces[i].sampler}.`);
  return report.plot(at(`scatter-${i}`), figure);
}

function drawTimeline(i) {
  const figure = figureOf(`timeline-${i}`);
  const names = traces[i].strategies;
  const n = lengthOf(i);
  const counts = names.map((name) => rowOf(i)?.strategy.filter((s) => names[s] === name).length ?? 0);
  const shown = stepsByStrategy(i);
  figure.data = names.map((name, lane) => ({
    type: "scatter",
    mode: "markers",
    name,
    x: shown[name].map((step) => step + 1),
    y: shown[name].map(() => lane),
    customdata: shown[name],
    text: shown[name].map((step) => plain(quoted(textOf(i, step)))),
    hovertemplate: `%{x}: %{text}<extra></extra>`,
    marker: { color: paint(name), symbol: "line-ns-open", size: 14, line: { width: n > 400 ? 1 : 2, color: paint(name) } },
  }));
  figure.layout.xaxis.range = [0, n + 1];
  Object.assign(figure.layout.yaxis, {
    tickvals: names.map((_, lane) => lane),
    ticktext: names.map((name, lane) => `${plain(name)}  ${counts[lane]} (${n ? Math.round((100 * counts[lane]) / n) : 0} %)`),
    range: [names.length - 0.4, -0.6],
    autorange: false,
  });
  const account = names.map((name, lane) => `${name} ${counts[lane]}`).join(", ");
  at(`timeline-${i}`).setAttribute("aria-label", `Strategies of ${n} tokens by ${traces[i].sampler}: ${account}.`);
  return report.plot(at(`timeline-${i}`), figure);
}

function drawSeries() {
  const figure = figureOf("series");
  const chosen = [at("above").value, at("below").value];
  figure.data = chosen.flatMap((name, panel) =>
    traces.map((trace, i) => {
      const values = rowOf(i)?.columns[name] ?? [];
      const colour = TRACE_COLOURS[i % TRACE_COLOURS.length];
      return {
        type: "scatter",
        mode: "lines",
        name: traceName(i),
        legendgroup: String(i),
        showlegend: panel === 0 && traces.length > 1,
        yaxis: panel ? "y2" : "y",
        x: values.map((_, step) => step + 1),
        y: values,
        customdata: values.map((_, step) => [i, step]),
        text: values.map((_, step) => plain(quoted(textOf(i, step)))),
        hovertemplate: `%{x}: %{text}<br>%{y:.4g} ${metricByName[name].unit}<extra>${traceName(i)}</extra>`,
        line: { color: colour, dash: trace.dash, width: 1.25 },
      };
    }),
  );
  figure.layout.yaxis.title = { text: metricByName[chosen[0]].axis };
  figure.layout.yaxis2.title = { text: metricByName[chosen[1]].axis };
  at("series").setAttribute("aria-label", `${chosen.map((name) => metricByName[name].title).join(" and ")} of every token.`);
  return report.plot(at("series"), figure);
}

// Samplers, and the files where two have the same.
function traceName(i) {
  const { sampler, file } = traces[i];
  return plain(traces.filter((other) => other.sampler === sampler).length > 1 ? `${sampler}, ${file}` : sampler);
}

function drawHeads(i, step) {
  const bits = step < lengthOf(i) ? headsOf(i, step) : null;
  at("heads-section").hidden = !bits;
  if (!bits) return;
  const figure = figureOf("heads");
  figure.data = [
    {
      type: "heatmap",
      z: bits,
      zmin: 0,
      zmax: rowOf(i).heads.largest,
      colorscale: [[0, "var(--surface)"], [1, "var(--heat-full)"]],
      colorbar: { title: { text: "bits" }, thickness: 8, outlinewidth: 0, len: 0.6 },
      hovertemplate: "layer %{y}, head %{x}: %{z:.3f} bits<extra></extra>",
    },
  ];
  const all = bits.flat().filter((value) => value !== null);
  const extremes = all.length ? `from ${format(Math.min(...all))} to ${format(Math.max(...all))} bits` : "no numbers";
  at("heads").setAttribute("aria-label", `Attention entropy of ${bits.length} layers × ${bits[0].length} heads: ${extremes}.`);
  report.plot(at("heads"), figure);
}

// Marks a token in all plots of its trace, and the same step in those over time.
function markCharts(i, step) {
  traces.forEach((_, j) => {
    const row = rowOf(j);
    const x = row?.columns.logits_entropy[step];
    const y = row?.columns.logits_varentropy[step];
    const isHere = j === i && typeof x === "number" && typeof y === "number";
    report.shapes(at(`scatter-${j}`), isHere ? [ring(x, y)] : []);
    report.shapes(at(`timeline-${j}`), step < lengthOf(j) ? [rule(step + 1, "dot")] : []);
  });
  const alignment = alignments[state.row];
  const differs = alignment?.differences.some((difference) => difference !== null);
  report.shapes(at("series"), [
    ...(step < lengthOf(i) ? [rule(step + 1, "dot")] : []),
    ...(differs ? [{ ...rule(alignment.shared + 0.5, "solid"), label: { text: "first difference", textangle: 0, textposition: "end", xanchor: "left", font: { size: 11, color: "var(--accent)" } } }] : []),
  ]);
}

const rule = (x, dash) => ({
  type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper",
  line: { color: dash === "solid" ? "var(--accent)" : "var(--muted)", width: 1, dash },
});
const ring = (x, y) => ({
  type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y,
  x0: -8, x1: 8, y0: -8, y1: 8, line: { color: "var(--text)", width: 2 },
});

// plotly reads some HTML in texts, and %{...} in templates.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%\u200b{");

function drawCharts() {
  return Promise.all([...traces.flatMap((_, i) => [drawScatter(i), drawTimeline(i)]), drawSeries()]);
}

function connectCharts() {
  const connect = (name, read) => {
    at(name).on("plotly_click", ({ points }) => {
      const [i, step] = read(points[0].customdata);
      tokens[i][step].focus();
    });
    at(name).on("plotly_hover", ({ points }) => preview(...read(points[0].customdata)));
    at(name).on("plotly_unhover", () => preview(state.trace, state.step));
  };
  traces.forEach((_, i) => {
    connect(`scatter-${i}`, (step) => [i, step]);
    connect(`timeline-${i}`, (step) => [i, step]);
  });
  connect("series", (both) => both);
}
