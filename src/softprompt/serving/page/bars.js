// A table of shares with a bar for each.

import { breakable, h, percent } from "./dom.js";

const SHOWN = 6;

/**
 * A table of `[{name, share, note}]`, the largest shares first; beyond six, a button shows the others.
 * `first` is the name that is emphasised.
 */
export function barTable(caption, rows, { first = null, nameTitle = "Label", shareTitle = "Probability" } = {}) {
  const sorted = [...rows].sort((a, b) => b.share - a.share);
  const body = h("tbody", {}, sorted.map((row) => bar(row, row.name === first)));
  const table = h(
    "table",
    { class: "bars" },
    h("caption", { class: "hidden" }, caption),
    h("colgroup", {}, h("col", { class: "bar-name" }), h("col"), h("col", { class: "bar-number" })),
    h("thead", {}, h("tr", {}, columnHead(nameTitle), h("td"), columnHead(shareTitle))),
    body,
  );
  const rest = [...body.rows].slice(SHOWN);
  if (rest.length < 2) return table;
  return h("div", {}, table, expander(rest, sorted.length));
}

const columnHead = (text) => h("th", { scope: "col" }, h("span", { class: "hidden" }, text));

function expander(rest, total) {
  const show = (on) => rest.forEach((row) => (row.hidden = !on));
  const button = h("button", { type: "button", class: "quiet small", "aria-expanded": "false" }, `Show all ${total}`);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", on);
    button.textContent = on ? "Show fewer" : `Show all ${total}`;
    show(on);
  });
  show(false);
  return button;
}

function bar({ name, share, note }, isFirst) {
  const filled = h("div", { class: "bar-fill" });
  filled.style.width = `${100 * share}%`;
  return h(
    "tr",
    { class: isFirst && "first" },
    h("th", { scope: "row", dir: "auto" }, breakable(name)),
    h("td", { class: "bar-cell", "aria-hidden": "true" }, h("div", { class: "bar" }, filled)),
    h("td", { class: "number" }, note ?? percent(share)),
  );
}
