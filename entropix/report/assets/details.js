// All about one token.
"use strict";

const SETTINGS = [
  ["temperature", "temperature", () => false],
  ["top_p", "top-p", (value) => value === 1],
  ["top_k", "top-k", (value, i) => value === traces[i].vocabulary],
  ["min_p", "min-p", (value) => value === 0],
  ["kept", "tokens kept", () => false],
];

function showDetails(i, step) {
  const row = rowOf(i);
  if (!row || step >= row.token.length) {
    at("details-token").replaceChildren(element("p", { class: "muted" }, "No token."));
    at("details-numbers").replaceChildren();
    return;
  }
  const { columns } = row;
  const isInserted = row.injected.includes(step);
  const facts = [
    ...(traces.length > 1 ? [traces[i].name] : []),
    `token ${step + 1} of ${row.token.length}`,
    `id ${texts.id[row.token[step]]}`,
    strategyOf(i, step) + (isInserted ? ", inserted" : ""),
  ];
  const settings = SETTINGS.map(([name, title, isOff]) => {
    const value = columns[name][step];
    return line(name, title, format(value), isOff(value, i) ? "off" : "");
  });
  const probability = [
    line("logprob", "log-probability", format(columns.logprob[step]), "nats"),
    line("probability", "probability", percent(columns.logprob[step]), ""),
    line("draw_logprob", "when drawn", format(columns.draw_logprob[step]), "nats"),
    ...(columns.score[step] === null ? [] : [line("score", "score", format(columns.score[step]), "nats")]),
  ];
  at("details-token").replaceChildren(
    element("p", { class: "quote", "data-name": "text" }, quoted(textOf(i, step))),
    element("p", { class: "facts muted", "data-name": "facts" }, facts.join(" · ")),
    glance(i, step),
    ...triedTable(i, step),
    ...alternativesTable(i, step),
  );
  at("details-numbers").replaceChildren(
    element("div", { class: "pair" }, table("The token", probability), table("Settings in force", settings)),
    table(
      "Metrics",
      metrics.map(({ name, title, unit, meaning }) => line(name, title, format(columns[name][step]), unit, meaning)),
    ),
  );
}

// What a narrow window has room for before one scrolls to the rest, which says the same again.
function glance(i, step) {
  const { columns } = rowOf(i);
  const told = [
    ["probability", percent(columns.logprob[step])],
    ["entropy", `${format(columns.logits_entropy[step])} bits`],
    ["varentropy", `${format(columns.logits_varentropy[step])} bits²`],
    ["temperature", format(columns.temperature[step])],
  ];
  const parts = told.map(([name, value]) => element("span", {}, element("span", { class: "muted" }, name), value));
  return element("p", { class: "glance", "aria-hidden": "true" }, ...parts);
}

function line(name, title, value, unit, meaning = "") {
  return element(
    "tr",
    { "data-name": name, title: meaning },
    element("th", { scope: "row" }, title),
    element("td", {}, value),
    element("td", { class: "unit" }, unit),
  );
}

const table = (caption, rows) =>
  element("table", {}, element("caption", {}, caption), element("tbody", {}, ...rows));

// The alternatives before and after filtering; the token itself after them where it is not among them.
function alternativesTable(i, step) {
  const { alternatives, token, columns } = rowOf(i);
  if (!alternatives) return [];
  const indices = [];
  for (let a = alternatives.start[step]; a < alternatives.start[step + 1]; a++) indices.push(a);
  const entries = indices.map((a) => [alternatives.token[a], alternatives.logprob[a], alternatives.draw_logprob[a]]);
  const isAmong = entries.some(([place]) => place === token[step]);
  if (!isAmong) entries.push([token[step], columns.logprob[step], columns.draw_logprob[step]]);
  const head = ["", "before (%)", "after (%)"].map((title) => element("th", { scope: "col" }, title));
  const rows = entries.map(([place, before, after]) => {
    const isChosen = place === token[step];
    return element(
      "tr",
      { class: isChosen ? "chosen" : "", "data-id": texts.id[place] },
      element("th", { scope: "row" }, quoted(texts.text[place]) + (isChosen ? " ◂" : "")),
      share(before, "–"),
      share(after, "out"),
    );
  });
  return [
    element(
      "table",
      { class: "alternatives" },
      element("caption", {}, "Likeliest, before and after filtering"),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows),
    ),
  ];
}

// A probability in percent over a bar as long, with two decimals that stand below each other.
function share(logprob, without) {
  const p = logprob === null ? 0 : Math.exp(logprob);
  const text = logprob === null ? without : p < 0.00005 ? "<0.01" : (100 * p).toFixed(2);
  const cell = element("td", { title: percent(logprob) }, text);
  cell.style.setProperty("--share", p.toFixed(3));
  return cell;
}

// A sentence, read out when a token is selected.
function announce(i, step) {
  const { columns, injected } = rowOf(i);
  document.getElementById("announcement").textContent = [
    `${spoken(shownOf(i, step))}: ${strategyOf(i, step)}${injected.includes(step) ? ", inserted" : ""}${triedInWords(i, step)}`,
    `probability ${percent(columns.logprob[step])}`,
    `entropy ${format(columns.logits_entropy[step])} bits`,
    `varentropy ${format(columns.logits_varentropy[step])} bits squared`,
    `temperature ${format(columns.temperature[step])}, ${columns.kept[step]} tokens kept`,
  ].join("; ");
}
