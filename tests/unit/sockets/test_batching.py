"""Questions of many, asked together."""

import asyncio

import pytest

from carillon.fanout.station import station
from carillon.sockets import batching
from carillon.sockets.authentication import Handshake
from carillon.sockets.batching import Batched
from carillon.sockets.sockets import LOGINS, Left, Sockets

pytestmark = [pytest.mark.asyncio, pytest.mark.django_db(transaction=True)]


class Asked:
    """Answers in capitals; keeps the lists it was given."""

    def __init__(self, fail=None):
        self.lists = []
        self.fail = fail

    def __call__(self, questions):
        self.lists.append(list(questions))
        if self.fail:
            raise self.fail
        return [ValueError(each) if each == "bad" else each.upper() for each in questions]


async def test_one_alone_is_asked_at_once():
    asked = Asked()
    assert await Batched(asked).ask("a") == "A"
    assert asked.lists == [["a"]]


async def test_what_gathers_is_one_list_and_everybody_gets_his_own_answer(monkeypatch):
    monkeypatch.setattr(batching, "MOST", 3)
    asked = Asked()
    ends = Batched(asked)
    assert await asyncio.gather(*(ends.ask(each) for each in "abcde")) == list("ABCDE")
    assert asked.lists == [["a", "b", "c"], ["d", "e"]]


async def test_an_error_is_its_own_only():
    ends = Batched(Asked())
    answers = await asyncio.gather(ends.ask("a"), ends.ask("bad"), ends.ask("c"), return_exceptions=True)
    assert answers[0] == "A"
    assert isinstance(answers[1], ValueError)
    assert answers[2] == "C"


async def test_a_list_that_fails_fails_everybody_in_it_and_nobody_after():
    asked = Asked(fail=RuntimeError("away"))
    ends = Batched(asked)
    answers = await asyncio.gather(ends.ask("a"), ends.ask("b"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError]
    asked.fail = None
    assert await ends.ask("c") == "C"


async def test_who_left_is_not_asked_for():
    asked = Asked()
    ends = Batched(asked)
    gone = asyncio.ensure_future(ends.ask("gone"))
    stays = asyncio.ensure_future(ends.ask("a"))
    gone.get_loop().call_soon(gone.cancel)
    assert await stays == "A"
    assert gone.cancelled()
    assert asked.lists in ([["a"]], [["gone", "a"]])


async def test_handshakes_that_come_at_once_are_looked_at_some_at_a_time(monkeypatch, settings):
    """Five thousand came back after a kill, all were half done after ten seconds, and all were sent away."""
    monkeypatch.setattr("carillon.sockets.sockets.LOGINS", 2)
    settings.CARILLON = {**settings.CARILLON, "LOGIN_SECONDS": 0.2}
    here, hangs, under_way, most = Sockets(station()), asyncio.Event(), 0, 0

    class Logins:
        async def ask(self, question):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                if question.user_agent == "late":
                    await hangs.wait()
                await asyncio.sleep(0)
                return question.user_agent
            finally:
                under_way -= 1

    here._logins = Logins()

    def ask(name):
        return here.authenticate(Handshake({"headers": [(b"user-agent", name.encode())]}))

    names = ["late", "late", *"abcdefgh"]
    answers = await asyncio.gather(*map(ask, names), return_exceptions=True)
    # Who waits behind them has his whole time when it is his turn.
    assert [type(answer) for answer in answers[:2]] == [TimeoutError] * 2
    assert answers[2:] == list("abcdefgh")
    assert (most, under_way) == (2, 0)
    await asyncio.gather(*map(ask, "ij"))


async def test_who_has_left_before_his_turn_is_not_looked_at():
    """Clients wait for ten seconds and come again: the places that they left must cost nothing."""
    here = Sockets(station())
    here._logins = None
    with pytest.raises(Left):
        await here.authenticate(Handshake({"headers": []}), lambda: True)
    assert here._turns._value == LOGINS


async def test_who_leaves_before_his_turn_takes_none(monkeypatch):
    monkeypatch.setattr("carillon.sockets.sockets.LOGINS", 1)
    monkeypatch.setattr("carillon.sockets.sockets.TURN_SECONDS", 0.1)
    here, hangs = Sockets(station()), asyncio.Event()

    class Logins:
        async def ask(self, question):
            await hangs.wait()

    here._logins = Logins()
    first = asyncio.ensure_future(here.authenticate(Handshake({"headers": []})))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await here.authenticate(Handshake({"headers": []}))
    hangs.set()
    await first
    await here.authenticate(Handshake({"headers": []}))
