"""The commands: `watch` tells of events in words, `output` follows one job's output."""

from __future__ import annotations

import argparse
import asyncio
import codecs
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import NoReturn

from carillon.client.endpoint import Endpoint, from_environment
from carillon.client.errors import ClientError
from carillon.client.link import Socket
from carillon.client.output import follow
from carillon.client.protocol import Event, parse_groups
from carillon.client.terminal import coloured, plain_text
from carillon.client.words import describe, paint, plain

COMMANDS = ("watch", "output")
EXIT_CODES = """\
exit codes: 0 it ended well, 1 the job failed or was canceled, 2 wrong words, no address, or no such group or
job, 3 the server is away, 4 the server refuses, 5 its certificate is not trusted, 128+n stopped by
signal n."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "watch")  # `carillon-watch jobs:summary`
    options = _parser().parse_args(arguments)
    if options.command is None:
        options = _parser().parse_args(["watch"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a locale that has no such character
    try:
        where = from_environment(url=options.url, token_file=options.token_file, ca=options.ca_cert)
        command = _watch if options.command == "watch" else _output
        return asyncio.run(command(where, options))
    except ClientError as error:
        _say(str(error), options)
        return error.exit_code
    except _Stopped as stopped:
        # At once: a pipe that nobody reads would make the ordinary end of the interpreter wait.
        os._exit(128 + stopped.number)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


class _Stopped(SystemExit):
    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for handled in (signal.SIGINT, signal.SIGTERM):
        signal.signal(handled, signal.SIG_DFL)  # a second one does not ask
    raise _Stopped(number)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", help="address of Carillon (default: $CARILLON_URL)")
    common.add_argument("--token-file", metavar="FILE", help="file with the token (default: $CARILLON_TOKEN)")
    common.add_argument("--ca-cert", metavar="FILE", help="CA to trust (default: $CARILLON_CA_CERT)")
    common.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="keep trying S seconds for the first connection",
    )
    common.add_argument(
        "--give-up", type=_seconds, metavar="S", help="stop S seconds after a loss (default: try for ever)"
    )
    common.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )
    common.add_argument("--quiet", action="store_true", help="say nothing of the link, only what is wrong")
    parser = argparse.ArgumentParser(
        prog="carillon-watch", description="Hears Carillon's bells in a terminal.", epilog=EXIT_CODES
    )
    commands = parser.add_subparsers(dest="command", metavar="{watch,output}")
    watch = commands.add_parser(
        "watch", parents=[common], help="one line per event, in words", epilog=EXIT_CODES
    )
    watch.add_argument(
        "groups",
        nargs="*",
        metavar="family:key[,key…]",
        default=["jobs:status_changed,summary", "schedules:changed"],
        help="such as job_events:42 (default: jobs:status_changed,summary schedules:changed)",
    )
    watch.add_argument("--json", action="store_true", help="one JSON object per line, and nothing else")
    output = commands.add_parser(
        "output", parents=[common], help="follow one job's output", epilog=EXIT_CODES
    )
    output.add_argument("job", type=int, help="the job's id")
    output.add_argument(
        "--search", default="", metavar="TEXT", help="only the lines that have it, with their numbers"
    )
    return parser


def _seconds(word: str) -> float:
    value = float(word)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("seconds are 0 or more")
    return value


async def _watch(where: Endpoint, options: argparse.Namespace) -> int:
    groups = parse_groups(options.groups)
    show = _json_line if options.json else _line(_coloured(options, sys.stdout))
    socket = Socket(where, on_link=_teller(options), wait=options.wait, give_up=options.give_up)
    async with socket:
        subscription = await socket.subscribe(groups)
        for error in subscription.errors:
            _say(error, options)
        if not options.quiet:
            _say(f"listening to {', '.join(subscription.current)}", options)
        async for event in socket:
            show(event)
    return 0


async def _output(where: Endpoint, options: argparse.Namespace) -> int:
    # Colours go into a pipe, too: only who asks for it gets output without them. Nothing else is let through.
    strip = options.color == "never" or (options.color == "auto" and bool(os.environ.get("NO_COLOR")))

    def write(text: str) -> None:
        sys.stdout.write(plain_text(text) if strip else coloured(text))
        sys.stdout.flush()

    status = await follow(
        where,
        options.job,
        write,
        on_link=_teller(options),
        wait=options.wait,
        give_up=options.give_up,
        search=options.search,
    )
    if not options.quiet:
        _say(f"job {options.job} is {status}", options)
    return 0 if status == "successful" else 1


def _json_line(event: Event) -> None:
    # JSON leaves these as they are, and a terminal takes them for commands.
    plain = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    text = json.dumps(event.payload, ensure_ascii=plain)
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    print(text, flush=True)


def _line(coloured: bool) -> Callable[[Event], None]:
    def show(event: Event) -> None:
        text, colour = describe(event)
        moment = datetime.now().strftime("%H:%M:%S")
        print(
            f"{paint(moment, 'dim') if coloured else moment}  {paint(text, colour if coloured else None)}",
            flush=True,
        )

    return show


def _teller(options: argparse.Namespace) -> Callable[[str], None]:
    return (lambda words: None) if options.quiet else (lambda words: _say(words, options))


def _say(words: str, options: argparse.Namespace) -> None:
    text = f"carillon: {plain(words)}"
    with suppress(OSError):
        print(paint(text, "dim") if _coloured(options, sys.stderr) else text, file=sys.stderr, flush=True)


def _coloured(options: argparse.Namespace, stream: object) -> bool:
    if options.color == "auto":
        return not os.environ.get("NO_COLOR") and bool(getattr(stream, "isatty", lambda: False)())
    return bool(options.color == "always")


if __name__ == "__main__":
    sys.exit(main())
