"""What sockets count: who came and went, who was refused, whose rights were asked for."""

from __future__ import annotations

import pytest

from carillon.fanout.station import station
from carillon.metrics import names, sampled
from carillon.sockets.sockets import sockets
from tests.unit.support.sockets import Client

pytestmark = pytest.mark.django_db(transaction=True)


def value(metric, *labels) -> float:
    return (metric.labels(*labels) if labels else metric)._value.get()


@pytest.fixture
def grown():
    """How much a counter has grown since the test began."""
    counters = (names.HANDSHAKES, names.REFUSED, names.RESUMES, names.GAPS)
    before = {
        (metric, values): child._value.get()
        for metric in counters
        for values, child in metric._metrics.items()
    }
    before[names.RECHECKED, ()] = value(names.RECHECKED)
    return lambda metric, *labels: value(metric, *labels) - before.get((metric, labels), 0)


@pytest.fixture
def token(people) -> str:
    return people.token(people.ann)


async def test_who_comes_and_goes(token, grown):
    at = value(names.SOCKETS, "v1")
    client = Client(token=token)
    await client.open()
    assert (value(names.SOCKETS, "v1") - at, grown(names.HANDSHAKES, "v1")) == (1, 1)
    await client.leave()
    assert (value(names.SOCKETS, "v1") - at, grown(names.HANDSHAKES, "v1")) == (0, 1)


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("nothing", {}),
        ("invalid", {"token": "nonsense"}),
        ("origin", {"cookie": "__Host-awx_sessionid=x", "origin": "https://evil.example"}),
    ],
)
async def test_who_is_refused_and_why(people, grown, reason, options):
    assert (await Client(**options).open())["accept"] is False
    assert {each: grown(names.REFUSED, each) for each in names.REFUSALS} == {
        each: float(each == reason) for each in names.REFUSALS
    }


async def test_who_is_one_too_many(token, grown, settings):
    settings.CARILLON = {**settings.CARILLON, "SOCKETS_PER_USER": 0}
    assert (await Client(token=token).open())["accept"] is False
    assert (await Client("/websocket/any/", token=token).raw.connect())[0]
    assert {each: grown(names.REFUSED, each) for each in names.REFUSALS} == {
        each: 2.0 * (each == "quota") for each in names.REFUSALS
    }


async def test_whose_rights_are_asked_for(token, grown):
    client = Client(token=token)
    await client.open()
    here = sockets()
    (socket,) = here._by_outlet.values()
    here.suspect(socket)
    sampled.sample()
    assert value(names.SOCKETS_HELD) == 1
    await here._asking
    sampled.sample()
    assert (value(names.SOCKETS_HELD), grown(names.RECHECKED)) == (0, 1)


async def test_a_gap_is_counted_by_its_reason(people, grown):
    station()._gap("retention")
    assert (grown(names.GAPS, "retention"), grown(names.GAPS, "epoch")) == (1, 0)


async def test_a_resume_that_cannot_be_had_is_counted(token, grown):
    client = Client(token=token)
    client.raw.scope["subprotocols"] = ["carillon.v2"]
    await client.open()
    await client.subscribe({"schedules": ["changed"]}, since="other:5")
    assert (await client.frame())["recovered"] is False
    assert grown(names.RESUMES, "epoch") == 1
