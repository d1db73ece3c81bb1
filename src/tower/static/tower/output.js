/**
 * A job's output on the page: lines in chunks that the browser lays out only when they are near the screen, added a
 * frame at a time, followed to the end until the reader scrolls up.
 */

import { parse } from "./ansi.js";
import { h } from "./dom.js";
import { lineCount } from "./eventlog.js";

const CHUNK = 100; // lines; the style sheet's estimate of a chunk's height counts on it
const BUDGET = 8; // ms of a frame spent on adding lines
const LIMIT = 20_000; // lines kept on the page; the earliest are let go first

const TONES = new Map([
  ["runner_on_failed", "failed"],
  ["runner_on_error", "failed"],
  ["runner_on_async_failed", "failed"],
  ["runner_item_on_failed", "failed"],
  ["runner_on_unreachable", "failed"],
  ["runner_on_skipped", "skipped"],
  ["runner_item_on_skipped", "skipped"],
  ["playbook_on_play_start", "head"],
  ["playbook_on_task_start", "head"],
  ["playbook_on_handler_task_start", "head"],
  ["playbook_on_stats", "head"],
  ["runner_on_ok", "ok"],
  ["runner_item_on_ok", "ok"],
]);

function tone(event) {
  if (event.failed && event.event.startsWith("runner_")) return "failed";
  if (event.changed && event.event.startsWith("runner_")) return "changed";
  return TONES.get(event.event) ?? "plain";
}

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

export class Output {
  /** @param {{label: string, onfollow: (follows: boolean) => void}} options */
  constructor({ label, onfollow }) {
    this.onfollow = onfollow;
    this.follows = true;
    this.count = 0; // lines on the page so far: the number of the last one
    this.total = 0; // lines given so far, those still queued included
    this.content = h("div.lines");
    this.dropped = h("p.dropped", { hidden: true });
    this.element = h("div.output", { tabindex: 0, role: "region", "aria-label": label }, this.dropped, this.content);
    this._queue = [];
    this._at = 0;
    this._frame = 0;
    this._timer = 0;
    this._chunk = null;
    this._room = 0;
    this._top = 0;
    this._trouble = null; // the failed line last jumped to
    this.element.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.element.addEventListener("wheel", (event) => event.deltaY < 0 && this._leave(), { passive: true });
    // Chunks get their true height when they are laid out, and the pane its size when the window does.
    this._sizes = new ResizeObserver(() => this._stick());
    this._sizes.observe(this.content);
    this._sizes.observe(this.element);
  }

  /** @param {Array<object>} events  in order @returns {number} how many lines they are */
  add(events) {
    let lines = 0;
    for (const event of events) {
      const parsed = parse(event.stdout ?? "", lineCount(event));
      if (parsed.length === 0) continue;
      lines += parsed.length;
      this.total += parsed.length;
      this._queue.push({ lines: parsed, tone: tone(event), raw: !event.stdout?.includes("\x1b[") });
    }
    this._schedule();
    return lines;
  }

  /** A remark of the page itself between the lines. */
  note(text) {
    this._queue.push({ note: text });
    this._schedule();
  }

  follow(follows) {
    if (this.follows === follows) return;
    this.follows = follows;
    this.onfollow(follows);
    this._stick();
  }

  wrap(wraps) {
    this.element.classList.toggle("nowrap", !wraps);
    this._stick();
  }

  top() {
    this.follow(false);
    this.element.scrollTop = 0;
  }

  /** Jump to the next (or previous) failure. @returns {boolean} whether there is one */
  trouble(step) {
    const lines = [...this.content.querySelectorAll(".ln.failed.first")];
    if (lines.length === 0) return false;
    const at = lines.indexOf(this._trouble);
    const line = lines[at === -1 ? (step > 0 ? 0 : lines.length - 1) : (at + step + lines.length) % lines.length];
    this.follow(false);
    this._trouble?.classList.remove("here");
    this._trouble = line;
    line.classList.add("here");
    line.scrollIntoView({ block: "center" });
    return true;
  }

  destroy() {
    cancelAnimationFrame(this._frame);
    clearTimeout(this._timer);
    this._sizes.disconnect();
    this._queue = [];
  }

  _schedule() {
    if (this._frame || this._timer || this._queue.length === 0) return;
    // A hidden tab gets no frames, and its queue must not grow for as long as it stays hidden.
    if (document.hidden) this._timer = setTimeout(() => this._work(200), 1000);
    else this._frame = requestAnimationFrame(() => this._work(BUDGET));
  }

  _work(budget) {
    this._frame = this._timer = 0;
    const until = performance.now() + budget;
    let entry = 0;
    while (entry < this._queue.length && performance.now() < until) {
      const item = this._queue[entry];
      if (item.note !== undefined) {
        this._append(h("p.note", {}, item.note));
        entry += 1;
        continue;
      }
      for (; this._at < item.lines.length; this._at++) {
        if (this._at % 20 === 19 && performance.now() >= until) break;
        this._append(this._line(item, this._at));
      }
      if (this._at < item.lines.length) break;
      this._at = 0;
      entry += 1;
    }
    this._queue.splice(0, entry);
    this._trim();
    this._stick();
    this._schedule();
  }

  _line(item, index) {
    this.count += 1;
    const line = document.createElement("div");
    const first = index === 0 || (index === 1 && item.lines[0].length === 0);
    line.className = `ln ${item.tone}${item.raw ? " raw" : ""}${first && item.lines[index].length > 0 ? " first" : ""}`;
    line.dataset.n = this.count;
    for (const { text, style } of item.lines[index]) {
      if (isPlain(style)) {
        line.append(text);
      } else {
        const span = document.createElement("span");
        paint(span, style);
        span.textContent = text;
        line.append(span);
      }
    }
    return line;
  }

  _append(node) {
    if (this._room === 0) {
      // Not the one that was just filled: it is being looked at, and would be blank for a frame.
      this._chunk?.previousElementSibling?.classList.add("far");
      this._chunk = h("div.chunk");
      this.content.append(this._chunk);
      this._room = CHUNK;
    }
    this._room -= 1;
    this._chunk.append(node);
  }

  _trim() {
    while (this.content.childElementCount * CHUNK > LIMIT + CHUNK) {
      this.content.firstElementChild.remove();
      this.dropped.hidden = false;
      const first = this.content.querySelector(".ln")?.dataset.n ?? this.count;
      this.dropped.textContent = `Lines before ${Number(first).toLocaleString("en")} are no longer shown here: save the output to read them.`;
    }
  }

  _stick() {
    if (!this.follows) return;
    this.element.scrollTop = this.element.scrollHeight;
    this._top = this.element.scrollTop;
  }

  _leave() {
    if (this.element.scrollHeight > this.element.clientHeight + 4) this.follow(false);
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const up = scrollTop < this._top - 2;
    // Only a scroll down to the end asks for following: the event of our own last jump may come after "stop".
    const down = scrollTop > this._top + 2;
    const end = scrollHeight - scrollTop - clientHeight < 4;
    this._top = scrollTop;
    if (this.follows && up && !end) this.follow(false);
    else if (!this.follows && end && down) this.follow(true);
  }
}
