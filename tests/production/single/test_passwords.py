"""A password goes to the database and is seen nowhere on its way."""

from __future__ import annotations

import json
import os
import shlex
import string
import threading
from pathlib import Path

import pytest

from tests.production.conftest import ROOT
from tests.production.single.conftest import database_version

# Between them every character that means something to a shell, to SQL, to psql or to a template.
AWKWARD = [
    f"it's \"{string.punctuation}\" '; DROP ROLE carillon; -- $(id) `id` %s :pw".replace("{", "<"),
    "pässwörd ключ 🔑",
]
PLAY = str(ROOT / "tests/production/single/login.yml")


class Watch:
    """Looks at argv and environment of every process of this machine, hosts in containers included."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.seen: set[str] = set()
        self.found: set[str] = set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._stop.is_set():
            for process in filter(str.isdigit, os.listdir("/proc")):
                for file in ("cmdline", "environ"):
                    try:
                        text = Path("/proc", process, file).read_bytes()
                    except OSError:
                        continue
                    words = text.split(b"\0")
                    if file == "cmdline":
                        self.seen.add(words[0].decode(errors="replace"))
                    if self._secret in text:
                        self.found.add(f"{file} of {words[0][:60]!r}")


@pytest.fixture
def login(machine, playbook, tmp_path):
    """A function that gives the database's login a password; afterwards it has its own again."""

    def run(password: str) -> None:
        file = tmp_path / "password.json"
        file.write_text(json.dumps({"carillon_database_password": password}))
        playbook(PLAY, "-e", f"@{file}")

    yield run
    playbook(PLAY)


def log(machine) -> str:
    return machine.run("cat /var/log/postgresql/*.log; journalctl --no-pager")


@pytest.mark.parametrize("password", AWKWARD)
def test_a_password_of_every_awkward_character_lets_in_and_is_seen_nowhere(machine, login, password):
    with Watch(password) as watch:
        login(password)
    assert any("ansible-playbook" in name or "python" in name for name in watch.seen)
    assert watch.found == set()
    shown = machine.run(
        f"PGPASSWORD={shlex.quote(password)} psql -h 127.0.0.1 -U carillon_a carillon"
        " -Atc 'select current_user'"
    )
    assert shown == "carillon\n"
    assert password not in log(machine)


def test_a_statement_that_fails_or_takes_long_is_not_logged_with_its_values(machine):
    mark = "a-token-of-somebody"
    psql = "runuser -u postgres -- psql -d carillon -c"
    failed = machine.host.run(f"{psql} \"insert into django_session values ('{mark}', null, now())\"")
    assert "not-null" in failed.stderr
    machine.run(f"{psql} \"select pg_sleep(2.2), '{mark}'\"")
    written = machine.run(f"cat /var/log/postgresql/postgresql-{database_version(machine)}-main.log")
    assert "not-null" in written, "the error itself is logged"
    assert mark not in written
