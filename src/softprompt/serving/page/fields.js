// The text fields of the chosen tasks. What was typed is kept when other tasks are chosen.

import { fill, h } from "./dom.js";
import { fieldName } from "./tasks.js";

const NAMED = 3; // tasks beside a field

/**
 * Text fields in `place`. `show(fields, {label, placeholder})` draws the fields of `fieldsOf`, or one that is named
 * `label`; `texts()` is what they hold, key -> text.
 */
export function textFields(place, prefix) {
  const typed = new Map();
  let shown = "";
  return {
    show(fields, options = {}) {
      const drawn = JSON.stringify([fields, options]);
      if (drawn === shown) return;
      shown = drawn;
      const draw = (field, i) => textField(field, readers(field, fields), typed, { id: `${prefix}-${i}`, ...options });
      fill(place, fields.map(draw));
    },
    texts() {
      const areas = [...place.querySelectorAll("textarea")];
      return Object.fromEntries(areas.map((area) => [area.dataset.key, area.value]));
    },
    focus: () => place.querySelector("textarea")?.focus(),
  };
}

/** Which tasks read a field, if not all fields are read by the same ones. */
function readers(field, fields) {
  const same = fields.every(({ tasks }) => String(tasks) === String(field.tasks));
  if (same) return null;
  const rest = field.tasks.length - NAMED;
  const names = field.tasks.slice(0, NAMED).join(", ");
  return h("span", { class: "hint" }, rest > 0 ? `${names} and ${rest} more` : names);
}

function textField(field, readers, typed, { id, label, placeholder }) {
  const area = h("textarea", { id, placeholder, dir: "auto", "data-key": field.key });
  area.addEventListener("input", () => typed.set(field.key, area.value));
  area.value = typed.get(field.key) ?? "";
  return h("div", { class: "field" }, h("label", { for: id }, label ?? fieldName(field), " ", readers), area);
}
