// What was tried besides: at a token, and as drawings. entropix/report/tree.py has the numbers, the words and the lanes.
"use strict";

const inTokens = (n) => `${n} token${n === 1 ? "" : "s"}`;

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

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(document.querySelector(".drawing svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Pixels from a token to the next, so that n of them fill the width where they can.
const unitFor = (n, width) => Math.min(24, Math.max(4, width / Math.max(n, 1)));

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
  return drawn("g", { "aria-hidden": "true" }, ...ticks);
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

// Puts a drawing in its place. `items` are [element, says, show, act]: what pointing at it shows, and choosing it does.
function place(box, readout, width, height, background, items) {
  const svg = box.querySelector("svg");
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.replaceChildren(...background, ...items.map(([made]) => made));
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

const PITCH = 15; // px from lane to lane

function drawBranches(i) {
  const tree = rowOf(i)?.tree;
  at(`branching-${i}`).hidden = !tree;
  if (!tree) return;
  const n = lengthOf(i);
  const box = at(`branch-tree-${i}`);
  const unit = unitFor(n, Math.max(box.clientWidth, 320) - 4 * EDGE);
  const x = (step) => EDGE + step * unit;
  const trunk = EDGE + tree.above * PITCH + 3;
  const bottom = trunk + tree.below * PITCH + 12;
  const forks = tree.forks.flatMap((fork) => {
    const own = fork.paths.find((path) => path.chosen)?.score;
    return fork.paths.map(({ text, score, tokens, chosen, lane }, k) => {
      const y = chosen ? trunk : trunk + (lane + 1) * PITCH;
      const end = x(chosen ? Math.min(n, fork.step + fork.kept) : fork.step + tokens - 0.5);
      const what = `Token ${fork.step + 1}, path ${k + 1} of ${fork.paths.length}, ${chosen ? "kept" : "discarded"}`;
      const verdict = chosen ? `. ${fork.why}` : `, score ${format(score)} against ${format(own)} of the kept one.`;
      const dot = [chosen ? x(fork.step) : end, y];
      return [fork.step, chosen ? "won" : "", bent(x(fork.step), trunk, y, end), dot, [what, phrase(text), inTokens(tokens) + verdict]];
    });
  });
  const returns = tree.returns.map(({ step, text, tokens, lane }) => {
    const y = trunk - (lane + 1) * PITCH;
    const end = x(step + tokens - 0.5);
    return [step, "back", bent(x(step), trunk, y, end), [end, y], [`Token ${step + 1}, taken back`, phrase(text), inTokens(tokens)]];
  });
  const items = [...forks, ...returns]
    .sort((a, b) => a[0] - b[0])
    .map(([step, kind, d, dot, says]) => [
      item(kind, d, dot, says),
      says,
      () => preview(i, step),
      () => tokens[i][step].focus(),
    ]);
  const tried = [...tree.forks.flatMap(({ step, paths }) => paths.map((path) => ({ step, ...path }))), ...tree.returns];
  const longest = Math.max(n, ...tried.map(({ step, tokens }) => step + tokens));
  const background = [
    axis(n, unit, bottom),
    drawn("path", { class: "rule", "data-unit": unit, "data-bottom": bottom }),
    drawn("path", { class: "trunk", d: `M${x(0)} ${trunk}H${x(n)}` }),
  ];
  at(`branch-summary-${i}`).textContent = tree.summary;
  place(box, at(`branch-readout-${i}`), x(longest) + 2 * EDGE, bottom + 18, background, items);
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
  const { rows, select } = traces[i].paths;
  const box = at(`path-tree-${i}`);
  const longest = Math.max(...rows.map((row) => row.tokens));
  const unit = unitFor(longest, Math.max(box.clientWidth, 480) - 4 * EDGE - LABEL);
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
  place(box, at(`path-readout-${i}`), x(longest) + LABEL, bottom + 18, background, shown);
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
    for (const button of document.querySelectorAll(`#paths-${i} button`)) {
      button.addEventListener("click", () => chooseRow(Number(button.closest("tr").dataset.row)));
    }
  });
  drawTrees();
}
