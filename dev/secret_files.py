"""Secrets of the development stack: made when missing, kept in the state directory, never in an image."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

# Name of the file in <state>/secrets to the random bytes in it.
SECRETS = {
    "secret_key": 48,
    "database_password": 24,
    "amqp_password": 24,
    "rabbitmq_cookie": 32,
    "admin_password": 15,
}
# What `make production-rotate` makes anew.
ROTATED = ("secret_key", "database_password", "amqp_password")
# Keys of before, with which sessions last over a rotation.
FALLBACKS = "secret_key_fallbacks"
# The scraper's, of `make observe`.
METRICS_TOKEN = "metrics_token"  # noqa: S105 - a file's name

PROJECT_SETTINGS = """\
# Settings of your own, read by every process at its start: PROJECT_NAME=value, one a line.
# In src/project/settings.py: env.project["PROJECT_NAME"]. After a change: make down, then start again.
"""


def project_settings(path: Path) -> None:
    """Make the file of the team's own settings where it is missing: a bind mount needs one."""
    if not path.exists():
        write(path, PROJECT_SETTINGS, 0o644)


def ensure(directory: Path) -> list[str]:
    """Make what is missing and leave the rest alone; the names of what was made."""
    private_directory(directory)
    made = [name for name in SECRETS if not (directory / name).is_file()]
    for name in made:
        # Letters, digits, - and _: safe in a shell file, a URL and SQL.
        # 0444: a bind mount keeps the owner, and the containers run as users of their own. What protects the
        # file is the directory, 0700.
        write(directory / name, secrets.token_urlsafe(SECRETS[name]) + "\n", 0o444)
    return made


def read(directory: Path, name: str) -> str:
    return (directory / name).read_text().strip()


def private_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)


def write(path: Path, text: str, mode: int) -> bool:
    """Write whole or not at all, never readable by others meanwhile; False when it already said the same."""
    if path.is_file() and path.read_text() == text and path.stat().st_mode & 0o777 == mode:
        return False
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.replace(name, path)
    return True
