"""`ensure_admin`: an admin with the password in a file, whatever was there before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction


class Command(BaseCommand):
    help = "Make sure that an active admin of this name and password exists. Run again, it changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", default="admin")
        # A file, never an argument: every user of the machine can read an argv.
        parser.add_argument(
            "--password-file", required=True, help="file with the password; '-' is standard input"
        )

    def handle(self, *args: Any, username: str, password_file: str, **options: Any) -> None:
        from_stdin = password_file == "-"  # noqa: S105  (a file's name)
        try:
            password = (sys.stdin.read() if from_stdin else Path(password_file).read_text()).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--password-file {password_file} cannot be read: {error}") from None
        if not password:
            raise CommandError(f"--password-file {password_file} is empty")
        users = get_user_model().objects
        user = users.filter(username=username).first()
        if user is None:
            with transaction.atomic():  # with its entry in the audit log
                users.create_superuser(username, password=password)
            self.stdout.write(f"Made the admin {username}")
            return
        changed = []
        if not (user.is_superuser and user.is_staff and user.is_active):
            user.is_superuser = user.is_staff = user.is_active = True
            changed.append("rights")
        if not user.check_password(password):
            user.set_password(password)
            changed.append("password")
        if changed:
            with transaction.atomic():  # with its entry, and the word for the user's sockets
                user.save()
        self.stdout.write(
            f"The admin {username}: {' and '.join(changed) + ' set' if changed else 'unchanged'}"
        )
