/* The frame of a chart: legend buttons, the plot, arrow keys. It takes its room at once and draws later, so that nothing
   moves under the reader's mouse when a chart comes near. A builder gives what is inside:
   builder(width, tab, off) -> { option, height, legend: [{name, colour, kind, off}], stops: [[seriesIndex, dataIndex], ...], tabs } */
const MOUNTED = new Map(); // the frames that are drawn, by their figure
const FEW = 14;

const AXIS = {
  axisLine: { lineStyle: { color: "var(--line)" } },
  axisTick: { lineStyle: { color: "var(--line)" } },
  axisLabel: { color: "var(--quiet)", fontSize: 12, hideOverlap: true },
  nameTextStyle: { color: "var(--quiet)", fontSize: 12 },
  splitLine: { lineStyle: { color: "var(--grid)" } },
};

function axis(more) {
  const made = { ...AXIS, ...more };
  for (const key of ["axisLabel", "axisTick", "splitLine", "axisLine"]) made[key] = { ...AXIS[key], ...(more[key] || {}) };
  return made;
}

const TOOLTIP = {
  confine: true,
  transitionDuration: 0,
  backgroundColor: "var(--card)",
  borderColor: "var(--line)",
  borderWidth: 1,
  padding: [7, 11],
  textStyle: { color: "var(--fg)" },
  extraCssText: "box-shadow: 0 3px 14px rgb(0 0 0 / 18%);",
};

class Frame {
  constructor(host, builder) {
    this.host = host;
    this.builder = builder;
    this.off = new Set();
    this.at = -1;
    this.tab = 0;
    this.legend = element("div", { class: "legend", role: "group", "aria-label": "Series of this chart" });
    this.plot = element("div", {
      class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart",
      "aria-label": `${host.getAttribute("aria-label")}. Arrow keys read the points.`,
    });
    this.hint = element("span", { class: "hint", "aria-hidden": "true" }, "← → read the points, Esc hides");
    host.append(this.legend, this.plot, this.hint);
    this.width = this.plot.clientWidth || document.querySelector("main").clientWidth; // a folded one will have about that
    const built = builder(this.width, this.tab, this.off);
    for (const entry of built.legend) if (entry.off) this.off.add(entry.name);
    this.show(built);
    new ResizeObserver(() => this.fit(this.plot.clientWidth)).observe(this.plot);
  }

  draw(width) {
    this.chart = echarts.init(this.plot, null, { renderer: "svg", width: this.width, height: this.built.height });
    this.plot.querySelector("svg")?.setAttribute("aria-hidden", "true");
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.hide());
    this.redraw(width || this.plot.clientWidth);
  }

  show(built) {
    this.built = built;
    this.plot.style.height = `${built.height}px`;
    if (this.chart) this.paint(built);
    this.buttons();
  }

  paint(built) {
    this.chart.resize({ width: this.width, height: built.height });
    const selected = Object.fromEntries(built.legend.map((entry) => [entry.name, !this.off.has(entry.name)]));
    this.chart.setOption(
      {
        animation: false,
        textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
        ...built.option,
        legend: { show: false, selected },
      },
      { notMerge: true },
    );
  }

  buttons() {
    const made = [];
    (this.built.tabs || []).forEach((name, index) => {
      const button = element("button", { type: "button", class: "tab", "aria-pressed": String(index === this.tab) }, name);
      button.addEventListener("click", () => {
        this.tab = index;
        this.off.clear();
        const built = this.builder(this.width, index, this.off);
        for (const entry of built.legend) if (entry.off) this.off.add(entry.name);
        this.at = -1;
        this.show(built);
        this.legend.querySelectorAll(".tab")[index].focus();
      });
      made.push(button);
    });
    if (made.length) made.push(element("span", { class: "gap" }));
    const most = this.built.legend.length > FEW + 2 && !this.unfolded ? FEW : Infinity;
    this.built.legend.slice(0, most).forEach((entry) => {
      const shown = !this.off.has(entry.name);
      const button = element("button", { type: "button", "aria-pressed": String(shown) }, swatch(entry.colour, entry.kind), entry.name);
      button.addEventListener("click", () => {
        this.off.has(entry.name) ? this.off.delete(entry.name) : this.off.add(entry.name);
        button.setAttribute("aria-pressed", String(!this.off.has(entry.name)));
        this.chart?.dispatchAction({ type: "legendToggleSelect", name: entry.name });
      });
      made.push(button);
    });
    if (most < Infinity) {
      const more = element("button", { type: "button", class: "more" }, `${this.built.legend.length - most} more`);
      more.addEventListener("click", () => {
        this.unfolded = true;
        this.buttons();
        this.legend.querySelectorAll("button:not(.tab)")[most].focus();
      });
      made.push(more);
    }
    this.legend.replaceChildren(...made);
  }

  fit(width) {
    if (width && width !== this.width) this.redraw(width);
  }

  redraw(width) {
    this.width = width;
    this.show(this.builder(width, this.tab, this.off));
  }

  key(event) {
    const names = this.chart.getOption().series.map((series) => series.name);
    const stops = this.built.stops.filter(([series]) => !this.off.has(names[series]));
    const last = stops.length - 1;
    const to = {
      ArrowRight: Math.min(last, this.at + 1), ArrowLeft: Math.max(0, this.at - 1),
      PageDown: Math.min(last, this.at + 10), PageUp: Math.max(0, this.at - 10), Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") this.hide();
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.at = to;
    const [seriesIndex, dataIndex] = stops[to];
    this.chart.dispatchAction({ type: "showTip", seriesIndex, dataIndex });
    const box = this.plot.querySelector(".tip");
    if (box) {
      const lines = [...box.children].map((line) => [...line.childNodes].map((node) => node.textContent).join(" "));
      document.getElementById("said").textContent = lines.join(", ");
    }
  }

  hide() {
    this.chart.dispatchAction({ type: "hideTip" });
    this.chart.dispatchAction({ type: "updateAxisPointer", currTrigger: "leave" });
  }
}
