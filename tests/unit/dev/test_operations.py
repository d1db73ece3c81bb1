"""Which images a rollback of the containers leads to, and what a refresh builds."""

from __future__ import annotations

import fcntl
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from dev import (
    base_image,
    development,
    engine,
    environments,
    images,
    operations,
    preflight,
    process,
    production,
    secret_files,
    stack,
)
from dev.output import Failure

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


@pytest.mark.parametrize("there", [True, False])
def test_a_release_of_before_there_were_uploads_is_backed_up_too(tmp_path, there):
    folder = tmp_path / "media"
    if there:
        folder.mkdir()
        (folder / "bells.txt").write_text("rung")
    pack = operations._PACK.replace("/var/lib/carillon/media", str(folder))
    done = subprocess.run(["sh", "-c", pack], capture_output=True, check=True)
    assert bool(done.stdout) == there


def test_a_verb_has_its_stack_for_itself_from_beginning_to_end(settings, monkeypatch):
    """Of two restores the second would drop the database that the first is filling."""
    monkeypatch.setattr(production, "load", lambda: settings)
    monkeypatch.setattr(development, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(environments, "enter", lambda *_: None)
    others = []

    def work(config, *_):
        with development.alone(config):  # as `production.up` in it
            pass
        with (config.state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                others.append("waits")

    for name in ("restore", "upgrade", "rollback", "refresh"):
        monkeypatch.setattr(operations, name, work)
        operations.verb(name, "backups/now")
    assert others == ["waits"] * 4
    with development.alone(settings):
        pass


def test_who_frees_disk_may_have_none_left(settings, monkeypatch):
    wanted = {}
    monkeypatch.setattr(production, "load", lambda: settings)
    monkeypatch.setattr(environments, "enter", lambda *_: None)
    monkeypatch.setattr(engine, "check", lambda: True)
    monkeypatch.setattr(engine, "ensure", lambda _: None)
    monkeypatch.setattr(images, "present", lambda *_: True)
    for name in ("readable", "neighbour", "ports"):
        monkeypatch.setattr(preflight, name, lambda *_: None)
    monkeypatch.setattr(preflight, "disk", lambda _: wanted.setdefault(verb, True))
    for verb in ("prune", "upgrade"):
        monkeypatch.setattr(operations, verb, lambda _: "")
        operations.verb(verb)
    assert wanted == {"upgrade": True}


def test_what_a_cut_off_backup_left_is_removed_by_the_next(settings, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    secret_files.ensure(settings.secrets)
    secret_files.project_settings(settings.project_settings)
    monkeypatch.setattr(operations.time, "strftime", lambda *_: "2030-01-01T02-17-00Z")
    monkeypatch.setattr(operations, "_postgresql", cut)
    with pytest.raises(KeyboardInterrupt):
        operations.backup(settings)
    monkeypatch.setattr(operations.time, "strftime", lambda *_: "2030-01-02T02-17-00Z")
    monkeypatch.setattr(operations, "_postgresql", lambda *_, **__: None)
    monkeypatch.setattr(operations, "_streamed", lambda *_, **__: None)
    assert operations.backup(settings) == settings.state / "backups" / "2030-01-02T02-17-00Z"
    assert [path.name for path in (settings.state / "backups").iterdir()] == ["2030-01-02T02-17-00Z"]


def test_a_backup_whose_uploads_are_damaged_changes_nothing(settings, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "database.dump").write_bytes(b"")
    with tarfile.open(tmp_path / "media.tar", "w") as archive:
        archive.add(__file__, "bells.py")
    whole = (tmp_path / "media.tar").read_bytes()
    (tmp_path / "media.tar").write_bytes(whole[:700])
    with pytest.raises(Failure, match=r"media.tar is damaged"):
        operations.restore(settings, tmp_path)
    assert not settings.secrets.exists()


def test_a_backup_is_named_from_where_the_makefile_lies(settings, monkeypatch, tmp_path):
    """Of a team's own repository, and not of the checkout of Carillon in it."""
    said = []
    monkeypatch.setattr(operations, "HOME", tmp_path)
    monkeypatch.setattr(operations, "restore", lambda config, folder: said.append(folder))
    monkeypatch.setattr(production, "load", lambda: settings)
    monkeypatch.setattr(development, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(environments, "enter", lambda *_: None)
    operations.verb("restore", ".dev-production/backups/now")
    operations.verb("restore", "/elsewhere/now")
    assert said == [tmp_path / ".dev-production/backups/now", Path("/elsewhere/now")]


def test_a_refresh_takes_nothing_from_yesterday(settings, monkeypatch):
    """A new base, every image without the builder's cache, and then the upgrade that can be rolled back."""
    ran = []
    monkeypatch.setattr(process, "work", lambda command, **_: ran.append(command))
    monkeypatch.setattr(images, "_labels", lambda config, chosen: {})
    monkeypatch.setattr(operations, "upgrade", lambda config: ran.append(["upgrade"]))
    monkeypatch.setattr(images, "prune", lambda: ran.append(["prune"]))
    answer = process.subprocess.CompletedProcess([], 0, "sha256:base", "")
    monkeypatch.setattr(process, "ask", lambda *_, **__: answer)
    operations.refresh(settings)
    assert ran[0] == ["docker", "pull", base_image.IMAGE]
    assert ran[-2:] == [["upgrade"], ["prune"]]
    built = {command[command.index("--tag") + 1]: command for command in ran[1:-2]}
    assert set(built) == {image.tag(settings) for image in production.IMAGES}
    assert all("--no-cache" in command for command in built.values())


def test_of_images_without_a_name_ours_go_and_nobody_else_s(machine, tmp_path):
    machine.program("docker", f'echo "$@" >>{tmp_path}/asked')
    images.prune()
    assert (tmp_path / "asked").read_text() == "image prune --force --filter label=carillon.inputs\n"


@pytest.mark.parametrize("named", [0, 1])
def test_the_base_of_before_goes_unless_it_has_another_name(settings, machine, tmp_path, named):
    machine.program(
        "docker",
        f"""echo "$@" >>{tmp_path}/asked
        case "$*" in
        pull*) touch {tmp_path}/pulled ;;
        *len*old) echo {named} ;;
        *inspect*) if [ -e {tmp_path}/pulled ]; then echo new; else echo old; fi ;;
        esac""",
    )
    base_image.renew(settings)
    assert ("image rm old" in (tmp_path / "asked").read_text().splitlines()) == (not named)


@pytest.mark.parametrize("cluster", [False, True])
def test_what_ends_a_container_waits_as_long_as_the_container_may_take(
    monkeypatch, settings, tmp_path, cluster
):
    config = production.load({"CARILLON_STATE": str(settings.state)}, cluster=cluster)
    app = yaml.safe_load(config.compose_files[0].read_text())["services"]["app"]
    longest = int(app["stop_grace_period"].removesuffix("s"))
    waited = []

    def compose(config, *arguments, seconds, **_):
        if arguments[0] in ("up", "stop", "down"):
            waited.append(seconds)
        return '{"Service": "nginx", "State": "running", "Health": "healthy"}' if arguments[0] == "ps" else ""

    monkeypatch.setattr(stack, "compose", compose)
    monkeypatch.setattr(stack.preflight, "neighbour", lambda config: None)
    stack.up(config, renew=["nginx"])
    stack.down(config, volumes=False)
    for name in ("_sql", "_postgresql", "_streamed"):
        monkeypatch.setattr(operations, name, lambda *_, **__: "")
    monkeypatch.setattr(production, "up", lambda config: None)
    (tmp_path / "secrets").mkdir()
    for name in ("database.dump", "project.env"):
        (tmp_path / name).write_text("")
    operations.restore(config, tmp_path)
    assert len(waited) == 4
    assert min(waited) > longest


class Rotated:
    """Database, broker and application of a rotation, whose steps may be cut off."""

    def __init__(self, settings, monkeypatch):
        secret_files.ensure(settings.secrets)
        self.settings = settings
        self.database = self.read("database_password")
        self.broker = self.read("amqp_password")
        self.key = self.read("secret_key")
        self.left = None  # steps until the cut
        monkeypatch.setattr(operations, "_sql", self.step(self.alter))
        monkeypatch.setattr(stack, "compose", self.step(self.change))
        monkeypatch.setattr(production, "taken", lambda config: self.taken.append(config))
        monkeypatch.setattr(production, "serve", self.step(lambda config, certificate, renew: self.run()))
        monkeypatch.setattr(secret_files, "write", self.step(secret_files.write))
        self.taken = []  # what was told, looked at by each rotation
        self.run()

    def read(self, name):
        return secret_files.read(self.settings.secrets, name)

    def step(self, does):
        def step(*arguments, **how):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            return does(*arguments, **how)

        return step

    def alter(self, config, *statements):
        (self.database,) = re.findall("PASSWORD '(.*)'", " ".join(statements))
        return ""

    def change(self, config, *arguments, stdin, seconds):
        assert arguments[-2:] == ("change_password", "carillon")
        self.broker = stdin.strip()
        return ""

    def run(self):
        """The application starts, and has what is mounted then."""
        names = (*secret_files.ROTATED, secret_files.FALLBACKS)
        self.application = {
            name: self.read(name) if (self.settings.secrets / name).exists() else "" for name in names
        }


@pytest.fixture
def rotated(settings, monkeypatch):
    return Rotated(settings, monkeypatch)


@pytest.mark.parametrize("again", [0, 1, 2])
@pytest.mark.parametrize("steps", range(12))
def test_a_rotation_that_was_cut_off_is_finished_by_another(rotated, steps, again):
    first = dict(rotated.application)
    for left in (steps, again):
        rotated.left = left
        try:
            operations.rotate(rotated.settings)
        except KeyboardInterrupt:
            continue
        break  # it was not cut off
    else:
        rotated.left = None
        operations.rotate(rotated.settings)
    has = rotated.application
    assert has == {name: rotated.read(name) for name in has}
    assert (has["database_password"], has["amqp_password"]) == (rotated.database, rotated.broker)
    assert all(has[name] != first[name] for name in secret_files.ROTATED)
    assert has[secret_files.FALLBACKS] == first["secret_key"]


def test_a_rotation_without_a_database_leaves_what_is_in_force(rotated, monkeypatch):
    def away(*_):
        raise Failure("service postgresql is not running")

    before = {path.name: path.read_text() for path in rotated.settings.secrets.iterdir()}
    monkeypatch.setattr(operations, "_sql", away)
    for _ in range(2):
        with pytest.raises(Failure, match="not running"):
            operations.rotate(rotated.settings)
    assert {path.name: path.read_text() for path in rotated.settings.secrets.iterdir()} == before


def test_the_next_rotation_has_secrets_of_its_own(rotated):
    operations.rotate(rotated.settings)
    first = dict(rotated.application)
    operations.rotate(rotated.settings)
    assert rotated.application[secret_files.FALLBACKS] == first["secret_key"]
    assert all(rotated.application[name] != first[name] for name in secret_files.ROTATED)
    assert all(path.name in ("secrets", "lock") for path in rotated.settings.state.iterdir())
    assert len(rotated.taken) == 2


def test_a_rotation_that_is_told_what_will_not_do_changes_nothing(rotated, monkeypatch):
    def refuse(_):
        raise Failure("CARILLON_CERTIFICATE=typo.pem: no such file")

    before = {path.name: path.read_text() for path in rotated.settings.secrets.iterdir()}
    monkeypatch.setattr(production, "taken", refuse)
    with pytest.raises(Failure, match="no such file"):
        operations.rotate(rotated.settings)
    assert {path.name: path.read_text() for path in rotated.settings.secrets.iterdir()} == before
    assert not (rotated.settings.state / production.ROTATION).exists()
