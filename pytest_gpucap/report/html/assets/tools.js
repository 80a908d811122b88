/* What all charts share: the data, elements without markup strings, numbers as people read them, colours by name. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)"];
/* While it is: lower charts, so that a result has few half-empty sheets, and nothing that wants a finger. */
let onPaper = false;
/* Text over lines and points stays readable. */
const HALO = { textBorderColor: "var(--card)", textBorderWidth: 5 };
const METRIC_COLOURS = { e2e: "var(--s0)", ttft: "var(--s1)", tpot: "var(--s2)", itl: "var(--s3)" };

function element(name, properties = {}, ...children) {
  const made = name === "svg" || name === "path" ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function swatch(colour, kind = "line") {
  const path = { line: "M1 5h14", dash: "M1 5h4M7 5h4M13 5h3", dot: "M8 5h.01", area: "M1 5h14" }[kind];
  const width = { line: 2.5, dash: 2, dot: 7, area: 9 }[kind];
  const drawn = element("path", { d: path, stroke: colour, "stroke-width": width, "stroke-linecap": kind === "dot" ? "round" : "butt", fill: "none" });
  if (kind === "area") drawn.setAttribute("opacity", "0.4");
  return element("svg", { viewBox: "0 0 16 10", width: 16, height: 10, "aria-hidden": "true" }, drawn);
}

function figure(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) >= 10 ** (digits - 1) ? rounded.toFixed(0) : String(rounded);
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return `${figure(value * 1e6)} µs`;
  if (Math.abs(value) < 1 && value !== 0) return `${figure(value * 1000)} ms`;
  return `${figure(value)} s`;
}

function withUnit(value, unit) {
  if (value === null || value === undefined) return "–";
  return unit === "s" ? seconds(value) : unit ? `${figure(value)} ${unit}` : figure(value);
}

/* Ends and ticks of a logarithmic axis at 1, 2 and 5 times powers of ten; only powers where those would crowd. */
function logAxis(values, most = 9) {
  const there = values.filter((value) => value > 0);
  const low = Math.min(...there), high = Math.max(...there);
  const all = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)) + 1; power++) {
    for (const step of [1, 2, 5]) all.push(Number(`${step}e${power}`));
  }
  const min = Math.max(...all.filter((tick) => tick <= low * 0.95));
  const max = Math.min(...all.filter((tick) => tick >= high * 1.05));
  let ticks = all.filter((tick) => tick >= min && tick <= max);
  if (ticks.length > most) ticks = ticks.filter((tick) => tick.toExponential().startsWith("1"));
  return { min, max, ticks };
}

/* A tooltip's content, made of nodes: no string of the result is ever parsed as markup. */
function tip(title, rows) {
  const box = element("div", { class: "tip" });
  if (title) box.append(element("b", {}, title));
  for (const [name, value, colour, kind] of rows) {
    const label = element("span", {}, ...(colour ? [swatch(colour, kind)] : []), name);
    box.append(element("div", { class: "row" }, label, element("span", {}, value)));
  }
  return box;
}
