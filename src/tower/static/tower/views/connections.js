/** Who is connected: the sockets that stand right now. */

import { request } from "../api.js";
import { h, moment, refill, row, say } from "../dom.js";
import { plural, program } from "../format.js";
import { View } from "../loading.js";

export class Connections extends View {
  constructor(app) {
    super(app, "connections");
    this.hear({ connections: ["changed"] });
  }

  async load() {
    this.timer = 0;
    const answer = await this.loader.attempt(() => request("/api/v2/connections/?page_size=200"));
    if (!answer) return;
    const { count, next, results } = answer;
    const people = plural(new Set(results.map((one) => one.user.id)).size, "person", "people");
    say(this.count, `${plural(count, "connection")}, ${next ? `the newest ${results.length} of ${people}` : people}`);
    refill(this.body, results.map((one) => this.row(one)));
  }

  row({ user, since, address, client }) {
    const who = [user.username, user.id === this.app.user.id && h("span.you", {}, "you")];
    return row(who, { Since: moment(since), From: address, With: h("span", { title: client }, program(client)) });
  }
}
