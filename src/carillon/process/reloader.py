"""Development: run a process and start it anew when a source file is saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from carillon.process import declared as declaration
from carillon.process.environment import SETTINGS_MODULE
from carillon.process.launcher import EXIT_CONFIGURATION, say

_CODE = (".py", f"/{declaration.FILE}")
_ASSETS = (".html", ".js", ".css", ".svg")  # only uwsgi serves them, or names them by their hashes
_STOP_SECONDS = 8  # below Docker's 10, so that a process that does not stop is named rather than just killed
_CRASH_SECONDS = 10  # one that ends this soon after a save ended because of it


def reload(process: str) -> int:
    """Run `process` until TERM; returns the exit code to end with.

    A restart has to be quick and does not wait for the database and the broker, unless the first start still
    does. A process that fails right after a save (a syntax error, say) starts again at the next one; one that
    ends otherwise, or is killed, ends the reloader too, and the container's restart policy takes over.
    """
    try:
        import watchfiles
    except ModuleNotFoundError:
        say("reload needs watchfiles, which only the development image has: use `carillon run`")
        return EXIT_CONFIGURATION

    # Where the project lies: Carillon's own code lies there too, or is nobody's to edit.
    spec = find_spec(SETTINGS_MODULE.partition(".")[0])
    if spec is None or spec.origin is None:
        say(f"there is no package of {SETTINGS_MODULE} to watch: is PYTHONPATH right?")
        return EXIT_CONFIGURATION
    source = Path(spec.origin).resolve().parents[1]
    watched = _CODE + _ASSETS if process == "uwsgi" else _CODE
    stopping = _StopEvent()
    child = _Child(process)
    if process == "uwsgi":
        _collect_static()
    child.start(wait=True)
    # yield_on_timeout: the loop also has to notice a process that ended.
    for changes in watchfiles.watch(
        source,
        watch_filter=lambda _change, path: path.endswith(watched),
        debounce=200,
        step=50,
        rust_timeout=200,
        yield_on_timeout=True,
        stop_event=stopping,
        raise_interrupt=False,
    ):
        if changes:
            names = sorted({os.path.relpath(path, source) for _, path in changes})
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            say(f"{process}: {names[0]}{more} changed, restarting")
            if any(path.endswith(_ASSETS) for _, path in changes):
                _collect_static()
            still_waiting = child.is_launcher()
            child.stop()
            child.start(wait=still_waiting)
        elif (code := child.ended()) is not None:
            return code
    child.stop()
    return 0


def _collect_static() -> None:
    """nginx serves hashed copies of the assets: without new ones a saved stylesheet would not be seen."""
    command = [sys.executable, "-m", "carillon", "manage", "collectstatic", "--no-input", "--verbosity", "0"]
    subprocess.run(command, check=False)


class _Child:
    def __init__(self, process: str) -> None:
        self.process = process
        self.popen: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.after_save = False

    def start(self, *, wait: bool) -> None:
        command = [sys.executable, "-m", "carillon", "run", self.process, *([] if wait else ["--no-wait"])]
        self.popen = subprocess.Popen(command)
        self.started = time.monotonic()
        self.after_save = not wait

    def is_launcher(self) -> bool:
        """True while it waits for what the process needs and has not become the process yet."""
        if self.popen is None:
            return False
        try:
            arguments = Path("/proc", str(self.popen.pid), "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return arguments[1:4] == [b"-m", b"carillon", b"run"]

    def ended(self) -> int | None:
        """None while it runs or waits for a save that mends it; else the exit code to pass on."""
        code = self.popen.poll() if self.popen else None
        if code is None:
            return None
        if self.after_save and code > 0 and time.monotonic() - self.started < _CRASH_SECONDS:
            say(f"{self.process}: ended with {code}. Mend the file: it starts again when you save.")
            self.popen = None
            return None
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        if self.popen is None or self.popen.poll() is not None:
            return
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            # Again and again: uWSGI ignores a TERM that comes while it loads the application.
            self.popen.terminate()
            try:
                self.popen.wait(0.5)
                return
            except subprocess.TimeoutExpired:
                continue
        say(f"{self.process}: did not stop within {_STOP_SECONDS} s of TERM, killing it")
        self.popen.kill()
        self.popen.wait()


class _StopEvent:
    """Set by TERM and INT; watchfiles asks for no more than `is_set`."""

    def __init__(self) -> None:
        self._set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set
