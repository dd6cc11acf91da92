// The page's theme, data and plots. entropix/report/shell.py says how scripts use `report`.
"use strict";

const report = (() => {
  const root = document.documentElement;
  const { data, figures } = globalThis.payload;
  const listeners = [];
  const drawn = new Map(); // element -> its figure, as it was given

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;

  function resolve(css) {
    probe.style.color = "";
    probe.style.color = css;
    return getComputedStyle(probe).color;
  }

  const colour = (name) => resolve(`var(--${name})`);

  // A copy with every "var(--name)" replaced by what it stands for now. Typed arrays are left as they are.
  function resolved(value) {
    if (typeof value === "string") return value.startsWith("var(--") ? resolve(value) : value;
    if (Array.isArray(value)) return value.some((v) => typeof v !== "number") ? value.map(resolved) : value;
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolved(inner)]));
  }

  function themed(layout) {
    const [text, muted, line, surface] = ["text", "muted", "line", "surface"].map(colour);
    const family = getComputedStyle(document.body).fontFamily;
    const axis = { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line, automargin: true };
    const result = {
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: {},
      yaxis: {},
      ...resolved(layout),
      margin: { l: 52, r: 12, t: 12, b: 44, ...layout.margin },
      font: { family, size: 12.5, color: text, ...layout.font },
      hoverlabel: { bgcolor: surface, bordercolor: muted, font: { family, color: text }, ...layout.hoverlabel },
    };
    for (const key of Object.keys(result)) {
      if (/^[xy]axis\d*$/.test(key)) result[key] = { ...axis, ...result[key] };
    }
    return result;
  }

  // Where nothing hovers, plotly would lay its buttons over the plot for good.
  const CONFIG = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };

  function plot(element, figure) {
    drawn.set(element, figure);
    const data = figure.data.map((part) => ({ ...part, visible: !switchedOff(element).has(part.legendgroup) }));
    const hasNothing = data.every(({ y, z }) => !(z ?? y)?.some((value) => value !== null));
    const layout = hasNothing ? { ...figure.layout, annotations: [NOTHING] } : figure.layout;
    return Plotly.react(element, resolved(data), themed(layout), CONFIG);
  }

  const NOTHING = {
    text: "nothing to draw", showarrow: false,
    x: 0.5, y: 0.5, xref: "paper", yref: "paper", font: { color: "var(--muted)", size: 13 },
  };

  // The names in a plot's key whose lines are not shown.
  function switchedOff(element) {
    const buttons = document.querySelectorAll(`.key[data-figure="${element.id}"] [aria-pressed="false"]`);
    return new Set([...buttons].map((button) => button.dataset.name));
  }

  // Lines and rings over a plot that is there, without drawing it anew.
  function shapes(element, list) {
    drawn.get(element).layout.shapes = list;
    return Plotly.relayout(element, { shapes: resolved(list) });
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  const toggle = document.getElementById("theme");

  function showTheme() {
    toggle.textContent = isDark() ? "Light" : "Dark";
    for (const [element, figure] of drawn) plot(element, figure);
    for (const listener of listeners) listener();
  }

  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();

  for (const [name, figure] of Object.entries(figures)) {
    const element = document.getElementById(name);
    if (element) plot(element, figure);
  }

  // A key's buttons show and hide the lines of their name.
  for (const button of document.querySelectorAll(".key button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      const element = document.getElementById(button.closest(".key").dataset.figure);
      plot(element, drawn.get(element));
    });
  }
  return { data, figures, plot, shapes, colour, onTheme: (listener) => listeners.push(listener) };
})();
