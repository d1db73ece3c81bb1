/**
 * Terminal output to styled spans: SGR only (colours of 4, 8 and 24 bits, bold, faint, italic, underline, inverse,
 * strike). Every other escape sequence and control character is taken out. Pure: makes data, never HTML.
 */

/**
 * @typedef {typeof PLAIN} Style  colours: 0 to 15 of the theme's palette, or "#rrggbb"
 * @typedef {{text: string, style: Style}} Span
 */

export const PLAIN = Object.freeze({ fg: null, bg: null, bold: false, faint: false, italic: false, underline: false, inverse: false, strike: false });

// CSI …, OSC … ended by BEL or ST, the other string sequences, and two-character escapes.
const ESCAPE = /\x1b(?:\[([0-?]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])/g;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]/g;
const MOST_SPANS = 500; // of a line: each is an element, and all of a line's are laid out at once
const SWITCHES = {
  0: PLAIN, 1: { bold: true }, 2: { faint: true }, 3: { italic: true }, 4: { underline: true }, 7: { inverse: true }, 9: { strike: true },
  21: { underline: true }, 22: { bold: false, faint: false }, 23: { italic: false }, 24: { underline: false }, 27: { inverse: false },
  29: { strike: false }, 39: { fg: null }, 49: { bg: null },
};
const LEVELS = [0, 95, 135, 175, 215, 255];

const hex = (...rgb) => `#${rgb.map((part) => part.toString(16).padStart(2, "0")).join("")}`;

/**
 * @param {number} index  of the 256 colours
 * @returns {number | string} 0 to 15 stay the theme's, the cube and the greys are fixed
 */
export function colour256(index) {
  if (index < 16) return index;
  if (index >= 232) return hex(...Array(3).fill(8 + (index - 232) * 10));
  const cube = index - 16;
  return hex(LEVELS[Math.floor(cube / 36)], LEVELS[Math.floor(cube / 6) % 6], LEVELS[cube % 6]);
}

function extended(codes, at) {
  const byte = (value) => Number.isInteger(value) && value >= 0 && value <= 255;
  if (codes[at] === 5 && byte(codes[at + 1])) return { colour: colour256(codes[at + 1]), used: 2 };
  const rgb = codes.slice(at + 1, at + 4);
  if (codes[at] === 2 && rgb.length === 3 && rgb.every(byte)) return { colour: hex(...rgb), used: 4 };
  return { colour: undefined, used: codes[at] === 2 ? 4 : 2 };
}

/**
 * @param {Style} style
 * @param {string} parameters  of one SGR sequence: "1;31", "38;5;208", "38:2::255:0:0", ""
 * @returns {Style}
 */
export function sgr(style, parameters) {
  const next = { ...style };
  // The colon form may carry a colour space that the semicolon form does not: 38:2:<space>:r:g:b.
  const plain = parameters.replace(/([34]8):2:\d*:(\d+:\d+:\d+)/g, "$1:2:$2");
  const codes = plain.split(/[;:]/).map((code) => (code === "" ? 0 : Number(code)));
  for (let at = 0; at < codes.length; at++) {
    const code = codes[at];
    if (SWITCHES[code]) Object.assign(next, SWITCHES[code]);
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
    else if (code === 38 || code === 48) {
      const { colour, used } = extended(codes, at + 1);
      if (colour !== undefined) next[code === 38 ? "fg" : "bg"] = colour;
      at += used;
    }
  }
  return next;
}

const clean = (text) => text.replace(CONTROL, "");

/** Where begins what was painted last: behind the last carriage return that some text follows. Linear, as /\r+$/ is not. */
function lastPainted(line) {
  if (!line.includes("\r")) return 0;
  const text = line.replace(ESCAPE, (sequence) => "\0".repeat(sequence.length)); // a sequence paints nothing
  let end = text.length;
  while (end > 0 && text[end - 1] < " ") end -= 1;
  return end === 0 ? 0 : text.lastIndexOf("\r", end - 1) + 1;
}

/**
 * One line of output to spans.
 *
 * @param {string} line  without its line feed
 * @param {Style} [style]  in force when it begins
 * @returns {{spans: Span[], style: Style}} and the style in force when it ends
 */
export function parseLine(line, style = PLAIN) {
  // A carriage return inside a line is a progress bar painting over itself: what counts is what was painted last.
  // What was painted over shows no more, but its colours go on.
  const begin = lastPainted(line);
  const spans = [];
  const push = (part) => {
    const cleaned = clean(part);
    if (cleaned !== "") spans.push({ text: cleaned, style });
  };
  let end = begin;
  for (const match of line.matchAll(ESCAPE)) {
    push(line.slice(end, match.index));
    if (spans.length >= MOST_SPANS) {
      end = match.index;
      break;
    }
    if (match[2] === "m" && !/[<=>?]/.test(match[1])) style = sgr(style, match[1]);
    end = Math.max(begin, match.index + match[0].length);
  }
  push(line.slice(end).replace(ESCAPE, ""));
  return { spans, style };
}

/**
 * The stdout of one event to lines. Each event starts plain: a colour left open must not run into the next one.
 *
 * @param {string} stdout
 * @param {?number} [count]  how many lines it is, where the event says so: only that tells whether a last line feed ends
 *   a line or stands for an empty one
 * @returns {Span[][]} one entry per line
 */
export function parse(stdout, count = null) {
  const lines = stdout.split("\n");
  const last = lines[lines.length - 1];
  if ((last === "" || last === "\r") && lines.length !== count) lines.pop();
  let style = PLAIN;
  return lines.map((line) => {
    const parsed = parseLine(line, style);
    style = parsed.style;
    return parsed.spans;
  });
}

/** The same without colours, as text. */
export function strip(stdout, count = null) {
  return parse(stdout, count)
    .map((spans) => spans.map((span) => span.text).join(""))
    .join("\n");
}
