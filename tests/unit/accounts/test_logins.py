"""Who may try a password: the decision, and every way to log in."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import logging
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import authenticate, hashers
from django.contrib.auth.backends import ModelBackend
from django.db.models import QuerySet
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone
from rest_framework.test import APIClient

from carillon import logs
from carillon.accounts import logins
from carillon.accounts.models import LoginBudget
from carillon.budgets import Allowance
from tests.unit.accounts.test_accounts import Browser

HERE, THERE = "203.0.113.7", "203.0.113.8"
SETTINGS = {
    "LOGIN_NAME_BURST": 3,
    "LOGIN_NAME_RATE": 1 / 60,
    "LOGIN_ADDRESS_BURST": 5,
    "LOGIN_ADDRESS_RATE": 1 / 60,
}


@pytest.fixture(autouse=True)
def budgets(settings):
    settings.CARILLON = {**settings.CARILLON, **SETTINGS}


@pytest.fixture
def hashed(monkeypatch):
    """The passwords that were hashed."""
    seen = []
    real = hashers.MD5PasswordHasher.encode

    def encode(self, password, salt):
        seen.append(password)
        return real(self, password, salt)

    monkeypatch.setattr(hashers.MD5PasswordHasher, "encode", encode)
    return seen


def basic(name, password, address=HERE):
    client = APIClient(REMOTE_ADDR=address)
    word = base64.b64encode(f"{name}:{password}".encode()).decode()
    client.credentials(HTTP_AUTHORIZATION=f"Basic {word}")
    return client.get("/api/v2/me/")


# The decision


def full():
    return Allowance(3, 1), Allowance(5, 1)


def test_a_password_is_looked_at_while_both_budgets_last():
    name, address = full()
    assert [logins.decide(name, address, False, 0).budget for _ in range(3)] == [None] * 3
    assert logins.decide(name, address, False, 0) == logins.Verdict("for this name from this address", 1)
    assert (name.left, address.left) == (0, 2)


def test_the_address_counts_for_names_that_never_came_from_there():
    address = Allowance(5, 1, left=0, at=0)
    name = Allowance(3, 1)
    assert logins.decide(name, address, False, 0).budget == "from this address"
    assert logins.decide(name, address, True, 0).budget is None
    assert name.left == 2


@pytest.mark.parametrize("proven", [True, False])
def test_a_right_password_gives_back_what_its_attempt_took(proven):
    name, address = Allowance(3, 0, left=2, at=0), Allowance(5, 0, left=2, at=0)
    logins.decide(name, address, proven, 0)
    logins.give_back(name, address, proven, 0)
    assert (name.left, address.left) == (2, 2)


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("a unix socket", ""),
    ],
)
def test_what_counts_as_one_address(address, same):
    assert logins.network(address) == same


def test_names_that_look_alike_are_one():
    assert logins.keys("Ann", HERE) == logins.keys("ann", HERE) == logins.keys("\uff21\uff4e\uff4e", HERE)
    assert logins.keys("ann", HERE) != logins.keys("ann", THERE)


def test_hosts_whose_clocks_differ_fill_no_budget(monkeypatch, people):
    """A time that goes back and forth counted its seconds again and again."""
    now, passed = timezone.now(), 0
    clock = itertools.cycle([now, now + timedelta(hours=1)])
    monkeypatch.setattr(logins.timezone, "now", lambda: next(clock))
    for number in range(40):
        with contextlib.suppress(logins.TooManyLogins):
            logins.admit(f"name{number}", HERE)
            passed += 1
    assert passed == 5


# Every way to log in


def test_guesses_at_one_name(people, hashed):
    assert [basic("ann", "wrong").status_code for _ in range(3)] == [401] * 3
    hashed.clear()
    answer = basic("ann", "wrong")
    assert (answer.status_code, answer["Retry-After"]) == (429, "60")
    assert answer.json()["detail"] == (
        "Too many failed logins for this name from this address. Try again in 60 seconds."
    )
    assert Browser().log_in("ann", "wrong").status_code == 401, "from elsewhere"
    browser = Browser()
    browser.http.defaults["REMOTE_ADDR"] = HERE
    refused = browser.log_in("ann")
    assert (refused.status_code, refused["Retry-After"]) == (429, "60")
    assert hashed == ["wrong"], "the one from elsewhere alone"


def test_random_names_use_up_the_address_and_nobody_else_s(people, hashed):
    assert basic("ann", "ann-password").status_code == 200
    codes = [basic(f"nobody-{number}", "x").status_code for number in range(9)]
    assert codes == [401] * 5 + [429] * 4
    assert len([word for word in hashed if word == "x"]) == 5
    # Behind the same address: who logged in from there before …
    assert basic("ann", "ann-password").status_code == 200
    # … and elsewhere anybody.
    assert basic("ben", "ben-password", THERE).status_code == 200
    assert basic("ben", "ben-password").status_code == 429


def test_a_name_that_is_none_is_treated_as_one_that_is(people):
    def tries(name):
        return [
            (answer.status_code, answer.json())
            for answer in (basic(name, "wrong", f"198.51.100.{len(name)}") for _ in range(5))
        ]

    assert tries("ann") == tries("nobody")


def test_a_right_password_costs_nothing(people):
    for _ in range(20):
        assert basic("ann", "ann-password").status_code == 200
    assert [basic("ann", "wrong").status_code for _ in range(4)] == [401] * 3 + [429]


def left(name, address=HERE):
    """Of both budgets."""
    found = {row.key: round(row.left) for row in LoginBudget.objects.all()}
    return tuple(found.get(key) for key in logins.keys(name, address))


class Shouting:
    """A backend of a project's: names in capitals are as good."""

    def authenticate(self, request, username=None, password=None):
        return ModelBackend().authenticate(request, username.removeprefix("corp\\"), password)

    def get_user(self, user_id):
        return ModelBackend().get_user(user_id)


@pytest.mark.parametrize("way", ["basic", "page"])
def test_the_name_counts_as_it_was_typed(people, settings, way):
    settings.AUTHENTICATION_BACKENDS = ["carillon.accounts.logins.Gate", f"{__name__}.Shouting"]
    browser = Browser()
    browser.http.defaults["REMOTE_ADDR"] = HERE
    for _ in range(4):
        if way == "basic":
            assert basic("corp\\ann", "ann-password").status_code == 200
        else:
            browser.log_in("corp\\ann", "ann-password")
    assert left("corp\\ann") == (3, 5)
    assert left("ann") == (None, 5), "nobody typed that"


def test_a_right_password_does_not_give_back_what_others_guessed(people):
    assert basic("ann", "ann-password").status_code == 200
    for word, status in (("wrong", 401), ("ann-password", 200)) * 2:
        assert basic("ann", word).status_code == status
    assert left("ann") == (1, 5)


def test_a_proof_that_has_ended_costs_the_address_nothing_either(people):
    assert basic("ann", "ann-password").status_code == 200
    LoginBudget.objects.exclude(proven=None).update(proven=timezone.now() - timedelta(days=91))
    for _ in range(3):
        assert basic("ann", "ann-password").status_code == 200
        LoginBudget.objects.exclude(proven=None).update(proven=timezone.now() - timedelta(days=91))
    assert left("ann") == (3, 5)


def test_two_of_one_name_at_once_cost_the_address_nothing(people):
    first, second = logins.admit("ann", HERE), logins.admit("ann", HERE)
    assert left("ann") == (1, 3)
    logins.succeeded(first)
    logins.succeeded(second)
    assert left("ann") == (3, 5)


def test_a_login_without_a_password_gives_back_nothing(people):
    assert basic("ann", "wrong").status_code == 401
    request = RequestFactory().get("/", REMOTE_ADDR=HERE)
    logins._logged_in(None, request, people.ann)
    assert left("ann") == (2, 4)


def test_a_wrong_password_stays_wrong_whoever_is_let_in_behind_it(people):
    """As by a project's view that tries a password and then something else."""
    request = RequestFactory().get("/", REMOTE_ADDR=HERE)
    assert authenticate(request, username="ann", password="wrong") is None
    logins._logged_in(None, request, people.ben)
    assert left("ann") == (2, 4)
    assert not LoginBudget.objects.exclude(proven=None).exists()


def test_a_row_that_a_sweep_removes_is_made_anew(people, monkeypatch):
    """Between the moment at which it is there and the one at which it is read."""
    select, swept = QuerySet.select_for_update, []

    def sweep_first(rows, *arguments, **options):
        if not swept:
            swept.append(LoginBudget.objects.all().delete())
        return select(rows, *arguments, **options)

    monkeypatch.setattr(QuerySet, "select_for_update", sweep_first)
    assert basic("ann", "wrong").status_code == 401
    assert left("ann") == (2, 4)


def test_budgets_fill_again(people):
    assert [basic("ann", "wrong").status_code for _ in range(4)] == [401] * 3 + [429]
    past = timezone.now() - timedelta(seconds=61)
    LoginBudget.objects.update(at=past)
    assert [basic("ann", "wrong").status_code for _ in range(2)] == [401, 429]


def test_a_proof_ends(people):
    assert basic("ann", "ann-password").status_code == 200
    for number in range(5):
        basic(f"nobody-{number}", "x")
    LoginBudget.objects.exclude(proven=None).update(proven=timezone.now() - timedelta(days=91))
    assert basic("ann", "ann-password").status_code == 429


def test_made_up_names_leave_no_rows(people):
    for number in range(20):
        basic(f"nobody-{number}", "x")
    assert LoginBudget.objects.count() == 1 + 5


def test_old_budgets_are_swept(people):
    basic("nobody", "x")
    basic("ann", "ann-password")
    LoginBudget.objects.update(at=timezone.now() - timedelta(days=2))
    logins._sweep()
    assert LoginBudget.objects.count() == 1, "the proof of ann's stays"
    LoginBudget.objects.update(proven=timezone.now() - timedelta(days=91))
    logins._sweep()
    assert not LoginBudget.objects.exists()


def test_a_sweep_gives_nobody_a_new_budget(people):
    """Whose proof has ended, and who is being guessed at now."""
    assert basic("ann", "ann-password").status_code == 200
    LoginBudget.objects.exclude(proven=None).update(proven=timezone.now() - timedelta(days=91))
    assert basic("ann", "wrong").status_code == 401
    logins._sweep()
    assert left("ann") == (2, 4)


def test_a_sweep_waits_for_no_login(people, monkeypatch):
    """A login locks its address and then its name: a sweep that waits for one of them may hold the other."""
    basic("nobody", "x")
    LoginBudget.objects.update(at=timezone.now() - timedelta(days=2))
    select, options = QuerySet.select_for_update, []

    def seen(rows, **more):
        options.append(more)
        return select(rows, **more)

    monkeypatch.setattr(QuerySet, "select_for_update", seen)
    logins._sweep()
    assert options == [{"skip_locked": True}]
    assert not LoginBudget.objects.exists()


def test_a_view_that_is_not_the_api_s(people):
    middleware = logins.RefusalMiddleware(lambda request: HttpResponse())
    request = RequestFactory().get("/")
    answer = middleware.process_exception(request, logins.TooManyLogins("from this address", 4.2))
    assert (answer.status_code, answer["Retry-After"]) == (429, "5")
    assert middleware.process_exception(request, ValueError()) is None


@pytest.mark.parametrize("word", ["a\0b:x", "a:x\0"])
def test_nul_is_no_name_and_no_password(people, word):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Basic {base64.b64encode(word.encode()).decode()}")
    assert client.get("/api/v2/me/").status_code == 401


def test_the_page_on_security_shows_the_line_of_a_login(caplog):
    with caplog.at_level(logging.INFO, "carillon.audit"):
        logins._tell("refused", "ann", "192.0.2.1", "name")
    (line,) = caplog.records
    page = (Path(__file__).parents[3] / "SECURITY.md").read_text()
    shown = re.search(r'"audit": \{(.*)\}', page)[1]
    assert re.findall(r'"(\w+)": ', shown) == list(line.audit)


def test_the_audit_log_has_every_attempt_and_no_password(people, caplog):
    with caplog.at_level(logging.INFO, "carillon.audit"):
        basic("ann", "ann-password")
        for number in range(6):
            basic(f"nobody\n{number}", "s3cret")
    records = [record for record in caplog.records if record.name == "carillon.audit"]
    lines = [json.loads(logs.JsonFormatter().format(record)) for record in records]
    assert [(line["audit"]["outcome"], line["audit"]["address"]) for line in lines] == [
        ("let in", HERE), *[("wrong", HERE)] * 5, ("refused", HERE),
    ]  # fmt: skip
    assert lines[-1]["audit"] == {
        "what": "login", "outcome": "refused", "name": "nobody\n5", "address": HERE,
        "why": "from this address",
    }  # fmt: skip
    assert lines[0]["message"] == f"Login let in: 'ann' from {HERE}"
    assert not any("\n" in logs.TextFormatter().format(record) for record in records)
    assert "s3cret" not in caplog.text
