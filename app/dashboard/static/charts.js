// Draws [data-history] (the overview's samples, kept up to date) and [data-series] (a page's own figures) with uPlot.
(() => {
  "use strict";
  const KEPT_S = 1800;
  const LEAST_S = 300; // that a chart of the past spans
  const WHOLE = Array.from({ length: 16 }, (_, i) => [1, 2, 5].map((each) => each * 10 ** i)).flat();
  const GAP_S = 12; // longer than this without a sample: ask for all of them again
  const charts = new Map();

  const token = (name) => {
    const probe = document.createElement("i");
    probe.className = `c-${name}`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const palette = () => ["c1", "c2", "c3", "c4", "c5", "c6"].map(token);

  const short = (value) => {
    for (const [step, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= step) return `${+(value / step).toPrecision(3)} ${letter}`;
    }
    return `${+(+value).toPrecision(3)}`;
  };

  const when = (at, step) => {
    const options = step >= 86400 ? { month: "short", day: "numeric", timeZone: "UTC" }
      : { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: "UTC", ...(step < 60 && { second: "2-digit" }) };
    return new Date(at * 1000).toLocaleString(undefined, options);
  };

  // What lies under the pointer, in words beneath the chart.
  const reader = (names, unit) => ({
    hooks: {
      init: [(plot) => {
        plot.readout = document.createElement("p");
        plot.readout.className = "readout";
        plot.readout.textContent = "\u00a0";
        plot.root.after(plot.readout);
      }],
      setCursor: [(plot) => {
        const at = plot.cursor.idx;
        if (at == null || plot.data[0][at] == null) { plot.readout.textContent = "\u00a0"; return; }
        const when = new Date(plot.data[0][at] * 1000).toISOString().slice(0, 19).replace("T", " ") + "Z";
        const values = names.map((name, i) => {
          const raw = plot.raw ? plot.raw[i + 1][at] : plot.data[i + 1][at];
          return raw == null ? null : `${name ? name + " " : ""}${short(raw)} ${unit}`;
        });
        plot.readout.textContent = `${when}: ${values.filter(Boolean).join(", ")}`;
      }],
    },
  });

  const draw = (node, data, { names, unit, bars = false, fill = true, raw = null, tones = names.map((_, i) => i) }) => {
    charts.get(node)?.plot.destroy();
    node.replaceChildren();
    const colours = palette(), line = token("line"), muted = token("muted");
    const axis = { stroke: muted, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui, sans-serif" };
    const plot = new uPlot({
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"), // as all times of these pages
      width: Math.max(200, node.clientWidth), height: 220, legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { show: !bars } },
      scales: { ...(bars && { x: { time: true, range: (_, low, high) => { const half = (data[0][1] - data[0][0] || 3600) / 2; return [low - half, high + half]; } } }), ...(!bars && { x: { time: true, range: (_, low, high) => [Math.min(low, high - LEAST_S), high] } }), y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [{ ...axis, size: 34, space: 80, values: (_, ticks, __, ___, step) => ticks.map((at) => when(at, step)) }, { ...axis, size: 58, incrs: WHOLE, values: (_, ticks) => ticks.map(short) }],
      series: [{}, ...names.map((name, i) => ({
        label: name || unit, stroke: colours[tones[i] % 6], width: bars ? 0 : 1.75, points: { show: false },
        fill: bars ? colours[tones[i] % 6] : fill && names.length === 1 ? token("fill") : undefined,
        paths: bars ? uPlot.paths.bars({ size: [0.75, 60] }) : undefined,
      }))],
      plugins: [reader(names, unit)],
    }, data, node);
    plot.raw = raw;
    charts.set(node, { plot, again: () => draw(node, plot.data, { names, unit, bars, fill, raw, tones }) });
    return plot;
  };

  // The overview: one set of samples for all of its charts.
  const KINDS = {
    tokens: { pick: (all) => [all[0], all[1]], names: [""], unit: "tokens/s" },
    queue: { pick: (all) => [all[0], all[2], all[3], all[4]], names: ["interactive", "standard", "batch"], unit: "jobs" },
  };
  let samples = null;
  const historyNodes = () => document.querySelectorAll("[data-history]");
  const showHistory = () => {
    for (const node of historyNodes()) {
      const kind = KINDS[node.dataset.history];
      const known = charts.get(node);
      if (known) known.plot.setData(kind.pick(samples));
      else draw(node, kind.pick(samples), kind);
    }
  };
  const fetchHistory = async () => {
    const answer = await fetch("/admin/overview/history/live", { headers: { "HX-Request": "true" } });
    if (answer.ok) { samples = await answer.json(); showHistory(); }
  };
  const takeSample = () => {
    const node = document.querySelector("[data-sample]");
    const row = node ? JSON.parse(node.dataset.sample) : [];
    if (!samples || !row.length) return;
    const last = samples[0].at(-1) ?? 0;
    if (row[0] <= last) return;
    if (row[0] - last > GAP_S) { fetchHistory(); return; }
    row.forEach((value, i) => samples[i].push(value));
    while (samples[0][0] < row[0] - KEPT_S) samples.forEach((column) => column.shift());
    showHistory();
  };

  // A page's own: {times, series: [{name, values}], unit}, drawn as stacked bars.
  const showSeries = (root) => {
    for (const node of root.querySelectorAll("[data-series]")) {
      const given = JSON.parse(node.dataset.series);
      const raw = [given.times, ...given.series.map((each) => each.values)];
      const stacked = [given.times];
      let below = given.times.map(() => 0);
      for (const each of given.series) {
        below = below.map((value, i) => value + each.values[i]);
        stacked.push(below);
      }
      // The highest first, so that the lower ones are painted over it.
      const order = [0, ...given.series.map((_, i) => given.series.length - i)];
      draw(node, order.map((i) => stacked[i]), {
        names: order.slice(1).map((i) => given.series[i - 1].name), unit: given.unit, bars: true,
        raw: order.map((i) => raw[i]), tones: order.slice(1).map((i) => i - 1),
      });
    }
  };

  if (historyNodes().length) fetchHistory();
  showSeries(document);
  document.body.addEventListener("htmx:afterSwap", (event) => { takeSample(); showSeries(event.detail.target); });
  document.addEventListener("penstock:theme", () => { for (const each of [...charts.values()]) each.again(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const each of [...charts.values()]) each.again(); });
  new ResizeObserver(() => {
    for (const [node, { plot }] of charts) if (node.isConnected && node.clientWidth > 0 && node.clientWidth !== plot.width) plot.setSize({ width: node.clientWidth, height: 220 });
  }).observe(document.body);
})();
