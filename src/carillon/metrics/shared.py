"""The directory in which every process leaves what it counts, once a second, and from which uwsgi answers.

Each process has a slot of its own: a file that it replaces as a whole, and a lock that the kernel keeps for
as long as it lives. So a process that is killed while it writes leaves its last whole file, and a disk that
is full costs nothing but a line in the log. (prometheus_client's own multiprocess mode maps its files into
memory: on a full tmpfs the next counter of a process is its last, by SIGBUS.)
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from carillon import __version__
from carillon.metrics import names, snapshot
from carillon.metrics.sampled import sample
from carillon.metrics.snapshot import Registry, Sample, Snapshot, Together

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two snapshots of a process."""

SILENT = 10.0
"""Seconds without one, after which a process counts as gone."""

AT_ONCE = 6
"""Families that are read in a row. The event loop waits for the interpreter's lock meanwhile. It has a turn
before the next ones: an event waits for these few, and not for a whole snapshot."""

TURN = 0.0002
"""Seconds of that turn. With 0 this thread would have the lock again before the other has woken up."""

MOST_SLOTS = 1024
"""Of one kind of process on a machine."""


class Full(OSError):
    """There is no slot for this process."""


class InTurns:
    """A registry that is read in turns with the process's other threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for number, metric in enumerate(self._registry.collect(), 1):
            yield metric
            if number % AT_ONCE == 0:
                time.sleep(TURN)


class Slot:
    """A place of one process in the directory. Everything raises OSError."""

    def __init__(self, directory: Path, process: str) -> None:
        self.process = process
        directory.mkdir(mode=0o700, exist_ok=True)
        self.number, self._lock = _lock_one(directory, process)
        self._file = directory / f"{process}-{self.number}.json"
        self._left: dict[str, bytes] = {}
        self.before: dict[Sample, float] = {}
        """What the process that had this slot last has counted."""
        with suppress(FileNotFoundError, ValueError):
            self.before = snapshot.unpack(self._file.read_bytes()).lasting()

    def write(self, registry: Registry, inherited: Mapping[Sample, float] | None = None) -> None:
        """Raises ValueError, too, where there is too much."""
        families = snapshot.take(registry, self.process, self.before, inherited)
        data = snapshot.pack(Snapshot(self.process, self.number, time.monotonic(), families))
        self._replace(self._file, data)
        for name, make in tuple(_beside.items()):
            if (found := make()) != self._left.get(name):
                with suppress(OSError):  # the snapshot is what counts
                    self._replace(self._file.with_suffix(f".{name}"), found)
                    self._left[name] = found

    def _replace(self, file: Path, data: bytes) -> None:
        new = file.with_suffix(".new")
        try:
            new.write_bytes(data)
            os.replace(new, file)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise

    def close(self) -> None:
        os.close(self._lock)


def _lock_one(directory: Path, process: str) -> tuple[int, int]:
    for number in range(MOST_SLOTS):
        lock = os.open(directory / f"{process}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise
        else:
            return number, lock
    raise Full(f"{MOST_SLOTS} processes of {process} have written there")


_beside: dict[str, Callable[[], bytes]] = {}


def beside(name: str, make: Callable[[], bytes]) -> None:
    """Leave what `make` gives beside each snapshot of this process: `<process>-<slot>.<name>`."""
    _beside[name] = make


class Writer(threading.Thread):
    """Leaves a snapshot of this process every second. Whatever goes wrong with that is said once, counted,
    and stops nothing. `inherited`: what the registry had when this process was forked."""

    def __init__(
        self,
        directory: Path,
        process: str,
        registry: Registry = REGISTRY,
        inherited: Mapping[Sample, float] | None = None,
    ) -> None:
        super().__init__(name="carillon metrics", daemon=True)
        self.directory = directory
        self.process = process
        self._registry = InTurns(registry)
        self._inherited = inherited
        self._slot: Slot | None = None
        self._well = True
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            self.once()
            self._stopped.wait(INTERVAL)

    def once(self) -> None:
        with _writing:
            self._once()

    def _once(self) -> None:
        try:
            if self._slot is None:
                self._slot = Slot(self.directory, self.process)
            sample()
            self._slot.write(self._registry, self._inherited)
        except Exception as error:
            names.METRICS_FAILURES.inc()
            if isinstance(error, FileNotFoundError):
                self._leave()  # the directory is gone, with all that was in it
            if self._well:
                why = f"{type(error).__name__}: {error}"
                logger.warning("Metrics cannot be written to %s: %s. Events go on", self.directory, why)
            self._well = False
        else:
            if not self._well:
                logger.warning("Metrics are written to %s again", self.directory)
            self._well = True

    def stop(self) -> None:
        self._stopped.set()
        self.join(INTERVAL)
        self._leave()

    def _leave(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.close()


_writer: Writer | None = None
_writing = threading.Lock()
"""Held while a snapshot is made: a fork in the midst of it would leave its locks taken in the child."""


def start(directory: Path | None, process: str, inherited: Mapping[Sample, float] | None = None) -> None:
    """Begin to leave snapshots of this process, which is a `process`; None: there are none."""
    global _writer
    names.BUILD.labels(__version__).set(1)
    if directory is not None:
        # After a fork the thread of before is not there, and the slot is the parent's.
        _writer = Writer(directory, process, inherited=inherited)
        _writer.start()
        atexit.unregister(_last)
        atexit.register(_last)


def _last() -> None:
    """What a process that ends in order has counted, to the last."""
    if _writer is not None:
        _writer.once()


def start_with_forks(directory: Path | None, process: str) -> None:
    """The same for a process and those that it forks, each with a slot of its own."""
    start(directory, process)
    start_in_forks(directory, process)


def start_in_forks(directory: Path | None, process: str) -> None:
    """The same for those that this process and its children fork, and not for itself. The last word holds."""
    global _forks
    if directory is None:
        return
    if _forks is None:
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
    _forks = (directory, process)


_forks: tuple[Path, str] | None = None
"""Where forks of this process leave their snapshots, and as what."""

_inherited: dict[Sample, float] | None = None
"""What the registry has, while there is a fork."""


def _before_fork() -> None:
    global _inherited
    _writing.acquire()
    # Here and not in the child: what another thread has locked in the registry would stay locked there.
    _inherited = _counted()


def _after_fork() -> None:
    global _inherited
    _inherited = None
    _writing.release()


def _forked() -> None:
    """In the child. Where nobody said a word before, as of uwsgi's master, this is the first moment: that one
    has no threads which could have locked something."""
    global _inherited, _writing
    _writing = threading.Lock()
    inherited, _inherited = _inherited, None
    if _forks is not None:
        start(*_forks, _counted() if inherited is None else inherited)


def _counted() -> dict[Sample, float]:
    found: dict[Sample, float] = {}
    try:
        sample()
        snapshot.inherited(REGISTRY, found)
    except Exception:  # a collector's: a fork goes on
        logger.warning("What is counted could not be read at a fork", exc_info=True)
    return found


def forget(directory: Path, known: Collection[str]) -> None:
    """Leave out what processes have written that there are no more of: they are not missed."""
    with suppress(OSError):
        for file in directory.iterdir():
            if file.suffix != ".lock" and file.stem.rpartition("-")[0] not in known:
                file.unlink(missing_ok=True)


def read(directory: Path) -> Together:
    """What all processes of this machine have counted. Raises OSError where the directory cannot be read."""
    found = []
    for file in sorted(directory.iterdir()):
        if file.suffix != ".json":
            continue
        try:
            found.append(snapshot.unpack(file.read_bytes()))
        except (OSError, ValueError) as error:
            logger.warning("%s is left out of the metrics: %s", file, error)
    return Together(found, time.monotonic(), SILENT)


def read_beside(directory: Path, process: str, slot: int, name: str) -> bytes:
    """What a process has left beside its snapshots; b"": nothing."""
    try:
        return (directory / f"{process}-{slot}.{name}").read_bytes()
    except OSError:
        return b""
