"use strict";
// Names come from files: everything is set as text, nothing as markup.
const report = JSON.parse(document.getElementById("report").textContent);
const spectra = JSON.parse(document.getElementById("singular-values").textContent);
const byId = id => document.getElementById(id);

function element(tag, attributes = {}, text) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const digits = value => value === null ? "\u2013" : String(Number(value.toPrecision(6)));

// ---- the table -------------------------------------------------------------------------------------------------

function partsOf(parts) {  // as in parts.py
  if (parts.length <= 4) return parts.map(part => `${part.name} ${digits(part.upper)}`).join(", ");
  const sorted = [...parts].sort((a, b) => (b.upper ?? Infinity) - (a.upper ?? Infinity));
  const [low, high] = [sorted[Math.floor(parts.length / 2)].upper, sorted[Math.floor((parts.length - 1) / 2)].upper];
  const middle = low === null || high === null ? null : (low + high) / 2;
  return `${parts.length} parts, the largest ${sorted[0].name} ${digits(sorted[0].upper)}, median ${digits(middle)}`;
}

function how(row) {
  if (row.status !== "bounded") return `${row.status === "skipped" ? "skipped" : "not bounded"}: ${row.reason}`;
  const parts = [row.geometry + (row.assumed ? " (assumed)" : ""), row.method];
  for (const [text, lower, upper] of row.readings) parts.push(`or ${digits(lower)} to ${digits(upper)} as ${text}`);
  if (row.parts.length) parts.push(partsOf(row.parts));
  if (row.constraint) parts.push(`${row.constraint.name} ${row.constraint.value}, met: ${row.constraint.met}`);
  return parts.join("; ");
}

const columns = [
  {title: "tensor", key: "name", value: row => row.name},
  {title: "kind", key: "kind", value: row => row.kind},
  {title: "shape", key: "shape", value: row => row.shape.reduce((a, b) => a * b, 1), text: row => row.shape.join("\u00d7") || "scalar"},
  {title: "dtype", key: "dtype", value: row => row.dtype},
  ...["lower", "upper", "matrix_norm", "frobenius", "stable_rank", "rms_norm"].map(key => ({
    title: key.replace("_", " "), key, number: true, value: row => row[key], text: row => digits(row[key])})),
  {title: "flags", key: "flags", value: row => row.flags.join(", ")},
  {title: "how, or why not", key: "how", value: how},
  {title: "seconds", key: "seconds", number: true, value: row => row.seconds},
];

function cell(column, row) {
  const value = column.value(row);
  const made = element(column.key === "name" ? "th" : "td", {class: column.number ? "number" : column.key});
  if (column.key === "name") made.setAttribute("scope", "row");
  made.textContent = column.text ? column.text(row) : String(value);
  if (column.number && value !== null) { made.dataset.value = String(value); made.title = String(value); }
  return made;
}

const OPTIMIZER = "optimizer state";
const entries = report.rows.map((row, index) => ({row, index, folded: row.reason === OPTIMIZER,
  text: [row.name, row.kind, row.shape.join("x"), row.dtype, how(row), ...row.flags].join(" ").toLowerCase()}));

function lineOf(entry) {
  if (!entry.line) {
    entry.line = element("tr", {class: entry.row.status});
    for (const column of columns) entry.line.append(cell(column, entry.row));
  }
  return entry.line;
}

const LISTED = 1000;  // lines at first: a browser takes seconds to lay out many more
const collator = new Intl.Collator(undefined, {numeric: true});
let everything = false;  // whether all lines are listed
let order = {column: null, sign: 1};

function compare(a, b) {
  if (order.column === null) return a.index - b.index;
  const x = order.column.value(a.row), y = order.column.value(b.row);
  if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;  // unknown ones last, either way
  const difference = typeof x === "number" ? x - y : collator.compare(x, y);
  return order.sign * difference || a.index - b.index;
}

function list() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean), status = byId("status").value;
  const kept = entries.filter(e => (!e.folded || byId("optimizer").checked)
    && (!status || e.row.status === status) && words.every(word => e.text.includes(word)));
  const listed = kept.sort(compare).slice(0, everything ? kept.length : LISTED), lines = document.createDocumentFragment();
  for (const entry of listed) lines.append(lineOf(entry));  // no spread: an engine takes some ten thousand arguments
  byId("rows").tBodies[0].replaceChildren(lines);
  byId("more").hidden = listed.length === kept.length;
  byId("more").textContent = `List all ${kept.length}, not the first ${LISTED} alone`;
  byId("shown").textContent = `${kept.length} of ${entries.length} tensors`;
}

function sortBy(column, header) {
  order = {column, sign: order.column === column ? -order.sign : column.number ? -1 : 1};  // of numbers, the largest first
  for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
  list();
}

for (const column of columns) {
  const header = element("th", {scope: "col", "aria-sort": "none", class: column.number ? "number" : ""});
  const button = element("button", {type: "button", "data-key": column.key}, column.title);
  button.addEventListener("click", () => sortBy(column, header));
  header.append(button);
  byId("rows").tHead.rows[0].append(header);
}
byId("filter").addEventListener("input", list);
byId("status").addEventListener("change", list);
byId("optimizer").addEventListener("change", list);
byId("more").addEventListener("click", () => { everything = true; list(); });
byId("filters").addEventListener("submit", event => event.preventDefault());
const folded = entries.filter(entry => entry.folded).length;
byId("optimizer").parentNode.hidden = folded === 0;
byId("optimizer").nextElementSibling.textContent = `${folded} tensors of ${OPTIMIZER}`;
list();  // first: a plot that fails leaves the table

// ---- the plots -------------------------------------------------------------------------------------------------

const HEIGHT = 260, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 30;

function logScale(values, from, to) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, Math.log10(value)); high = Math.max(high, Math.log10(value)); }
  const room = Math.max((high - low) * 0.06, 0.05);
  low -= room; high += room;
  const at = value => from + (Math.log10(value) - low) / (high - low) * (to - from);
  const ticks = [], step = Math.ceil((high - low) / 7);
  for (let power = Math.floor(low); power <= high; power += 1)
    for (const factor of high - low < 1 ? [1, 1.5, 2, 3, 4, 5, 7] : high - low < 2.5 ? [1, 2, 5] : [1])
      if ((factor > 1 || power % step === 0) && power + Math.log10(factor) >= low && power + Math.log10(factor) <= high)
        ticks.push(factor * 10 ** power);
  return {at, ticks};
}

const tickText = value => value >= 1e5 || value < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(2)));

function frame(svg, width, x, y, xTitle) {
  for (const tick of y.ticks) {
    svg.append(shape("line", {class: "rule", x1: LEFT, x2: width - RIGHT, y1: y.at(tick), y2: y.at(tick)}));
    svg.append(shape("text", {x: LEFT - 6, y: y.at(tick) + 4, "text-anchor": "end"}, tickText(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(shape("line", {class: "rule", x1: x.at(tick), x2: x.at(tick), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4}));
    svg.append(shape("text", {x: x.at(tick), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle"}, tickText(tick)));
  }
  svg.append(shape("text", {x: width - RIGHT, y: HEIGHT - 2, "text-anchor": "end"}, xTitle));
}

function depthScale(count, from, to) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find(n => count / n <= 8) || 10000;
  const ticks = [];
  for (let tick = step === 1 ? 1 : step; tick <= count; tick += step) ticks.push(tick);
  return {at: place => count === 1 ? (from + to) / 2 : from + 8 + (place - 1) / (count - 1) * (to - from - 16), ticks};
}

// Draws `items` with `draw`, and lets pointer and arrow keys choose one of them, which `highlight` marks; `nearest` tells
// which is under the pointer.
function plot(id, label, items, draw, highlight, read, nearest) {
  const box = byId(id), reading = box.parentNode.querySelector(".reading");
  if (items.length === 0) { box.textContent = "Nothing to draw."; return; }
  let chosen = -1, geometry = null;
  const svg = shape("svg", {tabindex: 0, role: "img", "aria-label": label});
  box.append(svg);
  const overlay = shape("g", {});
  const mark = () => {
    overlay.replaceChildren();
    if (chosen >= 0) overlay.append(highlight(chosen, geometry));
  };
  const redraw = () => {
    const width = Math.max(box.clientWidth, 200);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren();
    geometry = draw(svg, width);
    svg.append(overlay);
    mark();
  };
  const choose = index => {
    if (index === chosen) return;
    chosen = index;
    reading.textContent = index < 0 ? "" : read(items[index]);
    mark();  // the rest stays as it is: there may be thousands of marks
  };
  svg.addEventListener("pointermove", event => {
    const corner = svg.getBoundingClientRect();
    choose(nearest(event.clientX - corner.left, event.clientY - corner.top, geometry));
  });
  svg.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (step) { choose((chosen + step + items.length) % items.length); event.preventDefault(); }
  });
  redraw();
  new ResizeObserver(redraw).observe(box);
}

function byDepth(id, label, rows, values, mark, read) {
  const draw = (svg, width) => {
    const x = depthScale(rows.length, LEFT, width - RIGHT), y = logScale(rows.flatMap(values), HEIGHT - BOTTOM, TOP);
    frame(svg, width, x, y, "number of the weight");
    rows.forEach((row, index) => mark(svg, row, x.at(index + 1), y));
    return x;
  };
  const highlight = (chosen, x) =>
    shape("line", {class: "cursor", x1: x.at(chosen + 1), x2: x.at(chosen + 1), y1: TOP, y2: HEIGHT - BOTTOM});
  const nearest = (px, py, x) => {
    let best = 0;
    rows.forEach((row, i) => { if (Math.abs(x.at(i + 1) - px) < Math.abs(x.at(best + 1) - px)) best = i; });
    return best;
  };
  plot(id, label, rows, draw, highlight, read, nearest);
}

const positive = value => value !== null && value > 0;
const drawn = report.rows.filter(row => row.status === "bounded" && positive(row.lower));
byDepth("norms", "Operator norm of each weight, between its bounds", drawn,
  row => [row.lower, row.upper, ...(positive(row.matrix_norm) ? [row.matrix_norm] : [])],
  (svg, row, x, y) => {
    svg.append(shape("line", {class: "bracket", x1: x, x2: x, y1: y.at(row.lower), y2: y.at(row.upper)}));
    svg.append(shape("circle", {class: "dot", cx: x, cy: y.at(row.upper), r: 3}));
    if (positive(row.matrix_norm)) svg.append(shape("rect", {class: "matrix", x: x - 4.5, y: y.at(row.matrix_norm) - 4.5, width: 9, height: 9}));
  },
  row => `${row.name}: ${digits(row.lower)} to ${digits(row.upper)}, matrix norm ${digits(row.matrix_norm)}`);
byDepth("ranks", "Stable rank of each weight", report.rows.filter(row => positive(row.stable_rank)), row => [row.stable_rank],
  (svg, row, x, y) => svg.append(shape("circle", {class: "dot", cx: x, cy: y.at(row.stable_rank), r: 3.5})),
  row => `${row.name}: stable rank ${digits(row.stable_rank)} of at most ${Math.min(...row.shape.slice(-2))}`);

function drawSpectra() {
  const lines = report.rows.filter(row => Object.hasOwn(spectra, row.name)).map(row => {
    const top = spectra[row.name][0][1];  // rounding, far below the largest value, would stretch the axis
    return {row, points: spectra[row.name].filter(([, value]) => value > top * 1e-6)};
  }).filter(line => line.points.length > 0);
  byId("spectra-figure").hidden = lines.length === 0;
  if (lines.length === 0) return;
  const all = lines.flatMap(line => line.points);
  const path = (line, {x, y}) => line.points.map(([i, v], n) => `${n ? "L" : "M"}${x.at(i).toFixed(1)} ${y.at(v).toFixed(1)}`).join("") + "h.1";
  const draw = (svg, width) => {
    const x = logScale(all.map(p => p[0]), LEFT, width - RIGHT), y = logScale(all.map(p => p[1]), HEIGHT - BOTTOM, TOP);
    frame(svg, width, x, y, "index of the singular value");
    lines.forEach((line, n) => svg.append(shape("path", {class: "line", d: path(line, {x, y}), "stroke-opacity": 1 - 0.7 * n / lines.length})));
    return {x, y};
  };
  const highlight = (chosen, geometry) => shape("path", {class: "line chosen", d: path(lines[chosen], geometry)});
  const nearest = (px, py, {x, y}) => {
    let best = -1, least = Infinity;
    lines.forEach((line, n) => line.points.forEach(([i, v]) => {
      const distance = Math.hypot(x.at(i) - px, y.at(v) - py);
      if (distance < least) [best, least] = [n, distance];
    }));
    return best;
  };
  plot("spectra", "Singular values of each weight", lines, draw, highlight, line =>
    `${line.row.name}: ${digits(line.points[0][1])} down to ${digits(line.points.at(-1)[1])}`, nearest);
}

// ---- the rest --------------------------------------------------------------------------------------------------

function network() {
  if (report.network === null) return;
  const section = byId("network"), {upper, method, unknown, steps, notes} = report.network;
  section.hidden = false;
  const facts = {"Lipschitz constant": upper === null ? "unknown" : `at most ${digits(upper)}`, "by": method,
    "without a finite constant": unknown.join("; "), "notes": notes.join("; ")};
  for (const [key, value] of Object.entries(facts))
    if (value) section.querySelector("dl").append(element("dt", {}, key), element("dd", {}, value));
  const body = section.querySelector("tbody");
  for (const step of steps) {
    const row = element("tr");
    row.append(element("th", {scope: "row", class: "name"}, step.name), element("td", {}, step.kind),
      element("td", {class: "number"}, digits(step.constant)), element("td", {}, step.rule));
    body.append(row);
  }
}

function theme() {
  const system = matchMedia("(prefers-color-scheme: dark)"), button = byId("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const show = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  show();
}

const count = status => report.rows.filter(row => row.status === status).length;
byId("count").textContent = `${report.rows.length} tensors: ${count("bounded")} bounded, ${count("skipped")} no linear map` +
  (count("failed") ? `, ${count("failed")} NOT bounded` : "");
network();
drawSpectra();
theme();
