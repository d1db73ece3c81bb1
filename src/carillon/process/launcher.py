"""Starts every process of Carillon, in containers and under supervisord: the one place that knows an argv.

`run` waits (bounded) for what the process needs, then `exec`s, so that signals reach the server itself and a
restart applies a changed configuration.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from carillon.process import declared as declaration
from carillon.process.environment import SETTINGS_MODULE, ConfigurationError, Environment

UWSGI_PORT = 8050
DAPHNE_PORT = 8051
UWSGI_INI = "/etc/carillon/uwsgi.ini"
PROCESSES = ("uwsgi", "daphne", "runworker")
# In the environment of a process that the project has declared: its name, and when it began (monotonic).
PROCESS_VARIABLE = "CARILLON_PROCESS"
SINCE_VARIABLE = "CARILLON_PROCESS_SINCE"

# sysexits.h, so that an operator can tell "mend the configuration" from "something else is away".
EXIT_CONFIGURATION = 78
EXIT_NOT_READY = 75

_ATTEMPT_SECONDS = 5  # one try of one check
_PAUSE_SECONDS = 0.5
_REPORT_SECONDS = 5


# In a traceback: not the project's own.
_FOREIGN = re.compile(
    r"^<|/(?:src|site-packages)/(?:asgi_amqp|asgiref|carillon|channels|django|rest_framework)/"
    r"|/python3[^/]*/(?!site-packages/)"
)


class NotReady(Exception):
    """Something that the process needs does not answer yet. The text says what and why, without a secret."""


def say(text: str) -> None:
    print(f"carillon: {text}", file=sys.stderr, flush=True)


def declared() -> declaration.Declared:
    """What the project declares, beside its settings. Raises ConfigurationError."""
    spec = find_spec(SETTINGS_MODULE.partition(".")[0])
    if spec is None or not spec.submodule_search_locations:  # Carillon without a project of this form
        return declaration.NONE
    found, problems = declaration.read(Path(spec.submodule_search_locations[0]) / declaration.FILE)
    if problems:
        raise ConfigurationError(problems)
    return found


def processes() -> tuple[str, ...]:
    """Every process that there is to run, the project's own included. Raises ConfigurationError."""
    return (*PROCESSES, *declared().processes)


def argv(process: str, environment: Environment, *, socket_on_stdin: bool = False) -> list[str]:
    """The command line of `process`. Programs come from the running interpreter's own environment.

    `socket_on_stdin`: supervisord's fcgi-program keeps the listening socket open across restarts and hands it
    over as descriptor 0; then uwsgi and daphne must not bind one of their own.
    """
    programs = Path(sys.executable).parent
    if process == "uwsgi":
        listen = "fd://0" if socket_on_stdin else f"{_host(environment.bind)}:{UWSGI_PORT}"
        # fmt: off
        return [
            str(programs / "uwsgi"), "--ini", UWSGI_INI,
            "--socket", listen,
            "--processes", str(environment.uwsgi_processes), "--threads", str(environment.uwsgi_threads),
        ]
        # fmt: on
    if process == "daphne":
        listen = ["--fd", "0"] if socket_on_stdin else ["-b", environment.bind, "-p", str(DAPHNE_PORT)]
        # fmt: off
        return [
            sys.executable, "-m", "carillon.server", *listen,
            "--websocket_timeout", "-1",  # the default ends every socket after a day, with a goodbye's code
            "--ping-interval", "20", "--ping-timeout", "30",
            "--proxy-headers",
            "--access-log", os.devnull,  # nginx writes the access log
            "carillon.asgi:application",
        ]
        # fmt: on
    if process == "runworker":
        return [sys.executable, "-m", "django", "runworker"]
    if process in (others := declared().processes):
        return _declared(process, others[process].command, programs)
    raise ValueError(f"{process!r} is none of {', '.join((*PROCESSES, *others))}")


def _declared(process: str, command: tuple[str, ...], programs: Path) -> list[str]:
    program = sys.executable if command[0] == "python" else str(programs / command[0])  # a path stays one
    if not os.access(program, os.X_OK):
        raise ConfigurationError(
            [
                f"{process}: there is no program {program}: correct its command in {declaration.FILE}, or "
                "add its package to requirements/app.in and run `make lock`"
            ]
        )
    return [program, *command[1:]]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def run(process: str, environment: Environment, *, wait: bool = True) -> NoReturn:
    """Wait for the database, its migrations and the broker, then become `process`."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
    command = argv(process, environment, socket_on_stdin=_is_socket(0))
    if wait:
        await_ready([PROJECT, DATABASE, MIGRATIONS, BROKER], environment, process)
    if process not in PROCESSES:
        os.environ[PROCESS_VARIABLE] = process
        os.environ[SINCE_VARIABLE] = f"{time.monotonic():.6f}"
        # Where setproctitle is installed, Celery writes its title over the environment that `probe` reads.
        os.environ["SPT_NOENV"] = "1"
    # uWSGI would tell systemd of its own stop as if it were the whole service's, which is then killed.
    os.environ.pop("NOTIFY_SOCKET", None)
    say(f"{process} starts")
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


# --- waiting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """`probe` returns when `name` is usable and raises `NotReady` otherwise; `hint` says where to look."""

    name: str
    probe: Callable[[Environment], None]
    hint: str


def await_ready(
    checks: Iterable[Check],
    environment: Environment,
    who: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when every check has passed, in order.

    Says every few seconds what is waited for; ends the process with EXIT_NOT_READY after
    `environment.wait_seconds` in all.
    """
    start = clock()
    reported = start - _REPORT_SECONDS + 1  # a wait of under a second is not worth a line
    for check in checks:
        while True:
            try:
                check.probe(environment)
                break
            except NotReady as problem:
                now = clock()
                if now - start >= environment.wait_seconds:
                    say(f"{who}: gave up after {now - start:.0f} s: {check.name}: {problem}. {check.hint}")
                    raise SystemExit(EXIT_NOT_READY) from None
                if now - reported >= _REPORT_SECONDS:
                    waited = f"{now - start:.0f} s of {environment.wait_seconds} s"
                    say(f"{who}: waiting for {check.name} ({problem}), {waited}")
                    reported = now
            sleep(_PAUSE_SECONDS)


def set_up() -> None:
    """Django, with the project's settings. Raises ConfigurationError where they cannot be loaded."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
    with _loading():
        import django

        django.setup()


@contextmanager
def _loading() -> Iterator[None]:
    """Whatever the project's code raises while it is imported is one line, and names the place."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        from django.db import Error

        if isinstance(error, Error):  # as where choices of a form are rows: it is looked at again
            words = str(error).strip() or type(error).__name__
            raise NotReady(
                f"the project asks the database while it is loaded: {words.splitlines()[0]}"
            ) from None
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not _FOREIGN.search(frame.filename)
        ]
        place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}: "
        what = f"{type(error).__name__}: {(str(error).strip() or 'no word').splitlines()[0]}"
        remedy = "mend it"
        if isinstance(error, ModuleNotFoundError):
            remedy = "correct the name, or add its package to the requirements and run `make lock`"
        raise ConfigurationError([f"the project cannot be loaded: {place}{what}. To do: {remedy}"]) from error


def _project(_: Environment) -> None:
    """All of it that is imported before the first request. What is wrong there does not mend itself."""
    set_up()
    from django.conf import settings

    with _loading():
        for module in (settings.ROOT_URLCONF, getattr(settings, "CARILLON", {}).get("WEBSOCKET_URLCONF")):
            if module:
                import_module(module)


def _database(environment: Environment) -> None:
    from django.db import Error, connection

    set_up()
    try:
        connection.ensure_connection()
    except Error as error:
        raise NotReady(reason(error, environment)) from None


def _migrations(environment: Environment) -> None:
    from django.db import Error, connection
    from django.db.migrations.executor import MigrationExecutor

    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Error as error:
        connection.close()
        raise NotReady(reason(error, environment)) from None
    if missing:
        raise NotReady(f"{len(missing)} not applied")


def _broker(environment: Environment) -> None:
    import asyncio

    asyncio.run(_broker_answers(environment))


async def _broker_answers(environment: Environment) -> None:
    import asyncio
    import ssl

    import aio_pika

    context = ssl.create_default_context(cafile=environment.amqp_tls_ca) if environment.amqp_tls_ca else None
    reasons = []
    for url in environment.amqp_urls:
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                connection = await aio_pika.connect(url, ssl_context=context)
                await connection.close()
            return
        except (aio_pika.exceptions.AMQPError, OSError, TimeoutError) as error:
            reasons.append(f"{url.rpartition('@')[2]}: {reason(error, environment)}")
    raise NotReady("; ".join(reasons))


def reason(error: Exception, environment: Environment) -> str:
    """One line without a secret: drivers quote what they were given."""
    lines = str(error).strip().splitlines()
    text = lines[-1].strip() if lines else type(error).__name__
    secrets = {environment.database_password, *environment.amqp_urls}
    secrets |= {url.partition("://")[2].partition("@")[0].partition(":")[2] for url in environment.amqp_urls}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


PROJECT = Check("the project", _project, "")
DATABASE = Check(
    "the database",
    _database,
    "Is PostgreSQL running, and do CARILLON_DATABASE_HOST and CARILLON_DATABASE_PASSWORD fit it?",
)
MIGRATIONS = Check("the migrations", _migrations, "Run `carillon migrate`.")
BROKER = Check(
    "the broker",
    _broker,
    "Is RabbitMQ running, and do CARILLON_AMQP_HOSTS and CARILLON_AMQP_PASSWORD fit it?",
)


def check(environment: Environment) -> int:
    """Try everything once and say how it is. 0, or EXIT_NOT_READY at the first that does not answer."""
    for item in (PROJECT, DATABASE, MIGRATIONS, BROKER):
        try:
            item.probe(environment)
        except NotReady as problem:
            say(f"{item.name}: {problem}. {item.hint}")
            return EXIT_NOT_READY
        say(f"{item.name}: good")
    return 0


# --- Django's commands -----------------------------------------------------------------------------------


def manage(arguments: list[str]) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
    from django.core.management import execute_from_command_line

    execute_from_command_line(["carillon manage", *arguments])


def migrate(environment: Environment) -> None:
    """Wait for the database and bring its tables up to date."""
    await_ready([PROJECT, DATABASE], environment, "migrate")
    manage(["migrate", "--no-input", "--verbosity", "1"])
