// Scores of a task: metrics.json of its folder.

import { breakable, count, h, percent } from "./dom.js";
import { dataTable } from "./tables.js";

const SCORES = [
  ["accuracy", "Accuracy"],
  ["macro_f1", "Macro-F1"],
  ["exact_match", "Exact match"],
  ["rouge_l", "ROUGE-L"],
  ["bleu", "BLEU"],
  ["eval_loss", "Loss"],
  ["expected_calibration_error", "Calibration error"],
];
const MANY_LABELS = 6; // from here on the names of the columns stand upright

/** The scores, the confusion matrix and the scores of each class. */
export function metricCards(metrics) {
  if (!metrics) return card("Scores", h("p", { class: "hint" }, "This task has not been evaluated."));
  const { num_examples: rows, split, confusion_matrix: matrix, labels } = metrics;
  return [
    card(`Scores on ${count(rows)} rows (${split})`, scores(metrics), baselines(metrics)),
    matrix && labels && card("Confusion matrix", confusion(matrix, labels)),
    metrics.per_class && card("Classes", classes(metrics.per_class)),
  ];
}

const card = (title, ...children) => h("section", { class: "card" }, h("h2", {}, title), children);

const has = (metrics, name) => Number.isFinite(metrics[name]);

function score(metrics, name) {
  if (!has(metrics, name)) return "–";
  return name === "eval_loss" ? metrics[name].toFixed(4) : percent(metrics[name]);
}

function scores(metrics) {
  const found = SCORES.filter(([name]) => has(metrics, name));
  const item = ([name, title]) => h("div", {}, h("dt", {}, title), h("dd", {}, score(metrics, name)));
  return h("dl", { class: "scores" }, found.map(item));
}

function baselines(metrics) {
  const others = Object.entries(metrics.baselines ?? {});
  if (!others.length) return null;
  const columns = SCORES.filter(([name]) => others.some(([, each]) => has(each, name)));
  const rows = [["this prompt", metrics], ...others];
  return dataTable(
    "Compared with baselines",
    ["Method", ...columns.map(([, title]) => title)],
    rows.map(([title, each]) => [title, ...columns.map(([name]) => score(each, name))]),
    { kind: "numeric" },
  );
}

function confusion(matrix, labels) {
  const upright = labels.length >= MANY_LABELS && "upright";
  return dataTable(
    "Rows are the true labels, columns the predicted ones; a darker cell is a larger share of its row.",
    ["True label", ...labels.map((label) => h("span", { class: upright }, label))],
    matrix.map((row, i) => [labels[i], ...shaded(row, i)]),
    { kind: "confusion", showCaption: true, box: "fitting" },
  );
}

function shaded(row, i) {
  const total = row.reduce((sum, number) => sum + number, 0);
  return row.map((number, j) => {
    const cell = h("td", { class: i === j ? "right" : number === 0 && "zero" }, count(number));
    cell.style.setProperty("--share", total ? number / total : 0);
    return cell;
  });
}

function classes(perClass) {
  return dataTable(
    "Scores of each class",
    ["Class", "Precision", "Recall", "F1", "Rows"],
    perClass.map(({ label, precision, recall, f1, support }) => [
      breakable(label),
      ...[precision, recall, f1].map(percent),
      count(support),
    ]),
    { kind: "numeric" },
  );
}
