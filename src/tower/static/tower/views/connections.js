/** Who is connected: the sockets that stand right now. */

import { request } from "../api.js";
import { h, say, table } from "../dom.js";
import { ago, plural, when } from "../format.js";
import { View } from "../loading.js";

// In this order: each of them says the names of those behind it, too.
const BROWSERS = { "Edg/": "Edge", "OPR/": "Opera", "Chrome/": "Chrome", "Firefox/": "Firefox", "Safari/": "Safari" };

function program(client) {
  if (!client) return "–";
  const known = Object.keys(BROWSERS).find((mark) => client.includes(mark));
  return known && client.startsWith("Mozilla/") ? BROWSERS[known] : client.slice(0, 60);
}

export class Connections extends View {
  constructor(app) {
    super(app, "connections", "Connections");
    this.count = h("p.facts");
    this.body = h("tbody");
    const sheet = h("div.sheet", {}, table("Who is connected", ["Who", "Since", "From", "With"], this.body));
    this.element.append(this.count, this.loader.element, sheet);
    this.offs.push(app.onSecond(() => this.tick()));
    this.hear({ connections: ["changed"] });
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
