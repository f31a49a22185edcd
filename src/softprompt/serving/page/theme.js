// Runs before the page is drawn, so that it never flashes in the other theme.
try {
  document.documentElement.dataset.theme = localStorage.getItem("softprompt-theme") ?? "auto";
} catch {
  // Storage is blocked: the theme of the system.
}
