// Tables of data, in a box that scrolls, also by keyboard.

import { h } from "./dom.js";

/**
 * A table. `titles` are those of the columns. Each row is an array of texts or elements; its first item is the row's
 * header. Elements `td` and `th` are used as they are. `caption` is also the name of the box, and hidden unless
 * `showCaption`; `kind` and `box` are classes of the table and of the box.
 */
export function dataTable(caption, titles, rows, { kind = "", showCaption = false, box = "" } = {}) {
  const heads = titles.map((title) => asCell(title, "th", { scope: "col" }));
  const lines = rows.map(([first, ...cells]) =>
    h("tr", {}, asCell(first, "th", { scope: "row" }), cells.map((cell) => asCell(cell, "td"))),
  );
  const table = h(
    "table",
    { class: `data ${kind}`.trim() },
    h("caption", { class: !showCaption && "hidden" }, caption),
    h("thead", {}, h("tr", {}, heads)),
    h("tbody", {}, lines),
  );
  return h("div", { class: `scroll ${box}`.trim(), tabindex: "0", role: "region", "aria-label": caption }, table);
}

function asCell(content, tag, attributes = {}) {
  return content instanceof HTMLTableCellElement ? content : h(tag, attributes, content);
}
