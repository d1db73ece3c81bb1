"""What is found in a job's output, left out of it and folded away, in Chromium against the fake server."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.audit import CUT, NAMELESS, poor
from tests.browser.test_page import LONG, SIZES, event, long_job, quiet, shown  # noqa: F401

PLAYS = (("web", 2), ("db", 2))
HOSTS = ("web1", "web2", "db1")


def story():
    """Two plays of two tasks on three hosts; web2 fails the last one. Each play takes 30 s, each task 15."""
    events = []
    line = 0

    def add(name, text, second, **fields):
        nonlocal line
        count = text.count("\n") + 1
        events.append(
            event(
                len(events) + 1,
                text,
                event=name,
                start_line=line,
                end_line=line + count,
                created=f"2026-01-01T00:0{second // 60}:{second % 60:02}Z",
                **fields,
            )
        )
        line += count

    for number, (play, tasks) in enumerate(PLAYS):
        begun, about = 30 * number, {"play": play, "event_data": {"play_uuid": play}}
        add("playbook_on_play_start", f"\nPLAY [{play}] ***", begun, uuid=play, **about)
        for task in range(1, tasks + 1):
            name, uuid = f"task {task} of {play}", f"{play}-{task}"
            second = begun + 15 * (task - 1)
            add(
                "playbook_on_task_start", f"\nTASK [{name}] ***", second,
                uuid=uuid, parent_uuid=play, task=name, **about,
            )  # fmt: skip
            for host in HOSTS:
                bad = (host, uuid) == ("web2", "db-2")
                add(
                    "runner_on_failed" if bad else "runner_on_ok",
                    f"\x1b[0;32m{'fatal' if bad else 'ok'}:\x1b[0m [{host}]", second + 5,
                    parent_uuid=uuid, failed=bad, task=name,
                    event_data={"host": host, "play_uuid": play, "task_uuid": uuid},
                )  # fmt: skip
    add(
        "playbook_on_stats",
        "\nPLAY RECAP ***",
        60,
        uuid="recap",
        event_data={"play_uuid": "db", "failures": {"web2": 1}},
    )
    return events


@pytest.fixture
def watched(fake, open_page):
    """Job 1 with the story, open."""
    fake.do("events", job=1, events=story())
    watched = open_page()
    watched.page.goto(f"{fake.url}/#/jobs/1")
    expect(watched.page.locator(".ln").last).to_have_text("PLAY RECAP ***")
    quiet(watched.page)
    return watched


@pytest.fixture
def page(watched):
    return watched.page


def lines(page):
    """Those that are not empty. What is asked for comes a moment later: `expect` waits for it."""
    return page.locator(".ln").filter(has_text=re.compile(r"\S"))


def texts(page):
    return lines(page).all_text_contents()


def shows(page, wanted):
    """These lines to the letter: `expect` alone does not see spaces."""
    expect(lines(page)).to_have_text(wanted)
    assert texts(page) == wanted


def search(page, text):
    page.locator(".output").focus()
    page.keyboard.press("/")
    expect(page.get_by_label("Search the output")).to_be_focused()
    page.keyboard.type(text)


def at(page):
    return page.locator(".ln.here").get_attribute("data-n")


def test_a_word_is_found_in_lines_that_are_not_loaded_and_the_address_keeps_it(long_job, open_page):  # noqa: F811
    page = open_page().page
    page.goto(f"{long_job.url}/#/jobs/1")
    expect(page.locator(".ln").last).to_have_text(f"line {LONG}")
    search(page, "LINE 123")
    found = page.locator(".found")
    expect(found).to_have_text("1 of 111+")  # 123, 1230 to 1239, 12300 to 12399; the job still runs
    expect(page.locator(".ln.here")).to_have_text("line 123")
    expect(page.locator(".ln.here")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(found).to_have_text("2 of 111+")
    expect(page.locator(".ln.here")).to_have_text("line 1230")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    expect(found).to_have_text("111 of 111+")
    expect(page.locator(".ln.here")).to_have_text("line 12399")
    page.get_by_role("button", name="Next hit").click()
    expect(page.locator(".ln.here")).to_have_text("line 123")
    quiet(page)
    numbers = shown(page)
    assert numbers[0] < 123 < numbers[-1]
    assert page.evaluate("CSS.highlights.get('found').size") == 1
    expect(page).to_have_url(re.compile(r"\?find=LINE(\+|%20)123$"))
    page.reload()
    expect(page.locator(".ln.here")).to_have_text("line 123")
    expect(page.get_by_label("Search the output")).to_have_value("LINE 123")
    page.get_by_role("button", name="Find").click()
    expect(page.locator(".hit")).to_have_count(0)
    expect(page).to_have_url(re.compile("#/jobs/1$"))


def in_one_turn(page, script):
    """No pause of the machine comes between a word that is typed and what is done then."""
    return page.evaluate(
        """() => {
            const label = (text) => document.querySelector(`[aria-label="${text}"]`);
            const box = label("Search the output");
            const type = (text) => {
                box.value = text;
                box.dispatchEvent(new Event("input", { bubbles: true }));
            };
            const next = () => label("Next hit").click();
            const found = () => document.querySelector(".found").textContent;
        """
        + f"{script} }}"
    )


def test_what_was_found_of_a_word_is_not_said_of_the_next_one(fake, page):
    search(page, "nowhere")
    expect(page.locator(".found")).to_have_text("Not found")
    assert in_one_turn(page, "type('db1'); return found()") == ""
    expect(page.locator(".found")).to_have_text("1 of 4+")
    fake.do("hold", path="/api/v2/jobs/1/hits/", seconds=1)
    with page.expect_response("**/hits/?search=no*"):
        with page.expect_request("**/hits/?search=no*"):
            in_one_turn(page, "type('no')")
        # The word grows all the time: it is not searched for before its beginning is answered.
        in_one_turn(page, "let times = 0; setInterval(() => times++ < 20 && type('nowhere'), 100)")
    page.wait_for_timeout(300)
    expect(page.locator(".found")).to_have_text("", timeout=1)
    expect(page.locator(".found")).to_have_text("Not found")


def test_a_word_is_not_searched_for_by_the_first_reading_while_it_is_typed(long_job, open_page):  # noqa: F811
    page = open_page().page
    long_job.do("hold", path="/api/v2/jobs/1/summary/", seconds=2)
    page.goto(f"{long_job.url}/#/jobs/1")
    expect(page.locator(".ln").last).to_have_text(f"line {LONG}")
    asked = []
    page.on("request", lambda request: "/hits/" in request.url and asked.append(request.url))
    with page.expect_response("**/summary/**"):
        search(page, "LINE")
        in_one_turn(page, "let times = 0; setInterval(() => times++ < 40 && type('LINE 123'), 100)")
        asked.clear()  # a pause of the machine between two letters
    page.wait_for_timeout(700)
    assert asked == []
    expect(page.locator(".found")).to_have_text("1 of 111+")
    assert len(asked) == 1


def test_next_searches_for_a_word_that_was_just_typed(page):
    search(page, "[web2]")
    expect(page.locator(".found")).to_have_text("1 of 4+")
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text("2 of 4+")
    in_one_turn(page, "type('[web'); next()")
    expect(page.locator(".found")).to_have_text("1 of 9+")
    # A word that was changed and changed back is the same search: it does not begin anew a moment later.
    in_one_turn(page, "type('[we'); type('[web'); next()")
    page.wait_for_timeout(1000)
    expect(page.locator(".found")).to_have_text("2 of 9+")


def test_what_is_not_there_is_not_found_and_what_comes_is_found_too(fake, page):
    search(page, "later")
    expect(page.locator(".found")).to_have_text("Not found")
    count = len(story())
    fake.do("events", job=1, events=[event(count + 1, "sooner or later"), event(count + 2, "much later")])
    expect(page.locator(".ln.hit")).to_have_count(2)
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text("1 of 2+")
    expect(page.locator(".ln.here")).to_have_text("sooner or later")
    fake.do("events", job=1, events=[event(count + 3, "latest")])
    fake.do("events", job=1, events=[event(count + 4, "too late, later")])
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text("3 of 3+")


def test_more_hits_than_one_answer_has(long_job, open_page):  # noqa: F811
    page = open_page().page
    page.goto(f"{long_job.url}/#/jobs/1?find=line")
    found = page.locator(".found")
    expect(found).to_have_text("1 of 45,000+")
    page.get_by_role("button", name="Previous hit").click()
    expect(found).to_have_text("45,000 of 45,000+")
    expect(page.locator(".ln.here")).to_have_text("line 45000")
    page.get_by_role("button", name="Next hit").click()
    expect(page.locator(".ln.here")).to_have_text("line 1")


def test_a_colour_within_what_is_searched_for(page):
    search(page, "ok: [db1]")
    expect(page.locator(".found")).to_have_text("1 of 4+")
    expect(page.locator(".ln.here")).to_have_text("ok: [db1]")


def test_only_what_failed_and_only_one_host(fake, page):
    page.get_by_role("button", name="Find").click()
    page.get_by_label("Show").select_option("Failed")
    expect(page.locator(".ln")).to_have_text(["fatal: [web2]"])
    assert page.locator(".ln").get_attribute("data-n") == "23"
    expect(page.locator(".note")).to_have_count(0)  # nothing was lost, it is left out
    expect(page.locator(".job .count")).to_have_text("26 lines")
    expect(page).to_have_url(re.compile(r"\?result=failed$"))
    page.get_by_label("Show").select_option("All")
    page.get_by_label("Of host").fill("db1")
    page.keyboard.press("Enter")
    db1 = [
        text.split("\n")[-1] if text.startswith("\n") else "ok: [db1]"
        for text in (one["stdout"] for one in story())
        if text.startswith("\n") or "db1" in text
    ]
    expect(page.locator(".ln", has_text="db1")).to_have_count(sum("db1" in text for text in db1))
    shows(page, db1)
    search(page, "ok")
    expect(page.locator(".found")).to_have_text("1 of 4+")
    # What comes meanwhile is let through, or not; also after a reload.
    count = len(story())
    new = [
        event(
            count + at,
            f"ok: {word}",
            event="runner_on_ok",
            event_data={"host": host},
            start_line=25 + at,
            end_line=26 + at,
        )
        for at, (word, host) in enumerate([("[web1]", "web1"), ("new [db1]", "db1")], 1)
    ]
    fake.do("events", job=1, events=new)
    last = page.locator(".ln").last
    expect(last).to_have_text("ok: new [db1]")
    page.reload()
    expect(last).to_have_text("ok: new [db1]")
    assert last.get_attribute("data-n") == "28"
    expect(page.locator(".ln", has_text="web1")).to_have_count(0)
    # A line's number leads to it among all the others.
    last.click(position={"x": 20, "y": 10})
    expect(page.locator(".ln", has_text="web1")).to_have_count(5)
    expect(page.locator(".ln.here")).to_have_text("ok: new [db1]")
    expect(page.get_by_label("Of host")).to_have_value("")


def test_a_filter_that_lets_nothing_through_is_no_loss(fake, page):
    page.goto(f"{fake.url}/#/jobs/1?result=skipped")
    expect(page.locator(".ln")).to_have_count(0)
    quiet(page)
    expect(page.locator(".dropped")).to_be_hidden()
    expect(page.locator(".job .count")).to_have_text("26 lines")
    page.keyboard.press("n")
    expect(page.locator(".ln.here")).to_have_text("fatal: [web2]")
    expect(page.get_by_label("Show")).to_have_value("")


def test_a_long_output_is_filtered_and_scrolled(long_job, open_page):  # noqa: F811
    page = open_page().page
    page.goto(f"{long_job.url}/#/jobs/1?result=ok")
    expect(page.locator(".ln").last).to_have_text(f"line {LONG}")
    for count in (200, 400, 600):
        page.locator(".output").evaluate("output => output.scrollTop = 0")
        page.locator(".ln").nth(count).wait_for(state="attached")
    shown(page)
    page.get_by_label("Show").select_option("Failed")
    expect(page.locator(".ln.failed")).to_have_count(2)
    expect(page.locator(".ln")).to_have_count(2)


def test_plays_and_tasks_fold_and_say_how_long_they_took(page):
    play = page.get_by_role("button", name="Play, web")
    task = page.get_by_role("button", name="Task, task 2 of web")
    expect(task).to_have_attribute("data-took", "15 s")
    expect(play).to_have_attribute("data-took", "30 s")
    expect(page.get_by_role("button", name="Play, db, 30 s")).to_be_visible()
    expect(page.locator(".fold:visible")).to_have_count(6)  # the recap has nothing below it
    everything = texts(page)
    task.focus()
    page.keyboard.press("Enter")
    expect(task).to_have_attribute("aria-expanded", "false")
    at_task = everything.index("TASK [task 2 of web] ***")
    shows(page, everything[: at_task + 1] + everything[at_task + 4 :])
    play.click()
    at_db = everything.index("PLAY [db] ***")
    shows(page, [everything[0], *everything[at_db:]])
    expect(page.get_by_role("button", name="Play, web, 30 s")).to_be_visible()  # also with nothing below
    play.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ln", has_text="task 2 of web")).to_have_count(1)
    quiet(page)
    shows(page, everything[: at_task + 1] + everything[at_task + 4 :])
    expect(play).to_be_focused()
    expect(play).to_have_attribute("aria-expanded", "true")
    # What is gone to is not hidden.
    search(page, "[web2]")
    expect(page.locator(".found")).to_have_text("1 of 4+")
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text("2 of 4+")
    quiet(page)
    shows(page, everything)


def test_the_one_thing_that_is_folded_unfolds(fake, watched, page):
    watched.expect("502")
    everything = texts(page)
    task = page.get_by_role("button", name="Task, task 2 of web")
    task.click()
    expect(lines(page)).to_have_count(len(everything) - 3)
    task.click()
    expect(task).to_have_attribute("aria-expanded", "true")
    shows(page, everything)
    # Where that cannot be asked for, it stays folded, and the page says so.
    task.click()
    expect(lines(page)).to_have_count(len(everything) - 3)
    fake.do("fail", path="/api/v2/jobs/1/events/", times=1)
    task.click()
    expect(page.locator("#toast")).to_contain_text("502")
    expect(task).to_have_attribute("aria-expanded", "false")
    task.click()
    shows(page, everything)


def test_what_the_link_missed_while_a_search_is_asked_for_is_read(fake, page):
    fake.do("hold", path="/api/v2/jobs/1/hits/", seconds=4)
    page.evaluate("location.hash = '#/'")
    page.evaluate("location.hash = '#/jobs/1?find=%5Bweb2%5D'")
    expect(page.locator(".ln").last).to_have_text("PLAY RECAP ***")
    missed = event(len(story()) + 1, "missed")
    fake.do("events", job=1, events=[missed], live=False)
    fake.do("close", code=4408)
    expect(page.locator(".ln").last).to_have_text("missed")
    expect(page.locator(".found")).to_have_text("1 of 4+")


def test_a_jump_that_fails_is_said_and_breaks_nothing(fake, watched, page):
    watched.expect("502")
    page.get_by_role("button", name="Task, task 2 of web").click()
    fake.do("fail", path="/api/v2/jobs/1/events/", times=1)
    search(page, "[web2]")
    expect(page.locator("#toast")).to_contain_text("502")
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text("2 of 4+")
    fake.do("status", job=1, status="successful")
    expect(page.locator(".job .badge")).to_have_text("successful")


@pytest.mark.parametrize("then", ["the next hit", "a line"])
def test_a_hit_or_a_line_is_unfolded_while_an_earlier_one_is_still_fetched(page, then):
    everything = texts(page)
    page.get_by_role("button", name="Task, task 2 of web").click()
    expect(lines(page)).to_have_count(len(everything) - 3)
    page.evaluate(
        """() => {
          const ask = window.fetch;
          const held = new Promise((done) => { window.release = done; });
          window.fetch = async (...all) => {
            if (/counter__gte|end_line__gte/.test(all[0].url ?? all[0])) await held;
            return ask(...all);
          };
        }"""
    )
    search(page, "[web2]")
    expect(page.locator(".found")).to_have_text("1 of 4+")
    if then == "the next hit":
        page.keyboard.press("Enter")
        expect(page.locator(".found")).to_have_text("2 of 4+")
    else:
        page.evaluate("location.hash = '#/jobs/1?find=%5Bweb2%5D&line=12'")
    page.evaluate("() => window.release()")
    shows(page, everything)


def test_what_comes_under_a_folded_heading_stays_away(fake, page):
    page.get_by_role("button", name="Play, db").click()
    count = len(story())
    about = {"event_data": {"play_uuid": "db", "host": "web9"}, "event": "runner_on_ok"}
    fake.do("events", job=1, events=[event(count + 1, "ok: [web9]", **about), event(count + 2, "the end")])
    expect(page.locator(".ln").last).to_have_text("the end")
    expect(page.locator(".ln", has_text="web9")).to_have_count(0)


def test_the_outline(page):
    page.get_by_role("button", name="Find").click()
    page.get_by_label("Show").select_option("Plays and tasks")
    expect(page.locator(".ln.failed")).to_have_count(0)
    expect(lines(page)).to_have_text(
        [one["stdout"].strip() for one in story() if one["event"].startswith("playbook")]
    )
    expect(page.get_by_role("button", name="Task, task 1 of db, 15 s")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_found_can_be_read_and_nothing_is_cut_off(fake, open_page, theme):
    fake.do("events", job=1, events=story())
    page = open_page(color_scheme=theme, has_touch=True).page
    page.goto(f"{fake.url}/#/jobs/1?find=ok")
    expect(page.locator(".found")).to_have_text("1 of 11+")
    expect(page.locator(".ln.here")).to_be_visible()
    quiet(page)
    assert page.evaluate(NAMELESS) == []
    assert poor(page) == []
    wrong = []
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        # What is in the output is scrolled from under the button that is over it.
        wrong += [
            f"{width} x {height}: {what}: {where}" for what, where in page.evaluate(CUT) if ", " not in where
        ]
    assert wrong == [], "\n".join(wrong)


def test_a_search_that_must_wait_is_asked_again(fake, open_page):
    """The server makes few at a time for one user: those of words that were typed before are among them."""
    fake.do("events", job=1, events=story())
    watched = open_page()
    watched.expect("429")
    page, refused = watched.page, []

    def answer(route):
        if len(refused) < 2:
            refused.append(route.request.url)
            route.fulfill(status=429, json={"detail": "2 searches of yours are under way."})
        else:
            route.continue_()

    page.route("**/hits/**", answer)
    page.goto(f"{fake.url}/#/jobs/1?find=fatal")
    expect(page.locator(".found")).to_have_text("1 of 1+")
    assert len(refused) == 2
