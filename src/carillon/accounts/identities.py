"""Whose account is who an issuer outside speaks of: by issuer and subject, never by a name or an address.

A name is what somebody may call himself elsewhere. It names a user that is made here, and finds none.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction

from carillon.accounts import audit
from carillon.accounts.jwts import Claims
from carillon.accounts.models import ExternalIdentity, Team
from carillon.conf import conf

LONGEST_NAME = 150
_ODD = re.compile(r"[^\w.@+-]+")  # what Django's user names do not have
_ATTEMPTS = 5


class Unwelcome(Exception):
    """Nobody here. The text says why, as a sentence."""


def find_many(all_claims: Iterable[Claims]) -> dict[tuple[str, str], ExternalIdentity | Unwelcome]:
    """Who each of them is here, by issuer and subject, with the user; who is new is made, if that is wanted.
    Asks the database."""
    wanted = {claims.who: claims for claims in all_claims}
    found: dict[tuple[str, str], ExternalIdentity] = {}
    for issuer in {issuer for issuer, _ in wanted}:
        subjects = [subject for known, subject in wanted if known == issuer]
        rows = ExternalIdentity.objects.filter(issuer=issuer, subject__in=subjects).select_related("user")
        found.update({(row.issuer, row.subject): row for row in rows})
    answers: dict[tuple[str, str], ExternalIdentity | Unwelcome] = {}
    for who, claims in wanted.items():
        try:
            row = found.get(who) or _make(claims)
            answers[who] = row if row.user.is_active else Unwelcome("The user is not active.")
        except Unwelcome as unwelcome:
            answers[who] = unwelcome
    return answers


def find(claims: Claims) -> ExternalIdentity:
    """Raises Unwelcome, DatabaseError."""
    answer = find_many([claims])[claims.who]
    if isinstance(answer, Unwelcome):
        raise answer
    return answer


def logged_out(claims: Claims) -> Any:
    """Whose account it is that was left at the issuer; None: nobody's here. Asks the database."""
    known = ExternalIdentity.objects.filter(issuer=claims.issuer, subject=claims.subject)
    row = known.select_related("user").first()
    if row is None:
        return None
    _tell("logged out", row)
    return row.user


def follow_groups(user: Any, claims: Claims) -> None:
    """What the provider says of the user's groups holds here from now on, if that is wanted. A claim that is
    missing is one without groups. Asks the database."""
    if not conf.OIDC_GROUPS_CLAIM:
        return
    said = claims.all.get(conf.OIDC_GROUPS_CLAIM)
    groups = {group for group in said if isinstance(group, str)} if isinstance(said, list) else set()
    with transaction.atomic():
        user.teams.set(Team.objects.filter(name__in=[name for name in groups if name.isprintable()]))
        admin = conf.OIDC_ADMIN_GROUP in groups
        if conf.OIDC_ADMIN_GROUP and user.is_superuser != admin:
            user.is_superuser = admin
            user.save(update_fields=["is_superuser"])
            what = "made an admin" if admin else "no admin any more"
            name = user.get_username()
            audit.line(f"User {what}: {name!r}", {"what": what, "name": name, "issuer": claims.issuer})


def link(user: Any, issuer: str, subject: str) -> ExternalIdentity:
    """From now on they are one. Raises IntegrityError when it is somebody already."""
    with transaction.atomic():
        row = ExternalIdentity.objects.create(user=user, issuer=issuer, subject=subject)
        _tell("linked", row)
    return row


def unlink(row: ExternalIdentity) -> None:
    """Who has the account comes in by it no more; the user's tokens of ours and his sessions are his own."""
    with transaction.atomic():
        _tell("unlinked", row)
        row.delete()


def _make(claims: Claims) -> ExternalIdentity:
    if conf.IDENTITY_USERS != "create":
        raise Unwelcome("Nobody here is linked to this account: ask an administrator.")
    wanted = username(claims)
    model = get_user_model()
    name_field = model.USERNAME_FIELD
    for _ in range(_ATTEMPTS):
        taken = model.objects.filter(**{f"{name_field}__iexact": wanted}).exists()
        name = f"{wanted[: LONGEST_NAME - 9]}-{secrets.token_hex(4)}" if taken else wanted
        try:
            with transaction.atomic():
                user = model.objects.create_user(**{name_field: name})
                row = ExternalIdentity.objects.create(user=user, issuer=claims.issuer, subject=claims.subject)
                _tell("identity made", row)
        except IntegrityError:  # somebody was quicker: with the same account, or the same name
            row = ExternalIdentity.objects.filter(issuer=claims.issuer, subject=claims.subject).first()
            if row is None:
                continue
        return row
    raise Unwelcome("No user can be made for this account now: try again.")


def username(claims: Claims) -> str:
    """What the user would be called, if nobody is yet."""
    for text in (claims.name, claims.subject):
        if name := _ODD.sub("-", get_user_model().normalize_username(text)).strip("-")[:LONGEST_NAME]:
            return name
    return "user"


def _tell(what: str, row: ExternalIdentity) -> None:
    name = row.user.get_username()
    audit.note(what, name, issuer=row.issuer, subject=row.subject)
