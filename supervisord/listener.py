"""Makes a program that supervisord has given up on visible. An event listener: supervisord runs it.

On a host: a line in the log, a file /run/carillon/fatal/<program> (monitoring and `check.yml` look there),
and the status text of the systemd unit. In a container (CARILLON_ON_FATAL=exit): supervisord is told to stop,
so that the container ends and its engine, which watches containers and not programs, starts it anew.

Standard library only. https://supervisord.org/events.html describes the protocol.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TextIO

FOLDER = Path("/run/carillon/fatal")


def pairs(line: str) -> dict[str, str]:
    """`a:1 b:2` to {"a": "1", "b": "2"}."""
    return dict(item.split(":", 1) for item in line.split())


def program(payload: dict[str, str]) -> str:
    """The name as supervisorctl shows it."""
    name, group = payload["processname"], payload["groupname"]
    return name if name == group else f"{group}:{name}"


def handle(event: str, payload: dict[str, str], folder: Path = FOLDER) -> None:
    name = program(payload)
    marker = folder / name.replace("/", "_")
    if event == "PROCESS_STATE_RUNNING":
        marker.unlink(missing_ok=True)
        # Also where this one had no marker: those of programs that are gone, others take away.
        if folder.exists():
            report(folder)
        return
    folder.mkdir(mode=0o755, exist_ok=True)
    marker.touch()
    print(
        f"carillon: FATAL: {name} keeps failing and is not started again. Its lines above say why; then: "
        f"supervisorctl start {name}",
        file=sys.stderr,
        flush=True,
    )
    report(folder)
    if os.environ.get("CARILLON_ON_FATAL") == "exit":
        os.kill(os.getppid(), signal.SIGTERM)


def report(folder: Path) -> None:
    """Tell systemd, where it listens: `systemctl status carillon` shows it."""
    failed = sorted(path.name for path in folder.iterdir())
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    status = f"STATUS=FATAL: {', '.join(failed)}" if failed else "STATUS=all programs run"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.sendto(
                status.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address
            )
        except OSError as error:
            print(f"carillon: systemd was not told: {error}", file=sys.stderr, flush=True)


def main(incoming: TextIO = sys.stdin, outgoing: TextIO = sys.stdout) -> None:
    while True:
        outgoing.write("READY\n")
        outgoing.flush()
        header = incoming.readline()
        if not header:  # supervisord is gone
            return
        fields = pairs(header)
        handle(fields["eventname"], pairs(incoming.read(int(fields["len"]))))
        outgoing.write("RESULT 2\nOK")
        outgoing.flush()


if __name__ == "__main__":
    main()
