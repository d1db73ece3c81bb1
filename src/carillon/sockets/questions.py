"""What many sockets ask the database at once: who they are, and what they may hear. A question may be a
mistake of the project's: its answer is an exception then, for those alone who asked it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carillon.events.families import Family, Key, registry
from carillon.sockets import authentication

Groups = Mapping[str, tuple[str, str]]
"""Group by group, its family and key as the client spelled them."""


def allowed(questions: Sequence[tuple[Family, Any, set[Key]]]) -> list[set[Key] | Exception]:
    """Those keys that each user may hear; all questions to a family whose rule is for many as one."""
    together: dict[object, list[int]] = {}
    for place, (family, _, _) in enumerate(questions):
        together.setdefault(place if family.permitted_many is None else family, []).append(place)
    answers: list[set[Key] | Exception] = [set()] * len(questions)
    for places in together.values():
        asked = [questions[place] for place in places]
        found: Sequence[set[Key] | Exception]
        try:
            found = asked[0][0].allowed_each([(user, keys) for _, user, keys in asked])
        except Exception as error:
            found = [error] * len(asked)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return answers


def again(
    questions: Sequence[tuple[authentication.Identity, Groups]],
) -> list[tuple[authentication.Identity | None, set[str]] | Exception]:
    """Who each of these is now, and which of these groups he may hear: a few queries for all of them."""
    identities = authentication.revalidate_each([identity for identity, _ in questions])
    answers: list[Any] = [
        identity if isinstance(identity, Exception) else (identity, set()) for identity in identities
    ]
    asked: list[tuple[Family, Any, set[Key]]] = []
    places: list[int] = []
    for place, ((_, groups), identity) in enumerate(zip(questions, identities, strict=True)):
        if identity is None or isinstance(identity, Exception):
            continue
        keys: dict[str, set[Key]] = {}
        for name, text in groups.values():
            keys.setdefault(name, set()).add(registry.get(name).parse_key(text))
        for name, known in keys.items():
            asked.append((registry.get(name), identity.user, known))
            places.append(place)
    for place, (family, _, _), answer in zip(places, asked, allowed(asked), strict=True):
        if isinstance(answer, Exception):
            answers[place] = answer
        elif not isinstance(answers[place], Exception):
            answers[place][1].update(f"{family.name}-{key.text}" for key in answer)
    return answers
