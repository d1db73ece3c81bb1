/** One's own tokens and sessions: which there are, and the way to make and to end them. */

import { request } from "../api.js";
import { h, moment, refill, row, say } from "../dom.js";
import { plural, program } from "../format.js";
import { View } from "../loading.js";

const DAY = 86_400_000; // ms
const MOST = "page_size=200"; // the API's

/** Sessions may be kept so that nobody can list them: the server says so, and the view passes that on. */
function unlisted(error) {
  if (error.status !== 404) throw error;
  return { results: [], why: error.message };
}

export class Account extends View {
  constructor(app) {
    super(app, "account", { others: () => this.endOthers(), out: () => app.logout() }, "The account");
    this.form.addEventListener("submit", (event) => this.make(event));
    this.renewal.addEventListener("submit", (event) => this.renew(event));
    this.hear({});
  }

  async load() {
    const asked = () => Promise.all([request(`/api/v2/tokens/?${MOST}`), request(`/api/v2/sessions/?${MOST}`).catch(unlisted)]);
    const [tokens, sessions] = (await this.loader.attempt(asked)) ?? [];
    if (!tokens) return;
    refill(this.tokens, tokens.results.map((one) => this.token(one)));
    refill(this.sessions, sessions.results.map((one) => this.session(one)));
    if (this.others === document.activeElement) this.heading.focus({ preventScroll: true });
    this.others.hidden = !sessions.results.some(({ current }) => !current);
    const newest = tokens.next || sessions.next ? " The newest of them are shown." : "";
    say(this.count, `${plural(tokens.count, "token")}. ${sessions.why ?? `${plural(sessions.count, "session")}.`}${newest}`);
  }

  /** A button that asks, and then ends something. */
  end(path, words, name, question, yes) {
    const ended = async () => {
      if (!(await this.app.confirm(question, yes, "Keep it"))) return;
      await this.app.act(`${name} was not ended`, () => request(path, { method: "DELETE" }));
      await this.load();
    };
    return h("button.quiet.cancel", { "data-key": path, "aria-label": `${words} ${name}`, onclick: ended }, words);
  }

  token({ id, description, scope, created, last_used, expires }) {
    const name = description || `Token ${id}`;
    return row(name, {
      Scope: scope,
      Made: moment(created),
      "Last used": moment(last_used) ?? "never",
      Expires: moment(expires) ?? "never",
      End: this.end(`/api/v2/tokens/${id}/`, "Revoke", name, `Revoke ${name}? Whatever uses it is refused at once.`, "Revoke token"),
    });
  }

  session({ id, since, expires, address, client, current }) {
    const name = `the session with ${program(client)}`;
    return row([program(client), current && h("span.you", {}, "this one")], {
      Since: moment(since),
      From: address,
      Expires: moment(expires),
      End: !current && this.end(`/api/v2/sessions/${id}/`, "End", name, `End ${name}, from ${address || "nobody knows where"}?`, "End session"),
    });
  }

  async endOthers() {
    if (!(await this.app.confirm("End all sessions but this one?", "End them", "Keep them"))) return;
    const asked = () => request("/api/v2/sessions/end_others/", { method: "POST" });
    const answer = await this.app.act("The sessions were not ended", asked);
    if (answer) this.app.announce(`${plural(answer.ended, "session")} ended`, true);
    await this.load();
  }

  async make(event) {
    event.preventDefault();
    if (this.making) return;
    this.making = true;
    this.problem.hidden = true;
    const [said, { id: who }] = [new FormData(this.form), this.app.user];
    const [description, scope, days] = [said.get("description").trim(), said.getAll("scope").join(" "), Number(said.get("days"))];
    const expires = days ? new Date(Date.now() + days * DAY).toISOString() : null;
    try {
      const made = await request("/api/v2/tokens/", { method: "POST", json: { description, scope, expires } });
      this.form.reset();
      if (this.app.user?.id === who) this.app.show(`Token ${description || made.id}`, "This is shown once. Keep it where only you can read it.", made.token);
    } catch (error) {
      say(this.problem, error.message);
      this.problem.hidden = false;
    }
    this.making = false;
    await this.load(); // also where no answer came: it may have been made
  }

  async renew(event) {
    event.preventDefault();
    if (this.app.link.link.state === "closed") return; // once is enough
    this.app.link.close(); // it came by the session that ends
    const asked = () => request("/api/v2/me/password/", { method: "POST", json: Object.fromEntries(new FormData(this.renewal)) });
    if (!(await this.app.act("The password was not changed", asked))) return this.app.stay();
    this.renewal.reset();
    this.app.announce("The password is changed, and your other sessions have ended.", true);
    await this.app.begin();
  }
}
