/** Operations, for admins: whether events flow, what waits, and where one event is. */

import { address, request } from "../api.js";
import { h, icon, say } from "../dom.js";
import { duration, plural, when } from "../format.js";
import { Loader } from "../loading.js";

const EVERY = 2000; // ms between an answer and the next question, while the page is looked at
const OLD = 6000; // ms after which an answer is no news
const POINTS = 60; // of a chart
const UNKNOWN = "not known";
const HOPS = { emitted: "Emitted", relayed: "Relayed", delivered: "Delivered" };
const WAITING = { outbox: "In the outbox", queue: "On the queue", dead_letters: "Dead letters" };
const ICONS = { flowing: "successful", doubtful: "waiting", stopped: "failed", unknown: "pending" };

const number = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en"));

class Figure {
  /** A number under its name; a rate also as the line of the last two minutes. */
  constructor(title, charted = false) {
    this.points = [];
    this.value = h("dd", {}, UNKNOWN);
    if (charted) {
      this.chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      this.chart.setAttribute("aria-hidden", "true");
      this.chart.setAttribute("preserveAspectRatio", "none");
      this.chart.setAttribute("viewBox", `0 0 ${POINTS - 1} 24`);
      this.line = this.chart.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    }
    this.element = h("div", {}, h("dt", {}, title), this.value, this.chart);
  }

  show(value, unit = "") {
    say(this.value, value === null ? UNKNOWN : `${number(value)}${unit}`);
    if (!this.chart) return;
    this.points = value === null ? [] : [...this.points, value].slice(-POINTS);
    const most = Math.max(1, ...this.points);
    this.line.setAttribute("points", this.points.map((one, at) => `${at},${23 - (22 * one) / most}`).join(" "));
  }
}

export class Operations {
  constructor(app) {
    this.app = app;
    this.answer = null;
    this.answered = this.asked = 0;
    this.busy = false;
    this.since = new Date();
    this.first = new Map(); // of each host that has answered: what its counters were
    this.leaving = new AbortController();
    this.loader = new Loader(app, "The view", () => this.load(), () => this.judge());
    this.verdict = h("p.verdict", { role: "status" });
    this.asOf = h("p.facts");
    this.hops = Object.fromEntries(Object.entries(HOPS).map(([name, title]) => [name, new Figure(title, true)]));
    this.waiting = Object.fromEntries(Object.entries(WAITING).map(([name, title]) => [name, new Figure(title)]));
    this.behind = new Figure("Behind the log");
    this.sockets = new Figure("Sockets");
    const figures = (...all) => h("dl.hops", {}, ...all.map((one) => one.element));
    this.list = h("button.quiet", { type: "button", hidden: true, onclick: () => this.letters() }, "List dead letters");
    this.dead = h("ul.told");
    this.conditions = h("ul.told");
    this.body = h("tbody");
    const columns = ["Process", "State", "Position", "Behind", "Sockets", "Memory"].map((text) => h("th", { scope: "col" }, text));
    this.box = h("input.search", { name: "event", autocomplete: "off", spellcheck: "false", required: true });
    this.story = h("dl.story");
    this.problem = h("p.problem", { role: "alert", hidden: true });
    this.element = h(
      "section.page",
      { "aria-labelledby": "operations-heading" },
      h("h1", { id: "operations-heading", tabindex: -1 }, "Operations"),
      this.asOf,
      this.loader.element,
      this.verdict,
      this.conditions,
      figures(...Object.values(this.hops)),
      figures(...Object.values(this.waiting), this.behind, this.sockets),
      this.list,
      this.dead,
      h("h2", {}, "Processes"),
      h("div.sheet", {}, h("table", {}, h("caption.sr", {}, "Processes"), h("thead", {}, h("tr", {}, ...columns)), this.body)),
      h("h2", {}, "One event"),
      h("form.inspect", { onsubmit: (event) => this.explain(event) }, h("label", {}, "Position or id", this.box), h("button.primary", { type: "submit" }, "Explain")),
      this.problem,
      this.story,
    );
    this.offs = [app.onReconnect(() => this.loader.knowledge.failing && this.load()), app.onSecond(() => this.tick())];
    this.judge();
    this.load();
  }

  get loaded() {
    return this.loader.knowledge.settled;
  }

  destroy() {
    this.loader.destroy();
    this.leaving.abort();
    for (const off of this.offs) off();
  }

  /** Called while the page is visible: a hidden one asks nothing. */
  tick() {
    const { failing, retryAt } = this.loader.knowledge;
    const due = failing ? retryAt : this.asked + EVERY;
    if (due !== null && Date.now() >= due) this.load();
    this.judge();
  }

  async load() {
    if (this.busy || document.hidden) return;
    this.busy = true;
    const answer = await this.loader.attempt(() => request("/api/v2/operations/", { signal: this.leaving.signal }));
    this.busy = false;
    this.asked = Date.now();
    if (!answer) return;
    this.answered = this.asked;
    this.show(answer, this.answer);
    this.answer = answer;
    this.judge();
  }

  /** What is old is not called true. */
  judge() {
    const age = Date.now() - this.answered;
    const known = this.answer && age < OLD && !this.loader.knowledge.failing;
    const state = known ? this.answer.state : "unknown";
    if (this.verdict.dataset.state !== state) {
      this.verdict.dataset.state = state;
      this.verdict.className = `verdict is-${state}`;
      this.verdict.replaceChildren(icon(ICONS[state]), h("span"));
    }
    say(this.verdict.lastChild, known ? this.answer.words : "Whether events flow is not known.");
    if (!this.answer) return;
    const at = new Date(this.answered).toLocaleTimeString("en-GB");
    say(this.asOf, `As host ${this.answer.host} saw it at ${at}${known ? "" : `: old, by ${duration(age / 1000)}`}`);
  }

  show(now, before) {
    // Another host has counted other things: no rate is made of the two.
    const seconds = before?.host === now.host ? now.seconds - before.seconds : 0;
    for (const [name, hop] of Object.entries(this.hops)) {
      hop.show(seconds > 0 ? Math.max(0, now.totals[name] - before.totals[name]) / seconds : null, "/s");
    }
    for (const [name, figure] of Object.entries(this.waiting)) figure.show(now.waiting[name]);
    const told = (name) => now.processes.map((one) => one[name]).filter((value) => value !== null);
    const behind = told("behind");
    this.behind.show(behind.length > 0 ? Math.max(...behind) : null);
    const sockets = told("sockets");
    this.sockets.show(sockets.length > 0 ? sockets.reduce((sum, one) => sum + one, 0) : null);
    this.list.hidden = !now.waiting.dead_letters && this.dead.childElementCount === 0;
    if (!this.first.has(now.host)) this.first.set(now.host, now.counted);
    const grown = now.counted.map((one, at) => ({ ...one, by: one.total - this.first.get(now.host)[at].total })).filter(({ by }) => by > 0);
    this.conditions.replaceChildren(
      ...now.conditions.map(({ summary, action }) => h("li", {}, summary, h("p", {}, action))),
      ...grown.map(({ summary, action, by }) => h("li", {}, `${summary.replace("{value}", number(by))} Since ${when(this.since)}.`, h("p", {}, action))),
    );
    this.body.replaceChildren(...now.processes.map((one) => this.row(one)));
  }

  row({ name, up, late, heard, position, behind, sockets, memory_bytes }) {
    const cell = (label, text) => h("td.tabular", { "data-label": label }, text || "–");
    const silent = `silent for ${duration(heard)}`;
    const [mark, words] = up && !late ? ["successful", "up"] : up ? ["waiting", silent] : ["failed", `gone: ${silent}`];
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { "data-label": "State" }, h(`span.badge.is-${mark}`, {}, icon(mark), h("span", {}, words))),
      cell("Position", number(position)),
      cell("Behind", number(behind)),
      cell("Sockets", number(sockets)),
      cell("Memory", memory_bytes && `${number(memory_bytes / 2 ** 20)} MiB`),
    );
  }

  async letters() {
    try {
      const { results } = await request("/api/v2/dead_letters/", { signal: this.leaving.signal });
      const words = ({ group, id }) => `${group || "no group"} ${id ?? "without an id"}`;
      this.dead.replaceChildren(
        h("li", {}, `The oldest, at most 50: ${plural(results.length, "dead letter")}`),
        ...results.map((one) => h("li", {}, `${one.name}: ${one.reason}`, h("p", {}, `${one.time ? when(one.time) : "nobody knows when"} · ${number(one.bytes)} bytes · ${one.messages.map(words).join(", ")}`))),
      );
    } catch (error) {
      if (error.name !== "AbortError") this.app.announce(`The dead letters were not listed: ${error.message}`, true);
    }
  }

  async explain(event) {
    event.preventDefault();
    const asked = (this.wanted = this.box.value.trim());
    this.problem.hidden = true;
    this.story.replaceChildren(h("dt", {}, "Looking …"));
    try {
      const { hops } = await request(address("/api/v2/explain/", { event: asked }), { signal: this.leaving.signal });
      if (asked === this.wanted) this.story.replaceChildren(...hops.flatMap(({ name, text }) => [h("dt", {}, name), h("dd", {}, text)]));
    } catch (error) {
      if (error.name === "AbortError" || asked !== this.wanted) return;
      this.story.replaceChildren();
      say(this.problem, error.message);
      this.problem.hidden = false;
    }
  }
}
