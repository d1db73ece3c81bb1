"""The wire protocol, version 1, as the client sees it. Pure: no sockets, no clocks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carillon.client.errors import ConfigurationError

Groups = Mapping[str, Sequence[str | int]]

# Relations that tie an event to its job, by family.
RELATIONS = {
    "job_events": "job",
    "ad_hoc_command_events": "ad_hoc_command",
    "project_update_events": "project_update",
    "inventory_update_events": "inventory_update",
    "system_job_events": "system_job",
}
MAX_GROUP_WORD = 200


@dataclass(frozen=True, slots=True)
class Welcome:
    user: int


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """The server's answer to a subscription: group names `<family>-<key>`, and what it would not give."""

    current: tuple[str, ...]
    joined: tuple[str, ...]
    left: tuple[str, ...]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerError:
    text: str

    @property
    def concerns_one_group(self) -> bool:
        """Whether the rest of the subscription proceeds, and a Subscription follows."""
        return self.text.startswith("unknown channel ") or " for resource id " in self.text


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: `family` is the payload's `group_name`, `payload` the frame as it came."""

    family: str
    payload: dict[str, Any]

    @property
    def job_id(self) -> int | None:
        key = RELATIONS.get(self.family, "unified_job_id")
        value = self.payload.get(key)
        return value if isinstance(value, int) else None


@dataclass(frozen=True, slots=True)
class Garbage:
    """A frame that version 1 does not know."""

    why: str


Frame = Welcome | Refusal | Subscription | ServerError | Event | Garbage


def classify(frame: str | bytes) -> Frame:
    """What a frame says. Never raises: what cannot be understood is Garbage."""
    if not isinstance(frame, str):
        return Garbage("a binary frame")
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return Garbage("a frame that is no JSON")
    if not isinstance(message, dict):
        return Garbage("a frame that is no JSON object")
    if message.get("accept") is True:
        user = message.get("user")
        return Welcome(user) if isinstance(user, int) else Garbage("a welcome to nobody")
    if "accept" in message or message.get("close") is True:
        return Refusal(str(message.get("error") or "no reason given"))
    if "groups_current" in message:
        return Subscription(
            _names(message["groups_current"]),
            _names(message.get("groups_joined")),
            _names(message.get("groups_left")),
        )
    family = message.get("group_name")
    if isinstance(family, str):
        return Event(family, message)
    if "error" in message:
        return ServerError(str(message["error"]))
    return Garbage("an object of no known kind")


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def subscribe_message(groups: Groups) -> str:
    """The message that replaces the whole subscription by these groups."""
    return json.dumps({"groups": {family: list(keys) for family, keys in groups.items()}})


def parse_groups(words: Sequence[str]) -> dict[str, list[str]]:
    """
    `["jobs:status_changed,summary", "job_events:42"]` as a subscription.

    :raises ConfigurationError: a word is not `family:key[,key…]`
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        family, colon, keys = word.partition(":")
        wanted = [key.strip() for key in keys.split(",")]
        if not colon or not family.strip() or not all(wanted) or len(word) > MAX_GROUP_WORD * 50:
            raise ConfigurationError(
                f"'{word[:MAX_GROUP_WORD]}' is no group: write family:key[,key…], such as "
                "jobs:status_changed,summary or job_events:42"
            )
        kept = groups.setdefault(family.strip(), [])
        kept.extend(key for key in wanted if key not in kept)
    return groups


@dataclass(frozen=True, slots=True)
class Goodbye:
    """What a close means: whether to come back, and the words for it."""

    come_back: bool
    words: str
    refused: bool = False


_GOODBYES = {
    1000: Goodbye(False, "the server said goodbye"),
    1001: Goodbye(True, "the server is going away"),
    1006: Goodbye(True, "the connection broke"),
    1008: Goodbye(False, "the server ended it for misuse", refused=True),
    1009: Goodbye(False, "a message was too big for the server", refused=True),
    1011: Goodbye(True, "the server failed, or did not answer in time"),
    1012: Goodbye(True, "the server restarts"),
    1013: Goodbye(True, "the server is busy"),
    4401: Goodbye(False, "the token is refused, or no longer valid", refused=True),
    4403: Goodbye(False, "the server forbids this origin", refused=True),
    4408: Goodbye(True, "this client read too slowly; events were missed"),
}


def goodbye(code: int | None, reason: str = "") -> Goodbye:
    """What the close code means; `None` is a connection that broke without one. Unknown codes: come back."""
    known = _GOODBYES.get(code or 1006, Goodbye(True, f"the server closed with code {code}"))
    return Goodbye(known.come_back, f"{known.words} ({reason})" if reason else known.words, known.refused)


class Backoff:
    """
    Delays between attempts, in seconds: full jitter under a ceiling that doubles with every attempt, up to
    `longest`. A thousand clients that lost one server do not come back in step.
    """

    def __init__(
        self, first: float = 0.5, longest: float = 30.0, rng: Callable[[], float] = random.random
    ) -> None:
        self.first = first
        self.longest = longest
        self._rng = rng
        self.attempts = 0

    def next(self) -> float:
        ceiling: float = min(self.longest, self.first * 2 ** min(self.attempts, 32))
        self.attempts += 1
        return self._rng() * ceiling

    def reset(self) -> None:
        self.attempts = 0
