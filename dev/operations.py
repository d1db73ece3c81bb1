"""What operators do with the production containers: back up, restore, upgrade, roll back, rotate, refresh."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

from dev import base_image, development, environments, images, process, production, secret_files, stack
from dev.config import HOME, Config
from dev.output import Failure, progress, say, step

_DUMP_SECONDS = 3600
_RESTORED = "carillon_restored"
_MEDIA = "media.tar"
_UPLOADS = ("--directory", "/var/lib/carillon/media")
# A release of before there were uploads has no folder of them. 1: something came or went meanwhile.
_PACK = f"test ! -d {_UPLOADS[1]} || tar --create {' '.join(_UPLOADS)} . || test $? -eq 1"
# Since a rollback: it is kept to. And the images that ran when the last upgrade began.
_HELD = "held"
_BEFORE = "before.json"
SITE_BEFORE = "nginx-before"
"""nginx's files of then."""


def held(config: Config) -> bool:
    """Whether the containers keep to the images of a rollback."""
    return (config.state / _HELD).exists()


def built(config: Config) -> dict[str, str]:
    """The images of the checkout, by their names."""
    return {
        image.name: _docker("image", "inspect", "--format", "{{.Id}}", image.tag(config))
        for image in production.IMAGES
    }


def use(config: Config, chosen: dict[str, str], tag: str = "") -> None:
    """Give images the tag that the containers are started from: where it moves, a container is replaced."""
    for name, image in chosen.items():
        _docker("tag", image, f"carillon/{name}:{tag or config.project}")


def backup(config: Config, folder: Path | None = None) -> Path:
    """The database, the uploads and the secrets in a folder of the state directory, 0700; its path."""
    where = folder or config.state / "backups" / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    with development.alone(config):
        # Of runs that were cut off: nobody else is at it.
        for left in where.parent.glob(".unfinished-*"):
            shutil.rmtree(left, ignore_errors=True)
        partial = where.with_name(f".unfinished-{where.name}")
        secret_files.private_directory(partial)
        with (partial / "database.dump").open("wb") as file:
            _postgresql(
                config, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", "carillon", stdout=file
            )
        # After the database: whatever its rows name is there by then.
        with (partial / _MEDIA).open("wb") as file:
            _streamed(config, "app", "sh", "-c", _PACK, stdout=file)
        if not (partial / _MEDIA).stat().st_size:
            (partial / _MEDIA).unlink()
        shutil.copytree(config.secrets, partial / "secrets")
        shutil.copyfile(config.project_settings, partial / "project.env")
        partial.rename(where)
    return where


def restore(config: Config, folder: Path) -> None:
    """The database of a backup in place of the one that runs, which is kept until all is well."""
    if not (folder / "database.dump").is_file() or not (folder / "secrets").is_dir():
        raise Failure(f"FROM={folder} is no backup: name the folder that `make production-backup` made")
    if (folder / _MEDIA).is_file():
        try:
            with tarfile.open(folder / _MEDIA) as archive:
                for _ in archive:
                    pass
        except tarfile.TarError as error:
            raise Failure(f"{folder / _MEDIA} is damaged: {error}") from None
    secret_files.private_directory(config.secrets)
    # Those that are here are the passwords of what runs here; a machine that is new takes the backup's.
    for path in (folder / "secrets").iterdir():
        if not (config.secrets / path.name).exists():
            secret_files.write(config.secrets / path.name, path.read_text(), 0o444)
    if not config.project_settings.exists():
        shutil.copyfile(folder / "project.env", config.project_settings)
    production.up(config)
    step("Filling a new database")
    _sql(
        config,
        f"DROP DATABASE IF EXISTS {_RESTORED} WITH (FORCE)",
        f"CREATE DATABASE {_RESTORED} OWNER carillon",
    )
    with (folder / "database.dump").open("rb") as file:
        options = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
        _postgresql(config, "pg_restore", f"--dbname={_RESTORED}", "--role=carillon", *options, stdin=file)
    for command in (["migrate"], ["check"]):
        run = ("run", "--rm", "--no-deps", "-T", "--env", f"CARILLON_DATABASE_NAME={_RESTORED}", "migrate")
        stack.compose(config, *run, *command, seconds=600)
    # Beside what is there: what was uploaded since stays. A backup of before there were uploads has none.
    if (folder / _MEDIA).is_file():
        with (folder / _MEDIA).open("rb") as file:
            _streamed(config, "app", "tar", "--extract", *_UPLOADS, stdin=file)
    step("Changing the names")
    kept = f"carillon_before_{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
    stack.compose(config, "stop", "app", seconds=stack.stop_seconds(config))
    _sql(
        config,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^carillon'",
        *("BEGIN", f"ALTER DATABASE carillon RENAME TO {kept}"),
        *(f"ALTER DATABASE {_RESTORED} RENAME TO carillon", "COMMIT"),
    )
    production.up(config)
    databases = _sql(config, "SELECT datname FROM pg_database WHERE datname ~ '^carillon_before_[0-9]+$'")
    _sql(config, *(f"DROP DATABASE {name} WITH (FORCE)" for name in databases.split()))


def prune(config: Config) -> str:
    """What was kept for long enough goes; what `carillon prune` says of it."""
    # A little longer than it gives itself.
    return stack.compose(config, "exec", "-T", "app", "carillon", "prune", seconds=3900)


def upgrade(config: Config) -> None:
    """The checkout's release; the images that ran are kept for a rollback."""
    production.build(config)
    new = built(config)
    running, file = _running(config), config.state / _BEFORE
    last = json.loads(file.read_text()) if file.exists() else {"from": {}, "to": {}}
    if running and begins(running, new, **{f"last_{end}": images for end, images in last.items()}):
        # So that nobody prunes them.
        use(config, running, f"{config.project}-before")
        _keep_site(config)
        secret_files.write(file, json.dumps({"from": running, "to": new}), 0o600)
    (config.state / _HELD).unlink(missing_ok=True)
    production.up(config)


def _keep_site(config: Config) -> None:
    """Whole, or not at all: without it a rollback has the checkout's."""
    kept = config.state / SITE_BEFORE
    partial = kept.with_suffix(".unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(config.state / "nginx", partial, ignore=shutil.ignore_patterns("tls"))
    shutil.rmtree(kept, ignore_errors=True)
    partial.rename(kept)


def begins(running: dict, new: dict, last_from: dict, last_to: dict) -> bool:
    """Whether what runs is to be gone back to: not what an upgrade has left that was stopped half-way."""
    mixed = all(image in (last_from.get(name), last_to.get(name)) for name, image in running.items())
    return running != new and (running in (last_from, last_to) or not mixed)


def rollback(config: Config) -> None:
    """The images that ran when the last upgrade began; `make production` keeps to them until the next one."""
    file = config.state / _BEFORE
    if not file.exists():
        raise Failure("there is nothing to go back to: `make production-upgrade` has not been run here")
    use(config, json.loads(file.read_text())["from"])
    secret_files.write(
        config.state / _HELD, "since a rollback; `make production-upgrade` removes this\n", 0o600
    )
    production.up(config)


def rotate(config: Config) -> None:
    """New passwords of database and broker, and a new key; sessions last by the old one until the next.

    The new ones are kept aside until they are in force: a run that was cut off is finished by another.
    """
    aside = config.state / production.ROTATION
    with development.alone(config):
        certificate = production.taken(config)
        if not aside.exists():
            new = {name: secrets.token_urlsafe(secret_files.SECRETS[name]) for name in secret_files.ROTATED}
            secret_files.write(aside, json.dumps(new), 0o600)
        new = json.loads(aside.read_text())
        # By standard input: an argv is for everybody to read. The characters are safe in SQL.
        quiet = "SET log_statement = 'none'; SET log_min_error_statement = 'panic'"
        _sql(config, quiet, f"ALTER ROLE carillon PASSWORD '{new['database_password']}'")
        stack.compose(
            config,
            # With one word more it would not read its input.
            *("exec", "-T", "rabbitmq", "rabbitmqctl", "change_password", "carillon"),
            seconds=60,
            stdin=new["amqp_password"] + "\n",
        )
        old = secret_files.read(config.secrets, "secret_key")
        if old != new["secret_key"]:
            secret_files.write(config.secrets / secret_files.FALLBACKS, old + "\n", 0o444)
        for name, word in new.items():
            secret_files.write(config.secrets / name, word + "\n", 0o444)
        production.serve(config, certificate, renew=["app"])
        aside.unlink()


def refresh(config: Config) -> None:
    """The same release on images that are made anew, with the distribution's security updates."""
    if held(config):
        raise Failure("the containers keep to a release since a rollback: `make production-upgrade` first")
    base_image.renew(config)
    images.ensure(config, production.IMAGES, fresh=True)
    upgrade(config)
    images.prune()


def verb(name: str, argument: str = "") -> None:
    """`make production-<name>`."""
    config = production.load()
    # A command that frees disk must work where none is left.
    development.prepare(config, production.IMAGES, needs_disk=name != "prune")
    environments.enter(config)
    start = time.monotonic()
    # From beginning to end: a second restore would drop the database that the first is filling.
    with development.alone(config):
        if name == "backup":
            say(f"Backup in {backup(config)}: whoever has it has the installation.")
        elif name == "restore":
            # As `backup` has said it: from where the Makefile lies.
            restore(config, HOME / argument)
        elif name == "prune":
            say(prune(config))
        else:
            {"upgrade": upgrade, "rollback": rollback, "rotate": rotate, "refresh": refresh}[name](config)
    progress(f"production-{name}: {time.monotonic() - start:.0f} s")


def _running(config: Config) -> dict[str, str]:
    """Image of each service that has a container."""
    found = {}
    for image in production.IMAGES:
        ids = stack.compose(config, "ps", "--all", "--quiet", image.name, seconds=30).split()
        if ids:
            found[image.name] = _docker("inspect", "--format", "{{.Image}}", ids[0])
    return found


def _docker(*arguments: str) -> str:
    answer = process.ask(["docker", *arguments])
    if answer.returncode:
        raise Failure(f"`docker {arguments[0]}` failed: {answer.stderr.strip()}")
    return answer.stdout.strip()


def _sql(config: Config, *statements: str) -> str:
    command = ("psql", "--quiet", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
    return stack.compose(
        config,
        *("exec", "-T", "postgresql", *command, "--host=/run/postgresql", "--username=postgres", "postgres"),
        seconds=120,
        stdin=";\n".join((*statements, "")),
    )


def _postgresql(config: Config, program: str, *arguments: str, **streams) -> None:
    """A program of PostgreSQL's in its container, as its superuser, with a file for its input or output."""
    where = ("--host=/run/postgresql", "--username=postgres")
    _streamed(config, "postgresql", program, *where, *arguments, **streams)


def _streamed(config: Config, service: str, program: str, *arguments: str, **streams) -> None:
    done = subprocess.run(
        stack.command(config, "exec", "-T", service, program, *arguments),
        stderr=subprocess.PIPE,
        env=stack.environment(config),
        timeout=_DUMP_SECONDS,
        check=False,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams},
    )
    if done.returncode:
        raise Failure(f"{program} failed", done.stderr.decode(errors="replace").splitlines()[-10:])
