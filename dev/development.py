"""`make dev`, step by step: look, then touch."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dev import base_image, engine, environments, images, preflight, process, project, secret_files, stack
from dev.config import ROOT, YOURS, Config, shown
from dev.output import Failure, say, timed

SERVED = "nginx-served"  # what of its files nginx has read
_alone: set[Path] = set()  # states that this run is at work on


def prepare(
    config: Config, chosen: tuple[images.Image, ...] = images.IMAGES, *, needs_disk: bool = True
) -> None:
    """What can be done with the system's own Python: preflight (for `chosen` images), the engine."""
    ready = engine.check()
    preflight.check(config, images_present=ready and images.present(config, chosen), needs_disk=needs_disk)
    # Nothing has been touched up to here.
    secret_files.private_directory(config.state)
    engine.ensure(config)


def up(config: Config, *, orphans: bool = False) -> dict[str, str]:
    """The stack runs and is healthy; the values of its environment file. Run again, it changes nothing.
    With `orphans`, what else runs in its project stays."""
    # Not at the top: they need the private environment.
    from dev import account, certificates, site_file

    with alone(config):
        base_image.ensure(config)
        images.ensure(config)
        ensure_secrets(config, anew="make clean")
        certificates.ensure(config.certificates)
        project.compose(config)
        site_file.write(ROOT / "nginx/sites/development.yml", config.state / "nginx" / "site.conf")
        project.locations(config.state / "nginx" / "site.d")
        # What a run that failed has placed is still due.
        now, served = images.fingerprint(["certificates", "nginx"], "", config.state), config.state / SERVED
        renewed = not served.exists() or served.read_text() != now
        stack.up(config, renew=["nginx"] if renewed else [], orphans=orphans)
        secret_files.write(served, now, 0o600)
        return account.ensure(config)


def ensure_secrets(config: Config, *, anew: str) -> None:
    """All secrets are there, and the file of a project's own settings.

    A new password would not fit an old database: `Failure`, with `anew` as the way to begin again.
    """
    made = secret_files.ensure(config.secrets)
    secret_files.project_settings(config.project_settings)
    volume = ["docker", "volume", "inspect", f"{config.project}_postgresql"]
    if "database_password" in made and process.ask(volume).returncode == 0:
        (config.secrets / "database_password").unlink()
        raise Failure(
            f"the database of the stack {config.project} is there, but its password "
            f"({config.secrets}/database_password) is gone: put it back, or begin anew with `{anew}`"
        )


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """One at a time for each stack: two would start containers over one another. Within itself, nothing."""
    if config.state in _alone:
        yield
        return
    secret_files.private_directory(config.state)
    with (config.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"    another run is at work on {config.state}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _alone.add(config.state)
        try:
            yield
        finally:
            _alone.remove(config.state)


def dev(config: Config) -> None:
    with timed() as seconds:
        prepare(config)
        environments.enter(config)
        values = up(config)
    report(config, values, seconds[0])


def report(config: Config, values: dict[str, str], seconds: float) -> None:
    management = config.ports["CARILLON_MANAGEMENT_PORT"]
    demo = "" if YOURS else "make demo    a real Ansible run, live on the page\n               "
    say(f"""
Carillon is up ({seconds:.0f} s).

  page         {values["CARILLON_URL"]}   (plain: {values["CARILLON_HTTP_URL"]})
  log in       {values["CARILLON_USERNAME"]} / {values["CARILLON_PASSWORD"]}
  authority    {values["CARILLON_CA_CERT"]}   (trust it in your browser, or accept its warning)
  RabbitMQ     http://localhost:{management}   carillon / see {config.secrets}/amqp_password
  for scripts  . {shown(config.environment_file)}

  next         {demo}make logs    make help    make down
""")


def clean(config: Config, *, everything: bool = False) -> None:
    """Containers, volumes, the names of their images and the state directory go, but for its backups: those
    go with `everything`, the tests' way. Where no engine answers, a state with secrets stays: the volumes
    need them.
    """
    found, _ = engine.state()
    if found is engine.State.READY:
        stack.down(config, volumes=True)
        images.forget(config)
    if not config.state.exists():
        return
    backups = config.state / "backups"
    goes = [path for path in config.state.iterdir() if everything or path != backups]
    if goes and not config.secrets.is_dir() and config.state.name[:4] != ".dev":
        raise Failure(f"{config.state} does not look like a state directory of ours: remove it yourself")
    if found is not engine.State.READY:
        if config.secrets.is_dir() and not everything:
            raise Failure(
                f"{found.value}, so the containers and volumes of the stack {config.project} stay, and "
                f"{config.state} with the secrets that they need: once an engine answers, run this again "
                "(or remove the folder yourself)"
            )
        say("    no engine answers: containers and volumes, if there are any, stay")
    # .dev/venv goes too: `make clean` is there to begin anew.
    for path in goes:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if backups.exists():
        say(f"    the backups stay: {shown(backups)}")
    with suppress(OSError):
        config.state.rmdir()
