/** Asks for what a view shows, asks again when that failed, and says so: what is known meanwhile is `knowledge.js`'s. */

import { assemble, h, say, tick } from "./dom.js";
import { Knowledge } from "./knowledge.js";

const GATHER = 500; // ms: a burst of news becomes one request

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
    this.gone = false;
    this.asked = this.answered = 0; // how often, and what the newest answer was to
    // Read aloud when it changes. What counts down stands outside, or it would be read every second.
    this.text = h("span", { role: "alert" });
    this.next = h("span");
    this.button = h("button.quiet", { onclick: () => again() }, "Ask again");
    this.element = h("p.problem", { hidden: true }, this.text, " ", this.next, " ", this.button);
    this.off = app.onSecond(() => this.draw());
  }

  destroy() {
    this.gone = true;
    clearTimeout(this.timer);
    this.off();
  }

  /** @template T @param {() => Promise<T>} load @returns {Promise<T|undefined>} undefined when it failed, came behind a newer answer, or nobody looks any more */
  async attempt(load) {
    if (this.gone) return undefined;
    clearTimeout(this.timer);
    const number = ++this.asked;
    try {
      const result = await load();
      if (this.gone || number < this.answered) return undefined;
      this.answered = number;
      this.knowledge.succeed();
      return result;
    } catch (error) {
      if (this.gone || number < this.answered || error.name === "AbortError") return undefined;
      clearTimeout(this.timer); // another's that has failed meanwhile
      const pause = this.knowledge.fail(error, Date.now());
      if (pause !== null) this.timer = setTimeout(this.again, pause);
      if (error.status === 401) this.app.failed(error);
      return undefined;
    } finally {
      if (!this.gone) {
        this.draw();
        this.onchange();
      }
    }
  }

  draw() {
    const words = this.knowledge.words(this.what);
    const final = words === "" || this.knowledge.retryAt === null;
    // What goes must not take the focus with it.
    if (final && this.button === document.activeElement) this.element.closest("section").querySelector("h1").focus({ preventScroll: true });
    this.element.hidden = words === "";
    this.button.hidden = final;
    say(this.text, words);
    say(this.next, this.knowledge.next(Date.now()));
  }
}

/** A view that is one thing to load, and to load again when there is news of it. */
export class View {
  /** @param {object} app @param {string} name  of its template and of what it hears @param {Object<string, () => any>} [clicks]  see `assemble` @param {string} [what]  is shown, see `Loader` */
  constructor(app, name, clicks = {}, what = "The list", onchange = undefined) {
    Object.assign(this, { app, name, timer: 0, offs: [app.onSecond(() => tick(this.element))] });
    this.loader = new Loader(app, what, () => this.load(), onchange);
    assemble(this, name, clicks);
    this.loading.replaceWith(this.loader.element);
  }

  /** Told of changes, and then the first look. @param {Object<string, string[]>} groups  of one family */
  hear(groups) {
    this.offs.push(this.app.onReconnect(() => this.load()));
    for (const family of Object.keys(groups)) this.offs.push(this.app.link.on(family, () => (this.timer ||= setTimeout(() => this.load(), GATHER))));
    this.app.want(this.name, groups).then(() => this.load());
  }

  get loaded() {
    return this.loader.knowledge.settled;
  }

  destroy() {
    this.loader.destroy();
    clearTimeout(this.timer);
    for (const off of this.offs) off();
    this.app.want(this.name, null);
  }
}
