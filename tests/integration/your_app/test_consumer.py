"""The example's resumable consumer, through nginx, daphne, the broker and runworker."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.tls import for_threads

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif("CARILLON_STACK_ENV" not in os.environ, reason="CARILLON_STACK_ENV names no stack"),
]
WAIT = 20


@pytest.fixture
def join(stack, room):
    """join(since) is a connection to the room."""
    opened = ExitStack()

    def join(since="", token=None):
        host, port = stack.address()
        token = token or stack.values["CARILLON_TOKEN"]
        url = f"wss://{host}:{port}/websocket/chat/{room}/?token={token}&since={since}"
        tls = for_threads(stack.tls())
        return opened.enter_context(connect(url, ssl=tls, proxy=None, open_timeout=30, close_timeout=2))

    with opened:
        yield join


def frame(connection):
    return json.loads(connection.recv(WAIT))


def test_what_was_missed_comes_once_and_in_order(stack, room, join):
    reader, writer = join(), join()
    assert frame(reader).keys() == frame(writer).keys() == {"position"}
    writer.send(json.dumps({"text": "before"}))
    heard = frame(reader)
    assert (heard["text"], heard["user"]) == ("before", "admin")
    at = heard["position"]
    reader.socket.close()  # cut: no closing handshake
    missed = [f"missed {number}" for number in range(10)]
    for text in missed:
        writer.send(json.dumps({"text": text}))
    heard = [frame(writer)["text"] for _ in range(11)]
    assert heard == ["before", *missed]
    stack.api(f"/api/chat/rooms/{room}/messages/", {"text": "by the API"})
    assert frame(writer)["text"] == "by the API"
    reader = join(at)
    frames = [frame(reader) for _ in range(12)]
    assert [each["text"] for each in frames[:11]] == [*missed, "by the API"]
    assert frames[11]["recovered"] is True


def test_a_reader_who_is_cut_again_and_again(join):
    """Two hundred messages while the reader loses its connection after every few."""
    count = 200
    reader, writer = join(), join()
    since = frame(reader)["position"]
    frame(writer)

    def write():
        for number in range(count):
            writer.send(json.dumps({"text": str(number)}))
            writer.recv(WAIT)  # and so a little slower than it could

    writing = threading.Thread(target=write)
    writing.start()
    heard, answers = [], []
    while len(heard) < count:
        told = frame(reader)
        since = told["position"]
        if "recovered" in told:
            answers.append(told["recovered"])
        elif "text" in told:
            heard.append(int(told["text"]))
            if len(heard) % 17 == 0:
                reader.socket.close()
                reader = join(since)
    writing.join(WAIT)
    assert heard == list(range(count))
    assert answers
    assert all(answers)


def test_a_position_that_is_not_in_the_log(join):
    told = frame(join("0:1"))
    assert (told["recovered"], told["reason"]) == (False, "epoch")


def test_a_token_that_is_revoked(stack, join):
    made = stack.api("/api/v2/tokens/", {"description": "soon gone", "scope": "read"})
    reader = join(token=made["token"])
    frame(reader)
    stack.api(f"/api/v2/tokens/{made['id']}/", method="DELETE")
    with pytest.raises(ConnectionClosed) as error:
        reader.recv(WAIT)
    assert error.value.rcvd.code == 4401
