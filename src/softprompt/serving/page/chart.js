// The training curves as SVG.

import { count, svg } from "./dom.js";

const HEIGHT = 240;
const MARGIN = { top: 12, right: 12, bottom: 30, left: 44 };

/**
 * A line chart. `series` are `[{name, kind, points: [[x, y], ...]}]`; `kind` is the class of its line; with `dots`,
 * every point is marked. `width` in pixels, so that letters keep their size.
 */
export function lineChart(series, { width, label, xTitle }) {
  const points = series.flatMap((each) => each.points);
  const xs = scale(0, Math.max(...points.map(([x]) => x)), MARGIN.left, width - MARGIN.right);
  const ys = scale(0, Math.max(...points.map(([, y]) => y)) * 1.05, HEIGHT - MARGIN.bottom, MARGIN.top);
  return svg(
    "svg",
    { class: "chart", role: "img", "aria-label": label, width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` },
    ticks(ys.to, 4).map((y) => horizontal(y, ys(y), width)),
    ticks(xs.to, width < 500 ? 4 : 8).map((x) => vertical(x, xs(x))),
    svg("text", { class: "tick", x: width - MARGIN.right, y: HEIGHT - 2, "text-anchor": "end" }, xTitle),
    series.map((each) => curve(each, xs, ys)),
  );
}

function scale(from, to, start, end) {
  const of = (value) => start + ((value - from) / (to - from || 1)) * (end - start);
  return Object.assign(of, { to });
}

/** Round numbers from 0 to `to`, about as many as asked for. */
export function ticks(to, number) {
  const rough = to / number || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return Array.from({ length: Math.floor(to / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

function horizontal(value, y, width) {
  return [
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    svg("text", { class: "tick", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, String(value)),
  ];
}

function vertical(value, x) {
  const y = HEIGHT - MARGIN.bottom + 16;
  return svg("text", { class: "tick", x, y, "text-anchor": "middle" }, count(value));
}

function curve({ kind, points, dots }, xs, ys) {
  const at = points.map(([x, y]) => `${xs(x).toFixed(1)},${ys(y).toFixed(1)}`).join(" ");
  const dot = ([x, y]) => svg("circle", { cx: xs(x), cy: ys(y), r: 3.5 }, svg("title", {}, y.toFixed(4)));
  return svg("g", { class: `curve ${kind}` }, svg("polyline", { points: at }), dots && points.map(dot));
}
