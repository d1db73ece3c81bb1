"""One's own tokens and sessions, in Chromium against the fake server."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_page import CONNECTED, quiet, words

SECRET = "car_" + "x" * 43


def open_account(fake, watched):
    watched.page.goto(f"{fake.url}/#/account")
    expect(words(watched.page)).to_have_text(CONNECTED)
    quiet(watched.page)
    return watched.page


@pytest.fixture
def page(fake, open_page):
    return open_account(fake, open_page())


def tokens(page):
    return page.get_by_role("table", name="Tokens").locator("tbody tr")


def sessions(page):
    return page.get_by_role("table", name="Sessions").locator("tbody tr")


def make(page, description):
    page.get_by_label("Description").fill(description)
    page.get_by_role("button", name="Make a token").click()


def test_the_user_s_name_leads_to_what_is_one_s_own(fake, open_page):
    page = open_page().page
    page.goto(fake.url)
    page.get_by_role("link", name="Account: ringer").click()
    expect(page.get_by_role("heading", name="Account", exact=True)).to_be_focused()
    expect(page).to_have_title("Account · Carillon")
    expect(page.locator("#user")).to_have_attribute("aria-current", "page")
    expect(page.locator(".page .facts")).to_have_text("2 tokens. 3 sessions.")
    expect(tokens(page).first).to_have_text(
        re.compile("^Backup ?read write ?2 days ago ?3 hours ago ?in 30 days ?Revoke$")
    )
    expect(tokens(page).last).to_contain_text("Token 1")
    expect(tokens(page).last).to_contain_text("nevernever")
    expect(sessions(page).first).to_contain_text("Chromethis one1 hour ago192.0.2.7")
    expect(sessions(page).last).to_contain_text("awxkit")


def test_a_token_is_made_and_its_secret_is_shown_once(fake, open_page):
    watched = open_page(permissions=["clipboard-read", "clipboard-write"])
    page = open_account(fake, watched)
    page.get_by_label("Expires").select_option("in 7 days")
    page.get_by_label("write").uncheck()
    with page.expect_request(lambda request: request.method == "POST") as asked:
        make(page, "Nightly report")
    body = asked.value.post_data_json
    assert body["description"] == "Nightly report"
    assert body["scope"] == "read"
    shown = page.get_by_role("dialog", name="Token Nightly report")
    expect(shown.locator("pre")).to_have_text(SECRET)
    expect(shown.get_by_role("button", name="Close")).to_be_focused()
    expect(tokens(page).first).to_contain_text("Nightly reportreadjust nowneverin 7 days")
    shown.get_by_role("button", name="Copy").click()
    expect(shown.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == SECRET
    page.keyboard.press("Escape")
    expect(shown).to_have_count(0)
    expect(page.get_by_role("button", name="Make a token")).to_be_focused()
    expect(page.get_by_label("Description")).to_have_value("")
    assert SECRET not in page.content()


def test_without_a_clipboard_the_text_is_selected(fake, open_page):
    watched = open_page()
    watched.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page = open_account(fake, watched)
    make(page, "x")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text(
        "It is selected: copy it by Ctrl+C."
    )
    assert page.evaluate("getSelection().toString()") == SECRET


def test_what_the_server_says_against_a_token_is_shown(fake, open_page):
    watched = open_page()
    watched.expect("400|502")
    page = open_account(fake, watched)
    page.get_by_label("publish").check()
    make(page, "Forger")
    problem = page.locator("form .problem")
    expect(problem).to_have_text("only who may publish may make a token with the scope publish")
    page.get_by_label("publish").uncheck()
    page.route(
        "**/api/v2/tokens/",
        lambda route: route.fulfill(status=502, body="") if route.request.method == "POST" else None,
    )
    page.get_by_role("button", name="Make a token").click()
    expect(problem).to_have_text("The server cannot answer right now (502).")
    expect(page.get_by_label("Description")).to_have_value("Forger")
    page.unroute("**/api/v2/tokens/")
    page.get_by_role("button", name="Make a token").click()
    expect(page.get_by_role("dialog", name="Token Forger")).to_be_visible()
    expect(problem).to_be_hidden()


def test_a_secret_is_not_shown_to_who_comes_after(fake, page):
    fake.do("hold", path="/api/v2/tokens/", seconds=1)
    with page.expect_response(lambda answer: answer.request.method == "POST" and "tokens" in answer.url):
        make(page, "Mine")
        page.get_by_role("link", name="Account: ringer").focus()
        page.evaluate("document.querySelector('#logout').click()")
        expect(page.get_by_label("Username")).to_be_visible()
    page.wait_for_timeout(300)  # for what the answer would open
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert SECRET not in page.content()


def test_a_token_is_revoked_when_that_was_meant(page):
    revoke = page.get_by_role("button", name="Revoke Backup")
    revoke.focus()
    page.keyboard.press("Enter")
    question = page.get_by_role("dialog", name="Revoke Backup? Whatever uses it is refused at once.")
    expect(question.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(revoke).to_be_focused()
    expect(tokens(page)).to_have_count(2)
    page.keyboard.press("Enter")
    question.get_by_role("button", name="Revoke token").click()
    expect(tokens(page)).to_have_count(1)
    expect(page.get_by_role("heading", name="Account", exact=True)).to_be_focused()


def test_a_token_that_could_not_be_revoked_is_still_there(fake, open_page):
    watched = open_page()
    watched.expect("502")
    page = open_account(fake, watched)
    fake.do("fail", path="/api/v2/tokens/2/", times=1)
    page.get_by_role("button", name="Revoke Backup").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke token").click()
    expect(page.locator("#toast")).to_have_text(
        "Backup was not ended: The server cannot answer right now (502)."
    )
    expect(tokens(page)).to_have_count(2)


def test_sessions_are_ended(page):
    expect(sessions(page).first.get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="End the session with Firefox").click()
    question = page.get_by_role("dialog", name="End the session with Firefox, from 192.0.2.9?")
    question.get_by_role("button", name="End session").click()
    expect(sessions(page)).to_have_count(2)
    page.get_by_role("button", name="End all others").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep them").click()
    expect(sessions(page)).to_have_count(2)
    page.get_by_role("button", name="End all others").click()
    page.get_by_role("dialog").get_by_role("button", name="End them").click()
    expect(page.locator("#toast")).to_have_text("1 session ended")
    expect(sessions(page)).to_have_count(1)
    expect(page.get_by_role("button", name="End all others")).to_be_hidden()
    expect(page.get_by_role("heading", name="Account", exact=True)).to_be_focused()


def test_the_password_is_changed_and_the_page_goes_on(fake, open_page):
    watched = open_page()
    watched.expect("400")
    page = open_account(fake, watched)
    form = page.get_by_role("form", name="New password")
    form.get_by_label("Current").fill("wrong")
    form.get_by_label("New").fill("new bells, all of them")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_have_text("The password was not changed: This is not your password.")
    expect(words(page)).to_have_text(re.compile("^(Connected|Resumed)"))
    expect(form.get_by_label("New")).to_have_value("new bells, all of them")
    form.get_by_label("Current").fill("bells")
    with page.expect_request("**/me/password/") as asked:
        form.get_by_role("button", name="Change password").click()
    assert asked.value.post_data_json == {"current": "bells", "new": "new bells, all of them"}
    expect(page.locator("#toast")).to_have_text(
        "The password is changed, and your other sessions have ended."
    )
    expect(words(page)).to_have_text(re.compile("^(Connected|Resumed)"))
    expect(sessions(page)).to_have_count(1)
    expect(form.get_by_label("New")).to_have_value("")


def test_sessions_that_nobody_can_list_are_not_called_none(fake, open_page):
    watched = open_page()
    watched.expect("404")
    fake.do("sessions", unlisted="Sessions cannot be listed here.")
    page = open_account(fake, watched)
    expect(page.locator(".page .facts")).to_have_text("2 tokens. Sessions cannot be listed here.")
    expect(page.get_by_role("button", name="End all others")).to_be_hidden()


@pytest.mark.parametrize("part", ["tokens", "sessions"])
def test_a_bad_answer_claims_nothing_and_it_is_asked_again(fake, open_page, part):
    fake.do("fail", path=f"/api/v2/{part}/", times=1000)
    watched = open_page()
    watched.expect("502")
    page = watched.page
    page.goto(f"{fake.url}/#/account")
    problem = page.locator(".page > .problem")
    expect(problem).to_contain_text("The account is not loaded: The server cannot answer right now (502).")
    expect(page.locator(".page .facts")).to_be_empty()
    fake.do("fail", path=f"/api/v2/{part}/", times=0)
    expect(tokens(page)).to_have_count(2, timeout=15_000)
    expect(problem).to_be_hidden()


def test_on_a_phone_the_way_out_is_in_the_account(fake, open_page):
    page = open_page(390, 844, is_mobile=True, has_touch=True).page
    page.goto(fake.url)
    expect(words(page)).to_have_text(CONNECTED)
    expect(page.locator("#logout")).to_be_hidden()
    page.get_by_role("link", name="Account").tap()
    page.get_by_role("button", name="Log out here").tap()
    expect(page.get_by_label("Username")).to_be_visible()
