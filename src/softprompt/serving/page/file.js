// The view that classifies a file: read it, match its columns, send its rows in batches, show and save the results.

import { CsvError, DELIMITERS, readTable } from "./csv.js";
import { byId, clear, count, fill, h, notify, plural, waitingText } from "./dom.js";
import { drawFileResults } from "./file-results.js";
import { classify, fieldsOf, SHARED } from "./tasks.js";

const BATCH = 32; // rows
const DRAW_EVERY = 1000; // milliseconds

/**
 * Connect the view; `show({tasks})` draws it for the chosen tasks.
 * State: `file` is what was read with its name; `columns` maps the key of an input field to the number of a column;
 * `results` are `{tasks, answers, done}` of the last run.
 */
export function startFile() {
  const state = { loaded: false, tasks: [], file: null, columns: new Map(), results: null, running: null };
  const drop = byId("file-drop");
  byId("file-input").addEventListener("change", ({ target }) => {
    if (target.files.length) open(state, target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) open(state, event.dataTransfer.files[0]);
  });
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => event.preventDefault()); // a file beside the box must not replace the page
  }
  return {
    show({ loaded, tasks }) {
      Object.assign(state, { loaded, tasks });
      byId("file-lead").textContent = lead(state);
      drawSetup(state);
    },
  };
}

function lead({ loaded, tasks }) {
  if (!loaded) return "Loading the tasks …";
  if (!tasks.length) return "Choose at least one classification task.";
  return "Every row gets a label from each chosen task. The file is read in this browser; only its texts are sent.";
}

async function open(state, file) {
  stop(state);
  Object.assign(state, { file: null, results: null });
  clear(byId("file-notice"));
  try {
    state.file = { name: file.name, ...readTable(new Uint8Array(await file.arrayBuffer())) };
  } catch (error) {
    const reason = error instanceof CsvError ? error.message : "The file cannot be read.";
    notify(byId("file-notice"), "error", `${file.name}: ${reason}`);
  }
  state.columns = new Map();
  byId("file-drop").classList.toggle("filled", state.file !== null);
  byId("file-drop-title").textContent = state.file ? "Drop another CSV file here" : "Drop a CSV file here";
  drawSetup(state);
  drawFileResults(state);
}

const stop = (state) => state.running?.abort();

// ---- before the run

/** What was found in the file, the column of each input field, and the button that starts. */
function drawSetup(state) {
  const place = byId("file-setup");
  if (!state.file) return clear(place);
  const { name, rows, columns, delimiter } = state.file;
  const fields = fieldsOf(state.tasks);
  for (const field of fields) {
    if (!state.columns.has(field.key)) state.columns.set(field.key, guess(field, columns));
  }
  const size = `${plural(rows.length, "row")}, ${plural(columns.length, "column")}`;
  fill(
    place,
    h(
      "div",
      { class: "card" },
      h("h2", {}, name),
      h("p", { class: "hint" }, `${size}, separated by ${DELIMITERS[delimiter]}`),
      h("div", { class: "columns" }, fields.map((field, i) => columnSelect(state, field, i))),
      h("div", { class: "actions", id: "file-actions" }),
    ),
  );
  drawActions(state);
}

/** The column whose name the field has, or the only column; -1 if the user has to choose. */
function guess(field, columns) {
  const plain = (text) => text.trim().toLowerCase();
  const wanted = field.columns.map(plain);
  const found = columns.findIndex((column) => wanted.includes(plain(column)));
  return found < 0 && columns.length === 1 ? 0 : found;
}

function columnSelect(state, field, i) {
  const choices = state.file.columns.map((column, number) => h("option", { value: number }, column));
  const select = h("select", { id: `file-column-${i}` }, h("option", { value: -1 }, "Choose a column"), choices);
  select.value = state.columns.get(field.key);
  select.addEventListener("change", () => {
    state.columns.set(field.key, Number(select.value));
    drawActions(state);
  });
  const name = `Column of the ${field.key === SHARED ? "text" : field.key}`;
  return h("div", { class: "field" }, h("label", { for: select.id }, name), select);
}

function drawActions(state) {
  const { tasks, file, results, running } = state;
  if (running) return drawProgress(state);
  const unmatched = fieldsOf(tasks).some(({ key }) => state.columns.get(key) < 0);
  const label = results ? "Classify again" : `Classify ${plural(file.rows.length, "row")}`;
  const start = h("button", { type: "button", class: "primary", id: "file-run", onclick: () => run(state) }, label);
  start.disabled = unmatched || !tasks.length || !file.rows.length;
  const reason = !tasks.length ? "Choose a task first." : unmatched ? "Choose the column of each text first." : null;
  fill(byId("file-actions"), start, reason && h("span", { class: "hint" }, reason));
}

// ---- the run

async function run(state) {
  const running = (state.running = new AbortController());
  const { file, tasks } = state;
  const results = (state.results = { tasks, answers: new Map(tasks.map((task) => [task.name, []])), done: 0 });
  clear(byId("file-notice"));
  drawActions(state);
  byId("file-cancel").focus();
  try {
    while (results.done < file.rows.length) {
      const rows = file.rows.slice(results.done, results.done + BATCH).map((row) => textsOf(row, state.columns));
      const options = { signal: running.signal, onWait: waiting, maxTries: Infinity };
      const answers = await classify(tasks, rows, options);
      for (const [name, some] of answers) results.answers.get(name).push(...some);
      results.done += rows.length;
      showProgress(results.done, file.rows.length);
      drawNowAndThen(state);
    }
    byId("file-status").textContent = `Done: ${plural(results.done, "row")} classified.`;
  } catch (error) {
    ended(state, running, error);
  } finally {
    finish(state, running);
  }
}

/** With many rows, drawing after every batch would take longer than the answers. */
function drawNowAndThen(state) {
  const now = performance.now();
  if (now < (state.results.drawNext ?? 0)) return;
  drawFileResults(state);
  state.results.drawNext = now + DRAW_EVERY;
}

const waiting = (seconds) => (byId("file-progress-text").textContent = waitingText(seconds));

const textsOf = (row, columns) => Object.fromEntries([...columns].map(([key, number]) => [key, row[number]]));

function ended(state, running, error) {
  if (state.running !== running || !state.file) return; // another file has been opened meanwhile
  const rows = `${count(state.results.done)} of ${plural(state.file.rows.length, "row")}`;
  if (running.signal.aborted) notify(byId("file-notice"), "info", `Cancelled after ${rows}.`);
  else notify(byId("file-notice"), "error", `Stopped after ${rows}: ${error.message}`);
}

function finish(state, running) {
  if (state.running !== running) return;
  state.running = null;
  if (!state.file) return;
  drawActions(state);
  drawFileResults(state);
  byId("file-run").focus();
}

function drawProgress(state) {
  const total = state.file.rows.length;
  const bar = h("progress", { id: "file-progress", max: total, "aria-label": "Rows classified" });
  const cancel = h("button", { type: "button", id: "file-cancel", onclick: () => stop(state) }, "Cancel");
  const text = h("span", { class: "hint", id: "file-progress-text" });
  fill(byId("file-actions"), cancel, h("div", { class: "progress" }, bar, text));
  showProgress(state.results.done, total);
}

function showProgress(done, total) {
  byId("file-progress").value = done;
  byId("file-progress-text").textContent = `${count(done)} of ${plural(total, "row")}`;
}
