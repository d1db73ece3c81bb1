"""What every scenario of production shares: hosts by name, and waiting for a condition."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from websockets.exceptions import WebSocketException

# `make test-production-full`: also what takes minutes and changes seldom.
FULL = bool(os.environ.get("CARILLON_PRODUCTION_FULL"))
ROOT = Path(__file__).resolve().parents[2]


def wait_for(
    condition: Callable[[], object], seconds: float, what: str, logs: Callable[[], str] = lambda: ""
):
    """The first true value of `condition`; after `seconds`, a failure that says what was waited for."""
    deadline = time.monotonic() + seconds
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            value = condition()
            if value:
                return value
        except (AssertionError, OSError, RuntimeError, EOFError, WebSocketException) as error:
            last = error
        time.sleep(0.5)
    pytest.fail(f"after {seconds} s still not: {what}. {last or ''}\n{logs()}")


class Machine:
    """A host: a container with systemd, seen from inside (`run`) and from outside (`address`)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.host = testinfra.get_host(f"docker://{name}")

    def run(self, command: str) -> str:
        """Standard output of a shell command that must succeed."""
        done = self.host.run(command)
        assert done.rc == 0, f"{self.name}: {command!r} ended with {done.rc}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def address(self) -> str:
        found = json.loads(subprocess.check_output(["docker", "inspect", self.name]))
        return next(iter(found[0]["NetworkSettings"]["Networks"].values()))["IPAddress"]

    def logs(self) -> str:
        """The lines that matter when something did not come up."""
        return self.host.run(
            "tail -n 30 /var/log/carillon/carillon.log; systemctl --failed --no-legend;"
            "journalctl -n 30 --no-pager"
        ).stdout

    def programs(self) -> dict[str, tuple[str, float]]:
        """supervisord's programs: name to (state, seconds since the start)."""
        script = (
            "import json,xmlrpc.client as x,supervisor.xmlrpc as s;"
            "t=s.SupervisorTransport(serverurl='unix:///run/carillon/supervisor.sock');"
            "p=x.ServerProxy('http://127.0.0.1',transport=t).supervisor.getAllProcessInfo();"
            "print(json.dumps([[i['group'],i['name'],i['statename'],i['now']-i['start']] for i in p]))"
        )
        rows = json.loads(self.run(f'/opt/carillon/current/bin/python -c "{script}"'))
        return {
            name if group == name else f"{group}:{name}": (state, age) for group, name, state, age in rows
        }

    def processes(self) -> list[dict]:
        """Every process: pid, user, argv (list), environment names (set)."""
        script = """
import json, os, pwd
rows = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        argv = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")[:-1]
        environ = open(f"/proc/{pid}/environ", "rb").read().split(b"\\0")[:-1]
        user = pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    except (OSError, KeyError):
        continue
    if argv:
        rows.append({"pid": int(pid), "user": user, "argv": [a.decode(errors="replace") for a in argv],
                     "environ": [e.decode(errors="replace") for e in environ]})
print(json.dumps(rows))
"""
        done = subprocess.run(
            ["docker", "exec", "-i", self.name, "python3", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)
