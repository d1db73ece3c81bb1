"""`link_identity`: an account at an issuer outside is a user here, or is none any more."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError

from carillon.accounts import identities
from carillon.accounts.jwts import LONGEST_TEXT
from carillon.accounts.models import ExternalIdentity


class Command(BaseCommand):
    help = "Link an account at an OpenID provider, by its issuer and subject (sub), to a user here."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--issuer", required=True, help="as its tokens have it (iss)")
        parser.add_argument("--subject", required=True, help="as its tokens have it (sub)")
        parser.add_argument(
            "--remove", action="store_true", help="the link; sockets that came by it end at once"
        )

    def handle(
        self, *args: Any, username: str, issuer: str, subject: str, remove: bool, **options: Any
    ) -> None:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}")
        if remove:
            link = ExternalIdentity.objects.filter(user=user, issuer=issuer, subject=subject).first()
            if link is None:
                raise CommandError(f"{username} is not linked to {subject!r} of {issuer}")
            identities.unlink(link)
            self.stdout.write(f"{username} is not linked to {subject!r} of {issuer} any more")
            return
        if max(len(issuer), len(subject)) > LONGEST_TEXT:
            raise CommandError(f"--issuer and --subject have at most {LONGEST_TEXT} characters")
        try:
            identities.link(user, issuer, subject)
        except IntegrityError:
            raise CommandError(f"{subject!r} of {issuer} is linked already: --remove that first") from None
        self.stdout.write(f"{username} is {subject!r} of {issuer}")
