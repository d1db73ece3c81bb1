"""A job of a million lines on the real stack, in Chromium: opened, scrolled, searched, and one followed live.

Minutes, and figures that want a quiet machine: `CARILLON_LONG=1`. docs/reference/measurements.md has them.
"""

import json
import os
import threading
import time

import pytest
from playwright.sync_api import expect

from tests.browser.test_stack import api, job, log_in  # noqa: F401
from tests.infra.stack import Stack, docker

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1"),
]

LINES = 1_000_000
RATE = 2000  # lines a second
SECONDS = 30
# A task every thousand lines, five hundred hosts; as Ansible writes them, in colour.
MILLION = """
INSERT INTO tower_jobevent (job_id, counter, event, uuid, parent_uuid, stdout, start_line, end_line,
    event_data, failed, changed, event_level, play, role, task, created, modified)
SELECT {job}, n, CASE WHEN n % 1000 = 1 THEN 'playbook_on_task_start' ELSE 'runner_on_ok' END, 'u' || n,
    'u' || (n - (n - 1) % 1000),
    E'\\x1b[0;32mok: [host-' || n % 500 || E'] => (item=package-' || n || E')\\x1b[0m', n - 1, n,
    json_build_object('host', 'host-' || n % 500), false, false, 3, 'Everything', '', 'Install the packages',
    now(), now()
FROM generate_series(1, {lines}) n;
ANALYZE tower_jobevent;
"""


@pytest.fixture
def million(job):  # noqa: F811
    """A job of a million lines. Its events go with the stack: they take longer to delete than to make."""
    database = Stack.from_environment().container("postgresql")
    sql = MILLION.format(job=job["id"], lines=LINES)
    docker("exec", database, "psql", "-q", "-d", "carillon", "-c", sql, timeout=300)
    yield job
    docker("exec", database, "psql", "-q", "-d", "carillon", "-c",
           f"DELETE FROM tower_jobevent WHERE job_id = {job['id']}", timeout=300)  # fmt: skip


def figure(what, value, unit, most):
    """A measured figure, and what it may be at most; the load says who else used the machine."""
    print(f"{what}: {value:,.2f} {unit} (at most {most:,g}; load {os.getloadavg()[0]:.1f})")
    return value


def tasks(trace):
    """Of the page's main thread: each task's milliseconds, by the clock and of the processor."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (one["pid"], one["tid"])
        for one in events
        if one["name"] == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    return [
        (one["dur"] / 1000, one.get("tdur", one["dur"]) / 1000)
        for one in events
        if one["name"] == "ThreadControllerImpl::RunTask"
        and one.get("dur")
        and (one["pid"], one["tid"]) in main
    ]


def test_a_job_of_a_million_lines(million, log_in, browser):  # noqa: F811
    page = log_in(f"#/jobs/{million['id']}").page
    last = page.locator(f'.ln[data-n="{LINES}"]')
    expect(last).to_be_in_viewport(timeout=60_000)
    # Again, now that nothing is new to the server: from the answer to the login until its last line is seen.
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Username").wait_for()
    page.evaluate(
        """(last) => {
          const look = () => {
            if (document.querySelector(last)) window.opened = performance.now();
            else requestAnimationFrame(look);
          };
          performance.clearResourceTimings();
          look();
        }""",
        f'.ln[data-n="{LINES}"]',
    )
    values = Stack.from_environment().values
    page.get_by_label("Username").fill(values["CARILLON_USERNAME"])
    page.get_by_label("Password").fill(values["CARILLON_PASSWORD"])
    page.get_by_role("button", name="Log in").click()
    expect(last).to_be_in_viewport()
    opened = page.evaluate(
        """() => window.opened - performance.getEntriesByType("resource")
          .find((one) => one.name.endsWith("/api/login/")).responseEnd"""
    )
    opened = figure("opened at its tail after the login", opened / 1000, "s", 1)

    page.locator(".output").hover()
    browser.start_tracing(page=page, categories=["toplevel"])
    for _ in range(600):
        page.mouse.wheel(0, -1500)
        page.wait_for_timeout(30)
        line = int(page.locator(".ln").first.get_attribute("data-n"))
        if line < LINES - 3000:
            break
    traced = tasks(browser.stop_tracing())
    print(f"scrolled from line {LINES:,} to line {line:,}: {len(traced)} tasks of the page")
    assert line < LINES - 3000
    figure("the longest, by the clock", max(clock for clock, _ in traced), "ms", 50)
    frame = figure("the longest, of the processor", max(processor for _, processor in traced), "ms", 50)

    page.keyboard.press("/")
    page.keyboard.type("package-777777)")
    begun = time.monotonic()
    page.keyboard.press("Enter")
    expect(page.locator(".ln.here")).to_contain_text("package-777777")
    found = figure("a word found among them", time.monotonic() - begun, "s", 2)
    assert (opened < 1, frame < 50, found < 2) == (True, True, True)


def test_a_live_run_is_followed(job, api, log_in):  # noqa: F811
    page = log_in(f"#/jobs/{job['id']}").page
    expect(page.locator(".job .count")).to_have_text("Waiting for output")
    page.evaluate(
        """() => {
          window.behind = [];
          setInterval(() => {
            const last = [...document.querySelectorAll(".chunk:last-child .ln")].at(-1);
            if (last) window.behind.push(Date.now() / 1000 - Number(last.textContent.split(" ").at(-1)));
          }, 200);
        }"""
    )
    late = []

    def write():
        begun = time.monotonic()
        for batch in range(SECONDS * 4):
            size = RATE // 4
            stamp = f"{time.time():.3f}"
            counters = range(batch * size + 1, (batch + 1) * size + 1)
            events = [
                {"counter": n, "event": "verbose", "stdout": f"line {n} {stamp}"}
                | {"start_line": n - 1, "end_line": n}
                for n in counters
            ]
            api("POST", f"{job['url']}events/", events)
            late.append(time.monotonic() - begun - (batch + 1) / 4)
            time.sleep(max(0, -late[-1]))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        page.wait_for_timeout(500)
    behind = page.evaluate("window.behind")
    begun = time.monotonic()
    expect(page.locator(f'.ln[data-n="{RATE * SECONDS}"]')).to_be_in_viewport(timeout=60_000)
    end = time.monotonic() - begun
    third = len(behind) // 3
    print(
        f"{RATE:,} lines/s for {SECONDS} s, the writer at most {max(late):.2f} s late; "
        "how old the last line shown is:"
    )
    for name, part in (("first", behind[:third]), ("last", behind[-third:])):
        print(f"  {name} third: median {sorted(part)[len(part) // 2]:.2f} s, at most {max(part):.2f} s")
    figure("the end shown after it was written", end, "s", 2)
    assert end < 2
    assert max(behind[-third:]) < 5
