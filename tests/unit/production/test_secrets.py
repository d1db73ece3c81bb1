"""Secrets of the playbooks: in no argv, no environment and no log."""

from __future__ import annotations

import hmac
import string
from base64 import b64decode, b64encode
from importlib import util
from pathlib import Path

import pytest

from tests.unit.production.test_control_node import ANSIBLE, TASK_FILES, tasks

_SPEC = util.spec_from_file_location("filters", ANSIBLE / "plugins/filter/carillon.py")
filters = util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(filters)

AWKWARD = [
    "it's",
    "'; DROP ROLE carillon; --",
    '$(id) `id` ${HOME} %s {{ 7 * 7 }} \\ "',
    string.punctuation + string.ascii_letters + string.digits,
    "pässwörd ключ 密码 🔑",
    "0",
]


def test_the_verifier_is_that_of_the_specification():
    """The exchange in RFC 7677, section 3, ends as it does there with the key of this verifier."""
    salt, nonce = "W22ZaJ0SNY7soEsUEjb6gQ==", "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    made = filters.postgresql_verifier("pencil", b64decode(salt), 4096)
    server_key = b64decode(made.rpartition(":")[2])
    said = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={salt},i=4096,c=biws,r={nonce}".encode()
    assert (
        b64encode(hmac.digest(server_key, said, "sha256")) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )


@pytest.mark.parametrize("password", AWKWARD)
def test_a_password_verifies_itself_and_nothing_else(password):
    made = filters.postgresql_verifier(password)
    assert set(made) <= set(string.ascii_letters + string.digits + "+/=-$:"), "it would need quotes"
    assert password == "0" or password not in made
    assert filters.postgresql_verifies(f"{made}\n", password)
    assert not filters.postgresql_verifies(made, f"{password}x")
    assert filters.postgresql_verifier(password) != made, "a salt is used once"


# As RFC 4013, section 3, has them.
@pytest.mark.parametrize(("one", "other"), [("I\u00adX", "IX"), ("\u00aa", "a"), ("\u2168", "IX")])
def test_passwords_that_a_client_sends_as_the_same_are_the_same(one, other):
    assert filters.postgresql_verifies(filters.postgresql_verifier(one), other)


def test_what_the_rules_forbid_is_taken_as_it_is():
    for password in ("\u0627\u0031", "a\u0007ä"):
        assert filters._saslprep(password) == password


@pytest.mark.parametrize(
    "verifier", ["", "md5c1a6b1b0d6e5c1a6b1b0d6e5c1a6b1b0", "SCRAM-SHA-256$x:y$z", "x$4096:$z"]
)
def test_another_kind_of_verifier_is_not_that_of_a_password(verifier):
    assert not filters.postgresql_verifies(verifier, "pencil")


SECRETS = ("password", "secret_key", "cookie", "salt")


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: str(path.relative_to(ANSIBLE)))
def test_no_task_shows_a_secret(path: Path):
    for task, *_ in tasks(path):
        named = [name for name in SECRETS if f"secrets_{name}" in str(task) or f"_{name} |" in str(task)]
        named += [name for name in SECRETS if f"secrets_database_{name}" in str(task)]
        named += [name for name in SECRETS if f"secrets_amqp_{name}" in str(task)]
        if not named:
            continue
        assert task.get("no_log") is True, task["name"]
        # Ansible puts what it has in `environment` into the command line of a shell.
        assert "secrets_" not in str(task.get("environment", "")), task["name"]
        command = task.get("ansible.builtin.command", {})
        argv = command if isinstance(command, str) else f"{command.get('argv')} {command.get('cmd')}"
        assert "secrets_" not in argv, task["name"]
