"use strict";
// Charts as SVG: scales, axes and marks. Knows nothing of benchmarks. Colours and fonts are those of page.css.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function isKnown(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// Numbers with three significant digits.
function formatNumber(value) {
  if (!isKnown(value)) return "–";
  if (value === 0) return "0";
  const digits = Math.min(4, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

const FORMATS = {
  seconds: (value) => (value < 1 ? `${formatNumber(value * 1000)} ms` : `${formatNumber(value)} s`),
  share: (value) => `${formatNumber(value * 100)} %`,
  count: formatNumber,
};

function makeLinear(low, high, from, to) {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  return Object.assign(scale, { low, high, getTicks: (count) => findTicks(low, high, count) });
}

// Values below its low end, such as 0, are placed there.
function makeLog(low, high, from, to) {
  const place = makeLinear(Math.log10(low), Math.log10(high), from, to);
  return Object.assign((value) => place(Math.log10(Math.max(low, value))), { low, high, getTicks: (count) => findLogTicks(low, high, count) });
}

function findStep(range, count) {
  const power = 10 ** Math.floor(Math.log10(range / count));
  return power * [1, 2, 5, 10].find((each) => each * power * count >= range * 0.999);
}

function findTicks(low, high, count) {
  const step = findStep(high - low || 1, count);
  const first = Math.ceil(low / step - 1e-9);
  const number = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: number }, (_, index) => (first + index) * step);
}

function findLogTicks(low, high, count) {
  if (high / low < 8) return findTicks(low, high, count);
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) ticks.push(factor * 10 ** power);
    }
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length <= count || factors.length === 1) return inside;
  }
}

// A scale for a vertical axis: from 0, or logarithmic where the values span more than a decade.
function makeUpright(values, from, to, { isLog = null, least = 0 } = {}) {
  const known = values.filter(isKnown);
  const high = Math.max(least, ...known);
  const low = Math.min(...known.filter((value) => value > 0));
  if (isLog ?? high / low > 12) return { isLog: true, scale: makeLog(low * 0.8, high * 1.25, from, to) };
  const step = findStep(high || 1, 4);
  return { isLog: false, scale: makeLinear(0, Math.ceil((high || 1) / step - 1e-9) * step, from, to) };
}

// A figure with a caption; its chart is drawn again when its width changes.
function addFigure(grid, title, subtitle, draw) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const [text, name, note, legend, plot] = ["div", "b", "span", "div", "div"].map((tag) => document.createElement(tag));
  name.textContent = title;
  note.textContent = subtitle && ` ${subtitle}`;
  text.append(name, note);
  legend.className = "legend";
  caption.append(text, legend);
  figure.append(caption, plot);
  grid.append(figure);
  const redraw = () => {
    if (plot.clientWidth) draw(new Chart(plot, title), legend);
  };
  redraw();
  new ResizeObserver(redraw).observe(plot);
  return figure;
}

function showLegend(legend, entries) {
  legend.replaceChildren(
    ...entries.map(([color, text]) => {
      const entry = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.className = color;
      entry.append(swatch, text);
      return entry;
    }),
  );
}

class Chart {
  constructor(host, title) {
    this.host = host;
    this.title = title;
    this.width = Math.max(220, Math.floor(host.clientWidth));
  }

  open({ height = 160, left = 50, right = 14, top = 12, bottom = 24 } = {}) {
    Object.assign(this, { height, left, top, right: this.width - right, bottom: height - bottom });
    this.svg = make("svg", { viewBox: `0 0 ${this.width} ${height}`, role: "img", tabindex: 0, "aria-label": this.title });
    this.host.replaceChildren(this.svg);
  }

  add(name, attributes, text = null) {
    const node = make(name, attributes, text);
    this.svg.append(node);
    return node;
  }

  addText(x, y, text, attributes = {}) {
    return this.add("text", { x, y, ...attributes }, text);
  }

  // The horizontal lines with their values. Seconds of a linear scale share one unit.
  addUpright({ scale, isLog }, kind) {
    const inUnit = scale.high < 1 ? (value) => `${formatNumber(value * 1000)} ms` : (value) => `${formatNumber(value)} s`;
    const format = kind === "seconds" && !isLog ? inUnit : FORMATS[kind];
    for (const tick of scale.getTicks(isLog ? 6 : 4)) {
      const y = scale(tick);
      this.add("line", { class: tick === 0 ? "baseline" : "gridline", x1: this.left, x2: this.right, y1: y, y2: y });
      this.addText(this.left - 6, y + 4, format(tick), { "text-anchor": "end" });
    }
  }

  // The values below the chart; those at the ends stay inside of it, and those that would overlap are left out.
  addLevel(scale, format, { every = 55, title = "" } = {}) {
    let taken = -Infinity;
    this.add("line", { class: "baseline", x1: this.left, x2: this.right, y1: this.bottom, y2: this.bottom });
    for (const tick of scale.getTicks(Math.max(2, Math.floor((this.right - this.left) / every)))) {
      const [x, text] = [scale(tick), format(tick)];
      const half = text.length * 3.3;
      const middle = Math.min(x, this.width - half);
      this.add("line", { class: "baseline", x1: x, x2: x, y1: this.bottom, y2: this.bottom + 4 });
      if (middle - half < taken + 4) continue;
      taken = middle + half;
      this.addText(middle, this.bottom + 16, text, { "text-anchor": "middle" });
    }
    if (title) this.addText((this.left + this.right) / 2, this.bottom + 32, title, { "text-anchor": "middle" });
  }

  // A line through the known points. Points without neighbours are dots.
  addLine(points, color) {
    let path = "";
    points.forEach(([x, y], index) => {
      if (!isKnown(y)) return;
      const hasBefore = index > 0 && isKnown(points[index - 1][1]);
      const hasAfter = index + 1 < points.length && isKnown(points[index + 1][1]);
      path += `${hasBefore ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      if (!hasBefore && !hasAfter) this.add("circle", { class: `mark fill ${color}`, cx: x, cy: y, r: 2.5 });
    });
    if (path) this.add("path", { class: `mark line ${color}`, d: path });
  }

  addWhisker(x1, y1, x2, y2, color) {
    const [across, along] = x1 === x2 ? [3, 0] : [0, 3];
    const ends = [[x1, y1], [x2, y2]].map(([x, y]) => `M${x - across} ${y - along}L${x + across} ${y + along}`);
    this.add("path", { class: `whisker ${color}`, d: `M${x1} ${y1}L${x2} ${y2}${ends.join("")}` });
  }

  // Values of the point that is nearest to the pointer, or that arrow keys reach.
  addTips(points, { by = "x" } = {}) {
    if (!points.length) return;
    const cursor = this.add("line", { class: "cursor", y1: this.top, y2: this.bottom, visibility: "hidden" });
    let chosen = -1;
    const show = (index) => {
      chosen = Math.min(points.length - 1, Math.max(0, index));
      const { x, y = this.top, text } = points[chosen];
      if (by === "x") {
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", "visible");
      }
      const box = this.svg.getBoundingClientRect();
      const zoom = box.width / this.width;
      showTip(box.left + x * zoom, box.top + y * zoom, text);
    };
    const hide = () => {
      cursor.setAttribute("visibility", "hidden");
      hideTip();
    };
    const point = (event) => {
      const box = this.svg.getBoundingClientRect();
      const zoom = this.width / box.width;
      const [x, y] = [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
      const measure = { x: (each) => Math.abs(each.x - x), y: (each) => Math.abs(each.y - y), xy: (each) => Math.hypot(each.x - x, each.y - y) }[by];
      const distances = points.map(measure);
      show(distances.indexOf(Math.min(...distances)));
    };
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
    // A finger that is lifted leaves, but what it has touched stays until something else is touched.
    this.svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide());
    this.svg.addEventListener("blur", hide);
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      show(chosen + move);
    });
  }
}

function showTip(x, y, text) {
  const tip = document.getElementById("tip");
  tip.hidden = false;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > window.innerWidth - 8 ? x - 14 - width : x + 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(y - height - 8, window.innerHeight - height - 8))}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

document.addEventListener("pointerdown", (event) => event.target.closest("svg") || hideTip());
window.addEventListener("scroll", hideTip, { passive: true });
