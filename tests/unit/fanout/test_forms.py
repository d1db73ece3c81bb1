"""Frames, checked against an independent reader of the protocol."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from carillon.events.event import Event
from carillon.fanout.forms import PING, Frames1, Frames2, Sse, Texts2, frame


def read(data):
    """Every frame in `data`, as the websockets library reads them."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while not next_is_end(reader):
        parser = Frame.parse(reader.read_exact, mask=False, max_size=None)
        try:
            next(parser)
        except StopIteration as end:
            frames.append(end.value)
    return frames


def next_is_end(reader):
    try:
        next(reader.at_eof())
    except StopIteration as end:
        return end.value
    return False


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_text_frame(size):
    (found,) = read(frame(b"x" * size))
    assert (found.opcode, found.fin, bytes(found.data)) == (Opcode.TEXT, True, b"x" * size)


def test_control_frames():
    (ping,) = read(PING)
    assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"")


@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=200), max_size=2), min_size=1, max_size=4)
)
def test_version_2_joins_to_readable_frames(payloads):
    events = [
        Event(b"jobs-summary", json.dumps(payload).encode(), number=number)
        for number, payload in enumerate(payloads, 5)
    ]
    frames = read(Frames2.join([Frames2.piece(event, "ep") for event in events]))
    assert [json.loads(each.data) for each in frames] == [
        {"position": f"ep:{number}", "group": "jobs-summary", "event": payload}
        for number, payload in enumerate(payloads, 5)
    ]
    assert [json.loads(Texts2.piece(event, "ep")) for event in events] == [json.loads(f.data) for f in frames]
    frames = read(Frames1.join([Frames1.piece(event, "ep") for event in events]))
    assert [json.loads(each.data) for each in frames] == payloads


def test_server_sent_events():
    event = Event(b"jobs-summary", b'{"a": 1}', number=9)
    assert Sse.piece(event, "ep") == b'id: ep:9\nevent: jobs-summary\ndata: {"a": 1}\n\n'
