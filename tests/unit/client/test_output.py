"""One job's output, followed in the test's own process: an API that is away, and a job that is just over."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from carillon.client import output
from carillon.client.endpoint import endpoint
from carillon.client.errors import Away, ConfigurationError
from tests.unit.client.stub_server import TOKEN, StubCarillon, job_event, status

LINES = [f"line {number}" for number in range(1, 701)]


@pytest.fixture
async def stub():
    async with StubCarillon() as server:
        server.job = {"id": 42, "status": "successful", "event_family": "job_events"}
        server.events = [job_event(number, line) for number, line in enumerate(LINES, 1)]
        yield server


@pytest.fixture
def said():
    return []


@pytest.fixture
def written():
    return []


@pytest.fixture
def follow(stub, said, written, monkeypatch):
    monkeypatch.setattr(output, "ASK_AGAIN", 0.05)

    def start(**options):
        return output.follow(endpoint(stub.url, TOKEN), 42, written.append, on_link=said.append, **options)

    return start


@pytest.mark.parametrize("code", [429, 502, 503])
async def test_a_job_that_is_over_is_written_whole_when_pages_are_not_answered(
    stub, follow, said, written, code
):
    stub.page_statuses.extend([200, code, code, 200, code])
    assert await follow() == "successful"
    assert "".join(written).splitlines() == LINES
    assert [words.partition(" ")[0] for words in said] == ["behind:", "behind:", "behind:", "loaded:"]


async def test_giving_up_begins_with_the_first_page_that_is_not_answered(stub, follow, written):
    stub.page_statuses.extend([200, 503, 200, 503, *[503] * 9])
    with pytest.raises(Away, match="503"):
        await follow(give_up=0.1)
    assert len(written) == 400, "what was answered after a loss ends it"
    assert len(stub.page_statuses) > 3


async def test_what_the_api_does_not_take_is_not_asked_for_again(stub, follow):
    stub.page_statuses.append(400)
    with pytest.raises(ConfigurationError, match="takes no such request"):
        await follow(search="x" * 301)


async def test_the_end_of_a_live_job_is_waited_for_while_the_api_is_away(
    stub, follow, said, written, monkeypatch
):
    monkeypatch.setattr(output, "END_PATIENCE", 0.1)
    stub.job["status"], every, stub.events = "running", stub.events, []
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        while "live: 0 lines so far" not in said:
            await asyncio.sleep(0.01)
        stub.job["status"], stub.events = "successful", every
        stub.page_statuses.extend([503] * 20)
        await stub.send(status(42, "successful"))
    assert following.result() == "successful"
    assert "".join(written).splitlines() == LINES


def ago(**how_long):
    return (datetime.now(UTC) - timedelta(**how_long)).isoformat().replace("+00:00", "Z")


async def test_the_last_events_of_a_job_that_is_just_over_are_waited_for(
    stub, follow, said, written, monkeypatch
):
    monkeypatch.setattr(output, "END_PATIENCE", 2.0)
    stub.job["finished"] = ago(seconds=1)
    last = stub.events.pop()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        await stub.until(lambda: any(f"counter__gt={last['counter'] - 1}" in path for path in stub.requests))
        assert not following.done()
        stub.events.append(last)
    assert "".join(written).splitlines() == LINES
    assert said == ["loaded: 700 lines"]


@pytest.mark.parametrize("finished", [{"hours": 1}, {"seconds": 6}])
async def test_a_job_that_was_over_before_is_not_waited_for(stub, follow, finished):
    stub.job["finished"] = ago(**finished)
    async with asyncio.timeout(output.END_PATIENCE / 2):
        await follow()


async def test_a_clock_that_is_behind_waits_no_longer_than_the_patience(stub, follow, monkeypatch):
    monkeypatch.setattr(output, "END_PATIENCE", 0.1)
    stub.job["finished"] = ago(hours=-1)
    async with asyncio.timeout(10):
        await follow()
