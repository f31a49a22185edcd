// Tasks as the page uses them, the input fields they need, and their answers.

import { ApiError, get, post } from "./api.js";

const MAX_RESULTS = 256; // of a request: texts times tasks

/**
 * The server's base model, its tasks, and the adapters that it cannot read: `{base, tasks, unreadable}`.
 * A task: `{name, problem, classifies, labels, columns, template, ...}`; see GET /v1/models. `problem` is null, or why
 * an older version answers.
 */
export async function loadTasks() {
  const { data } = await get("v1/models");
  const adapters = data.filter((model) => model.owned_by !== "base");
  return {
    base: data.find((model) => model.owned_by === "base").id,
    tasks: adapters.filter(({ task }) => task).map(taskOf),
    unreadable: adapters.filter(({ task }) => !task).map(({ id, problem }) => ({ name: id, problem })),
  };
}

function taskOf({ id, problem, task }) {
  return {
    name: id,
    problem,
    classifies: task.kind === "classification",
    labels: task.labels,
    columns: task.text_columns,
    template: task.template,
    virtualTokens: task.num_virtual_tokens,
    placement: task.prompt_placement,
    linearProbe: task.linear_probe,
    ensemble: task.ensemble,
  };
}

/**
 * The input fields of some tasks: `[{key, columns, tasks}]`, with the columns and the names of the tasks that a field
 * is for. A column has one field, whichever tasks read it; tasks that read a single column share one field.
 */
export function fieldsOf(tasks) {
  const fields = new Map();
  const several = columnsOfSeveral(tasks);
  for (const task of tasks) {
    for (const column of task.columns) {
      const key = keyOf(task, column, several);
      if (!fields.has(key)) fields.set(key, { key, columns: [], tasks: [] });
      const field = fields.get(key);
      if (!field.columns.includes(column)) field.columns.push(column);
      if (!field.tasks.includes(task.name)) field.tasks.push(task.name);
    }
  }
  return [...fields.values()];
}

function columnsOfSeveral(tasks) {
  return new Set(tasks.filter((task) => task.columns.length > 1).flatMap((task) => task.columns));
}

export const SHARED = ""; // no column has this name
const keyOf = (task, column, several) => (task.columns.length > 1 || several.has(column) ? column : SHARED);

/** The name of an input field. */
export const fieldName = ({ key }) => (key === SHARED ? "Text" : key);

/** Tasks that read the same fields, so that one request asks them all: `[{tasks, keys}]`. */
export function groupsOf(tasks) {
  const groups = new Map();
  const several = columnsOfSeveral(tasks);
  for (const task of tasks) {
    const keys = task.columns.map((column) => keyOf(task, column, several));
    const id = JSON.stringify(keys.length > 1 ? [...keys].sort() : keys);
    if (!groups.has(id)) groups.set(id, { tasks: [], keys });
    groups.get(id).tasks.push(task);
  }
  return [...groups.values()];
}

/** What a request sends for the texts of the fields, an object key -> text. */
export function inputOf(keys, texts) {
  if (keys.length === 1) return texts[keys[0]];
  return Object.fromEntries(keys.map((key) => [key, texts[key]]));
}

const BLANK = /^[\s\x1c-\x1f\x85]*$/; // white space as Python has it

/** Whether a group's fields hold any text: one of several is enough. */
export const hasText = (keys, texts) => keys.some((key) => !BLANK.test(texts[key] ?? ""));

/**
 * The answers of tasks to rows, each an object field key -> text.
 * Returns a map task name -> array with one `{probs, truncated}` per row, undefined for a row without a text.
 */
export async function classify(tasks, rows, options) {
  const answers = new Map(tasks.map((task) => [task.name, new Array(rows.length)]));
  for (const group of groupsOf(tasks)) {
    const numbers = [...rows.keys()].filter((i) => hasText(group.keys, rows[i]));
    if (!numbers.length) continue;
    const inputs = numbers.map((i) => inputOf(group.keys, rows[i]));
    for (const some of chunks(group.tasks, Math.max(1, Math.floor(MAX_RESULTS / inputs.length)))) {
      for (const item of await request(some, inputs, options)) answers.get(item.model)[numbers[item.index]] = item;
      checkLabels(some, answers);
    }
  }
  return answers;
}

/** A task may have been replaced by another one of the same name since the list was loaded. */
function checkLabels(tasks, answers) {
  for (const { name, labels } of tasks) {
    const answer = answers.get(name).find((each) => each);
    if (answer.probs.length !== labels.length) throw new ApiError(`The task ${name} has changed. Reload the tasks.`);
  }
}

function chunks(items, size) {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));
}

/** The items of an answer; a request that is too large is sent in halves. */
async function request(tasks, inputs, options) {
  try {
    const { data } = await post("v1/classify", { model: tasks.map((task) => task.name), input: inputs }, options);
    return data;
  } catch (error) {
    if (error.status !== 413 || inputs.length === 1) throw error;
    const middle = inputs.length >> 1;
    const first = await request(tasks, inputs.slice(0, middle), options);
    const second = await request(tasks, inputs.slice(middle), options);
    return [...first, ...second.map((item) => ({ ...item, index: item.index + middle }))];
  }
}

/** The most probable label of an answer; `label` is null if its probability is below `threshold`. */
export function decide(task, { probs }, threshold) {
  const best = probs.indexOf(Math.max(...probs));
  const [most, probability] = [task.labels[best], probs[best]];
  return { most, probability, label: probability < threshold ? null : most };
}
