"""Dead letters, on links that a test answers for: what one pass does, and what the command says of it."""

import asyncio
import json
import os
from collections import deque
from types import SimpleNamespace as N

import aiormq
import pytest

from asgi_amqp import BrokerUnavailable
from asgi_amqp.__main__ import main
from asgi_amqp.codec import encode, encode_batch, encode_target
from asgi_amqp.dead_letters import Depth, depth, go_through, known
from asgi_amqp.exceptions import ChannelFull
from tests.unit.asgi_amqp.links import Brokers, Link
from tests.unit.asgi_amqp.test_sessions import body


class Letters(Link):
    """Its dead-letter queue holds `dead`; what is sent again dies at once, as with a worker that fails."""

    dead: deque[bytes] = deque()
    there = True
    fault: Exception | None = None
    """What a look at the next letter meets."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.passing.queue_declare = self.declare
        self.got = 0

    async def declare(self, name, *, passive=False, **options):
        self.passing.calls.append(("queue_declare", name, passive))
        if passive and not self.there:
            raise aiormq.ChannelNotFoundEntity(f"NOT_FOUND - no queue '{name}' in vhost '/'")
        return N(message_count=len(self.dead), consumer_count=0)

    async def wire(self, **options):
        wire = await super().wire(**options)
        wire.channel.basic_get = self.get
        return wire

    async def get(self, queue, timeout):
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        if not self.dead:
            return N(delivery_tag=None)
        properties = N(headers={}, timestamp=None)
        self.got += 1
        return N(delivery_tag=self.got, body=self.dead.popleft(), header=N(properties=properties))


@pytest.fixture
def replayed(make, brokers, monkeypatch):
    """A layer with three dead letters, and what is sent again."""
    monkeypatch.setattr(Letters, "dead", deque(body("jobs", {"n": number}) for number in range(3)))
    brokers.found = [Letters]
    sent = []

    def begin():
        layer = make(durable=["jobs"])

        async def send(destination, data, timeout):
            sent.append(data)
            Letters.dead.append(encode_batch([encode_target("jobs") + data]))

        layer.session().sender.send = send
        return layer, sent

    return begin


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (2, 2), (9, 3)])
async def test_what_is_replayed_and_dies_again_is_for_the_next_pass(replayed, limit, expected):
    layer, sent = replayed()
    async with asyncio.timeout(2):
        found = await go_through(layer, "jobs", "replay", limit=limit)
    assert (len(found), len(sent)) == (expected, expected)
    assert len(Letters.dead) == 3


async def test_a_pass_ends_where_others_have_taken_what_it_counted(replayed):
    layer, _ = replayed()
    found = await go_through(layer, "jobs", "drop", say=lambda letter: Letters.dead.clear())
    assert len(found) == 1


def taken_off(links):
    """What was acknowledged."""
    return [answer for link in links for wire in link.wires for answer in wire.answers if answer[0] == "ack"]


async def test_what_was_sent_again_is_taken_off_though_it_could_not_be_told(replayed, brokers):
    """Else the next pass sends it once more, and the next."""
    layer, sent = replayed()

    def say(letter):
        answers = [answer for link in brokers.links for wire in link.wires for answer in wire.answers]
        assert answers == [("ack", 1), "tell"]
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await go_through(layer, "jobs", "replay", say=say)
    assert len(sent) == 1


async def test_what_could_not_be_told_is_not_thrown_away(replayed, brokers):
    layer, _ = replayed()

    def say(letter):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await go_through(layer, "jobs", "drop", say=say)
    assert taken_off(brokers.links) == []


NONSENSE = [b"no batch", encode_batch([encode_target("jobs") + b"\x07"])]
BYTES = {"type": "x", "of": [{b"key": 1, 5: {b"deep": 2}}]}


async def test_what_holds_no_messages_is_not_replayed_and_stays(replayed, brokers):
    """Sent as something else, it would be handled as what nobody has sent."""
    layer, sent = replayed()
    Letters.dead = deque([*NONSENSE, body("jobs", {"n": 3})])
    told = []
    found = await go_through(layer, "jobs", "replay", say=told.append)
    assert [letter.sound for letter in told] == [False, False, True]
    assert (len(found), sent, taken_off(brokers.links)) == (3, [encode({"n": 3})], [("ack", 3)])
    Letters.dead = deque(NONSENSE)
    await go_through(layer, "jobs", "drop")
    assert len(taken_off(brokers.links)) == 3


@pytest.mark.parametrize(
    "fault",
    [aiormq.AMQPConnectionError("cut"), TimeoutError(), RuntimeError("closed"), ConnectionError("cut")],
)
async def test_a_pass_whose_link_goes_ends_with_broker_unavailable(replayed, monkeypatch, fault):
    layer, _ = replayed()
    monkeypatch.setattr(Letters, "fault", fault)
    with pytest.raises(BrokerUnavailable, match=r"asgi\.d\.jobs\.dead: "):
        await go_through(layer, "jobs")

    async def declare(self, name, **options):
        raise fault

    monkeypatch.setattr(Letters, "declare", declare)
    other, _ = replayed()
    for call in (go_through, depth, known):
        with pytest.raises(BrokerUnavailable, match=r"asgi\.d\.jobs"):
            await call(other, "jobs")


async def test_who_looks_at_a_channel_that_is_not_there_makes_no_queue(replayed, brokers, monkeypatch):
    monkeypatch.setattr(Letters, "there", False)
    layer, _ = replayed()
    assert await go_through(layer, "jobs") == set()
    assert await depth(layer, "jobs") == Depth(0, 0, 0)
    assert not await known(layer, "jobs")
    calls = [call for link in brokers.links for call in link.passing.calls]
    assert calls
    assert all(call[0] == "queue_declare" and call[2] for call in calls)


# The command


@pytest.fixture
def command(monkeypatch):
    """`command("jobs", "--replay")` over these letters: exit status, what was sent, what was taken off."""
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setenv("ASGI_AMQP_URL", "amqp://broker.test")
    monkeypatch.setattr(Letters, "dead", deque())
    brokers, sent = Brokers(monkeypatch, Letters), []

    async def send(self, destination, data, timeout):
        sent.append(data)

    monkeypatch.setattr("asgi_amqp.sender.Sender.send", send)

    def run(*arguments, letters=()):
        Letters.dead.extend(letters)
        return main(["dead-letters", *arguments]), len(sent), len(taken_off(brokers.links))

    return run


def test_the_command_shows_keys_that_are_no_text(command, capsys):
    assert command("jobs", "--replay", letters=[body("jobs", BYTES)]) == (0, 1, 1)
    said = capsys.readouterr()
    assert json.loads(said.out)["message"] == {"type": "x", "of": [{"b'key'": 1, "5": {"b'deep'": 2}}]}
    assert "1 dead letters replayed" in said.err


def test_the_command_shows_what_is_nested_deeply(command, capsys):
    deep = b"\x91" * 480 + b"\x01"
    letter = encode_batch([encode_target("jobs") + b"\x81\xa1d" + deep])
    assert command("jobs", "--replay", letters=[letter]) == (0, 1, 1)
    assert capsys.readouterr().out.count("[") == 480


def test_the_command_says_that_it_has_left_what_cannot_be_replayed(command, capsys):
    assert command("jobs", "--replay", letters=[*NONSENSE, body("jobs", {"n": 1})]) == (1, 1, 1)
    said = capsys.readouterr().err
    assert "1 dead letters replayed" in said
    assert "2 kept: they hold no messages that can be replayed" in said


@pytest.mark.parametrize(
    ("name", "words"), [("jbos", "jbos has no dead letters"), ("no name", "'no name': ")]
)
def test_the_command_says_that_there_is_no_such_channel(command, capsys, monkeypatch, name, words):
    monkeypatch.setattr(Letters, "there", False)
    assert command(name, "--replay")[0] == 1
    said = capsys.readouterr().err
    assert said.startswith("asgi_amqp: ")
    assert words in said


def test_the_command_says_that_the_broker_went(command, capsys, monkeypatch):
    monkeypatch.setattr(Letters, "fault", aiormq.AMQPConnectionError("cut off"))
    assert command("jobs", letters=[body("jobs", {"n": 1})])[0] == 1
    assert "asgi_amqp: asgi.d.jobs.dead: cut off" in capsys.readouterr().err


def test_the_command_says_that_the_channel_is_full(command, capsys, monkeypatch):
    async def send(self, destination, data, timeout):
        raise ChannelFull

    monkeypatch.setattr("asgi_amqp.sender.Sender.send", send)
    assert command("jobs", "--replay", letters=[body("jobs", {"n": 1})]) == (1, 0, 0)
    assert "asgi_amqp: jobs is full: what is left stays a dead letter" in capsys.readouterr().err


def test_the_command_goes_through_all(command):
    letters = [body("jobs", {"n": n}) for n in range(150)]
    assert command("jobs", "--replay", letters=letters) == (0, 150, 150)


def test_the_command_ends_where_nobody_reads_its_output(command, capsys, monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as out:

        class Gone:
            def write(self, text):
                raise BrokenPipeError("nobody reads")

            def flush(self):
                pass

            def fileno(self):
                return out.fileno()

        monkeypatch.setattr("sys.stdout", Gone())
        assert command("jobs", "--replay", letters=[body("jobs", {"n": n}) for n in range(2)]) == (1, 1, 1)
        assert os.path.samestat(os.fstat(out.fileno()), os.stat(os.devnull))
    said = capsys.readouterr().err
    assert "1 dead letters replayed" in said
    assert "asgi_amqp: the output cannot be written: nobody reads" in said


def test_the_command_says_that_there_is_no_such_layer(monkeypatch, capsys):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "project.settings")
    assert main(["dead-letters", "jobs", "--layer", "nope"]) == 1
    assert "asgi_amqp: CHANNEL_LAYERS['nope'] names no layer" in capsys.readouterr().err
