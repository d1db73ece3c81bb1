"""`create_token`: a new API token, printed alone, so that a script can catch it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from carillon.accounts.models import ApiToken
from carillon.accounts.permissions import may_publish
from carillon.accounts.tokens import parse_scope


class Command(BaseCommand):
    help = "Make an API token and print it: it is stored hashed and cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--description", default="")
        parser.add_argument(
            "--scope", default="read write", help='of read, write, publish, metrics: "read write publish"'
        )
        parser.add_argument(
            "--days", type=int, default=365, help="life in days; 0: it does not expire (%(default)s)"
        )

    def handle(
        self, *args: Any, username: str, description: str, scope: str, days: int, **options: Any
    ) -> None:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}")
        if not 0 <= days <= 36500:
            raise CommandError("--days is a number from 0 to 36500, a hundred years")
        try:
            scope = parse_scope(scope)
        except ValueError as error:
            raise CommandError(f"--scope: {error}") from None
        if "publish" in scope.split() and not may_publish(user):
            raise CommandError(
                f"--scope: {username} may not publish: make it an admin, or give it the permission "
                "carillon.publish"
            )
        _, token = ApiToken.issue(
            user,
            description=description[:200],
            scope=scope,
            expires=timezone.now() + timedelta(days=days) if days else None,
        )
        self.stdout.write(token)
