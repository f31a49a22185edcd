// The view of one task: what it is, its scores, training curves, and the words nearest to its virtual tokens.

import { get } from "./api.js";
import { byId, clear, fill, h, notify } from "./dom.js";
import { metricCards } from "./metrics.js";
import { dataTable } from "./tables.js";
import { trainingCard } from "./training.js";

/** Connect the view; `show({task})` loads and draws the chosen task. */
export function startDetails() {
  const state = { task: null, loading: null };
  return {
    show({ loaded, task }) {
      byId("title-details").textContent = task?.name ?? "Details";
      if (!task) {
        state.task = null;
        const text = loaded ? "The server has no tasks." : "Loading the tasks …";
        fill(byId("details-body"), h("p", { class: "lead" }, text));
      } else if (state.task !== task) {
        state.task = task;
        load(state, task);
      }
    },
  };
}

async function load(state, task) {
  state.loading?.abort(); // of the task that was chosen before
  const { signal } = (state.loading = new AbortController());
  const body = byId("details-body");
  clear(byId("details-notice"));
  fill(body, about(task), h("p", { class: "lead loading" }, "Loading …"));
  try {
    const details = await get(`v1/adapters/${encodeURIComponent(task.name)}`, { signal });
    fill(body, about(task), metricCards(details.metrics), trainingCard(details.log), nearest(details.nearest));
    byId("details-status").textContent = `Details of ${task.name} are shown.`;
  } catch (error) {
    if (signal.aborted) return;
    fill(body, about(task));
    const again = h("button", { type: "button", onclick: () => load(state, task) }, "Try again");
    notify(byId("details-notice"), "error", error.message, again);
  }
}

// ---- what it is

function about(task) {
  const place = task.placement === "suffix" ? "after" : "before";
  const facts = [
    ["Kind", task.classifies ? "classification" : "generation"],
    task.classifies && ["Labels", task.labels.join(", ")],
    ["Text columns", task.columns.join(", ")],
    ["Template", h("code", { class: "template" }, visible(task.template))],
    ["Soft prompt", `${task.virtualTokens} virtual tokens, ${place} the text`],
    ["Linear probe", task.linearProbe ? "yes" : "no"],
    ["Ensemble", task.ensemble ? `${task.ensemble} suffix prompts` : "no"],
  ].filter(Boolean);
  const fact = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return [
    task.problem && h("p", { class: "notice warning" }, h("b", {}, "Problem: "), task.problem),
    h("dl", { class: "card facts" }, facts.map(fact)),
  ];
}

/** White space that would be invisible, as signs. */
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");

// ---- nearest words

const RANKS = ["Nearest", "2nd", "3rd"];

function nearest(tokens) {
  const ranks = Math.max(0, ...tokens.map((words) => words.length));
  if (!ranks) return null;
  const titles = Array.from({ length: ranks }, (_, i) => RANKS[i] ?? `${i + 1}th`);
  const table = dataTable(
    "Vocabulary entries nearest to each virtual token",
    ["Token", ...titles],
    tokens.map((words, i) => [String(i + 1), ...words.map(word)]),
    { kind: "numbered" },
  );
  const hint = "Entries of the vocabulary with the largest cosine similarity. ␣ is a space, ⏎ a line break.";
  return h("section", { class: "card" }, h("h2", {}, "Nearest words"), h("p", { class: "hint" }, hint), table);
}

function word({ token, similarity }) {
  const shown = visible(token).replaceAll(" ", "␣");
  const number = h("span", { class: "hint number" }, similarity.toFixed(2));
  return h("span", { class: "word" }, h("code", {}, shown), number);
}
