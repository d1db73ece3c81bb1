"""Operators of the container production: rotate, back up, upgrade, roll back, restore."""

from __future__ import annotations

import json
import shutil

import pytest

from dev import operations, production, secret_files
from dev import stack as compose_stack
from dev.output import Failure
from dev.production_testing import RELEASE_MARKER
from tests.infra.stack import Stack, docker, wait
from tests.production.container.test_container import SERVICES, inside


@pytest.fixture(autouse=True)
def whole(stack):
    yield
    wait("an event goes all the way", stack.deliver, 60)


def do(verb, *arguments):
    """An operation, after which containers are others than before."""
    try:
        return verb(*arguments)
    finally:
        Stack.container.cache_clear()


def images(stack) -> dict[str, str]:
    return {service: stack.inspect(service)["Image"] for service in SERVICES}


def marked(stack) -> bool:
    """The release with the marker runs."""
    name = RELEASE_MARKER.stem
    found = f"import importlib.util as u; print(u.find_spec('carillon.{name}') is not None)"
    return inside(stack, "/opt/carillon/current/bin/python", "-c", found).strip() == "True"


def test_there_is_nothing_to_go_back_to_before_an_upgrade(settings, stack):
    with pytest.raises(Failure, match="nothing to go back to"):
        do(operations.rollback, settings)


def test_rotated_secrets_are_new_and_sessions_last(stack, settings):
    before = {name: secret_files.read(settings.secrets, name) for name in secret_files.SECRETS}
    session = stack.api("/api/v2/me/")
    do(operations.rotate, settings)
    after = {name: secret_files.read(settings.secrets, name) for name in secret_files.SECRETS}
    assert {name for name in before if before[name] != after[name]} == set(secret_files.ROTATED)
    assert secret_files.read(settings.secrets, secret_files.FALLBACKS) == before["secret_key"]
    wait("an event goes all the way", stack.deliver, 60)
    assert stack.api("/api/v2/me/") == session
    for service in ("postgresql", "rabbitmq"):
        for name in secret_files.ROTATED:
            assert after[name] not in stack.logs(service)
    # The old password opens nothing.
    url = f"postgresql://carillon:{before['database_password']}@postgresql/carillon"
    script = f"import psycopg\ntry: psycopg.connect({url!r})\nexcept psycopg.OperationalError as e: print(e)"
    assert "password authentication failed" in inside(stack, "/opt/carillon/current/bin/python", "-c", script)


def test_a_rotation_that_was_cut_off_is_finished_by_another(stack, settings, monkeypatch):
    first = secret_files.read(settings.secrets, "secret_key")
    session = stack.api("/api/v2/me/")
    compose = compose_stack.compose
    # Before the broker is told, and then before the application is started anew.
    for word in ("change_password", "up"):

        def cut(config, *arguments, word=word, **how):
            if word in arguments:
                raise KeyboardInterrupt
            return compose(config, *arguments, **how)

        with monkeypatch.context() as patch:
            patch.setattr(compose_stack, "compose", cut)
            with pytest.raises(KeyboardInterrupt):
                do(operations.rotate, settings)
    do(operations.rotate, settings)
    assert secret_files.read(settings.secrets, secret_files.FALLBACKS) == first
    wait("an event goes all the way", stack.deliver, 60)
    assert stack.api("/api/v2/me/") == session


def test_what_it_was_told_is_in_force_until_it_is_told_otherwise(stack, settings):
    def memory(**said) -> int:
        # Its ports are kept, too.
        do(production.up, production.load(said, project=settings.project, state=str(settings.state)))
        return stack.inspect("nginx")["HostConfig"]["Memory"]

    usual = memory()
    assert memory(CARILLON_NGINX_MEMORY="600m") == memory() == 600 * 2**20 != usual
    assert memory(CARILLON_NGINX_MEMORY="") == memory() == usual


def test_an_upgrade_and_back_and_what_was_backed_up_is_restored(stack, settings, tmp_path):
    job = stack.api("/api/v2/jobs/", {"name": "kept through the fire"})
    upload = "/var/lib/carillon/media/bells.txt"
    inside(stack, "sh", "-c", f"echo rung > {upload}")
    folder = do(operations.backup, settings, tmp_path / "backup")
    assert {path.name for path in folder.iterdir()} == {
        "database.dump",
        "media.tar",
        "secrets",
        "project.env",
    }
    inside(stack, "rm", upload)
    assert folder.stat().st_mode & 0o777 == 0o700
    first = images(stack)
    RELEASE_MARKER.write_text('"""Made by a test, which takes it away again."""\n')
    try:
        do(operations.upgrade, settings)
        assert marked(stack)
        second = images(stack)
        assert {service for service in SERVICES if first[service] != second[service]} == {"app"}
        others = {service: stack.container(service) for service in SERVICES if service != "app"}
        do(operations.rollback, settings)
        assert (images(stack), marked(stack)) == (first, False)
        assert others == {service: stack.container(service) for service in others}, "broker and database stay"
        # It is kept to: the checkout is still the other release.
        do(production.up, settings)
        assert images(stack) == first
        with pytest.raises(Failure, match="`make production-upgrade` first"):
            do(operations.refresh, settings)
        stack.api("/api/v2/jobs/", {"name": "after the backup"})
        do(operations.restore, settings, folder)
        assert images(stack) == first, "a restore is of the release that runs"
    finally:
        RELEASE_MARKER.unlink()
    assert inside(stack, "cat", upload) == "rung\n"
    inside(stack, "rm", upload)
    names = {row["name"] for row in stack.api("/api/v2/jobs/")["results"]}
    assert "after the backup" not in names
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "kept through the fire"
    ask = ("psql", "-Atc", "select datname from pg_database where not datistemplate", "-h", "/run/postgresql")
    databases = docker("exec", stack.container("postgresql"), *ask, "-U", "postgres", "postgres")
    assert set(databases.split()) == {"postgres", "carillon"}
    do(operations.upgrade, settings)
    assert not (settings.state / "held").exists()
    assert json.loads((settings.state / "before.json").read_text())["from"]["app"] == first["app"]
    assert not marked(stack)


def test_a_folder_that_is_no_backup_is_refused_in_words(settings, stack, tmp_path):
    with pytest.raises(Failure, match=f"FROM={tmp_path} is no backup"):
        do(operations.restore, settings, tmp_path)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "database.dump").write_bytes(b"half of one")
    shutil.copyfile(settings.project_settings, tmp_path / "project.env")
    with pytest.raises(Failure, match="pg_restore failed"):
        do(operations.restore, settings, tmp_path)
    assert stack.deliver(), "what runs is as it was"
