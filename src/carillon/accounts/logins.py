"""Passwords are expensive to check, and can be guessed: who may try one, decided before any hashing.

`Gate` is the first of AUTHENTICATION_BACKENDS, so that every way to log in comes by it: the login page, Basic
in each request, and what a project adds. Two budgets, in the database, for all hosts together:

- one name from one address: `LOGIN_NAME_BURST` wrong passwords at once, `LOGIN_NAME_RATE` a second;
- one address, for names that never logged in from there: `LOGIN_ADDRESS_BURST`, `LOGIN_ADDRESS_RATE`. Who did
  within `LOGIN_PROVEN_DAYS` is not held up by what others behind the same address try.

A right password costs nothing: what its attempt took is given back, for the name as it was typed. Whether a
name exists makes no difference here, so nobody learns it by this.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import random
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from rest_framework.exceptions import Throttled

from carillon.accounts import audit
from carillon.accounts.models import LoginBudget
from carillon.budgets import Allowance
from carillon.conf import conf
from carillon.metrics import names

BEGAN = "_carillon_began"
"""In a session: when its login was, in seconds since 1970."""

UNTYPED = "\0"
"""Begins a name that no user's login spends the budget of: no form takes a NUL, nor does Basic."""

SWEEP = 100
"""One attempt in so many also removes budgets that have been full for long."""

SWEPT = 10 * SWEEP
"""So many at a time: more than the attempts until the next sweep can leave."""


class TooManyLogins(Throttled):
    """429, with the seconds to wait in Retry-After."""

    def __init__(self, budget: str, wait: float) -> None:
        seconds = math.ceil(min(wait, 3600))
        self.budget = budget
        super().__init__(wait=seconds)
        self.detail = f"Too many failed logins {budget}. Try again in {seconds} seconds."


# The decision: pure ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """`budget`: the one that is used up, None when the password may be looked at; `wait`: seconds; `proven`:
    nothing was taken from the address."""

    budget: str | None = None
    wait: float = 0.0
    proven: bool = False


def decide(name: Allowance, address: Allowance, proven: bool, now: float) -> Verdict:
    """Whether a password may be looked at; spends from the budgets if so."""
    if not proven and (wait := address.wait(now)):
        return Verdict("from this address", wait)
    if wait := name.wait(now):
        return Verdict("for this name from this address", wait)
    name.spend(now)
    if not proven:
        address.spend(now)
    return Verdict(proven=proven)


def give_back(name: Allowance, address: Allowance, proven: bool, now: float) -> None:
    """What `decide` has taken, and no more: others may guess at the same name from the same address."""
    name.give(now)
    if not proven:
        address.give(now)


def network(address: str) -> str:
    """What counts as one address: of IPv6 the 64 bits that a customer is given. "" for what is none."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


def keys(name: str, address: str) -> tuple[str, str]:
    """The keys of both budgets: of the name from the address, and of the address."""
    same = unicodedata.normalize("NFKC", name).casefold()
    return _digest(f"{address}\0{same}"), _digest(address)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# The shell -------------------------------------------------------------------------------------------------


class Gate:
    """Lets nobody in: raises TooManyLogins, or leaves it to the backends behind it. No get_user(): a session
    is never of this one."""

    def authenticate(self, request: Any, **credentials: Any) -> None:
        where = place(request)
        name = credentials.get("username", credentials.get(get_user_model().USERNAME_FIELD))
        if where and name is not None:
            request.carillon_attempt = admit(str(name), where)

    async def aauthenticate(self, request: Any, **credentials: Any) -> None:
        await sync_to_async(self.authenticate)(request, **credentials)


def place(request: Any) -> str:
    """The network that a request comes from; "" when there is none, as for a command."""
    return network(request.META.get("REMOTE_ADDR", "")) if request is not None else ""


@dataclass(frozen=True)
class Attempt:
    """Under way: the name as it was typed, where from, and whether the address's budget was spared."""

    name: str
    where: str
    proven: bool


def admit(name: str, where: str) -> Attempt:
    """Takes an attempt from the budgets. Raises TooManyLogins, DatabaseError."""
    verdict = _with_budgets(name, where, _spend)
    if random.randrange(SWEEP) == 0:  # noqa: S311  (spreads work, hides nothing)
        _sweep()
    if verdict.budget is not None:
        names.OVER_BUDGET.labels("logins").inc()
        _tell("refused", name, where, verdict.budget)
        raise TooManyLogins(verdict.budget, verdict.wait)
    return Attempt(name, where, verdict.proven)


def succeeded(attempt: Attempt) -> None:
    """The password was right: what the attempt took is given back, and the name is known here from now on.
    Raises DatabaseError."""
    proven(attempt)
    _tell("let in", attempt.name, attempt.where)


def proven(attempt: Attempt) -> None:
    """What it took is given back, and nobody is told."""
    _give_back(attempt, proven=True)


def untried(attempt: Attempt) -> None:
    """Whoever was to judge it was away: what it took is given back, and nothing is proven."""
    _give_back(attempt, proven=False)


def _give_back(attempt: Attempt, proven: bool) -> None:
    def act(pair: LoginBudget, address: LoginBudget, now: datetime) -> Verdict:
        of_name, of_address = _allowances(pair, address)
        give_back(of_name, of_address, attempt.proven, now.timestamp())
        if proven:
            pair.proven = now
        _keep(pair, of_name, now)
        _keep(address, of_address, now)
        return Verdict()

    _with_budgets(attempt.name, attempt.where, act)


def password_was_right(request: Any) -> None:
    """For who lets somebody in without a session, of which Django tells nobody. A login without a password,
    such as one by a link, has taken nothing. Raises DatabaseError."""
    attempt = getattr(request, "carillon_attempt", None)
    if attempt is not None:
        request.carillon_attempt = None
        succeeded(attempt)


def _spend(pair: LoginBudget, address: LoginBudget, now: datetime) -> Verdict:
    known = pair.proven is not None and now - pair.proven < timedelta(days=conf.LOGIN_PROVEN_DAYS)
    of_name, of_address = _allowances(pair, address)
    verdict = decide(of_name, of_address, known, now.timestamp())
    _keep(pair, of_name, now)
    _keep(address, of_address, now)
    return verdict


def _allowances(pair: LoginBudget, address: LoginBudget) -> tuple[Allowance, Allowance]:
    return (
        Allowance(conf.LOGIN_NAME_BURST, conf.LOGIN_NAME_RATE, pair.left, pair.at.timestamp()),
        Allowance(conf.LOGIN_ADDRESS_BURST, conf.LOGIN_ADDRESS_RATE, address.left, address.at.timestamp()),
    )


def _keep(row: LoginBudget, allowance: Allowance, now: datetime) -> None:
    row.left, row.at = allowance.left, now


def _with_budgets(
    name: str, where: str, act: Callable[[LoginBudget, LoginBudget, datetime], Verdict]
) -> Verdict:
    """`act` on both budgets, which nobody else touches meanwhile; what it changed is stored."""
    of_name, of_address = keys(name, where)
    with transaction.atomic():
        # The lock of the address is that of all its names, too.
        address = _locked(of_address, conf.LOGIN_ADDRESS_BURST)
        # Behind the lock, and by one clock for all hosts: a time that goes back would fill budgets again.
        now = LoginBudget.objects.filter(pk=address.pk).values_list(Now(), flat=True).get()
        pair = LoginBudget.objects.filter(key=of_name).first()
        known = pair is not None
        pair = pair or LoginBudget(key=of_name, left=conf.LOGIN_NAME_BURST, at=now)
        verdict = act(pair, address, now)
        address.save(update_fields=["left", "at"])
        # A name that was never looked at leaves no row: names are free to make up.
        if known or verdict.budget is None:
            LoginBudget.objects.bulk_create(
                [pair], update_conflicts=True, unique_fields=["key"], update_fields=["left", "at", "proven"]
            )
    return verdict


def _locked(key: str, burst: float) -> LoginBudget:
    while True:
        LoginBudget.objects.bulk_create([LoginBudget(key=key, left=burst, at=Now())], ignore_conflicts=True)
        # A sweep may have removed an old row between the two: the next one is new.
        if (row := LoginBudget.objects.select_for_update().filter(key=key).first()) is not None:
            return row


def _sweep() -> None:
    """Some of the budgets that nobody has touched for longer than they take to be full again, and that prove
    nothing any more. What a login has locked is left: it waits for the others, and we would wait for it."""
    now = timezone.now()
    proofs = Q(proven=None) | Q(proven__lt=now - timedelta(days=conf.LOGIN_PROVEN_DAYS))
    old = LoginBudget.objects.filter(proofs, at__lt=now - timedelta(days=1))
    with transaction.atomic():
        keys = list(old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:SWEPT])
        LoginBudget.objects.filter(pk__in=keys).delete()


# Who hears of it -------------------------------------------------------------------------------------------


def _tell(outcome: str, name: str, where: str, why: str = "") -> None:
    """One line for each attempt, and a count."""
    names.PASSWORDS.labels(outcome.replace(" ", "_")).inc()
    tell(outcome, name, where, why)


def tell(outcome: str, name: str, where: str, why: str = "") -> None:
    """One line. A name may be anything that was typed: no line breaks of it."""
    name = name.removeprefix(UNTYPED)[:150]
    words = f"Login {outcome}: {name!r} from {where}"
    audit.line(words, {"what": "login", "outcome": outcome, "name": name, "address": where, "why": why})


@receiver(user_logged_in)
def _logged_in(sender: Any, request: Any, user: Any, **more: Any) -> None:
    password_was_right(request)
    if (session := getattr(request, "session", None)) is not None:
        session[BEGAN] = int(time.time())
        audit.keep("session began", user.get_username())


@receiver(user_login_failed)
def _login_failed(sender: Any, credentials: dict[str, Any], request: Any = None, **more: Any) -> None:
    if where := place(request):
        request.carillon_attempt = None  # whoever is let in by this request, it was not by this password
        name = str(credentials.get(get_user_model().USERNAME_FIELD, ""))
        _tell("wrong", name, where)
        audit.keep_refusal(name)


def is_stale(session: Any) -> bool:
    """Whether its login is too long ago for what asks for a fresh one."""
    most = conf.FRESH_LOGIN_SECONDS
    return most > 0 and time.time() - session.get(BEGAN, 0) > most


class RefusalMiddleware:
    """A refused login in a view that is not of the REST framework's: the same 429."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, TooManyLogins):
            return None
        headers = {"Retry-After": str(exception.wait)}
        return JsonResponse({"detail": exception.detail}, status=429, headers=headers)
