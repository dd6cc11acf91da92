// What was tried besides: at a token, and as drawings. entropix/report/tree.py has the numbers, the words and the lanes.
"use strict";

// A longer text in quotes: blanks are made visible at its ends alone, so that its lines can break.
const phrase = (text) => `‘${text.replaceAll("\n", "↵").replace(/^ | $/g, "␣")}’`;

// ----- at a token -----

function triedInWords(i, step) {
  const fork = forkAt(i, step);
  const words = fork ? [`forked into ${fork.paths.length} paths`] : [];
  for (const { tokens } of returnsTo(i, step)) words.push(`${inTokens(tokens)} taken back`);
  return words.map((word) => `, ${word}`).join("");
}

function triedTable(i, step) {
  const fork = forkAt(i, step);
  const back = returnsTo(i, step);
  const made = [];
  if (fork) {
    const head = ["", "score", "tokens"].map((title) => element("th", { scope: "col" }, title));
    const rows = fork.paths.map(({ text, score, tokens, chosen }, k) =>
      element(
        "tr",
        { class: chosen ? "chosen" : "", "data-path": k },
        element("th", { scope: "row" }, phrase(text) + (chosen ? "\u00a0◂" : "")),
        element("td", {}, format(score)),
        element("td", {}, String(tokens)),
      ),
    );
    made.push(
      element(
        "table",
        { class: "tried" },
        element("caption", {}, "Paths tried from here"),
        element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, ...rows),
      ),
      element("p", { "data-name": "why" }, `${fork.why} ${fork.cost}`),
    );
  }
  if (back.length) {
    made.push(
      element(
        "table",
        { class: "tried back" },
        element("caption", {}, "Taken back here"),
        element("tbody", {}, ...back.map(({ text, tokens }) =>
          element("tr", {}, element("th", { scope: "row" }, phrase(text)), element("td", {}, inTokens(tokens))),
        )),
      ),
    );
  }
  return made;
}

// ----- drawing -----

const EDGE = 10; // px around a drawing
const LABEL = 170; // px for the names of paths
const BEND = 6; // px: the radius of a corner
const LETTER = 6.25; // px: the width of one, on average
const WORDS = 22; // letters of a label

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(document.querySelector(".drawing svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Pixels from a token to the next, so that n of them fill the width where they can.
const unitFor = (n, width) => Math.min(24, Math.max(4, width / Math.max(n, 1)));

// The first words of a text, in so many letters at most.
function firstWords(text, most = WORDS) {
  const line = text.trim() === "" ? quoted(text) : text.trim().replaceAll("\n", "↵");
  if (line.length <= most) return line;
  const cut = line.slice(0, most - 1);
  return `${cut.slice(0, cut.lastIndexOf(" ") > most / 2 ? cut.lastIndexOf(" ") : most)}…`;
}

// For each span [from, to], sorted by where it begins, the first lane where it overlaps no other.
function lanes(spans) {
  const ends = [];
  return spans.map(([from, to]) => {
    const free = ends.findIndex((occupied) => occupied <= from);
    const lane = free < 0 ? ends.length : free;
    ends[lane] = to;
    return lane;
  });
}

// Colours by score: a function from one to a style, and the key, [lowest, highest]; no key where all are alike.
function shading(scores) {
  const known = scores.filter((score) => score !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const style = (score) => (score === null || low === high ? "" : `--score: ${((score - low) / (high - low)).toFixed(3)}`);
  return [style, known.length && low !== high ? [low, high] : null];
}

function showKey(box, measure, unit, ends) {
  box.hidden = !ends;
  if (!ends) return;
  const high = unit ? `${format(ends[1])} ${unit}` : format(ends[1]);
  box.replaceChildren(`${measure}: `, format(ends[0]), element("span", { class: "ramp score" }), high);
}

// From a line at `from` down or up to `to`, and along there.
function bent(x, from, to, end) {
  const bend = Math.min(BEND, Math.abs(to - from), Math.max(1, end - x));
  const down = Math.sign(to - from);
  return down === 0 ? `M${x} ${to}H${end}` : `M${x} ${from}V${to - down * bend}Q${x} ${to} ${x + bend} ${to}H${end}`;
}

// Ticks under a drawing, at round tokens.
function axis(n, unit, y) {
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((k) => k * unit >= 44) ?? 2000;
  const ticks = [];
  for (let token = every; token <= n; token += every) {
    const x = EDGE + (token - 0.5) * unit;
    ticks.push(
      drawn("path", { class: "axis", d: `M${x} ${EDGE / 2}V${y}` }),
      drawn("text", { x, y: y + 13, "text-anchor": "middle" }, String(token)),
    );
  }
  const title = drawn("text", { x: EDGE + (n * unit) / 2, y: y + 29, "text-anchor": "middle" }, "token");
  return drawn("g", { "aria-hidden": "true" }, ...ticks, title);
}

// A line that can be pointed at and focused, with a dot at [x, y]. `says` is [what it is, its text, more about it].
function item(kind, d, [x, y], says, ...more) {
  return drawn(
    "g",
    { class: `item ${kind}`, role: "option", tabindex: "-1", "aria-selected": "false", "aria-label": `${says[0]}: ${says[1]}; ${says[2]}` },
    drawn("path", { class: "hit", d }),
    drawn("path", { class: "line", d }),
    drawn("circle", { class: "end", cx: x, cy: y, r: 2.75 }),
    ...more,
  );
}

// A label, and a ground that keeps lines out of it.
const words = (x, y, text) => [
  drawn("rect", { x: x - 2, y: y - 11, width: text.length * LETTER + 4, height: 14 }),
  drawn("text", { class: "words", x, y }, text),
];

// Puts a drawing in its place, the labels over all lines. `items` are [element, says, show, act]: what pointing at it shows, and choosing it does.
function place(box, readout, width, height, background, items, labels = []) {
  const svg = box.querySelector("svg");
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.replaceChildren(...background, ...items.map(([made]) => made), ...labels);
  const tell = (says) =>
    readout.replaceChildren(...(says ? [`${says[0]}: `, element("q", {}, says[1]), `; ${says[2]}`] : [readout.dataset.hint]));
  items.forEach(([made, says, show, act], k) => {
    const point = () => {
      tell(says);
      show();
    };
    made.addEventListener("mouseenter", point);
    made.addEventListener("mouseleave", () => {
      tell(items.find(([other]) => other === document.activeElement)?.[1]);
      preview(state.trace, state.step);
    });
    made.addEventListener("click", act);
    made.addEventListener("focus", () => {
      items.forEach(([other]) => {
        other.setAttribute("tabindex", other === made ? "0" : "-1");
        other.setAttribute("aria-selected", String(other === made));
      });
      point();
    });
    made.addEventListener("keydown", (event) => {
      const last = items.length - 1;
      const moves = { ArrowRight: k + 1, ArrowDown: k + 1, ArrowLeft: k - 1, ArrowUp: k - 1, Home: 0, End: last };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves) items[Math.min(last, Math.max(0, moves[event.key]))][0].focus();
      else if (event.key === "Enter" || event.key === " ") act();
      else return;
      event.preventDefault();
    });
  });
  items[0]?.[0].setAttribute("tabindex", "0");
  tell();
}

// ----- forks inside a row -----

const PITCH = 17; // px from lane to lane

function drawBranches(i) {
  const tree = rowOf(i)?.tree;
  at(`branching-${i}`).hidden = !tree;
  if (!tree) return;
  const n = lengthOf(i);
  const box = at(`branch-tree-${i}`);
  const room = Math.max(box.clientWidth, 320) - 4 * EDGE;
  let unit = unitFor(n, room);
  const x = (step) => EDGE + step * unit;
  const endOf = (step, { tokens }) => x(step + tokens - 0.5);
  const spanOf = (step, path) => [x(step), endOf(step, path) + (2 + firstWords(path.text).length) * LETTER];
  const discarded = tree.forks.flatMap(({ step, paths }) => paths.filter(({ chosen }) => !chosen).map((path) => [step, path]));
  const labelled = [...discarded, ...tree.returns.map((each) => [each.step, each])];
  const overhang = Math.max(0, ...labelled.map(([step, path]) => spanOf(step, path)[1] - x(n)));
  unit = unitFor(n, room - overhang); // so that the last labels have room too
  const below = lanes(discarded.map(([step, path]) => spanOf(step, path)));
  const above = lanes(tree.returns.map((each) => spanOf(each.step, each)));
  const laneOf = new Map(discarded.map(([, path], k) => [path, below[k]]));
  const trunk = EDGE + Math.max(0, ...above.map((lane) => lane + 1)) * PITCH + 14;
  const bottom = trunk + Math.max(0, ...below.map((lane) => lane + 1)) * PITCH + 12;
  const [style, ends] = shading(tree.forks.flatMap(({ paths }) => paths.map(({ score }) => score)));
  const labels = [];
  const forks = tree.forks.flatMap((fork, f) => {
    const own = fork.paths.find((path) => path.chosen)?.score;
    return fork.paths.map((path, k) => {
      const { text, score, tokens, chosen } = path;
      const y = chosen ? trunk : trunk + (laneOf.get(path) + 1) * PITCH;
      const end = chosen ? x(Math.min(n, fork.step + fork.kept)) : endOf(fork.step, path);
      const what = `Token ${fork.step + 1}, path ${k + 1} of ${fork.paths.length}, ${chosen ? "kept" : "discarded"}`;
      const verdict = chosen ? `. ${fork.why}` : `, score ${format(score)} against ${format(own)} of the kept one.`;
      const room = Math.floor((x(tree.forks[f + 1]?.step ?? n + WORDS) - x(fork.step)) / LETTER) - 1;
      if (!chosen) labels.push(...words(end + 7, y + 4, firstWords(text)));
      else if (room > 4) labels.push(...words(x(fork.step), trunk - 6, firstWords(text, Math.min(room, WORDS))));
      const dot = [chosen ? x(fork.step) : end, y];
      return [fork.step, chosen ? "won" : "", bent(x(fork.step), trunk, y, end), dot, [what, phrase(text), inTokens(tokens) + verdict], score];
    });
  });
  const returns = tree.returns.map((each, k) => {
    const { step, text, tokens } = each;
    const y = trunk - (above[k] + 1) * PITCH - 6;
    const end = endOf(step, each);
    labels.push(...words(end + 7, y + 4, firstWords(text)));
    return [step, "back", bent(x(step), trunk, y, end), [end, y], [`Token ${step + 1}, taken back`, phrase(text), inTokens(tokens)], null];
  });
  const items = [...forks, ...returns]
    .sort((a, b) => a[0] - b[0])
    .map(([step, kind, d, dot, says, score]) => {
      const made = item(kind, d, dot, says);
      made.setAttribute("style", style(score));
      return [made, says, () => preview(i, step), () => tokens[i][step].focus()];
    });
  const spans = [...discarded.map(([step, path]) => spanOf(step, path)), ...tree.returns.map((each) => spanOf(each.step, each))];
  const width = Math.max(x(n), x(tree.forks.at(-1)?.step ?? 0) + WORDS * LETTER, ...spans.map(([, end]) => end)) + 2 * EDGE;
  const background = [
    axis(n, unit, bottom),
    drawn("path", { class: "rule", "data-unit": unit, "data-bottom": bottom }),
    drawn("path", { class: "trunk", d: `M${x(0)} ${trunk}H${x(n)}` }),
  ];
  at(`branch-summary-${i}`).textContent = tree.summary;
  showKey(at(`branch-key-${i}`), tree.measure, tree.unit, ends);
  place(box, at(`branch-readout-${i}`), width, bottom + 34, background, items, labels);
}

// A line through the drawings at the token that is shown.
function markTree(i, step) {
  traces.forEach((_, j) => {
    const rule = document.querySelector(`#branch-tree-${j} .rule`);
    if (!rule) return;
    const { unit, bottom } = rule.dataset;
    rule.setAttribute("d", step < lengthOf(j) ? `M${EDGE + (step + 0.5) * unit} 0V${bottom}` : "");
  });
}

// ----- paths from a prompt -----

const ROW = 22; // px from path to path

function drawPaths(i) {
  const { rows, select, measure, unit: scoreUnit } = traces[i].paths;
  const [style, ends] = shading(rows.map(({ score }) => score));
  const box = at(`path-tree-${i}`);
  const longest = Math.max(...rows.map((row) => row.tokens));
  const unit = unitFor(longest, Math.max(box.clientWidth, 320) - 4 * EDGE - LABEL);
  const x = (step) => EDGE + step * unit;
  const y = (row) => EDGE + rows[row].lane * ROW + 6;
  const bottom = EDGE + rows.length * ROW;
  const parentOf = (row) => (rows[row].parent === null || rows[row].parent >= row ? null : rows[row].parent);
  const rootOf = (row) => rows.findIndex(({ prompt }) => prompt === rows[row].prompt);
  const begins = (row) => [x(parentOf(row) === null ? 0 : rows[row].position), y(parentOf(row) ?? rootOf(row))];
  const along = (row, end) => bent(...begins(row), y(row), x(end));
  const items = rows.map((row, k) => {
    const answer = row.answer ?? "no answer";
    const what = `Path ${k}${row.chosen ? ", the chosen one" : ""}`;
    const short = answer.length > 18 ? `${answer.slice(0, 17)}…` : answer;
    const label = drawn("text", { x: x(row.tokens) + 9, y: y(k) + 4 }, `path ${k} · ${short}${row.chosen ? " ◂" : ""}`);
    const cost = `${inTokens(row.tokens)}, ${row.computed} computed, in ${row.forward_passes} forward passes`;
    const origin = row.parent === null ? "from the prompt" : `parts from ${row.fork}`;
    const says = [what, row.answer === null ? answer : phrase(answer), `${select} ${row.scores[0]}; ${origin}; ${cost}.`];
    const made = item(row.chosen ? "won" : "", along(k, row.tokens), [x(row.tokens), y(k)], says, label);
    made.dataset.row = k;
    made.setAttribute("style", style(row.score));
    return [k, made, says];
  });
  const trail = [];
  rows.forEach(({ chosen, tokens }, k) => {
    if (!chosen) return;
    for (let row = k, end = tokens; row !== null; end = rows[row].position, row = parentOf(row)) {
      trail.push(drawn("path", { class: "trail", d: along(row, end) }));
    }
  });
  const roots = [...new Set(rows.map((_, k) => rootOf(k)))].map((k) => drawn("circle", { class: "end", cx: x(0), cy: y(k), r: 3 }));
  const background = [axis(longest, unit, bottom), ...trail, ...roots];
  const order = items.sort((a, b) => rows[a[0]].lane - rows[b[0]].lane);
  const shown = order.map(([k, made, says]) => [made, says, () => {}, () => chooseRow(k)]);
  showKey(at(`path-key-${i}`), measure, scoreUnit, ends);
  place(box, at(`path-readout-${i}`), x(longest) + LABEL, bottom + 34, background, shown);
}

// All texts of a trace's paths; what a path has in common with the one that it parts from is pale.
function showTexts(i) {
  const { rows, select } = traces[i].paths;
  const several = rows.some(({ prompt }) => prompt !== rows[0].prompt);
  const articles = rows.map((path, k) => {
    const row = traces[i].rows[k];
    const n = row.token.length - (row.finish === "stop_token");
    const pieces = Array.from({ length: n }, (_, step) => row.shown[step] ?? texts.text[row.token[step]]);
    const told = [
      path.answer === null ? "no answer" : `answer ${phrase(path.answer)}`,
      `${select} ${path.scores[0] ?? "–"}`,
      inTokens(path.tokens),
      path.finish,
    ];
    return element(
      "article",
      { class: path.chosen ? "chosen" : "" },
      element("h3", {}, `${several ? `prompt ${path.prompt + 1}, ` : ""}path ${k}${path.chosen ? " ◂ chosen" : ""}`),
      element("p", { class: "seed" }, told.join(", ")),
      element("p", {}, element("span", { class: "muted" }, pieces.slice(0, path.position).join("")), pieces.slice(path.position).join("")),
    );
  });
  at(`path-texts-${i}`).replaceChildren(...articles);
}

function drawTrees() {
  traces.forEach((trace, i) => {
    if (at(`branching-${i}`)) drawBranches(i);
    if (!trace.paths) return;
    for (const [k, line] of document.querySelectorAll(`#paths-${i} tbody tr`).entries()) {
      if (k === state.row) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
    for (const each of document.querySelectorAll(`#path-tree-${i} .item`)) {
      each.classList.toggle("current", Number(each.dataset.row) === state.row);
    }
  });
  if (at("branches")) at("branches").hidden = traces.every((_, i) => !rowOf(i)?.tree);
}

function connectPaths() {
  traces.forEach((trace, i) => {
    if (!trace.paths) return;
    drawPaths(i);
    showTexts(i);
    for (const button of document.querySelectorAll(`#paths-${i} button`)) {
      button.addEventListener("click", () => chooseRow(Number(button.closest("tr").dataset.row)));
    }
  });
  drawTrees();
}
