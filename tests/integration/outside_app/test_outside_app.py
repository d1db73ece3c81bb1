"""An app that knows nothing of Carillon, taken over by the documented steps, in a browser.

Minutes, but for the count: `CARILLON_LONG=1`, or `make test-long`.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from playwright.sync_api import Error, expect

from tests.browser.conftest import browser, open_page
from tests.infra.stack import Stack
from tests.integration.outside_app import takeover
from tests.integration.your_app.conftest import ports_of_a_stack

__all__ = ["browser", "open_page"]
NAME = "carillon-test-outside"
SECONDS = 1200
long = pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1")


def test_it_takes_few_lines():
    assert 20 < takeover.changed() <= takeover.MOST


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """The stack of the repository, made by its `make dev`."""
    ports = ports_of_a_stack()
    foreign = ("CARILLON_", "MAKE", "PYTHONPATH")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    site = takeover.take_over(tmp_path_factory.mktemp("team"))

    def make(target):
        return subprocess.run(
            ["make", target],
            cwd=site, env={**keep, **ports, "CARILLON_PROJECT": NAME},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    try:
        up = make("dev")
        assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
        yield Stack.of(site / ".dev", NAME)
    finally:
        make("clean")


def go(page, url):
    """Chromium gives up what it is loading when a container beside the test starts or ends."""
    for _ in range(10):
        try:
            page.goto(url)
            break
        except Error as error:
            if not any(words in str(error) for words in ("ERR_NETWORK_CHANGED", "interrupted by another")):
                raise


def log_in(page, stack, url):
    """Until no login page is shown there."""
    go(page, url)
    for _ in range(10):
        if not page.get_by_label("Password").count():
            break
        page.get_by_label("Username").fill(stack.values["CARILLON_USERNAME"])
        page.get_by_label("Password").fill(stack.values["CARILLON_PASSWORD"])
        page.get_by_role("button", name="Log in").click()
        go(page, url)


@pytest.fixture
def enter(stack, open_page):
    """enter(path) is a page of somebody who has logged in there, once its own script's socket is open."""

    def enter(path):
        page = open_page(ignore_https_errors=True).page
        log_in(page, stack, stack.values["CARILLON_URL"] + path)
        expect(page.locator("body[data-open]")).to_be_attached()
        return page

    return enter


@long
def test_a_chat_of_two_browsers_a_bot_of_celery_s_and_the_history(enter):
    ann, ben = enter("/chat/tower/"), enter("/chat/tower/")
    assert ann.locator("#log").evaluate("e => getComputedStyle(e).borderTopColor") == "rgb(1, 2, 3)"
    ann.locator("#chat-message-input").fill("/ring")
    ann.get_by_role("button", name="Send").click()
    for page in (ann, ben):
        expect(page.locator("#log")).to_contain_text("admin: /ring")
        expect(page.locator("#log")).to_contain_text("bot: you said /ring")
    ben.reload()
    expect(ben.locator("#log")).to_contain_text("admin: /ring")


@long
def test_what_synchronous_code_sends_and_the_session_that_a_socket_wrote(stack, enter):
    enter("/chat/belfry/")
    page = enter("/")
    expect(page.locator("#last")).to_have_text("")
    room = page.context.new_page()
    go(room, f"{stack.values['CARILLON_URL']}/chat/belfry/")
    expect(room.locator("body[data-open]")).to_be_attached()
    page.reload()
    expect(page.locator("#last")).to_have_text("belfry")
    expect(page.locator("body[data-open]")).to_be_attached()
    page.evaluate(
        """async () => {
            const token = document.cookie.match(/csrftoken=([^;]+)/)?.[1];
            const body = new URLSearchParams({text: "the bells are up", csrfmiddlewaretoken: token});
            await fetch("/notify/", {method: "POST", body});
        }"""
    )
    expect(page.locator("#notifications")).to_contain_text("the bells are up")


@long
def test_the_admin(stack, open_page):
    page = open_page(ignore_https_errors=True).page
    log_in(page, stack, f"{stack.values['CARILLON_URL']}/admin/chat/message/")
    expect(page.get_by_role("heading", name="Select message to change")).to_be_visible()
    assert page.locator("#header").evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"
