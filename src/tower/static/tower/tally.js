/** What a run has come to so far, counted from its events; at the end Ansible's own totals replace the count. Pure. */

const RESULTS = new Map([
  ["runner_on_ok", "ok"],
  ["runner_on_failed", "failed"],
  ["runner_on_error", "failed"],
  ["runner_on_async_failed", "failed"],
  ["runner_on_unreachable", "unreachable"],
  ["runner_on_skipped", "skipped"],
]);

const sum = (hosts) => Object.values(hosts ?? {}).reduce((total, count) => total + (Number(count) || 0), 0);

export class Tally {
  constructor() {
    this.counts = { ok: 0, changed: 0, failed: 0, unreachable: 0, skipped: 0, rescued: 0, ignored: 0 };
    this.tasks = 0;
    this.play = "";
    this.task = "";
    this.final = false;
  }

  /** @param {object} before  the server's summary of the events that are not given one by one */
  precede(before) {
    this.tasks += before.tasks;
    if (!this.final) for (const name of Object.keys(this.counts)) this.counts[name] += before[name] ?? 0;
  }

  /** @param {{event: string, changed?: boolean, play?: string, task?: string, event_data?: object}} event */
  add(event) {
    const { event: name, event_data: data = {} } = event;
    if (event.play) this.play = event.play;
    if (!this.task && !this.final) this.task = event.task ?? ""; // of one whose start is not given
    if (name === "playbook_on_play_start") {
      this.task = "";
    } else if (name === "playbook_on_task_start" || name === "playbook_on_handler_task_start") {
      this.tasks += 1;
      this.task = event.task || data.name || data.task || "";
    } else if (name === "playbook_on_stats") {
      this._stats(data);
    } else if (RESULTS.has(name) && !this.final) {
      const result = RESULTS.get(name);
      // A failure that the playbook ignores is no failure of the run: Ansible counts it as ok and ignored.
      if (result === "failed" && data.ignore_errors) {
        this.counts.ok += 1;
        this.counts.ignored += 1;
      } else {
        this.counts[result] += 1;
      }
      if (event.changed && result === "ok") this.counts.changed += 1;
    }
  }

  _stats(data) {
    this.final = true;
    this.task = "";
    const hosts = { ...data, failed: data.failures, unreachable: data.dark ?? data.unreachable };
    for (const name of Object.keys(this.counts)) this.counts[name] = sum(hosts[name]);
  }
}
