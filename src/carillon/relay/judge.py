"""What may go on to the log: each event of a queue message is judged alone."""

import json
import re
import time

from asgi_amqp import codec
from carillon.events.event import GROUP, Event, Malformed, pack
from carillon.logs import known_trace

MAX_TEXT = 1024 * 1024
MAX_AUDIENCE = 100_000
"""Tags of one event: with its text, far below what a broker takes in one message."""

REASON = 500
"""Characters of the most that is said of a dead letter."""


def judge(body: bytes) -> tuple[list[Event], list[tuple[str, bytes]]]:
    """The events in a queue message, and the dead letters, each with its reason."""
    try:
        messages = [message for _, message in codec.decode(body)]
    except ValueError as error:
        return [], [_letter(f"not a batch: {error}", body)]
    events, letters = [], []
    for message in messages:
        try:
            events.append(event_of(message))
        except Malformed as error:
            letters.append(_letter(str(error), message))
    return events, letters


def _letter(reason: str, message: object) -> tuple[str, bytes]:
    """A dead letter is a batch of one message, in place of whose target stands the reason. What is no
    message, or cannot be packed, is shown as far as it can be."""
    reason = reason[:REASON]
    try:
        packed = codec.encode(message if isinstance(message, dict) else {"body": message})
    except Exception:
        packed = codec.encode({"body": repr(message)[:MAX_TEXT]})
    return reason, codec.encode_batch([codec.encode_target(reason) + packed])


def event_of(message: dict) -> Event:
    """The event in a queue message, as `carillon.events.queue` makes them. Raises Malformed, and nothing
    else: what one message holds must not stop those around it."""
    try:
        event = _event_of(message)
        pack([event])
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"not an event: {type(error).__name__}") from None
    return event


def _no_json(name: str) -> None:
    raise ValueError(name)


_read = json.JSONDecoder(parse_constant=_no_json).decode
"""Of text and not of bytes, for which Python guesses an encoding, and without NaN: as clients read it."""


def _event_of(message: dict) -> Event:
    try:
        group = message["group"].encode()
        text = message["text"].encode()
        id = message["id"]
        audience = message.get("audience")
        stamp = message.get("stamp", 0)
    except (KeyError, AttributeError, UnicodeEncodeError) as error:
        raise Malformed(f"not an event: {type(error).__name__} {error}") from None
    if not GROUP.fullmatch(group):
        raise Malformed("its group is no group's name")
    if len(text) > MAX_TEXT:
        raise Malformed(f"{len(text)} bytes of payload: {MAX_TEXT} are the most")
    if not isinstance(id, bytes) or len(id) != 16:
        raise Malformed("its id is not 16 bytes")
    try:
        payload = _read(message["text"])
    except (ValueError, RecursionError):
        raise Malformed("its payload is no JSON, or nested too deeply") from None
    if not isinstance(payload, dict):
        raise Malformed("its payload is no JSON object")
    if "\n" in message["text"] or "\r" in message["text"]:
        text = re.sub(rb"[\r\n]+", b" ", text)
    if audience is not None:
        audience = tuple(str(tag)[:64] for tag in audience)
        if len(audience) > MAX_AUDIENCE:
            raise Malformed(f"an audience of {len(audience)}: {MAX_AUDIENCE} tags are the most")
    trace = known_trace(message.get("trace"))
    return Event(group, text, audience, id, int(stamp or time.time() * 1000), trace=trace)
