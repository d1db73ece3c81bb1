"""The command `carillon`: run a process, prepare the database, look whether all is well."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from carillon import new
from carillon.process import environment, launcher
from carillon.process.environment import ConfigurationError, Environment


def main(arguments: list[str] | None = None) -> int:
    try:
        options = _parser().parse_args(arguments)
        if options.function is _new:  # there is no configuration yet
            return _new(options)
        # The project's own settings are read when Django first needs them: inside of the function.
        code = options.function(options, environment.load()) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `carillon top | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ConfigurationError as error:
        for problem in error.problems:
            launcher.say(problem)
        return launcher.EXIT_CONFIGURATION


def _new(options: argparse.Namespace) -> int:
    return new.run(options)


def _run(options: argparse.Namespace, settings: Environment) -> None:
    launcher.run(options.process, settings, wait=not options.no_wait)


def _reload(options: argparse.Namespace, _: Environment) -> int:
    from carillon.process import reloader

    return reloader.reload(options.process)


def _probe(options: argparse.Namespace, settings: Environment) -> int:
    from carillon.process import probe

    try:
        for process in options.processes:
            print(probe.probe(process, settings))
    except probe.NotServing as problem:
        launcher.say(str(problem))
        return 1
    return 0


def _migrate(_: argparse.Namespace, settings: Environment) -> None:
    launcher.migrate(settings)


def _check(options: argparse.Namespace, settings: Environment) -> int:
    code = launcher.check(settings)
    if code or not options.url:
        return code
    from carillon.process import check

    try:
        ca = _text(options.ca) if options.ca else None
        with _somebody() as (user, token):
            launcher.say(check.event(options.url, user, token, _emit, address=options.address, ca=ca))
    except launcher.NotReady as problem:
        launcher.say(str(problem))
        return launcher.EXIT_NOT_READY
    return 0


@contextmanager
def _somebody() -> Iterator[tuple[int, str]]:
    """A user made for checks, and a token of his for as long as one lasts. Django has been set up."""
    from django.contrib.auth import get_user_model
    from django.utils import timezone

    from carillon.accounts.models import ApiToken

    user, made = get_user_model().objects.get_or_create(username="carillon-check")
    if made:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    soon = timezone.now() + timedelta(minutes=5)
    row, token = ApiToken.issue(user, description="carillon check", scope="read", expires=soon)
    try:
        yield user.pk, token
    finally:
        row.delete()


async def _emit(group: str, payload: dict[str, Any], user: int) -> None:
    from carillon.events import NotificationsUnavailable, aemit_channel_notification

    try:
        await aemit_channel_notification(group, payload, audience={"users": [user]})
    except NotificationsUnavailable as error:
        raise launcher.NotReady(f"the broker does not take the event: {error}") from None


def _text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise launcher.NotReady(f"--ca {path}: {error}") from None


def _dead_letters(options: argparse.Namespace, _: Environment) -> int:
    launcher.set_up()
    import asyncio

    from asgi_amqp import LayerError
    from carillon.relay import dead_letters

    names = None if "all" in options.names else options.names
    try:
        found = asyncio.run(dead_letters.go_through(options.what, names))
    except LayerError as error:
        launcher.say(f"the broker: {error}")
        return launcher.EXIT_NOT_READY
    missing = sorted(set(names or ()) - found)
    if missing:
        launcher.say(f"no dead letter is called {', '.join(missing)}")
    return 1 if missing else 0


def _explain(options: argparse.Namespace, _: Environment) -> int:
    launcher.set_up()
    import asyncio

    from django.db import Error

    from asgi_amqp import LayerError
    from carillon import explain

    try:
        facts = asyncio.run(explain.alone(options.event))
    except explain.Unclear as problem:
        launcher.say(str(problem))
        return 1
    except (Error, LayerError, TimeoutError) as error:
        launcher.say(f"the log cannot be asked: {str(error).strip() or type(error).__name__}")
        return launcher.EXIT_NOT_READY
    for name, text in explain.story(facts):
        print(f"{name:<11} {text}")
    return 0


def _prune(options: argparse.Namespace, settings: Environment) -> int:
    launcher.set_up()
    import asyncio

    from django.db import Error
    from django.utils import timezone

    from asgi_amqp import LayerError
    from carillon import retention
    from carillon.relay import dead_letters

    try:
        for needed in (launcher.DATABASE, launcher.MIGRATIONS):
            needed.probe(settings)
        if options.check is not None:
            late = {name: due / 3600 for name, due in retention.overdue().items()}
            for name, hours in late.items():
                print(f"{name}: due for {hours:.0f} hours" if hours else f"{name}: nothing is due")
            return int(max(late.values()) > options.check)
        run = retention.Run(options.seconds, options.rows, options.dry_run)
        for kind in retention.kinds():
            run.over(kind, print)
    except launcher.NotReady as problem:
        launcher.say(f"{needed.name}: {problem}. {needed.hint}")
        return launcher.EXIT_NOT_READY
    except Error as error:
        launcher.say(f"the database: {launcher.reason(error, settings)}")
        return launcher.EXIT_NOT_READY
    before = retention.kept_until("KEEP_DEAD_LETTERS_DAYS", timezone.now())
    if before is None:
        print(retention.for_ever("dead letters", "KEEP_DEAD_LETTERS_DAYS"))
        return 0
    try:
        gone = asyncio.run(dead_letters.prune(before, options.dry_run))
    except LayerError as error:
        launcher.say(f"the broker: {error}")
        return launcher.EXIT_NOT_READY
    verb = "would be deleted" if options.dry_run else "deleted"
    print(f"dead letters: {gone or 'none'} {verb}, ended before {before:%Y-%m-%d %H:%M} UTC")
    return 0


def _top(options: argparse.Namespace, _: Environment) -> int:
    launcher.set_up()
    from carillon import top

    return top.run(options.seconds, once=options.once)


def _manage(options: argparse.Namespace, _: Environment) -> None:
    launcher.manage(options.arguments)


def positive(text: str) -> float:
    """A number that something can be counted against."""
    value = int(text) if text.isdecimal() else float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    """Raises ConfigurationError: which processes there are is the project's to say, too."""
    processes = launcher.processes()
    parser = argparse.ArgumentParser(prog="carillon", description=__doc__)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, function: object, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(function=function)
        return sub

    new.arguments(command("new", _new, "make a repository of your own, which Carillon runs"))
    run = command("run", _run, "wait for what the process needs, then become it")
    run.add_argument("process", choices=processes)
    run.add_argument("--no-wait", action="store_true", help="start at once")
    reload = command("reload", _reload, "run the process and restart it on a saved file (development)")
    reload.add_argument("process", choices=processes)
    probe = command("probe", _probe, "does the process on this machine serve? (the health check)")
    probe.add_argument("processes", nargs="+", choices=processes, metavar="process")
    command("migrate", _migrate, "wait for the database and bring its tables up to date")
    check = command("check", _check, "check configuration, database, migrations, broker; --url: all of it")
    check.add_argument("--url", help="the public address: an event is emitted here and must be heard there")
    check.add_argument("--address", help="connect to this instead of what the name resolves to")
    check.add_argument("--ca", help="PEM file of the authorities to verify it with; -: standard input")
    dead = command("dead-letters", _dead_letters, "events that could not be delivered: see, send again, drop")
    whats = dead.add_subparsers(dest="what", metavar="list|show|replay|drop", required=True)
    every = whats.add_parser("list", help="a line for each: its name, size, group, id, and why")
    every.set_defaults(names=["all"])
    for what, summary in (
        ("show", "all that is in them"),
        ("replay", "send them again, each under its own id: what came through before is heard once"),
        ("drop", "throw them away"),
    ):
        names = whats.add_parser(what, help=summary)
        names.add_argument("names", nargs="+", metavar="name", help="as `list` shows it, or `all`")
    explain = command("explain", _explain, "one event, hop by hop: where it is, and who has passed it")
    explain.add_argument("event", metavar="position|id", help="<epoch>:<number>, or 32 hexadecimal digits")
    prune = command("prune", _prune, "delete what was kept for long enough: finished jobs, expired tokens, …")
    prune.add_argument("--dry-run", action="store_true", help="say how much it would be, and delete nothing")
    prune.add_argument("--seconds", type=positive, default=3600.0, help="then it ends (%(default)s)")
    prune.add_argument("--rows", type=positive, default=5_000_000, help="deleted, and it ends (%(default)s)")
    prune.add_argument(
        "--check", type=positive, metavar="HOURS", help="delete nothing; 1 if something is due for longer"
    )
    top = command("top", _top, "rates, lag, sockets and queues of this host, again and again")
    top.add_argument("--seconds", type=positive, default=1.0, help="between two looks (%(default)s)")
    top.add_argument("--once", action="store_true", help="one table, and no more")
    manage = command("manage", _manage, "run a command of Django's")
    manage.add_argument("arguments", nargs=argparse.REMAINDER, metavar="command …")
    return parser


if __name__ == "__main__":
    sys.exit(main())
