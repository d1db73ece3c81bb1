/** The REST API, as the page needs it: JSON in and out, the session cookie as identity, a deadline on every request. */

import { cookie } from "../carillon/carillon.js";

/** Where Carillon is on this host: "" or "/bells", when a proxy in front shows it there. The page is at its root. */
export const BASE = new URL(".", location.href).pathname.slice(0, -1);

const DEADLINE = 20_000;
const AGAIN = 400; // ms

export class ApiError extends Error {
  /** @param {number} status  0 when no answer came @param {string} message  for people */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function words(status, data) {
  if (typeof data?.detail === "string") return data.detail;
  if (data && typeof data === "object") {
    const first = Object.values(data).flat()[0];
    if (typeof first === "string") return first;
  }
  return status >= 500 ? `The server cannot answer right now (${status}).` : `The server refused the request (${status}).`;
}

/** Reading is tried twice: a laptop that changes its network breaks whatever is under way. */
async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.method !== "GET" || options.signal.aborted) throw error;
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    return fetch(path, options);
  }
}

/**
 * @param {string} path  below BASE
 * @param {{method?: string, json?: any, form?: Object<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the answer's JSON; null when it has none
 * @throws {ApiError}
 */
export async function request(path, options) {
  return (await look(path, options)).data;
}

/**
 * As `request`, with the position in the event stream that the answer was read at.
 *
 * @returns {Promise<{data: any, position: ?string}>}
 * @throws {ApiError}
 */
export async function look(path, { method = "GET", json, form, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRFToken"] = cookie("csrftoken");
  if (json !== undefined) headers["Content-Type"] = "application/json";
  const deadline = AbortSignal.timeout(DEADLINE);
  const unreached = (error) =>
    signal?.aborted ? error : new ApiError(0, deadline.aborted ? "The server took too long to answer." : "The server cannot be reached.");
  let response;
  try {
    response = await reach(BASE + path, {
      method,
      headers,
      body: json === undefined ? form && new URLSearchParams(form) : JSON.stringify(json),
      credentials: "same-origin",
      signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    });
  } catch (error) {
    throw unreached(error);
  }
  const data = await response.json().catch((error) => {
    // What was written has been, whether its answer can be read or not.
    if (signal?.aborted || (method === "GET" && error.name !== "SyntaxError")) throw unreached(error);
    return null;
  });
  if (!response.ok) throw new ApiError(response.status, words(response.status, data));
  // As where a network asks for a login of its own.
  if (method === "GET" && data === null) throw new ApiError(0, "What answered is not Carillon.");
  return { data, position: response.headers.get("X-Carillon-Position") };
}

/** @param {string} path @param {Object<string, any>} query  arrays become comma lists; "" and null are left out */
export function address(path, query) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    const text = Array.isArray(value) ? value.join(",") : String(value ?? "");
    if (text !== "") search.set(name, text);
  }
  return search.size > 0 ? `${path}?${search}` : path;
}
