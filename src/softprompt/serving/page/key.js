// The API key, kept in sessionStorage only, and the dialog that asks for it.

import { byId } from "./dom.js";

const NAME = "softprompt-api-key";
let asking = null;

/** The key of this tab; "" if there is none. */
export const keyOf = () => sessionStorage.getItem(NAME) ?? "";

/**
 * Ask for another key than the one that was refused. Requests that are refused together ask once.
 * Returns false if the user cancels.
 */
export async function askForKey(refused) {
  if (keyOf() !== refused) return true; // another request has asked meanwhile
  asking ??= ask(refused).finally(() => (asking = null));
  return asking;
}

function ask(refused) {
  const [dialog, input] = [byId("key-dialog"), byId("key-input")];
  byId("key-text").textContent = refused ? "The server refused this key." : "This server needs an API key.";
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" && input.value.trim();
        if (given) sessionStorage.setItem(NAME, input.value.trim());
        input.value = "";
        showForget();
        resolve(Boolean(given));
      },
      { once: true },
    );
  });
}

function showForget() {
  byId("forget-key").hidden = !keyOf();
}

/** Connect the dialog's buttons. */
export function startKey() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault(); // the content security policy allows no forms to be sent
    byId("key-dialog").close("use");
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("forget-key").addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    showForget();
  });
  showForget();
}
