"use strict";
// Names come from files: everything is set as text, nothing as markup.
const report = JSON.parse(document.getElementById("report").textContent);
const {spectra, order: depth} = JSON.parse(document.getElementById("beside").textContent);
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

const digits = (value, count = 6) => value === null ? "\u2013" : String(Number(value.toPrecision(count)));
const positive = value => value !== null && value > 0;
const byDepth = depth.map(index => report.rows[index]);  // blocks 2 before 10
const bounded = byDepth.filter(row => row.status === "bounded");

function facts(list, pairs) {
  for (const [key, value] of pairs) if (value) list.append(element("dt", {}, key), element("dd", {}, value));
}

function tiles() {
  const count = status => report.rows.filter(row => row.status === status).length;
  let largest = null;
  for (const row of bounded) if (row.upper !== null && (largest === null || row.upper > largest.upper)) largest = row;
  const shown = [["tensors", report.rows.length], ["bounded", count("bounded")], ["no linear map", count("skipped")]];
  if (count("failed")) shown.push(["NOT bounded", count("failed"), "bad"]);
  if (largest) shown.push(["largest norm, at most", digits(largest.upper, 4)]);
  if (report.network && report.network.upper !== null)
    shown.push(["whole network, at most", digits(report.network.upper, 4)]);
  for (const [title, value, kind] of shown) {
    const tile = element("div", {class: kind || ""});
    tile.append(element("dt", {}, title), element("dd", {}, value.toLocaleString ? value.toLocaleString("en") : value));
    byId("tiles").append(tile);
  }
}

const NAMED = 4;  // steps without a constant that are told at once
const named = steps => steps.slice(0, NAMED).join("; ") + (steps.length > NAMED ? `; and ${steps.length - NAMED} more, below` : "");

const percent = share => typeof share !== "number" ? "\u2013" : `${Number((100 * share).toFixed(Math.abs(share) < 0.1 ? 1 : 0))} %`;

function stepLine(step, largest) {
  const line = element("tr"), share = element("td", {class: "number share"}, percent(step.share));
  share.style.setProperty("--bar", (Math.abs(step.share ?? 0) / largest).toFixed(3));
  if (step.share < 0) share.classList.add("shrinks");
  line.append(element("th", {scope: "row"}, step.name), element("td", {class: "number"}, digits(step.constant)), share,
    element("td", {}, step.kind), element("td", {}, step.rule));
  return line;
}

function pairLine(pair) {
  const line = element("tr");
  line.append(element("th", {scope: "row"}, pair.first), element("td", {}, pair.second), element("td", {class: "number"}, digits(pair.loss, 3)));
  return line;
}

function network() {
  if (report.network === null) return;
  const section = byId("network"), {upper, method, unknown, steps, pairs = [], notes} = report.network;
  section.hidden = false;
  const costliest = pairs.length ? `${pairs[0].first}, then ${pairs[0].second}: norms multiply to ${digits(pairs[0].loss, 3)} times that of both` : "";
  facts(section.querySelector("dl"), [
    ["Lipschitz constant", upper === null ? "unknown" : `at most ${digits(upper)}`], ["by", upper === null ? "" : method],
    ["without a finite constant", named(unknown)], ["costliest neighbours", costliest], ["notes", notes.join("; ")]]);
  byId("pairs").hidden = pairs.length === 0;
  const listed = byId("pairs").querySelector("tbody"), body = byId("steps").querySelector("tbody");
  for (const pair of pairs) listed.append(pairLine(pair));
  let largest = 1e-9;
  for (const step of steps) largest = Math.max(largest, Math.abs(step.share ?? 0));
  for (const step of steps) body.append(stepLine(step, largest));
}

function theme() {
  const system = matchMedia("(prefers-color-scheme: dark)"), button = byId("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const show = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  show();
}
tiles();
network();
theme();
