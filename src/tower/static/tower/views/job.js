/** One job: its state, what it has come to so far, and its output as it is written. */

import { strip } from "../ansi.js";
import { address, request } from "../api.js";
import { assemble, badge, h, owners, ring, say } from "../dom.js";
import { EventLog, lineCount } from "../eventlog.js";
import { duration, elapsed, isActive, kindName, plural, when } from "../format.js";
import { store } from "../keys.js";
import { Loader } from "../loading.js";
import { Output } from "../output.js";
import { Tally } from "../tally.js";

const PAGE_SIZE = 200;
const HITS = 10_000; // of one answer: the API's
const TYPED = 300; // ms: a word that is typed becomes one question
const BUSY = 1000; // ms until the server is asked again that has too many searches of ours
const FAR = 1000; // events: what is farther back is loaded when the reader scrolls to it
const WATCHED = 15_000; // ms from one question who watches to the next, while the page is looked at
const AGAIN = [3000, 6000, 12_000, 24_000]; // ms until a part that was not answered is asked for again
const PATIENCE = [250, 500, 1000, 2000, 4000]; // ms between looks for events that others have overtaken

const FIGURES = ["ok", "changed", "failed", "unreachable", "skipped", "rescued", "ignored"];
const ALWAYS = new Set(["ok", "changed", "failed"]);

const WRAP = "carillon.wrap";

export class JobPage {
  /** @param {object} app @param {number} id @param {URLSearchParams} params  what to show of it, see `query` */
  constructor(app, id, params) {
    this.app = app;
    this.id = id;
    this.job = null;
    this.family = "";
    this.log = new EventLog();
    this.tally = new Tally();
    this.uncounted = 0; // counter of the event before which nothing is in the tally yet
    this.wanted = null; // the line that the address names
    this.opening = null; // the same, as long as it cannot be gone to
    this.hits = null; // events with what is searched for: `count`, of which those from `offset` on are known, and which is shown
    this.failure = null; // the counter of the one last jumped to
    this.reaching = false; // a part of the output is asked for
    this.missed = 0; // how often in a row that was in vain
    this.saving = null; // the saving under way, to be stopped
    this.seeking = 0; // of the searching: the last one counts
    this.turn = 0; // of the asking for other parts of the output: the last one counts
    this.begun = null; // the first reading, from when the job is known
    this.returning = 0; // how often the end of the output is being asked for, to follow it
    this.reading = null; // the fetch under way
    this.hurry = null; // what stops it, to begin anew
    this.heard = 0; // states that were told: an answer to an earlier question does not know them
    this.again = false;
    this.looks = this.timer = 0;
    this.stop = new AbortController();

    assemble(this, "job", {
      cancel: () => app.cancel(this.job),
      finding: () => this.toggleFind(),
      failing: () => this.trouble(1),
      wrap: () => this.toggleWrap(),
      saver: () => this.save(),
      follow: () => this.toggleFollow(),
      previous: () => this.nextHit(-1),
      next: () => this.nextHit(1),
      inspector: () => this.inspect(),
      resume: () => this.output.follow(true),
    });
    this.element.ariaLabel = `Job ${id}`;
    say(this.name, `Job ${id}`);
    this.figures = new Map(FIGURES.map((key) => [key, h(`span.figure.is-${key}`, {}, h("b", {}, "–"), ` ${key}`)]));
    this.figureBar.append(...this.figures.values());
    this.box.addEventListener("keydown", (event) => this.entered(event));
    this.box.addEventListener("input", () => this.typed());
    for (const field of [this.result, this.host]) field.addEventListener("change", () => this.choose());
    this.output = new Output({
      label: `Output of job ${id}`,
      onfollow: (follows) => this.followed(follows),
      onnear: (where) => (where === "end" ? this.returnToEnd() : this.reach(where)),
      online: (number) => this.point(number),
      onmark: (line) => (this.inspector.hidden = !line),
      onunfold: (counter, uuid) => this.unfold(counter, uuid),
    });
    this.outputBox.prepend(this.output.element);
    this.asked = new Loader(app, `Job ${id}`, () => this.refresh(), () => this.draw());
    this.written = new Loader(app, "The output", () => this.fetch(), () => this.draw());
    this.present = new Loader(app, "", () => this.watch(), () => (this.watchers.hidden = this.present.knowledge.state !== "loaded"));
    this.outputBox.before(this.asked.element, this.written.element);
    this.toggleWrap(store.get(WRAP, "yes") === "yes");
    this.read(params);
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
    this.present.destroy();
    this.stop.abort();
    this.hurry?.abort();
    clearTimeout(this.timer);
    clearTimeout(this.typing);
    this.output.destroy();
    for (const off of this.offs) off();
    this.app.want("job", null);
  }

  async begin() {
    this.family = this.job.event_family;
    const lost = `${this.family}-${this.id}`; // with the rights to it, or with the job
    this.offs.push(this.app.link.on(this.family, (event) => this.arrived(event)), this.app.link.on("subscribed", ({ left }) => left.includes(lost) && this.refresh()));
    // Subscribed before the first look: what happens in between arrives twice at most, and never not at all.
    await this.app.want("job", { [this.family]: [this.id] });
    if (this.stop.signal.aborted) return; // the page was left meanwhile
    this.watch();
    this.offs.push(this.app.onSecond(() => Date.now() > this.watched + WATCHED && !this.present.knowledge.failing && this.watch()));
    await this.fetch();
  }

  /** Who has this job open. Asked now and then: told of each that comes or goes, many pages would hear of it all the time. */
  async watch() {
    this.watched = Date.now();
    const group = `${this.family}-${this.id}`;
    const page = await this.present.attempt(() => request(address("/api/v2/connections/", { group, page_size: PAGE_SIZE }), { signal: this.stop.signal }));
    if (!page) return;
    const { id, is_superuser: all } = this.app.user;
    const people = new Map([[id, "you"]]); // the server may not have noted yet that we came
    for (const { user } of page.results) if (user.id !== id) people.set(user.id, user.username);
    const [summary, names] = this.watchers.children;
    say(summary, people.size === 1 && !page.next ? "Watched by you" : `Watched by ${people.size}${page.next ? " or more" : ""}`);
    say(names, `${[...people.values()].join(", ")}${all ? "" : ". Who shares no team with you is not counted."}`);
  }

  /** The event of the line that is pointed at, as the API has it. */
  async inspect() {
    const counter = this.output.pointed;
    if (!counter) return this.app.announce("Point at a line first: click on its number.", true);
    const event = await this.app.act(`Event ${counter} was not loaded`, async () => {
      const [found] = (await this.events({ counter__gte: counter, page_size: 1 })).results;
      if (found?.counter !== counter) throw new Error("The server does not have it any more.");
      return found;
    });
    if (event && !document.querySelector("dialog[open]")) await this.app.show(`Event ${counter}`, "As the API has it.", JSON.stringify(event, null, 2));
  }

  async refresh() {
    const { heard } = this;
    const job = await this.asked.attempt(async () => {
      try {
        return await request(`/api/v2/jobs/${this.id}/`, { signal: this.stop.signal });
      } catch (error) {
        if (error.status === 404) error.message = `There is no job ${this.id}, or you may not see it.`;
        throw error;
      }
    });
    if (!job) return;
    this.about(heard === this.heard || !this.job ? job : { ...job, status: this.job.status, finished: this.job.finished });
    await (this.begun ??= this.begin()); // once, whoever has asked
  }

  about(job) {
    const before = this.job;
    this.job = job;
    say(this.name, job.name);
    const facts = [`#${job.id}`, kindName(job.kind ?? job.type), ...owners(job)];
    if (job.started) facts.push(`started ${when(job.started)}`);
    say(this.facts, facts.join(" · "));
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
      this.heard += 1;
      if (this.job) this.about({ ...this.job, status: event.status, finished: event.finished ?? this.job.finished });
      this.refresh();
    } else if (event.final_counter > this.log.last) {
      this.look();
    }
  }

  // Live events -----------------------------------------------------------------------------------------------

  arrived(event) {
    const relation = this.family.replace(/_events$/, "");
    if (event[relation] !== undefined && Number(event[relation]) !== this.id) return;
    this.put(this.log.add([event]));
    if (this.log.gap()) this.look();
  }

  put(due) {
    for (const event of due) this.tally.add(event);
    this.output.add(due);
    if (due.length > 0) this.draw();
  }

  /** Something is missing between what has come: wait a moment, it may only be late; then ask. */
  look() {
    if (this.timer || this.reading || this.stop.signal.aborted) return;
    if (this.written.knowledge.failing) return; // where that can help it is asked for again, see `fetch`
    const wait = PATIENCE[Math.min(this.looks, PATIENCE.length - 1)];
    this.timer = setTimeout(async () => {
      this.timer = 0;
      const before = this.log.last;
      await this.fetch();
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
  async fetch(anew = false) {
    if (this.reading) {
      this.again = true;
      if (anew) this.hurry.abort();
      return this.reading;
    }
    this.reading = this.readOn();
    let lines;
    try {
      lines = await this.reading;
    } finally {
      this.reading = null;
      if (this.log.gap()) this.look();
    }
    // Only now: a search may take long, and what is missed meanwhile is to be read.
    if (this.written.knowledge.state !== "loaded") return lines;
    if (this.box.value && !this.hits && !this.typing) await this.seek(1, this.opening === null);
    if (this.opening) await this.go(this.opening);
    return lines;
  }

  async readOn() {
    const { total } = this.output;
    do {
      this.again = false;
      const { signal } = (this.hurry = new AbortController());
      await this.written.attempt(() => this.readTo(signal));
    } while (this.again && !this.stop.signal.aborted);
    return this.output.total - total;
  }

  /** @param {AbortSignal} signal */
  async readTo(signal) {
    for (let more = true; more; ) {
      const { last } = this.log;
      let page = last > 0 && (await this.events({ counter__gt: last, count: "" }, signal));
      if (!page || page.count > FAR) page = await this.tail(last, signal);
      this.put(this.log.add(page.results));
      // No further, though there is more: even the server has a gap here (yet). Do not ask the same for ever.
      more = page.next && this.log.last > last;
    }
    const first = this.uncounted;
    const before = first && (await this.summary(first, signal));
    if (!before || this.uncounted !== first) return;
    this.tally.precede(before);
    this.uncounted = 0;
  }

  /** The newest events, in order; what lies between is left out where it is much. @param {number} last  counter known */
  async tail(last, signal) {
    const page = await this.events({ order_by: "-counter" }, signal);
    const results = page.results.reverse();
    const first = results[0]?.counter;
    if (!page.next || first <= last + 1) return { results };
    const line = await this.lineBefore(results[0], signal);
    if (this.log.last !== last) return { results, next: page.next }; // it came live meanwhile: read on from there
    this.log.start(first - 1);
    this.output.short = results.at(-1).counter <= FAR;
    this.tally = new Tally();
    this.uncounted = first;
    this.output.leap(first, line);
    return { results };
  }

  events(query, signal = this.stop.signal) {
    return request(address(`/api/v2/jobs/${this.id}/events/`, { page_size: PAGE_SIZE, count: "no", ...query }), { signal });
  }

  /** The number of the line before an event: what it says itself, or what is counted. */
  async lineBefore(event, signal) {
    return lineCount(event) > 0 ? event.start_line : (await this.summary(event.counter, signal)).lines;
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
      this.missed = 0;
    } catch (error) {
      if (this.missed === 0 || where === "end") this.app.failed(error); // the rest of a row nobody has asked for
      setTimeout(() => {
        this.reaching = false;
        if (!this.stop.signal.aborted) this.output.look();
      }, AGAIN[Math.min(this.missed++, AGAIN.length - 1)]);
    }
  }

  async before() {
    const { first, filter } = this.output;
    const page = await this.events({ counter__lt: first, order_by: "-counter", ...filter });
    if (this.output.first === first && this.output.filter === filter) this.output.before(page.results.reverse(), !page.next);
  }

  async after() {
    const { last, filter } = this.output;
    const [events, to] = await this.part({ counter__gt: last });
    if (this.output.last === last && this.output.filter === filter && !this.output.attached) this.output.after(events, to, this.log.last);
  }

  end() {
    return this.open({ order_by: "-counter" });
  }

  /** Events of the filter, and up to which one these are all: what is newer than those that are counted comes by the log. */
  async part(query) {
    const { last } = this.log;
    const counted = query.order_by && last > 0 && { counter__lt: last + 1 };
    const { results, next } = await this.events({ ...counted, ...query, ...this.output.filter });
    const events = (query.order_by ? results.reverse() : results).filter(({ counter }) => counter <= last);
    return [events, (!query.order_by && next && events.at(-1)?.counter) || last];
  }

  /** Show another part of the output. @param {boolean|string} [unfold]  with nothing folded away, or not what is below this heading @returns {Promise<boolean>} false when something else was asked for meanwhile */
  async open(query, unfold = false) {
    const turn = ++this.turn;
    const [events, to] = await this.part(query);
    if (events.length === 0 && !this.output.filtered) return turn === this.turn;
    const [first] = events;
    const line = this.output.filtered ? NaN : await this.lineBefore(first);
    if (turn !== this.turn) return false;
    // Not before: until then its lines are missing.
    if (unfold === true) this.output.folded.clear();
    else this.output.folded.delete(unfold);
    this.output.place(events, line, to, this.log.last);
    await this.before(); // a line that is gone to has something above it
    return turn === this.turn;
  }

  /** Show an event. @param {string} [which]  of its lines, see `Output` @param {boolean|string} [unfold]  see `open` */
  async show(counter, { which, unfold = true } = {}) {
    this.turn += 1;
    this.output.follow(false);
    if (this.output.has(counter) || (await this.open({ counter__gte: counter }, unfold))) this.output.show({ counter, which });
  }

  /** Show what was folded below a heading. */
  async unfold(counter, uuid) {
    try {
      await this.show(counter, { unfold: uuid });
    } catch (error) {
      this.app.failed(error);
    }
  }

  /** Go to a line. */
  async go(line) {
    this.turn += 1;
    this.output.follow(false);
    this.wanted = this.opening = line;
    if (!this.written.knowledge.known) return;
    this.opening = null;
    try {
      // Among its neighbours, whatever was left out or folded away.
      const whole = !this.output.filtered && this.output.whole;
      if (this.output.filtered) this.filter({});
      if (!whole && !(await this.open({ end_line__gte: line }, true))) return;
      if (line <= this.output.total && !this.output.holds(line) && !(await this.open({ end_line__gte: line }))) return;
    } catch (error) {
      this.refill();
      return this.app.failed(error);
    }
    if (this.output.holds(line)) this.output.show({ line });
    else this.app.announce(`Line ${line.toLocaleString("en")} was not found in this output.`, true);
  }

  /** A filter was taken away, and what was to be shown instead did not come. */
  refill() {
    if (this.output.last === 0) this.reach("end");
  }

  /** A line was pointed at: the address names it from now on. */
  point(line) {
    this.output.follow(false);
    this.wanted = line;
    if (this.output.filtered) this.go(line);
    this.app.keep();
  }

  // Searching and filtering ---------------------------------------------------------------------------------------

  /** What the address says of this page. */
  get query() {
    return { line: this.wanted, find: this.box.value, ...this.output.filter };
  }

  /** @param {URLSearchParams} params  of an address */
  read(params) {
    const [find, host, result] = ["find", "host", "result"].map((name) => params.get(name) ?? "");
    const line = Math.max(0, Number.parseInt(params.get("line"), 10)) || null;
    if (find || host || result) this.toggleFind(true, false);
    if (host !== this.host.value || result !== this.result.value) this.choose({ host, result });
    if (find !== this.box.value) this.search((this.box.value = find));
    if (line && line !== this.wanted) this.go(line);
  }

  toggleFind(open = this.finder.hidden, focus = open) {
    this.finder.hidden = !open;
    this.finding.setAttribute("aria-expanded", String(open));
    if (focus) this.box.focus();
    if (open) return;
    this.search((this.box.value = ""));
    if (this.output.filtered) this.choose({});
  }

  filter({ host = "", result = "" }) {
    this.host.value = host;
    this.result.value = result;
    this.output.only({ host, result: this.result.value });
    this.turn += 1;
    this.seeking += 1;
    say(this.found, "");
    this.hits = null;
    this.app.keep();
  }

  /** Show the newest of what the filter lets through. */
  async choose(filter = { host: this.host.value.trim(), result: this.result.value }) {
    this.filter(filter);
    if (!this.written.knowledge.known) return;
    const turn = this.turn + 1; // that of the end
    await this.reach("end");
    if (turn !== this.turn) return; // something else was asked for meanwhile
    this.output.follow(true);
    if (this.box.value) this.seek(1, false);
  }

  entered({ key, shiftKey }) {
    if (key === "Enter") this.nextHit(shiftKey ? -1 : 1);
  }

  /** To another hit; a word that was just typed is searched for first. @param {1|-1} step */
  nextHit(step) {
    this.typing = clearTimeout(this.typing);
    if (this.hits?.search === this.box.value) this.seek(step);
    else this.search();
  }

  /** What was said, or is still asked, is of another word. */
  typed() {
    this.seeking += 1;
    say(this.found, "");
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.search(), TYPED);
  }

  search() {
    this.typing = clearTimeout(this.typing);
    this.hits = null;
    say(this.found, "");
    this.output.find(this.box.value);
    this.app.keep();
    if (this.written.knowledge.known) this.seek(1);
  }

  /** To the next (or previous) event with what is searched for, round and round. @param {boolean} [jump]  else they are only counted */
  async seek(step, jump = true) {
    const search = this.box.value;
    const [number, turn] = [++this.seeking, this.turn];
    if (!search) return;
    const ask = (offset) => request(address(`/api/v2/jobs/${this.id}/hits/`, { search, offset, ...this.output.filter }), { signal: this.stop.signal });
    const asked = async (offset) => {
      for (;;) {
        const found = await ask(offset).catch((error) => (error.status === 429 && number === this.seeking ? null : Promise.reject(error)));
        if (found) return { ...found, search };
        await new Promise((done) => setTimeout(done, BUSY)); // searches of before, or of another window, are not through
      }
    };
    const holds = (hits) => hits?.search === search && hits.counters[at - hits.offset] !== undefined;
    let hits = this.hits;
    let at = hits?.count ? hits.at + step : 0;
    if (at < 0) at += hits.count;
    try {
      // Behind the last one it is asked again: there may be more by now.
      if (!holds(hits)) hits = await asked(Math.floor(at / HITS) * HITS);
      if (!holds(hits) && at > 0) hits = await asked((at = 0));
    } catch (error) {
      return number === this.seeking && this.app.failed(error);
    }
    if (number !== this.seeking) return;
    this.hits = { ...hits, at };
    const more = isActive(this.job.status) ? "+" : ""; // it goes on
    say(this.found, hits.count ? `${(at + 1).toLocaleString("en")} of ${hits.count.toLocaleString("en")}${more}` : "Not found");
    if (!jump || !hits.count || turn !== this.turn) return;
    try {
      await this.show(hits.counters[at - hits.offset], { which: ".hit" });
    } catch (error) {
      this.app.failed(error);
    }
  }
  /** @returns {Promise<number>} how many lines were missed while the link was away */
  async resumed() {
    if (this.begun) this.watch();
    const [lines] = await Promise.all([this.begun && this.fetch(true), this.refresh()]);
    return lines ?? 0;
  }

  // What is seen ------------------------------------------------------------------------------------------------

  draw() {
    const { known, state } = this.written.knowledge;
    for (const [key, element] of this.figures) {
      const count = this.tally.counts[key];
      say(element.firstElementChild, !this.uncounted && (known || count) ? count.toLocaleString("en") : "–");
      element.hidden = count === 0 && !ALWAYS.has(key);
      element.classList.toggle("none", count === 0);
    }
    this.figureBar.hidden = this.asked.knowledge.state === "failed" || (this.family !== "" && this.family !== "job_events");
    const active = this.job && isActive(this.job.status);
    const task = this.tally.task || this.tally.play;
    const { tasks } = this.uncounted ? {} : this.tally;
    say(this.now, active && task ? `Task ${tasks ?? ""}: ${task}` : tasks ? plural(tasks, "task") : "");
    const count = this.output.total;
    const none = { loading: "Loading the output", loaded: active ? "Waiting for output" : "No output" };
    if (this.saving) say(this.lines, `Saving: ${this.saving.percent} %`);
    else say(this.lines, count ? plural(count, "line") : (this.job && none[state]) || "");
  }

  followed(follows) {
    this.follow.setAttribute("aria-pressed", String(follows));
    if (follows && this.resume === document.activeElement) this.follow.focus({ preventScroll: true });
    this.resume.hidden = follows;
    if (follows || this.returning) this.turn += 1;
    if (!follows) return;
    this.failure = null;
    this.wanted = this.opening = null;
    this.app.keep();
  }

  /** To the end, which is not here; unless the reader wants something else before it comes. */
  async returnToEnd() {
    this.returning += 1;
    await this.reach("end");
    this.returning -= 1;
  }

  toggleFollow() {
    this.output.follow(!this.output.follows);
  }

  toggleWrap(wraps = this.wrap.getAttribute("aria-pressed") !== "true") {
    this.wrap.setAttribute("aria-pressed", String(wraps));
    this.output.wrap(wraps);
    store.set(WRAP, wraps ? "yes" : "no");
  }

  /** To the next (or previous) failure of the whole output, round and round. */
  async trouble(step) {
    const beyond = { [step > 0 ? "counter__gt" : "counter__lt"]: this.failure };
    const next = async (query) => {
      const { results } = await this.events({ ...this.output.filter, result: "failed", order_by: step > 0 ? "" : "-counter", page_size: 20, ...query });
      return results.find(({ stdout }) => stdout);
    };
    const turn = ++this.turn;
    try {
      const found = (await next(beyond)) ?? (this.failure && (await next({})));
      if (turn !== this.turn) return;
      if (!found) return this.app.announce("No failure in this output.", true);
      if (!["", "failed"].includes(this.result.value)) this.filter({ host: this.host.value });
      await this.show((this.failure = found.counter));
    } catch (error) {
      this.refill();
      this.app.failed(error);
    }
  }

  /** Once more while it saves: stop. */
  async save() {
    if (this.saving) return this.saving.stop.abort();
    const stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, this.stop.signal]);
    const parts = [];
    let done = 0;
    let end = 0;
    this.saves({ stop, percent: 0 });
    try {
      for (let more = true; more; ) {
        const page = await this.events({ counter__gt: String(end), count: "" }, signal);
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
