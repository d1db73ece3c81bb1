"""Which images a rollback of the containers leads to, and what a refresh builds."""

from __future__ import annotations

import pytest

from dev import base_image, images, operations, process, production

ONE = {"app": "1", "nginx": "1"}
TWO = {"app": "2", "nginx": "2"}
APP = {"app": "2", "nginx": "1"}


@pytest.mark.parametrize(
    ("running", "new", "last", "begins"),
    [
        (ONE, TWO, ({}, {}), True),  # the first upgrade
        (APP, TWO, (ONE, TWO), False),  # stopped half-way, and again
        (APP, {"app": "3", "nginx": "3"}, (ONE, TWO), False),  # … with a mended release
        (TWO, TWO, (ONE, TWO), False),  # again when all is done
        (ONE, TWO, (ONE, TWO), True),  # after a rollback
        (TWO, {"app": "3", "nginx": "2"}, (APP, TWO), True),  # the next one
        (TWO, {"app": "3", "nginx": "3"}, (ONE, TWO), True),
        (ONE, ONE, ({}, {}), False),  # nothing new
    ],
)
def test_what_an_upgrade_left_that_was_stopped_is_not_gone_back_to(running, new, last, begins):
    assert operations.begins(running, new, *last) == begins


def test_a_refresh_takes_nothing_from_yesterday(settings, monkeypatch):
    """A new base, every image without the builder's cache, and then the upgrade that can be rolled back."""
    ran = []
    monkeypatch.setattr(process, "work", lambda command, **_: ran.append(command))
    monkeypatch.setattr(images, "_labels", lambda config, chosen: {})
    monkeypatch.setattr(operations, "upgrade", lambda config: ran.append(["upgrade"]))
    answer = process.subprocess.CompletedProcess([], 0, "sha256:base", "")
    monkeypatch.setattr(process, "ask", lambda *_, **__: answer)
    operations.refresh(settings)
    assert ran[0] == ["docker", "pull", base_image.IMAGE]
    assert ran[-1] == ["upgrade"]
    built = {command[command.index("--tag") + 1]: command for command in ran[1:-1]}
    assert set(built) == {image.tag(settings) for image in production.IMAGES}
    assert all("--no-cache" in command for command in built.values())
