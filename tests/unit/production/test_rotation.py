"""The control node's part of a rotation, cut off anywhere and run again."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

TASK = {
    "ansible.builtin.include_role": {"name": "secrets", "tasks_from": "rotate"},
    "vars": {"secrets_rotate": ["database", "amqp", "secret_key"]},
}


@pytest.fixture
def secrets(tmp_path) -> Path:
    """Of an installation that was rotated once: the free slot has a password of before."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, text in {
        "database-slot": "b",
        "amqp-slot": "b",
        **{f"{kind}-password-a": f"{kind} of before" for kind in ("database", "amqp")},
        **{f"{kind}-password-b": f"{kind} of now" for kind in ("database", "amqp")},
        "secret-key": "key of now",
        "secret-key-fallbacks": "key of before",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def rotate(play, secrets):
    def run(task: dict = TASK) -> str:
        code, said = play(task, topology_secrets_dir=str(secrets))
        assert code == 0, said
        return said

    return run


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def assert_moved(folder: Path) -> None:
    found = read(folder)
    assert (found["database-slot"], found["amqp-slot"]) == ("a", "a")
    assert found["secret-key-fallbacks"] == "key of now"
    assert found.get("secret-key") != "key of now"
    for kind in ("database", "amqp"):
        assert found[f"{kind}-password-b"] == f"{kind} of now", (
            "programs use it until they have been restarted"
        )
        assert found.get(f"{kind}-password-a") != f"{kind} of before"


def test_all_move_to_the_free_slot_and_the_key_becomes_the_fallback(rotate, secrets):
    rotate()
    assert_moved(secrets)
    assert (secrets / "rotation").stat().st_mode & 0o777 == 0o600
    assert "key of now" not in (secrets / "rotation").read_text()


def test_one_that_was_cut_off_later_is_gone_on_with(rotate, secrets):
    rotate()
    for kind in ("database", "amqp"):
        (secrets / f"{kind}-password-a").write_text(f"{kind} anew")
    (secrets / "secret-key").write_text("key anew")
    before = read(secrets)
    assert "A rotation was cut off" in rotate()
    assert read(secrets) == before
    assert_moved(secrets)


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4, 5])
def test_one_that_was_cut_off_between_two_of_its_steps_is_finished(rotate, secrets, done):
    """Each file that it changes is a step, in its order; `done` of them came before the end."""
    moves = {"database": "a", "amqp": "a", "secret_key": sha256(b"key of now").hexdigest()}
    (secrets / "rotation").write_text(json.dumps(moves))
    steps = [
        (secrets / "database-password-a").unlink,
        (secrets / "amqp-password-a").unlink,
        lambda: (secrets / "database-slot").write_text("a"),
        lambda: (secrets / "amqp-slot").write_text("a"),
        lambda: (secrets / "secret-key").rename(secrets / "secret-key-fallbacks"),
    ]
    for step in steps[:done]:
        step()
    rotate()
    assert_moved(secrets)


def test_only_what_is_named_is_rotated(rotate, secrets):
    before = read(secrets)
    rotate({**TASK, "vars": {"secrets_rotate": ["amqp"]}})
    changed = {name for name, text in read(secrets).items() if before.get(name) != text}
    assert changed == {"amqp-slot", "rotation"}
    assert not (secrets / "amqp-password-a").exists()
