/* The numbers behind a chart as a table, made when somebody opens it. */
const TABLES = {
  strips(chart) {
    const all = chart.strips.flatMap((strip) => strip.series.map((each) => ({ ...each, unit: strip.unit })));
    const found = [];
    const client = all.filter((each) => !each.telemetry && !each.pairs);
    const telemetry = all.filter((each) => each.telemetry);
    for (const [caption, columns, times] of [["As the clients saw it", client, chart.client_t], ["Telemetry", telemetry, chart.t]]) {
      if (!columns.length) continue;
      const rows = times.flatMap((time, at) => columns.every((each) => each.data[at] === null) ? [] : [[`${time} s`, ...columns.map((each) => withUnit(each.data[at], each.unit))]]);
      found.push({ caption, headers: ["time", ...columns.map((each) => each.name)], rows });
    }
    return found;
  },
  spread(chart) {
    return Object.entries(chart).map(([metric, { series }]) => ({
      caption: `${metric.toUpperCase()}: share of each phase's values`,
      headers: ["phase", "values", "above", "up to", "share"],
      rows: series.flatMap((each) => each.shares.map((share, at) => [each.name, String(each.count), seconds(each.edges[at]), seconds(each.edges[at + 1]), `${figure(share * 100)}%`])),
    }));
  },
  trend(chart) {
    return [{
      caption: "Sustainable rate of one replica, req/s",
      headers: ["run", "rate", "low", "high", "what was measured"],
      rows: chart.t.map((time, at) => [time.replace("T", " ").slice(0, 16), figure(chart.value[at]), figure(chart.low[at]), figure(chart.high[at]), chart.label[at]]),
    }];
  },
};

function fillTable(details) {
  if (details.dataset.filled) return;
  details.dataset.filled = "yes";
  const kind = details.dataset.table, index = Number(details.dataset.index);
  const chart = kind === "trend" ? DATA.trends[index] : DATA.results[index][kind];
  for (const { caption, headers, rows } of TABLES[kind](chart)) {
    const head = element("tr", {}, ...headers.map((text) => element("th", { scope: "col" }, text)));
    const body = rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((text) => element("td", {}, text))));
    const table = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
    const whose = details.dataset.name;
    details.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, ${whose}` }, table));
  }
}
