/* How each latency was distributed, by phase: shares of equal steps of a logarithmic axis. */
function spread(chart) {
  const metrics = ["ttft", "ttfat", "tpot", "itl", "e2e"].filter((metric) => metric in chart);
  return (width, tab) => {
    const narrow = width < 520;
    const metric = chart[metrics[tab]];
    const edges = metric.series.flatMap((each) => each.edges);
    const inside = metric.limits.filter(([limit]) => limit < Math.max(...edges) * 20);
    const x = logAxis([...edges, ...inside.map(([limit]) => limit)], narrow ? 5 : 9);
    const legend = [], series = [], stops = [];
    /* Those on show first, so that their colours differ. */
    [...metric.series].sort((a, b) => b.shown - a.shown).forEach((each, index) => {
      const colour = COLOURS[index % COLOURS.length];
      legend.push({ name: each.name, colour, kind: "line", off: !each.shown });
      const data = each.edges.map((edge, at) => [edge, at < each.shares.length ? each.shares[at] * 100 : 0, each.edges[at + 1], each.load, each.count]);
      data.unshift([each.edges[0], 0]);
      series.push({
        type: "line", name: each.name, step: "end", data, showSymbol: false, symbolSize: 7, lineStyle: { color: colour, width: 1.7 },
        itemStyle: { color: colour }, areaStyle: { color: colour, opacity: 0.12 }, emphasis: { disabled: true },
      });
      each.shares.forEach((share, at) => share > 0 && stops.push([index, at + 1]));
    });
    if (inside.length) {
      series.push({
        type: "line", name: "limit", data: [], silent: true,
        markLine: {
          silent: true, symbol: "none", lineStyle: { color: "var(--fg)", type: [6, 4], width: 1.5 },
          data: inside.map(([limit, text]) => ({ xAxis: limit, label: { color: "var(--fg)", fontSize: 12, position: "insideEndTop", rotate: 0, align: "right", offset: [-6, 14], formatter: () => `${text} ${seconds(limit)}` } })),
        },
      });
    }
    return {
      height: onPaper ? 200 : narrow ? 250 : 290,
      legend, stops, tabs: metrics.map((each) => each.toUpperCase()),
      option: {
        grid: { left: 8, right: 16, top: 16, bottom: 26, containLabel: true },
        xAxis: axis({ type: "log", min: x.min, max: x.max, name: `${metrics[tab].toUpperCase()}, share of the phase's values in steps of ${metric.step}`, nameLocation: "middle", nameGap: 28, axisLabel: { formatter: seconds, customValues: x.ticks }, axisTick: { customValues: x.ticks }, splitLine: { show: false } }),
        yAxis: axis({ type: "value", axisLabel: { formatter: (value) => `${figure(value)}%` }, splitNumber: 4 }),
        tooltip: {
          ...TOOLTIP, trigger: "axis", axisPointer: { type: "line", lineStyle: { color: "var(--quiet)", type: "solid" } },
          formatter: (found) => {
            const rows = found.filter((each) => each.value && each.value.length > 2 && each.value[2]);
            if (!rows.length) return "";
            const first = rows[0].value;
            return tip(`${seconds(first[0])} to ${seconds(first[2])}`, rows.map((each) => [`${each.seriesName} (${each.value[3]}, ${each.value[4]} values)`, `${figure(each.value[1])}%`, each.color, "line"]));
          },
        },
        series,
      },
    };
  };
}
