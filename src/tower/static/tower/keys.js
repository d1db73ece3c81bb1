/** Single-key shortcuts (they can be turned off, WCAG 2.1.4), the help that lists them, and the choice of theme. */

const THEMES = ["auto", "light", "dark"];
const NAMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

/** What this browser remembers of its user's choices. */
export const store = {
  get(name, fallback) {
    try {
      return localStorage.getItem(name) ?? fallback;
    } catch {
      return fallback; // storage can be forbidden: the choice then lasts as long as the page
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // as above
    }
  },
};

/** @param {object} app */
export function listen(app) {
  const help = document.getElementById("help");
  const enabled = document.getElementById("shortcuts");
  const theme = document.getElementById("theme");
  let leader = 0; // when "g" was pressed

  const label = () => {
    theme.title = NAMES[document.documentElement.dataset.theme];
    theme.setAttribute("aria-label", theme.title);
  };
  const turn = () => {
    const root = document.documentElement;
    root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    store.set("carillon.theme", root.dataset.theme);
    label();
    app.announce(theme.title);
  };
  const open = () => help.open || help.showModal();

  label();
  theme.addEventListener("click", turn);
  document.getElementById("help-open").addEventListener("click", open);
  enabled.checked = store.get("carillon.shortcuts", "on") === "on";
  enabled.addEventListener("change", () => store.set("carillon.shortcuts", enabled.checked ? "on" : "off"));

  const visit = (place) => () => (location.hash = `#/${place}`);
  const places = { j: visit("jobs"), s: visit("schedules"), c: visit("connections"), a: visit("account"), o: () => app.user.is_superuser && visit("operations")() };
  const keys = {
    "?": open,
    t: turn,
    "/": () => (app.view?.toggleFind ? app.view.toggleFind(true) : app.jobs?.box.focus()),
    j: () => app.jobs?.step(1),
    k: () => app.jobs?.step(-1),
    f: () => app.view?.toggleFollow?.(),
    w: () => app.view?.toggleWrap?.(),
    e: () => app.view?.inspect?.(),
    n: () => app.view?.trouble?.(1),
    p: () => app.view?.trouble?.(-1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]") || app.user === null) return;
    const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
    if (event.key === "Escape") {
      if (typing) event.target.blur();
      else if (app.view?.toggleFollow && !document.querySelector(":popover-open")) visit("jobs")();
      return;
    }
    if (typing || !enabled.checked) return;
    if (event.key === "g") {
      leader = event.timeStamp;
      return;
    }
    const table = leader && event.timeStamp - leader < 1500 ? places : keys;
    leader = 0;
    const action = table[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
