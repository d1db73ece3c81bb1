/** The schedules: what runs when, and whether it does. */

import { request } from "../api.js";
import { h, moment, owners, refill, row } from "../dom.js";
import { View } from "../loading.js";

export class Schedules extends View {
  constructor(app) {
    super(app, "schedules");
    this.hear({ schedules: ["changed"] });
  }

  async load() {
    this.timer = 0;
    const page = await this.loader.attempt(() => request("/api/v2/schedules/?page_size=200"));
    if (!page) return;
    refill(this.body, page.results.map((schedule) => this.row(schedule)));
    this.empty.hidden = page.results.length > 0;
    this.table.hidden = page.results.length === 0;
  }

  row(schedule) {
    const { id, name, rrule, enabled } = schedule;
    const about = { role: "switch", "aria-checked": enabled, "aria-label": `Run ${name}`, "data-key": id };
    return row(name, {
      Rule: h("span.rule", {}, rrule),
      "Next run": enabled && moment(schedule.next_run),
      Owner: owners(schedule).join(" · "),
      On: h("button.switch", { ...about, onclick: () => this.toggle(schedule) }),
    });
  }

  async toggle({ id, name, enabled }) {
    const asked = { method: "PATCH", json: { enabled: !enabled } };
    await this.app.act(`${name} was not changed`, () => request(`/api/v2/schedules/${id}/`, asked));
    await this.load();
  }
}
