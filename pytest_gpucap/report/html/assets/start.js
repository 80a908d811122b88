/* Charts are drawn when they come near the screen, or all of them before printing. */
const BUILDERS = { curve, strips, spread, trend };

function framed(host) {
  const { chart: kind, index } = host.dataset;
  return new Frame(host, BUILDERS[kind](kind === "trend" ? DATA.trends[index] : DATA.results[index][kind]));
}

const hosts = [...document.querySelectorAll("figure[data-chart]")];
const frames = new Map(hosts.map((host) => [host, framed(host)]));

function mount(host, width) {
  if (MOUNTED.has(host)) return;
  MOUNTED.set(host, frames.get(host));
  frames.get(host).draw(width);
}

const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => { near.unobserve(entry.target); mount(entry.target); }),
  { rootMargin: "600px 0px" },
);
hosts.forEach((host) => near.observe(host));

document.querySelectorAll("details[data-table]").forEach((details) => details.addEventListener("toggle", () => fillTable(details)));

/* A link to a folded result unfolds it. */
function unfoldTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", unfoldTarget);
unfoldTarget();

const folded = [...document.querySelectorAll("details.result")];
const unfold = document.getElementById("unfold");
unfold.hidden = folded.length < 2;
function sayUnfold() {
  unfold.textContent = folded.every((details) => details.open) ? "Close all" : "Open all";
}
unfold.addEventListener("click", () => {
  const open = !folded.every((details) => details.open);
  folded.forEach((details) => { details.open = open; });
});
folded.forEach((details) => details.addEventListener("toggle", sayUnfold));
sayUnfold();

/* Themes: what the system says, until told otherwise. A page from a file may not be allowed to remember. */
const THEMES = ["auto", "light", "dark"];
const button = document.getElementById("theme");
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.querySelector("span").textContent = theme;
}
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("gpucap-theme", theme);
    return localStorage.getItem("gpucap-theme");
  } catch {
    return null;
  }
}
const before = remembered();
setTheme(THEMES.includes(before) ? before : "auto");
button.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  setTheme(next);
  remembered(next);
});
document.getElementById("print").addEventListener("click", () => print());
document.querySelector(".tools").hidden = false;

/* Paper: every result and where it was measured unfolded, every chart drawn at the width of the sheet. */
const PAPER = 650;
let closed = [];
addEventListener("beforeprint", () => {
  onPaper = true;
  closed = [...closed, ...document.querySelectorAll("details:is(.result, .asked):not([open])")];
  closed.forEach((details) => { details.open = true; });
  MOUNTED.forEach((frame) => frame.redraw(PAPER));
  hosts.forEach((host) => mount(host, PAPER));
});
addEventListener("afterprint", () => {
  closed.forEach((details) => { details.open = false; });
  closed = [];
  onPaper = false;
  MOUNTED.forEach((frame) => frame.redraw(frame.plot.clientWidth || frame.width));
});
