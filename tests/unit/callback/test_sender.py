"""The thread that sends, without Ansible: when it asks again."""

from __future__ import annotations

import re
import threading
import time

import pytest

from tests.unit.callback.stub_api import TOKEN, StubApi


@pytest.fixture
def begin(plugin):
    def begin(api, batch_events=200):
        """A sender whose own pauses are short."""
        job = {"name": "a", "status": "pending"}
        address = plugin.Api(api.url, TOKEN)
        sender = plugin.Sender(address, job, TOKEN, 10**6, batch_events, 0.01, 30, lambda: 0.01)
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


class Picky(StubApi):
    """Is slow, or says nothing at all until it is told to, for what has `part` in its path or method."""

    def __init__(self, part):
        super().__init__()
        self.part, self.seconds, self.hangs, self.refusal = part, 0.0, False, None

    def _respond(self, method, path, token, body):
        if self.part in f"{method} {path}":
            if self.seconds:
                time.sleep(self.seconds)
            if self.hangs:
                self.changed.notify_all()  # it has come
                self.changed.wait_for(lambda: not self.hangs, 30)  # others are answered meanwhile
            if self.refusal:
                return self.refusal, {"detail": "as the test wants it"}
        return super()._respond(method, path, token, body)

    def running(self):
        self.wait_for(lambda a: a.jobs and a.jobs[41]["statuses"][-1] == "running")

    def let_go(self):
        with self.changed:
            self.hangs = False
            self.changed.notify_all()


def fill(sender, number):
    for counter in range(number):
        sender.put({"event": f"number {counter}", "stdout": ""})


def noticed(sender, number):
    """Waits until it has said so many things."""
    until = time.monotonic() + 5
    while len(sender.notices) < number:
        assert time.monotonic() < until
        time.sleep(0.01)


def late(sender, seconds, status="successful"):
    """Finishes what cannot arrive in time."""
    begun = time.monotonic()
    assert not sender.finish(status, seconds)
    assert time.monotonic() - begun < max(0, seconds) + 0.5


def test_a_slow_api_with_a_backlog_hears_how_the_run_has_ended(begin):
    with Picky("/events/") as api:
        sender = begin(api, batch_events=1)
        api.running()
        api.seconds = 0.3
        fill(sender, 100)
        late(sender, 4, "failed")
        assert api.jobs[41]["statuses"][-1] == "failed"
        # Whoever reads the job learns how many are missing.
        assert api.jobs[41]["eof"] == 100
        arrived = len(api.events)
    assert 5 <= arrived <= 12
    said = re.fullmatch(
        r"(\d+) events at the end of this run were not sent to Carillon at \S+: there was no time left for "
        r"them\. Its status was sent\.",
        sender.notices[-1],
    )
    # The one that was cut has arrived, or not.
    assert 100 - arrived <= int(said[1]) <= 100 - arrived + 1


@pytest.mark.parametrize("part", ["POST /api/v2/jobs/41/events/", "PATCH"])
def test_a_request_that_hangs_since_before_the_end_is_cut(begin, part):
    with Picky(part) as api:
        if part == "PATCH":
            api.hangs = True
        sender = begin(api)
        if part != "PATCH":
            api.running()
            api.hangs = True
        fill(sender, 3)
        api.wait_for(lambda a: len(a.bodies) == (2 if part == "PATCH" else 3))
        if part == "PATCH":
            threading.Timer(1.7, api.let_go).start()  # it is away, and comes back in the last part
        late(sender, 2)
        assert api.jobs[41]["statuses"][-1] == "successful"
        if part == "PATCH":
            assert api.jobs[41]["eof"] == 3
        api.let_go()
    assert sender.notices[-1].startswith("3 events at the end of this run were not sent")
    assert not any("is away" in words for words in sender.notices)


@pytest.mark.parametrize("hangs", [False, True])
def test_an_api_that_comes_back_in_the_last_seconds_hears_how_the_run_has_ended(begin, hangs):
    with Picky("/api/") as api:
        sender = begin(api)
        api.running()
        with api.changed:
            api.hangs, api.answer = hangs, None if hangs else (503, 0)
        fill(sender, 3)

        def back():
            with api.changed:
                api.answer = None
            api.let_go()

        threading.Timer(1.7, back).start()
        late(sender, 2)
        assert api.jobs[41]["statuses"][-1] == "successful"
    assert sender.notices[-1].startswith("3 events at the end of this run were not sent")
    assert sender.notices[-1].endswith("Its status was sent.")


def test_a_job_that_is_made_late_ends_all_the_same(begin):
    with Picky("POST /api/v2/jobs/") as api:
        api.hangs = True
        sender = begin(api)
        fill(sender, 3)
        api.wait_for(lambda a: a.bodies)
        threading.Timer(1.7, api.let_go).start()
        late(sender, 2)
        assert api.jobs[41]["statuses"] == ["pending", "running", "successful"]


def test_a_quota_of_events_does_not_keep_the_status_back(begin):
    with Picky("/events/") as api:
        sender = begin(api)
        api.running()
        # What it says of its Retry-After holds for these events.
        with api.changed:
            api.refusal, api.answer, api.later = 429, (200, 0), "3600"
        fill(sender, 3)
        begun = time.monotonic()
        late(sender, 30)
        assert time.monotonic() - begun < 5
        assert api.jobs[41]["statuses"][-1] == "successful"
    assert ": it answers 429 as the test wants it. Its status was sent." in sender.notices[-1]


@pytest.mark.parametrize("part", ["/events/", "PATCH"])
def test_an_api_that_wants_no_events_in_mid_run_hears_how_it_has_ended(begin, part):
    """Whatever is wrong with them: an old API, a proxy that checks bodies. The job must not run for ever."""
    with Picky(part) as api:
        api.refusal = 405
        sender = begin(api)
        fill(sender, 3)
        api.wait_for(lambda a: len(a.bodies) >= (3 if part == "/events/" else 2))
        noticed(sender, 2)
        with api.changed:
            asked, api.refusal = api.requests, None
        fill(sender, 4)
        time.sleep(0.2)
        assert api.requests == asked  # it wants none
        late(sender, 5, "failed")
        assert api.jobs[41]["statuses"][-1] == "failed"
        assert api.jobs[41]["eof"] == 7  # readers learn how many are missing
    assert re.fullmatch(
        r"From here on no events of this run are sent to Carillon at \S+: it answered 405 .*\.",
        sender.notices[1],
    )
    assert len(sender.notices) == 2


def test_a_status_that_is_refused_for_the_same_reason_is_said(begin):
    with Picky("/41/") as api:
        sender = begin(api)
        api.running()
        api.refusal = 405
        fill(sender, 3)
        noticed(sender, 2)
        late(sender, 5)
    assert "no events of this run are sent" in sender.notices[1]
    assert re.fullmatch(
        r".* of this run w\w+ not sent to Carillon at \S+: it answered 405 .*wants it\.", sender.notices[2]
    )


def test_events_that_are_refused_at_the_end_do_not_keep_the_status_back(begin):
    with Picky("/events/") as api:
        sender = begin(api)
        api.running()
        with api.changed:  # until it is over
            api.refusal = 405
            fill(sender, 3)
            threading.Timer(0.5, api.let_go).start()
            api.hangs = True
        late(sender, 5)
        assert api.jobs[41]["statuses"][-1] == "successful"
    assert re.fullmatch(
        r"3 events at the end of this run were not sent .*: it answered 405 .*\. Its status was sent\.",
        sender.notices[-1],
    )


class Strict(StubApi):
    """Takes no events with too much data, nor with odd output."""

    def _respond(self, method, path, token, body):
        for event in body if path.endswith("/events/") else ():
            if "too much" in event.get("event_data", ()) or "odd" in event.get("stdout", ""):
                return 400, {"detail": "as the test wants it"}
        return super()._respond(method, path, token, body)


def test_an_event_that_is_refused_for_its_data_keeps_its_output(begin):
    """Such as the recap of two thousand hosts."""
    with Strict() as api:
        sender = begin(api)
        data = {"too much": 1}
        sender.put({"event": "fine", "stdout": "a\n", "failed": True, "event_data": {"b": 1}})
        sender.put({"event": "large", "stdout": "c\n", "failed": True, "event_data": data})
        sender.put({"event": "odd", "stdout": "odd\n", "failed": True, "event_data": {"d": 1}})
        assert sender.finish("failed", 10)
    why = {"refused": "the API did not accept this event's content: 400 as the test wants it"}
    assert [(event.get("stdout"), event.get("failed"), event["event_data"]) for event in api.events] == [
        ("a", True, {"b": 1}),
        ("c", True, why),
        (None, None, why),
    ]


@pytest.mark.parametrize("status", [404, 409])
def test_a_job_that_is_gone_is_not_asked_for_at_the_end(begin, status):
    with Picky("/41/") as api:
        sender = begin(api)
        api.running()
        api.refusal = status
        fill(sender, 3)
        sender._thread.join(5)
        assert sender.is_over
        asked = api.requests
        assert not sender.finish("successful", 5)
        assert api.requests == asked
    assert len(sender.notices) == 2


def test_an_api_that_is_away_gets_the_status_when_it_said_that_it_is_back(begin):
    with StubApi() as api:
        sender = begin(api)
        api.wait_for(lambda a: a.jobs and a.jobs[41]["statuses"][-1] == "running")
        with api.changed:
            before, api.answer, api.later = len(api.times), (503, 0), "2"
        fill(sender, 1)
        api.wait_for(lambda a: len(a.times) > before)
        with api.changed:
            api.answer = None
        late(sender, 2.4)
        assert api.times[before + 1] - api.times[before] >= 2
        assert api.jobs[41]["statuses"][-1] == "successful"


@pytest.mark.parametrize("seconds", [-1, 0, 1e-9, 0.001, 0.05])
def test_an_end_that_may_hardly_wait_does_not(begin, seconds):
    with Picky("/events/") as api:
        sender = begin(api)
        api.running()
        api.hangs = True
        fill(sender, 3)
        api.wait_for(lambda a: len(a.bodies) == 3)
        late(sender, seconds)
        sender._thread.join(5)
        assert not sender._thread.is_alive()
        api.let_go()
    assert sum("not sent" in words for words in sender.notices) == 1


def test_the_end_of_a_run_in_time_keeps_nothing_back(begin):
    with StubApi() as api:
        sender = begin(api)
        fill(sender, 500)
        assert sender.finish("successful", 10)
        assert api.jobs[41]["statuses"] == ["pending", "running", "successful"]
        assert api.jobs[41]["eof"] == len(api.events) == 500
    assert [words for words in sender.notices if "not sent" in words] == []
