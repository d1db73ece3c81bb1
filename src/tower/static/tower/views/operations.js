/** Operations, for admins: whether events flow, what waits, and where one event is. */

import { address, request } from "../api.js";
import { badge, h, icon, refill, row, say, SVG } from "../dom.js";
import { duration, plural, when } from "../format.js";
import { View } from "../loading.js";

const EVERY = 2000; // ms between an answer and the next question, while the page is looked at
const OLD = 6000; // ms after which an answer is no news
const POINTS = 60; // of a chart
const HOPS = { emitted: "Emitted", relayed: "Relayed", delivered: "Delivered" };
const NOW = { outbox: "In the outbox", queue: "On the queue", dead_letters: "Dead letters", behind: "Behind the log", sockets: "Sockets" };
const ICONS = { flowing: "successful", doubtful: "waiting", stopped: "failed", unknown: "pending" };

const number = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en"));

class Figure {
  /** A number under its name; a rate also as the line of the last two minutes. */
  constructor(title, charted = false) {
    this.points = [];
    this.value = h("dd", {}, "not known");
    if (charted) {
      const attributes = { class: "chart", viewBox: `0 0 ${POINTS - 1} 24`, preserveAspectRatio: "none", "aria-hidden": true };
      this.chart = document.createElementNS(SVG, "svg");
      for (const [name, value] of Object.entries(attributes)) this.chart.setAttribute(name, value);
      this.line = this.chart.appendChild(document.createElementNS(SVG, "polyline"));
    }
    this.element = h("div", {}, h("dt", {}, title), this.value, this.chart);
  }

  show(value, unit = "") {
    say(this.value, value === null ? "not known" : `${number(value)}${unit}`);
    if (!this.chart) return;
    this.points = value === null ? [] : [...this.points, value].slice(-POINTS);
    const most = Math.max(1, ...this.points);
    this.line.setAttribute("points", this.points.map((one, at) => `${at},${23 - (22 * one) / most}`).join(" "));
  }
}

export class Operations extends View {
  constructor(app) {
    super(app, "operations", { list: () => this.letters() }, "The view", () => this.judge());
    this.form.addEventListener("submit", (event) => this.explain(event));
    this.answer = null;
    this.answered = this.asked = 0;
    this.busy = false;
    this.first = new Map(); // of each host that has answered: what its counters were
    this.leaving = new AbortController();
    const figures = (titles, charted) => Object.entries(titles).map(([name, title]) => [name, new Figure(title, charted)]);
    [this.hops, this.now] = [figures(HOPS, true), figures(NOW)];
    this.rates.append(...this.hops.map(([, one]) => one.element));
    this.amounts.append(...this.now.map(([, one]) => one.element));
    this.offs.push(app.onReconnect(() => this.loader.knowledge.failing && this.load()), app.onSecond(() => this.tick()));
    this.judge();
    this.load();
  }

  destroy() {
    super.destroy();
    this.leaving.abort();
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
    if (!this.verdict.matches(`.is-${state}`)) this.verdict.replaceChildren(icon(ICONS[state]), h("span"));
    this.verdict.className = `verdict is-${state}`;
    say(this.verdict.lastChild, known ? this.answer.words : "Whether events flow is not known.");
    if (!this.answer) return;
    say(this.asOf, `As host ${this.answer.host} saw it at ${new Date(this.answered).toLocaleTimeString("en-GB")}${known ? "" : `: old, by ${duration(age / 1000)}`}`);
  }

  show(now, before) {
    // Another host has counted other things: no rate is made of the two.
    const seconds = before?.host === now.host ? now.seconds - before.seconds : 0;
    const rate = (name) => (seconds > 0 ? Math.max(0, now.totals[name] - before.totals[name]) / seconds : null);
    for (const [name, hop] of this.hops) hop.show(rate(name), "/s");
    const told = (name, join) => now.processes.map((one) => one[name]).filter((value) => value !== null).reduce((all, one) => join(all ?? 0, one), null);
    const known = { ...now.waiting, behind: told("behind", Math.max), sockets: told("sockets", (a, b) => a + b) };
    for (const [name, figure] of this.now) figure.show(known[name]);
    this.list.hidden = !now.waiting.dead_letters;
    if (this.list.hidden) this.dead.replaceChildren();
    if (!this.first.has(now.host)) this.first.set(now.host, now.counted);
    const grown = now.counted.map((one, at) => ({ ...one, by: one.total - this.first.get(now.host)[at]?.total })).filter(({ by }) => by > 0);
    this.conditions.replaceChildren(
      ...now.conditions.map(({ summary, action }) => h("li", {}, summary, h("p", {}, action))),
      ...grown.map(({ summary, action, by }) => h("li", {}, `${summary.replace("{value}", number(by))} That is since this view was opened.`, h("p", {}, action))),
    );
    refill(this.body, now.processes.map((one) => this.row(one)));
  }

  row({ name, up, late, heard, position, behind, sockets, memory_bytes }) {
    const silent = `silent for ${duration(heard)}`;
    const [mark, words] = up && !late ? ["successful", "up"] : up ? ["waiting", silent] : ["failed", `gone: ${silent}`];
    const memory = memory_bytes && `${number(memory_bytes / 2 ** 20)} MiB`;
    return row(name, { State: badge(mark, words), Position: number(position), Behind: number(behind), Sockets: number(sockets), Memory: memory });
  }

  async letters() {
    const asked = () => request("/api/v2/dead_letters/", { signal: this.leaving.signal });
    const { results } = (await this.app.act("The dead letters were not listed", asked)) ?? {};
    const words = ({ group, id }) => `${group || "no group"} ${id ?? "without an id"}`;
    const more = (one) => [one.time ? when(one.time) : "nobody knows when", plural(one.bytes, "byte"), ...one.messages.map(words)].join(" · ");
    if (results) this.dead.replaceChildren(...results.map((one) => h("li", {}, `${one.name}: ${one.reason}`, h("p", {}, more(one)))));
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
