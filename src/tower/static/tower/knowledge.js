/**
 * What a view knows of what it shows, and says of it in words. Pure: knows neither the page nor the network.
 *
 *     loading ──> loaded ──> stale ──> loaded        stale: what is shown was true when it was last asked for
 *        └─────> failed ──> loaded                  failed: nothing is known, so nothing is claimed
 */

export const PAUSES = [1, 2, 4, 8, 15, 30]; // seconds before each next try
const FINAL = [400, 401, 403, 404]; // asking again would not change the answer

export class Knowledge {
  constructor() {
    this.state = "loading";
    this.reason = "";
    this.tries = 0;
    /** When the next try is due, ms; null: nobody will ask again. */
    this.retryAt = null;
  }

  /** Whether anything was ever loaded: before that, a view claims nothing. */
  get known() {
    return this.state === "loaded" || this.state === "stale";
  }

  /** Whether the last answer was none. */
  get failing() {
    return this.state === "failed" || this.state === "stale";
  }

  /** Whether asking again would show no more: all is there, or the answer is final. */
  get settled() {
    return this.state !== "loading" && this.retryAt === null;
  }

  /** Something else is asked for from now on: nothing is known of that. */
  forget() {
    if (this.known) this.state = "loading";
  }

  succeed() {
    Object.assign(this, { state: "loaded", reason: "", tries: 0, retryAt: null });
  }

  /**
   * @param {{message: string, status?: number}} error @param {number} now  ms
   * @returns {?number} ms until the next try; null when there is none
   */
  fail(error, now) {
    this.state = this.known ? "stale" : "failed";
    this.reason = error.message;
    const pause = PAUSES[Math.min(this.tries, PAUSES.length - 1)] * 1000;
    this.tries += 1;
    this.retryAt = FINAL.includes(error.status) ? null : now + pause;
    return this.retryAt && pause;
  }

  /** @param {string} what  is shown, as "The output" @returns {string} "" when all is loaded */
  words(what) {
    if (!this.failing) return "";
    if (this.retryAt === null) return this.reason;
    return `${what} ${this.state === "stale" ? "may be out of date" : "is not loaded"}: ${this.reason}`;
  }

  /** @param {number} now  ms @returns {string} when the next try is, "" when there is none: it changes each second */
  next(now) {
    if (this.retryAt === null) return "";
    const seconds = Math.ceil((this.retryAt - now) / 1000);
    return seconds > 0 ? `Next try in ${seconds} s.` : "Trying again.";
  }
}
