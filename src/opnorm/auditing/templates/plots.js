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
  let drawnFor = box.clientWidth;
  new ResizeObserver(() => { if (box.clientWidth !== drawnFor) { drawnFor = box.clientWidth; redraw(); } }).observe(box);
}

const MANY = 1000;  // marks that cover each other are drawn small

function plotByDepth(id, label, rows, values, mark, read) {
  byId(id).classList.toggle("many", rows.length > MANY);
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

const drawn = bounded.filter(row => positive(row.lower));
// Where the norm is that of the matrix, there is nothing to compare.
const differs = row => positive(row.matrix_norm) && Math.abs(row.matrix_norm - row.upper) > 1e-5 * row.upper;
byId("matrix-key").hidden = !drawn.some(differs);
plotByDepth("norms", "Operator norm of each weight, between its bounds", drawn,
  row => [row.lower, row.upper, ...(differs(row) ? [row.matrix_norm] : [])],
  (svg, row, x, y) => {
    svg.append(shape("line", {class: "bracket", x1: x, x2: x, y1: y.at(row.lower), y2: y.at(row.upper)}));
    if (differs(row)) svg.append(shape("rect", {class: "matrix", x: x - 4.5, y: y.at(row.matrix_norm) - 4.5, width: 9, height: 9}));
  },
  row => `${row.name}: ${digits(row.lower)} to ${digits(row.upper)}, matrix norm ${digits(row.matrix_norm)}`);
plotByDepth("ranks", "Stable rank of each weight", byDepth.filter(row => positive(row.stable_rank)), row => [row.stable_rank],
  (svg, row, x, y) => svg.append(shape("circle", {class: "dot", cx: x, cy: y.at(row.stable_rank), r: 3.5})),
  row => `${row.name}: stable rank ${digits(row.stable_rank)} of at most ${Math.min(...row.shape.slice(-2))}`);

function drawSpectra() {
  const lines = byDepth.filter(row => Object.hasOwn(spectra, row.name)).map(row => {
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
drawSpectra();
