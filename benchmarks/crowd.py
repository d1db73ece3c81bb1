"""Many clients in one cheap process: `crowd.c`, compiled on first use with cc and OpenSSL's headers."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = Path(__file__).with_name("crowd.c")
PROGRAM = ROOT / ".dev-bench" / "crowd"


def program():
    """The compiled program's path."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        command = ["cc", "-O2", "-o", str(PROGRAM), str(SOURCE), "-lssl", "-lcrypto", "-lm"]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"crowd.c needs a C compiler and OpenSSL's headers (libssl-dev): {error}"
            ) from None
    return PROGRAM


class Crowd:
    """So many sockets, connected and subscribed. `handshakes` is how many a second that was.

    See crowd.c for what the arguments mean; a command's report is the dictionary that `crowd` prints.
    """

    def __init__(self, address, port, *, tls, path, speak, sockets, groups=1, at_once=50, headers="",
                 subscribe=""):  # fmt: skip
        self.sockets = sockets
        self.process = subprocess.Popen(
            [str(program()), address, str(port), str(int(tls)), path, speak, str(sockets), str(groups),
             str(at_once), headers, subscribe],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.handshakes = sockets / self._hear()["seconds"]

    def _hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the crowd of clients has failed: see above")
        return json.loads(line)

    def begin(self, command, *arguments):
        """Start a command; end() waits for its report."""
        self.process.stdin.write(" ".join(map(str, (command, *arguments))) + "\n")
        self.process.stdin.flush()
        return self._hear()["began"]

    def end(self):
        return self._hear()

    def idle(self, seconds):
        self.begin("idle", seconds)
        return self.end()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
