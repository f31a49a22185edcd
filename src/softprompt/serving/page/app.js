// The page: which view is shown, the list of tasks, the theme.

import { startChooser } from "./chooser.js";
import { startClassify } from "./classify.js";
import { startComplete } from "./complete.js";
import { startDetails } from "./details.js";
import { byId, clear, h, notify } from "./dom.js";
import { startFile } from "./file.js";
import { startKey } from "./key.js";
import { loadTasks } from "./tasks.js";

const VIEWS = { classify: "Classify", file: "File", complete: "Complete", details: "Details" };
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

const chooser = startChooser(show, reload);
const views = { classify: startClassify(), file: startFile(), complete: startComplete(), details: startDetails() };

function currentView() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "classify";
}

/** Draw the current view for the tasks that are chosen in it. */
function show() {
  const current = currentView();
  for (const name of Object.keys(VIEWS)) byId(`view-${name}`).hidden = name !== current;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[current]} · softprompt`;
  chooser.show(current);
  views[current].show(chooser.chosen(current));
}

async function reload() {
  const place = byId("page-notice");
  clear(place);
  try {
    const found = await loadTasks();
    byId("base").textContent = found.base;
    chooser.update(found);
    show();
  } catch (error) {
    notify(place, "error", error.message, h("button", { type: "button", onclick: reload }, "Try again"));
  }
}

function startTheme() {
  const root = document.documentElement;
  const write = () => (byId("theme-name").textContent = THEMES[root.dataset.theme] ?? THEMES.auto);
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    root.dataset.theme = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    try {
      localStorage.setItem("softprompt-theme", root.dataset.theme);
    } catch {
      // Storage is blocked: the choice lasts until the page is left.
    }
    write();
  });
  write();
}

window.addEventListener("hashchange", () => {
  show();
  if (document.activeElement === document.body) byId("main").focus({ preventScroll: true }); // a link that is gone
});
startKey();
startTheme();
show();
await reload();
