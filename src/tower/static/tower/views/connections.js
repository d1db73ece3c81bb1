/** Who is connected: the sockets that stand right now. */

import { request } from "../api.js";
import { h, moment, refill, row, say, table } from "../dom.js";
import { plural, program } from "../format.js";
import { View } from "../loading.js";

export class Connections extends View {
  constructor(app) {
    super(app, "connections", "Connections");
    [this.count, this.body] = [h("p.facts"), h("tbody")];
    const sheet = h("div.sheet", {}, table("Who is connected", ["Who", "Since", "From", "With"], this.body));
    this.element.append(this.count, this.loader.element, sheet);
    this.hear({ connections: ["changed"] });
  }

  async load() {
    this.timer = 0;
    const answer = await this.loader.attempt(() => request("/api/v2/connections/"));
    if (!answer) return;
    const all = Array.isArray(answer) ? answer : answer.results;
    const people = new Set(all.map((one) => one.user.id)).size;
    say(this.count, `${plural(all.length, "connection")}, ${plural(people, "person", "people")}`);
    refill(this.body, all.map((one) => this.row(one)));
  }

  row({ user, since, address, client }) {
    const who = [user.username, user.id === this.app.user.id && h("span.you", {}, "you")];
    return row(who, { Since: moment(since), From: address, With: h("span", { title: client }, program(client)) });
  }
}
