import { parse } from "./ansi.js";

/**
 * A job's events in order. They arrive live (perhaps twice, perhaps out of order, perhaps with some lost while the link
 * was away) and from the REST API (in order, the authority). Out come runs of events in order of `counter`, each once.
 * Pure: knows neither the page nor the network.
 */
export class EventLog {
  /** @param {number} [bound]  how many events may wait behind a gap; the farthest are dropped, a fetch brings them back */
  constructor(bound = 5000) {
    this.bound = bound;
    /** Everything up to this counter has been released or given up. */
    this.last = 0;
    this.early = new Map();
  }

  /**
   * @param {Array<{counter: number}>} events
   * @returns {Array<object>} those that are now due, in order
   */
  add(events) {
    for (const event of events) {
      if (Number.isInteger(event.counter) && event.counter > this.last) this.early.set(event.counter, event);
    }
    const due = this._release();
    if (this.early.size > this.bound) {
      const kept = [...this.early.keys()].sort((a, b) => a - b).slice(0, this.bound);
      this.early = new Map(kept.map((counter) => [counter, this.early.get(counter)]));
    }
    return due;
  }

  /** What comes up to this counter is left to be asked for elsewhere. */
  start(counter) {
    this.last = counter;
    for (const early of this.early.keys()) if (early <= counter) this.early.delete(early);
  }

  /** @returns {?{after: number, before: number}} the counters between which something is missing */
  gap() {
    if (this.early.size === 0) return null;
    return { after: this.last, before: Math.min(...this.early.keys()) };
  }

  /**
   * The authority does not have what is missing: go on without it.
   *
   * @returns {{missing: ?{from: number, to: number}, due: Array<object>}}
   */
  skip() {
    const gap = this.gap();
    if (gap === null) return { missing: null, due: [] };
    this.last = gap.before - 1;
    return { missing: { from: gap.after + 1, to: gap.before - 1 }, due: this._release() };
  }

  _release() {
    const due = [];
    while (this.early.has(this.last + 1)) {
      this.last += 1;
      due.push(this.early.get(this.last));
      this.early.delete(this.last);
    }
    return due;
  }
}

/** @returns {?number} how many lines of output an event is, where it says so */
export function lineCount({ start_line: start, end_line: end }) {
  return Number.isInteger(start) && Number.isInteger(end) && end >= start ? end - start : null;
}

const said = (event) => (lineCount(event) > 0 ? event.start_line + 1 : null);

/**
 * Events with the lines of their output and the first one's number: the one that the event says, else counted on.
 *
 * @param {Array<object>} events  in order @param {number} after  the number of the line before them
 * @returns {Array<{event: object, lines: Array<object>, first: number}>}
 */
export function numbered(events, after) {
  return events.map((event) => {
    const lines = parse(event.stdout ?? "", lineCount(event));
    const first = said(event) ?? after + 1;
    if (lines.length > 0) after = first + lines.length - 1;
    return { event, lines, first };
  });
}

/** The same, counted back. @param {number} next  the number of the line behind them */
export function numberedBefore(events, next) {
  const found = numbered(events, 0);
  for (const entry of found.reverse()) {
    entry.first = said(entry.event) ?? next - entry.lines.length;
    if (entry.lines.length > 0) next = entry.first;
  }
  return found.reverse();
}
