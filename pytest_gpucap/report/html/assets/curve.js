/* Latency against rate: a point on a line for each phase, a faint point for each window; limits, sustainable interval, design rate. */
function curve(chart) {
  const { rate, design } = chart;
  const rates = chart.series.flatMap((series) => [...series.points, ...series.windows].map(([x]) => x));
  const latencies = chart.series.flatMap((series) => [...series.points, ...series.windows].map(([, y]) => y));
  for (const series of chart.series) latencies.push(...series.limits.map(([limit]) => limit));
  const held = [design, rate && rate.value].filter((value) => value > 0);
  const middle = [...rates].sort((a, b) => a - b)[Math.floor(rates.length / 2)];
  const far = Math.max(...rates, ...held) > 4 * middle;
  const y = logAxis(latencies);
  const x = far ? logAxis([...rates, ...held]) : { min: 0, max: null };
  const most = x.max || Math.max(...rates, ...held) * 1.06;

  return (width) => {
    const narrow = width < 520;
    const legend = [], series = [], stops = [];
    const taken = new Set();
    for (const each of chart.series) {
      const own = METRIC_COLOURS[each.metric] || COLOURS[5];
      const colour = [own, ...COLOURS].find((one) => !taken.has(one)) || own;
      taken.add(colour);
      legend.push({ name: each.name, colour, kind: "line" });
      if (each.windows.length) {
        series.push({ type: "scatter", name: each.name, data: each.windows, symbolSize: 5, itemStyle: { color: colour, opacity: 0.35 }, phases: chart.phases, emphasis: { disabled: true } });
      }
      const limit = each.limits.length > 0 && {
        silent: true, symbol: "none", animation: false,
        lineStyle: { color: colour, type: [6, 4], width: 1.5 },
        z: 6, label: { ...HALO, position: emptier(), color: colour, fontSize: 12, formatter: ({ value }) => each.limits.filter(([at]) => at === value).map(([at, text]) => `${text} ${seconds(at)}`).join(", ") },
        data: each.limits.map(([at]) => ({ yAxis: at })),
      };
      stops.push(...[...each.points.keys()].sort((a, b) => each.points[a][0] - each.points[b][0]).map((point) => [series.length, point]));
      series.push({
        type: "line", name: each.name, data: each.points, symbol: "circle", symbolSize: 9, showSymbol: true, triggerLineEvent: false,
        lineStyle: { color: colour, width: each.joined ? 2 : 0 }, itemStyle: { color: colour, borderColor: "var(--card)", borderWidth: 1.5 },
        emphasis: { disabled: true }, ...(limit ? { markLine: limit } : {}), z: 4,
      });
    }
    if (rate) {
      const name = "sustainable rate";
      legend.push({ name, colour: "var(--band)", kind: "area" });
      const clip = (value) => Math.min(most, Math.max(x.min, value));
      series.push({
        type: "line", name, data: [], silent: true,
        markArea: { silent: true, itemStyle: { color: "var(--band)", opacity: 0.13 }, data: [[{ xAxis: clip(rate.low) }, { xAxis: clip(rate.high) }]] },
        markLine: {
          silent: true, symbol: "none", lineStyle: { color: "var(--band)", type: "solid", width: 2 },
          label: { ...HALO, show: !narrow, position: "end", color: "var(--band)", fontSize: 12, formatter: () => `sustains ${figure(rate.value)}` },
          data: [{ xAxis: rate.value }],
        },
      });
    }
    if (design) {
      legend.push({ name: "design rate", colour: "var(--fg)", kind: "dash" });
      series.push({
        type: "line", name: "design rate", data: [], silent: true,
        markLine: {
          silent: true, symbol: "none", lineStyle: { color: "var(--fg)", type: [2, 3], width: 2 },
          label: { ...HALO, show: !narrow, position: "end", color: "var(--fg)", fontSize: 12, distance: rate && Math.abs(position(design) - position(rate.value)) < 0.16 ? [0, 18] : 4, formatter: () => `design ${figure(design)}` },
          data: [{ xAxis: design }],
        },
      });
    }
    /* The end of the chart with fewer points and lines in it: that is where the limits are named. */
    function emptier() {
      const places = [...chart.series.flatMap((each) => each.points.map(([at]) => at)), ...held].map(position);
      return places.filter((at) => at > 0.75).length < places.filter((at) => at < 0.25).length ? "insideEndTop" : "insideStartTop";
    }
    function position(value) {
      return far ? Math.log(value / x.min) / Math.log(most / x.min) : value / most;
    }
    return {
      height: onPaper ? 250 : narrow ? 300 : 380,
      legend, stops,
      option: {
        grid: { left: 8, right: 14, top: narrow ? 12 : 40, bottom: 26, containLabel: true },
        xAxis: axis({
          type: far ? "log" : "value", min: x.min, max: most, name: "requests completed per second, one replica", nameLocation: "middle", nameGap: 28,
          axisLabel: { formatter: (value) => figure(value), ...(far ? { customValues: x.ticks } : {}), showMaxLabel: far },
          axisTick: far ? { customValues: x.ticks } : {}, splitLine: { show: false },
        }),
        yAxis: axis({ type: "log", min: y.min, max: y.max, axisLabel: { formatter: seconds, customValues: y.ticks }, axisTick: { show: false, customValues: y.ticks } }),
        tooltip: {
          ...TOOLTIP, trigger: "item",
          formatter: ({ seriesType, seriesName, value, color }) => {
            const [name, load, kind, inFlight] = (seriesType === "scatter" ? chart.phases : chart.line)[value[2]];
            return tip(name, [
              [seriesName, seconds(value[1]), color, "dot"],
              ["completed", `${figure(value[0])} req/s`],
              [kind === "closed" ? "held" : "offered", load.replace(" offered", "")],
              ["in flight", figure(inFlight)],
              ...(seriesType === "scatter" ? [["", "one window"]] : []),
            ]);
          },
        },
        series,
      },
    };
  };
}
