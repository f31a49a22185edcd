// The view that completes a text, streamed.

import { stream } from "./api.js";
import { byId, clear, fill, h, notify, plural, sendOnCtrlEnter, waitingText } from "./dom.js";
import { textFields } from "./fields.js";
import { fieldsOf, hasText, inputOf } from "./tasks.js";

/** Connect the view; `show({base, name, task})` draws it for the chosen model (`task` undefined for the base). */
export function startComplete() {
  const fields = textFields(byId("complete-fields"), "complete-text");
  const state = { name: "", task: undefined, asWritten: false, running: null };

  byId("complete-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.running) run(state, fields);
  });
  sendOnCtrlEnter(byId("complete-form"));
  byId("complete-stop").addEventListener("click", () => state.running?.abort());

  return {
    show({ loaded, name, task }) {
      Object.assign(state, { name, task });
      byId("complete-lead").textContent = loaded ? lead(name, task) : "Loading the tasks …";
      drawFormat(state, fields);
      drawFields(state, fields);
      byId("complete-run").disabled = !name;
    },
  };
}

function lead(name, task) {
  if (!task) return `${name} continues the text as it is, without a soft prompt.`;
  if (task.classifies) return `${name} was trained to choose labels. Here it writes text, which may be poor.`;
  return `${name} writes text under its soft prompt.`;
}

const usesTemplate = ({ task, asWritten }) => Boolean(task) && !task.classifies && !asWritten;

/** For a generation task: whether its template is filled, or the text is continued as written. */
function drawFormat(state, fields) {
  const place = byId("complete-format");
  if (!state.task || state.task.classifies) return clear(place);
  const option = (asWritten, label, hint) => {
    const input = h("input", { type: "radio", name: "complete-format", value: asWritten ? "text" : "template" });
    input.checked = state.asWritten === asWritten;
    input.addEventListener("change", () => {
      state.asWritten = asWritten;
      drawFields(state, fields);
    });
    return h("label", { class: "option" }, input, h("span", {}, label, " ", h("span", { class: "hint" }, hint)));
  };
  fill(
    place,
    h(
      "fieldset",
      { class: "options" },
      h("legend", {}, "Prompt"),
      option(false, "Fill the template", "as in training"),
      option(true, "As written", "the text is continued"),
    ),
  );
}

function drawFields(state, fields) {
  if (usesTemplate(state)) fields.show(fieldsOf([state.task]));
  else fields.show([{ key: "prompt", tasks: [] }], { label: "Text", placeholder: "The text to continue" });
}

// ---- the run

async function run(state, fields) {
  const [place, texts] = [byId("complete-notice"), fields.texts()];
  clear(place);
  if (!hasText(Object.keys(texts), texts)) {
    notify(place, "error", "There is no text yet.");
    fields.focus();
    return;
  }
  const running = (state.running = new AbortController());
  const output = startOutput(usesTemplate(state) ? "" : texts.prompt, state.name);
  setRunning(true);
  try {
    const options = { signal: running.signal, onWait: (seconds) => notify(place, "info", waitingText(seconds)) };
    for await (const chunk of stream("v1/completions", requestOf(state, texts), options)) {
      clear(place);
      output.add(chunk);
    }
    output.end();
  } catch (error) {
    output.end(running.signal.aborted ? "stopped" : "broken off");
    if (!running.signal.aborted) notify(place, "error", error.message);
  } finally {
    state.running = null;
    setRunning(false);
  }
}

function requestOf(state, texts) {
  const template = usesTemplate(state);
  return {
    model: state.name,
    prompt: template ? inputOf(Object.keys(texts), texts) : texts.prompt,
    ...(template && { template: true }),
    ...(state.task?.classifies && { raw: true }),
    max_tokens: byId("complete-max").valueAsNumber,
    temperature: byId("complete-temperature").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function setRunning(on) {
  const [start, stop] = [byId("complete-run"), byId("complete-stop")];
  const hadFocus = document.activeElement === (on ? start : stop);
  start.hidden = on;
  stop.hidden = !on;
  if (hadFocus) (on ? stop : start).focus();
}

/** The box of a new answer: `add(chunk)` as the chunks arrive, `end(reason)` after the last one. */
function startOutput(prompt, name) {
  const written = h("span", { class: "written", id: "complete-text" });
  const text = h("div", { class: "completion", dir: "auto" }, h("span", { class: "prompt" }, prompt), written);
  const facts = h("span", { class: "hint", id: "complete-facts" }, "Waiting for the first token …");
  const copy = h("button", { type: "button", class: "quiet small", hidden: true }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(written.textContent);
    copy.textContent = "Copied";
  });
  const head = h("div", { class: "result-head" }, h("h2", { class: "task-name" }, name), facts, copy);
  const box = h("article", { class: "card result", "aria-busy": "true" }, head, text);
  fill(byId("complete-result"), box);
  byId("complete-status").textContent = "";
  return { ...meter(written, facts, Boolean(prompt)), end: (reason) => finish({ box, written, facts, copy }, reason) };
}

/** Appends the text of chunks, and keeps what is shown after the last one in `facts.dataset.facts`. */
function meter(written, facts, followsText) {
  let [started, finishReason] = [0, null];
  return {
    add({ choices, usage }) {
      started ||= performance.now();
      const choice = choices[0];
      if (choice?.text) written.append(followsText || written.textContent ? choice.text : choice.text.trimStart());
      if (choice) facts.textContent = "Writing …";
      finishReason = choice?.finish_reason ?? finishReason;
      if (usage) facts.dataset.facts = factsOf(usage.completion_tokens, performance.now() - started, finishReason);
    },
  };
}

/** The speed is that after the first token, so that reading the prompt does not count. */
function factsOf(tokens, milliseconds, finishReason) {
  const speed = tokens > 1 && milliseconds > 0 && `${((1000 * (tokens - 1)) / milliseconds).toFixed(1)} per second`;
  const end = finishReason === "length" && "ended by max. tokens";
  return [plural(tokens, "token"), speed, end].filter(Boolean).join(", ");
}

function finish({ box, written, facts, copy }, reason) {
  box.setAttribute("aria-busy", "false");
  const text = written.textContent;
  facts.textContent = reason ?? facts.dataset.facts ?? "";
  copy.hidden = !text || !navigator.clipboard;
  if (!text && !reason) facts.textContent = "the model ended without writing anything";
  byId("complete-status").textContent = text ? `Completion: ${text}` : "No text was written.";
}
