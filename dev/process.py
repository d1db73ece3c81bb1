"""Other programs: run with a deadline, with their output in a log, and with signs of life while they work."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev.output import Failure, progress

_SIGN_OF_LIFE_SECONDS = 15
_TAIL_LINES = 25


def ask(
    command: Sequence[str],
    *,
    seconds: float = 30,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a short command and return what it said; its exit code is the caller's to judge.

    Raises `FileNotFoundError` when there is no such program and `subprocess.TimeoutExpired` past `seconds`.
    """
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={**os.environ, **(env or {})},
        check=False,
    )


def docker(*arguments: str) -> str:
    """What docker says; nothing when it cannot: there is none, it fails, or it takes too long."""
    try:
        answer = ask(["docker", *arguments])
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip("\n") if answer.returncode == 0 else ""


def work(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run a long command with its output in `log`, saying every few seconds that it is still at it.

    Raises `Failure` with the end of the log when it fails or takes longer than `seconds` (then it is killed).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        # A session of its own: what it started dies with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            _follow(process, what, log, start, seconds)
        except BaseException:
            _kill(process)
            raise
    if process.returncode:
        raise Failure(f"{what} failed; the whole log is in {log}.{hint and f' {hint}'}", tail(log))


def _follow(process: subprocess.Popen[bytes], what: str, log: Path, start: float, seconds: float) -> None:
    while True:
        left = seconds - (time.monotonic() - start)
        try:
            process.wait(min(_SIGN_OF_LIFE_SECONDS, max(left, 0.1)))
            return
        except subprocess.TimeoutExpired:
            if left <= _SIGN_OF_LIFE_SECONDS:
                raise Failure(
                    f"{what} took longer than {seconds:.0f} s; its log is in {log}", tail(log)
                ) from None
            last = next((line for line in reversed(tail(log)) if line.strip()), "")
            progress(f"{what}: {time.monotonic() - start:.0f} s … {last.strip()[:90]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(log: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a file; none when there is no such file."""
    try:
        with log.open(errors="replace") as text:
            return [line.rstrip("\n") for line in deque(text, lines)]
    except FileNotFoundError:
        return []
