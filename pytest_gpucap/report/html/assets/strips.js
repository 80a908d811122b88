/* Everything over time: one strip under the other on one axis, with the phases shaded behind. */
function strips(chart) {
  const TOP = 50;
  const OWN = { Requests: ["var(--s5)", "var(--s0)", "var(--s1)"], Output: ["var(--s2)"], "KV cache": ["var(--s3)"], "GPU use": ["var(--s0)"], "SM clock": ["var(--s4)"], Power: ["var(--s1)"], CPU: ["var(--s5)"] };
  const NEAR = Math.max(0.6, chart.t.length > 1 ? (chart.t[1] - chart.t[0]) * 0.6 : 0);
  const end = Math.max(...chart.bands.map((band) => band[1]), ...(chart.t.length ? [chart.t[chart.t.length - 1]] : []));

  return (width, tab, off) => {
    const [HEIGHT, GAP, SMALL] = onPaper ? [38, 24, 10] : [92, 40, 12];
    const legend = [], grids = [], xAxes = [], yAxes = [], series = [], titles = [];
    const units = {};
    chart.strips.forEach((strip, index) => {
      const last = index === chart.strips.length - 1;
      const top = TOP + index * (HEIGHT + GAP);
      grids.push({ left: 58, right: 12, top, height: HEIGHT });
      titles.push({ text: strip.unit && strip.unit !== "s" ? `${strip.title} (${strip.unit})` : strip.title, left: 0, top: top - (index === 0 ? 40 : onPaper ? 16 : 25), padding: 0, textStyle: { color: "var(--fg)", fontSize: onPaper ? 11 : 12.5, fontWeight: 600 } });
      xAxes.push(axis({
        type: "value", gridIndex: index, min: 0, max: end, splitLine: { show: false },
        axisLabel: { show: last, formatter: (value) => `${figure(value, 4)} s`, showMaxLabel: false }, axisTick: { show: last },
        axisPointer: { show: true, label: { show: false }, lineStyle: { color: "var(--quiet)", type: "solid" } },
      }));
      const limits = strip.title === "Latency" ? chart.limits : [];
      const numbers = strip.series.flatMap((each) => (each.pairs ? each.pairs.map((pair) => pair[1]) : each.data)).filter((value) => value !== null);
      const log = strip.title === "Latency" ? logAxis([...numbers, ...limits.map((limit) => limit[0])].filter((value) => value > 0), onPaper ? 3 : 5) : null;
      yAxes.push(axis(log
        ? { type: "log", gridIndex: index, min: log.min, max: log.max, axisLabel: { fontSize: SMALL, formatter: seconds, customValues: log.ticks }, axisTick: { show: false } }
        : { type: "value", gridIndex: index, splitNumber: 2, min: 0, max: strip.unit === "%" ? percentEnd(numbers) : null, axisLabel: { fontSize: SMALL, formatter: (value) => figure(value) }, axisTick: { show: false }, axisLine: { show: true, lineStyle: { color: "var(--line)" } } }));
      strip.series.forEach((each, place) => {
        const colour = each.metric ? METRIC_COLOURS[each.metric] : OWN[strip.title][place];
        const data = each.pairs || each.data.map((value, at) => [(each.telemetry ? chart.t : chart.client_t)[at], value]);
        legend.push({ name: each.name, colour, kind: "line" });
        units[each.name] = strip.unit;
        const lines = limits.filter((limit) => limit[2] === each.metric);
        series.push({
          type: "line", name: each.name, xAxisIndex: index, yAxisIndex: index, data, showSymbol: true, symbol: alone(data), symbolSize: 4, connectNulls: false,
          lineStyle: { color: colour, width: 1.6 }, itemStyle: { color: colour }, emphasis: { disabled: true }, z: 4,
          ...(strip.series.length === 1 && !each.metric ? { areaStyle: { color: colour, opacity: 0.13 } } : {}),
          ...(lines.length ? { markLine: { silent: true, symbol: "none", lineStyle: { color: colour, type: [6, 4], width: 1.3 }, label: { show: false }, data: lines.map((limit) => ({ yAxis: limit[0] })) } } : {}),
        });
      });
      series.push({
        type: "line", name: `\u0000bands ${index}`, xAxisIndex: index, yAxisIndex: index, data: [], silent: true, tooltip: { show: false },
        markArea: {
          silent: true, itemStyle: { color: "var(--shade)" }, z: 0,
          label: { color: "var(--quiet)", fontSize: 11, position: [1, -15] },
          data: chart.bands.map(([from, to, name]) => {
            const room = ((to - from) / end) * (width - 70);
            return [{ xAxis: from, label: { show: index === 0 && room > name.length * 6.4 + 6, formatter: () => name } }, { xAxis: to }];
          }),
        },
      });
    });
    const longest = series.reduce((best, each, at) => (each.data.length > series[best].data.length ? at : best), 0);
    const stops = series[longest].data.flatMap((pair, at) => (pair[1] === null ? [] : [[longest, at]]));
    return {
      height: TOP + chart.strips.length * (HEIGHT + GAP) - GAP + 28,
      legend, stops,
      option: {
        title: titles, grid: grids, xAxis: xAxes, yAxis: yAxes, series,
        axisPointer: { link: [{ xAxisIndex: "all" }] },
        tooltip: {
          ...TOOLTIP, trigger: "axis", axisPointer: { type: "line" },
          formatter: (found) => {
            if (!found.length) return "";
            const at = found[0].axisValue;
            /* Looked up here: of one axis, ECharts gives only the series with a point at exactly the nearest time. */
            const shown = series.filter((each) => each.name in units && !off.has(each.name)).map((each) => [each, valueAt(each.data, at)]).filter(([, value]) => value !== null);
            const phase = chart.bands.find((band) => band[0] <= at && at <= band[1]);
            return tip(`${figure(at, 4)} s${phase ? `, ${phase[2]}` : ""}`, shown.map(([each, value]) => [each.name, withUnit(value, units[each.name]), each.itemStyle.color, "line"]));
          },
        },
      },
    };
  };

  /* The nearer one of the two points around a time. At the edge of a gap there is only one: it counts if it is near. */
  function valueAt(points, time) {
    let low = 0, high = points.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < time) low = middle + 1;
      else high = middle;
    }
    const around = [points[low - 1], points[low]].filter((point) => point && point[1] !== null);
    const far = around.length === 2 ? Infinity : NEAR;
    const near = around.filter((point) => Math.abs(point[0] - time) <= far).sort((a, b) => Math.abs(a[0] - time) - Math.abs(b[0] - time));
    return near.length ? near[0][1] : null;
  }

  /* A value between two gaps has no line: it gets a dot. */
  function alone(data) {
    const there = (at) => at >= 0 && at < data.length && data[at][1] !== null;
    return (value, { dataIndex }) => (there(dataIndex - 1) || there(dataIndex + 1) ? "none" : "circle");
  }

  function percentEnd(numbers) {
    const high = Math.max(...numbers);
    return [1, 2, 4, 10, 20, 40, 60, 80].find((end) => high <= end * 0.95) || 100;
  }
}
