// Requests to the server: the API key, errors in plain words, waiting when the server is busy, streams.

import { keyOf, askForKey } from "./key.js";
import { events } from "./sse.js";

const LONGEST_WAIT = 60; // seconds

/** What went wrong, for the user to read. `status` is 0 if no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The JSON answer of GET `path`. */
export const get = async (path, options = {}) => (await send(path, options)).json();

/** The JSON answer of POST `path`. */
export const post = async (path, body, options = {}) => (await send(path, { ...options, body })).json();

/** The chunks of a streamed answer, each an object; the generator ends when the stream is complete. */
export async function* stream(path, body, options = {}) {
  const response = await send(path, { ...options, body });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(sentence(chunk.error.message), response.status);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError ? new ApiError("The connection broke before the text was complete.") : error;
  }
  throw new ApiError("The connection broke before the text was complete.");
}

/**
 * A successful response. Asks for the key after a 401; tries again, `maxTries` times in all, after a 429 or 503 that
 * says when. `signal` aborts, also while waiting; `onWait(seconds)` is called before each wait.
 */
async function send(path, { body, signal, onWait, maxTries = 6 } = {}) {
  for (let tries = 1; ; tries++) {
    const key = keyOf();
    const response = await request(path, body, key, signal);
    if (response.ok) return response;
    if (response.status === 401 && (await askForKey(key))) continue;
    const wait = secondsToWait(response);
    if (wait === null || tries >= maxTries) throw await errorOf(response);
    onWait?.(wait);
    await sleep(wait, signal);
  }
}

async function request(path, body, key, signal) {
  const method = body ? "POST" : "GET";
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
}

/** Seconds of Retry-After; null if trying again is of no use. */
function secondsToWait(response) {
  if (response.status !== 429 && response.status !== 503) return null;
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0.1), LONGEST_WAIT) : null;
}

const INSTEAD = {
  401: "This server needs an API key.",
  413: "The text is larger than this server accepts.",
  429: "The server is busy. Try again in a moment.",
  500: "The server failed; its log says why.",
  504: "The server took too long for this request.",
};

async function errorOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not a body of this API, for instance a proxy's page.
  }
  const { status } = response;
  const own = message ? sentence(message) : `The server answered with status ${status}.`;
  return new ApiError(INSTEAD[status] ?? own, status);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, 1000 * seconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
