/** The list of jobs: states that change live, a filter, a search, a button to cancel. */

import { address, request } from "../api.js";
import { badge, h, ring, say, tick } from "../dom.js";
import { View } from "../loading.js";
import { FILTERS, KINDS, dated, duration, elapsed, isActive, kindName, midnight, plural, when } from "../format.js";

const PAGE_SIZE = 50;
const MAX_PAGE_SIZE = 200; // the API's
const BURST = 5; // jobs that may come at once; more wait until they are asked for
const GATHER = 300; // ms: a burst of news becomes one request
const NARROWS = { owner: "Owner", team: "Team", kind: "Kind", since: "Since" }; // filters by what a job is, as the address has them
const GRACE = 3000; // ms: a job that leaves the filter stays to be seen in its new state

export class Jobs extends View {
  /** @param {object} app @param {string} [query]  what to show, see `query` */
  constructor(app, query = "") {
    super(app, "jobs", { more: () => this.load(true), waiting: () => this.reveal() });
    this.jobs = new Map();
    this.rows = new Map();
    this.filter = FILTERS[0];
    this.search = "";
    this.only = {}; // by the names of NARROWS: what is let through
    this.next = false; // whether there are more
    this.news = new Set();
    this.fresh = new Map(); // jobs that wait to be shown
    this.shown = null; // the query that the rows answer
    this.size = PAGE_SIZE; // rows to ask for: a list that was expanded stays so
    this.pending = null; // what is asked for, to be stopped

    this.buttons = FILTERS.map((filter) => h("button.chip", { onclick: () => this.choose(filter) }, filter.label));
    this.states.append(...this.buttons);
    this.box.addEventListener("input", () => this.typed());
    this.form.elements.kind.append(...Object.entries(KINDS).map(([value, words]) => h("option", { value }, words)));
    this.form.addEventListener("change", () => this.narrow(Object.fromEntries(new FormData(this.form))));
    this.offs.push(app.link.on("jobs", (event) => this.told(event)), app.onReconnect(() => this.load()), app.onSecond(() => this.tick()));
    this.read(query);
    // What happens between the subscription and the first look is told; the other way round nobody would tell it.
    app.want("jobs", { jobs: ["status_changed", "summary"] }).then(() => this.load());
  }

  destroy() {
    super.destroy();
    clearTimeout(this.typing);
    this.pending?.abort();
  }

  typed() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.choose(this.filter), GATHER);
  }

  /** What the list shows, as the address has it: "?status=failed&search=web". */
  get query() {
    return address("", { status: this.filter === FILTERS[0] ? "" : this.filter.name, search: this.search, ...this.only });
  }

  /** @param {string} query  as above @returns {boolean} whether that is something else than is shown */
  read(query) {
    const wanted = new URLSearchParams(query);
    const before = this.query;
    this.filter = FILTERS.find(({ name }) => name === wanted.get("status")) ?? FILTERS[0];
    this.search = this.box.value = wanted.get("search") ?? "";
    for (const name of Object.keys(NARROWS)) this.only[name] = wanted.get(name) ?? "";
    if (!midnight(this.only.since)) this.only.since = "";
    this.press();
    return this.query !== before;
  }

  press() {
    for (const [index, button] of this.buttons.entries()) button.setAttribute("aria-pressed", String(FILTERS[index] === this.filter));
    for (const name of Object.keys(NARROWS)) this.form.elements[name].value = this.only[name];
    this.set.replaceChildren(...Object.keys(NARROWS).filter((name) => this.only[name]).map((name) => this.chip(name)));
  }

  /** What is set, and the way to take it away. */
  chip(name) {
    const value = this.only[name];
    const words = `${NARROWS[name]}: ${name === "kind" ? kindName(value) : name === "since" ? dated(value) : value}`;
    const off = () => {
      this.narrow({ [name]: "" });
      this.narrower.firstElementChild.focus(); // what goes must not take the focus with it
    };
    return h("button.chip", { "aria-pressed": true, "aria-label": `Take away the filter ${words}`, onclick: off }, `${words} ×`);
  }

  narrow(values) {
    for (const [name, value] of Object.entries(values)) this.only[name] = value.trim();
    if (!midnight(this.only.since)) this.only.since = ""; // a year of five digits, while it is typed
    return this.choose(this.filter);
  }

  choose(filter) {
    this.size = PAGE_SIZE;
    this.filter = filter;
    this.search = this.box.value.trim();
    this.press();
    this.app.keep();
    return this.load();
  }

  /** @param {boolean} [more]  the next page below, instead of the first one anew */
  async load(more = false) {
    this.pending?.abort();
    this.pending = new AbortController();
    const { signal } = this.pending;
    const { query } = this;
    const other = query !== this.shown;
    more &&= !other; // the next page of what is shown is not the next of what is asked for
    const path = more ? this.address(this.nextPage()) : this.address();
    if (other) this.loader.knowledge.forget();
    this.list.setAttribute("aria-busy", String(other));
    const pastTheEnd = (error) => (more && error.status === 404 ? { results: [], next: null } : Promise.reject(error));
    const page = await this.loader.attempt(() => request(path, { signal }).catch(pastTheEnd));
    if (signal.aborted) return;
    this.pending = null;
    this.gather();
    this.list.setAttribute("aria-busy", "false");
    if (!page) return other && this.empty();
    this.jobs = new Map([...(more ? this.jobs : []), ...page.results.map((job) => [job.id, this.newer(job)])]);
    if (!more) this.fresh.clear();
    this.shown = query;
    this.size = Math.min(MAX_PAGE_SIZE, Math.max(PAGE_SIZE, Math.ceil(this.jobs.size / PAGE_SIZE) * PAGE_SIZE));
    this.next = Boolean(page.next);
    this.draw();
  }

  /** Of what is asked for now nothing is known: rows that answered something else would seem to. */
  empty() {
    this.jobs.clear();
    this.fresh.clear();
    this.next = false;
    this.shown = null;
    this.draw();
  }

  /** The page in which the first job is that is not held. Pages are counted by what the server has now: rows that have left are none. */
  nextPage() {
    const held = [...this.jobs.values()].filter((job) => this.belongs(job)).length + this.fresh.size;
    return { page_size: PAGE_SIZE, page: Math.floor(held / PAGE_SIZE) + 1 };
  }

  /** @param {object} [page]  else the first, of as many as are shown */
  address(page = { page_size: this.size }) {
    const { owner: owner__username, team: team__name, kind, since } = this.only;
    const only = { kind, owner__username, team__name, created__gte: since && midnight(since).toISOString() };
    return address("/api/v2/jobs/", { ...page, status: this.filter.states, search: this.search, ...only, order_by: "-id" });
  }

  told(event) {
    const job = this.jobs.get(event.unified_job_id);
    if (job && event.status) this.update({ ...job, status: event.status, finished: event.finished ?? job.finished });
    // The event says the state; started, elapsed and, of a job not seen before, everything else is asked for.
    this.news.add(event.unified_job_id);
    this.gather();
  }

  /** One question at a time: an older answer that came last would stay for good. */
  gather() {
    if (this.news.size > 0 && !this.pending && !this.loader.gone) this.timer ||= setTimeout(() => this.ask(), GATHER);
  }

  async ask() {
    this.timer = 0;
    if (this.pending) return; // it gathers when it is done
    const asking = (this.pending = new AbortController());
    const { signal } = asking;
    const ids = [...this.news];
    this.news.clear();
    try {
      if (ids.length > BURST) await this.burst(ids, signal);
      else await Promise.all(ids.map((id) => this.renew(id, signal)));
    } catch (error) {
      if (signal.aborted) {
        for (const id of ids) this.news.add(id); // a load came between
      } else {
        asking.abort();
        await this.loader.attempt(() => Promise.reject(error)); // out of date from now on, and asked for again
      }
    }
    if (this.pending === asking) this.pending = null;
    this.gather();
  }

  /** What was heard of a job while it was asked for is newer than the answer, and will be asked for in turn. */
  newer(job) {
    return (this.news.has(job.id) && this.jobs.get(job.id)) || job;
  }

  async renew(id, signal) {
    try {
      this.update(this.newer(await request(`/api/v2/jobs/${id}/`, { signal })));
    } catch (error) {
      if (error.status !== 404) throw error;
      this.jobs.delete(id);
      this.fresh.delete(id);
      this.draw();
    }
  }

  /** Much at once: rows on show change, new ones wait, so that nothing moves under the reader. */
  async burst(ids, signal) {
    if (this.jobs.size === 0) return this.load();
    const { results } = await request(this.address(), { signal });
    for (const id of ids) this.fresh.delete(id); // what still belongs here is in the answer
    const oldest = this.next ? Math.min(...this.jobs.keys()) : 0; // what is older comes by "Show more"
    for (const job of results) {
      if (this.jobs.has(job.id)) this.update(this.newer(job));
      else if (job.id > oldest) this.fresh.set(job.id, job);
    }
    this.count();
  }

  count() {
    const { size } = this.fresh;
    this.waiting.hidden = size === 0;
    say(this.waiting, size >= this.size ? `${size} or more new jobs` : plural(size, "new job"));
    const none = this.jobs.size + size === 0 && !this.next && this.loader.knowledge.known;
    this.status.hidden = !none;
    say(this.status, !none ? "" : this.query ? "No job matches." : "No jobs yet. Start one: make demo");
  }

  /** The reader asks for the new jobs. */
  async reveal() {
    if (this.fresh.size >= this.size) await this.load();
    else for (const [id, job] of this.fresh) this.jobs.set(id, job);
    this.fresh.clear();
    this.draw();
    this.list.parentElement.scrollTop = 0;
    this.list.querySelector(".row-link")?.focus();
  }

  belongs(job) {
    const { states } = this.filter;
    const { owner, team } = job.summary_fields ?? {};
    const { since, ...only } = this.only;
    const is = { owner: owner?.username, team: team?.name };
    const fits = (name, value) => (name === "kind" ? value.split(",").includes(job.kind) : is[name] === value);
    return (
      Object.entries(only).every(([name, value]) => !value || fits(name, value)) &&
      (!since || Date.parse(job.created) >= midnight(since)) &&
      (states.length === 0 || states.includes(job.status)) &&
      (this.search === "" || job.name.toLowerCase().includes(this.search.toLowerCase()))
    );
  }

  update(job) {
    const before = this.jobs.get(job.id);
    if (!before && this.next && job.id < Math.min(...this.jobs.keys())) return; // it comes by "Show more"
    // Behind new jobs that wait, others wait too.
    if (!before && this.fresh.size > 0) {
      if (this.belongs(job)) this.fresh.set(job.id, job);
      else this.fresh.delete(job.id);
      this.count();
      return;
    }
    if (!before && !this.belongs(job)) return;
    this.jobs.set(job.id, job);
    if (!before) this.draw();
    else this.fill(this.rows.get(job.id), job);
    if (before && before.status !== job.status) {
      const row = this.rows.get(job.id);
      if (row) ring(row.badge.firstElementChild);
      if (!this.belongs(job)) setTimeout(() => this.leave(job.id), GRACE);
    }
  }

  leave(id) {
    const job = this.jobs.get(id);
    if (!job || this.belongs(job)) return;
    this.jobs.delete(id);
    this.draw();
    if (this.jobs.size === 0 && this.next) this.load();
  }

  /** Rows are kept and moved, never made anew: focus and scroll position stay. */
  draw() {
    const jobs = [...this.jobs.values()].sort((a, b) => b.id - a.id);
    const held = [...this.rows.values()].find((row) => row.element.contains(document.activeElement));
    for (const [id, row] of this.rows) {
      if (this.jobs.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let before = this.list.firstElementChild;
    for (const job of jobs) {
      let row = this.rows.get(job.id);
      if (!row) this.rows.set(job.id, (row = this.row(job)));
      this.fill(row, job);
      if (row.element === before) before = before.nextElementSibling;
      else this.list.insertBefore(row.element, before);
    }
    if (held && !held.element.isConnected) (this.list.querySelector(".row-link") ?? this.heading).focus({ preventScroll: true });
    if (!this.next && this.more === document.activeElement) this.heading.focus({ preventScroll: true }); // what goes must not take it
    this.more.hidden = !this.next;
    this.count();
    this.mark();
  }

  row(job) {
    const row = {
      badge: badge(job.status),
      name: h("a.row-link", { href: `#/jobs/${job.id}` }),
      kind: h("span.kind", {}, this.offer("kind", job.kind, kindName(job.kind))),
      started: h("time.started"),
      took: h("span.took"),
      cancel: h("button.quiet.cancel", { onclick: () => this.app.cancel(this.jobs.get(job.id)) }, "Cancel"),
    };
    const { owner, team } = job.summary_fields ?? {};
    row.owner = h("span.owner", {}, owner && this.offer("owner", owner.username), team && [" · ", this.offer("team", team.name)]);
    const title = h("span.title", {}, row.name, h("span.id", {}, `#${job.id}`));
    row.element = h("li.row", {}, h("span.slot", {}, row.badge), title, row.kind, row.owner, row.started, row.took, row.cancel);
    return row;
  }

  /** A word of a row that sets a filter when it is clicked; by keyboard the form does. */
  offer(name, value, words = value) {
    return h("span.offer", { title: `Show only ${words}`, onclick: () => this.narrow({ [name]: value }) }, words);
  }

  fill(row, job) {
    if (!row) return;
    if (row.status !== job.status) {
      row.status = job.status;
      const fresh = badge(job.status);
      row.badge.replaceWith(fresh);
      row.badge = fresh;
    }
    say(row.name, job.name);
    // What goes must not take the focus with it.
    if (!isActive(job.status) && row.cancel === document.activeElement) row.name.focus({ preventScroll: true });
    row.cancel.hidden = !isActive(job.status);
    row.cancel.setAttribute("aria-label", `Cancel ${job.name}`);
    const since = job.started ?? job.created;
    row.started.dateTime = since;
    row.started.title = when(since);
    tick(row.element);
    say(row.took, duration(elapsed(job, Date.now())));
  }

  tick() {
    for (const [id, row] of this.rows) say(row.took, duration(elapsed(this.jobs.get(id), Date.now())));
  }

  /** Which job is open beside the list. */
  open(id) {
    this.current = id;
    this.mark();
  }

  mark() {
    for (const [id, row] of this.rows) row.name.ariaCurrent = id === this.current ? "page" : null;
  }

  /** Move the focus along the list. */
  step(by) {
    const links = [...this.list.querySelectorAll(".row-link")];
    const focused = links.indexOf(document.activeElement);
    const at = focused === -1 ? links.findIndex((link) => link.hasAttribute("aria-current")) : focused;
    links[Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
  }
}
