// The training log of a task: log.jsonl of its folder, as curves and as a table.

import { lineChart } from "./chart.js";
import { fill, h } from "./dom.js";
import { dataTable } from "./tables.js";

const SERIES = [
  { name: "Training, single batches", kind: "step-loss", field: "loss" },
  { name: "Training, mean of the epoch", kind: "train-loss", field: "train_loss", dots: true },
  { name: "Validation", kind: "eval-loss", field: "eval_loss", dots: true },
];
const COLUMNS = [
  ["Epoch", "epoch", 2],
  ["Step", "step", 0],
  ["Training loss", "train_loss", 4],
  ["Validation loss", "eval_loss", 4],
  ["Accuracy", "accuracy", 4],
  ["Macro-F1", "macro_f1", 4],
];
const NARROWEST = 240; // pixels

/** A card with the loss curves, and the values of each epoch as a table. */
export function trainingCard(log) {
  const all = SERIES.map((each) => ({ ...each, points: pointsOf(log, each.field) }));
  const series = all.filter(({ points }) => points.length);
  const body = series.length
    ? [legend(series), chart(series), epochs(log)]
    : h("p", { class: "hint" }, "There is no training log.");
  return h("section", { class: "card" }, h("h2", {}, "Training loss"), body);
}

const has = (row, field) => Number.isFinite(row[field]);
const pointsOf = (log, field) => log.filter((row) => has(row, field)).map((row) => [row.step, row[field]]);

function legend(series) {
  const key = () => h("span", { class: "key", "aria-hidden": "true" });
  return h("ul", { class: "legend" }, series.map(({ name, kind }) => h("li", { class: kind }, key(), name)));
}

/** Drawn for the width that there is, and again when it changes. */
function chart(series) {
  const box = h("div", { class: "chart-box" });
  const draw = () => {
    const width = Math.max(NARROWEST, box.clientWidth);
    fill(box, lineChart(series, { width, label: altText(series), xTitle: "step" }));
  };
  new ResizeObserver(draw).observe(box);
  return box;
}

function altText(series) {
  const lines = series.map(({ name, points }) => {
    const [[from, start], [to, end]] = [points[0], points.at(-1)];
    return `${name}: ${start.toFixed(3)} at step ${from}, ${end.toFixed(3)} at step ${to}`;
  });
  return `Loss curves. ${lines.join(". ")}.`;
}

function epochs(log) {
  const rows = log.filter((row) => has(row, "train_loss") || has(row, "eval_loss"));
  if (!rows.length) return null;
  const columns = COLUMNS.filter(([, field]) => rows.some((row) => has(row, field)));
  const table = dataTable(
    "Losses and scores at the end of each epoch",
    columns.map(([title]) => title),
    rows.map((row) => columns.map(([, field, digits]) => number(row[field], digits))),
    { kind: "numeric" },
  );
  return h("details", {}, h("summary", {}, "Values of each epoch"), table);
}

function number(value, digits) {
  if (!Number.isFinite(value)) return "–";
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}
