"""The operations view, against a server that can be told what to say of itself."""

import re
import time

import pytest
from playwright.sync_api import expect

CONNECTED = re.compile("^Connected$")
VERDICT = ".verdict"
LOST = {
    "alert": "CarillonEventsLost",
    "critical": True,
    "summary": "{value} events were lost.",
    "action": "Log.",
}
STOPPED = {
    "state": "stopped",
    "words": "No runworker delivers: events are accepted, and wait on the queue.",
    "conditions": [
        {
            "alert": "CarillonNoActiveRelay",
            "critical": True,
            "summary": "No runworker delivers.",
            "action": "Its log.",
        }
    ],
}


@pytest.fixture
def watched(fake, open_page):
    watched = open_page()
    watched.asked = []
    watched.page.on(
        "request", lambda request: "/operations/" in request.url and watched.asked.append(time.monotonic())
    )
    watched.page.clock.install()
    watched.page.goto(f"{fake.url}/#/operations")
    expect(watched.page.locator(VERDICT)).to_have_text("Events flow.")
    return watched


@pytest.fixture
def page(watched):
    return watched.page


def figure(page, title):
    return page.locator(".hops div", has=page.get_by_text(title, exact=True)).locator("dd")


def row(page, name):
    return page.locator("tbody tr", has_text=name)


def test_it_says_what_flows_and_what_waits(page):
    # Of one answer no rate can be made.
    expect(figure(page, "Relayed")).to_have_text("40/s")
    expect(figure(page, "On the queue")).to_have_text("3")
    expect(figure(page, "Sockets")).to_have_text("1,204")
    expect(row(page, "daphne 0")).to_contain_text("1,048,701")
    expect(row(page, "runworker 0").locator(".badge")).to_have_text("up")
    expect(page.locator(".facts")).to_contain_text("As host web1 saw it at")
    expect(page.get_by_role("button", name="List dead letters")).to_be_hidden()


def test_what_stops_is_said_and_what_to_do_and_it_recovers(fake, page):
    gone = {"name": "runworker 0", "up": False, "late": True, "heard": 14.0, "position": None, "behind": None,
            "sockets": None, "memory_bytes": None}  # fmt: skip
    fake.do("operations", fields={**STOPPED, "processes": [gone]})
    expect(page.locator(VERDICT)).to_have_text(STOPPED["words"])
    expect(page.locator(VERDICT)).to_have_class(re.compile("is-stopped"))
    expect(row(page, "runworker 0").locator(".badge")).to_have_text("gone: silent for 14 s")
    expect(page.locator(".told")).to_contain_text(["No runworker delivers.Its log."])
    # Nobody says these any more.
    expect(figure(page, "Behind the log")).to_have_text("not known")
    expect(figure(page, "Sockets")).to_have_text("not known")
    fake.do("operations", fields={"state": "flowing", "words": "Events flow.", "conditions": []})
    expect(page.locator(VERDICT)).to_have_text("Events flow.")


def test_a_host_that_does_not_know_is_not_quoted(fake, page):
    fake.do(
        "operations", fields={"waiting": dict.fromkeys(("outbox", "queue", "dead_letters", "runworkers"))}
    )
    for title in ("In the outbox", "On the queue", "Dead letters"):
        expect(figure(page, title)).to_have_text("not known")


def test_no_rate_is_made_of_two_hosts(fake, page):
    expect(figure(page, "Emitted")).to_have_text("40/s")
    fake.do("operations", fields={"host": "web2"})
    expect(page.locator(".facts")).to_contain_text("As host web2")
    expect(figure(page, "Emitted")).to_have_text("40/s")  # of web2 alone, twice asked


def test_losses_since_it_was_opened_are_told(fake, page):
    expect(page.locator(".told").first).to_be_empty()  # what was lost before is not called new
    fake.do("operations", fields={"counted": [{**LOST, "total": 5.0}]})
    expect(page.locator(".told").first).to_contain_text("3 events were lost. That is since this view")


def test_a_failed_answer_is_told_and_nothing_old_is_called_true(fake, watched):
    watched.expect("502")
    page = watched.page
    fake.do("fail", path="/api/v2/operations/", times=2)
    expect(page.get_by_role("alert").first).to_contain_text(
        "The view may be out of date: The server cannot answer right now (502)."
    )
    expect(page.locator(VERDICT)).to_have_text("Whether events flow is not known.")
    expect(page.locator(".facts")).to_contain_text(re.compile(r"saw it at .*: old, by \d"))
    expect(page.locator(VERDICT)).to_have_text("Events flow.", timeout=20_000)


def test_a_first_answer_that_fails_claims_nothing(fake, open_page):
    fake.do("fail", path="/api/v2/operations/", times=2)
    watched = open_page()
    watched.expect("502")
    page = watched.page
    page.goto(f"{fake.url}/#/operations")
    expect(page.get_by_role("alert").first).to_contain_text("The view is not loaded")
    expect(page.locator(VERDICT)).to_have_text("Whether events flow is not known.")
    assert set(page.locator(".hops dd").all_text_contents()) == {"not known"}
    expect(page.locator("tbody tr")).to_have_count(0)


def test_a_server_that_hangs_is_not_called_well(fake, page):
    page.route("**/api/v2/operations/", lambda route: None)  # no answer, and no refusal
    page.clock.fast_forward(7000)
    expect(page.locator(VERDICT)).to_have_text("Whether events flow is not known.")


def test_it_asks_seldom_and_a_hidden_page_asks_nothing(watched):
    page = watched.page
    expect(figure(page, "Relayed")).to_have_text("40/s")  # it has asked twice
    first, second = watched.asked[:2]
    assert second - first >= 1.9
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })")
    page.wait_for_load_state("networkidle")
    before = len(watched.asked)
    page.clock.run_for(20_000)
    assert len(watched.asked) == before
    with page.expect_request("**/operations/"):
        page.evaluate("delete document.hidden")


def test_a_view_that_was_left_asks_nothing(watched):
    page = watched.page
    page.get_by_role("link", name="Connections").click()
    expect(page.get_by_role("heading", name="Connections")).to_be_visible()
    page.wait_for_load_state("networkidle")
    before = len(watched.asked)
    page.clock.run_for(20_000)
    assert len(watched.asked) == before


def test_an_event_is_explained_and_what_is_gone_has_words(watched):
    watched.expect("404")
    page = watched.page
    box = page.get_by_label("Position or id")
    box.fill(" 19a8:105 ")
    page.keyboard.press("Enter")
    expect(page.locator(".story dt")).to_have_text(["position", "the queue"])
    expect(page.locator(".story dd")).to_have_text(["19a8:105", "taken off: the row has 19a8:110"])
    box.fill("19a8:1")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("alert").last).to_have_text(
        "no event of the log has that number: too old for the log"
    )
    expect(page.locator(".story")).to_be_empty()


def test_dead_letters_are_listed_when_asked_for(fake, page):
    fake.do("operations", fields={"waiting": {"outbox": 0, "queue": 0, "dead_letters": 1, "runworkers": 1}})
    expect(figure(page, "Dead letters")).to_have_text("1")
    page.get_by_role("button", name="List dead letters").click()
    expect(page.locator(".told").last).to_contain_text("5f0c: no group")
    expect(page.locator(".told").last).to_contain_text("jobs-summary " + "7d" * 16)


def test_who_is_no_admin_has_no_link_and_is_told(fake, open_page):
    fake.do("admin", **{"is": False})
    watched = open_page()
    watched.expect("403")
    page = watched.page
    page.goto(f"{fake.url}/#/jobs")
    expect(page.get_by_role("link", name="Schedules")).to_be_visible()
    expect(page.get_by_role("link", name="Operations")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("o")
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    page.goto(f"{fake.url}/#/operations")
    expect(page.get_by_role("alert").first).to_have_text("Operations are for admins.")
    expect(page.get_by_role("button", name="Ask again")).to_be_hidden()
    expect(page.locator(VERDICT)).to_have_text("Whether events flow is not known.")
