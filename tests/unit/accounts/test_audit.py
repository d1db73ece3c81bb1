"""What was done to accounts and rights: noted with the change, read by admins, kept for a time, bounded."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Group
from django.db import OperationalError, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from carillon import retention
from carillon.accounts import audit, sessions
from carillon.accounts.models import ApiToken, AuditEntry, UserSession, lock_user
from carillon.api import serializers
from carillon.budgets import Allowance, Meter
from tests.unit.accounts.test_accounts import Browser

pytestmark = pytest.mark.django_db
NEW = "a new password of ann's"


def told(**fields) -> list[tuple]:
    """(what, name, by), oldest first."""
    return list(AuditEntry.objects.filter(**fields).order_by("pk").values_list("what", "name", "by"))


def refuse(*_, **__):
    raise OperationalError("the database is away")


def post(browser, path, body):
    headers = {"X-CSRFToken": browser.csrf, "Referer": "https://testserver/"}
    return browser.http.post(path, json.dumps(body), content_type="application/json", headers=headers)


@pytest.fixture(autouse=True)
def _nothing_before(people):
    AuditEntry.objects.all().delete()


def test_a_login_and_a_wrong_password(people):
    browser = Browser()
    assert browser.log_in("ann", "wrong").status_code == 401
    assert browser.log_in("ann", headers={"X-Request-ID": "abc-1"}).status_code == 302
    assert told() == [("wrong password", "ann", ""), ("session began", "ann", "ann")]
    entry = AuditEntry.objects.last()
    assert (entry.address, entry.request) == ("127.0.0.1", "abc-1")


def test_strangers_do_not_fill_the_table(people, monkeypatch):
    monkeypatch.setattr(audit, "_refusals", Allowance(burst=3, rate=0))
    for number in range(10):
        audit.keep_refusal(f"nobody {number} \0 \ud800")
    assert len(told(what="wrong password")) == 3


def test_who_publishes(people, sent, monkeypatch, caplog):
    """One entry an hour of each family, and its line: it may be done thousands of times a second."""
    caplog.set_level(logging.INFO, "carillon.audit")
    now = [1000.0]
    monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(audit, "_publishing", Meter())
    client = people.client(people.root, scope="publish")

    def publish(*groups: str, code: int = 202) -> None:
        body = [{"group": group, "payload": {}} for group in groups]
        assert client.post("/api/v2/notifications/", body, format="json").status_code == code

    publish("jobs-summary", "jobs-status_changed", "schedules-changed")
    publish("jobs-summary")
    publish("nonsense-1", code=400)
    entry = ("publishing", people.root.username, people.root.username)
    assert told(what="publishing") == [entry] * 2
    families = AuditEntry.objects.filter(what="publishing").values_list("about__family", flat=True)
    assert set(families) == {"jobs", "schedules"}
    lines = [line.audit for line in caplog.records if line.name == "carillon.audit"]
    assert [(line["what"], line["family"]) for line in lines] == [
        ("publishing", "jobs"),
        ("publishing", "schedules"),
    ]
    now[0] += 3601
    publish("jobs-summary")
    assert told(what="publishing") == [entry] * 3
    client = people.client(people.ann)
    publish("jobs-summary", code=403)
    assert told(what="publishing") == [entry] * 3, "who may not publish begins nothing"


def test_an_entry_of_publishing_that_could_not_be_written_is_written_next_time(people, sent, monkeypatch):
    monkeypatch.setattr(audit, "_publishing", Meter())
    client = people.client(people.root, scope="publish")
    body = {"group": "jobs-summary", "payload": {}}
    with monkeypatch.context() as patched:
        patched.setattr(audit, "keep", refuse)
        with pytest.raises(OperationalError):
            client.post("/api/v2/notifications/", body, format="json")
    assert sent.messages == []
    assert client.post("/api/v2/notifications/", body, format="json").status_code == 202
    assert len(told(what="publishing")) == 1


def test_tokens(people, caplog):
    browser = Browser()
    browser.log_in("ann")
    with caplog.at_level(logging.INFO, "carillon.audit"):
        made = post(browser, "/api/v2/tokens/", {"scope": "read"})
    assert made.status_code == 201, made.content
    assert made.json()["token"] not in str([record.__dict__ for record in caplog.records])
    browser.http.delete(f"/api/v2/tokens/{made.json()['id']}/", headers={"X-CSRFToken": browser.csrf})
    assert told(what__startswith="token") == [("token made", "ann", "ann"), ("token revoked", "ann", "ann")]
    assert AuditEntry.objects.get(what="token made").about["scope"] == "read"


def test_a_token_that_was_over_is_not_revoked(people):
    row, _ = ApiToken.issue(people.ann, expires=timezone.now() - timedelta(days=1))
    row.delete()
    assert told(what="token revoked") == []


def test_rights_teams_groups_and_passwords(people):
    ann = people.ann
    ann.is_superuser = True
    ann.save()
    ann.save()
    ann.teams.remove(people.team)
    people.team.members.add(ann)
    ann.groups.add(Group.objects.create(name="editors"))
    ann.set_password(NEW)
    ann.save()
    made = get_user_model().objects.create_user("dora")
    made.delete()
    assert told() == [
        ("rights changed", "ann", ""),
        ("membership taken away", "ann", ""),
        ("membership added", "ringers", ""),
        ("group of rights added", "ann", ""),
        ("password changed", "ann", ""),
        ("user made", "dora", ""),
        ("user deleted", "dora", ""),
    ]
    assert AuditEntry.objects.get(what="rights changed").about["is_superuser"] is True


@pytest.mark.django_db(transaction=True)
def test_what_was_undone_was_not_done(people):
    AuditEntry.objects.all().delete()
    with transaction.atomic():
        ApiToken.issue(people.ann)
        transaction.set_rollback(True)
    assert told() == []


@pytest.mark.django_db(transaction=True)
def test_there_is_no_token_without_its_entry(people, monkeypatch):
    def broken(*given, **more):
        raise OperationalError("the disk is full")

    monkeypatch.setattr(audit, "keep", broken)
    with pytest.raises(OperationalError):
        ApiToken.issue(people.ann)
    assert not ApiToken.objects.filter(user=people.ann).exists()


def test_admins_read_it_and_nobody_else(people):
    ApiToken.issue(people.ann)
    http = APIClient()
    for user, status in ((None, 401), (people.ann, 403), (people.root, 200)):
        http.force_authenticate(user)
        answer = http.get("/api/v2/audit/?name=ann")
        assert answer.status_code == status
    (entry,) = answer.json()["results"]
    assert (entry["what"], entry["name"], entry["about"]["scope"]) == ("token made", "ann", "read write")
    assert http.get("/api/v2/audit/?what=nothing").json()["results"] == []
    assert http.get("/api/v2/audit/?what=a%00b").status_code == 400


def test_it_is_kept_for_so_many_days(people, settings):
    audit.note("token made", "ann")
    AuditEntry.objects.update(at=timezone.now() - timedelta(days=400))
    audit.note("token made", "ben")
    (kind,) = [kind for kind in retention.kinds() if kind.name == "audit"]
    due = kind.ended(kind.before(timezone.now()))
    assert [entry.name for entry in due] == ["ann"]


# A password of one's own ------------------------------------------------------------------------------------


def change(browser, current="ann-password", new=NEW):
    return post(browser, "/api/v2/me/password/", {"current": current, "new": new})


@pytest.fixture
def browser(people):
    browser = Browser()
    browser.log_in("ann")
    return browser


def test_a_new_password_ends_the_other_sessions_and_this_one_goes_on(browser, people):
    other = Browser()
    other.log_in("ann")
    before = browser.http.cookies["__Host-awx_sessionid"].value
    answer = change(browser)
    assert (answer.status_code, answer.json()) == (200, {"ended": 1})
    assert browser.http.cookies["__Host-awx_sessionid"].value != before
    assert browser.http.get("/api/v2/me/").status_code == 200
    assert other.http.get("/api/v2/me/").status_code == 401
    assert UserSession.objects.filter(user=people.ann).count() == 1
    assert Browser().log_in("ann").status_code == 401
    assert Browser().log_in("ann", NEW).status_code == 302
    assert ("password changed", "ann", "ann") in told()


class OwnBackend(ModelBackend):
    """A project's own, in place of Django's."""


def test_a_new_password_where_a_project_has_a_backend_of_its_own(people, settings):
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.OwnBackend"]
    browser = Browser()
    browser.log_in("ann")
    assert change(browser).status_code == 200
    assert browser.http.get("/api/v2/me/").status_code == 200


@pytest.mark.parametrize("what", ["password", "deactivated", "ended"])
def test_who_loses_his_login_while_he_makes_a_token_gets_none(browser, people, monkeypatch, what):
    """The password is changed, and his tokens are revoked, while his request waits for its turn."""

    def lock(pk):
        ann = people.ann
        if what == "password":
            ann.set_password(NEW)
        elif what == "deactivated":
            ann.is_active = False
        else:
            sessions.end_rows([browser.http.cookies["__Host-awx_sessionid"].value])
        ann.save()
        return lock_user(pk)

    monkeypatch.setattr(serializers, "lock_user", lock)
    answer = post(browser, "/api/v2/tokens/", {})
    assert (answer.status_code, "log in again" in answer.json()["detail"]) == (401, True)
    assert not ApiToken.objects.filter(user=people.ann).exists()


@pytest.mark.parametrize(
    ("current", "new", "field", "words"),
    [
        ("wrong", NEW, "current", "not your password"),
        ("ann-password", "short", "new", "at least 12"),
        ("ann-password", "password1234", "new", "too common"),
        ("ann-password", "", "new", "blank"),
        ("ann-password", "x" * 1001, "new", "1000"),
    ],
)
def test_a_password_that_is_not_taken(browser, current, new, field, words):
    answer = change(browser, current, new)
    assert answer.status_code == 400
    assert words in answer.json()[field][0]
    assert browser.http.get("/api/v2/me/").status_code == 200
    assert Browser().log_in("ann").status_code == 302


def test_the_password_of_an_open_session_is_not_guessed(browser):
    for number in range(100):
        if change(browser, f"guess {number}").status_code == 429:
            break
    else:
        pytest.fail("a hundred guesses")


def test_who_has_no_password_and_who_comes_by_a_token(browser, people):
    _, token = ApiToken.issue(people.ann)
    body = {"current": "ann-password", "new": NEW}
    http = APIClient(headers={"Authorization": f"Bearer {token}"})
    assert http.post("/api/v2/me/password/", body, format="json").status_code == 403
    people.ann.set_unusable_password()
    people.ann.save()
    browser = Browser()
    browser.http.force_login(people.ann, backend="django.contrib.auth.backends.ModelBackend")
    answer = change(browser)
    assert answer.status_code == 403
    assert "no password here" in answer.json()["detail"]


# A fresh login ----------------------------------------------------------------------------------------------


def test_a_token_asks_for_a_login_that_is_not_old(browser, people, settings):
    def make():
        return post(browser, "/api/v2/tokens/", {})

    assert make().status_code == 201
    settings.CARILLON = {**settings.CARILLON, "FRESH_LOGIN_SECONDS": 60}
    session = browser.http.session
    session["_carillon_began"] -= 61
    session.save()
    answer = make()
    assert answer.status_code == 403
    assert answer.json()["detail"] == "This login is too old to make a token: log in again."
    settings.CARILLON = {**settings.CARILLON, "FRESH_LOGIN_SECONDS": 0}
    assert make().status_code == 201
    settings.CARILLON = {**settings.CARILLON, "FRESH_LOGIN_SECONDS": 60}
    _, token = ApiToken.issue(people.ann)
    by_token = APIClient(headers={"Authorization": f"Bearer {token}"})
    assert by_token.post("/api/v2/tokens/", {}, format="json").status_code == 201
