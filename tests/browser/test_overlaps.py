"""Two things at once on the page: an answer that is late, a second wish meanwhile."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_finding import lines, story
from tests.browser.test_page import event, quiet, words


@pytest.fixture
def page(open_page):
    watched = open_page()
    watched.expect("502")
    return watched.page


@pytest.fixture
def job(fake, page):
    """Job 1 with the story, open."""
    fake.do("events", job=1, events=story())
    page.goto(f"{fake.url}/#/jobs/1")
    expect(page.locator(".ln").last).to_have_text("PLAY RECAP ***")
    quiet(page)
    return page


@pytest.fixture
def long(fake, page):
    """Job 1 with 5 000 lines, of which one is a failure."""
    fake.do("long", job=1, count=5000, broken=[40])
    page.goto(f"{fake.url}/#/jobs/1")
    expect(page.locator(".ln").last).to_have_text("line 5000")
    quiet(page)
    return page


def many(fake, count, status):
    for number in range(10, 10 + count):
        fake.do("job", quiet=True, fields={"number": number, "name": f"Run {number}", "status": status})


def ids(page):
    return [int(text[1:]) for text in page.locator(".row .id").all_text_contents()]


def follow(page):
    return page.get_by_role("button", name="Follow", exact=True)


def failed_alone(page):
    page.get_by_role("button", name="Find").click()
    page.get_by_label("Show").select_option("Failed")
    expect(page.locator(".ln")).to_have_count(1)
    quiet(page)


def to_its_line(page):
    """A click on the number of a line that a filter let through."""
    page.locator(".ln").click(position={"x": 20, "y": 10})
    expect(page.get_by_label("Show")).to_have_value("")


# The list -----------------------------------------------------------------------------------------


def test_older_jobs_that_change_come_by_show_more_and_leave_no_hole(fake, page):
    many(fake, 100, "pending")
    page.goto(fake.url)
    expect(page.locator(".row")).to_have_count(50)
    newest = ids(page)
    with page.expect_response("**/api/v2/jobs/12/"):
        fake.do("status", jobs=[10, 11, 12], status="running")
    quiet(page)
    assert ids(page) == newest
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".row")).to_have_count(100)
    quiet(page)
    assert ids(page) == list(range(109, 9, -1))
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_a_list_whose_rows_all_leave_shows_those_that_follow(fake, page):
    many(fake, 70, "running")
    page.goto(fake.url)
    page.get_by_role("button", name="Active").click()
    expect(page.locator(".row")).to_have_count(50)
    quiet(page)
    newest = ids(page)
    fake.do("status", jobs=newest, status="successful")
    expect(page.locator(".row")).to_have_count(22)
    assert not set(ids(page)) & set(newest)


# The link -----------------------------------------------------------------------------------------


def test_a_link_that_is_lost_again_while_views_load_has_resumed_nothing(fake, page):
    page.add_init_script("Math.random = () => 0.999")  # long pauses
    page.goto(fake.url)
    expect(words(page)).to_have_text("Connected")
    quiet(page)
    fake.do("hold", path="/api/v2/jobs/", seconds=2)
    with page.expect_response("**/api/v2/jobs/?*"):
        with page.expect_request("**/api/v2/jobs/?*"):
            fake.do("close", code=4408)
        fake.do("refuse", code=4408, error="busy")
        fake.do("close", code=4408)
    for _ in range(5):
        page.wait_for_timeout(100)
        assert "Resumed" not in words(page).text_content()
        assert page.locator("#link").get_attribute("data-state") == "reconnecting"
    fake.do("refuse", code=None)
    page.get_by_role("button", name="Try now").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#link")).not_to_have_attribute("data-state", "reconnecting")
    # The button is gone: what had the focus must not take it along.
    expect(page.locator("#link")).to_be_focused()


# A job --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_an_older_answer_does_not_undo_what_was_told(fake, job, fails):
    fake.do("hold", path="/api/v2/jobs/1/", seconds=2)
    with job.expect_request("**/api/v2/jobs/1/"):
        fake.do("status", job=1, status="running")
    fake.do("status", job=1, status="successful")
    expect(job.locator(".job .badge")).to_have_text("successful")
    if fails:
        fake.do("fail", path="/api/v2/jobs/1/", times=1000)
    job.evaluate("""() => {
        window.states = new Set();
        const look = () => window.states.add(document.querySelector(".job .badge").textContent);
        const options = { childList: true, subtree: true };
        new MutationObserver(look).observe(document.querySelector(".job"), options);
    }""")
    job.wait_for_timeout(3000)
    assert job.evaluate("[...window.states].filter((state) => state !== 'successful')") == []
    fake.do("fail", path="/api/v2/jobs/1/", times=0)


def test_who_may_hear_a_job_no_longer_is_told(fake, job):
    """Also where it was deleted: the page asks, and says what the answer is."""
    fake.do("fail", path="/api/v2/jobs/1/", times=1)
    with job.expect_response("**/api/v2/jobs/1/"):
        fake.do(
            "frame",
            frame={
                "groups_current": ["jobs-status_changed"],
                "groups_left": ["job_events-1"],
                "groups_joined": [],
            },
        )
    expect(job.locator(".job .problem").first).to_be_visible()


# Its output ---------------------------------------------------------------------------------------


def test_what_was_found_with_a_filter_is_not_said_without(job):
    failed_alone(job)
    job.get_by_label("Search the output").fill("[web")
    expect(job.locator(".found")).to_have_text("1 of 1+")
    to_its_line(job)
    expect(job.locator(".ln.hit")).to_have_count(9)
    quiet(job)
    expect(job.locator(".found")).to_have_text("")


def test_an_answer_for_another_filter_is_none(fake, job):
    job.get_by_role("button", name="Find").click()
    fake.do("hold", path="/api/v2/jobs/1/hits/", seconds=1)
    with job.expect_request("**/hits/*"):
        job.get_by_label("Search the output").fill("[web")
    fake.do("hold", path="/api/v2/jobs/1/events/", of="result", seconds=2)
    job.get_by_label("Show").select_option("Failed")
    expect(job.locator(".found")).to_have_text("1 of 1+")


@pytest.mark.parametrize("way", ["line", "failure"])
def test_a_filter_that_went_for_what_did_not_come_leaves_no_empty_output(fake, job, way):
    failed_alone(job)
    everything = len(story())
    if way == "failure":
        job.get_by_label("Show").select_option("Ok")
        expect(lines(job)).to_have_count(11)
        quiet(job)
        fake.do("fail", path="/api/v2/jobs/1/events/", of="counter__gte", times=1)
        job.get_by_role("button", name="Failure").click()
    else:
        fake.do("fail", path="/api/v2/jobs/1/events/", times=1)
        to_its_line(job)
    expect(job.locator(".ln", has_text="PLAY RECAP")).to_have_count(1)
    fake.do("events", job=1, events=[event(everything + 1, "a new line")])
    expect(job.locator(".ln", has_text="a new line")).to_have_count(1)


def test_follow_takes_back_the_line_that_the_page_was_opened_at(fake, page):
    fake.do("long", job=1, count=5000, broken=[40])
    page.goto(fake.url)
    quiet(page)
    fake.do("hold", path="/api/v2/jobs/1/events/", seconds=2)
    with page.expect_request("**/jobs/1/events/*"):
        page.evaluate("location.hash = '#/jobs/1?line=123'")
    follow(page).click()
    expect(page.locator(".ln").last).to_have_text("line 5000")
    quiet(page)
    expect(follow(page)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".ln.here")).to_have_count(0)


@pytest.mark.parametrize("change", ["f", "wheel"])
def test_who_no_longer_wants_the_end_is_not_taken_there(fake, long, change):
    long.keyboard.press("n")
    expect(long.locator(".ln.here")).to_have_text("line 40")
    quiet(long)
    fake.do("hold", path="/api/v2/jobs/1/events/", of="order_by", seconds=1.5)
    with long.expect_response(re.compile(r"/jobs/1/events/.*order_by=-counter")):
        long.keyboard.press("f")
        expect(follow(long)).to_have_attribute("aria-pressed", "true")
        if change == "f":
            long.keyboard.press("f")
        else:
            long.locator(".output").hover()
            long.mouse.wheel(0, -60)
        expect(follow(long)).to_have_attribute("aria-pressed", "false")
    quiet(long)
    expect(long.locator(".ln", has_text=re.compile("^line 40$"))).to_have_count(1)
    expect(follow(long)).to_have_attribute("aria-pressed", "false")
    long.keyboard.press("f")
    expect(long.locator(".ln").last).to_have_text("line 5000")


def test_an_end_that_is_asked_for_twice_may_still_be_called_off(fake, long):
    long.keyboard.press("n")
    expect(long.locator(".ln.here")).to_have_text("line 40")
    quiet(long)
    end = re.compile(r"/jobs/1/events/.*order_by=-counter")
    fake.do("hold", path="/api/v2/jobs/1/events/", of="order_by", seconds=1)
    with long.expect_request(end):
        long.keyboard.press("f")
    with long.expect_response(end):
        long.keyboard.press("f")
        long.keyboard.press("f")
        # The second question is held back, too, when the first one is answered.
        fake.do("hold", path="/api/v2/jobs/1/events/", of="order_by", seconds=2)
    with long.expect_response(end):
        long.wait_for_timeout(300)
        long.keyboard.press("f")
    quiet(long)
    expect(long.locator(".ln", has_text=re.compile("^line 40$"))).to_have_count(1)
    expect(follow(long)).to_have_attribute("aria-pressed", "false")


def test_a_button_that_goes_does_not_take_the_focus_along(long):
    long.keyboard.press("n")
    long.get_by_role("button", name="Follow again").focus()
    long.keyboard.press("Enter")
    expect(follow(long)).to_be_focused()
