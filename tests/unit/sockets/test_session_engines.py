"""Sockets that come in by a session, whatever keeps it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError
from django.test import Client as HttpClient
from django.utils import timezone

from carillon.accounts import sessions
from carillon.accounts.models import EndedSession, UserSession
from carillon.retention import kinds
from carillon.sockets import authentication
from tests.unit.support.sockets import Client, pump

pytestmark = pytest.mark.django_db(transaction=True)
DJANGOS = "django.contrib.sessions.backends"
ENGINES = [
    *(f"{DJANGOS}.{name}" for name in ("db", "cached_db", "cache", "file", "signed_cookies")),
    "tests.unit.support.sessions",
]


@pytest.fixture(params=ENGINES)
def engine(request, settings, monkeypatch, tmp_path):
    settings.SESSION_ENGINE = request.param
    settings.SESSION_FILE_PATH = str(tmp_path)
    monkeypatch.setattr("carillon.sockets.presence.Presence._announce", lambda self: None)
    monkeypatch.setattr("carillon.sockets.session.GOODBYE_TIMEOUT", 0.1)


class Browser:
    def __init__(self, user):
        self.http = HttpClient()
        answer = self.post("login", {"username": user.username, "password": f"{user.username}-password"})
        assert answer.status_code == 302

    def post(self, view, data=None):
        return self.http.post(f"/api/{view}/", data)

    @property
    def cookie(self):
        return f"__Host-awx_sessionid={self.http.cookies['__Host-awx_sessionid'].value}"


@pytest.fixture
async def browser(engine, people):
    return await database_sync_to_async(Browser)(people.ann)


async def refused(cookie):
    client = Client(cookie=cookie)
    assert (await client.open())["error"].startswith("the session has ended")
    assert await client.close_code() == 4401


async def test_who_has_logged_out_is_out_with_the_cookie_of_before(browser, people):
    cookie = browser.cookie
    other = Client(cookie=(await database_sync_to_async(Browser)(people.ann)).cookie)
    client = Client(cookie=cookie)
    assert await client.open() == await other.open() == {"accept": True, "user": people.ann.pk}
    await database_sync_to_async(browser.post)("logout")
    await pump()
    assert "error" in await client.frame()
    assert await client.close_code() == 4401
    assert await other.is_silent()
    await refused(cookie)


async def test_who_logs_in_anew_and_out_has_left_by_both_cookies(browser, people):
    before = browser.cookie
    words = {"username": "ann", "password": "ann-password"}
    assert (await database_sync_to_async(browser.post)("login", words)).status_code == 302
    client = Client(cookie=browser.cookie)
    assert (await client.open())["accept"] is True
    await database_sync_to_async(browser.post)("logout")
    await pump()
    await client.frame()
    assert await client.close_code() == 4401
    await refused(before)


async def test_a_changed_password_and_a_user_who_is_switched_off(browser, people):
    for change in (
        lambda: people.ann.set_password("another"),
        lambda: setattr(people.ann, "is_active", False),
    ):
        change()
        await people.ann.asave()
        await refused(browser.cookie)
        people.ann.set_password("ann-password")
        await people.ann.asave()


@pytest.mark.parametrize("engine", [f"{DJANGOS}.db", f"{DJANGOS}.cached_db"], indirect=True)
async def test_a_session_ends_when_its_row_says(browser, people):
    """Not as long after the handshake as one that begins then."""
    soon = timezone.now() + timedelta(seconds=60)
    await Session.objects.aupdate(expire_date=soon)
    scope = {"headers": [(b"cookie", browser.cookie.encode())]}
    (identity,) = await database_sync_to_async(authentication.authenticate)([authentication.Handshake(scope)])
    assert (identity.user, identity.expires) == (people.ann, soon)


@pytest.mark.parametrize("error", [DataError("a NUL"), RuntimeError("the cache is away")])
async def test_a_session_that_cannot_be_read_is_its_own_affair(people, monkeypatch, error):
    """One that asks for itself would have refused up to a hundred who come in at the same moment."""

    def fail(key):
        raise error

    monkeypatch.setattr(sessions, "find", fail)
    token = await database_sync_to_async(people.token)(people.ann)
    cookie = {"headers": [(b"cookie", b'__Host-awx_sessionid="aaaaaaaa\\000b"')]}
    both = [authentication.Handshake(cookie), authentication.Handshake.by(token)]
    asked, other = await database_sync_to_async(authentication.authenticate)(both)
    assert other.user == people.ann
    if isinstance(error, DataError):
        assert (asked.reason, asked.code) == ("the session has ended: log in again", 4401)
    else:
        assert asked is error


def test_a_cookie_with_a_nul_is_nobodys(people, monkeypatch):
    """PostgreSQL's driver refuses to ask for it: the answer would be a 500."""
    monkeypatch.setattr(sessions.store(), "load", lambda self: pytest.fail(f"asked for {self.session_key!r}"))
    client = HttpClient(headers={"cookie": '__Host-awx_sessionid="aaaaaaaa\\000b"'})
    assert client.get("/api/v2/me/").status_code == 401


def test_a_cache_of_one_process_alone_is_refused_in_words(settings):
    settings.SESSION_ENGINE = f"{DJANGOS}.db"
    sessions.check_settings()
    for name in ("cache", "cached_db"):
        settings.SESSION_ENGINE = f"{DJANGOS}.{name}"
        with pytest.raises(ImproperlyConfigured, match="LocMemCache: each process would have sessions"):
            sessions.check_settings()
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache"}}
    sessions.check_settings()


@pytest.mark.parametrize(
    ("engine", "fits"), [("db", True), ("cached_db", True), ("file", False), ("signed_cookies", False)]
)
def test_sessions_that_nobody_counts_have_no_limit(settings, engine, fits):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache"}}
    settings.SESSION_ENGINE = f"{DJANGOS}.{engine}"
    sessions.check_settings()
    settings.CARILLON = {**settings.CARILLON, "SESSIONS_PER_USER": 3}
    if fits:
        sessions.check_settings()
    else:
        with pytest.raises(ImproperlyConfigured, match="nobody knows which sessions there are"):
            sessions.check_settings()


async def test_the_last_login_is_the_one_that_stays_whatever_the_clocks_say(people, settings):
    settings.CARILLON = {**settings.CARILLON, "SESSIONS_PER_USER": 1}
    ahead = await database_sync_to_async(Browser)(people.ann)
    await UserSession.objects.aupdate(created=timezone.now() + timedelta(hours=2))
    later = await database_sync_to_async(Browser)(people.ann)
    for browser, status in ((ahead, 401), (later, 200)):
        assert (await database_sync_to_async(browser.http.get)("/api/v2/me/")).status_code == status


@pytest.mark.parametrize("engine", [f"{DJANGOS}.db", f"{DJANGOS}.cached_db"], indirect=True)
async def test_a_session_beyond_the_limit_ends_in_the_cache_as_well(browser, people, settings):
    settings.CARILLON = {**settings.CARILLON, "SESSIONS_PER_USER": 1}
    cookie = browser.cookie
    assert (await database_sync_to_async(browser.http.get)("/api/v2/me/")).status_code == 200
    later = await database_sync_to_async(Browser)(people.ann)
    assert (await database_sync_to_async(browser.http.get)("/api/v2/me/")).status_code == 401
    assert (await database_sync_to_async(later.http.get)("/api/v2/me/")).status_code == 200
    await refused(cookie)


def test_ended_ones_are_forgotten_when_no_cookie_is_good_for_so_long(settings):
    EndedSession.objects.create(mark="x")
    (kind,) = (kind for kind in kinds() if kind.name == "ended sessions")
    assert kind.days * 86400 == settings.SESSION_COOKIE_AGE
    assert not kind.ended(EndedSession.objects.get().ended).exists()
