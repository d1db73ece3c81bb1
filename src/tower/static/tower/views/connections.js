/** Who is connected: the sockets that stand right now. */

import { request } from "../api.js";
import { h, say } from "../dom.js";
import { ago, plural, when } from "../format.js";
import { Loader } from "../loading.js";

const GATHER = 500; // ms: every login and logout of everyone is news here

function program(client) {
  if (!client) return "–";
  const known = [
    ["Edg/", "Edge"],
    ["OPR/", "Opera"],
    ["Chrome/", "Chrome"],
    ["Firefox/", "Firefox"],
    ["Safari/", "Safari"],
  ].find(([mark]) => client.includes(mark));
  return known && client.startsWith("Mozilla/") ? known[1] : client.slice(0, 60);
}

export class Connections {
  constructor(app) {
    this.app = app;
    this.timer = 0;
    this.loader = new Loader(app, "The list", () => this.load());
    this.count = h("p.facts");
    this.body = h("tbody");
    this.element = h(
      "section.page",
      { "aria-labelledby": "connections-heading" },
      h("h1", { id: "connections-heading", tabindex: -1 }, "Connections"),
      this.count,
      this.loader.element,
      h(
        "div.sheet",
        {},
        h(
          "table",
          {},
          h("caption.sr", {}, "Who is connected"),
          h("thead", {}, h("tr", {}, ...["Who", "Since", "From", "With"].map((text) => h("th", { scope: "col" }, text)))),
          this.body,
        ),
      ),
    );
    this.offs = [
      app.link.on("connections", () => this.later()),
      app.onReconnect(() => this.load()),
      app.onSecond(() => this.tick()),
    ];
    app.want("connections", { connections: ["changed"] }).then(() => this.load());
  }

  get loaded() {
    return this.loader.knowledge.settled;
  }

  destroy() {
    this.loader.destroy();
    clearTimeout(this.timer);
    for (const off of this.offs) off();
    this.app.want("connections", null);
  }

  later() {
    this.timer ||= setTimeout(() => this.load(), GATHER);
  }

  async load() {
    this.timer = 0;
    const answer = await this.loader.attempt(() => request("/api/v2/connections/"));
    if (!answer) return;
    const all = Array.isArray(answer) ? answer : answer.results;
    const people = new Set(all.map((one) => one.user.id)).size;
    say(this.count, `${plural(all.length, "connection")}, ${plural(people, "person", "people")}`);
    this.body.replaceChildren(...all.map((one) => this.row(one)));
  }

  row({ user, since, address, client }) {
    const self = user.id === this.app.user.id;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, user.username, self && h("span.you", {}, "you")),
      h("td", { "data-label": "Since" }, h("time", { datetime: since, title: when(since) }, ago(since, Date.now()))),
      h("td.tabular", { "data-label": "From" }, address || "–"),
      h("td", { "data-label": "With", title: client ?? "" }, program(client)),
    );
  }

  tick() {
    for (const time of this.body.querySelectorAll("time")) say(time, ago(time.dateTime, Date.now()));
  }
}
