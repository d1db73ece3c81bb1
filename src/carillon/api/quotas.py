"""What a user and a team may make: so much at once, and so much over time. Counted in each uwsgi process, in
memory, so that nobody waits for it; 429 says which quota it was and when to come back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from rest_framework.exceptions import Throttled

from carillon.budgets import Allowance, InHand, Meter
from carillon.conf import DEFAULTS, conf
from carillon.metrics import names

_meter = Meter()
_in_hand = InHand(0, seconds=120)  # longer than a process works at a request
_lock = Lock()  # of a process's threads

DAY = 24 * 3600


class OverQuota(Throttled):
    """429."""

    def __init__(self, text: str, wait: float) -> None:
        seconds = math.ceil(min(wait, DAY))
        super().__init__(wait=seconds)
        self.detail = f"{text} Try again in {seconds} seconds."


@contextmanager
def spent(what: str, user: Any, amount: int = 1, team: int | None = None) -> Iterator[None]:
    """`what` of `conf.QUOTAS` and, where it is a team's, of `conf.TEAM_QUOTAS`, for what is made inside;
    given back when it fails. Raises OverQuota, and takes nothing then."""
    spent = [_spend("quota", "QUOTAS", what, user.pk, amount)]
    try:
        if team is not None:
            spent.append(_spend("quota_team", "TEAM_QUOTAS", what, team, amount))
        yield
    except BaseException:
        with _lock:
            for allowance in spent:
                allowance.give(time.monotonic(), amount)
        raise


def _spend(budget: str, setting: str, what: str, actor: int, amount: int) -> Allowance:
    burst, a_day = (DEFAULTS[setting] | getattr(conf, setting))[what]
    with _lock:
        allowance, now = _meter.of((setting, what, actor), burst, a_day / DAY), time.monotonic()
        if allowance.spend(now, amount):
            return allowance
        wait = allowance.wait(now, amount)
    names.OVER_BUDGET.labels(f"{budget}_{what}").inc()
    whose = f" of team {actor}" if setting == "TEAM_QUOTAS" else ""
    raise OverQuota(f"Too many {what}{whose}: {burst:,} at once and {a_day:,} a day are allowed.", wait)


@contextmanager
def at_once(what: str, user: Any, most: int) -> Iterator[None]:
    """Of what takes long, so much at a time in each process. Raises OverQuota."""
    with _lock:
        _in_hand.most = most
        ticket = _in_hand.take((what, user.pk), 1, time.monotonic())
    if ticket is None:
        names.OVER_BUDGET.labels(f"quota_{what}").inc()
        raise OverQuota(f"{most} {what} of yours are under way: wait for their answers.", 1)
    try:
        yield
    finally:
        with _lock:
            _in_hand.give((what, user.pk), ticket)


def at_most(what: str, there: int, most: int) -> None:
    """Of what a user has at a time. Raises OverQuota."""
    if there >= most:
        names.OVER_BUDGET.labels(f"quota_{what}").inc()
        raise OverQuota(f"You have {there} {what}, and {most} are allowed: delete some.", 1)
