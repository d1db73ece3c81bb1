"""Both versions of the wire protocol, as functions of text. Pure: imports neither Django nor the layer.

A client's frame is parsed to a `Subscribe` or `Refresh`, or refused with a `Refusal`; what the server says is
built here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asgi_amqp import Position
from carillon.accounts import tokens

VERSION_2 = "carillon.v2"
"""The subprotocol by which a client asks for version 2."""

# Close codes. Never 1000: clients of Tower do not come back after it.
POLICY = 1008
RESTART = 1012
TRY_LATER = 1013
UNAUTHENTICATED = 4401
FORBIDDEN_ORIGIN = 4403
TOO_SLOW = 4408

ACCESS_DENIED = "access denied to channel"


@dataclass(frozen=True)
class Limits:
    """What one socket may ask for."""

    message_bytes: int = 64 * 1024
    groups: int = 250
    name_length: int = 60  # characters of a family or a key
    # Nonsense and messages: so many at once, and so many a second over time.
    nonsense_burst: float = 20
    nonsense_rate: float = 0.5
    message_burst: float = 100
    message_rate: float = 10
    # Keys of `groups` messages: each is looked at, and written down for who asks who watches.
    key_burst: float = 1000
    key_rate: float = 50


@dataclass(frozen=True)
class Subscribe:
    """A well-formed `groups` message: family to keys, as text, in the client's order and without doubles."""

    groups: Mapping[str, tuple[str, ...]]
    since: Position | None = None


@dataclass(frozen=True)
class Refresh:
    """Version 2: a token that is to take the place of the one that the socket was opened with."""

    token: str = field(repr=False)


class Refusal(Exception):
    """A frame that is answered with an error and changes nothing."""

    def __init__(self, error: str) -> None:
        self.error = error
        super().__init__(error)


def parse(text: str | None, limits: Limits, xrftoken: str | None, version: int = 1) -> Subscribe | Refresh:
    """A client's frame to what it asks for; `since` and `refresh` are read in version 2 alone.

    `text`: None for a binary frame. `xrftoken`: what the message must carry, when identity came from a
    session cookie ("" when the handshake had no `csrftoken` cookie: then nothing will do); None: anything.
    Raises Refusal.
    """
    message = _load(text, limits)
    if xrftoken is not None and not (xrftoken and message.get("xrftoken") == xrftoken):
        raise Refusal(ACCESS_DENIED)
    if version == 2 and "refresh" in message:
        token = message["refresh"]
        if not isinstance(token, str) or not 0 < len(token) <= tokens.LONGEST:
            raise _invalid('"refresh" is not a token')
        return Refresh(token)
    since = None
    if version == 2 and message.get("since") is not None:
        try:
            since = Position.parse(message["since"])
        except ValueError as error:
            raise _invalid(f'"since": {error}') from None
    if "groups" not in message:
        raise _invalid('there is no "groups" in it')
    groups = message["groups"]
    if not isinstance(groups, dict):
        raise _invalid('"groups" is not an object')
    result: dict[str, tuple[str, ...]] = {}
    count = 0
    for family, keys in groups.items():
        if len(family) > limits.name_length:
            raise _invalid(f"a channel's name is longer than {limits.name_length} characters")
        if not isinstance(keys, list):
            raise Refusal(ACCESS_DENIED)
        found = dict.fromkeys(_key(family, key, limits) for key in keys)
        count += max(1, len(found))  # a family without keys is one to look for, too
        if count > limits.groups:
            raise _invalid(f"more than {limits.groups} groups")
        result[family] = tuple(found)
    return Subscribe(result, since)


def _load(text: str | None, limits: Limits) -> dict[str, Any]:
    if text is None:
        raise _invalid("a binary frame: send text")
    # A character is at least a byte: the cheap test first.
    if len(text) > limits.message_bytes or len(text.encode("utf-8", "replace")) > limits.message_bytes:
        raise _invalid(f"longer than {limits.message_bytes} bytes")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise _invalid("not JSON") from None
    if not isinstance(message, dict):
        raise _invalid("not a JSON object")
    return message


def _key(family: str, key: Any, limits: Limits) -> str:
    # bool is an int to Python, and 1.0 is not a number that anybody's id is.
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise _invalid(f'"{family}" has a key that is neither a text nor a whole number')
    if isinstance(key, int) and abs(key) >= 10**limits.name_length:
        raise _invalid(f'"{family}" has a key longer than {limits.name_length} characters')
    text = str(key)
    if len(text) > limits.name_length:
        raise _invalid(f'"{family}" has a key longer than {limits.name_length} characters')
    return text


def _invalid(why: str) -> Refusal:
    return Refusal(f"invalid message: {why}")


# What the server says ------------------------------------------------------------------------------


def accepted(user_id: int, at: Position | None = None) -> str:
    """`at`, version 2: where the event stream is now."""
    frame: dict[str, Any] = {"accept": True, "user": user_id}
    if at is not None:
        frame["position"] = str(at)
    return json.dumps(frame)


def recovered(at: Position) -> str:
    """All that was missed has been sent; what comes now is live."""
    return json.dumps({"recovered": True, "position": str(at)})


def unrecoverable(at: Position, reason: str) -> str:
    """What was missed cannot be sent, or not all of it: the client is to fetch the state anew. Live from `at`
    on."""
    return json.dumps({"recovered": False, "position": str(at), "reason": reason})


def progress(at: Position) -> str:
    """Nothing that concerns this client has happened up to here."""
    return json.dumps({"position": str(at)})


def refreshed(expires: str | None) -> str:
    """The new token has taken the place of the old; `expires`: ISO 8601, or None for never."""
    return json.dumps({"refreshed": True, "expires": expires})


def refused(reason: str) -> str:
    return json.dumps({"accept": False, "user": None, "close": True, "error": reason})


def error(text: str) -> str:
    return json.dumps({"error": text})


_NAMED = 20
"""Keys or families that one frame names; of more it says how many."""


def unknown_families(families: Sequence[str]) -> str:
    """One frame for all families of a message that there are not."""
    more = f", and {len(families) - _NAMED} more" if len(families) > _NAMED else ""
    return error(f"unknown channel {', '.join(families[:_NAMED])}{more}")


def denied(keys: Sequence[tuple[str, str]]) -> str:
    """One frame for all (family, key) of a message that were denied, in the words for one."""
    families: dict[str, list[str]] = {}
    for family, key in keys[:_NAMED]:
        families.setdefault(family, []).append(key)
    text = "; ".join(f"{family} for resource id {', '.join(each)}" for family, each in families.items())
    more = f", and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return error(f"{ACCESS_DENIED} {text}{more}")


def groups_reply(old: Iterable[str], new: Iterable[str], asked: bool = True) -> str:
    """What is subscribed now, what is left, what is new; each sorted. Not `asked`: it answers no `groups`
    message, of which one may be on its way."""
    old, new = set(old), set(new)
    frame: dict[str, Any] = {
        "groups_current": sorted(new),
        "groups_left": sorted(old - new),
        "groups_joined": sorted(new - old),
    }
    return json.dumps(frame if asked else frame | {"asked": False})
