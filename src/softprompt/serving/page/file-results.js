// Results of a file: how often each label was given, the first rows, and the file to save.

import { barTable } from "./bars.js";
import { writeTable } from "./csv.js";
import { breakable, byId, clear, count, fill, h, percent, plural } from "./dom.js";
import { dataTable } from "./tables.js";
import { decide } from "./tasks.js";

const FIRST_ROWS = 50;
let threshold = 0; // kept from file to file

/** Draw the results; nothing before the first answers. */
export function drawFileResults(state) {
  const place = byId("file-results");
  if (!state.results?.done) return clear(place);
  if (!byId("file-tables")) fill(place, head(state), h("div", { id: "file-tables" }));
  byId("file-save").onclick = () => save(state);
  byId("file-save").textContent = saveLabel(state);
  byId("file-threshold").oninput = ({ target }) => {
    threshold = target.valueAsNumber / 100;
    byId("file-threshold-value").textContent = `${target.value}%`;
    drawTables(state);
  };
  drawTables(state);
}

function head() {
  const slider = h("input", { type: "range", id: "file-threshold", min: 0, max: 100, step: 1 });
  slider.value = 100 * threshold;
  return h(
    "div",
    { class: "results-head" },
    h("h2", {}, "Results"),
    h(
      "div",
      { class: "threshold" },
      h("label", { for: slider.id }, "Abstain below"),
      slider,
      h("output", { id: "file-threshold-value", for: slider.id }, `${Math.round(100 * threshold)}%`),
    ),
    h("button", { type: "button", id: "file-save" }),
  );
}

function saveLabel({ running, results, file }) {
  const whole = running || results.done === file.rows.length;
  return whole ? "Download as CSV" : `Download the first ${plural(results.done, "row")} as CSV`;
}

/** Each task with its decision per row, undefined for a row without a text. */
function decisions({ tasks, answers }) {
  const decided = (task) => answers.get(task.name).map((answer) => answer && decide(task, answer, threshold));
  return tasks.map((task) => ({ task, decided: decided(task) }));
}

function drawTables(state) {
  const byTask = decisions(state.results);
  const distributions = h("div", { class: "results" }, byTask.map(distribution));
  fill(byId("file-tables"), distributions, notes(state, byTask), preview(state, byTask));
}

function distribution({ task, decided }) {
  const given = decided.filter(Boolean);
  const numbers = new Map(task.labels.map((label) => [label, 0]));
  for (const { label } of given) if (label !== null) numbers.set(label, numbers.get(label) + 1);
  const abstained = given.filter(({ label }) => label === null).length;
  const rows = [...numbers].map(([name, number]) => row(name, number, given.length));
  return h(
    "article",
    { class: "card result" },
    h(
      "div",
      { class: "verdict" },
      h("h3", { class: "task-name" }, task.name),
      h("p", { class: "hint" }, `${plural(given.length - abstained, "row")} labelled`),
      abstained > 0 && h("p", { class: "hint" }, `${plural(abstained, "row")} below the threshold`),
    ),
    barTable(`Rows with each label of ${task.name}`, rows, { shareTitle: "Rows" }),
  );
}

const row = (name, number, total) => ({ name, share: total ? number / total : 0, note: count(number) });

function notes({ results }, byTask) {
  const answers = results.tasks.flatMap((task) => results.answers.get(task.name));
  const truncated = answers.filter((answer) => answer?.truncated).length;
  const empty = new Set(byTask.flatMap(({ decided }) => decided.flatMap((each, i) => (each ? [] : [i])))).size;
  return [
    empty > 0 && warning(`Rows without a text, which got no label: ${count(empty)}`),
    truncated > 0 && warning(`Texts longer than the task reads, whose end was cut off: ${count(truncated)}`),
  ];
}

const warning = (text) => h("p", { class: "notice warning" }, text);

function preview({ file, results, columns }, byTask) {
  const rows = file.rows.slice(0, Math.min(results.done, FIRST_ROWS));
  const shown = [...new Set(columns.values())].filter((column) => column >= 0);
  const text = (fields, column) => h("td", { class: "text", dir: "auto" }, h("div", {}, fields[column]));
  return dataTable(
    rows.length < results.done ? `The first ${rows.length} of ${plural(results.done, "row")}` : "Results of each row",
    ["Row", ...shown.map((column) => file.columns[column]), ...byTask.map(({ task }) => task.name)],
    rows.map((fields, i) => [
      count(i + 1),
      ...shown.map((column) => text(fields, column)),
      ...byTask.map(({ decided }) => decision(decided[i])),
    ]),
    { kind: "numbered", showCaption: true },
  );
}

function decision(decided) {
  if (!decided) return h("span", { class: "hint" }, "no text");
  const { label, most, probability } = decided;
  const name = label === null ? h("span", { class: "hint" }, `(${most})`) : h("span", {}, label);
  return h("span", { class: "decision" }, name, h("span", { class: "hint number" }, percent(probability)));
}

// ---- the file to save

function save({ file, results }) {
  const text = writeTable(outputTable(file, results));
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  h("a", { href: url, download: `${file.name.replace(/\.[^.]*$/, "")}-labelled.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading
}

/** The rows that are done, as they were read, with columns as `softprompt predict` names them. */
function outputTable({ columns, rows, delimiter, bom }, results) {
  const byTask = decisions(results);
  const several = byTask.length > 1;
  const added = byTask.flatMap(({ task: { name } }) =>
    several ? [name, `${name}_probability`] : ["predicted_label", "probability"],
  );
  const values = (i) => byTask.flatMap(({ decided }) => cells(decided[i]));
  return {
    columns: [...columns, ...added.map((name) => unused(name, columns))],
    rows: rows.slice(0, results.done).map((fields, i) => [...fields, ...values(i)]),
    delimiter,
    bom,
  };
}

const cells = (decided) => (decided ? [decided.label ?? "", decided.probability.toFixed(6)] : ["", ""]);

function unused(name, columns) {
  let free = name;
  for (let i = 2; columns.includes(free); i++) free = `${name}_${i}`;
  return free;
}
