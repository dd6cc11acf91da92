// The plots: points from the rows, on the axes and regions that entropix/report/plots.py has made.
"use strict";

const figureOf = (name) => report.figures[name];
const regionsOf = traces.map((_, i) => figureOf(`scatter-${i}`).data);
const PLANE = ["logits_entropy", "logits_varentropy"]; // the axes that the regions are made for
const limits = [0, 1].map((axis) => figureOf("scatter-0").layout[axis ? "yaxis" : "xaxis"].range);

const paint = (strategy) => report.data.palette[places[strategy]];
const symbol = (strategy) => report.data.marks[places[strategy]];

// {strategy: [steps]} of the tokens that are not filtered out.
function stepsByStrategy(i) {
  const steps = Object.fromEntries(traces[i].strategies.map((name) => [name, []]));
  for (let step = 0; step < lengthOf(i); step++) if (matches(i, step)) steps[strategyOf(i, step)].push(step);
  return steps;
}

const axes = () => [at("across").value, at("up").value];

// The rule's regions, where both axes are those that it chooses by.
function regions(i) {
  const [across, up] = axes().map((name) => PLANE.indexOf(name));
  if (across < 0 || up < 0 || across === up) return [];
  return across === 0 ? regionsOf[i] : regionsOf[i].map((map) => ({ ...map, x: map.y, y: map.x, transpose: true }));
}

// Lines at the rule's thresholds on an axis, where the other is none that it chooses by.
function thresholds(i) {
  const [map] = regionsOf[i];
  const places = axes().map((name) => PLANE.indexOf(name));
  if (!map || regions(i).length) return [];
  return places.flatMap((place, axis) =>
    place < 0 ? [] : map["xy"[place]].slice(1, -1).map((edge) => (axis ? { ...rule(edge, "dot"), ...LYING(edge) } : rule(edge, "dot"))),
  );
}
const LYING = (y) => ({ x0: 0, x1: 1, xref: "paper", y0: y, y1: y, yref: "y" });

// The same for all traces, so that they can be compared.
function rangeOf(name) {
  if (PLANE.includes(name)) return limits[PLANE.indexOf(name)];
  const values = traces.flatMap((_, i) => (rowOf(i)?.columns[name] ?? []).filter((value) => value !== null));
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const room = 0.04 * (high - low || 1);
  return values.length === 0 ? [0, 1] : [low - room, high + room];
}

function drawScatter(i) {
  const figure = figureOf(`scatter-${i}`);
  const names = axes();
  const [across, up] = names.map((name) => rowOf(i)?.columns[name] ?? []);
  const [right, above] = names.map((name) => metricByName[name]);
  const points = Object.entries(stepsByStrategy(i)).map(([strategy, steps]) => ({
    type: "scatter",
    mode: "markers",
    name: strategy,
    x: steps.map((step) => across[step]),
    y: steps.map((step) => up[step]),
    customdata: steps,
    text: steps.map((step) => plain(quoted(textOf(i, step)))),
    hovertemplate: `%{text}<br>${plain(strategy)}<br>%{x:.4g} ${right.unit}, %{y:.4g} ${above.unit}<extra></extra>`,
    marker: { color: paint(strategy), symbol: symbol(strategy), size: 8, line: { width: 1, color: "var(--ground)" } },
  }));
  figure.data = [...regions(i), ...points];
  Object.assign(figure.layout.xaxis, { title: { text: right.axis }, range: rangeOf(right.name) });
  Object.assign(figure.layout.yaxis, { title: { text: above.axis }, range: rangeOf(above.name) });
  at(`scatter-${i}`).setAttribute("aria-label", `${right.title} and ${above.title} of ${lengthOf(i)} tokens by ${traces[i].sampler}.`);
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

// The mean of the numbers at most so far from each token; null where it has none itself.
function smoothed(values, width) {
  const half = (width - 1) / 2;
  return values.map((value, step) => {
    const near = values.slice(Math.max(0, step - half), step + half + 1).filter((each) => each !== null);
    return value === null ? null : near.reduce((sum, each) => sum + each, 0) / near.length;
  });
}

function drawSeries() {
  const figure = figureOf("series");
  const chosen = [at("above").value, at("below").value];
  const width = Number(at("smoothing").value);
  const isDifference = at("difference")?.checked ?? false;
  const column = (i, name) => rowOf(i)?.columns[name] ?? [];
  figure.data = chosen.flatMap((name, panel) =>
    traces.flatMap((trace, i) => {
      if (isDifference && i === 0) return [];
      const first = column(0, name);
      const both = (value, step) => (value === null || first[step] === null ? null : value - first[step]);
      const values = isDifference ? column(i, name).slice(0, first.length).map(both) : column(i, name);
      const { color, dash } = trace.look;
      const base = {
        type: "scatter",
        mode: "lines",
        legendgroup: trace.name,
        yaxis: panel ? "y2" : "y",
        x: values.map((_, step) => step + 1),
      };
      const line = {
        ...base,
        name: plain(trace.name),
        y: smoothed(values, width),
        customdata: values.map((_, step) => [i, step]),
        text: values.map((_, step) => plain(quoted(textOf(i, step)))),
        hovertemplate: `%{x}: %{text}<br>%{y:.4g} ${metricByName[name].unit}<extra>${plain(trace.name)}</extra>`,
        line: { color, dash, width: width > 1 ? 2.25 : 1.25 },
      };
      // Behind a mean what it is one of.
      const pale = { ...base, y: values, opacity: 0.3, line: { color, width: 1 }, hoverinfo: "skip" };
      return width > 1 ? [pale, line] : [line];
    }),
  );
  const title = (name) => ({ text: `${isDifference ? "Δ " : ""}${metricByName[name].axis}` });
  Object.assign(figure.layout.yaxis, { title: title(chosen[0]), rangemode: isDifference ? "normal" : "tozero" });
  Object.assign(figure.layout.yaxis2, { title: title(chosen[1]), rangemode: isDifference ? "normal" : "tozero" });
  at("series").setAttribute("aria-label", `${chosen.map((name) => metricByName[name].title).join(" and ")} of every token.`);
  return report.plot(at("series"), figure);
}

function drawHeads(i, step) {
  const bits = step < lengthOf(i) ? headsOf(i, step) : null;
  at("heads-section").hidden = !bits;
  if (!bits) return;
  const figure = figureOf("heads");
  figure.data = [
    {
      type: "heatmap",
      z: bits, // [layer][head]
      transpose: true,
      zmin: 0,
      zmax: rowOf(i).heads.largest,
      colorscale: [[0, "var(--surface)"], [1, "var(--heat-full)"]],
      colorbar: { title: { text: "bits" }, thickness: 8, outlinewidth: 0, len: 1 },
      hovertemplate: "layer %{x}, head %{y}: %{z:.2f} bits<extra></extra>",
    },
  ];
  const all = bits.flat().filter((value) => value !== null);
  const extremes = all.length ? `from ${format(Math.min(...all))} to ${format(Math.max(...all))} bits` : "no numbers";
  at("heads").setAttribute("aria-label", `Attention entropy of ${bits.length} layers × ${bits[0].length} heads: ${extremes}.`);
  figure.layout.xaxis.dtick = bits.length > 8 ? undefined : 1; // whole numbers
  figure.layout.yaxis.dtick = bits[0].length > 8 ? undefined : 1;
  at("heads").style.height = `${Math.min(24, Math.max(9, 6 + 0.625 * bits[0].length))}rem`;
  report.plot(at("heads"), figure);
}

// Marks a token in all plots of its trace, and the same step in those over time.
function markCharts(i, step) {
  traces.forEach((_, j) => {
    const row = rowOf(j);
    const [x, y] = axes().map((name) => row?.columns[name][step]);
    const isHere = j === i && typeof x === "number" && typeof y === "number";
    report.shapes(at(`scatter-${j}`), [...thresholds(j), ...(isHere ? [ring(x, y)] : [])]);
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
