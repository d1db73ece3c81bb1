// What the page shows, for test_story.py; the tab that it hides gets no frames, as a real one.
(() => {
  let hidden = false;
  let waiting = [];
  const frame = window.requestAnimationFrame.bind(window);
  const gone = new Set();
  let last = 0;
  window.requestAnimationFrame = (draw) => {
    const id = ++last;
    const run = (now) => (gone.delete(id) ? undefined : hidden ? waiting.push(run) : draw(now));
    frame(run);
    return id;
  };
  window.cancelAnimationFrame = (id) => gone.add(id);
  Object.defineProperty(Document.prototype, "hidden", { get: () => hidden });
  Object.defineProperty(Document.prototype, "visibilityState", { get: () => (hidden ? "hidden" : "visible") });
  window.hide = (value) => {
    hidden = value;
    document.dispatchEvent(new Event("visibilitychange"));
    if (!hidden) for (const run of waiting.splice(0)) frame(run);
  };

  const text = (selector, within = document) => within.querySelector(selector)?.textContent ?? "";
  const visible = (element) => Boolean(element?.checkVisibility());

  window.seek = (text) => {
    const box = document.querySelector(".search");
    box.value = text;
    box.dispatchEvent(new Event("input"));
  };

  /** Where on the screen a line is. */
  window.at = (number) => {
    const line = document.querySelector(`.ln[data-n="${number}"]`);
    return line && line.getBoundingClientRect().top - document.querySelector(".output").getBoundingClientRect().top;
  };

  window.look = () => {
    const jobs = document.querySelector("section.jobs");
    const job = document.querySelector("section.job");
    const output = document.querySelector(".output");
    const problems = (within) => [...within.querySelectorAll(".problem")].filter((one) => !one.hidden).map((one) => one.textContent);
    const found = { place: location.hash, link: text("#link-words"), login: visible(document.querySelector("#username")) };
    found.broken = !jobs && !job && !document.querySelector("section.page") && !found.login;
    if (jobs) {
      const waits = document.querySelector(".over button");
      found.jobs = {
        rows: [...jobs.querySelectorAll(".row")].map((row) => [
          Number(text(".id", row).slice(1)),
          text(".row-link", row),
          text(".badge span", row),
        ]),
        states: text(".chip[aria-pressed=true]", jobs),
        search: jobs.querySelector(".search").value.trim(),
        waits: waits.hidden ? 0 : parseInt(waits.textContent),
        more: !jobs.querySelector("button.more:not(.over *)").hidden,
        empty: jobs.querySelector(".empty").hidden ? "" : text(".empty", jobs),
        problems: problems(jobs),
        busy: text("[aria-busy=true]", jobs) !== "" || jobs.querySelector("[aria-busy=true]") !== null,
      };
    }
    if (job) {
      const box = output.getBoundingClientRect();
      const top = (one) => one.getBoundingClientRect().top - box.top;
      const lines = [...job.querySelectorAll(".ln")];
      // What lies in a part that is not laid out has a place too, over that of what is seen.
      const read = lines.find((one) => top(one) >= 0 && one.checkVisibility({ contentVisibilityAuto: true }));
      found.job = {
        id: Number(job.getAttribute("aria-label").slice(4)),
        status: text(".job-state .badge span", job),
        count: text(".count", job),
        figures: Object.fromEntries([...job.querySelectorAll(".figure")].map((one) => [one.textContent.trim().split(" ")[1], text("b", one)])),
        lines: lines.map((one) => [Number(one.dataset.n), one.textContent]),
        notes: [...job.querySelectorAll(".note")].map((one) => one.textContent),
        here: job.querySelector(".ln.here") && Number(job.querySelector(".ln.here").dataset.n),
        follows: text(".tool[aria-pressed=true]:last-of-type", job) === "Follow",
        away: output.scrollHeight - output.scrollTop - output.clientHeight,
        top: output.scrollTop,
        read: read ? [Number(read.dataset.n), top(read)] : null,
        earlier: !job.querySelector(".dropped").hidden,
        problems: problems(job),
      };
    }
    const table = document.querySelector("section.page tbody");
    if (table) found.table = { rows: table.childElementCount, problems: problems(document.querySelector("section.page")) };
    return found;
  };
})();
