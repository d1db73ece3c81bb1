/** The way in. */

import { address, request } from "../api.js";
import { say, stamp } from "../dom.js";

export class Login {
  /** @param {{reason: string, onlogin: () => Promise<void>}} options  reason: why one has to log in again; may be "" */
  constructor({ reason, onlogin }) {
    this.onlogin = onlogin;
    this.element = stamp("login", reason && { ".lead": reason });
    this.form = this.element.querySelector("form");
    this.form.addEventListener("submit", (event) => this.submit(event));
    [this.problem, this.button] = ["[role=alert]", "[type=submit]"].map((what) => this.form.querySelector(what));
    const elsewhere = this.form.querySelector("a"); // if there is an OpenID provider
    elsewhere?.setAttribute("href", address(elsewhere.getAttribute("href"), { next: location.pathname + location.hash }));
  }

  focus() {
    this.form.elements.username.focus();
  }

  destroy() {}

  async submit(event) {
    event.preventDefault();
    if (this.button.disabled) return;
    this.button.disabled = true;
    this.problem.hidden = true;
    try {
      await request("/api/login/", { method: "POST", form: Object.fromEntries(new FormData(this.form)) });
    } catch (error) {
      say(this.problem, error.status === 401 ? "Username or password is wrong." : error.message);
      this.problem.hidden = false;
      this.form.elements.password.select();
      return;
    } finally {
      this.button.disabled = false;
    }
    await this.onlogin();
  }
}
