"""Server-Sent Events through every real service, to readers that are slower than the events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

pytestmark = pytest.mark.stack

PAD = "x" * 100_000


class Stream:
    """A client of /events/ that can stop reading."""

    def __init__(self, answer: requests.Response) -> None:
        self._lines = answer.iter_lines(chunk_size=8192)
        self.position = ""

    def next(self) -> tuple[str, dict]:
        """The next event: its name and its data. A stream that ends is an error."""
        name, data = "", None
        while True:
            line = next(self._lines).decode()
            field, _, value = line.partition(": ")
            if field == "id":
                self.position = value
            elif field == "event":
                name = value
            elif field == "data":
                data = json.loads(value)
            elif not line and data is not None:
                return name, data

    def until(self, name: str) -> list[dict]:
        """What comes before the event of that name."""
        found = []
        while (event := self.next())[0] != name:
            found.append(event[1])
        return found


@contextmanager
def listen(stack, groups: str, since: str = "") -> Iterator[Stream]:
    answer = requests.get(
        f"{stack.url}/events/",
        params={"groups": groups, **({"since": since} if since else {})},
        headers={"Authorization": f"Bearer {stack.token}"},
        verify=stack.ca,
        stream=True,
        timeout=30,
    )
    with answer:
        assert answer.status_code == 200
        yield Stream(answer)


@pytest.fixture
def job(stack) -> int:
    return stack.new_job()["id"]


def publish(stack, job: int, numbers) -> None:
    """Two megabytes a request at most."""
    numbers = list(numbers)
    for start in range(0, len(numbers), 20):
        stack.post(
            "/notifications/",
            [
                {"group": f"job_events-{job}", "payload": {"n": n, "pad": PAD}, "id": str(uuid.uuid4())}
                for n in numbers[start : start + 20]
            ],
        )


def begin(stream: Stream) -> str:
    """The position at which it was accepted."""
    name, data = stream.next()
    assert name == "accept"
    assert stream.next()[0] == "groups"
    return data["position"]


def test_a_resume_of_megabytes(stack, job):
    with listen(stack, f"job_events:{job}") as stream:
        since = begin(stream)
    publish(stack, job, range(60))
    with listen(stack, f"job_events:{job}", since) as stream:
        begin(stream)
        missed = stream.until("recovered")
        assert len(missed) > 20
        while len(missed) < 60:  # what was accepted last may not have been in the log yet
            missed.append(stream.next()[1])
    assert [each["n"] for each in missed] == list(range(60))


def test_a_burst_of_megabytes(stack, job):
    with listen(stack, f"job_events:{job}") as stream:
        begin(stream)
        publish(stack, job, range(60))
        assert [stream.next()[1]["n"] for _ in range(60)] == list(range(60))


def test_a_reader_that_pauses_has_everything_in_the_end(stack, job):
    with listen(stack, f"job_events:{job}") as stream:
        begin(stream)
        publish(stack, job, range(200))  # more than all the buffers on the way take
        time.sleep(3)  # it does not read
        publish(stack, job, range(200, 220))
        assert [stream.next()[1]["n"] for _ in range(220)] == list(range(220))
        publish(stack, job, [220])
        assert stream.next()[1]["n"] == 220
