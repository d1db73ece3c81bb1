/** The schedules: what runs when, and whether it does. */

import { request } from "../api.js";
import { h, table } from "../dom.js";
import { ago, when } from "../format.js";
import { View } from "../loading.js";

export class Schedules extends View {
  constructor(app) {
    super(app, "schedules", "Schedules");
    this.body = h("tbody");
    this.empty = h("p.empty", { hidden: true }, "No schedules yet.");
    this.table = table("Schedules", ["Name", "Rule", "Next run", "Owner", "On"], this.body);
    this.element.append(this.loader.element, h("div.sheet", {}, this.table, this.empty));
    this.hear({ schedules: ["changed"] });
  }

  async load() {
    this.timer = 0;
    const page = await this.loader.attempt(() => request("/api/v2/schedules/?page_size=200"));
    if (!page) return;
    const focused = document.activeElement?.dataset?.schedule;
    this.body.replaceChildren(...page.results.map((schedule) => this.row(schedule)));
    if (focused) this.body.querySelector(`[data-schedule="${CSS.escape(focused)}"]`)?.focus();
    this.empty.hidden = page.results.length > 0;
    this.table.hidden = page.results.length === 0;
  }

  row(schedule) {
    const { owner, team } = schedule.summary_fields ?? {};
    const next = schedule.enabled ? schedule.next_run : null;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, schedule.name),
      h("td.rule", { "data-label": "Rule" }, schedule.rrule),
      h("td", { "data-label": "Next run" }, next ? h("time", { datetime: next, title: when(next) }, ago(next, Date.now())) : "–"),
      h("td", { "data-label": "Owner" }, [owner?.username, team?.name].filter(Boolean).join(" · ") || "–"),
      h(
        "td",
        { "data-label": "On" },
        h("button.switch", {
          type: "button",
          role: "switch",
          "aria-checked": schedule.enabled,
          "aria-label": `Run ${schedule.name}`,
          "data-schedule": schedule.id,
          onclick: () => this.toggle(schedule),
        }),
      ),
    );
  }

  async toggle(schedule) {
    try {
      await request(`/api/v2/schedules/${schedule.id}/`, { method: "PATCH", json: { enabled: !schedule.enabled } });
    } catch (error) {
      this.app.announce(`${schedule.name} was not changed: ${error.message}`, true);
    }
    await this.load();
  }
}
