/** Asks for what a view shows, asks again when that failed, and says so: what is known meanwhile is `knowledge.js`'s. */

import { h, say } from "./dom.js";
import { Knowledge } from "./knowledge.js";

export class Loader {
  /**
   * @param {object} app @param {string} what  is shown, as "The output"
   * @param {() => any} again  the view's own way to ask once more @param {() => void} [onchange]  of what is known
   */
  constructor(app, what, again, onchange = () => {}) {
    this.app = app;
    this.what = what;
    this.again = again;
    this.onchange = onchange;
    this.knowledge = new Knowledge();
    this.timer = 0;
    this.text = h("span");
    this.button = h("button.quiet", { type: "button", onclick: () => again() }, "Ask again");
    this.element = h("p.problem", { role: "alert", hidden: true }, this.text, " ", this.button);
    this.off = app.onSecond(() => this.draw());
  }

  destroy() {
    clearTimeout(this.timer);
    this.off();
  }

  /** @template T @param {() => Promise<T>} load @returns {Promise<T|undefined>} undefined when it failed */
  async attempt(load) {
    clearTimeout(this.timer);
    try {
      const result = await load();
      this.knowledge.succeed();
      return result;
    } catch (error) {
      if (error.name === "AbortError") return undefined;
      const pause = this.knowledge.fail(error, Date.now());
      if (pause !== null) this.timer = setTimeout(this.again, pause);
      if (error.status === 401) this.app.failed(error);
      return undefined;
    } finally {
      this.draw();
      this.onchange();
    }
  }

  draw() {
    const words = this.knowledge.words(this.what, Date.now());
    this.element.hidden = words === "";
    this.button.hidden = this.knowledge.retryAt === null;
    say(this.text, words);
  }
}
