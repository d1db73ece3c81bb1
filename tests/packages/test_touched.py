"""The layer stands on what aio-pika, aiormq and pamqp offer to everybody, and on nothing inside them."""

import aio_pika
import aio_pika.abc
import aiormq
import aiormq.abc
import pytest

from tests.packages.distribution import PACKAGE
from tests.packages.touched import UNKNOWN, touched

# Modules that the libraries document as a whole, beside what they export at their top.
PUBLIC_MODULES = (
    *("aiormq.abc", "aiormq.exceptions", "aio_pika.abc", "aio_pika.exceptions"),
    *("pamqp.commands", "pamqp.encode", "pamqp.exceptions", "pamqp.frame", "pamqp.header"),
)
# Classes that are made to be inherited from.
PUBLIC_BASES = ("aiormq.connection.TransportFactory",)
# Declared by the abstract classes and yet the state of the library: what it writes there, nobody else does.
STATE = frozenset(["channels", "write_queue", "frames", "kwargs"])
INTERFACES = {
    library.__name__: [each for each in vars(library.abc).values() if isinstance(each, type)]
    for library in (aio_pika, aiormq)
}

SAMPLE = """
import aio_pika
import aiormq
import aiormq.channel
from aiormq.connection import Connection


class Wire(aiormq.channel.Channel):
    pass


class Streams(aiormq.TransportFactory):
    pass


async def touch(connection: Connection, channel: aiormq.abc.AbstractChannel, unknown) -> None:
    connection.channels[1] = None
    connection._reader_task.cancel()
    await connection.ready()
    await channel.basic_publish(b"", routing_key="x", wait=False)
    print(channel.frames, channel.connection.write_queue, unknown._inner, connection.last_channel)
    print(aiormq.exceptions.AMQPError, aio_pika.Message(b"").body)
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(what the layer touches, what the sample touches)"""
    folder = tmp_path_factory.mktemp("touched")
    (folder / "sample").mkdir()
    (folder / "sample" / "__init__.py").write_text(SAMPLE)
    return touched(PACKAGE, folder / "sample", cache=folder / "cache")


def is_public(touch):
    library, _, rest = touch.name.partition(".")
    name = touch.name.rpartition(".")[2]
    if library == UNKNOWN or (name.startswith("_") and not name.endswith("__")):
        return False
    if touch.how == "subclass":
        return touch.name in PUBLIC_BASES or touch.name.startswith(
            ("aiormq.exceptions.", "aio_pika.exceptions.")
        )
    if touch.how == "name":
        exported = {"aio_pika": aio_pika.__all__, "aiormq": aiormq.__all__}.get(library, ())
        return not rest or rest in exported or touch.name.startswith(PUBLIC_MODULES)
    if touch.name.startswith(("aiormq.exceptions.", "aio_pika.exceptions.", "pamqp.")):
        return True
    declared: set[str] = set()
    for interface in INTERFACES[library]:
        declared.update(vars(interface), getattr(interface, "__annotations__", ()))
    return name in declared - STATE


def test_what_is_private_is_seen(both):
    assert {touch.name for touch in both[1] if not is_public(touch)} == {
        "aiormq.channel", "aiormq.channel.Channel", "aiormq.connection.Connection",
        "aiormq.connection.Connection.channels", "aiormq.connection.Connection._reader_task",
        "aiormq.connection.Connection.last_channel", "aiormq.abc.AbstractChannel.frames",
        "aiormq.abc.AbstractConnection.write_queue", "?._inner",
    }  # fmt: skip


def test_the_layer_touches_public_names_only(both):
    private = [str(touch) for touch in both[0] if not is_public(touch)]
    assert not private, "\n".join(private)


def test_the_layer_is_seen_at_all(both):
    """A list that were empty would pass for a clean one."""
    assert {"name", "attribute"} <= {touch.how for touch in both[0]}
    assert len(both[0]) > 20
