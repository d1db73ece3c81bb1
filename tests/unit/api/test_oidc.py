"""Logins by an OpenID provider: there and back, and every way in which somebody is not let in."""

from __future__ import annotations

import json
import logging
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.contrib.auth import get_user_model
from django.test import Client
from oidc_provider_mock import run_server_in_thread

from carillon import logs
from carillon.accounts import fetch, identities, kept, oidc
from carillon.accounts.models import ExternalIdentity, LoginBudget, Team, UserSession
from tests.unit.support.issuer import LOGOUT, Provider, drip, endless, never, reply

pytestmark = pytest.mark.django_db

START, BACK = "/api/login/oidc/", "/api/login/oidc/callback/"
SESSION, UNDER_WAY = "__Host-awx_sessionid", "__Secure-awx_sessionid_oidc"


def configure(settings, issuer: str, **more) -> None:
    said = {"OIDC_ISSUER": issuer, "OIDC_CLIENT_ID": "carillon-page", "OIDC_CLIENT_SECRET": "s3cr:t/+"}
    settings.CARILLON = {**settings.CARILLON, **said, **more}


@pytest.fixture
def provider(settings):
    provider = Provider()
    configure(settings, provider.url)
    yield provider
    provider.stop()


@pytest.fixture
def browser():
    return Client()


def begin(browser: Client, **query: str) -> str:
    answer = browser.get(START, query, secure=True)
    assert answer.status_code == 302, answer.content
    return answer["Location"]


def come_back(browser: Client, query: dict[str, str]):
    return browser.get(BACK, query, secure=True)


def log_in(browser: Client, provider: Provider, **query: str):
    return come_back(browser, provider.authorize(begin(browser, **query)))


def is_refused(answer, why: str, status: int = 403) -> None:
    assert answer.status_code == status, answer.content
    page = answer.content.decode()
    assert why in page
    assert '<a href="/">Log in</a>' in page
    assert SESSION not in answer.cookies
    assert "no-store" in answer["Cache-Control"]


# The way in ------------------------------------------------------------------------------------------------


def test_a_login(provider, browser):
    answer = log_in(browser, provider, next="/#/jobs/7")
    assert (answer.status_code, answer["Location"]) == (302, "/#/jobs/7")
    (me,) = browser.get("/api/v2/me/").json()["results"]
    assert {**me, "id": 0} == {"id": 0, "username": "ilse", "is_superuser": False, "teams": []}
    cookie = answer.cookies[SESSION]
    assert cookie["httponly"]
    assert cookie["secure"]
    assert answer.cookies[UNDER_WAY].value == "", "it is good for once"
    assert UserSession.objects.get().user_id == me["id"]
    user = get_user_model().objects.get()
    assert not user.has_usable_password()
    assert (ExternalIdentity.objects.get().issuer, ExternalIdentity.objects.get().subject) == (
        provider.url,
        "subject-1",
    )


def test_what_the_provider_is_asked(provider, browser):
    location = begin(browser)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
    cookie = browser.cookies[UNDER_WAY]
    assert (cookie["httponly"], cookie["secure"], cookie["samesite"], cookie["path"]) == (
        True,
        True,
        "Lax",
        START,
    )
    assert asked["client_id"] == "carillon-page"
    assert asked["redirect_uri"] == "https://testserver/api/login/oidc/callback/"
    assert asked["scope"] == "openid profile"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert come_back(browser, provider.authorize(location)).status_code == 302
    (form,) = provider.forms
    assert form["grant_type"] == "authorization_code"
    assert form["authorization"].startswith("Basic ")
    assert "client_secret" not in form
    again = parse_qs(urlsplit(begin(browser)).query)
    assert again["state"] != [asked["state"]]


@pytest.mark.parametrize(
    ("secret", "methods", "sent"),
    [
        ("s3cr:t/+", ["client_secret_post"], {"client_id", "client_secret"}),
        (None, ["client_secret_basic"], {"client_id"}),
    ],
)
def test_how_the_client_is_known(provider, browser, settings, secret, methods, sent):
    configure(settings, provider.url, OIDC_CLIENT_SECRET=secret)
    provider.metadata = {"token_endpoint_auth_methods_supported": methods}
    assert log_in(browser, provider).status_code == 302
    (form,) = provider.forms
    assert sent <= form.keys()
    assert form["authorization"] == ""
    assert form.get("client_secret") == secret


def test_the_second_login_is_the_same_user(provider):
    for name in ("ilse", "married"):
        provider.says = {"preferred_username": name}
        assert log_in(Client(), provider).status_code == 302
    assert get_user_model().objects.get().username == "ilse"


@pytest.mark.parametrize("name", ["root", "ann"])
def test_a_name_or_an_address_is_nobody_s_account(provider, browser, people, name):
    get_user_model().objects.filter(username=name).update(email="x@carillon.test")
    provider.says = {"preferred_username": name, "email": "x@carillon.test", "email_verified": True}
    log_in(browser, provider)
    (me,) = browser.get("/api/v2/me/").json()["results"]
    assert me["username"].startswith(f"{name}-")
    assert not me["is_superuser"]


def test_known_alone(provider, browser, people, settings):
    configure(settings, provider.url, IDENTITY_USERS="known")
    is_refused(log_in(browser, provider), "Nobody here is linked to this account: ask an administrator.")
    identities.link(people.ann, provider.url, "subject-1")
    log_in(browser, provider)
    assert browser.get("/api/v2/me/").json()["results"][0]["username"] == "ann"


def test_who_is_not_active(provider, browser, people):
    people.ann.is_active = False
    people.ann.save()
    identities.link(people.ann, provider.url, "subject-1")
    is_refused(log_in(browser, provider), "The user is not active.")


def test_a_session_of_before_is_not_gone_on_with(provider, browser, people):
    browser.get("/api/")
    browser.force_login(people.ann)
    before = browser.cookies[SESSION].value
    log_in(browser, provider)
    assert browser.cookies[SESSION].value != before
    other = Client()
    other.cookies[SESSION] = before
    assert other.get("/api/v2/me/").status_code == 401


def test_logging_out_ends_the_session(provider, browser):
    log_in(browser, provider)
    assert browser.get("/api/v2/me/").status_code == 200
    browser.post("/api/logout/")
    assert browser.get("/api/v2/me/").status_code == 401
    assert not UserSession.objects.exists()


def test_a_password_is_as_good_as_before(provider, browser, people):
    provider.stop()
    answer = browser.post("/api/login/", {"username": "ann", "password": "ann-password"})
    assert answer.status_code == 302


def test_there_is_none_unless_it_is_said(browser):
    assert browser.get(START).status_code == 404
    assert browser.get(BACK).status_code == 404
    assert browser.post(OUT).status_code == 404
    assert b"Log in by" not in browser.get("/").content


def test_the_page_has_a_link(provider, browser, settings):
    configure(settings, provider.url, OIDC_NAME='Keycloak "<1>"')
    assert b"Log in by Keycloak &quot;&lt;1&gt;&quot;" in browser.get("/").content


@pytest.mark.parametrize("method", ["post", "put", "delete", "head"])
def test_it_is_a_way_for_browsers(provider, browser, method):
    assert getattr(browser, method)(START).status_code == 405
    assert getattr(browser, method)(BACK).status_code == 405


# The way out -----------------------------------------------------------------------------------------------

OUT = "/api/login/oidc/logged_out/"


def logged_out(provider: Provider, **more):
    said = {"logout_token": provider.logout_token("carillon-page", **more)}
    return Client(enforce_csrf_checks=True).post(OUT, said, secure=True)


def is_in(browser: Client) -> bool:
    return browser.get("/api/v2/me/").status_code == 200


def test_a_logout_goes_on_to_the_provider(provider, browser):
    provider.metadata = {"end_session_endpoint": f"{provider.url}/leave?x=1"}
    for accepted in ("*/*", "application/json"):
        log_in(browser, provider)
        answer = browser.post("/api/logout/", {"next": "/x"}, secure=True, headers={"Accept": accepted})
        place = urlsplit(answer["Location"] if accepted == "*/*" else answer.json()["end_session"])
        assert f"{place.scheme}://{place.netloc}{place.path}" == f"{provider.url}/leave"
        said = {name: values[0] for name, values in parse_qs(place.query).items()}
        hint = said.pop("id_token_hint")
        assert hint.count(".") == 2
        assert said == {
            "x": "1",
            "client_id": "carillon-page",
            "post_logout_redirect_uri": "https://testserver/",
        }
        assert not is_in(browser)


@pytest.mark.parametrize("url", [None, 7, "http://provider.test/leave", "javascript:alert(1)"])
def test_a_logout_ends_here_where_the_provider_has_no_place_for_it(provider, browser, url):
    provider.metadata = {"end_session_endpoint": url}
    log_in(browser, provider)
    assert browser.post("/api/logout/", {"next": "/x"}, secure=True)["Location"] == "/x"


def test_who_came_by_a_password_leaves_nothing_there(provider, browser, people):
    provider.metadata = {"end_session_endpoint": f"{provider.url}/leave"}
    browser.post("/api/login/", {"username": "ann", "password": "ann-password"})
    assert browser.post("/api/logout/", secure=True)["Location"] == "/"


def test_a_logout_at_the_provider_ends_its_sessions(provider, people, caplog):
    caplog.set_level(logging.INFO)
    identities.link(people.ann, provider.url, "subject-1")
    mine, too, other, password = (Client() for _ in range(4))
    for browser in (mine, too):
        log_in(browser, provider)
    provider.says = {"sub": "subject-2"}
    log_in(other, provider)
    password.post("/api/login/", {"username": "ann", "password": "ann-password"})
    assert logged_out(provider, sub="unheard-of").status_code == 200
    assert is_in(mine)
    answer = logged_out(provider)
    assert (answer.status_code, answer.content) == (200, b"")
    assert "no-store" in answer["Cache-Control"]
    assert [is_in(browser) for browser in (mine, too, other, password)] == [False, False, True, True]
    assert caplog.records[-1].audit["what"] == "logged out"


def test_a_logout_there_is_refused_where_nobody_knows_the_sessions(provider, browser, settings):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    log_in(browser, provider)
    answer = logged_out(provider)
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported")
    assert is_in(browser)


def test_a_logout_there_may_be_of_one_session(provider):
    one, another, unnamed = (Client() for _ in range(3))
    for browser, session in ((one, "s1"), (another, "s2"), (unnamed, None)):
        provider.says = {"sid": session}
        log_in(browser, provider)
    assert logged_out(provider, sid="s1").status_code == 200
    assert [is_in(browser) for browser in (one, another, unnamed)] == [False, True, False]


def test_a_logout_that_is_told_again_ends_no_later_session(provider, browser):
    provider.says = {"iat": int(time.time()) + 5}
    log_in(browser, provider)
    logged_out(provider)
    assert is_in(browser)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"aud": "another"}, "is for another audience"),
        ({"iss": "https://evil.test"}, "is of another issuer"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "does not say exp"),
        ({"sub": None}, "does not say sub"),
        ({"iat": None}, "does not say since when"),
        ({"sid": 7}, "of which session"),
        ({"events": None}, "speaks of no logout"),
        ({"events": {"x": {}}}, "speaks of no logout"),
        ({"events": [LOGOUT]}, "speaks of no logout"),
        ({"nonce": "x"}, "speaks of no logout"),
        ({"headers": {"typ": "at+jwt"}}, "is of another type"),
    ],
)
def test_logout_tokens_that_are_none(provider, browser, more, why):
    log_in(browser, provider)
    answer = logged_out(provider, **more)
    assert answer.status_code == 400, answer.content
    assert answer.json()["error"] == "invalid_request"
    assert why in answer.json()["error_description"]
    assert is_in(browser)


@pytest.mark.parametrize("said", [{}, {"logout_token": "x"}, {"logout_token": "a.b.c"}])
def test_what_is_no_logout_token(provider, browser, said):
    assert browser.post(OUT, said).status_code == 400
    assert browser.get(OUT).status_code == 405


def test_a_logout_while_the_provider_is_away(provider, browser):
    token = provider.logout_token("carillon-page")
    provider.broken = {"/.well-known/openid-configuration": 500}
    answer = browser.post(OUT, {"logout_token": token})
    assert (answer.status_code, answer["Retry-After"]) == (503, "10")


def test_a_logout_token_lets_nobody_in(provider, browser):
    query = provider.authorize(begin(browser))
    token = provider.logout_token("carillon-page")
    provider.answer = lambda request: reply(request, {"id_token": token})
    is_refused(come_back(browser, query), "ID token")


# Groups ----------------------------------------------------------------------------------------------------


def test_groups_become_teams_and_an_admin(provider, browser, people, settings):
    configure(settings, provider.url, OIDC_GROUPS_CLAIM="groups", OIDC_ADMIN_GROUP="admins")
    Team.objects.create(name="others")
    provider.says = {"groups": ["ringers", "admins", "unheard-of", 7, "nul\0"]}
    log_in(browser, provider)
    (me,) = browser.get("/api/v2/me/").json()["results"]
    assert me["is_superuser"]
    assert [team["name"] for team in me["teams"]] == ["ringers"]
    provider.says = {"groups": ["others"]}
    log_in(browser, provider)
    (me,) = browser.get("/api/v2/me/").json()["results"]
    assert not me["is_superuser"]
    assert [team["name"] for team in me["teams"]] == ["others"]
    assert not Team.objects.filter(name="unheard-of").exists()


@pytest.mark.parametrize("said", [None, "admins", {"admins": 1}])
def test_a_claim_that_is_no_list_gives_nothing(provider, browser, people, settings, said):
    configure(settings, provider.url, OIDC_GROUPS_CLAIM="groups", OIDC_ADMIN_GROUP="admins")
    identities.link(people.root, provider.url, "subject-1")
    provider.says = {"groups": said}
    log_in(browser, provider)
    assert not browser.get("/api/v2/me/").json()["results"][0]["is_superuser"]


def test_groups_are_left_alone_unless_it_is_said(provider, browser, people):
    identities.link(people.root, provider.url, "subject-1")
    provider.says = {"groups": ["ringers"]}
    log_in(browser, provider)
    (me,) = browser.get("/api/v2/me/").json()["results"]
    assert (me["is_superuser"], me["teams"]) == (True, [])


# Attacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.test/",
        "//evil.test/",
        "javascript:alert(1)",
        "/\\evil.test",
        "\x00/",
        "http://testserver/",
    ],
)
def test_nobody_is_sent_elsewhere(provider, browser, target):
    assert log_in(browser, provider, next=target)["Location"] == "/"


def test_a_target_that_no_cookie_holds_is_left_out(provider, browser):
    assert log_in(browser, provider, next="/" + "\u9418" * 500)["Location"] == "/"


def test_an_answer_that_this_browser_did_not_ask_for(provider, browser):
    """Somebody else's code, in a link: it would log the victim in as the attacker."""
    stolen = provider.authorize(begin(Client()))
    is_refused(come_back(browser, stolen), "This browser has no login under way")
    begin(browser)
    is_refused(come_back(browser, stolen), "the answer to another login")
    assert provider.forms == [], "the code is not even tried"


def test_an_answer_is_good_for_once(provider, browser):
    query = provider.authorize(begin(browser))
    cookie = browser.cookies[UNDER_WAY].value
    assert come_back(browser, query).status_code == 302
    is_refused(come_back(Client(), query), "This browser has no login under way")
    other = Client()
    other.cookies[UNDER_WAY] = cookie
    is_refused(come_back(other, query), "does not take the code")


@pytest.mark.parametrize("cookie", ["", "nonsense", "a:b:c", "\xe9", "x" * 4000])
def test_a_cookie_that_was_made_up(provider, browser, cookie):
    query = provider.authorize(begin(Client()))
    browser.cookies[UNDER_WAY] = cookie
    is_refused(come_back(browser, query), "no login under way")


def test_a_login_that_took_too_long(provider, browser, monkeypatch):
    query = provider.authorize(begin(browser))
    now = time.time()
    monkeypatch.setattr("django.core.signing.time.time", lambda: now + 601)
    is_refused(come_back(browser, query), "took too long")


def test_a_code_without_its_verifier(provider, browser):
    """A code that was stolen on its way, in the attacker's own login: PKCE."""
    stolen = provider.authorize(begin(Client()))
    mine = provider.authorize(begin(browser))
    is_refused(come_back(browser, {**mine, "code": stolen["code"]}), "does not take the code")


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ({"nonce": "another"}, "is for another login"),
        ({"nonce": None}, "is for another login"),
        ({"aud": "another-client"}, "is for another audience"),
        ({"aud": ["carillon-page", "another"]}, "was given to another client"),
        ({"aud": ["carillon-page", "another"], "azp": "another"}, "was given to another client"),
        ({"azp": "another"}, "was given to another client"),
        ({"iss": "https://evil.test"}, "is of another issuer"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "does not say exp"),
        ({"sub": ""}, "has a subject that cannot be stored"),
    ],
)
def test_id_tokens_that_are_refused(provider, browser, says, why):
    provider.says = says
    is_refused(log_in(browser, provider), why)
    assert not get_user_model().objects.exists()


def test_an_id_token_for_several_that_was_given_to_us(provider, browser):
    provider.says = {"aud": ["carillon-page", "another"], "azp": "carillon-page"}
    assert log_in(browser, provider).status_code == 302


def test_an_id_token_that_another_has_signed(provider, browser, monkeypatch):
    evil = Provider()
    evil.kinds = {"a": ("RSA", 7)}
    try:
        monkeypatch.setattr(provider, "token", lambda **more: evil.token(**{"iss": provider.url, **more}))
        is_refused(log_in(browser, provider), "has a wrong signature")
    finally:
        evil.stop()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"error": "access_denied"}, "did not let you in"),
        ({"error": "<script>alert(1)</script>"}, "refused the login"),
        ({"code": ""}, "has no code"),
        ({"state": ""}, "the answer to another login"),
        ({"state": "x"}, "the answer to another login"),
        ({"iss": "https://evil.test"}, "of another provider"),
    ],
)
def test_answers_that_are_none(provider, browser, more, why):
    query = provider.authorize(begin(browser))
    answer = come_back(browser, {**query, **more})
    is_refused(answer, why)
    assert b"<script>" not in answer.content


def test_a_provider_that_names_itself_has_to(provider, browser):
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    query = provider.authorize(begin(browser))
    is_refused(come_back(browser, query), "of another provider")
    query = provider.authorize(begin(browser))
    assert come_back(browser, {**query, "iss": provider.url}).status_code == 302


def test_codes_that_were_made_up_have_a_budget(provider, browser, settings):
    slow = {"LOGIN_ADDRESS_RATE": 1e-6, "LOGIN_NAME_RATE": 1e-6}
    settings.CARILLON = {**settings.CARILLON, **slow, "LOGIN_ADDRESS_BURST": 3, "LOGIN_NAME_BURST": 5}
    for _ in range(3):
        state = parse_qs(urlsplit(begin(browser)).query)["state"][0]
        is_refused(come_back(browser, {"code": "x", "state": state}), "does not take the code")
    query = provider.authorize(begin(browser))
    answer = come_back(browser, query)
    is_refused(answer, "Too many failed logins", 429)
    assert int(answer["Retry-After"]) > 0
    assert len(provider.forms) == 3


def test_who_gets_in_costs_nothing(provider, settings):
    slow = {"LOGIN_ADDRESS_RATE": 1e-6, "LOGIN_NAME_RATE": 1e-6}
    settings.CARILLON = {**settings.CARILLON, **slow, "LOGIN_ADDRESS_BURST": 2, "LOGIN_NAME_BURST": 2}
    for _ in range(5):
        assert log_in(Client(), provider).status_code == 302


def test_a_name_that_is_typed_costs_nobody_s_single_sign_on(provider, settings, caplog):
    slow = {"LOGIN_ADDRESS_RATE": 1e-6, "LOGIN_NAME_RATE": 1e-6}
    settings.CARILLON = {**settings.CARILLON, **slow, "LOGIN_ADDRESS_BURST": 50, "LOGIN_NAME_BURST": 2}
    for name in ("single sign-on", "\0single sign-on"):
        for _ in range(3):
            Client().post("/api/login/", {"username": name, "password": "x"})
    assert log_in(Client(), provider).status_code == 302
    # The budget of the logins by the provider has a name that one can read.
    caplog.set_level(logging.INFO, "carillon.audit")
    for _ in range(3):
        browser = Client()
        state = parse_qs(urlsplit(begin(browser)).query)["state"][0]
        answer = come_back(browser, {"code": "x", "state": state})
    assert answer.status_code == 429
    assert caplog.records[-1].getMessage() == "Login refused: 'single sign-on' from 127.0.0.1"


# The provider is away --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (never, "does not answer within"),
        (drip, "does not answer within"),
        (endless, "more than 256 KiB"),
        (lambda request: reply(request, {}, 503), "answers with 503"),
        (lambda request: reply(request, b"<html>"), "no JSON object"),
        (lambda request: reply(request, {"issuer": "https://evil.test"}), "another issuer than OIDC_ISSUER"),
    ],
)
def test_a_provider_without_an_answer(provider, browser, monkeypatch, answer, why):
    if answer in (never, drip):
        monkeypatch.setattr(fetch, "SECONDS", 0.5)
    provider.answer = answer
    for _ in range(3):
        refused = browser.get(START, secure=True)
        is_refused(refused, why, 503)
        assert "You can log in with a password of this server." in refused.content.decode()
        assert refused["Retry-After"] == "10"
    assert len(provider.asked) == 1


def test_a_watch_that_is_late_changes_no_word(provider, browser, monkeypatch):
    """On a busy machine the socket's own deadline may be the first."""

    class Late(fetch.threading.Timer):
        def start(self):
            pass

    monkeypatch.setattr(fetch, "SECONDS", 0.2)
    monkeypatch.setattr(fetch.threading, "Timer", Late)
    provider.answer = never
    is_refused(browser.get(START, secure=True), "does not answer within", 503)


@pytest.mark.parametrize("endpoint", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
@pytest.mark.parametrize(
    "url", ["http://provider.test/x", "file:///etc/passwd", "gopher://x", None, 7, "https://"]
)
def test_where_a_provider_must_not_send_anybody(provider, browser, endpoint, url):
    provider.metadata = {endpoint: url}
    is_refused(browser.get(START, secure=True), "lacks an https:// address", 503)


@pytest.mark.parametrize("path", ["/token", "/keys"])
def test_a_provider_that_breaks_on_the_way(provider, browser, path):
    provider.broken = {path: 500}
    is_refused(log_in(browser, provider), "answers with 500", 503)


@pytest.mark.parametrize("known", [False, True])
def test_a_provider_that_is_away_costs_nobody_an_attempt(provider, settings, known):
    slow = {"LOGIN_ADDRESS_RATE": 1e-6, "LOGIN_NAME_RATE": 1e-6}
    settings.CARILLON = {**settings.CARILLON, **slow, "LOGIN_ADDRESS_BURST": 2, "LOGIN_NAME_BURST": 2}
    if known:
        assert log_in(Client(), provider).status_code == 302
    proofs = LoginBudget.objects.values_list("proven", flat=True)
    before = set(proofs)
    provider.broken = {"/token": 503}
    for _ in range(5):
        is_refused(log_in(Client(), provider), "answers with 503", 503)
    assert set(proofs.all()) - before <= {None}  # and it proves nothing
    provider.broken = {}
    assert log_in(Client(), provider).status_code == 302


@pytest.mark.parametrize("token", [{}, {"id_token": 7}, {"id_token": "a.b.c"}])
def test_a_provider_without_an_id_token(provider, browser, token):
    query = provider.authorize(begin(browser))
    provider.answer = lambda request: reply(request, token)
    is_refused(come_back(browser, query), "ID token")


def test_no_more_than_two_threads_wait_for_the_provider(provider, monkeypatch):
    go_on = threading.Event()
    inside = []

    def slow(*_):
        inside.append(1)
        assert go_on.wait(30)
        raise oidc.Failed("late")

    monkeypatch.setattr(oidc, "_exchange", slow)
    pending = oidc.Pending("state", "nonce", "verifier", "/")
    oidc._provider()

    def finish() -> None:
        with pytest.raises(oidc.Failed):
            oidc.finish(pending, {"state": "state", "code": "x"}, "https://testserver/")

    threads = [threading.Thread(target=finish) for _ in range(kept.WAITERS)]
    for thread in threads:
        thread.start()
    while len(inside) < kept.WAITERS:
        time.sleep(0.01)
    with pytest.raises(kept.Away, match="others are logging in"):
        oidc.finish(pending, {"state": "state", "code": "x"}, "https://testserver/")
    go_on.set()
    for thread in threads:
        thread.join(10)


# What is said of it ----------------------------------------------------------------------------------------


def test_the_audit_log_and_nothing_secret(provider, browser, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    tokens = []
    real = provider.token
    monkeypatch.setattr(provider, "token", lambda **more: tokens.append(real(**more)) or tokens[-1])
    log_in(browser, provider)
    provider.says = {"nonce": "another"}
    log_in(browser, provider)
    lines = [logs.JsonFormatter().format(record) for record in caplog.records]
    told = [said for line in lines if (said := json.loads(line).get("audit"))]
    assert [(said["what"], said.get("outcome"), said["name"]) for said in told] == [
        ("user made", None, "ilse"),
        ("identity made", None, "ilse"),
        ("login", "let in", "ilse"),
        ("login", "wrong", "single sign-on"),
    ]
    assert told[2]["address"] == "127.0.0.1"
    secret = ["s3cr:t", "code-0", "code-1", *(part for token in tokens for part in token.split("."))]
    secret += [form["code_verifier"] for form in provider.forms]
    for line in lines:
        assert not any(word in line for word in secret), line


# A provider that is not ours: Authlib's, in oidc-provider-mock ---------------------------------------------


def test_a_provider_that_is_not_ours(browser, settings):
    with run_server_in_thread(require_nonce=True) as server:
        issuer = f"http://localhost:{server.server_port}"
        configure(settings, issuer)
        http = requests.Session()
        http.trust_env = False
        assert http.put(f"{issuer}/users/ilse-7", json={}, timeout=10).status_code == 204
        location = begin(browser, next="/#/schedules")
        back = http.post(location, data={"sub": "ilse-7"}, allow_redirects=False, timeout=10)
        assert back.status_code == 302, back.text
        place = urlsplit(back.headers["Location"])
        assert place.path == BACK
        answer = browser.get(f"{BACK}?{place.query}", secure=True)
        assert (answer.status_code, answer["Location"]) == (302, "/#/schedules"), answer.content
        assert ExternalIdentity.objects.get().subject == "ilse-7"
        assert browser.get("/api/v2/me/").json()["results"][0]["username"] == "ilse-7"
        again = browser.get(f"{BACK}?{place.query}", secure=True)
        assert again.status_code == 403
