/* The sustainable rate from run to run: interval, levels, changes, design rate. */
function trend(chart) {
  const times = chart.t.map((text) => Date.parse(text));
  return (width) => {
    const narrow = width < 520;
    const many = times.length > 60;
    const pairs = (column) => times.map((time, at) => [time, column[at]]);
    const colour = "var(--s0)";
    const legend = [{ name: "sustainable rate", colour, kind: "line" }];
    const series = [{
      type: "line", name: "sustainable rate", data: pairs(chart.value), symbol: "circle", showSymbol: times.length <= 400, symbolSize: many ? 3.5 : 7,
      lineStyle: { color: colour, width: chart.levels.length ? 0 : 1.5 }, itemStyle: { color: colour }, emphasis: { disabled: true }, z: 5,
    }];
    if (times.length > 400) series[0].lineStyle.width = 1;
    if (chart.low.some((value) => value !== null)) {
      const name = "interval";
      legend.push({ name, colour, kind: "area" });
      const plain = { type: "line", name, stack: "interval", symbol: "none", silent: true, lineStyle: { width: 0 }, tooltip: { show: false }, emphasis: { disabled: true } };
      series.push({ ...plain, data: pairs(chart.low) });
      series.push({ ...plain, data: times.map((time, at) => [time, chart.high[at] === null || chart.low[at] === null ? null : chart.high[at] - chart.low[at]]), areaStyle: { color: colour, opacity: 0.16 } });
    }
    if (chart.levels.length) {
      legend.push({ name: "level", colour: "var(--fg)", kind: "line" });
      const data = chart.levels.flatMap(([from, to, value]) => [[times[from], value], [times[to], value], [times[to], null]]);
      series.push({ type: "line", name: "level", data, symbol: "none", lineStyle: { color: "var(--fg)", width: 2.2 }, itemStyle: { color: "var(--fg)" }, silent: true, tooltip: { show: false }, emphasis: { disabled: true }, z: 6 });
    }
    if (chart.design !== null) {
      legend.push({ name: "design rate", colour: "var(--fg)", kind: "dash" });
      series.push({
        type: "line", name: "design rate", data: [], silent: true,
        markLine: { silent: true, symbol: "none", lineStyle: { color: "var(--fg)", width: 2, type: [2, 3] }, label: { position: "insideStartTop", color: "var(--fg)", fontSize: 12, formatter: () => `design rate ${figure(chart.design)}` }, data: [{ yAxis: chart.design }] },
      });
    }
    if (chart.changes.length) {
      const tones = { down: "var(--fail)", up: "var(--pass)", other: "var(--quiet)" };
      series.push({
        type: "line", name: "change", data: [], silent: true,
        markLine: {
          silent: true, symbol: "none", data: chart.changes.map(([at, text, kind]) => ({
            xAxis: times[at], lineStyle: { color: tones[kind] || tones.other, type: "solid", width: 1.6 },
            label: { show: !narrow && chart.changes.length < 9, color: tones[kind] || tones.other, fontSize: 11.5, width: 190, overflow: "truncate", formatter: () => text },
          })),
        },
      });
    }
    const held = [...chart.value, chart.design].filter((value) => value !== null);
    const low = Math.min(...held), high = Math.max(...held);
    return {
      height: onPaper ? 260 : (narrow ? 260 : 320) + (many ? 34 : 0),
      legend, stops: times.flatMap((_, at) => (chart.value[at] === null ? [] : [[0, at]])),
      option: {
        grid: { left: 8, right: 18, top: 34, bottom: many && !onPaper ? 48 : 8, containLabel: true },
        xAxis: axis({ type: "time", splitLine: { show: false } }),
        yAxis: axis({ type: "value", ...(low > high / 2 ? { scale: true, boundaryGap: ["6%", "6%"] } : { min: 0 }), axisLabel: { formatter: (value) => figure(value) }, name: narrow ? "" : "req/s", nameLocation: "end", nameTextStyle: { align: "right", color: "var(--quiet)" } }),
        dataZoom: many && !onPaper ? [
          { type: "inside", filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false },
          { type: "slider", filterMode: "none", height: 22, bottom: 8, borderColor: "var(--line)", fillerColor: "transparent", backgroundColor: "var(--shade)", textStyle: { color: "var(--quiet)" }, dataBackground: { lineStyle: { color: "var(--quiet)" }, areaStyle: { opacity: 0 } }, selectedDataBackground: { lineStyle: { color: colour }, areaStyle: { color: colour, opacity: 0.12 } }, handleStyle: { color: "var(--card)", borderColor: "var(--quiet)" }, moveHandleStyle: { color: "var(--quiet)", opacity: 0.5 } },
        ] : [],
        tooltip: {
          ...TOOLTIP, trigger: "axis", axisPointer: { type: "line", snap: true, lineStyle: { color: "var(--quiet)", type: "solid" } },
          formatter: (found) => {
            const first = found.find((each) => each.seriesName === "sustainable rate");
            if (!first) return "";
            const at = first.dataIndex;
            return tip(chart.t[at].replace("T", " ").slice(0, 16), [
              ["sustainable rate", `${figure(chart.value[at])} req/s`, colour, "line"],
              ...(chart.low[at] === null ? [] : [["interval", `${figure(chart.low[at])} to ${figure(chart.high[at])}`]]),
              ...(chart.label[at] ? [["", chart.label[at]]] : []),
              ...(chart.judged[at] ? [] : [["", "too wide to be judged"]]),
            ]);
          },
        },
        series,
      },
    };
  };
}
