import asyncio
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp import ConfigurationError
from asgi_amqp.connection import Options, Target, _Reader
from asgi_amqp.frames import BEAT, Tap
from tests.unit.asgi_amqp.test_frames import deliver as delivery


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_every_user_password_and_vhost_can_be_written(user, password, vhost):
    try:
        parts = [quote(part, safe="") for part in (user, password, vhost)]
    except UnicodeEncodeError:
        return
    target = Target.parse("amqps://{}:{}@broker.test/{}".format(*parts))
    assert (target.user, target.password, target.vhost) == (user, password, vhost)
    assert (target.host, target.port, target.tls) == ("broker.test", 5671, True)


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost"),
    [
        ("amqp://h", "h", 5672, "/"),
        ("amqp://h:99/", "h", 99, "/"),
        ("amqp://u:p@[::1]:99/v", "::1", 99, "v"),
        ("amqp://u:p@[::1]/%2F", "::1", 5672, "/"),
    ],
)
def test_what_a_url_may_leave_out(url, host, port, vhost):
    target = Target.parse(url)
    assert (target.host, target.port, target.vhost) == (host, port, vhost)


@pytest.mark.parametrize(
    "url",
    ["amqp://u:SECRET#x@h/v", "amqp://u:SECRET?x@h/v", "amqp://u:SEC@RET@h/v", "http://u:SECRET@h",
     "u:SECRET@h",
     "amqp://u:SECRET/x@h/v", "amqp://u:SECRET@/v", "amqp://u:SECRET@h:port/v"],
)  # fmt: skip
def test_a_url_that_is_wrong_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigurationError) as caught:
        Target.parse(url)
    assert "SEC" not in str(caught.value)


def test_a_target_does_not_show_its_password():
    target = Target.parse("amqp://user:SECRET@h/v")
    assert "SECRET" not in f"{target} {target!r} {Options((target,), 'x')!r}"


def test_an_authority_that_is_not_there_is_an_error_of_configuration():
    options = Options((Target.parse("amqps://h"),), "x", ssl_ca="/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match=r"ssl_ca /nowhere/ca\.pem"):
        _ = options.tls


class Transport:
    """Notes whether it may read."""

    reading = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


def connected(**callbacks):
    reader = _Reader(asyncio.get_running_loop())
    reader.transport = Transport()
    reader.splitter.taps[1] = Tap(**callbacks)
    return reader


async def test_a_polite_tap_takes_one_delivery_in_a_turn_and_a_full_buffer_stops_the_socket():
    seen = []
    reader = connected(on_delivery=lambda delivery: seen.append(delivery.tag), polite=True)
    body = bytes(100_000)
    reader.feed_data(b"".join(delivery(1, tag, body) for tag in range(1, 12)))
    assert seen == [1]
    reader.feed_data(delivery(1, 12, body))
    assert not reader.transport.reading
    for turn in range(2, 13):
        await asyncio.sleep(0)
        assert seen == list(range(1, turn + 1))
    await asyncio.sleep(0)  # what comes in the turn of the last one waits for the next, too
    assert reader.transport.reading


async def test_what_came_before_the_end_is_taken_in():
    seen = []
    reader = connected(on_delivery=lambda delivery: seen.append(delivery.tag), polite=True)
    reader.feed_data(b"".join(delivery(1, tag, b"x") for tag in (1, 2, 3)))
    reader.feed_eof()
    assert seen == [1, 2, 3]
    await asyncio.sleep(0)
    assert reader.at_eof()


async def test_a_broker_that_speaks_to_taps_alone_is_not_taken_for_dead(monkeypatch):
    now = 0.0
    monkeypatch.setattr("asgi_amqp.connection.time.monotonic", lambda: now)
    reader = connected(on_delivery=lambda delivery: None)
    for _ in range(12):
        now += 0.25  # a sum without rounding: a beat at 1.25 and at 2.5
        reader.feed_data(delivery(1, 1, b"x"))
    assert await reader.read(1000) == BEAT * 2
