// The list of tasks: several can be chosen to classify, one to complete a text or to look at.

import { byId, fill, h, plural } from "./dom.js";

const TITLES = {
  classify: "Tasks to answer",
  file: "Tasks to answer",
  complete: "Complete with",
  details: "Task to show",
};
const FEW_LABELS = 4; // are listed by name
const LONG_LIST = 8; // from here on there is a filter

/**
 * Connect the list. `onChoice()` is called when the user chooses, `onReload()` to load the tasks again.
 * The result has `update(now)` for what `loadTasks` found, `show(view)` and `chosen(view)`.
 */
export function startChooser(onChoice, onReload) {
  const found = { base: "", tasks: [], unreadable: [], loaded: false };
  const state = { ...found, view: "classify", several: new Set(), complete: "", details: "" };
  const draw = () => drawList(state, choose);

  function choose(name, on) {
    if (isMany(state.view)) state.several[on ? "add" : "delete"](name);
    else state[state.view] = name;
    summarize(state);
    onChoice();
  }

  byId("filter").addEventListener("input", draw);
  byId("reload").addEventListener("click", onReload);
  byId("chooser-toggle").addEventListener("click", ({ currentTarget }) => {
    currentTarget.setAttribute("aria-expanded", currentTarget.getAttribute("aria-expanded") !== "true");
  });

  return {
    update(now) {
      Object.assign(state, now, { loaded: true });
      keepOrChoose(state);
      byId("filter-row").hidden = state.tasks.length < LONG_LIST;
      state.drawn = null;
    },
    show(view) {
      if (state.drawn === view) return;
      state.view = state.drawn = view;
      byId("chooser-title").textContent = TITLES[view];
      draw();
      summarize(state);
    },
    chosen(view) {
      const { base, tasks, loaded } = state;
      if (isMany(view)) return { loaded, tasks: tasks.filter((task) => state.several.has(task.name)) };
      return { loaded, base, name: state[view], task: tasks.find((task) => task.name === state[view]) };
    },
  };
}

const isMany = (view) => view === "classify" || view === "file";

/** Keep what is chosen where it still exists; otherwise choose the first that fits. */
function keepOrChoose(state) {
  const names = state.tasks.map((task) => task.name);
  state.several = new Set([...state.several].filter((name) => names.includes(name)));
  const classifier = state.tasks.find((task) => task.classifies);
  if (!state.several.size && classifier) state.several.add(classifier.name);
  const writer = state.tasks.find((task) => !task.classifies);
  if (!names.includes(state.complete) && state.complete !== state.base) state.complete = writer?.name ?? state.base;
  if (!names.includes(state.details)) state.details = names[0] ?? "";
}

function summarize(state) {
  const names = isMany(state.view) ? [...state.several] : [state[state.view]].filter(Boolean);
  byId("chooser-summary").textContent = names.length > 2 ? plural(names.length, "task") : names.join(", ") || "none";
}

function drawList(state, choose) {
  const words = byId("filter").value.trim().toLowerCase().split(/\s+/);
  const matches = (task) => words.every((word) => `${task.name} ${task.labels.join(" ")}`.toLowerCase().includes(word));
  const shown = state.tasks.filter(matches);
  const [classifiers, writers] = [shown.filter((task) => task.classifies), shown.filter((task) => !task.classifies)];
  const base = { name: state.base, labels: [], isBase: true };
  const item = (task) => choice(state, task, choose);
  const groups = [
    state.view === "complete" && matches(base) && group("Base model", [item(base)]),
    state.view === "complete" && group("Generation", writers.map(item)),
    group("Classification", classifiers.map(item)),
    state.view === "details" && group("Generation", writers.map(item)),
    isMany(state.view) && group("Generation", writers.map((task) => link(state, task))),
    group("Cannot be read", state.unreadable.map((task) => h("div", { class: "task unreadable" }, description(task)))),
  ].filter(Boolean);
  fill(byId("tasks"), groups.length ? groups : h("p", { class: "hint empty" }, emptyText(state)));
}

function emptyText(state) {
  if (!state.loaded) return "Loading …";
  return state.tasks.length ? "No task matches." : "The server has no tasks, only its base model.";
}

const group = (name, items) => items.length > 0 && h("fieldset", { class: "group" }, h("legend", {}, name), items);

function choice(state, task, choose) {
  const many = isMany(state.view);
  const input = h("input", {
    type: many ? "checkbox" : "radio",
    name: "task",
    value: task.name,
    onchange: ({ target }) => choose(task.name, target.checked),
  });
  input.checked = many ? state.several.has(task.name) : state[state.view] === task.name;
  return h("label", { class: "task" }, input, description(task));
}

/** A generation task in a view that classifies: it leads to the view that completes. */
function link(state, task) {
  const open = () => (state.complete = task.name);
  const goal = h("span", { class: "hint" }, "Complete");
  return h("a", { class: "task", href: "#complete", onclick: open }, description(task), goal);
}

function description(task) {
  return h(
    "span",
    { class: "task-text" },
    h("span", { class: "task-name" }, task.name),
    task.labels && h("span", { class: "hint" }, kindOf(task)),
    task.problem && h("span", { class: "problem" }, h("b", {}, "Problem: "), task.problem),
  );
}

function kindOf(task) {
  if (task.isBase) return "without a soft prompt";
  if (!task.classifies) return `writes text from ${task.columns.join(", ")}`;
  return task.labels.length > FEW_LABELS ? plural(task.labels.length, "label") : task.labels.join(", ");
}
