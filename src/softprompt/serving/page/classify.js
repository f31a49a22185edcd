// The view that classifies a text.

import { barTable } from "./bars.js";
import { breakable, byId, clear, fill, h, notify, percent, sendOnCtrlEnter, waitingText } from "./dom.js";
import { textFields } from "./fields.js";
import { classify, decide, fieldsOf, hasText, SHARED } from "./tasks.js";

/** Connect the view; `show({tasks})` draws it for the chosen tasks. */
export function startClassify() {
  const fields = textFields(byId("classify-fields"), "classify-text");
  const state = { tasks: [], answers: null, running: null };

  byId("classify-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(state, fields);
  });
  sendOnCtrlEnter(byId("classify-form"));
  byId("classify-threshold").addEventListener("input", () => {
    byId("classify-threshold-value").textContent = `${byId("classify-threshold").value}%`;
    drawResults(state);
  });

  return {
    show({ loaded, tasks }) {
      state.tasks = tasks;
      byId("classify-lead").textContent = lead(loaded, tasks);
      const shown = tasks.length ? fieldsOf(tasks) : [{ key: SHARED, tasks: [] }];
      fields.show(shown, { placeholder: "Type or paste a text" });
      byId("classify-run").disabled = !tasks.length;
      drawResults(state);
    },
  };
}

function lead(loaded, tasks) {
  if (!loaded) return "Loading the tasks …";
  if (!tasks.length) return "Choose at least one classification task.";
  return "Each chosen task answers with the probabilities of its labels.";
}

const threshold = () => byId("classify-threshold").valueAsNumber / 100;

async function run(state, fields) {
  const [place, texts] = [byId("classify-notice"), fields.texts()];
  const tasks = state.tasks;
  clear(place);
  if (!hasText(Object.keys(texts), texts)) {
    notify(place, "error", "There is no text yet.");
    fields.focus();
    return;
  }
  state.running?.abort(); // a later request replaces the one before
  const running = (state.running = new AbortController());
  busy(true);
  try {
    const answers = await classify(tasks, [texts], {
      signal: running.signal,
      onWait: (seconds) => notify(place, "info", waitingText(seconds)),
    });
    clear(place);
    state.answers = { tasks, answers };
    drawResults(state);
    byId("classify-status").textContent = summary(state.answers);
  } catch (error) {
    if (!running.signal.aborted) notify(place, "error", error.message);
  } finally {
    if (state.running === running) busy(false);
  }
}

function busy(on) {
  byId("classify-run").setAttribute("aria-busy", on);
  byId("classify-results").setAttribute("aria-busy", on);
}

/** Results of tasks that are still chosen. */
function drawResults(state) {
  const place = byId("classify-results");
  const tasks = (state.answers?.tasks ?? []).filter((task) => state.tasks.some(({ name }) => name === task.name));
  fill(place, tasks.map((task) => card(task, state.answers.answers.get(task.name)[0])));
  place.style.setProperty("--threshold", threshold());
  place.classList.toggle("abstaining", threshold() > 0);
}

function card(task, answer) {
  const title = h("h2", { class: "task-name" }, task.name);
  if (!answer) {
    const hint = h("p", { class: "hint" }, "This task's fields hold no text.");
    return h("article", { class: "card result" }, h("div", { class: "verdict" }, title, hint));
  }
  const { label, most, probability } = decide(task, answer, threshold());
  const abstained = label === null;
  const rows = task.labels.map((name, i) => ({ name, share: answer.probs[i] }));
  const cut = "The text is longer than this task reads; its end was cut off.";
  return h(
    "article",
    { class: "card result" },
    h(
      "div",
      { class: "verdict" },
      title,
      abstained
        ? h("p", { class: "answer abstained" }, "No label")
        : h("p", { class: "answer", dir: "auto" }, breakable(label)),
      abstained && h("p", { class: "hint" }, `${most} has only ${percent(probability)}`),
    ),
    barTable(`Label probabilities of ${task.name}`, rows, { first: most }),
    answer.truncated && h("p", { class: "notice warning" }, cut),
  );
}

function summary({ tasks, answers }) {
  const lines = tasks.map((task) => {
    const answer = answers.get(task.name)[0];
    if (!answer) return `${task.name}: no text`;
    const { label, probability } = decide(task, answer, threshold());
    return `${task.name}: ${label ?? "no label"}, ${percent(probability)}`;
  });
  return lines.join("; ");
}
