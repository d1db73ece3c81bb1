"""Messages to bytes and back. Pure: no I/O, no clock.

A message is one msgpack map. The body of an AMQP message is a *batch*: the targets and messages of one
or more events as one msgpack array::

    [<target>, <message>, <target>, <message>, …]

so that a batch is made by joining bytes that were packed when they were sent, and is read by one call.
A target is the name of a group, the full name of a process-local channel, or "" for a control message
between two processes of this layer.
"""

import functools
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack

Message = dict[str, Any]
_ARRAY = struct.Struct(">BI")  # an array of up to 2**32 values
HEAD = _ARRAY.size  # bytes of a batch beside its events
NOTHING = b"\xc0"  # in place of a message
BIG_INT = 1  # msgpack extension type: a signed, big-endian integer of any length


def _extend(value: object) -> msgpack.ExtType:
    if isinstance(value, int):  # beyond 64 bits, where msgpack stops
        return msgpack.ExtType(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    raise TypeError(
        f"a channel layer message cannot hold a {type(value).__name__}; use str, bytes, int, "
        "float, bool, None, list or dict"
    )


def _restore(code: int, data: bytes) -> Any:
    return int.from_bytes(data, "big", signed=True) if code == BIG_INT else msgpack.ExtType(code, data)


class _Packers(threading.local):
    """A packer holds a buffer: made anew for every message it would cost more than the packing."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(default=_extend).pack
        self.pack_any_text = msgpack.Packer(default=_extend, unicode_errors="surrogatepass").pack  # slower


_packers = _Packers()


def encode(message: Message) -> bytes:
    """One message as bytes. TypeError when it is not a dict or holds what cannot travel."""
    if not isinstance(message, dict):
        raise TypeError(f"a channel layer message is a dict, not a {type(message).__name__}")
    try:
        data: bytes = _packers.pack(message)
    except UnicodeEncodeError:
        data = _packers.pack_any_text(message)
    return data


def encode_target(name: str) -> bytes:
    """A target as bytes, to stand before its message in a batch."""
    data: bytes = msgpack.packb(name)
    return data


def encode_batch(parts: list[bytes]) -> bytes:
    """A batch of events, each its target's bytes and its message's bytes joined."""
    return _ARRAY.pack(0xDD, 2 * len(parts)) + b"".join(parts)


_unpack = functools.partial(
    msgpack.unpackb, ext_hook=_restore, strict_map_key=False, unicode_errors="surrogatepass"
)


def _lists(value: Any) -> Any:
    """The tuples of a value as lists, but for those that are keys."""
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return [_lists(each) for each in value] if type(value) is tuple else value


def decode(body: bytes) -> Iterator[tuple[str, Message]]:
    """The (target, message) pairs of a batch, in order. ValueError when the body is not a whole batch."""
    try:
        try:
            items = _unpack(body, use_list=True)
        except TypeError:  # a list is no key: a tuple was one
            items = _lists(_unpack(body, use_list=False))
    except ValueError:
        raise
    except Exception as error:  # msgpack raises its own, not all of them ValueErrors
        raise ValueError(f"not a batch: {error}") from None
    if not isinstance(items, list) or len(items) % 2:
        raise ValueError("not a batch: not a list of targets and messages")
    pairs = iter(items)
    return zip(pairs, pairs)  # noqa: B905 - even, as just seen; the keyword costs a fifth of a microsecond


def copier(messages: Iterable[Message]) -> Callable[[Message], Message]:
    """How each of several readers gets these messages for itself, whatever the others change.

    Most messages are flat, and a flat copy costs a third of a deep one.
    """
    nested = any(type(value) in (dict, list) for message in messages for value in message.values())
    return _copy if nested else dict.copy


def _copy(value: Any) -> Any:
    """Of a dict or list. One frame for each level: with two, what msgpack packs is too deep for Python."""
    copy = value.copy()
    for key, each in value.items() if type(value) is dict else enumerate(value):
        if type(each) in (dict, list):
            copy[key] = _copy(each)
    return copy
