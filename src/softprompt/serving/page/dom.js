// Building elements. Text only ever becomes text nodes and attribute values, never markup.

export const byId = (id) => document.getElementById(id);

/**
 * An element: `h("p", {class: "hint"}, "some text", otherElement)`.
 * Attributes named on... are listeners; null, undefined and false leave an attribute or a child out.
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (isAbsent(value)) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const isAbsent = (value) => value === null || value === undefined || value === false;
const present = (children) => children.flat(Infinity).filter((child) => !isAbsent(child));

/** Replace what an element contains. */
export const fill = (element, ...children) => element.replaceChildren(...present(children));

export const clear = (element) => element.replaceChildren();

/** A message in `place`, read out at once; replaces the one before. `actions` are buttons. */
export function notify(place, kind, text, ...actions) {
  const role = kind === "error" ? "alert" : "status";
  fill(place, h("div", { class: `notice ${kind}`, role }, h("p", {}, text), actions));
}

/** A name that may break after its separators: with_many_parts. */
export function breakable(name) {
  const parts = name.split(/(?<=[_/.-])/);
  return parts.flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}

/** "1,234" and "1 row", "2 rows". */
export const count = (number) => number.toLocaleString("en");
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** A share in 0..1 as per cent with one decimal. */
export const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** What is shown while a request waits for a busy server. */
export const waitingText = (seconds) =>
  `The server is busy; trying again in ${plural(Math.ceil(seconds), "second")} …`;

/** Ctrl+Enter (or Cmd+Enter) in a text field sends its form. */
export function sendOnCtrlEnter(form) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}
