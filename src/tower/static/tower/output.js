/**
 * A job's output on the page: a window of it, in chunks that the browser lays out only when they are near the screen,
 * added a frame at a time. It follows the end until the reader scrolls up. Near an edge of the window it asks for what
 * lies beyond, and lets go of what is farthest from the reader, so that the page stays bounded.
 */

import { h } from "./dom.js";
import { lineCount, numbered, numberedBefore } from "./eventlog.js";
import { duration, plural } from "./format.js";

const CHUNK = 100; // lines; the style sheet's estimate of a chunk's height counts on it
const PIECE = 20; // lines added at a time
const BUDGET = 8; // ms of a frame spent on adding lines
const LIMIT = 10_000; // lines kept on the page
const SETTLE = 5; // frames until what lies around a line that was jumped to has its true height

const TONES = {
  failed: ["runner_on_failed", "runner_on_error", "runner_on_async_failed", "runner_item_on_failed", "runner_on_unreachable"],
  skipped: ["runner_on_skipped", "runner_item_on_skipped"],
  heading: ["playbook_on_play_start", "playbook_on_task_start", "playbook_on_handler_task_start", "playbook_on_stats"],
  ok: ["runner_on_ok", "runner_item_on_ok"],
};
const TONE = new Map(Object.entries(TONES).flatMap(([tone, names]) => names.map((name) => [name, tone])));

function tone(event) {
  if (event.failed && event.event.startsWith("runner_")) return "failed";
  if (event.changed && event.event.startsWith("runner_")) return "changed";
  return TONE.get(event.event) ?? "other";
}

/** Whether a filter lets an event through, as the server has it. @param {{host?: string, result?: string}} filter */
const passes = (event, { host, result }) =>
  (!result || result === tone(event)) && (!host || event.event_data?.host === host || tone(event) === "heading");

/** What an event is folded away with: its task and its play. The recap is nobody's. */
const above = ({ event, uuid, parent_uuid: parent, event_data: data }) =>
  event === "playbook_on_stats" ? [] : [parent, data?.task_uuid, data?.play_uuid].filter((one) => one && one !== uuid);

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

function paint(element, style) {
  const classes = [];
  const colour = (value, name) => {
    if (value === null) return;
    if (typeof value === "number") classes.push(`${name}${value}`);
    else {
      classes.push(`${name}x`);
      element.style.setProperty(`--span-${name}`, value);
    }
  };
  colour(style.inverse ? (style.bg ?? "var(--out-bg)") : style.fg, "fg");
  colour(style.inverse ? (style.fg ?? "var(--out-ink)") : style.bg, "bg");
  for (const name of ["bold", "faint", "italic", "underline", "strike"]) if (style[name]) classes.push(name);
  element.className = classes.join(" ");
}

const isPlain = (style) => !Object.values(style).some((value) => value !== null && value !== false);

const hasLines = ({ lines }) => lines.length > 0;

/** The number of the last line of these, or of the one before them. */
function end(entries, before) {
  const last = entries.findLast(hasLines);
  return last ? last.first + Math.max(last.lines.length, lineCount(last.event)) - 1 : before;
}

const lost = (from, to) => `${plural(to - from + 1, "event")} never reached the server (${from} to ${to}).`;

/** What is added to a chunk at once: up to PIECE lines of one event, or a remark. @param {number} before  last counter before them; Infinity where some are left out */
function* pieces(entries, before) {
  for (const { event, lines, first } of entries) {
    const { counter } = event;
    if (counter > before + 1) yield { counter: before + 1, note: lost(before + 1, counter - 1), first };
    before = Math.max(before, counter);
    const raw = !event.stdout?.includes("\x1b[");
    for (let at = 0; at < lines.length; at += PIECE) {
      yield { counter, event, lines, raw, tone: tone(event), at, mid: at > 0, first: first + at, end: Math.min(at + PIECE, lines.length) };
    }
  }
}

export class Output {
  /**
   * @param {{label: string, onfollow: (follows: boolean) => void, onnear: (where: "before"|"after"|"end") => void,
   *   online: (number: number) => void, onmark: (line: ?HTMLElement) => void, onunfold: (counter: number) => void}} options
   *   `onnear`: more is wanted there; `online`: a line's number was clicked; `onmark`: this line is pointed at, or none;
   *   `onunfold`: what a heading has below it is wanted again
   */
  constructor({ label, onfollow, onnear, online, onmark, onunfold }) {
    this.onfollow = onfollow;
    this.onnear = onnear;
    this.onmark = onmark;
    this.onunfold = onunfold;
    this.filter = {}; // see `passes`; numbers of lines are then those that events say, or none
    this.folded = new Set(); // uuids of plays and tasks
    this._word = null; // what is searched for
    this.follows = true;
    this.total = 0; // the number of the last line of the whole output
    this.short = false; // it is loaded whole, so that the browser's own search finds all of it
    this.content = h("div.lines");
    this.earlier = h("p.dropped", { hidden: true }, "Loading earlier lines");
    this.element = h("div.output", { tabindex: 0, role: "region", "aria-label": label }, this.earlier, this.content);
    this._frame = 0;
    this._timer = 0;
    this._turn = 0; // of adding lines
    this._settling = 0;
    this._clear(1, 0);
    this.element.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.element.addEventListener("wheel", (event) => event.deltaY < 0 && this._leave(), { passive: true });
    this.element.addEventListener("click", (event) => {
      const line = event.target.closest(".ln");
      if (!line?.dataset.n || event.target.matches("button") || event.clientX - line.getBoundingClientRect().left > parseFloat(getComputedStyle(line, "::before").width)) return;
      this._mark(line);
      online(Number(line.dataset.n));
    });
    // Chunks get their true height when they are laid out, and the pane its size when the window does.
    this._sizes = new ResizeObserver(() => {
      this._stay();
      const laidOut = this._full.splice(0);
      if (laidOut.length > 0) requestAnimationFrame(() => laidOut.forEach((chunk) => chunk.classList.add("far")));
    });
    this._sizes.observe(this.content);
    this._sizes.observe(this.element);
  }

  /** An empty window. @param {number} first  its first event's counter @param {number} line  the number of the line before */
  _clear(first, line) {
    this._left = false; // lines that were left out, because they are folded
    this.first = first; // the events whose lines the window holds
    this.last = first - 1;
    this.attached = true; // what is new is added to it
    this._firstLine = null; // none yet
    this._lastLine = line;
    this._lines = 0;
    this._above = []; // what is still to be added
    this._below = [];
    this._cut = new Map(); // of events that came cut, by counter: the first line that is missing, and the one behind
    this._full = []; // chunks that have grown since they were laid out
    this._wanted = "";
    this._mark(null);
    this._release([...this.content.children]);
    this.earlier.hidden = first <= 1;
    // No scroll of the reader's. At once: else what is added next leaves it at an end, and an event of before says so.
    this._top = this.element.scrollTop = 0;
    this._held = null; // the line that is read, and where on the screen
  }

  /** Leave out what does not pass: nothing is shown until it is asked for. */
  only(filter) {
    this.filter = filter;
    if (this.last === 0) return;
    this._clear(1, 0);
    this.attached = false;
  }

  /** The event of the line that has the focus, or is pointed at. @returns {?number} its counter */
  get pointed() {
    const line = this.content.contains(document.activeElement) ? document.activeElement.closest(".ln") : this._marked;
    return line?.isConnected ? Number(line.dataset.of) : null;
  }

  get filtered() {
    return Object.values(this.filter).some(Boolean);
  }

  /** New at the end of the output. @param {Array<object>} events  in order */
  add(events) {
    const entries = numbered(events, this.total);
    this.total = end(entries, this.total);
    if (!this.attached || events.length === 0) return;
    for (const { event, lines, first } of entries) {
      const count = lineCount(event);
      if (count > lines.length) this._cut.set(event.counter, [first + lines.length, first + count]);
    }
    this._put(this.filtered ? entries.filter(({ event }) => passes(event, this.filter)) : entries, events.at(-1).counter);
  }

  /** What is new goes on behind a part that is not given. @param {number} first  counter @param {number} line  number before it */
  leap(first, line) {
    this.total = line;
    if (this.follows || this.first > this.last) this._clear(first, line);
    else this.attached = false;
  }

  /** Another part of the output. @param {Array<object>} events @param {number} line  number before it @param {number} to  see `after` */
  place(events, line, to, end) {
    this._clear(events[0]?.counter ?? to + 1, line);
    this.after(events, to, end);
  }

  /** More behind the window. @param {number} to  up to which event @param {number} end  last counter of all */
  after(events, to, end) {
    this._put(numbered(events, this.filtered ? NaN : this._lastLine), to);
    this.attached = this.last >= end;
  }

  /** More before the window. @param {boolean} all  that there is */
  before(events, all) {
    const next = { event: { counter: this.first }, lines: [], first: this.filtered ? NaN : (this._firstLine ?? this._lastLine + 1) };
    const entries = numberedBefore(events, next.first);
    const reached = all ? 1 : events[0].counter;
    for (const piece of pieces([...entries, next], this.filtered ? Infinity : reached - 1)) this._above.push(piece);
    this._firstLine = entries.find(hasLines)?.first ?? this._firstLine;
    this.first = reached;
    if (this._above.length > 0) this._schedule();
    else this._edges();
  }

  _put(entries, to) {
    this._firstLine ??= entries.find(hasLines)?.first ?? null;
    this._lastLine = end(entries, this._lastLine);
    for (const piece of pieces(entries, this.filtered ? Infinity : this.last)) this._below.push(piece);
    this.last = to;
    if (this._below.length > 0) this._schedule();
    else this._edges();
  }

  follow(follows) {
    if (this.follows === follows) return;
    this.follows = follows;
    this.onfollow(follows);
    if (follows && !this.attached) this.onnear("end");
    this._stick();
  }

  wrap(wraps) {
    this.element.classList.toggle("nowrap", !wraps);
    this._stay();
  }

  holds(line) {
    const isCut = [...this._cut.values()].some(([from, to]) => line >= from && line < to);
    return this._firstLine !== null && line >= this._firstLine && line <= this._lastLine && !isCut;
  }

  /** Whether nothing is folded, and no line is missing that was. */
  get whole() {
    return this.folded.size === 0 && !this._left;
  }

  /** Whether all that an event says is there, or about to be. */
  has(counter) {
    return this.whole && counter >= this.first && counter <= this.last && !this._cut.has(counter);
  }

  /** Jump to a line of the window, by its number or its event. @param {string} [which]  of the event's lines: the first, or ".hit" */
  show({ line, counter, which = "[data-counter]" }) {
    this.follow(false);
    this._wanted = line ? `[data-n="${line}"]` : `[data-of="${counter}"]${which}`;
    this._seek();
  }

  /** Mark the lines that have a text. @param {string} text  "": none */
  find(text) {
    this._word = text ? new RegExp(escaped(text), "giu") : null;
    for (const line of this.content.querySelectorAll(".ln")) this._match(line);
    this._mark(this._marked);
  }

  _match(line) {
    line.classList.toggle("hit", this._word !== null && line.textContent.search(this._word) >= 0);
  }

  destroy() {
    cancelAnimationFrame(this._frame);
    cancelAnimationFrame(this._settling);
    clearTimeout(this._timer);
    this._sizes.disconnect();
    this._above = this._below = [];
  }

  _schedule() {
    if (this._below.length + this._above.length === 0) return;
    // A hidden tab gets no frames, not even one that it waits for, and its queue must not grow for as long as it stays hidden.
    if (document.hidden) this._timer ||= setTimeout(() => this._work(200), 1000);
    else this._frame ||= requestAnimationFrame(() => this._work(BUDGET));
  }

  _work(budget) {
    cancelAnimationFrame(this._frame);
    clearTimeout(this._timer);
    this._frame = this._timer = 0;
    this._turn += 1;
    const until = performance.now() + budget;
    let done = 0;
    while (done < this._below.length && performance.now() < until) this._insert(this._below[done++], "append");
    this._below.splice(0, done);
    if (this._above.length > 0) {
      this._still(() => {
        do this._insert(this._above.pop(), "prepend");
        while (this._above.length > 0 && performance.now() < until);
      });
    }
    if (this._lines > LIMIT + CHUNK) this._trim();
    if (!this._clocked) this._clock();
    this._stick();
    this._seek();
    this._edges();
    this._schedule();
  }

  /**
   * Change what is above the line that is read, and keep that where it is. The style sheet turns off the browser's own
   * anchoring: at the very top there is none, and elsewhere both would move the same line, one after the other.
   */
  _still(change) {
    this._hold();
    change();
    this._stay();
  }

  /** The first line that is seen whole is the one that is read: one that is seen in part may become shorter, and go. */
  _hold() {
    const edge = this.element.getBoundingClientRect().top;
    const below = (node) => node.getBoundingClientRect().bottom > edge;
    const lines = [...([...this.content.children].find(below)?.children ?? [])];
    const line = lines.find((one) => one.getBoundingClientRect().top >= edge) ?? lines.find(below);
    this._held = line ? { line, top: line.getBoundingClientRect().top - edge } : null;
  }

  /** At the end if it follows, else at the line that is read. */
  _stay() {
    if (this.follows) this._stick();
    else if (this._held?.line.isConnected) {
      const { line, top } = this._held;
      const moved = line.getBoundingClientRect().top - this.element.getBoundingClientRect().top - top;
      if (Math.abs(moved) >= 1) this._top = this.element.scrollTop += moved;
    }
  }

  _nodes(piece) {
    if (piece.note !== undefined) return [h("p.note", {}, piece.note)];
    if (this.folded.size > 0 && above(piece.event).some((uuid) => this.folded.has(uuid))) {
      this._left = true;
      return [];
    }
    return piece.lines.slice(piece.at, piece.end).map((spans, index) => this._line(piece, spans, piece.at + index));
  }

  _line(piece, spans, index) {
    const line = document.createElement("div");
    line.className = `ln ${piece.tone}${piece.raw ? " raw" : ""}`;
    const number = piece.first - piece.at + index;
    if (number) line.dataset.n = number;
    line.dataset.of = piece.counter;
    line.above = above(piece.event);
    for (const { text, style } of spans) {
      if (isPlain(style)) {
        line.append(text);
      } else {
        const span = document.createElement("span");
        paint(span, style);
        span.textContent = text;
        line.append(span);
      }
    }
    if (spans.length > 0 && (index === 0 || (index === 1 && piece.lines[0].length === 0))) {
      line.dataset.counter = piece.counter;
      if (piece.tone === "heading") line.append(this._heading(piece.event));
    }
    if (this._word) this._match(line);
    return line;
  }

  /** A button that folds what is below a heading. Its duration is known when the next one is there, see `_clock`. */
  _heading(event) {
    this._clocked = false;
    const button = h("button.fold", { hidden: !event.uuid || event.event === "playbook_on_stats", "aria-expanded": !this.folded.has(event.uuid), onclick: () => this._fold(button) });
    return Object.assign(button, { event, begun: Date.parse(event.created) });
  }

  _fold({ event: { uuid, counter } }) {
    if (this.folded.has(uuid)) {
      this.element.focus({ preventScroll: true }); // until the button is there again
      this.onunfold(counter, uuid);
      return;
    }
    this.folded.add(uuid);
    this._still(() => {
      for (const line of [...this.content.querySelectorAll(".ln")]) {
        if (!line.above.includes(uuid)) continue;
        const chunk = line.parentElement;
        this._left = true;
        line.remove();
        if (chunk.childElementCount === 0) chunk.remove();
        this._lines -= 1;
      }
      this._clock();
    });
    this.look();
  }

  /** A task takes until the next heading, a play until the next play. What is folded stays as it was. */
  _clock() {
    let next, after; // when the next heading and the next play begin
    for (const button of [...this.content.querySelectorAll(".fold")].reverse()) {
      const { begun, event } = button;
      const task = event.event.includes("task");
      const until = task ? next : after;
      const took = until >= begun ? duration((until - begun) / 1000) : button.dataset.took;
      const isOpen = String(!this.folded.has(event.uuid));
      // Only what differs: each time there is one more, there are all of them.
      if (took !== button.dataset.took || !button.ariaLabel) {
        if (took) button.dataset.took = took;
        button.ariaLabel = [task ? "Task" : "Play", event.task || event.play, took].filter(Boolean).join(", ");
      }
      if (isOpen !== button.ariaExpanded) button.ariaExpanded = isOpen;
      next = begun;
      if (!task) after = begun;
    }
    this._clocked = true;
  }

  /** @param {"append"|"prepend"} where */
  _insert(piece, where) {
    const nodes = this._nodes(piece);
    if (nodes.length === 0) return;
    const [edge, inner] = where === "append" ? ["lastElementChild", "previousElementSibling"] : ["firstElementChild", "nextElementSibling"];
    let chunk = this.content[edge];
    if (!chunk || chunk.childElementCount + nodes.length > CHUNK) {
      // Not the one that was just filled: it is being looked at, and would be blank for a frame.
      const full = chunk?.[inner];
      // A browser remembers the height of the last layout. A chunk that has grown since would be too low, its lines
      // beyond that would be out of sight, and the line that is read would be held where nobody sees it.
      if (full?.turn === this._turn) full.classList.add("far");
      else if (full) this._full.push(full);
      chunk = Object.assign(h("div.chunk"), { turn: this._turn });
      this.content[where](chunk);
    }
    if (where === "prepend" || !chunk.piece) chunk.piece = piece; // its first one
    this._lines += nodes.length;
    chunk[where](...nodes);
  }

  /**
   * Let go of what is farthest from the reader, but not of what he sees, or goes to, or what would be asked for again at
   * once, see `look`. An event is let go whole: what is asked for again is whole events.
   */
  _trim() {
    if (this._wanted) return;
    this._stick();
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const { top, bottom } = this.element.getBoundingClientRect();
    const margin = 3 * clientHeight;
    const early = this.follows || scrollTop > scrollHeight - clientHeight - scrollTop;
    const chunks = [...this.content.children];
    if (!early) chunks.reverse();
    const isNear = (box) => (early ? box.bottom > top - margin : box.top < bottom + margin);
    const edge = (count) => (early ? chunks[count] : chunks[count - 1]).piece;
    let count = 0;
    let gone = 0;
    let lines = 0;
    for (let next = 1; next < chunks.length && this._lines - gone > LIMIT; next++) {
      if (isNear(chunks[next - 1].getBoundingClientRect())) break;
      lines += chunks[next - 1].childElementCount;
      if (!edge(next).mid) [count, gone] = [next, lines];
    }
    if (count === 0) return;
    this._still(() => this._release(chunks.slice(0, count)));
    this._full = this._full.filter((chunk) => chunk.isConnected); // of a hidden tab no size is observed
    this.short = false; // nor is it loaded whole again
    this._lines -= gone;
    if (early) {
      this.first = edge(count).counter;
      this._firstLine = edge(count).first;
      this._above = [];
      return;
    }
    this.last = edge(count).counter - 1;
    this._lastLine = edge(count).first - 1;
    this._below = [];
    this.attached = false;
  }

  /** What goes must not take the focus with it. */
  _release(chunks) {
    if (chunks.some((chunk) => chunk.contains(document.activeElement))) this.element.focus({ preventScroll: true });
    for (const chunk of chunks) chunk.remove();
  }

  /** Ask for what lies beyond an edge that the reader comes near to. */
  look() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const near = 2 * clientHeight;
    const before = scrollTop < near || (this.short && this._lines < LIMIT / 2);
    if (this.first > 1 && this._above.length === 0 && before) this.onnear("before");
    else if (!this.attached && this._below.length === 0 && scrollHeight - scrollTop - clientHeight < near) this.onnear("after");
  }

  _edges() {
    const hidden = this.first <= 1;
    if (this.earlier.hidden !== hidden) this._still(() => (this.earlier.hidden = hidden));
    this.look();
  }

  _seek() {
    const line = this._wanted && this.content.querySelector(this._wanted);
    if (line) {
      this._wanted = "";
      this._mark(line);
      this._centre(line, SETTLE);
      if (this.element === document.activeElement) line.querySelector(".fold")?.focus({ preventScroll: true });
    } else if (this._above.length + this._below.length === 0) {
      this._wanted = "";
    }
  }

  _mark(line) {
    this._marked?.classList.remove("here");
    this._marked = line;
    line?.classList.add("here");
    this.onmark(line);
    if (!globalThis.Highlight) return;
    const found = new Highlight();
    for (const child of line && this._word ? line.childNodes : []) {
      const node = child.firstChild ?? child;
      for (const { index, 0: { length } } of node.data?.matchAll(this._word) ?? []) {
        found.add(new StaticRange({ startContainer: node, startOffset: index, endContainer: node, endOffset: index + length }));
      }
    }
    CSS.highlights.set("found", found);
  }

  _centre(line, frames) {
    cancelAnimationFrame(this._settling);
    if (!line.isConnected || this.follows) return;
    line.scrollIntoView({ block: "center" });
    this._top = this.element.scrollTop;
    this._hold();
    if (frames > 0) this._settling = requestAnimationFrame(() => this._centre(line, frames - 1));
  }

  _stick() {
    if (!this.follows) return;
    this.element.scrollTop = this.element.scrollHeight;
    this._top = this.element.scrollTop;
  }

  _leave() {
    cancelAnimationFrame(this._settling);
    if (this.element.scrollHeight > this.element.clientHeight + 4) this.follow(false);
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const up = scrollTop < this._top - 2;
    // Only a scroll down to the end asks for following: the event of our own last jump may come after "stop".
    const down = scrollTop > this._top + 2;
    const end = scrollHeight - scrollTop - clientHeight < 4;
    this._top = scrollTop;
    this._hold();
    if (this.follows && up && !end) this.follow(false);
    else if (!this.follows && this.attached && end && down) this.follow(true);
    this.look();
  }
}
