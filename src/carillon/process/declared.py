"""What a project declares of itself for whoever deploys it: `carillon.toml`, beside its settings.

Development, containers and hosts are made from this one file: `dev`, the release and Ansible's roles read it
through here, and load this module as a file of its own. So: standard library only, nothing of Carillon's.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

FILE = "carillon.toml"
# Addresses that nginx gives to somebody else, in every deployment.
TAKEN = {
    "/api/": "uwsgi",
    "/events/": "the event stream",
    "/media/": "the files that users have uploaded",
    "/nginx/": "nginx itself",
    "/static/": "the files that nginx serves",
}
OWN = "/websocket/"  # leads to daphne without a word of the project's

# Programs of supervisord and services of compose/: a process of the project's is called otherwise.
RESERVED = frozenset(
    (
        *("uwsgi", "daphne", "runworker", "listener", "all", "app", "migrate", "assets", "nginx", "rabbitmq"),
        *("postgresql", "broker2", "broker3", "prometheus", "alertmanager", "postgres-exporter"),
        "nginx-exporter",
    )
)
# Lists of paths, each with an example.
LISTS = {"websocket_prefixes": "/ws/", "http_prefixes": "/live/"}
# In containers nginx keeps bodies in 160 MiB, 16 of an address, and Django has 64 MiB for them (compose/).
LARGEST_UPLOAD = 8
MOST = 64  # of one process on a machine
STOP_SECONDS = 30
LONGEST_STOP = 60
# supervisord stops one group after another. The unit and the container give it time for Carillon's own and
# for so much besides (tests/unit/process/test_declared.py).
STOP_TOGETHER = 120

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
# Names between slashes: nothing of it means more to nginx, in whose configuration it ends.
_PREFIX = re.compile(r"/(?:[A-Za-z0-9_-]+/)+")


class Process(NamedTuple):
    """`command`: words, and no shell reads them; `number` of it run on each machine; `stop_seconds` after
    TERM it is killed.
    """

    command: tuple[str, ...]
    number: int = 1
    stop_seconds: int = STOP_SECONDS


class Declared(NamedTuple):
    """Paths that lead to daphne, by what they ask for, and what runs beside Carillon's own processes.
    `upload_mebibytes`: the largest body of a request to Django, where no route has a limit of its own.
    """

    websocket_prefixes: tuple[str, ...] = ()
    http_prefixes: tuple[str, ...] = ()
    upload_mebibytes: int = 1
    processes: dict[str, Process] = {}


NONE = Declared()
"""What is declared where there is no file."""


def read(path: Path) -> tuple[Declared, list[str]]:
    """What the file says, and what is wrong with it, one line each. No file: nothing is declared."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return NONE, []
    except OSError as error:
        return Declared(), [f"{path}: cannot be read: {error.strerror}"]
    except ValueError as error:  # not TOML, or not UTF-8
        return Declared(), [f"{path}: is not TOML: {error}"]
    problems = [
        f"{name}: no such entry (there are {', '.join(Declared._fields)})"
        for name in values
        if name not in Declared._fields
    ]
    processes = values.get("processes", {})
    problems += site_problems(values)
    problems += _process_problems(processes)
    if problems:
        return Declared(), [f"{path}: {problem}" for problem in problems]
    made = {
        name: Process(**{**entry, "command": tuple(entry["command"])}) for name, entry in processes.items()
    }
    return Declared(**{**values, **{key: tuple(values.get(key, ())) for key in LISTS}, "processes": made}), []


def site(declared: Declared) -> dict[str, Any]:
    """What nginx's site file is made from."""
    values = {key: value for key, value in declared._asdict().items() if key != "processes"}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def site_problems(values: dict[str, Any]) -> list[str]:
    """What is wrong with what nginx is to have, each a line with what to do; empty when it can have it."""
    problems = []
    taken: list[tuple[str, str]] = []
    for key, example in LISTS.items():
        prefixes = values.get(key, [])
        if not isinstance(prefixes, list) or not all(isinstance(prefix, str) for prefix in prefixes):
            problems.append(f'{key}: must be a list of paths, such as ["{example}"]')
            continue
        for prefix in prefixes:
            if why := _problem(prefix, key, taken):
                problems.append(f"{key}: {prefix!r} {why}")
            taken.append((prefix, key))
    if why := _number_problem(values.get("upload_mebibytes", 1), LARGEST_UPLOAD):
        problems.append(f"upload_mebibytes: {why}")
    return problems


def _problem(prefix: str, key: str, before: list[tuple[str, str]]) -> str | None:
    example = LISTS[key]
    if not prefix.strip("/"):
        return f"would take every page away from uwsgi: name a path for these alone, such as {example!r}"
    slashed = f"/{prefix.strip('/')}/"
    if prefix != slashed and _PREFIX.fullmatch(slashed):
        return f"must begin and end with one slash: write {slashed!r}"
    if not _PREFIX.fullmatch(prefix):
        return (
            "is a path and no pattern: between its slashes are letters, digits, '_' and '-', such as"
            f" {example!r} (what follows it is the routing's to say)"
        )
    if prefix.startswith(OWN):
        if key == "websocket_prefixes":
            return f"leads to daphne already, with all of {OWN}: leave it out"
        return f"lies in {OWN}, where websockets are: choose another, such as {example!r}"
    for taken, whose in TAKEN.items():
        if prefix.startswith(taken):
            return f"lies in {taken}, which leads to {whose}: choose another, such as {example!r}"
    for other, claimed in before:
        if prefix.startswith(other) or other.startswith(prefix):
            if claimed != key:
                return f"overlaps with {other!r} of {claimed}: a path is for one of the two, so move one"
            return f"overlaps with {other!r}: keep the shorter one"
    return None


def _number_problem(value: Any, most: int) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return None
    return f"must be a whole number from 1 to {most}, not {value!r}"


def _process_problems(processes: Any) -> list[str]:
    if not isinstance(processes, dict) or not all(isinstance(entry, dict) for entry in processes.values()):
        return ["processes: must be tables, such as [processes.worker] with command = [...]"]
    problems = []
    for name, entry in processes.items():
        problems += [
            f"processes.{name}: {why}" for why in (_name_problem(name), *_entry_problems(entry)) if why
        ]
    together = 0 if problems else sum(each.get("stop_seconds", STOP_SECONDS) for each in processes.values())
    if together > STOP_TOGETHER:
        problems.append(
            f"processes: one after another they may take {together} s to stop, and {STOP_TOGETHER} s is the "
            "most: lower stop_seconds"
        )
    return problems


def _name_problem(name: str) -> str | None:
    if name in RESERVED:
        return "Carillon has something of that name: choose another, such as 'worker'"
    if not _NAME.fullmatch(name):
        return (
            "the name must be of small letters, digits, '_' and '-', begin with a letter, and have at most 31"
        )
    return None


def _entry_problems(entry: dict[str, Any]) -> list[str]:
    problems = [
        f"{key}: no such entry (there are {', '.join(Process._fields)})"
        for key in entry
        if key not in Process._fields
    ]
    command = entry.get("command")
    if not command:
        problems.append('has no command: say command = ["celery", "--app", "yours", "worker"]')
    elif not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        problems.append('command must be a list of words, such as ["celery", "worker"]: no shell reads it')
    elif not command[0] or any(not word.isprintable() for word in command):
        problems.append("command has an empty program, a line break or a control character: take it out")
    for key, most in (("number", MOST), ("stop_seconds", LONGEST_STOP)):
        if why := _number_problem(entry.get(key, 1), most):
            problems.append(f"{key} {why}")
    return problems


def programs(declared: Declared) -> dict[str, str]:
    """Files for supervisord's conf.d by their names: as those of Carillon's own programs there."""
    return {
        f"{name}.conf": f"""; Declared in the project's {FILE}, which has its command.
[program:{name}]
command = /opt/carillon/current/bin/carillon run {name}
process_name = %(program_name)s_%(process_num)d
numprocs = {process.number}
startsecs = 5
startretries = 5
autorestart = true
stopsignal = TERM
stopwaitsecs = {process.stop_seconds}
stopasgroup = false
killasgroup = true
redirect_stderr = true
stdout_logfile = /dev/stdout
stdout_logfile_maxbytes = 0
"""
        for name, process in declared.processes.items()
    }


def main(file: str, folder: str) -> int:
    """For the image: `programs` of the file, written into a folder."""
    found, problems = read(Path(file))
    for problem in problems:
        print(f"carillon: {problem}", file=sys.stderr)
    for name, text in programs(found).items():
        Path(folder, name).write_text(text, encoding="utf-8")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
