"""The wire protocol, both versions, as the client sees it. Pure: no sockets, no clocks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carillon.client.errors import ConfigurationError

VERSION_2 = "carillon.v2"
TRY_LATER = 1013

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
    position: str | None = None  # version 2: where the event stream is


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """The server's answer to a subscription: group names `<family>-<key>`, and what it would not give. Not
    `asked`: it answers nothing, but a right was lost."""

    current: tuple[str, ...]
    joined: tuple[str, ...]
    left: tuple[str, ...]
    errors: tuple[str, ...] = ()
    asked: bool = True


@dataclass(frozen=True, slots=True)
class ServerError:
    text: str

    @property
    def rejects(self) -> bool:
        """Whether a whole message was rejected, and the subscription is as it was: no other answer
        follows."""
        return self.text == "access denied to channel" or self.text.startswith("invalid message")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: `family` is the payload's `group_name`, `payload` the frame as it came."""

    family: str
    payload: dict[str, Any]
    group: str | None = None  # version 2
    position: str | None = None  # version 2

    @property
    def job_id(self) -> int | None:
        key = RELATIONS.get(self.family, "unified_job_id")
        value = self.payload.get(key)
        return value if isinstance(value, int) else None


@dataclass(frozen=True, slots=True)
class Recovery:
    """Version 2's answer to `since`: all that was missed has been sent, or why it cannot be. Live from
    `position` on."""

    whole: bool
    position: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Version 2: nothing that concerns us has happened up to `position`."""

    position: str


@dataclass(frozen=True, slots=True)
class ReconnectAfter:
    """Version 2: the server is about to restart, and asks to come back after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Garbage:
    """A frame that neither version knows."""

    why: str


Frame = (
    Welcome | Refusal | Subscription | ServerError | Event | Recovery | Progress | ReconnectAfter | Garbage
)


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
        at = message.get("position")
        if not isinstance(user, int):
            return Garbage("a welcome to nobody")
        return Welcome(user, at if isinstance(at, str) else None)
    if "accept" in message or message.get("close") is True:
        return Refusal(str(message.get("error") or "no reason given"))
    if "groups_current" in message:
        return Subscription(
            _names(message["groups_current"]),
            _names(message.get("groups_joined")),
            _names(message.get("groups_left")),
            asked=message.get("asked") is not False,
        )
    if isinstance(at := message.get("position"), str):
        return _positioned(message, at)
    family = message.get("group_name")
    if isinstance(family, str):
        return Event(family, message)
    if isinstance(wait := message.get("reconnect_after"), int | float):
        return ReconnectAfter(max(0.0, wait / 1000))
    if "error" in message:
        return ServerError(str(message["error"]))
    return Garbage("an object of no known kind")


def _positioned(message: dict[str, Any], at: str) -> Frame:
    if "recovered" in message:
        return Recovery(message["recovered"] is True, at, str(message.get("reason", "")))
    if "event" not in message:
        return Progress(at)
    group, payload = message.get("group"), message["event"]
    if not isinstance(group, str) or not isinstance(payload, dict):
        return Garbage("an event without group or payload")
    family = payload.get("group_name")
    return Event(family if isinstance(family, str) else group.partition("-")[0], payload, group, at)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def subscribe_message(groups: Groups, since: str | None = None) -> str:
    """The message that replaces the whole subscription by these groups; `since`, version 2: what they missed
    after this position is sent first."""
    message: dict[str, Any] = {"groups": {family: list(keys) for family, keys in groups.items()}}
    if since is not None:
        message["since"] = since
    return json.dumps(message)


def refresh_message(token: str) -> str:
    """Version 2: the socket lives on with this token."""
    return json.dumps({"refresh": token})


class Memory:
    """
    What a client remembers of version 2, so that its application hears each event once: the position from
    which to ask again, and how far each group has been heard.
    """

    def __init__(self) -> None:
        self.since: str | None = None
        self._replaying = False
        self._groups: set[str] = set()
        self._heard: dict[str, int] = {}
        self._epoch = ""

    def welcome(self, position: str) -> None:
        """The server says where the stream is; it counts only for one who knows no position yet."""
        if self.since is None:
            self.since = position

    def asked(self, since: str) -> None:
        """A subscription was sent with this `since`: until the answer is whole, this is where to ask again
        from."""
        self.since = since
        self._replaying = True

    def is_new(self, event: Event) -> bool:
        """Whether the application is to hear it; what was heard before is not new."""
        epoch, _, number = (event.position or "").partition(":")
        if not number.isdigit() or event.group is None:
            return True
        if epoch != self._epoch:
            self._epoch = epoch
            self._heard.clear()
        if int(number) <= self._heard.get(event.group, -1):
            return False
        self._heard[event.group] = int(number)
        if not self._replaying:
            self.since = event.position
        return True

    def settled(self, position: str) -> None:
        """Everything up to here has been heard, or is known to be lost."""
        self.since = position
        self._replaying = False

    def progress(self, position: str) -> None:
        if not self._replaying:
            self.since = position

    def subscribed(self, groups: Groups, since: str | None = None) -> None:
        """These groups are asked for from now on, those of them that are new from `since` on. Others are
        forgotten."""
        names = {f"{family}-{key}" for family, keys in groups.items() for key in keys}
        new, self._groups = names - self._groups, names
        self._heard = {group: number for group, number in self._heard.items() if group in names}
        if since is None:
            return
        self.since = earlier(self.since, since)
        epoch, _, number = since.partition(":")
        if self.since != since and self.since.partition(":")[0] == epoch:
            # The groups of before are to be asked for from where they are, which is earlier. Of the new ones
            # what comes from there on is older than what their reader has.
            if epoch != self._epoch:
                self._epoch = epoch
                self._heard.clear()
            self._heard |= dict.fromkeys(new, _number(number))
        # Else what we know is of another log: the server will say so, and that not everything can be sent.
        self._replaying = True


def earlier(own: str | None, since: str) -> str:
    """Which of two positions lies before the other; of two logs nobody knows, and the first one stays."""
    if own is None:
        return since
    own_epoch, _, own_digits = own.partition(":")
    epoch, _, digits = since.partition(":")
    return since if own_epoch == epoch and _number(own_digits) >= _number(digits) else own


def _number(digits: str) -> int:
    return int(digits) if digits.isdigit() else -1


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
    TRY_LATER: Goodbye(True, "the server is busy"),
    4401: Goodbye(False, "the token is refused, or no longer valid", refused=True),
    4403: Goodbye(False, "the server forbids this origin", refused=True),
    4408: Goodbye(True, "this client read too slowly"),
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
