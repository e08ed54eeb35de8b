// Draws every figure.chart from the numbers beside it (isbench.report.charts), again when its width or the axis changes.
const FORMAT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const written = (value) => value && Math.abs(value) < 1e-4 ? Number(value.toPrecision(3)).toExponential() : FORMAT.format(value);
const DASHES = { solid: "", dashed: "6 3", dotted: "2 3", dashdot: "7 3 2 3" };
const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.hidden = true;

const chosenAxis = () => document.documentElement.dataset.axis;
const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
const known = (value) => value !== null && value !== undefined;

function svg(parent, name, attributes, text) {
  const node = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// The x of a band: given, or an even grid between two ends.
function places(band) {
  const count = band.mean.length;
  if (band.x.length === count) return band.x;
  return band.mean.map((_, i) => band.x[0] + (band.x[1] - band.x[0]) * i / (count - 1));
}

// The upper bound of an interval: infinite where the lower one stands alone.
const upper = (band, i) => known(band.low?.[i]) ? band.high[i] ?? Infinity : undefined;

function ticks(low, high, isLog, count) {
  const found = [];
  if (isLog) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of high / low > 300 ? [1] : [1, 2, 5]) found.push(digit * 10 ** power);
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 2) return inside;
    found.length = 0;
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((each) => each >= rough);
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(i * step || 0);
  return found;
}

function scale(values, isLog, start, end) {
  const to = isLog ? Math.log : (value) => value;
  const [low, high] = values.map(to);
  const place = (value) => start + (to(value) - low) / (high - low || 1) * (end - start);
  return (value) => Math.round(10 * place(value)) / 10;
}

// What a panel shows against the chosen axis: the lines whose buttons are pressed, with their points.
function visible(chart, panel, hidden) {
  const axes = new Set(panel.lines.flatMap((line) => Object.keys(line.axes)));
  const axis = axes.has(chosenAxis()) ? chosenAxis() : [...axes].at(-1);  // epochs, where seconds are not compared
  const lines = panel.lines.filter((line) => !hidden.has(line.line) && line.axes[axis]?.mean).map((line) => {
    const { name, colour, dash, seeds } = chart.lines[line.line], band = line.axes[axis];
    const runs = line.seeds.map((y, i) => (seeds[i][axis] || []).map((x, k) => [x, y[k]]).filter((point) => known(point[1])));
    const points = places(band).map((x, i) => ({
      x, mean: band.mean[i], low: band.low?.[i], high: upper(band, i),
      isBound: band.bounds?.includes(i), isOpen: band.bounds?.includes(i) && band.low[i] === band.mean[i],  // known from below alone
    }))
      .filter((point) => known(point.mean));
    return { name, colour, dash, n: line.n, hasBand: Boolean(band.low), points, runs: runs.filter((run) => run.length) };
  });
  return { axis, label: chart.axes[axis], lines: lines.filter((line) => line.points.length) };
}

// Limits hold means, seeds and bars; of a band no more than half as much again. Differences begin large: the first quarter does not count.
function limits(panel, lines) {
  const end = Math.max(...lines.flatMap((line) => line.points.map((point) => point.x)));
  const late = (x) => panel.level !== 0 || x >= end / 4;
  const to = panel.log ? Math.log : (value) => value, back = panel.log ? Math.exp : (value) => value;
  const middle = lines.flatMap((line) => [
    ...line.points.filter((point) => late(point.x)).map((point) => point.mean),
    ...line.runs.flat().filter((point) => late(point[0])).map((point) => point[1])]).map(to);
  const sides = lines.flatMap((line) => line.points.filter((point) => late(point.x) && known(point.low)).flatMap((point) => [point.low, point.high]));
  if (known(panel.level)) middle.push(to(panel.level));
  const inner = [Math.min(...middle), Math.max(...middle)];
  const room = panel.bars ? Infinity : (inner[1] - inner[0]) / 2 || Math.abs(inner[0]) / 10 || 1;
  const outer = sides.filter((value) => Number.isFinite(value) && (!panel.log || value > 0)).map(to);
  const low = Math.max(Math.min(inner[0], ...outer), inner[0] - room), high = Math.min(Math.max(inner[1], ...outer), inner[1] + room);
  const margin = 0.04 * (high - low);
  return [back(low - margin), back(high + margin)];
}

function frame(panel, width, xRange, yRange, xLog, label, right) {
  const height = Math.max(230, Math.min(300, width * 0.72)), box = { left: 46, right, top: 26, bottom: 40 };
  const root = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, role: "img" })) root.setAttribute(key, value);
  root.setAttribute("aria-label", `${panel.label} against ${label}`);
  const x = scale(xRange, xLog, box.left, width - box.right), y = scale(yRange, panel.log, height - box.bottom, box.top);
  svg(root, "text", { x: 0, y: 14, class: "title" }, panel.label);
  for (const value of ticks(...yRange, panel.log, 5)) {
    svg(root, "path", { class: "grid", d: `M${box.left} ${y(value)}H${width - box.right}` });
    svg(root, "text", { class: "tick", x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, written(value));
  }
  for (const value of ticks(...xRange, xLog, (width - box.left - box.right) / 70)) {
    svg(root, "path", { class: "mark", d: `M${x(value)} ${height - box.bottom}v4` });
    svg(root, "text", { class: "tick", x: x(value), y: height - box.bottom + 17, "text-anchor": "middle" }, written(value));
  }
  svg(root, "path", { class: "base", d: `M${box.left} ${height - box.bottom}H${width - box.right}` });
  svg(root, "text", { class: "tick", x: (box.left + width - box.right) / 2, y: height - 5, "text-anchor": "middle" }, label);
  if (panel.note) svg(root, "text", { class: "tick", x: box.left + 8, y: box.top + 12 }, panel.note);
  const clip = `clip-${frame.count = (frame.count || 0) + 1}`;
  svg(svg(root, "clipPath", { id: clip }), "rect", {
    x: box.left, y: box.top - 2, width: width - box.left - box.right, height: height - box.top - box.bottom + 4 });
  return { root, x, y, box, height, inside: svg(root, "g", { "clip-path": `url(#${clip})` }) };
}

function drawCloud(chart, panel, width) {
  const [x, y] = panel.points, ends = (values) => [Math.min(...values.filter((v) => !panel.log || v > 0)), Math.max(...values)];
  const drawn = frame(panel, width, ends(x), ends(y), panel.log, chart.axes.x, 10);
  const cloud = svg(drawn.inside, "g", { class: "drawn cloud", style: `--c:${panel.colour}` });
  x.forEach((value, i) => {
    if (!panel.log || (value > 0 && y[i] > 0)) svg(cloud, "circle", { cx: drawn.x(value), cy: drawn.y(y[i]), r: 2 });
  });
  svg(drawn.inside, "path", { class: "guide", d: path(panel.guide[0].map((value, i) => [value, panel.guide[1][i]]).filter((p) => known(p[1])), drawn) });
  return drawn.root;
}

const path = (points, { x, y }) => points.map((point, i) => `${i ? "L" : "M"}${x(point[0])} ${y(point[1])}`).join("");

function drawLines(chart, panel, width, hidden) {
  const { axis, label, lines } = visible(chart, panel, hidden);
  if (!lines.length) {
    const empty = document.createElement("p");
    empty.className = "soft empty";
    empty.textContent = panel.lines.length ? `${panel.label}: nothing to draw against this axis (hidden, or not timed).` : "";
    return empty;
  }
  const named = (line) => line.hasBand ? line.name : `${line.name}, one seed`;
  const longest = Math.max(...lines.map((line) => named(line).length));
  const right = width < 420 ? 8 : Math.min(14 + 6.1 * longest, width * 0.36);
  const xs = lines.flatMap((line) => line.points.map((point) => point.x));
  const range = limits(panel, lines);
  const drawn = frame(panel, width, [axis === "decile" ? 1 : 0, (panel.bars ? 1.04 : 1) * Math.max(...xs)], range, false, label, right);
  if (known(panel.level)) svg(drawn.inside, "path", { class: "level", d: `M${drawn.box.left} ${drawn.y(panel.level)}H${width}` });
  for (const line of [...lines].reverse()) {  // the baseline on top
    const group = svg(drawn.inside, "g", { class: "drawn", style: `--c:${line.colour}` });
    const points = line.points.filter((point) => !point.isBound);
    const band = points.filter((point) => known(point.low) && (!panel.log || point.low > 0));
    const top = (point) => [point.x, Number.isFinite(point.high) ? point.high : range[1]];
    if (panel.bars) for (const point of line.points) {
      const bottom = panel.log && point.low <= 0 ? range[0] : point.low;
      if (known(point.low) && !point.isOpen) svg(group, "path", { class: "bar", d: path([[point.x, bottom], top(point)], drawn) });
      if (!point.isBound) svg(group, "circle", { class: "point", cx: drawn.x(point.x), cy: drawn.y(point.mean), r: 3 });
    } else if (band.length) svg(group, "path", {
      class: "band", d: path([...band.map(top), ...band.map((point) => [point.x, point.low]).reverse()], drawn) + "Z" });
    for (const run of line.runs) {
      svg(group, "path", { class: "seed", d: path(run, drawn) });
      const marked = run.filter((_, i) => !line.hasBand && i % (1 + Math.floor(run.length / 16)) === 0);
      for (const [x, y] of marked) svg(group, "circle", { class: "open", cx: drawn.x(x), cy: drawn.y(y), r: 2.6 });
    }
    svg(group, "path", {
      class: line.hasBand ? "mean" : "mean single", "stroke-dasharray": DASHES[line.dash],
      d: path(points.map((point) => [point.x, point.mean]), drawn) });
    for (const { x, mean } of line.points.filter((point) => point.isBound))
      svg(group, "path", { class: "point", d: `M${drawn.x(x) - 6} ${drawn.y(mean)}h12l-6 -10Z` });
  }
  if (right > 8) labelLines(drawn, lines, width - right + 6, named, right);
  hover(drawn, lines, axis, label, width - right);
  return drawn.root;
}

// The names beside the ends of their lines, no two on top of each other.
function labelLines(drawn, lines, left, named, room) {
  const last = (line) => line.points[line.points.length - 1].mean;
  const top = drawn.box.top, bottom = drawn.height - drawn.box.bottom;
  const ends = lines.map((line) => ({ line, y: Math.min(bottom, Math.max(top, drawn.y(last(line)))) })).sort((a, b) => a.y - b.y);
  const gap = Math.min(13, (bottom - top) / ends.length);
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + gap); });
  let floor = bottom;
  for (const end of [...ends].reverse()) { end.y = Math.min(end.y, floor); floor = end.y - gap; }
  for (const { line, y } of ends) {
    const group = svg(drawn.root, "g", { class: "drawn", style: `--c:${line.colour}` });
    const fits = Math.floor((room - 8) / 5.9), name = named(line);
    svg(group, "text", { class: "name", x: left, y: y + 4 }, name.length > fits ? `${name.slice(0, fits - 1)}…` : name);
  }
}

function hover(drawn, lines, axis, label, end) {
  const cross = svg(drawn.root, "path", { class: "cross", d: "" });
  const stop = drawn.height - drawn.box.bottom;
  const show = (event) => {
    const at = event.clientX - drawn.root.getBoundingClientRect().left;
    const near = lines.map((line) => [line, line.points.reduce((best, point) =>
      Math.abs(drawn.x(point.x) - at) < Math.abs(drawn.x(best.x) - at) ? point : best)]).sort((a, b) => a[1].mean - b[1].mean);
    const x = near.reduce((best, [, point]) => Math.abs(drawn.x(point.x) - at) < Math.abs(drawn.x(best) - at) ? point.x : best, Infinity);
    cross.setAttribute("d", `M${drawn.x(x)} ${drawn.box.top}V${stop}`);
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${label}: ${written(x)}` }));
    for (const [line, point] of near) {
      const row = tip.appendChild(document.createElement("div"));
      row.style.setProperty("--c", line.colour);
      const interval = known(point.low) ? ` [${written(point.low)}, ${written(point.high)}]` : ", one seed";
      const number = (point.isBound ? "above " : "") + written(point.mean) + (point.isOpen ? "" : interval);
      row.append(Object.assign(document.createElement("i"), { className: "dot" }), `${line.name}: ${number}`);
    }
    tip.hidden = false;
    const left = event.clientX + 14, width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, left + width > innerWidth - 4 ? event.clientX - width - 14 : left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
  };
  drawn.root.addEventListener("pointermove", show);
  drawn.root.addEventListener("pointerdown", show);
  drawn.root.addEventListener("pointerleave", () => { tip.hidden = true; cross.setAttribute("d", ""); });
}

// The numbers of a chart as a table that a spreadsheet reads.
function asCsv(chart) {
  const rows = [["panel", "line", "n", "axis", "x", "mean", "low", "high"]], quote = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  for (const panel of chart.panels) {
    for (const line of panel.lines) for (const [axis, band] of Object.entries(line.axes)) places(band).forEach((x, i) =>
      rows.push([panel.label, chart.lines[line.line].name, line.n, axis, x, band.mean[i], band.low?.[i], upper(band, i)]));
    panel.points?.[0].forEach((x, i) => rows.push([panel.label, "", 1, chart.axes.x, x, panel.points[1][i], "", ""]));
  }
  return rows.map((row) => row.map(quote).join(",") + "\r\n").join("");
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const buttons = [...figure.querySelectorAll(".lines button")], plots = figure.querySelector(".plots");
  const draw = () => {
    const hidden = new Set(buttons.flatMap((button, i) => isPressed(button) ? [] : [i]));
    const room = plots.clientWidth, most = Math.max(1, Math.floor((room + 24) / 464)), count = chart.panels.length;
    const columns = Math.ceil(count / Math.ceil(count / most));  // as many as fit, and rows that are as full as each other
    const width = Math.floor((room - 24 * (columns - 1)) / columns);
    if (width > 100) plots.replaceChildren(...chart.panels.map((panel) =>
      panel.points ? drawCloud(chart, panel, width) : drawLines(chart, panel, width, hidden)));
  };
  for (const button of buttons) button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", !isPressed(button));
    draw();
  });
  const link = figure.querySelector("a.csv");
  link.addEventListener("click", () => { link.href = URL.createObjectURL(new Blob([asCsv(chart)], { type: "text/csv" })); });
  let seen = 0;
  new ResizeObserver(() => {
    if (plots.clientWidth !== seen) { seen = plots.clientWidth; draw(); }
  }).observe(plots);
  document.addEventListener("axis", draw);
}
