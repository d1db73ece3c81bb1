/** One job: its state, what it has come to so far, and its output as it is written. */

import { strip } from "../ansi.js";
import { address, request } from "../api.js";
import { badge, h, icon, ring, say } from "../dom.js";
import { EventLog, lineCount } from "../eventlog.js";
import { duration, elapsed, isActive, kindName, plural, when } from "../format.js";
import { Loader } from "../loading.js";
import { Output } from "../output.js";
import { Tally } from "../tally.js";

const PAGE_SIZE = 200;
const TAIL = 20_000; // events: of a longer job only the last ones are read in
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
const ALWAYS = new Set(["ok", "changed", "failed"]);

const remembered = {
  get wrap() {
    return localStorage.getItem("carillon.wrap") !== "no";
  },
  set wrap(value) {
    localStorage.setItem("carillon.wrap", value ? "yes" : "no");
  },
};

export class JobPage {
  /** @param {object} app @param {number} id */
  constructor(app, id) {
    this.app = app;
    this.id = id;
    this.job = null;
    this.family = "";
    this.log = new EventLog();
    this.tally = new Tally();
    this.starting = null; // the first look, under way
    this.reading = null; // the fetch under way
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
    this.output = new Output({ label: `Output of job ${id}`, onfollow: (follows) => this.followed(follows) });
    this.follow = h("button.tool", { type: "button", "aria-pressed": true, onclick: () => this.toggleFollow() }, icon("down"), "Follow");
    this.wrap = h("button.tool", { type: "button", onclick: () => this.toggleWrap() }, icon("wrap"), "Wrap");
    this.lines = h("span.count");
    this.resume = h("button.resume", { type: "button", hidden: true, onclick: () => this.output.follow(true) }, icon("down"), "Follow again");
    this.asked = new Loader(app, `Job ${id}`, () => this.start(), () => this.draw());
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
        h("button.tool", { type: "button", title: "Save the whole output as text", onclick: () => this.save() }, icon("save"), "Save"),
        this.follow,
      ),
      this.asked.element,
      this.written.element,
      h("div.output-box", {}, this.output.element, this.resume),
    );
    this.setWrap(remembered.wrap);
    this.offs = [
      app.link.on("jobs", (event) => event.unified_job_id === id && this.hear(event)),
      app.onReconnect(() => this.resumed()),
      app.onSecond(() => this.tick()),
    ];
    this.start();
  }

  /** Whether the job and all of its output so far are shown, or that it is not there. */
  get loaded() {
    return this.asked.knowledge.settled && (!this.job || this.written.knowledge.settled);
  }

  destroy() {
    this.asked.destroy();
    this.written.destroy();
    this.stop.abort();
    clearTimeout(this.timer);
    this.output.destroy();
    for (const off of this.offs) off();
    this.app.want("job", null);
  }

  /** Once at a time: the link may come up while the job is still asked for. */
  start() {
    return (this.starting ??= this.begin().finally(() => (this.starting = null)));
  }

  async begin() {
    await this.refresh();
    if (this.stop.signal.aborted || !this.job || this.family !== "") return;
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
    if (job) this.show(job);
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
    const due = this.log.add(events);
    for (const event of due) this.tally.add(event);
    const lines = this.output.add(due);
    if (due.length > 0) this.draw();
    return lines;
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
    const { missing, due } = this.log.skip();
    if (missing) {
      this.output.note(`${plural(missing.to - missing.from + 1, "event")} never reached the server (${missing.from} to ${missing.to}).`);
    }
    for (const event of due) this.tally.add(event);
    this.output.add(due);
    this.draw();
  }

  /** Read from the REST API all that follows the last event. One reading at a time. @returns {Promise<number>} lines */
  async read() {
    if (this.reading) {
      this.again = true;
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
    let lines = 0;
    await this.written.attempt(async () => {
      for (;;) {
        const fresh = this.log.last === 0;
        const page = await request(
          address(`/api/v2/jobs/${this.id}/events/`, { counter__gt: this.log.last || "0", page_size: PAGE_SIZE }),
          { signal: this.stop.signal },
        );
        if (fresh && page.count > TAIL) {
          this.log.last = page.count - TAIL;
          this.output.note(`${plural(this.log.last, "earlier event")} left out here: save the output to read them.`);
          continue;
        }
        const before = this.log.last;
        lines += this.take(page.results);
        // No further, though there is more: even the server has a gap here (yet). Do not ask the same for ever.
        if (page.next && this.log.last > before) continue;
        if (!this.again) return;
        this.again = false;
      }
    });
    return lines;
  }

  /** @returns {Promise<number>} how many lines were missed while the link was away */
  async resumed() {
    if (this.family === "") {
      await this.start();
      return 0;
    }
    const [lines] = await Promise.all([this.read(), this.refresh()]);
    return lines;
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
    say(this.lines, count ? plural(count, "line") : (this.job && none[state]) || "");
  }

  followed(follows) {
    this.follow.setAttribute("aria-pressed", String(follows));
    this.resume.hidden = follows;
  }

  toggleFollow() {
    this.output.follow(!this.output.follows);
  }

  setWrap(wraps) {
    this.wrap.setAttribute("aria-pressed", String(wraps));
    this.output.wrap(wraps);
  }

  toggleWrap() {
    remembered.wrap = !remembered.wrap;
    this.setWrap(remembered.wrap);
  }

  trouble(step) {
    if (!this.output.trouble(step)) this.app.announce("No failure in this output.", true);
  }

  async save() {
    const parts = [];
    try {
      let path = address(`/api/v2/jobs/${this.id}/events/`, { counter__gt: "0", page_size: PAGE_SIZE });
      while (path) {
        const page = await request(path, { signal: this.stop.signal });
        for (const event of page.results) {
          const count = lineCount(event);
          if (event.stdout || count) parts.push(`${strip(event.stdout, count)}\n`);
        }
        const end = page.results.at(-1)?.counter;
        path = page.next && end && address(`/api/v2/jobs/${this.id}/events/`, { counter__gt: end, page_size: PAGE_SIZE });
      }
    } catch (error) {
      if (error.name !== "AbortError") this.app.announce(`Not saved: ${error.message}`, true);
      return;
    }
    const url = URL.createObjectURL(new Blob(parts, { type: "text/plain" }));
    h("a", { href: url, download: `job-${this.id}.txt` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
