"""`revoke_tokens`: ends every API token of a user, and the sockets that came in by them."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from carillon.accounts.models import ApiToken, lock_user


class Command(BaseCommand):
    help = (
        "End all API tokens of a user, at once: after a lost machine, or with a new password, which ends the "
        "user's sessions and leaves tokens alone."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", required=True)

    def handle(self, *args: Any, username: str, **options: Any) -> None:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}")
        with transaction.atomic():
            lock_user(user.pk)
            _, each = ApiToken.objects.filter(user=user).delete()
        self.stdout.write(f"{each.get('carillon.ApiToken', 0)} tokens of {username} have ended")
