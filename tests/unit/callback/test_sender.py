"""The thread that sends, without Ansible: when it asks again."""

from __future__ import annotations

import time

import pytest

from tests.unit.callback.stub_api import TOKEN, StubApi


@pytest.fixture
def begin(plugin):
    def begin(api):
        """A sender whose own pauses are short."""
        job = {"name": "a", "status": "pending"}
        address = plugin.Api(api.url, TOKEN)
        sender = plugin.Sender(address, job, TOKEN, 10**6, 200, 0.01, 5, lambda: 0.01)
        sender.start()
        return sender

    return begin


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("over", [False, True])
def test_it_comes_back_when_it_was_told_to(begin, status, over):
    """Neither earlier while the run goes on, nor because it ends."""
    with StubApi() as api:
        sender = begin(api)
        api.wait_for(lambda a: a.jobs and a.jobs[41]["statuses"][-1] == "running")
        with api.changed:
            before, api.answer, api.later = len(api.times), (status, 0), "1"
        sender.put({"event": "one", "stdout": ""})
        api.wait_for(lambda a: len(a.times) > before)
        with api.changed:
            api.answer = None
        if over:
            assert sender.finish("successful", 5)
        api.wait_for(lambda a: a.events)
        first, second = api.times[before : before + 2]
        assert 1 <= second - first < 4
        assert over or sender.finish("successful", 5)


def test_who_is_told_to_come_back_after_the_end_gives_up_at_once(begin):
    with StubApi() as api:
        sender = begin(api)
        api.wait_for(lambda a: a.jobs and a.jobs[41]["statuses"][-1] == "running")
        with api.changed:
            api.answer, api.later = (429, 0), "3600"
        sender.put({"event": "one", "stdout": ""})
        begun = time.monotonic()
        assert not sender.finish("successful", 30)
        assert time.monotonic() - begun < 5
    assert sender.notices[-1].endswith("it answers 429 as the test wants it.")


@pytest.mark.parametrize("later", ["Fri, 31 Dec 1999 23:59:59 GMT", "-1", "soon", "\u00b2", "9" * 5000])
def test_a_word_that_is_no_number_of_seconds_is_none(begin, later):
    with StubApi(answer=(503, 0)) as api:
        api.later = later
        sender = begin(api)
        api.wait_for(lambda a: len(a.times) > 3)
        with api.changed:
            api.answer = None
        api.wait_for(lambda a: a.jobs)
        assert sender.finish("successful", 5)
