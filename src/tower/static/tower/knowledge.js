/**
 * What a view knows of what it shows, and says of it in words. Pure: knows neither the page nor the network.
 *
 *     loading ──> loaded ──> stale ──> loaded        stale: what is shown was true when it was last asked for
 *        └─────> failed ──> loaded                  failed: nothing is known, so nothing is claimed
 */

export const PAUSES = [1, 2, 4, 8, 15, 30]; // seconds before each next try
const FINAL = [401, 403, 404]; // asking again would not change the answer

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

  /** @param {string} what  is shown, as "The output" @param {number} now  ms @returns {string} "" when all is loaded */
  words(what, now) {
    if (this.state === "loading" || this.state === "loaded") return "";
    if (this.retryAt === null) return this.reason;
    const seconds = Math.max(0, Math.ceil((this.retryAt - now) / 1000));
    const so = this.state === "stale" ? "may be out of date" : "is not loaded";
    return `${what} ${so}: ${this.reason} ${seconds > 0 ? `Next try in ${seconds} s.` : "Trying again."}`;
  }
}
