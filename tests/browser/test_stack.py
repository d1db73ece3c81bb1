"""The page on the real stack: browser, nginx, uwsgi, RabbitMQ, runworker, daphne, and a real Ansible run."""

import base64
import json
import os
import re
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ROOT
from tests.browser.network import Cable
from tests.infra.stack import Stack, docker

pytestmark = pytest.mark.stack

CONNECTED = re.compile("^Connected$")
STANDS = re.compile("^(Connected|Resumed)")
CUT = "ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_NETWORK|ERR_HTTP2|WebSocket connection to|Failed to fetch"


@pytest.fixture(scope="module")
def api(stack):
    """`api(method, path, body)` -> the answer's JSON, as the stack's admin."""
    trust = ssl.create_default_context(cafile=stack["CARILLON_CA_CERT"])

    def call(method, path, body=None):
        request = urllib.request.Request(
            stack["CARILLON_URL"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {stack['CARILLON_TOKEN']}",
                "Content-Type": "application/json",
                "Accept": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30, context=trust) as response:
            return json.loads(response.read() or b"null")

    return call


@pytest.fixture
def job(api, request):
    """A new job, ended when the test is."""
    made = api("POST", "/api/v2/jobs/", {"name": f"Browser test: {request.node.name}", "kind": "job"})
    yield made
    if api("GET", made["url"])["status"] in ("new", "pending", "waiting", "running"):
        api("POST", f"{made['url']}cancel/")


def lines(first, count):
    return [
        {"counter": number, "event": "verbose", "stdout": f"\x1b[0;32mline {number}\x1b[0m"}
        for number in range(first, first + count)
    ]


def words(page):
    return page.locator("#link-words")


@pytest.fixture
def log_in(stack, open_page):
    """`log_in(place, port=…, **context options)` -> Watched, logged in and connected."""

    def log_in(place="", port=None, **options):
        watched = open_page(ignore_https_errors=True, **options)
        watched.expect("401")  # who am I? nobody yet
        page = watched.page
        url = stack["CARILLON_URL"]
        if port:
            url = f"https://localhost:{port}"
        page.goto(f"{url}/{place}")
        page.get_by_label("Username").fill(stack["CARILLON_USERNAME"])
        page.get_by_label("Password").fill(stack["CARILLON_PASSWORD"])
        for attempt in range(
            3
        ):  # see ERR_NETWORK_CHANGED in conftest.py: a POST is not tried again by itself
            page.get_by_role("button", name="Log in").click()
            try:
                expect(words(page)).to_have_text(STANDS, timeout=10_000)
                break
            except AssertionError:
                if (
                    attempt == 2
                    or page.get_by_role("alert").text_content() != "The server cannot be reached."
                ):
                    raise
        return watched

    return log_in


@pytest.fixture
def demo(stack, api, ansible_playbook):
    """`demo(name, pace)` -> (process, job): the demo's playbook, begun, and its job."""
    begun = []

    def begin(name, pace):
        newest = api("GET", "/api/v2/jobs/?page_size=1")["results"]
        before = newest[0]["id"] if newest else 0
        process = subprocess.Popen(
            [ansible_playbook, "site.yml", "-e", f"demo_pace={pace}"],
            cwd=ROOT / "demo",
            env={
                **os.environ,
                **{key: stack[key] for key in ("CARILLON_URL", "CARILLON_TOKEN", "CARILLON_CA_CERT")},
                "CARILLON_JOB_NAME": name,
                "ANSIBLE_CONFIG": "ansible.cfg",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        begun.append((process, None))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for job in api("GET", f"/api/v2/jobs/?search={quote(name)}")["results"]:
                if job["id"] > before:
                    begun[-1] = (process, job)
                    return begun[-1]
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        raise AssertionError(f"no job {name!r} after two minutes")

    yield begin
    for process, job in begun:
        process.kill()
        process.wait()
        process.stdout.close()
        # Cut off, it leaves a job that seems to run for ever.
        if job and api("GET", job["url"])["status"] in ("new", "pending", "waiting", "running"):
            api("POST", f"{job['url']}cancel/")


def test_a_wrong_password_is_refused(stack, open_page):
    watched = open_page(ignore_https_errors=True)
    watched.expect("401")
    page = watched.page
    page.goto(stack["CARILLON_URL"])
    page.get_by_label("Username").fill(stack["CARILLON_USERNAME"])
    page.get_by_label("Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Username or password is wrong.")


def test_a_job_s_state_changes_live(api, job, log_in):
    page = log_in().page
    row = page.locator(".row", has=page.locator(f".row-link[href='#/jobs/{job['id']}']"))
    expect(row.locator(".badge")).to_have_text(job["status"])
    for status in ("pending", "waiting", "running", "successful"):
        api("PATCH", job["url"], {"status": status})
        expect(row.locator(".badge")).to_have_text(status)


def test_a_new_job_appears_and_is_canceled(api, log_in):
    page = log_in().page
    made = api("POST", "/api/v2/jobs/", {"name": "Just begun", "kind": "job", "status": "pending"})
    row = page.locator(".row", has=page.locator(f".row-link[href='#/jobs/{made['id']}']"))
    expect(row).to_contain_text("Just begun")
    row.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(row.locator(".badge")).to_have_text("canceled")
    assert api("GET", made["url"])["status"] == "canceled"


def test_who_is_connected_and_schedules(api, stack, log_in):
    page = log_in("#/connections").page
    expect(page.locator("tbody tr", has_text=stack["CARILLON_USERNAME"]).first).to_be_visible()
    rule = "DTSTART:20300101T000000Z RRULE:FREQ=DAILY"
    page.goto(page.url.split("#")[0] + "#/schedules")
    expect(page.get_by_role("heading", name="Schedules", exact=True)).to_be_visible()
    made = api("POST", "/api/v2/schedules/", {"name": "Browser test", "rrule": rule, "enabled": True})
    try:
        switch = page.locator(f"[data-key='{made['id']}']")
        expect(switch).to_have_attribute("aria-checked", "true")  # it came by itself
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false")
        assert api("GET", f"/api/v2/schedules/{made['id']}/")["enabled"] is False
    finally:
        api("DELETE", f"/api/v2/schedules/{made['id']}/")


def picture(page, name):
    """What docs/how-to/watch-it.md shows: with CARILLON_PICTURES=docs/images it is written there."""
    if folder := os.environ.get("CARILLON_PICTURES"):
        page.mouse.move(0, 0)
        # Playwright writes no WebP, and a PNG is three times as large.
        taken = page.context.new_cdp_session(page).send(
            "Page.captureScreenshot", {"format": "webp", "quality": 75}
        )
        (Path(folder) / f"{name}.webp").write_bytes(base64.b64decode(taken["data"]))


def test_operations_show_that_runworker_is_killed_and_that_it_is_back(api, log_in):
    stack = Stack.from_environment()
    watched = log_in("#/operations", width=1024, height=720)
    watched.expect("404")  # what is not in the log
    page = watched.page
    verdict = page.locator(".verdict")
    row = page.locator("tbody tr", has_text="runworker 0")
    queue = page.locator(".hops div", has=page.get_by_text("On the queue", exact=True)).locator("dd")
    expect(verdict).to_have_class(re.compile("is-flowing"))
    expect(row.locator(".badge")).to_have_text("up")
    for _ in range(40 if "CARILLON_PICTURES" in os.environ else 0):
        api("POST", "/api/v2/notifications/", {"group": "jobs-summary", "payload": {"summary": "ops"}})
    picture(page, "operations")
    runworker, event = stack.container("runworker"), uuid4()
    docker("kill", "--signal", "KILL", runworker)
    try:
        expect(verdict).to_have_text(
            "No runworker delivers: events are accepted, and wait on the queue.", timeout=30_000
        )
        expect(page.locator(".told").first).to_contain_text("nothing is lost")
        said = {
            "group": "jobs-summary",
            "payload": {"group_name": "jobs", "summary": "ops"},
            "id": str(event),
        }
        api("POST", "/api/v2/notifications/", said)
        expect(queue).to_have_text("1", timeout=30_000)
        expect(row.locator(".badge")).to_have_text(re.compile("^gone: silent for"), timeout=30_000)
        picture(page, "operations-stopped")
        page.get_by_label("Position or id").fill(event.hex)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").last).to_contain_text("it is on the queue still", timeout=20_000)
    finally:
        docker("start", runworker)
    expect(verdict).to_have_class(re.compile("is-flowing"), timeout=90_000)
    expect(queue).to_have_text("0", timeout=30_000)
    expect(row.locator(".badge")).to_have_text("up", timeout=30_000)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".story")).to_contain_text("taken off: the row has", timeout=20_000)
    expect(page.locator(".story")).to_contain_text(event.hex)
    expect(page.locator(".story")).to_contain_text("has passed it")
    page.locator(".story").scroll_into_view_if_needed()
    picture(page, "operations-event")


def test_a_real_run_is_seen_to_its_last_line(demo, log_in):
    page = log_in(width=1440, height=900).page
    name = f"Demo {uuid4().hex[:8]}"
    process, _ = demo(name, pace=0)
    page.get_by_role("link", name=name).click()
    # Twenty seconds; on a machine that does ten other things, minutes.
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    expect(page.locator(".job .badge")).to_have_text("successful", timeout=30_000)
    recap = re.search(r"ok=(\d+)\s+changed=(\d+).*rescued=(\d+)", re.sub(r"\x1b\[[\d;]*m", "", printed))
    expect(page.locator(".ln", has_text="PLAY RECAP")).to_have_count(1)
    expect(page.locator(".ln", has_text="ok=")).to_contain_text(f"ok={recap[1]}")
    expect(page.locator(".figure.is-ok")).to_have_text(f"{recap[1]} ok")
    expect(page.locator(".figure.is-changed")).to_have_text(f"{recap[2]} changed")
    expect(page.locator(".figure.is-rescued")).to_have_text(f"{recap[3]} rescued")
    expect(page.locator(".ln").last).to_be_in_viewport()
    # Line for line what Ansible printed, but for what the callback itself said to the terminal.
    shown = page.locator(".ln").evaluate_all("all => all.map((line) => line.textContent.trimEnd())")
    terminal = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", printed).splitlines()]
    missing = [line for line in terminal if line and line not in shown and "carillon" not in line.lower()]
    assert missing == []


def test_the_network_is_cut_and_the_missing_lines_come(stack, api, job, log_in):
    target = urlsplit(stack["CARILLON_URL"])
    cable = Cable((target.hostname, target.port))
    try:
        watched = log_in(f"#/jobs/{job['id']}", port=cable.port)
        watched.expect(CUT)
        page = watched.page
        api("PATCH", job["url"], {"status": "pending"})
        api("PATCH", job["url"], {"status": "running"})
        api("POST", f"{job['url']}events/", lines(1, 50))
        expect(page.locator(".ln")).to_have_count(50)
        page.wait_for_timeout(2000)  # what is still asked for would fail, and the page say that instead
        cable.cut()
        expect(words(page)).to_have_text(re.compile("^Reconnecting"))
        api("POST", f"{job['url']}events/", lines(51, 75))
        expect(words(page)).to_have_text(re.compile(r"\(attempt [2-9]\)$"), timeout=30_000)
        cable.mend()
        page.locator("#link-retry").dispatch_event("click")  # the page may be quicker, and hide it
        expect(words(page)).to_have_text("Resumed: 75 missed events received", timeout=60_000)
        expect(page.locator(".ln")).to_have_count(125)
        api("POST", f"{job['url']}events/", lines(126, 5))
        expect(page.locator(".ln")).to_have_count(130)
        shown = page.locator(".ln").evaluate_all("all => all.map((line) => line.textContent)")
        assert shown == [f"line {number}" for number in range(1, 131)]
    finally:
        cable.close()


def test_five_thousand_live_lines(api, job, log_in):
    page = log_in(f"#/jobs/{job['id']}").page
    expect(page.locator(".job .count")).to_have_text(re.compile("Waiting for output"))
    page.evaluate(
        """() => {
          window.long = [];
          const note = (one) => window.long.push(one.duration);
          new PerformanceObserver((list) => list.getEntries().forEach(note)).observe({ type: "longtask" });
        }"""
    )
    for first in range(1, 5001, 500):
        api("POST", f"{job['url']}events/", lines(first, 500))
    expect(page.locator(".count")).to_have_text("5,000 lines", timeout=60_000)
    expect(page.locator(".ln").last).to_have_text("line 5000")
    expect(page.locator(".ln").last).to_be_in_viewport()
    shown = page.locator(".ln").evaluate_all("all => all.map((line) => line.textContent)")
    assert shown == [f"line {number}" for number in range(1, 5001)]
    long = page.evaluate("window.long")
    print(f"long tasks: {len(long)}, longest {max(long, default=0):.0f} ms")
    assert max(long, default=0) < 1500


def test_screenshot_of_a_real_run(demo, log_in):
    """What the README shows: with CARILLON_SCREENSHOT=<file> the picture is written there."""
    target = os.environ.get("CARILLON_SCREENSHOT")
    if not target:
        pytest.skip("a picture to keep is made on demand: CARILLON_SCREENSHOT=docs/images/page.png")
    theme = os.environ.get("CARILLON_SCREENSHOT_THEME", "light")
    page = log_in(width=1280, height=800, color_scheme=theme).page
    process, job = demo("Cast a carillon", pace=0.2)
    page.locator(f".row-link[href='#/jobs/{job['id']}']").click()
    # While it still runs, where there is something to see: a failure, and how it was mended.
    expect(page.locator(".ln", has_text="TASK [Cast it again]")).to_have_count(1, timeout=300_000)
    expect(words(page)).to_have_text(CONNECTED, timeout=60_000)
    page.mouse.move(0, 0)
    page.screenshot(path=target)
    process.communicate(timeout=300)


def test_the_page_of_the_rest_api_lists_it_under_the_content_security_policy(stack, open_page):
    page = open_page(ignore_https_errors=True).page
    page.goto(f"{stack['CARILLON_URL']}/api/v2/docs/")
    expect(page.locator(".opblock").first).to_be_visible(timeout=30_000)
    expect(page.locator(".opblock").filter(has_text="/api/v2/notifications/")).to_have_count(1)
    page.locator(".opblock").filter(has_text="/api/v2/notifications/").click()
    expect(page.locator(".opblock.is-open .responses-table").first).to_be_visible()
