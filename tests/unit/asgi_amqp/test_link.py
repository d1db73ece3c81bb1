"""Link: what becomes of calls when the link ends, or who waits for them does."""

import asyncio
import ssl
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from asgi_amqp import connection as module
from asgi_amqp.connection import Link
from asgi_amqp.exceptions import BrokerUnavailable, ConfigurationError
from asgi_amqp.options import Target
from asgi_amqp.transport import Tap
from tests.unit.asgi_amqp.links import OPTIONS


class Connection:
    """aiormq's, as far as a link that makes no channels uses it."""

    connection_tune = SimpleNamespace(frame_max=131072, channel_max=0)

    def __init__(self):
        self.closing = asyncio.get_running_loop().create_future()

    async def close(self):
        """At once."""


@pytest.fixture
async def link():
    return Link(OPTIONS.targets[0], 1, Connection(), SimpleNamespace(transport=None), True)


@pytest.mark.parametrize("begun", [True, False])
async def test_who_waits_for_a_call_that_the_link_ends_is_not_cancelled_but_told(link, begun):
    """As a task that declares a queue: cancelled, it would leave what is held for the queue held for ever."""
    waiting = asyncio.create_task(link.own(asyncio.sleep(60)))
    await asyncio.sleep(0.01 if begun else 0)
    await link.close()
    with pytest.raises(BrokerUnavailable, match="going"):
        await asyncio.wait_for(waiting, 2)


async def test_a_call_goes_on_when_who_waits_for_it_is_cancelled(link):
    done = []

    async def call():
        await asyncio.sleep(0.02)
        done.append(True)

    waiting = asyncio.create_task(link.own(call()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.05)
    assert done == [True]


async def test_what_still_comes_on_a_link_that_is_lost_is_for_nobody(link):
    """Frames that were on their way when it was given up: those on the next link must not hear them."""
    heard = []
    names = ("on_delivery", "on_confirm", "on_return", "on_answer")
    tap = Tap(**{name: lambda *_, name=name: heard.append(name) for name in names})
    link._taps[1] = tap
    tap.on_answer()
    link.give_up("cut by a test")
    tap.on_delivery(None)
    tap.on_confirm(1, False, True)
    tap.on_return("1")
    tap.on_answer()
    assert heard == ["on_answer"]


async def test_a_goodbye_that_is_cancelled_by_nobody_ends_no_supervisor(link):
    async def close():
        raise asyncio.CancelledError

    link._connection.close = close
    await link.close()
    assert link.lost.done()


async def test_an_attempt_that_is_cancelled_by_nobody_has_failed(monkeypatch):
    async def connect(_):
        raise asyncio.CancelledError

    monkeypatch.setattr("aiormq.Connection.connect", connect)
    with pytest.raises(BrokerUnavailable, match="going"):
        await module.connect(OPTIONS.targets[0], OPTIONS, 1)


async def test_a_call_that_the_link_ends_before_it_has_begun_keeps_no_place(link):
    """Others that wait for one would wait for ever, and hold what they were to declare."""
    places = link._attempts._value
    calls = [asyncio.create_task(link.attempt(lambda _: asyncio.sleep(0))) for _ in range(places + 1)]
    await asyncio.sleep(0)
    for task in list(link._tasks):
        task.cancel()
    *first, waiting = calls
    ended = await asyncio.gather(*first, return_exceptions=True)
    assert {type(each) for each in ended} == {BrokerUnavailable}
    with pytest.raises(AttributeError, match="channel"):  # it had its turn: this connection has none
        await asyncio.wait_for(waiting, 2)
    assert link._attempts._value == places


@pytest.mark.parametrize("vhost", ["/", "prod", "/prod", "a/b", "//", "\u00fc x"])
async def test_the_broker_is_asked_for_the_vhost_that_the_url_names(vhost, monkeypatch):
    asked = []

    async def connect(connection):
        asked.append(connection.vhost)
        raise ConnectionRefusedError

    monkeypatch.setattr("aiormq.Connection.connect", connect)
    target = Target.parse(f"amqp://broker.test/{quote(vhost, safe='')}")
    assert target.vhost == vhost
    with pytest.raises(BrokerUnavailable):
        await module.connect(target, OPTIONS, 1)
    assert asked == [vhost]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("NOT_ALLOWED - access to vhost 'x' refused: connection limit (3) is reached", BrokerUnavailable),
        ("NOT_ALLOWED - vhost x not found", ConfigurationError),
    ],
)
async def test_a_limit_of_connections_is_waited_for(said, error, monkeypatch):
    async def connect(connection):
        raise ConnectionRefusedError(said)

    monkeypatch.setattr("aiormq.Connection.connect", connect)
    with pytest.raises(error):
        await module.connect(OPTIONS.targets[0], OPTIONS, 1)


@pytest.mark.parametrize(("code", "asks"), [(20, True), (10, False), (62, False)])
async def test_a_certificate_that_has_expired_is_no_question_of_its_authority(code, asks, monkeypatch):
    async def connect(connection):
        cause = ssl.SSLCertVerificationError("bad")
        cause.verify_code, cause.verify_message = code, "certificate has expired"
        raise ConnectionError from cause

    monkeypatch.setattr("aiormq.Connection.connect", connect)
    with pytest.raises(ConfigurationError, match="certificate has expired") as caught:
        await module.connect(OPTIONS.targets[0], OPTIONS, 1)
    assert ("ssl_ca" in str(caught.value)) == asks
