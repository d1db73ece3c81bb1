"""The containers: started, waited for, shown when they fail, taken down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence

from dev import preflight, process, secret_files
from dev.config import Config
from dev.output import Failure, progress, step

_ONE_SHOT = {"migrate", "assets"}
_READY_SECONDS = 240
_REPORT_SECONDS = 5
_MOST_RESTARTS = 3
_LOG_LINES = "40"


def command(config: Config, *arguments: str) -> list[str]:
    chosen = [*config.compose_files, *([config.processes] if config.processes.is_file() else [])]
    files = [word for file in chosen for word in ("--file", str(file))]
    return ["docker", "compose", "--project-name", config.project, *files, *arguments]


def compose(config: Config, *arguments: str, seconds: float, stdin: str | None = None) -> str:
    """What `docker compose …` wrote to standard output. Raises `Failure` with what it said when it fails."""
    try:
        answer = process.ask(
            command(config, *arguments), seconds=seconds, stdin=stdin, env=config.compose_environment()
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"`docker compose {arguments[0]}` took longer than {seconds:.0f} s") from None
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        last = lines[-1] if lines else f"exit code {answer.returncode}"
        raise Failure(f"`docker compose {arguments[0]}` failed: {last}", lines[:-1])
    return answer.stdout


def become(config: Config, *arguments: str) -> None:
    """Turn into `docker compose …`, for what talks to a person: logs, a shell."""
    argv = command(config, *arguments)
    os.execvpe(argv[0], argv, environment(config))  # noqa: S606


def environment(config: Config) -> dict[str, str]:
    return {**os.environ, **config.compose_environment()}


def stop_seconds(config: Config) -> int:
    """More than it takes until every container has ended, though each takes as long as its file lets it."""
    text = "".join(file.read_text() for file in config.compose_files)
    return 180 + sum(map(int, re.findall(r"\bstop_grace_period: (\d+)s", text)))


def up(config: Config, *, renew: Sequence[str] = (), orphans: bool = False) -> None:
    """Start what does not run; `renew` names services whose mounted files were replaced. With `orphans`,
    services of the project that the files do not have stay.

    Returns when every service is healthy. Raises `Failure` with the logs of those that are not.
    """
    running = {row["Service"] for row in rows(config) if row["State"] == "running"}
    if not running:
        step(f"Starting the containers of the stack {config.project}")
    renew = [service for service in renew if service in running]
    if renew:
        # A mounted file is the one that was there when the container started.
        compose(
            config, "up", "--detach", "--no-deps", "--force-recreate", *renew, seconds=stop_seconds(config)
        )
    compose(
        config, "up", "--detach", *([] if orphans else ["--remove-orphans"]), seconds=stop_seconds(config)
    )
    _await_healthy(config)


def _await_healthy(config: Config) -> None:
    start = time.monotonic()
    reported = start
    while True:
        found = rows(config)
        failed = sorted({row["Service"] for row in found if _failed(row)})
        waiting = sorted({row["Service"] for row in found if not _ready(row)})
        if not waiting:
            return
        now = time.monotonic()
        if failed or now - start > _READY_SECONDS:
            broken = failed or waiting
            logs = compose(config, "logs", "--no-color", "--tail", _LOG_LINES, *broken, seconds=30)
            why = "failed" if failed else f"not healthy within {_READY_SECONDS} s"
            # Without the terminal codes that Compose writes even when told not to.
            lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", logs).splitlines()
            raise Failure(f"{', '.join(broken)}: {why}; the logs are above, and `make logs`", lines)
        if now - reported >= _REPORT_SECONDS:
            progress(f"waiting for {', '.join(waiting)} ({now - start:.0f} s)")
            reported = now
        time.sleep(0.5)


def _ready(row: dict) -> bool:
    if row["Service"] in _ONE_SHOT:
        return row["State"] == "exited" and row["ExitCode"] == 0
    return row["State"] == "running" and row["Health"] == "healthy"


def _failed(row: dict) -> bool:
    if row["Service"] in _ONE_SHOT:
        return row["State"] == "exited" and row["ExitCode"] != 0
    if row["Health"] == "unhealthy":
        return True
    if row["State"] != "restarting":
        return False
    # Once may be bad luck (a broker that is not up yet); again and again is a fault.
    count = process.docker("inspect", "--format", "{{.RestartCount}}", row["Name"])
    return count.isdecimal() and int(count) >= _MOST_RESTARTS


def rows(config: Config) -> list[dict]:
    return parse_rows(compose(config, "ps", "--all", "--format", "json", seconds=30))


def parse_rows(text: str) -> list[dict]:
    """Compose writes one object a line; versions before 2.21 a list."""
    rows: list[dict] = []
    for line in text.splitlines():
        item = json.loads(line)
        rows.extend(item if isinstance(item, list) else [item])
    return rows


def down(config: Config, *, volumes: bool) -> None:
    """Stop and remove our containers, never another checkout's; with `volumes` also what they stored."""
    preflight.neighbour(config)
    extra = ["--volumes"] if volumes else []
    compose(config, "down", "--remove-orphans", *extra, seconds=stop_seconds(config))
    if volumes:
        # Of a user in the database that is gone.
        (config.secrets / secret_files.METRICS_TOKEN).unlink(missing_ok=True)
