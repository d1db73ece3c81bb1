/** One job: its state, what it has come to so far, and its output as it is written. */

import { strip } from "../ansi.js";
import { address, request } from "../api.js";
import { badge, h, icon, ring, say } from "../dom.js";
import { EventLog, lineCount } from "../eventlog.js";
import { duration, elapsed, isActive, kindName, plural, when } from "../format.js";
import { store } from "../keys.js";
import { Loader } from "../loading.js";
import { Output } from "../output.js";
import { Tally } from "../tally.js";

const PAGE_SIZE = 200;
const FAR = 1000; // events: what is farther back is loaded when the reader scrolls to it
const PATIENCE = [250, 500, 1000, 2000, 4000]; // ms between looks for events that others have overtaken

const FAMILIES = {
  job: "job_events",
  ad_hoc_command: "ad_hoc_command_events",
  project_update: "project_update_events",
  inventory_update: "inventory_update_events",
  system_job: "system_job_events",
  workflow_job: "workflow_events",
};

const FIGURES = [
  ["ok", "ok"],
  ["changed", "changed"],
  ["failed", "failed"],
  ["unreachable", "unreachable"],
  ["skipped", "skipped"],
  ["rescued", "rescued"],
  ["ignored", "ignored"],
];
const FAILURES = ["runner_on_failed", "runner_on_error", "runner_on_async_failed", "runner_on_unreachable", "runner_item_on_failed"];
const ALWAYS = new Set(["ok", "changed", "failed"]);

const WRAP = "carillon.wrap";

export class JobPage {
  /** @param {object} app @param {number} id @param {?number} [line]  to open at */
  constructor(app, id, line = null) {
    this.app = app;
    this.id = id;
    this.job = null;
    this.family = "";
    this.log = new EventLog();
    this.tally = new Tally();
    this.wanted = line; // the line that the address names
    this.opening = line; // the same, as long as it cannot be gone to
    this.failure = null; // the counter of the one last jumped to
    this.reaching = false; // a part of the output is asked for
    this.saving = null; // the saving under way, to be stopped
    this.turn = 0; // of the asking for other parts of the output: the last one counts
    this.begun = null; // the first reading, from when the job is known
    this.reading = null; // the fetch under way
    this.hurry = null; // what stops it, to begin anew
    this.again = false;
    this.looks = 0;
    this.timer = 0;
    this.stop = new AbortController();

    this.name = h("h1", { tabindex: -1 }, `Job ${id}`);
    this.facts = h("p.facts");
    this.state = h("span.slot");
    this.took = h("span.took");
    this.figures = new Map(
      FIGURES.map(([key, label]) => [key, h(`span.figure.is-${key}`, {}, h("b", {}, "–"), ` ${label}`)]),
    );
    this.now = h("p.now");
    this.cancel = h("button.quiet.cancel", { type: "button", hidden: true, onclick: () => app.cancel(this.job) }, "Cancel job");
    this.output = new Output({
      label: `Output of job ${id}`,
      onfollow: (follows) => this.followed(follows),
      onnear: (where) => this.reach(where),
      online: (number) => this.point(number),
    });
    this.follow = h("button.tool", { type: "button", "aria-pressed": true, onclick: () => this.toggleFollow() }, icon("down"), "Follow");
    this.wrap = h("button.tool", { type: "button", onclick: () => this.toggleWrap() }, icon("wrap"), "Wrap");
    this.lines = h("span.count");
    this.saver = h(
      "button.tool",
      { type: "button", title: "Save the whole output as text", "aria-pressed": false, onclick: () => this.save() },
      icon("save"),
      h("span", {}, "Save"),
    );
    this.resume = h("button.resume", { type: "button", hidden: true, onclick: () => this.output.follow(true) }, icon("down"), "Follow again");
    this.asked = new Loader(app, `Job ${id}`, () => this.refresh(), () => this.draw());
    this.written = new Loader(app, "The output", () => this.read(), () => this.draw());
    this.figureBar = h("div.figures", { "aria-label": "Results so far", role: "group" }, ...this.figures.values());
    this.element = h(
      "section.job",
      { "aria-label": `Job ${id}` },
      h(
        "header.job-head",
        {},
        h("a.back", { href: "#/jobs", "aria-label": "Back to the list of jobs" }, icon("back"), h("span", {}, "Jobs")),
        h("div.job-title", {}, this.name, h("div.job-state", {}, this.state, this.took, this.cancel)),
        this.facts,
        this.figureBar,
      ),
      h(
        "div.toolbar",
        { role: "toolbar", "aria-label": "Output" },
        this.now,
        this.lines,
        h("button.tool", { type: "button", title: "Next failure", onclick: () => this.trouble(1) }, icon("next"), "Failure"),
        this.wrap,
        this.saver,
        this.follow,
      ),
      this.asked.element,
      this.written.element,
      h("div.output-box", {}, this.output.element, this.resume),
    );
    this.setWrap(store.get(WRAP, "yes") === "yes");
    this.offs = [
      app.link.on("jobs", (event) => event.unified_job_id === id && this.hear(event)),
      app.onReconnect(() => this.resumed()),
      app.onSecond(() => this.tick()),
    ];
    this.refresh();
  }

  /** Whether the job and all of its output so far are shown, or that it is not there. */
  get loaded() {
    return this.asked.knowledge.settled && (!this.job || this.written.knowledge.settled);
  }

  destroy() {
    this.asked.destroy();
    this.written.destroy();
    this.stop.abort();
    this.hurry?.abort();
    clearTimeout(this.timer);
    this.output.destroy();
    for (const off of this.offs) off();
    this.app.want("job", null);
  }

  async begin() {
    this.family = FAMILIES[this.job.kind ?? this.job.type] ?? this.job.event_family;
    this.offs.push(this.app.link.on(this.family, (event) => this.arrived(event)));
    // Subscribed before the first look: what happens in between arrives twice at most, and never not at all.
    await this.app.want("job", { [this.family]: [this.id] });
    await this.read();
  }

  async refresh() {
    const job = await this.asked.attempt(async () => {
      try {
        return await request(`/api/v2/jobs/${this.id}/`, { signal: this.stop.signal });
      } catch (error) {
        if (error.status === 404) error.message = `There is no job ${this.id}, or you may not see it.`;
        throw error;
      }
    });
    if (!job) return;
    this.show(job);
    await (this.begun ??= this.begin()); // once, whoever has asked
  }

  show(job) {
    const before = this.job;
    this.job = job;
    say(this.name, job.name);
    const { owner, team } = job.summary_fields ?? {};
    const facts = [`#${job.id}`, kindName(job.kind ?? job.type), owner?.username, team?.name];
    if (job.started) facts.push(`started ${when(job.started)}`);
    say(this.facts, facts.filter(Boolean).join(" · "));
    // What goes must not take the focus with it.
    if (!isActive(job.status) && this.cancel === document.activeElement) this.name.focus({ preventScroll: true });
    this.cancel.hidden = !isActive(job.status);
    if (before?.status !== job.status) {
      const fresh = badge(job.status);
      this.state.replaceChildren(fresh);
      if (before) {
        ring(fresh.firstElementChild);
        this.app.announce(`${job.name}: ${job.status}`);
      }
    }
    this.app.title(`${job.name}: ${job.status}`);
    this.tick();
    this.draw();
  }

  tick() {
    if (this.job) say(this.took, duration(elapsed(this.job, Date.now())));
  }

  hear(event) {
    if (event.status) {
      if (this.job) this.show({ ...this.job, status: event.status, finished: event.finished ?? this.job.finished });
      this.refresh();
    } else if (event.final_counter > this.log.last) {
      this.look();
    }
  }

  // Live events -----------------------------------------------------------------------------------------------

  arrived(event) {
    const relation = this.family.replace(/_events$/, "");
    if (event[relation] !== undefined && Number(event[relation]) !== this.id) return;
    this.take([event]);
    if (this.log.gap()) this.look();
  }

  take(events) {
    this.put(this.log.add(events));
  }

  put(due) {
    for (const event of due) this.tally.add(event);
    this.output.add(due);
    if (due.length > 0) this.draw();
  }

  /** Something is missing between what has come: wait a moment, it may only be late; then ask. */
  look() {
    if (this.timer || this.reading || this.stop.signal.aborted) return;
    if (this.written.knowledge.failing) return; // where that can help it is asked for again, see `read`
    const wait = PATIENCE[Math.min(this.looks, PATIENCE.length - 1)];
    this.timer = setTimeout(async () => {
      this.timer = 0;
      const before = this.log.last;
      await this.read();
      // An answer that did not come says nothing of what the server has.
      if (this.written.knowledge.failing) return;
      if (this.log.gap() === null) {
        this.looks = 0;
        return;
      }
      this.looks = this.log.last > before ? 0 : this.looks + 1;
      if (this.looks >= PATIENCE.length && this.app.link.link.state === "connected") this.give();
      this.look();
    }, wait);
  }

  give() {
    this.looks = 0;
    this.put(this.log.skip().due); // the output says what is missing before these
  }

  /**
   * Read from the REST API all that follows the last event. One reading at a time.
   *
   * @param {boolean} [anew]  what is under way may never be answered @returns {Promise<number>} lines
   */
  async read(anew = false) {
    if (this.reading) {
      this.again = true;
      if (anew) this.hurry.abort();
      return this.reading;
    }
    this.reading = this.readOn();
    try {
      return await this.reading;
    } finally {
      this.reading = null;
      if (this.log.gap()) this.look();
    }
  }

  async readOn() {
    const { total } = this.output;
    do {
      this.again = false;
      const { signal } = (this.hurry = new AbortController());
      await this.written.attempt(() => this.readTo(signal));
    } while (this.again && !this.stop.signal.aborted);
    if (this.opening && this.written.knowledge.state === "loaded") await this.go(this.opening);
    return this.output.total - total;
  }

  /** @param {AbortSignal} signal */
  async readTo(signal) {
    for (let more = true; more; ) {
      const { last } = this.log;
      let page = last > 0 && (await this.events({ counter__gt: last }, signal));
      if (!page || page.count > FAR) page = await this.tail(last, signal);
      this.take(page.results);
      // No further, though there is more: even the server has a gap here (yet). Do not ask the same for ever.
      more = page.next && this.log.last > last;
    }
  }

  /** The newest events, in order; what lies between is left out where it is much. @param {number} last  counter known */
  async tail(last, signal) {
    const page = await this.events({ order_by: "-counter" }, signal);
    const results = page.results.reverse();
    const first = results[0]?.counter;
    if (!page.next || first <= last + 1) return { results };
    const before = await this.summary(first, signal);
    if (this.log.last !== last) return { results, next: page.next }; // it came live meanwhile: read on from there
    this.log.start(first - 1);
    this.output.short = page.count <= FAR;
    this.tally = new Tally(before);
    this.output.leap(first, before.lines);
    return { results };
  }

  events(query, signal = this.stop.signal) {
    return request(address(`/api/v2/jobs/${this.id}/events/`, { page_size: PAGE_SIZE, ...query }), { signal });
  }

  /** What all events before one come to. @param {number} counter */
  summary(counter, signal = this.stop.signal) {
    return request(address(`/api/v2/jobs/${this.id}/summary/`, { counter__lt: counter }), { signal });
  }

  // Parts of the output that are not shown ------------------------------------------------------------------------

  /** One at a time. @param {"before"|"after"|"end"} where */
  async reach(where) {
    if (this.reaching && where !== "end") return;
    this.reaching = true;
    try {
      await this[where]();
      this.reaching = false;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.failed(error);
      setTimeout(() => {
        this.reaching = false;
        if (!this.stop.signal.aborted) this.output.look();
      }, 3000);
    }
  }

  async before() {
    const { first } = this.output;
    const page = await this.events({ counter__lt: first, order_by: "-counter" });
    if (this.output.first === first) this.output.before(page.results.reverse(), !page.next);
  }

  async after() {
    const { last } = this.output;
    const { results } = await this.events({ counter__gt: last });
    if (this.output.last === last && !this.output.attached) this.output.after(this.known(results), this.log.last);
  }

  end() {
    return this.open({ order_by: "-counter" });
  }

  /** Those that are counted already: what is newer comes by the log. */
  known(events) {
    return events.filter(({ counter }) => counter <= this.log.last);
  }

  /** Show another part of the output. @returns {Promise<boolean>} false when something else was asked for meanwhile */
  async open(query) {
    const turn = ++this.turn;
    const { results } = await this.events(query);
    const events = this.known(query.order_by ? results.reverse() : results);
    const before = events.length > 0 && (await this.summary(events[0].counter));
    if (turn !== this.turn) return false;
    if (!before) return true;
    this.output.place(events, before.lines, this.log.last);
    await this.before(); // a line that is gone to has something above it
    return turn === this.turn;
  }

  /** Go to a line. */
  async go(line) {
    this.output.follow(false);
    this.wanted = this.opening = line;
    if (!this.written.knowledge.known) return;
    this.opening = null;
    try {
      if (line <= this.output.total && !this.output.holds(line) && !(await this.open({ end_line__gte: line }))) return;
    } catch (error) {
      if (error.name !== "AbortError") this.app.failed(error);
      return;
    }
    if (this.output.holds(line)) this.output.show({ line });
    else this.app.announce(`Line ${line.toLocaleString("en")} was not found in this output.`, true);
  }

  /** A line was pointed at: the address names it from now on. */
  point(line) {
    this.output.follow(false);
    this.wanted = line;
    this.app.point(line);
  }
  /** @returns {Promise<number>} how many lines were missed while the link was away */
  async resumed() {
    const [lines] = await Promise.all([this.begun && this.read(true), this.refresh()]);
    return lines ?? 0;
  }

  // What is seen ------------------------------------------------------------------------------------------------

  draw() {
    const { known, state } = this.written.knowledge;
    for (const [key, element] of this.figures) {
      const count = this.tally.counts[key];
      say(element.firstElementChild, known || count ? count.toLocaleString("en") : "–");
      element.hidden = count === 0 && !ALWAYS.has(key);
      element.classList.toggle("none", count === 0);
    }
    this.figureBar.hidden = this.asked.knowledge.state === "failed" || (this.family !== "" && this.family !== "job_events");
    const active = this.job && isActive(this.job.status);
    const task = this.tally.task || this.tally.play;
    say(this.now, active && task ? `Task ${this.tally.tasks}: ${task}` : this.tally.tasks ? plural(this.tally.tasks, "task") : "");
    const count = this.output.total;
    const none = { loading: "Loading the output", loaded: active ? "Waiting for output" : "No output" };
    if (this.saving) say(this.lines, `Saving: ${this.saving.percent} %`);
    else say(this.lines, count ? plural(count, "line") : (this.job && none[state]) || "");
  }

  followed(follows) {
    this.follow.setAttribute("aria-pressed", String(follows));
    this.resume.hidden = follows;
    if (!follows) return;
    this.turn += 1;
    this.failure = null;
    if (this.wanted) this.app.point((this.wanted = null));
  }

  toggleFollow() {
    this.output.follow(!this.output.follows);
  }

  setWrap(wraps) {
    this.wrap.setAttribute("aria-pressed", String(wraps));
    this.output.wrap(wraps);
  }

  toggleWrap() {
    const wraps = this.wrap.getAttribute("aria-pressed") !== "true";
    store.set(WRAP, wraps ? "yes" : "no");
    this.setWrap(wraps);
  }

  /** To the next (or previous) failure of the whole output, round and round. */
  async trouble(step) {
    const beyond = { [step > 0 ? "counter__gt" : "counter__lt"]: this.failure };
    const next = async (query) => {
      const { results } = await this.events({ event: FAILURES, order_by: step > 0 ? "" : "-counter", page_size: 20, ...query });
      return results.find(({ stdout }) => stdout);
    };
    const turn = ++this.turn;
    try {
      const found = (await next(beyond)) ?? (this.failure && (await next({})));
      if (turn !== this.turn) return;
      if (!found) {
        this.app.announce("No failure in this output.", true);
        return;
      }
      const counter = (this.failure = found.counter);
      this.output.follow(false);
      const held = counter >= this.output.first && counter <= this.output.last;
      if (held || (await this.open({ counter__gte: counter }))) this.output.show({ counter });
    } catch (error) {
      if (error.name !== "AbortError") this.app.failed(error);
    }
  }

  /** Once more while it saves: stop. */
  async save() {
    if (this.saving) {
      this.saving.stop.abort();
      return;
    }
    const stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, this.stop.signal]);
    const parts = [];
    let done = 0;
    let end = 0;
    this.saves({ stop, percent: 0 });
    try {
      for (let more = true; more; ) {
        const page = await request(
          address(`/api/v2/jobs/${this.id}/events/`, { counter__gt: String(end), page_size: PAGE_SIZE }),
          { signal },
        );
        for (const event of page.results) {
          const count = lineCount(event);
          if (event.stdout || count) parts.push(`${strip(event.stdout, count)}\n`);
        }
        const left = page.count - page.results.length;
        done += page.results.length;
        this.saves({ stop, percent: Math.floor((100 * done) / (done + left || 1)) });
        end = page.results.at(-1)?.counter ?? end;
        more = page.next && page.results.length > 0;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.app.announce(`Not saved: ${error.message}`, true);
      else if (stop.signal.aborted) this.app.announce("Not saved: stopped.", true);
      return;
    } finally {
      this.saves(null);
    }
    const url = URL.createObjectURL(new Blob(parts, { type: "text/plain" }));
    h("a", { href: url, download: `job-${this.id}.txt` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** @param {?{stop: AbortController, percent: number}} saving  under way */
  saves(saving) {
    if (Boolean(saving) !== Boolean(this.saving)) {
      this.saver.setAttribute("aria-pressed", String(Boolean(saving)));
      this.saver.title = saving ? "Stop saving" : "Save the whole output as text";
      say(this.saver.lastElementChild, saving ? "Stop" : "Save");
    }
    this.saving = saving;
    this.draw();
  }
}
