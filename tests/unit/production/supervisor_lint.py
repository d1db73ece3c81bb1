"""Finds what supervisord accepts without a word: unknown keys, keys given twice, misspelt sections.

supervisord reads the keys that it knows and ignores the rest (Supervisor#301, #990): `topwaitsecs = 30` is
a program that is killed after 10 s, and `[progam:x]` is a program that does not exist. The names are those
of its documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

PROGRAM = frozenset(
    [
        "command",
        "process_name",
        "numprocs",
        "numprocs_start",
        "priority",
        "autostart",
        "startsecs",
        "startretries",
        "autorestart",
        "exitcodes",
        "stopsignal",
        "stopwaitsecs",
        "stopasgroup",
        "killasgroup",
        "user",
        "redirect_stderr",
        "stdout_logfile",
        "stdout_logfile_maxbytes",
        "stdout_logfile_backups",
        "stdout_capture_maxbytes",
        "stdout_events_enabled",
        "stdout_syslog",
        "stderr_logfile",
        "stderr_logfile_maxbytes",
        "stderr_logfile_backups",
        "stderr_capture_maxbytes",
        "stderr_events_enabled",
        "stderr_syslog",
        "environment",
        "directory",
        "umask",
        "serverurl",
    ]
)
SECTIONS = {
    "supervisord": frozenset(
        [
            "logfile",
            "logfile_maxbytes",
            "logfile_backups",
            "loglevel",
            "pidfile",
            "umask",
            "nodaemon",
            "silent",
            "minfds",
            "minprocs",
            "nocleanup",
            "childlogdir",
            "user",
            "directory",
            "strip_ansi",
            "environment",
            "identifier",
        ]
    ),
    "unix_http_server": frozenset(["file", "chmod", "chown", "username", "password"]),
    "inet_http_server": frozenset(["port", "username", "password"]),
    "supervisorctl": frozenset(["serverurl", "username", "password", "prompt", "history_file"]),
    "include": frozenset(["files"]),
    "rpcinterface": frozenset(["supervisor.rpcinterface_factory"]),
    "program": PROGRAM,
    "group": frozenset(["programs", "priority"]),
    "fcgi-program": PROGRAM | {"socket", "socket_backlog", "socket_owner", "socket_mode"},
    "eventlistener": (PROGRAM - {"stdout_capture_maxbytes"}) | {"buffer_size", "events", "result_handler"},
}
NAMED = frozenset(["program", "group", "fcgi-program", "eventlistener", "rpcinterface"])


def lint(text: str, path: str) -> list[str]:
    """Problems of one file, each as `path:line: what is wrong`."""
    problems = []
    section: str | None = None
    known: frozenset[str] = frozenset()
    seen: dict[tuple[str, str], int] = {}
    sections: set[str] = set()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split(" ;")[0].rstrip()
        if not line.strip() or line.lstrip().startswith((";", "#")) or raw[:1].isspace():
            continue
        if heading := re.fullmatch(r"\[([^\]]+)\]", line):
            section = heading[1]
            kind, colon, name = section.partition(":")
            known = SECTIONS.get(kind, frozenset())
            if kind not in SECTIONS or bool(colon and name) != (kind in NAMED):
                problems.append(f"{path}:{number}: [{section}] is no section of supervisord's")
            elif section in sections:
                problems.append(f"{path}:{number}: [{section}] is there twice")
            sections.add(section)
            continue
        key, separator, value = line.partition("=")
        key = key.strip()
        if not separator or section is None:
            problems.append(f"{path}:{number}: expected key = value in a section")
        elif (section, key) in seen:
            before = seen[section, key]
            problems.append(f"{path}:{number}: {key} is set in line {before} already; the last wins silently")
        elif known and key not in known:
            problems.append(f"{path}:{number}: {key} is no key of [{section}]; supervisord would ignore it")
        elif "%(ENV_" in value and key != "socket":
            problems.append(
                f"{path}:{number}: {key} takes a value from supervisord's environment at its start"
            )
        seen.setdefault((section or "", key), number)
    return problems


def processes(folder: Path) -> set[str]:
    """Every process that the files of a folder declare, by the name that supervisorctl gives it."""
    names = set()
    for path in folder.glob("*.conf"):
        text = path.read_text()
        group = re.search(r"(?m)^\[(?:program|fcgi-program|eventlistener):([^\]]+)\]", text)
        count = re.search(r"(?m)^numprocs = (\d+)$", text)
        if group and count:
            names |= {f"{group[1]}:{group[1]}_{number}" for number in range(int(count[1]))}
        elif group:
            names.add(group[1])
    return names


def programs(folder: Path) -> set[str]:
    """The programs that the files of a folder declare."""
    return {
        match[1]
        for path in folder.glob("*.conf")
        for match in re.finditer(
            r"(?m)^\[(?:program|fcgi-program|eventlistener):([^\]]+)\]", path.read_text()
        )
    }
