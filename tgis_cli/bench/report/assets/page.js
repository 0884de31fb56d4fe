// The charts of a load. The page's tables are there already; `data` holds LoadDetail.

const data = JSON.parse(document.getElementById("data").textContent);
const levels = data?.levels ?? [];
const root = document.documentElement;

function getGrid(id) {
  return document.querySelector(`#${id} .grid`);
}

// Show a group of charts only if there is one.
function settle(id) {
  document.getElementById(id).hidden = !getGrid(id).children.length;
}

// --- All loads: throughput against latency, and the parts of the first token

function drawCompared() {
  const grid = getGrid("compared");
  if (levels.length > 1) {
    const drawn = ["ttft", "itl", "e2e"].filter((name) => levels.filter((level) => getPercentile(level, name, "50")).length > 1);
    const names = drawn.includes("ttft") ? drawn.filter((name) => name !== "e2e") : drawn;
    for (const name of names) {
      addFigure(grid, NAMES[name], "", (chart, legend) => drawAgainst(chart, legend, name));
    }
  }
  if (levels.length < 2) document.querySelector("#compared h2").textContent = NAMES.ttft;
  const split = levels.filter((level) => PARTS.some(([part]) => level.first_token_split?.[part] > 0));
  if (split.length) {
    const figure = addFigure(grid, "Parts of the time to the first token", "on average", (chart, legend) => drawSplit(chart, legend, split));
    figure.style.gridColumn = "1 / -1";
  }
  settle("compared");
}

const NAMES = { ttft: "Time to first token", itl: "Inter-token latency", tpot: "Time per output token", e2e: "End-to-end latency" };
const PERCENTS = [["50", "blue"], ["95", "amber"]];

function getPercentile(level, name, percent) {
  const estimate = level.latencies[name]?.percentiles[percent];
  return estimate && isKnown(estimate.value) ? estimate : null;
}

function drawAgainst(chart, legend, name) {
  chart.open({ height: 250, bottom: 40, top: 22, right: 26 });
  const points = levels.flatMap((level) =>
    PERCENTS.map(([percent, color]) => ({ level, percent, color, rate: level.output_tokens_per_s, latency: getPercentile(level, name, percent) })),
  ).filter(({ rate, latency }) => latency && isKnown(rate.value));
  const most = Math.max(...points.map(({ rate }) => rate.high ?? rate.value));
  const x = makeLinear(0, most * 1.06, chart.left, chart.right);
  const upright = makeUpright(points.flatMap(({ latency: { value, low, high } }) => [value, low, high]), chart.bottom, chart.top);
  chart.addUpright(upright, "seconds");
  chart.addLevel(x, formatNumber, { title: "output tokens/s" });
  const y = upright.scale;
  for (const [percent, color] of PERCENTS) {
    const own = points.filter((point) => point.percent === percent);
    chart.addLine(own.map(({ rate, latency }) => [x(rate.value), y(latency.value)]), color);
    for (const { rate, latency } of own) {
      const [at, height] = [x(rate.value), y(latency.value)];
      if (isKnown(latency.low) && isKnown(latency.high)) chart.addWhisker(at, y(latency.low), at, y(latency.high), color);
      if (isKnown(rate.low) && isKnown(rate.high)) chart.addWhisker(x(rate.low), height, x(rate.high), height, color);
      chart.add("circle", { class: `mark fill ${color}`, cx: at, cy: height, r: 3.5 });
    }
  }
  const knee = points.filter(({ level, percent }) => level.title === data.knee && percent === "50");
  for (const { rate, latency } of knee) chart.add("circle", { class: "ring", cx: x(rate.value), cy: y(latency.value), r: 7 });
  addLevelNames(chart, levels.map((level) => points.findLast((point) => point.level === level)).filter(Boolean), x, y);
  const drawn = PERCENTS.filter(([percent]) => points.some((point) => point.percent === percent));
  showLegend(legend, drawn.map(([percent, color]) => [color, `p${percent}`]).concat(knee.length ? [["ring", "knee"]] : []));
  chart.addTips(
    points.map(({ level, percent, rate, latency }) => ({
      x: x(rate.value),
      y: y(latency.value),
      text: `${level.title}\n${formatNumber(rate.value)} tokens/s\n${describeEstimate(`p${percent}`, latency)}`,
    })),
    { by: "xy" },
  );
}

function describeEstimate(name, { value, low, high }) {
  const interval = isKnown(low) && isKnown(high) ? ` (${FORMATS.seconds(low)} – ${FORMATS.seconds(high)})` : "";
  return `${name} ${FORMATS.seconds(value)}${interval}`;
}

// Names above the points and before them, where no rising line passes; those that would overlap are left to the tips.
function addLevelNames(chart, points, x, y) {
  const taken = [];
  for (const { level, rate, latency } of points) {
    const [at, height, width] = [x(rate.value), y(latency.high ?? latency.value) - 7, level.title.length * 6.2];
    const left = at - 7 - width > chart.left ? at - 7 - width : Math.max(chart.left + 4, at - width / 2);
    if (taken.some((other) => other.right > left && other.left < left + width && Math.abs(other.y - height) < 13)) continue;
    taken.push({ left, right: left + width, y: height });
    chart.addText(left, height, level.title, { class: "strong halo" });
  }
}

const PARTS = [["client", "gray"], ["queue", "amber"], ["prefill", "blue"], ["rest", "teal"]];

function drawSplit(chart, legend, split) {
  const row = 26;
  const longest = Math.max(...split.map((level) => level.title.length));
  chart.open({ height: split.length * row + 30, top: 4, left: Math.min(120, 14 + longest * 6.4), right: 64 });
  const getSum = (level) => PARTS.reduce((sum, [part]) => sum + Math.max(0, level.first_token_split[part] ?? 0), 0);
  const x = makeLinear(0, Math.max(...split.map(getSum)), chart.left, chart.right);
  chart.addLevel(x, FORMATS.seconds, { every: 90 });
  const tips = [];
  split.forEach((level, index) => {
    const y = chart.top + index * row + 4;
    let from = 0;
    for (const [part, color] of PARTS) {
      const seconds = Math.max(0, level.first_token_split[part] ?? 0);
      chart.add("rect", { class: `mark fill ${color}`, x: x(from), y, width: Math.max(0, x(from + seconds) - x(from)), height: row - 8 });
      if (seconds) tips.push({ x: x(from + seconds / 2), y: y + row / 2, text: `${level.title}\n${part} ${FORMATS.seconds(seconds)}` });
      from += seconds;
    }
    chart.addText(chart.left - 8, y + 13, level.title, { "text-anchor": "end", class: "strong" });
    chart.addText(x(from) + 6, y + 13, FORMATS.seconds(from), { class: "strong" });
  });
  showLegend(legend, PARTS.map(([part, color]) => [color, part]));
  chart.addTips(tips, { by: "xy" });
}

// --- One load: distributions, the run second by second, requests

function drawLevel(level) {
  for (const id of ["distributions", "run", "requests"]) getGrid(id).replaceChildren();
  drawDistributions(level);
  drawRun(level);
  if (level.waterfall.length) {
    const isPart = level.waterfall.length < level.sent;
    const subtitle = `${isPart ? `${level.waterfall.length} of ${formatCount(level.sent)}, ` : ""}in the order in which they were sent`;
    addFigure(getGrid("requests"), "From sending to the last token", subtitle, (chart, legend) => drawWaterfall(chart, legend, level));
  }
  for (const id of ["distributions", "run", "requests"]) settle(id);
}

function formatCount(number) {
  return number.toLocaleString("en");
}

const MIN_SAMPLES = 10; // fewer show no distribution
const MIN_SPAN = 1.1; // of its axis, so that values that are nearly equal have ticks that differ

function drawDistributions(level) {
  const names = ["ttft", "itl", "tpot", "e2e"].filter((name) => level.latencies[name]?.counts.length && level.latencies[name].count >= MIN_SAMPLES);
  const rows = Math.max(...names.map((name) => listMarked(level.latencies[name]).length));
  for (const name of names) {
    const each = level.latencies[name];
    addFigure(getGrid("distributions"), NAMES[name], `${formatCount(each.count)} samples`, (chart) => drawHistogram(chart, each, rows));
  }
}

function listMarked({ percentiles }) {
  return [["99", "teal"], ["95", "amber"], ["50", "blue"]].filter(([percent]) => isKnown(percentiles[percent]?.value));
}

// `rows` for percentiles above the bars: as many as the chart beside it has, so that both are aligned.
function drawHistogram(chart, distribution, rows) {
  const { edges, counts, percentiles, count } = distribution;
  const marked = listMarked(distribution);
  chart.open({ height: 165 + rows * 15, top: 16 + rows * 15 });
  const first = counts.findIndex((each) => each > 0);
  const last = counts.findLastIndex((each) => each > 0);
  const wider = Math.sqrt(Math.max(1, (MIN_SPAN * edges[first]) / edges[last + 1]));
  const x = makeLog(edges[first] / wider, edges[last + 1] * wider, chart.left, chart.right);
  const upright = makeUpright(counts.map((each) => each / count), chart.bottom, chart.top, { isLog: false });
  chart.addUpright(upright, "share");
  chart.addLevel(x, FORMATS.seconds);
  const tips = [];
  for (let index = first; index <= last; index += 1) {
    const [from, to, y] = [x(edges[index]), x(edges[index + 1]), upright.scale(counts[index] / count)];
    if (counts[index]) chart.add("rect", { class: "mark soft gray", x: from, y, width: Math.max(0.5, to - from - 1), height: chart.bottom - y });
    const span = `${FORMATS.seconds(edges[index])} – ${FORMATS.seconds(edges[index + 1])}`;
    tips.push({ x: (from + to) / 2, y, text: `${span}\n${formatCount(counts[index])} samples, ${FORMATS.share(counts[index] / count)}` });
  }
  marked.forEach(([percent, color], index) => addPercentile(chart, x, `p${percent}`, percentiles[percent], color, 12 + (rows - marked.length + index) * 15));
  chart.addTips(tips);
}

// One percentile in a row of its own above the bars: its line, its interval, its value. The highest one is on top and
// values stand before their lines, so that no line crosses a value.
function addPercentile(chart, x, name, estimate, color, y) {
  const keep = (seconds) => x(Math.min(x.high, Math.max(x.low, seconds)));
  const at = keep(estimate.value);
  const [low, high] = [keep(estimate.low ?? estimate.value), keep(estimate.high ?? estimate.value)];
  chart.add("line", { class: `whisker ${color}`, x1: at, x2: at, y1: y, y2: chart.bottom, "stroke-dasharray": "3 3" });
  if (high - low > 1) chart.addWhisker(low, y, high, y, color);
  chart.add("circle", { class: `fill ${color}`, cx: at, cy: y, r: 3 });
  const text = `${name} ${FORMATS.seconds(estimate.value)}`;
  const isLeft = low - 12 - text.length * 6.2 > 0;
  chart.addText(isLeft ? low - 8 : high + 8, y + 4, text, { "text-anchor": isLeft ? "end" : "start", class: "strong halo" });
}

function drawRun(level) {
  const { series } = level;
  const { rows_per_step: rows, waiting, kv_used_share: used } = series.server;
  const addSeries = (title, subtitle, kind, lines, errors = []) => {
    const shown = lines.filter(([, values]) => values?.some(isKnown)).map(([name, values, color]) => ({ name, values, color }));
    const hasErrors = errors.some((each) => each > 0);
    if (!shown.length && !hasErrors) return;
    addFigure(getGrid("run"), title, subtitle, (chart, legend) => {
      drawSeries(chart, level, kind, shown, hasErrors ? errors : []);
      const entries = shown.map(({ name, color }) => [color, name]).concat(hasErrors ? [["red", "failed"]] : []);
      if (entries.length > 1) showLegend(legend, entries);
    });
  };
  addSeries("Output", "tokens/s", "count", [["tokens/s", series.output_tokens_per_s.some((each) => each > 0) ? series.output_tokens_per_s : [], "blue"]]);
  addSeries("Requests in flight", "", "count", [["in flight", series.in_flight, "blue"]], series.errors);
  addSeries("Time to first token", "", "seconds", [["p50", series.ttft_p50_s, "blue"], ["p95", series.ttft_p95_s, "amber"]]);
  addSeries("Inter-token latency", "", "seconds", [["p50", series.itl_p50_s, "blue"], ["p95", series.itl_p95_s, "amber"]]);
  addSeries("Server: sequences", "", "count", [["rows per step", rows, "blue"], ["waiting", waiting, "amber"]]);
  addSeries("Server: KV cache", "share of blocks in use", "share", [["KV cache", used, "teal"]]);
}

function drawSeries(chart, { series, whole, steady }, kind, lines, errors) {
  chart.open();
  const step = series.step_s;
  const length = Math.max(...lines.map(({ values }) => values.length), errors.length);
  const end = Math.max(whole.end_s - whole.start_s, (length - 0.5) * step);
  const x = makeLinear(0, end, chart.left, chart.right);
  for (const [from, to] of [[0, steady.start_s], [steady.end_s, end]]) {
    if (to > from) chart.add("rect", { class: "outside", x: x(from), y: chart.top, width: x(to) - x(from), height: chart.bottom - chart.top });
  }
  const upright = makeUpright(lines.flatMap(({ values }) => values).concat(errors), chart.bottom, chart.top, {
    isLog: kind === "seconds" ? null : false,
    least: kind === "count" ? 4 : 0,
  });
  const y = upright.scale;
  chart.addUpright(upright, kind);
  chart.addLevel(x, (tick) => `${formatNumber(tick)} s`);
  const middle = (index) => x(Math.min(end, (index + 0.5) * step));
  if (lines.length === 1) addArea(chart, lines[0], middle, y);
  for (const { values, color } of lines) chart.addLine(values.map((value, index) => [middle(index), isKnown(value) ? y(value) : null]), color);
  errors.forEach((number, index) => {
    const width = Math.max(2, (x(step) - x(0)) * 0.6);
    if (number > 0) chart.add("rect", { class: "mark fill red", x: middle(index) - width / 2, y: y(number), width, height: chart.bottom - y(number) });
  });
  chart.addTips(
    Array.from({ length }, (_, index) => {
      const texts = lines.map(({ name, values }) => `${name} ${isKnown(values[index]) ? FORMATS[kind](values[index]) : "–"}`);
      if (errors[index]) texts.push(`failed ${errors[index]}`);
      return { x: middle(index), text: [`${formatNumber(index * step)} – ${formatNumber((index + 1) * step)} s`, ...texts].join("\n") };
    }),
  );
}

function addArea(chart, { values, color }, middle, y) {
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const top = run.map(([x, height]) => `L${x.toFixed(1)} ${height.toFixed(1)}`).join("").slice(1);
      chart.add("path", { class: `area ${color}`, d: `M${top}L${run.at(-1)[0]} ${chart.bottom}L${run[0][0]} ${chart.bottom}Z` });
    }
    run = [];
  };
  values.forEach((value, index) => (isKnown(value) ? run.push([middle(index), y(value)]) : close()));
  close();
}

function drawWaterfall(chart, legend, { waterfall, whole }) {
  const calls = [...waterfall].sort((one, other) => one.sent_s - other.sent_s);
  const row = Math.min(14, Math.max(2.5, 420 / calls.length));
  chart.open({ height: calls.length * row + 34, left: 10, top: 6 });
  const ends = calls.map((call) => call.end_s ?? call.first_s ?? call.sent_s);
  const x = makeLinear(0, Math.max(whole.end_s - whole.start_s, ...ends), chart.left, chart.right);
  for (const tick of x.getTicks(Math.max(2, Math.floor(chart.width / 110)))) {
    chart.add("line", { class: "gridline", x1: x(tick), x2: x(tick), y1: chart.top, y2: chart.bottom });
  }
  const bars = [];
  calls.forEach((call, index) => {
    const y = chart.top + index * row;
    const end = ends[index];
    const add = (from, to, color) => {
      if (!isKnown(from) || !isKnown(to) || to < from) return;
      bars.push(color);
      chart.add("rect", { class: `mark fill ${color}`, x: x(from), y, width: Math.max(0.75, x(to) - x(from)), height: row * 0.8 });
    };
    const isDone = call.status === "OK";
    if (call.sent_s - call.due_s > 0.001) add(call.due_s, call.sent_s, "gray");
    if (isKnown(call.first_s)) add(call.sent_s, call.first_s, "amber");
    add(call.first_s ?? call.sent_s, end, isDone ? (isKnown(call.first_s) ? "blue" : "teal") : "red");
  });
  chart.addLevel(x, (tick) => `${formatNumber(tick)} s`, { every: 110 });
  const entries = [["gray", "due, not sent"], ["amber", "waiting for the first token"], ["blue", "generating"], ["teal", "in progress"], ["red", "failed or cut"]];
  showLegend(legend, entries.filter(([color]) => bars.includes(color)));
  chart.addTips(
    calls.map((call, index) => ({ x: x(call.sent_s), y: chart.top + (index + 0.5) * row, text: describeCall(call, ends[index]) })),
    { by: "y" },
  );
}

function describeCall(call, end) {
  const lines = [`sent at ${FORMATS.seconds(call.sent_s)}`];
  if (isKnown(call.first_s)) lines.push(`first token after ${FORMATS.seconds(call.first_s - call.sent_s)}`);
  lines.push(`ended after ${FORMATS.seconds(end - call.sent_s)}, ${formatCount(call.output_tokens ?? 0)} tokens`);
  if (call.status !== "OK") lines.push(String(call.status));
  return lines.join("\n");
}

// --- The page: which load is shown, and the theme

function choose(index) {
  document.querySelectorAll("[data-level]").forEach((part) => {
    part.hidden = Number(part.dataset.level) !== index;
  });
  document.querySelectorAll(".chooser button").forEach((button, number) => {
    button.setAttribute("aria-checked", String(number === index));
    button.tabIndex = number === index ? 0 : -1;
  });
  document.querySelectorAll("#results tbody tr").forEach((row, number) => row.classList.toggle("chosen", levels.length > 1 && number === index));
  drawLevel(levels[index]);
}

function openChooser() {
  const chooser = document.querySelector(".chooser");
  chooser.hidden = levels.length < 2;
  levels.forEach((level, index) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: level.title });
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => choose(index));
    chooser.append(button);
  });
  chooser.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const buttons = [...chooser.children];
    const next = (buttons.indexOf(document.activeElement) + move + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
  });
}

function openThemes() {
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} colours`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  button.hidden = false;
  name();
}

openThemes();
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
if (levels.length) {
  drawCompared();
  openChooser();
  const knee = levels.findIndex((level) => level.title === data.knee);
  choose(knee >= 0 ? knee : levels.length - 1);
}
