/** The page: who is logged in, which view is open, and how the link is. */

import { BASE, address, look, request } from "./api.js";
import { Carillon, describe } from "../carillon/carillon.js";
import { h, ring, say, stamp } from "./dom.js";
import { plural } from "./format.js";
import { listen } from "./keys.js";
import { Loader } from "./loading.js";
import { Account } from "./views/account.js";
import { Connections } from "./views/connections.js";
import { JobPage } from "./views/job.js";
import { Jobs } from "./views/jobs.js";
import { Login } from "./views/login.js";
import { Operations } from "./views/operations.js";
import { Schedules } from "./views/schedules.js";

const HISTORY = 30; // entries of the link's story
const RESUMED = 10_000; // ms that "Resumed" stays

const PLACES = { account: Account, connections: Connections, operations: Operations, schedules: Schedules };

/** @returns {() => void} what ends it */
const enrol = (handlers, handler) => (handlers.add(handler), () => handlers.delete(handler));

const part = (id) => document.getElementById(id);

const unknown = (error) => (error.status === 401 ? null : Promise.reject(error)); // who asks may be nobody

class Link {
  /** The link's state in words: in the header always, aloud when it changes, and its story on demand. */
  constructor(app) {
    this.app = app;
    this.note = "";
    this.noteUntil = 0;
    this.before = "idle";
    this.words = part("link-words");
    this.bell = part("link-bell");
    this.button = part("link");
    this.story = part("link-story");
    this.retry = part("link-retry");
    this.retry.addEventListener("click", () => this.again());
    app.link.on("state", (link) => this.changed(link));
    app.link.on("error", (error) => this.tell(`The server answered: ${error}`));
    setInterval(() => this.draw(), 250);
    this.draw();
  }

  again() {
    const { state } = this.app.link.link;
    if (state === "refused" || state === "closed") this.app.begin();
    else this.app.link.retry();
  }

  changed(link) {
    const fresh = link.state !== this.before;
    const back = link.state === "connected" && this.before === "reconnecting";
    this.before = link.state;
    this.note = "";
    if (link.state === "connected") this.tell(back ? "Connected again." : "Connected.");
    else if (link.state === "reconnecting" && link.retryAt !== null) {
      const seconds = ((link.retryAt - Date.now()) / 1000).toFixed(1);
      this.tell(`${link.reason}. Attempt ${link.attempt} in ${seconds} s.`);
    } else if (link.state === "refused") this.tell(`Refused: ${link.reason}.`);
    else if (link.state === "closed") this.tell("Closed.");
    if (fresh) {
      ring(this.bell);
      // A break is announced once, not at every attempt.
      if (link.state === "reconnecting") this.app.announce(`Link lost: ${link.reason}. Reconnecting.`);
      else if (link.state !== "connecting" && !back) this.app.announce(describe(link));
    }
    this.draw();
  }

  /** @param {number} count  of what was missed @param {string} what  "missed event" @param {string} how  it came */
  resumed(count, what, how) {
    this.noted(count > 0 ? `Resumed: ${plural(count, what)} ${how}` : "Resumed: nothing missed");
  }

  noted(note) {
    if (this.app.link.link.state !== "connected") return; // it was lost again while views were loading
    this.note = note;
    this.noteUntil = Date.now() + RESUMED;
    this.tell(`${this.note}.`);
    this.app.announce(this.note);
    this.draw();
  }

  tell(text) {
    const now = new Date();
    const line = h("li", {}, h("time", { datetime: now.toISOString() }, now.toLocaleTimeString("en-GB")), " ", text[0].toUpperCase() + text.slice(1));
    this.story.prepend(line);
    while (this.story.childElementCount > HISTORY) this.story.lastElementChild.remove();
  }

  draw() {
    const { link } = this.app.link;
    if (this.note && Date.now() > this.noteUntil) this.note = "";
    this.button.dataset.state = this.note ? "resumed" : link.state;
    say(this.words, this.note || describe(link));
    this.button.title = link.reason;
    const hidden = !["reconnecting", "refused"].includes(link.state) || this.app.user === null;
    if (hidden && this.retry === document.activeElement) this.button.focus();
    this.retry.hidden = hidden;
  }
}

class App {
  constructor() {
    this.user = null;
    this.turn = 0; // of coming in and going out: an answer to an earlier one decides nothing
    this.view = null;
    this.jobs = null;
    this.route = null;
    this.wanted = new Map();
    this.sending = null;
    this.reconnects = new Set();
    this.seconds = new Set();
    this.link = new Carillon({ url: location.origin.replace("http", "ws") + BASE + "/websocket/" });
    this.indicator = new Link(this);
    this.who = new Loader(this, "Carillon", () => this.begin());
    this.link.on("state", (link) => this.linked(link));
    this.link.on("control", () => this.begin());
    // Recovered, the events themselves have told everything; else each view fetches what it shows.
    this.link.onreconnect = ({ recovered, events }) =>
      recovered && this.loaded ? this.indicator.resumed(events, "missed event", "received") : this.resumed();
    this.stage = part("main");
    part("logout").addEventListener("click", () => this.logout());
    globalThis.addEventListener("hashchange", () => this.user && this.go());
    setInterval(() => document.hidden || this.seconds.forEach((tick) => tick()), 1000);
    listen(this);
    // A plain jump to #main would be a route.
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.stage.focus();
    });
  }

  // Coming in and going out ---------------------------------------------------------------------------------------

  async begin() {
    const turn = ++this.turn;
    const answer = await this.who.attempt(() => look("/api/v2/me/").catch(unknown));
    if (turn !== this.turn) return this.user || clearTimeout(this.who.timer);
    if (answer) this.enter(answer.data.results[0], answer.position);
    else if (answer === null) this.ask(this.user ? "Your login has ended. Log in to go on." : "");
    else if (this.user) this.announce(this.who.knowledge.reason, true);
    else if (!this.who.element.isConnected) this.replace({ element: h("section.login", {}, h("div.card", {}, h("h1", { tabindex: -1 }, "Not ready"), this.who.element)), destroy() {} });
  }

  /** Who was asked for before matters no more, and is not asked for again. */
  forget() {
    this.turn += 1;
    clearTimeout(this.who.timer);
  }

  /** @param {object} user @param {?string} position  from here on events are heard, whatever views have seen meanwhile */
  enter(user, position) {
    const same = user.id === this.user?.id && this.route !== null;
    this.user = user;
    document.body.dataset.user = user.is_superuser ? "known admin" : "known";
    say(part("user").lastElementChild, user.username);
    this.want("control", { control: [`limit_reached_${user.id}`] });
    this.link.connect({ since: position });
    if (same || position === null) this.lookAgain();
    if (same) return; // what is open stays as it is
    this.route = null;
    this.go();
  }

  /** A server without positions cannot tell what happened between a view's last look and the subscription. */
  lookAgain() {
    const off = this.link.on("subscribed", () => {
      off();
      for (const again of this.reconnects) again();
    });
  }

  ask(reason) {
    this.forget();
    this.user = null;
    document.body.dataset.user = "none";
    this.clear();
    const login = new Login({ reason, onlogin: () => this.begin() });
    this.replace(login);
    this.title("Log in");
    login.focus();
  }

  /** The session goes on, and so does the link that was closed for its end. */
  stay() {
    this.lookAgain();
    this.link.connect();
  }

  async logout() {
    this.forget();
    this.link.close();
    try {
      const { end_session: elsewhere } = await request("/api/logout/", { method: "POST" });
      if (elsewhere) return location.assign(elsewhere); // to the provider that the login was by, which leads back
    } catch (error) {
      if (error.status !== 401) {
        this.announce(`Not logged out: ${error.message}`, true);
        return this.stay();
      }
    }
    this.ask("");
  }

  linked(link) {
    if (link.state === "connected" && this.user && link.user !== this.user.id) {
      // In another tab somebody else has logged in: what is shown is not his.
      this.user = null;
      this.clear();
      this.begin();
    }
    if (link.state === "refused" && link.code === 4401 && this.user) this.ask(`${describe(link)}. Log in to go on.`);
  }

  /** Whether every view shows all that there is for it: only then can be said what the link has resumed. */
  get loaded() {
    return [this.jobs, this.view].every((view) => view?.loaded ?? true);
  }

  async resumed() {
    const before = this.loaded;
    const results = await Promise.allSettled([...this.reconnects].map(async (handler) => handler()));
    const lines = results.reduce((total, { value }) => total + (Number(value) || 0), 0);
    const fetched = lines > 0 ? `${plural(lines, "missed line")} fetched, ` : "";
    const broken = results.some(({ status }) => status === "rejected");
    if (broken || !this.loaded) this.indicator.noted(`Connected again: ${fetched}not all could be loaded yet`);
    else if (before) this.indicator.resumed(lines, "missed line", "fetched");
    else this.indicator.noted("Connected again: all is loaded");
  }

  // What views need ------------------------------------------------------------------------------------------------

  /**
   * Each view says what it wants to hear of; together that is the subscription.
   *
   * @param {string} name  of the asker @param {?import("../carillon/carillon.js").Groups} groups  null: nothing any more
   * @returns {Promise<void>} when the server has answered, or the link is not up
   */
  want(name, groups) {
    if (groups === null) this.wanted.delete(name);
    else this.wanted.set(name, groups);
    // One message for all that changes at once, as when a view goes and another comes.
    this.sending ??= Promise.resolve().then(async () => {
      this.sending = null;
      const all = {};
      for (const groups of this.wanted.values()) for (const [family, keys] of Object.entries(groups)) all[family] = keys;
      await this.link.subscribe(all).catch(() => undefined);
    });
    return this.sending;
  }

  onReconnect = (handler) => enrol(this.reconnects, handler);

  onSecond = (handler) => enrol(this.seconds, handler);

  /** @param {string} text @param {boolean} [visible]  also shown for a while */
  announce(text, visible = false) {
    part("announcer").textContent = text;
    if (!visible) return;
    const toast = part("toast");
    toast.textContent = text;
    toast.hidden = false;
    clearTimeout(this.toasting);
    this.toasting = setTimeout(() => (toast.hidden = true), 6000);
  }

  failed(error) {
    if (error.name === "AbortError") return; // nobody wants it any more
    if (error.status === 401 && this.user) {
      this.link.close();
      this.ask("Your login has ended. Log in to go on.");
    } else if (error.status !== 0 || this.link.link.state === "connected") {
      this.announce(error.message, true);
    }
  }

  /** Do what was asked for. @param {string} failed  what is said where that fails @param {() => Promise<any>} doing */
  async act(failed, doing) {
    try {
      return await doing();
    } catch (error) {
      if (error.name !== "AbortError") this.announce(`${failed}: ${error.message}`, true);
      return undefined;
    }
  }

  title(text) {
    document.title = text ? `${text} · Carillon` : "Carillon";
  }

  /**
   * Ask before something that cannot be undone. The focus goes back to where it was.
   *
   * @param {string} question @param {string} yes @param {string} no  what the buttons say
   * @returns {Promise<boolean>}
   */
  confirm(question, yes, no) {
    return this.modal(stamp("question", { h2: question, "[value=no]": no, "[value=yes]": yes }));
  }

  /** Show a text to be read and copied. The focus goes back to where it was. */
  show(title, note, text) {
    const dialog = stamp("shown", { h2: title, ".facts": note, pre: text });
    const copy = async () => {
      const whole = dialog.querySelector("pre");
      getSelection().selectAllChildren(whole);
      // There is no clipboard for a page over plain HTTP, and it may be forbidden.
      const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
      say(dialog.querySelector("[role=status]"), copied ? "Copied." : "It is selected: copy it by Ctrl+C.");
    };
    dialog.querySelector("[type=button]").addEventListener("click", copy);
    return this.modal(dialog);
  }

  /** @param {HTMLDialogElement} dialog @returns {Promise<boolean>} whether it was answered with "yes" */
  modal(dialog) {
    document.body.append(dialog);
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve((dialog.remove(), dialog.returnValue === "yes"))));
  }

  async cancel(job) {
    if (!(await this.confirm(`Cancel ${job.name}?`, "Cancel job", "Keep it running"))) return;
    const asked = () => request(`/api/v2/jobs/${job.id}/cancel/`, { method: "POST" });
    if (await this.act(`${job.name} was not canceled`, asked)) this.announce(`${job.name}: asked to stop`);
  }

  // Where we are ---------------------------------------------------------------------------------------------------

  /** A question is about the view that asked it: it goes with that. */
  shut() {
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  }

  clear() {
    this.shut();
    this.view?.destroy();
    this.jobs?.destroy();
    this.view = this.jobs = this.route = null;
    this.wanted.clear();
  }

  replace(view) {
    this.shut();
    this.view?.destroy();
    this.view = view;
    this.stage.className = "";
    this.stage.replaceChildren(view.element);
  }

  go() {
    const [, place = "jobs", id, query = ""] = location.hash.match(/^#\/([a-z]+)(?:\/(\d+))?(\?.*)?$/) ?? [];
    const first = this.route === null;
    const route = `${place}/${id ?? ""}`;
    const params = new URLSearchParams(query);
    if (query && this.jobs?.read(query)) this.jobs.load();
    if (route === this.route) {
      this.view?.read?.(params);
      this.keep();
      return;
    }
    this.route = route;
    for (const link of document.querySelectorAll("#nav a, #user")) link.ariaCurrent = link.hash === `#/${place}` ? "page" : null;
    if (Object.hasOwn(PLACES, place)) {
      // Before another one of its name says what it wants: that would be taken back.
      for (const view of [this.jobs, this.view]) view?.destroy();
      this.jobs = this.view = null;
      this.replace(new PLACES[place](this));
      this.title(this.view.heading.textContent);
    } else {
      this.showJobs(id === undefined ? null : Number(id), query, params);
      this.keep();
    }
    if (!first) this.stage.querySelector(this.view ? "section:last-of-type h1" : "h1")?.focus({ preventScroll: true });
  }

  /** The address says what is shown: a reload and a link show the same. */
  keep() {
    if (!this.jobs) return;
    const [hash] = (location.hash || "#/jobs").split("?");
    const query = { ...Object.fromEntries(new URLSearchParams(this.jobs.query)), ...(hash !== "#/jobs" && this.view?.query) };
    const shown = address(hash, query);
    if (shown !== "#/jobs" || location.hash !== "") history.replaceState(history.state, "", shown);
  }

  showJobs(id, query, params) {
    this.shut();
    const left = this.view instanceof JobPage ? this.view.id : null;
    this.view?.destroy();
    this.view = null;
    if (!this.jobs) {
      this.jobs = new Jobs(this, query);
      this.stage.replaceChildren(this.jobs.element);
    }
    for (const other of [...this.stage.children]) if (other !== this.jobs.element) other.remove();
    this.stage.className = id === null ? "" : "split";
    this.jobs.open(id);
    if (id === null) {
      this.title("Jobs");
      if (left !== null) queueMicrotask(() => this.jobs.rows.get(left)?.name.focus({ preventScroll: true }));
    } else {
      this.view = new JobPage(this, id, params);
      this.stage.append(this.view.element);
    }
  }
}

new App().begin();
