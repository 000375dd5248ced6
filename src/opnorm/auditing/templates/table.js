// ---- the table: every line has the same height, and those alone that are to be seen stand in the document -------

const OPTIMIZER = "optimizer state";
const BEYOND = 20;  // lines above and below those to be seen

function how(row) {
  if (row.status !== "bounded") return `${row.status === "skipped" ? "skipped" : "not bounded"}: ${row.reason}`;
  const told = [row.geometry + (row.assumed ? " (assumed)" : ""), row.method];
  if (row.constraint) told.push(`${row.constraint.name} ${row.constraint.value}, met: ${row.constraint.met}`);
  return told.join("; ");
}

const readings = row => row.readings.map(([text, lower, upper]) => `or ${digits(lower)} to ${digits(upper)} as ${text}`);

// The interval that holds the norms of all other readings.
function otherwise(row) {
  const ends = row.readings.flatMap(([, lower, upper]) => [lower, upper]);
  if (ends.length === 0 || ends.includes(null)) return ends.length === 0 ? "" : "?";
  const [low, high] = [digits(Math.min(...ends), 4), digits(Math.max(...ends), 4)];
  return low === high ? low : `${low} to ${high}`;
}

// What is told of experts, projections or heads in one tensor: of many the largest, the median and how many.
function partsOf(row, brief = false) {
  const all = row.parts || [];
  if (all.length <= 4 && !brief) return all.map(part => `${part.name} ${digits(part.upper)}`).join(", ");
  if (all.length === 0) return "";
  const sorted = [...all].sort((a, b) => (b.upper ?? Infinity) - (a.upper ?? Infinity));
  const [low, high] = [sorted[Math.floor(all.length / 2)].upper, sorted[Math.floor((all.length - 1) / 2)].upper];
  const median = digits(low === null || high === null ? null : (low + high) / 2, brief ? 4 : 6);
  return brief ? `${all.length}, median ${median}`
    : `${all.length} parts, the largest ${sorted[0].name} ${digits(sorted[0].upper)}, median ${median}`;
}

// Short marks for what many lines have in common: a, b, ..., z, aa, ab, ...
function marked(entries) {
  const marks = new Map();
  for (const entry of entries) {
    const text = how(entry.row);
    if (!marks.has(text)) {
      let name = "";
      for (let n = marks.size + 1; n > 0; n = Math.floor((n - 1) / 26)) name = String.fromCharCode(97 + (n - 1) % 26) + name;
      marks.set(text, {name, text, count: 0, status: entry.row.status});
    }
    entry.mark = marks.get(text);
    entry.mark.count += 1;
  }
  return [...marks.values()];
}

const entries = byDepth.map((row, index) => ({row, index, folded: row.reason === OPTIMIZER,
  text: [row.name, row.kind, row.shape.join("x"), row.dtype, how(row), ...readings(row), partsOf(row), ...row.flags].join(" ").toLowerCase()}));
const marks = marked(entries);

const numeric = (key, title = key.replace("_", " ")) =>
  ({title, key, number: true, value: entry => entry.row[key], text: entry => digits(entry.row[key])});
const columns = [
  {title: "tensor", key: "name", value: entry => entry.row.name},
  ...["lower", "upper", "matrix_norm", "stable_rank"].map(key => numeric(key)),
  {title: "or else", key: "otherwise", value: entry => otherwise(entry.row)},
  {title: "parts", key: "parts", value: entry => partsOf(entry.row, true)},
  {title: "how", key: "how", value: entry => entry.mark.name},
  {title: "shape", key: "shape", value: entry => entry.row.shape.reduce((a, b) => a * b, 1),
   text: entry => entry.row.shape.join("\u00d7") || "scalar"},
  {title: "kind", key: "kind", value: entry => entry.row.kind},
  {title: "dtype", key: "dtype", value: entry => entry.row.dtype},
  ...["frobenius", "rms_norm"].map(key => numeric(key)),
  {title: "flags", key: "flags", value: entry => entry.row.flags.join(", ")},
  numeric("seconds"),
].filter(({key, value}) => !["otherwise", "parts"].includes(key) || entries.some(entry => value(entry)));
const textOf = (column, entry) => column.text ? column.text(entry) : String(column.value(entry));

const barScale = (() => {
  let low = Infinity, high = -Infinity;
  for (const row of bounded) if (positive(row.upper)) { low = Math.min(low, row.upper); high = Math.max(high, row.upper); }
  const span = Math.log(high / low) || 1;
  return value => positive(value) ? 0.1 + 0.9 * Math.log(value / low) / span : 0;  // log scale, as in the plot
})();

function cell(column, entry) {
  const isName = column.key === "name", value = column.value(entry);
  const made = element(isName ? "th" : "td", {class: `${column.number ? "number " : ""}${column.key}`, role: isName ? "rowheader" : "cell"});
  if (column.key === "how") made.append(element("span", {class: "mark", title: entry.mark.text}, value));
  else made.textContent = textOf(column, entry);
  if (isName) { made.tabIndex = 0; made.setAttribute("scope", "row"); }
  if (column.number && value !== null) { made.dataset.value = String(value); made.title = String(value); }
  if (column.key === "upper") made.style.setProperty("--bar", barScale(value).toFixed(3));
  return made;
}

function lineOf(entry) {
  if (!entry.line) {
    entry.line = element("tr", {class: entry.row.status, role: "row"});
    entry.line.entry = entry;
    for (const column of columns) entry.line.append(cell(column, entry));
  }
  return entry.line;
}

const collator = new Intl.Collator(undefined, {numeric: true});
const scroller = byId("scroll"), rows = byId("rows"), body = rows.tBodies[0];
let order = {column: null, sign: 1};
let onlyMark = null;
let kept = entries;  // in the order in which they are listed
let height = 0;  // of a line

function compare(a, b) {
  if (order.column === null) return a.index - b.index;
  const x = order.column.value(a), y = order.column.value(b);
  if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;  // unknown ones last, either way
  const difference = typeof x === "number" ? x - y : collator.compare(x, y);
  return order.sign * difference || a.index - b.index;
}

// Puts the lines to be seen into the document, and room for the others around them.
function draw(all = false) {
  const first = all || !height ? 0 : Math.max(0, Math.floor(scroller.scrollTop / height) - BEYOND);
  const seen = Math.ceil((scroller.clientHeight || 800) / (height || 30)) + 2 * BEYOND;
  const listed = kept.slice(first, all ? kept.length : first + seen), wanted = new Set(listed.map(lineOf));
  for (const line of [...body.children]) if (!wanted.has(line)) line.remove();
  let place = body.firstChild;
  for (const entry of listed) {  // a line that stays is not moved, and keeps the focus
    if (entry.line === place) place = place.nextSibling;
    else body.insertBefore(entry.line, place);
  }
  body.style.paddingTop = `${first * height}px`;
  body.style.paddingBottom = `${Math.max(0, kept.length - first - listed.length) * height}px`;
}

function list() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean), status = byId("status").value;
  kept = entries.filter(e => (!e.folded || byId("optimizer").checked) && (onlyMark === null || e.mark === onlyMark)
    && (!status || e.row.status === status) && words.every(word => e.text.includes(word))).sort(compare);
  byId("shown").textContent = `${kept.length} of ${entries.length} tensors`;
  rows.setAttribute("aria-rowcount", kept.length + 1);
  scroller.scrollTop = 0;
  draw();
}

const LONGEST = 20;  // texts of a column that are measured: letters differ in width

// Returns the width that each column needs, from lines that nobody sees.
function widthsNeeded() {
  const probes = columns.map(column => {
    const long = entries.map(entry => [textOf(column, entry).length, entry]).sort((a, b) => b[0] - a[0]);
    const probe = element("tr", {style: "position: absolute; visibility: hidden; display: grid; width: max-content; grid-template-columns: auto"});
    for (const [, entry] of long.slice(0, LONGEST)) probe.append(cell(column, entry));
    body.append(probe);
    return probe;
  });
  const heads = [...rows.tHead.rows[0].cells].map(head => { const range = document.createRange(); range.selectNodeContents(head.firstChild); return range; });
  const widths = probes.map((probe, i) => Math.ceil(Math.max(probe.getBoundingClientRect().width, heads[i].getBoundingClientRect().width + 36)));
  for (const probe of probes) probe.remove();
  return widths;
}

// Gives every column its width, and names a line of their own where they leave no room for numbers.
function fit() {
  const widths = widthsNeeded(), [name, ...others] = widths;
  const stacked = name + others[0] + others[1] > scroller.clientWidth;
  const tracks = (stacked ? others : widths).map(width => `${width}px`);
  tracks[tracks.length - 1] = `minmax(${tracks[tracks.length - 1]}, 1fr)`;
  rows.classList.toggle("stacked", stacked);
  rows.style.minWidth = `max(100%, ${stacked ? name : 0}px)`;  // so that the end of a long name can be scrolled to
  rows.style.setProperty("--columns", tracks.join(" "));
  const line = body.firstElementChild;
  height = line ? line.getBoundingClientRect().height : 0;
  draw();
}

function sortBy(column, header) {
  const first = column.number ? -1 : 1;  // of numbers, the largest first
  if (order.column !== column) order = {column, sign: first};
  else order = order.sign === first ? {column, sign: -first} : {column: null, sign: 1};  // a third click: by depth again
  for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
  if (order.column) header.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
  list();
}

function tell(entry) {
  const {row} = entry, facts_ = byId("detail").querySelector("dl");
  byId("detail-name").textContent = row.name;
  facts_.replaceChildren();
  const known = new Set(["name", "kind", "shape", "dtype", "geometry", "assumed", "status", "lower", "upper", "reason", "method",
    "readings", "parts", "flags", "constraint"]);
  facts(facts_, [
    ["norm", row.lower === null ? "not known" : `${row.lower} to ${row.upper}`], ["how", how(row)],
    ["read otherwise", readings(row).join("; ")], ["parts", partsOf(row)], ["shape", `${row.shape.join("\u00d7") || "scalar"}, ${row.dtype}`], ["layer", row.kind],
    ["flags", row.flags.join(", ")],
    ...Object.entries(row).filter(([key, value]) => !known.has(key) && value !== null)
      .map(([key, value]) => [key.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)])]);
  byId("detail").showModal();
}

function heading(column) {
  const header = element("th", {scope: "col", role: "columnheader", "aria-sort": "none", class: `${column.number ? "number " : ""}${column.key}`});
  const button = element("button", {type: "button", "data-key": column.key}, column.title);
  button.addEventListener("click", () => sortBy(column, header));
  header.append(button);
  return header;
}

function legend(mark) {
  const item = element("li", {class: mark.status}), button = element("button", {type: "button", "aria-pressed": "false"});
  button.append(element("span", {class: "mark"}, mark.name), element("span", {}, mark.text), element("span", {class: "count"}, String(mark.count)));
  button.addEventListener("click", () => {
    onlyMark = onlyMark === mark ? null : mark;
    for (const other of byId("marks").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(onlyMark === mark));
    list();
  });
  item.append(button);
  return item;
}

for (const column of columns) rows.tHead.rows[0].append(heading(column));
for (const status of ["failed", "bounded", "skipped"])
  for (const mark of marks) if (mark.status === status) byId("marks").append(legend(mark));
for (const id of ["status", "optimizer"]) byId(id).addEventListener("change", list);
byId("filter").addEventListener("input", list);
byId("filters").addEventListener("submit", event => event.preventDefault());
body.addEventListener("click", event => { if (!String(getSelection())) tell(event.target.closest("tr").entry); });
body.addEventListener("keydown", event => { if (event.key === "Enter") tell(event.target.closest("tr").entry); });
byId("detail").addEventListener("click", event => { if (event.target === byId("detail")) byId("detail").close(); });
scroller.addEventListener("scroll", () => requestAnimationFrame(() => draw()), {passive: true});
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw());
const folded = entries.filter(entry => entry.folded).length;
byId("optimizer").parentNode.hidden = folded === 0;
byId("optimizer").nextElementSibling.textContent = `${folded} tensors of ${OPTIMIZER}`;
list();
fit();
new ResizeObserver(fit).observe(scroller);
