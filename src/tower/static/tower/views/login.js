/** The way in. */

import { request } from "../api.js";
import { h, say } from "../dom.js";

export class Login {
  /** @param {{reason: string, onlogin: () => Promise<void>}} options  reason: why one has to log in again; may be "" */
  constructor({ reason, onlogin }) {
    this.onlogin = onlogin;
    this.username = h("input", { id: "username", name: "username", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true });
    this.password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true });
    this.problem = h("p.problem", { role: "alert", hidden: true });
    this.button = h("button.primary", { type: "submit" }, "Log in");
    const { signOn } = document.body.dataset; // there is an OpenID provider, and it is called so
    this.element = h(
      "section.login",
      { "aria-labelledby": "login-heading" },
      h(
        "form",
        { onsubmit: (event) => this.submit(event) },
        h("h1", { id: "login-heading", tabindex: -1 }, "Log in"),
        h("p.lead", {}, reason || "Every job, heard the moment it happens."),
        h("label", { for: "username" }, "Username"),
        this.username,
        h("label", { for: "password" }, "Password"),
        this.password,
        this.problem,
        this.button,
        signOn && h("p", {}, h("a", { href: `api/login/oidc/?next=${encodeURIComponent(location.pathname + location.hash)}` }, `Log in by ${signOn}`)),
      ),
    );
  }

  focus() {
    this.username.focus();
  }

  destroy() {}

  async submit(event) {
    event.preventDefault();
    if (this.button.disabled) return;
    this.button.disabled = true;
    this.problem.hidden = true;
    try {
      await request("/api/login/", {
        method: "POST",
        form: { username: this.username.value, password: this.password.value },
      });
    } catch (error) {
      say(this.problem, error.status === 401 ? "Username or password is wrong." : error.message);
      this.problem.hidden = false;
      this.password.select();
      return;
    } finally {
      this.button.disabled = false;
    }
    await this.onlogin();
  }
}
