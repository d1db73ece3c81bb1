/** Making elements. Text is always text: nothing here parses markup. */

import { ago, when } from "./format.js";

export const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} selector  "button.quiet": a tag and classes; a button sends no form unless it says so
 * @param {Object<string, any>} [attributes]  `onclick` and the like are listeners; false, null and undefined are left out
 * @param {...any} children  nodes, texts, and lists of them; null, undefined and false are left out
 * @returns {HTMLElement}
 */
export function h(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length > 0) element.className = classes.join(" ");
  if (tag === "button") element.type = "button";
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value)); // "false" is a value there
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat().filter((child) => (child ?? false) !== false));
  return element;
}

/** A copy of one of the page's templates. @param {Object<string, string>} [words]  of what is in it, by selector */
export function stamp(id, words = {}) {
  const copy = document.getElementById(id).content.firstElementChild.cloneNode(true);
  for (const [which, text] of Object.entries(words)) say(copy.querySelector(which), text);
  for (const one of copy.querySelectorAll("[data-icon]")) one.prepend(icon(one.dataset.icon));
  return copy;
}

/** A view's `element` from its template, with its parts by their names. @param {Object<string, () => any>} clicks  on these */
export function assemble(view, id, clicks = {}) {
  view.element = stamp(id);
  for (const part of view.element.querySelectorAll("[data-part]")) view[part.dataset.part] = part;
  for (const [part, does] of Object.entries(clicks)) view[part].addEventListener("click", does);
}

/** Replace an element's text only where it differs: writing the same again would wake screen readers and layout. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const PATHS = {
  successful: ["M3.5 8.5 6.5 11.5 12.5 4.8"],
  failed: ["M4.3 4.3 11.7 11.7", "M11.7 4.3 4.3 11.7"],
  running: ["M8 2.2a5.8 5.8 0 1 1-5.8 5.8"],
  waiting: ["M8 2.2a5.8 5.8 0 1 1 0 11.6A5.8 5.8 0 0 1 8 2.2", "M8 5v3.2l2 1.6"],
  pending: ["M4 8h.01", "M8 8h.01", "M12 8h.01"],
  canceled: ["M8 2.2a5.8 5.8 0 1 1 0 11.6A5.8 5.8 0 0 1 8 2.2", "M4 12 12 4"],
  back: ["M9.8 3.2 5 8l4.8 4.8"],
  down: ["M8 2.5v10", "M3.8 8.6 8 12.8l4.2-4.2"],
  up: ["M8 13.5v-10", "M3.8 7.4 8 3.2l4.2 4.2"],
  wrap: ["M2.5 4h11", "M2.5 8h8.6a2.2 2.2 0 0 1 0 4.4H8.4", "M10 10.6 8.2 12.4 10 14.2"],
  save: ["M8 2.5v7.6", "M4.8 7 8 10.2 11.2 7", "M2.8 13.2h10.4"],
  find: ["M7 2.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 0 1 0-9", "M10.4 10.4 13.5 13.5"],
  next: ["M4 3.2 8 7.2l4-4", "M8 9.6v.01", "M8 13v.01"],
};
PATHS.error = PATHS.failed;
PATHS.new = PATHS.pending;

/** @param {string} name @returns {SVGSVGElement} decoration: hidden from screen readers, the words stand beside it */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  for (const data of PATHS[name] ?? PATHS.pending) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", data);
    svg.append(path);
  }
  return svg;
}

/** A row of a table. @param {any} head @param {Object<string, any>} cells  by their columns; of what is "" nothing is known */
export function row(head, cells) {
  const rest = Object.entries(cells).map(([column, cell]) => h("td", { "data-label": column }, cell || "–"));
  return h("tr", {}, h("th", { scope: "row" }, head), rest);
}

/** All rows anew. The focus stays at the control with the same `data-key`; what goes must not take it along. */
export function refill(body, rows) {
  const key = body.contains(document.activeElement) && document.activeElement.dataset.key;
  body.replaceChildren(...rows);
  if (!key) return;
  const kept = body.querySelector(`[data-key="${CSS.escape(key)}"]`) ?? body.closest("section").querySelector("h1");
  kept.focus({ preventScroll: true });
}

/** A time, in words that `tick` keeps true. @param {?string} iso  null: never */
export const moment = (iso) => iso && h("time", { datetime: iso, title: when(iso) }, ago(iso, Date.now()));

export function tick(element) {
  for (const time of element.querySelectorAll("time")) say(time, ago(time.dateTime, Date.now()));
}

/** Who owns something, and which team's it is. */
export const owners = ({ summary_fields: { owner, team } = {} }) => [owner?.username, team?.name].filter(Boolean);

/** A state as icon and word. */
export function badge(status, words = status) {
  return h(`span.badge.is-${status}`, {}, icon(status), h("span", {}, words));
}

const calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)");

/** One stroke of the bell: something here has just changed. */
export function ring(element) {
  if (calm?.matches) return;
  element.animate(
    [{ rotate: "0deg" }, { rotate: "14deg" }, { rotate: "-10deg" }, { rotate: "6deg" }, { rotate: "-3deg" }, { rotate: "0deg" }],
    { duration: 700, easing: "ease-out" },
  );
}
