"""Log in and out, tokens, scopes, and the sessions a user may have."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from carillon.accounts import tokens
from carillon.accounts.models import ApiToken, UserSession
from carillon.events import outbox

pytestmark = pytest.mark.django_db


class Browser:
    """Logs in as awxkit and the page do."""

    def __init__(self) -> None:
        self.http = Client(enforce_csrf_checks=True)
        self.http.get("/api/")

    @property
    def csrf(self) -> str:
        return self.http.cookies["csrftoken"].value

    def post(self, path, data=None, **headers):
        return self.http.post(path, data or {}, headers={"X-CSRFToken": self.csrf, **headers})

    def log_in(self, name, password=None, **more):
        headers = more.pop("headers", {})
        return self.post(
            "/api/login/", {"username": name, "password": password or f"{name}-password", **more}, **headers
        )


def test_login_as_awxkit_does_it(people):
    browser = Browser()
    answer = browser.log_in("ann", next="/api/")
    assert answer.status_code == 302
    assert answer["Location"] == "/api/"
    assert answer["X-API-Session-Cookie-Name"] == "__Host-awx_sessionid"
    cookie = answer.cookies["__Host-awx_sessionid"]
    assert cookie["httponly"]
    assert cookie["secure"]  # the tests' settings are not development's
    assert cookie["samesite"] == "Lax"
    assert browser.http.get("/api/v2/me/").json()["results"] == [
        {
            "id": people.ann.pk,
            "username": "ann",
            "is_superuser": False,
            "teams": [{"id": people.team.pk, "name": "ringers"}],
        }
    ]


def test_login_in_json(people):
    answer = Browser().log_in("ann", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {"id": people.ann.pk, "username": "ann"})
    assert "__Host-awx_sessionid" in answer.cookies


@pytest.mark.parametrize("target", ["https://evil.test/", "//evil.test/", "javascript:alert(1)", ""])
def test_login_sends_nobody_elsewhere(people, target):
    assert Browser().log_in("ann", next=target)["Location"] == "/"


def test_wrong_password(people):
    answer = Browser().log_in("ann", "wrong")
    assert answer.status_code == 401
    assert "__Host-awx_sessionid" not in answer.cookies


def test_login_needs_the_csrf_token(people):
    browser = Browser()
    answer = browser.http.post("/api/login/", {"username": "ann", "password": "ann-password"})
    assert answer.status_code == 403
    assert "X-CSRFToken" in answer.json()["detail"]


def test_log_out(people, sent):
    browser = Browser()
    browser.log_in("ann")
    assert browser.post("/api/logout/").status_code == 302
    assert browser.http.get("/api/v2/me/").status_code == 401
    assert UserSession.objects.count() == 0


def test_anonymous_is_401_everywhere_but_where_it_is_public(db):
    client = APIClient()
    schema = client.get("/api/v2/schema/").json()
    public = {"/api/", "/api/login/", "/api/logout/"}
    public |= {f"/api/v2/{name}" for name in ("", "ping/", "health/", "asyncapi/")}
    for path in schema["paths"].keys() - public:
        assert client.get(path.replace("{id}", "1")).status_code in (401, 405), path
    answer = client.get("/api/v2/jobs/")
    assert answer["WWW-Authenticate"].startswith("Bearer")  # no password dialogue in browsers


def test_session_needs_csrf_for_changes(people):
    browser = Browser()
    browser.log_in("ann")
    assert browser.http.post("/api/v2/jobs/", {"name": "x"}, "application/json").status_code == 403
    assert (
        browser.http.post(
            "/api/v2/jobs/", {"name": "x"}, "application/json", headers={"X-CSRFToken": browser.csrf}
        ).status_code
        == 201
    )


def test_basic(people):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Basic YW5uOmFubi1wYXNzd29yZA==")
    assert client.get("/api/v2/me/").status_code == 200
    client.credentials(HTTP_AUTHORIZATION="Basic YW5uOndyb25n")
    assert client.get("/api/v2/me/").status_code == 401


class TestSessionsPerUser:
    def test_the_oldest_go_and_the_user_is_told(self, people, sent, settings, commits):
        settings.CARILLON = {**settings.CARILLON, "SESSIONS_PER_USER": 2}
        browsers = [Browser() for _ in range(3)]
        with commits():
            for browser in browsers:
                browser.log_in("ann")
        assert [browser.http.get("/api/v2/me/").status_code for browser in browsers] == [401, 200, 200]
        first, second = sent.messages
        assert first["group"] == f"control-limit_reached_{people.ann.pk}"
        assert first["text"] == '{"group_name": "control", "reason": "limit_reached"}'
        # Then the sockets look at their sessions.
        assert second["group"] == "!access"
        assert json.loads(second["text"]) == {"users": [people.ann.pk], "groups": []}

    def test_a_process_that_dies_at_the_commit_loses_no_word(self, people, sent):
        """The word of it is part of the change: runworker sends it, whatever happens to who made it."""
        row = ApiToken.objects.create(user=people.ann, digest="x")
        row.delete()  # in a transaction whose callbacks never run
        assert sent.messages == []
        outbox.send_now()
        assert [json.loads(message["text"])["users"] for message in sent.messages] == [[people.ann.pk]]

    def test_without_a_limit(self, people, sent, commits):
        browsers = [Browser() for _ in range(3)]
        with commits():
            for browser in browsers:
                browser.log_in("ann")
        assert {browser.http.get("/api/v2/me/").status_code for browser in browsers} == {200}
        assert sent.messages == []


@pytest.fixture
def before_lock(monkeypatch):
    """What another process does to a user's tokens, just before this one has the lock on the user's row.
    SQLite has no such locks: the words for it are taken out."""
    with ExitStack() as stack:

        def do(user, change) -> None:
            lock, others = " FOR NO KEY UPDATE", [change]

            def execute(run, sql, params, many, context):
                if sql.endswith(lock) and 'FROM "auth_user"' in sql and user.pk in params and others:
                    others.pop()()
                return run(sql.removesuffix(lock), params, many, context)

            for name in ("has_select_for_update", "has_select_for_no_key_update"):
                monkeypatch.setattr(connection.features, name, True)
            stack.enter_context(connection.execute_wrapper(execute))

        yield do


class TestTokens:
    def test_life(self, people):
        client = people.client(people.ann)
        made = client.post(
            "/api/v2/tokens/", {"description": "for a script", "scope": "write read"}, format="json"
        )
        assert made.status_code == 201
        body = made.json()
        assert body["scope"] == "read write"
        secret = body["token"]
        shown = client.get(f"/api/v2/tokens/{body['id']}/").json()
        assert "token" not in shown
        assert shown["last_used"] is None
        # The token is nowhere, its hash is.
        row = ApiToken.objects.get(pk=body["id"])
        assert row.digest == tokens.digest(secret) != secret

        user = APIClient()
        user.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
        assert user.get("/api/v2/me/").status_code == 200
        assert client.get(f"/api/v2/tokens/{body['id']}/").json()["last_used"] is not None
        assert client.delete(f"/api/v2/tokens/{body['id']}/").status_code == 204
        assert user.get("/api/v2/me/").status_code == 401

    def test_default_life_and_no_end(self, people):
        client = people.client(people.ann)
        year = client.post("/api/v2/tokens/", {}, format="json").json()["expires"]
        assert year[:4] == str((timezone.now() + timedelta(days=365)).year)
        assert client.post("/api/v2/tokens/", {"expires": None}, format="json").json()["expires"] is None
        past = client.post("/api/v2/tokens/", {"expires": "2020-01-01T00:00:00Z"}, format="json")
        assert past.status_code == 400

    def test_somebody_else_s_are_not_there(self, people):
        other = ApiToken.issue(people.ben)[0]
        for user in (people.ann, people.root):
            client = people.client(user)
            assert client.delete(f"/api/v2/tokens/{other.pk}/").status_code == 404
            assert other.pk not in [row["id"] for row in client.get("/api/v2/tokens/").json()["results"]]

    def test_expired(self, people):
        client = people.client(people.ann, expires=timezone.now() - timedelta(seconds=1))
        assert client.get("/api/v2/me/").status_code == 401

    def test_last_used_is_written_once_a_minute(self, people, django_assert_num_queries):
        token = people.token(people.ann)
        with django_assert_num_queries(3):
            ApiToken.find(token)
        with django_assert_num_queries(2):
            ApiToken.find(token)
        ApiToken.objects.update(last_used=timezone.now() - timedelta(seconds=61))
        with django_assert_num_queries(3):
            ApiToken.find(token)

    @pytest.mark.parametrize(
        ("scope", "get", "post"),
        [("read", 200, 403), ("write", 403, 201), ("publish", 403, 403), ("read write", 200, 201)],
    )
    def test_scopes(self, people, scope, get, post):
        client = people.client(people.ann, scope=scope)
        assert client.get("/api/v2/jobs/").status_code == get
        assert client.post("/api/v2/jobs/", {"name": "x"}, format="json").status_code == post

    def test_a_token_gives_no_more_than_it_has(self, people):
        client = people.client(people.root, scope="read write")
        assert client.post("/api/v2/tokens/", {"scope": "read publish"}, format="json").status_code == 400
        assert client.post("/api/v2/tokens/", {"scope": "read"}, format="json").status_code == 201

    def test_publish_is_an_admin_s_to_give(self, people):
        for user, status in ((people.ann, 400), (people.root, 201)):
            client = APIClient()
            client.force_authenticate(user)
            assert client.post("/api/v2/tokens/", {"scope": "publish"}, format="json").status_code == status

    @pytest.mark.django_db(transaction=True)
    def test_of_tokens_that_ended_long_ago_nobody_is_told(self, people, monkeypatch):
        """A leaked token might have made so many that deleting it took longer than a request may."""
        monkeypatch.setattr(outbox, "send_now", lambda: None)
        _, parent = ApiToken.issue(people.ann)
        parent = ApiToken.objects.get(user=people.ann)
        for _ in range(3):
            ApiToken.issue(people.ann, parent=parent, expires=timezone.now() - timedelta(days=2))
        ApiToken.issue(people.ann, parent=parent, expires=timezone.now() - timedelta(hours=2))
        outbox._rows().all().delete()
        parent.delete()
        assert not ApiToken.objects.filter(user=people.ann).exists()
        assert outbox._rows().count() == 2

    def test_a_token_s_tokens_end_with_it(self, people):
        soon = timezone.now() + timedelta(minutes=2)
        client = people.client(people.ann, expires=soon)
        for expires in (None, (soon + timedelta(seconds=1)).isoformat()):
            refused = client.post("/api/v2/tokens/", {"expires": expires}, format="json")
            assert refused.status_code == 400
            assert "no token made by it lives longer" in refused.json()["expires"][0]
        made = client.post("/api/v2/tokens/", {}, format="json").json()
        assert ApiToken.objects.get(pk=made["id"]).expires == soon
        child = APIClient()
        child.credentials(HTTP_AUTHORIZATION=f"Bearer {made['token']}")
        grandchild = child.post("/api/v2/tokens/", {}, format="json").json()
        assert child.get("/api/v2/me/").status_code == 200
        ApiToken.objects.get(expires=soon, parent=None).delete()
        assert child.get("/api/v2/me/").status_code == 401
        assert not ApiToken.objects.filter(pk=grandchild["id"]).exists()

    @pytest.mark.parametrize("by_command", [False, True])
    def test_one_that_is_made_while_its_maker_is_revoked_ends_with_it(self, people, before_lock, by_command):
        """It would fail the deletion at its commit: whoever has a stolen token could hold off its end."""
        row, _ = ApiToken.issue(people.ann)
        client, made = people.client(people.ann), []
        before_lock(people.ann, lambda: made.append(ApiToken.issue(people.ann, parent=row)[0].pk))
        if by_command:
            call_command("revoke_tokens", "--username", "ann", stdout=StringIO())
        else:
            assert client.delete(f"/api/v2/tokens/{row.pk}/").status_code == 204
        assert made
        assert not ApiToken.objects.filter(pk__in=[row.pk, *made]).exists()

    def test_one_that_is_revoked_meanwhile_makes_no_other(self, people, before_lock):
        client = people.client(people.ann)
        before_lock(people.ann, lambda: ApiToken.objects.filter(user=people.ann).delete())
        answer = client.post("/api/v2/tokens/", {}, format="json")
        assert answer.status_code == 401
        assert "revoked: make a new one" in answer.json()["detail"]

    def test_two_at_once_are_no_more_than_are_allowed(self, people, before_lock, settings):
        settings.CARILLON = {**settings.CARILLON, "TOKENS_PER_USER": 2}
        client = people.client(people.ann)
        before_lock(people.ann, lambda: ApiToken.issue(people.ann))
        assert client.post("/api/v2/tokens/", {}, format="json").status_code == 429

    @pytest.mark.parametrize("scope", ["", "admin", "read,write"])
    def test_unknown_scope(self, people, scope):
        assert (
            people.client(people.ann).post("/api/v2/tokens/", {"scope": scope}, format="json").status_code
            == 400
        )


class TestSessions:
    def listed(self, browser):
        return browser.http.get("/api/v2/sessions/").json()["results"]

    def test_life(self, people, sent, commits):
        first, second, other = Browser(), Browser(), Browser()
        with commits():
            first.log_in("ann", headers={"User-Agent": "awxkit\t1" + "x" * 300})
            second.log_in("ann")
            other.log_in("ben")
        new, old = self.listed(second)
        assert [row["current"] for row in (new, old)] == [True, False]
        assert [row["current"] for row in self.listed(first)] == [False, True]
        assert old["address"] == "127.0.0.1"
        assert old["client"] == ("awxkit\t1" + "x" * 300)[:200]
        assert old["since"] < new["since"] < new["expires"]
        assert set(old) == {"id", "since", "expires", "address", "client", "current"}  # and no key
        with commits():
            gone = second.http.delete(f"/api/v2/sessions/{old['id']}/", headers={"X-CSRFToken": second.csrf})
        assert gone.status_code == 204
        assert first.http.get("/api/v2/me/").status_code == 401
        assert self.listed(second) == [new]
        assert json.loads(sent.messages[-1]["text"])["users"] == [people.ann.pk]  # its sockets end

    def test_all_others(self, people):
        browsers = [Browser() for _ in range(3)]
        for browser in browsers:
            browser.log_in("ann")
        other = Browser()
        other.log_in("ben")
        path, kind = "/api/v2/sessions/end_others/", "application/json"
        assert browsers[1].http.post(path, content_type=kind).status_code == 403  # forged
        answer = browsers[1].http.post(path, content_type=kind, headers={"X-CSRFToken": browsers[1].csrf})
        assert (answer.status_code, answer.json()) == (200, {"ended": 2})
        assert [one.http.get("/api/v2/me/").status_code for one in browsers] == [401, 200, 401]
        # A token is no session: to it, all are others.
        assert people.client(people.ann).post(path).json() == {"ended": 1}
        assert other.http.get("/api/v2/me/").status_code == 200

    def test_somebody_else_s_are_not_there(self, people):
        Browser().log_in("ben")
        entry = UserSession.objects.get()
        for user in (people.ann, people.root):
            client = people.client(user)
            assert client.delete(f"/api/v2/sessions/{entry.pk}/").status_code == 404
            assert client.get("/api/v2/sessions/").json()["results"] == []
        assert UserSession.objects.exists()

    def test_what_has_expired_is_none(self, people):
        Browser().log_in("ann")
        Session.objects.update(expire_date=timezone.now() - timedelta(seconds=1))
        assert people.client(people.ann).get("/api/v2/sessions/").json()["count"] == 0

    def test_a_token_s_scope_counts(self, people):
        reader = people.client(people.ann, scope="read")
        assert reader.get("/api/v2/sessions/").status_code == 200
        assert reader.post("/api/v2/sessions/end_others/").status_code == 403

    def test_where_they_are_no_rows_it_says_so(self, people, settings):
        settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
        client = people.client(people.ann)
        for answer in (
            client.get("/api/v2/sessions/"),
            client.delete("/api/v2/sessions/1/"),
            client.post("/api/v2/sessions/end_others/"),
        ):
            assert answer.status_code == 404
            assert "signed_cookies keeps none of them as rows" in answer.json()["detail"]


class TestCommands:
    def test_create_token_prints_the_token_alone(self, people):
        out = StringIO()
        call_command("create_token", "--username", "root", "--scope", "publish read", stdout=out)
        row = ApiToken.find(out.getvalue().removesuffix("\n"))
        assert (row.user, row.scope) == (people.root, "read publish")

    def test_revoke_tokens(self, people):
        kept, client = people.client(people.ben), people.client(people.ann)
        people.token(people.ann)
        out = StringIO()
        call_command("revoke_tokens", "--username", "ann", stdout=out)
        assert out.getvalue() == "2 tokens of ann have ended\n"
        assert client.get("/api/v2/me/").status_code == 401
        assert kept.get("/api/v2/me/").status_code == 200
        with pytest.raises(CommandError):
            call_command("revoke_tokens", "--username", "nobody")

    @pytest.mark.parametrize(
        "options",
        [
            ["--username", "nobody"],
            ["--username", "ann", "--scope", "x"],
            ["--username", "ann", "--scope", "publish"],
            ["--username", "ann", "--days", "3000000"],
        ],
    )
    def test_create_token_says_what_is_wrong(self, people, options):
        with pytest.raises(CommandError):
            call_command("create_token", *options)

    def test_ensure_admin(self, db, tmp_path):
        password = tmp_path / "password"
        password.write_text("a long password\n")

        def run():
            out = StringIO()
            call_command("ensure_admin", "--username", "boss", "--password-file", str(password), stdout=out)
            return out.getvalue()

        assert "Made" in run()
        user = get_user_model().objects.get(username="boss")
        before = user.password
        assert "unchanged" in run()
        user.refresh_from_db()
        assert user.password == before
        get_user_model().objects.update(is_superuser=False)
        password.write_text("another password")
        assert "rights and password set" in run()
        user.refresh_from_db()
        assert user.is_superuser
        assert user.check_password("another password")

    @pytest.mark.django_db(transaction=True)
    def test_ensure_admin_changes_nobody_without_the_word(self, people, tmp_path, monkeypatch):
        """Of a user who is saved outside of a transaction, the change is made before its word is kept."""

        def dies(messages):
            raise SystemExit("killed here")

        monkeypatch.setattr(outbox, "store", dies)
        password = tmp_path / "password"
        password.write_text("a long password")
        with pytest.raises(SystemExit):
            call_command("ensure_admin", "--username", "ann", "--password-file", str(password))
        assert not get_user_model().objects.get(username="ann").is_superuser

    def test_ensure_admin_without_a_password(self, db, tmp_path):
        (tmp_path / "empty").write_text("\n")
        for name in ("empty", "missing"):
            with pytest.raises(CommandError, match="--password-file"):
                call_command("ensure_admin", "--password-file", str(tmp_path / name))


def test_tokens_are_long_and_never_look_like_an_option():
    made = {tokens.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(token.startswith("car_") and len(token) >= 43 for token in made)
