"""Families of events: an allow-list of what may be subscribed to, and by whom.

A group's name is `<family>-<key>`. Names are built from registered families and checked keys, never from
a client's text. Pure: imports neither Django nor the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ID = "<id>"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_WORD = re.compile(r"[a-z0-9_]{1,40}")
PLACEHOLDERS = {
    ID: "[1-9][0-9]{0,17}",  # fits a bigint, and has one spelling only
    "<slug>": "[A-Za-z0-9_-]{1,50}",
    "<uuid>": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
"""What may stand in a key's place, as regular expressions. One spelling each: two were two groups."""
_PLACEHOLDER = re.compile("|".join(PLACEHOLDERS))


@dataclass(frozen=True)
class Key:
    """What follows the family in a group's name: `text`, and the number in it if the key has an `<id>`."""

    text: str
    id: int | None = None


Questions = Sequence[tuple[Any, set[Key]]]
"""Users, each with the keys that it is about."""


@dataclass(frozen=True)
class Family:
    """A family of groups.

    `keys`: fixed words, or words with a placeholder, `<id>` for a positive integer, `<slug>` or `<uuid>`:
    `("changed",)`, `("<id>",)`, `("limit_reached_<id>",)`, `("<slug>",)`.
    `may_subscribe(user, key)`: may this user hear of this key? Without it every user may.
    `permitted(user, keys)`: the same for many keys at once, for rules that ask a database; it answers
    with those keys that are allowed, and is used in place of `may_subscribe`.
    `permitted_many([(user, keys), …])`: the same for many users at once, an answer for each: after a restart
    thousands come back in seconds. It is used in place of both.
    `payload`: a JSON Schema of what its events carry, for the AsyncAPI document; no event is held to it.
    Raises ValueError for names that cannot be part of a group's name.
    """

    name: str
    keys: tuple[str, ...]
    may_subscribe: Callable[[Any, Key], bool] | None = None
    permitted: Callable[[Any, set[Key]], set[Key]] | None = None
    permitted_many: Callable[[Questions], Sequence[set[Key]]] | None = None
    payload: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    pattern: str = field(init=False, repr=False, compare=False)
    """Of the keys, as a regular expression."""
    _forms: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"family {self.name!r}: a name is lower-case letters, digits and '_'")
        patterns = []
        for key in self.keys:
            words = _PLACEHOLDER.split(key)
            if not key or len(words) > 2 or any(word and not _WORD.fullmatch(word) for word in words):
                raise ValueError(
                    f"family {self.name!r}: key {key!r} is not lower-case words with at most one of "
                    f"{', '.join(PLACEHOLDERS)}"
                )
            patterns.append(_PLACEHOLDER.sub(lambda found: PLACEHOLDERS[found[0]], key))
        object.__setattr__(self, "pattern", "|".join(patterns))
        object.__setattr__(self, "_forms", tuple(re.compile(pattern) for pattern in patterns))

    def parse_key(self, text: str) -> Key | None:
        """The key that `text` spells, or None when this family has no such key."""
        for form, key in zip(self._forms, self.keys, strict=True):
            if form.fullmatch(text):
                before, placeholder, after = key.partition(ID)
                return (
                    Key(text, int(text[len(before) : len(text) - len(after)])) if placeholder else Key(text)
                )
        return None

    @property
    def asks(self) -> bool:
        """Whether allowed() may ask the database: a rule of one's own might."""
        return any((self.may_subscribe, self.permitted, self.permitted_many))

    def allowed(self, user: Any, keys: Iterable[Key]) -> set[Key]:
        """Those of `keys` that `user` may subscribe to. May ask the database."""
        return self.allowed_each([(user, set(keys))])[0]

    def allowed_each(self, questions: Questions) -> list[set[Key]]:
        """allowed() for each of these users and their keys."""
        found: Sequence[set[Key]]
        if self.permitted_many is not None:
            found = self.permitted_many(questions)
        elif self.permitted is not None:
            found = [self.permitted(user, keys) for user, keys in questions]
        elif self.may_subscribe is not None:
            found = [{key for key in keys if self.may_subscribe(user, key)} for user, keys in questions]
        else:
            return [keys for _, keys in questions]
        # A rule cannot add what was not asked for.
        return [answer & keys for answer, (_, keys) in zip(found, questions, strict=True)]


class Registry:
    """The families that are known, by name."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def register(self, family: Family) -> Family:
        """Add a family. Raises ValueError when another one has the name."""
        if self._families.setdefault(family.name, family) != family:
            raise ValueError(f"family {family.name!r} is registered twice: choose another name")
        return family

    def get(self, name: str) -> Family | None:
        return self._families.get(name)

    def names(self) -> list[str]:
        return sorted(self._families)

    def all(self) -> list[Family]:
        return [self._families[name] for name in self.names()]

    def parse_group(self, group: str) -> tuple[Family, Key] | None:
        """`job_events-42` to its family and key; None when it is no group of a known family."""
        name, _, key_text = group.partition("-")
        family = self._families.get(name)
        key = family.parse_key(key_text) if family else None
        return (family, key) if family and key else None


registry = Registry()
register = registry.register
