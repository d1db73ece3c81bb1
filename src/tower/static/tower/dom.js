/** Making elements. Text is always text: nothing here parses markup. */

export const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} selector  "button.quiet": a tag and classes
 * @param {Object<string, any>} [attributes]  `onclick` and the like are listeners; false, null and undefined are left out
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function h(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length > 0) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value)); // "false" is a value there
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
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

/** @param {string} caption @param {string[]} columns @param {HTMLElement} body */
export function table(caption, columns, body) {
  const heads = columns.map((text) => h("th", { scope: "col" }, text));
  return h("table", {}, h("caption.sr", {}, caption), h("thead", {}, h("tr", {}, ...heads)), body);
}

/** A state as icon and word. */
export function badge(status) {
  return h(`span.badge.is-${status}`, {}, icon(status), h("span", {}, status));
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
