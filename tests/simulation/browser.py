"""What a client in a browser remembers: the module that pages load, in a process of Node."""

import itertools
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

_clients = itertools.count()


@cache
def _node() -> subprocess.Popen[str]:
    """One for all clients. It ends with us, when its input does."""
    program = shutil.which("node")
    if program is None:
        raise SystemExit("node is not installed: apt-get install nodejs (20.19 or later)")
    script = Path(__file__).with_name("memory.mjs")
    return subprocess.Popen(
        [program, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


class Memory:
    """In place of `carillon.client.protocol.Memory`."""

    def __init__(self) -> None:
        self.since: str | None = None
        self._client = next(_clients)

    def _call(self, method: str, *given):
        node = _node()
        node.stdin.write(json.dumps([self._client, method, *given]) + "\n")
        answer = json.loads(node.stdout.readline())
        self.since = answer["since"]
        return answer["value"]

    def welcome(self, position: str) -> None:
        self._call("welcome", position)

    def asked(self, since: str) -> None:
        self._call("asked", since)

    def is_new(self, event) -> bool:
        return self._call("isNew", event.group, event.position)

    def settled(self, position: str) -> None:
        self._call("settled", position)
