"""What the tail makes of the messages of a stream, without a broker."""

import pytest

from asgi_amqp import stream
from asgi_amqp.options import Options, Target
from carillon.events.event import Event, pack
from carillon.fanout.forms import Texts1
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window


class Ear(Listener):
    __slots__ = ("heard",)

    def __init__(self):
        super().__init__(Texts1)
        self.heard = []

    def write(self, data, number):
        self.heard += data


def message(number, *texts):
    return pack([Event(b"a-1", text, None, text * 16) for text in texts], number)


def make():
    gaps = []
    hub = Hub(Window(10**6))
    tail = Tail(Options((Target.parse("amqp://nowhere/"),), "test"), hub, None, gaps.append, None)
    hub.begin("ep", 0)
    ear = Ear()
    hub.subscribe(ear, frozenset([b"a-1"]))
    return tail, hub, ear, gaps


def test_offsets_may_have_holes():
    tail, hub, ear, gaps = make()
    tail._arrived([(1, message(1, b"a")), (2, message(2, b"b"))])
    tail._arrived([(5, message(3, b"c"))])
    assert (ear.heard, gaps) == (["a", "b", "c"], [])
    assert hub.number >= 5 * 4096


def test_numbers_may_not():
    tail, hub, ear, gaps = make()
    tail._arrived([(1, message(1, b"a")), (2, message(3, b"c"))])
    assert (ear.heard, gaps) == (["a", "c"], ["retention"])
    assert hub.window.between([b"a-1"], 4096, 10**6, 10**6) is None, "nobody resumes over the gap"
    assert [event.text for event in hub.window.between([b"a-1"], 2 * 4096 - 1, 10**6, 10**6)[0]] == [b"c"]


def test_marks_and_relays_that_overlapped():
    tail, _, ear, gaps = make()
    tail._arrived(
        [(1, message(1, b"a")), (2, pack([], mark=b"m")), (3, message(2, b"b")), (4, message(2, b"x"))]
    )
    tail._arrived([(5, message(3, b"b")), (6, message(3, b"c")), (7, b"nonsense"), (8, message(4, b"d"))])
    assert (ear.heard, gaps) == (["a", "b", "x", "c", "d"], [])
    assert tail.malformed == 1


async def test_a_tail_that_comes_back_reads_its_last_message_once_more():
    replaced = []

    async def replace(epoch):
        replaced.append(epoch)

    tail, _, ear, gaps = make()
    tail._replace = replace
    tail._reader = stream.StreamReader("s", 0, tail._arrived)
    tail._arrived([(1, message(1, b"a"))])
    tail._verify = True
    tail._arrived([(1, message(1, b"a")), (2, message(2, b"b"))])
    assert (ear.heard, gaps, replaced) == (["a", "b"], [], [])
    tail._verify = True
    tail._arrived([(9, message(9, b"z"))])  # retention has passed: that is a gap, and the same log
    assert (ear.heard, gaps, replaced) == (["a", "b", "z"], ["retention"], [])
    tail._verify = True
    tail._arrived([(9, message(9, b"y")), (10, message(10, b"x"))])
    await tail._replacing
    assert (ear.heard, replaced) == (["a", "b", "z"], ["ep"])


@pytest.mark.parametrize(
    ("end", "oldest", "size", "start"),
    [
        (5000, 0, 100, 5000 - 1024),
        (5000, 4700, 100, 4700),  # retention has the rest
        (5000, 0, 10_000, 5000 - 32),  # half of a window of 10**6 bytes
        (5000, 0, 1_000_000, 5000 - 16),
        (7, 0, 100, 0),
        (0, 0, 100, 0),
        (-1, 0, 0, 0),
    ],
)
async def test_a_fresh_process_reads_what_half_its_window_holds(monkeypatch, end, oldest, size, start):
    async def end_of(link, name):
        return end

    async def first_from(link, name, wanted):
        return max(wanted, oldest), size

    monkeypatch.setattr(stream, "end_of", end_of)
    monkeypatch.setattr(stream, "first_from", first_from)
    tail, *_ = make()
    assert await tail._beginning(None, "ep", 0) == start
